//! Items as tokens: what a model is given, and which of it it should have predicted.

use super::{Item, Task};
use crate::Error;

/// A text whose end a model is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Context and continuation.
    pub(super) tokens: Vec<u32>,
    /// How many of the last tokens are the continuation; at least one, and fewer than there are tokens.
    pub(super) asked: usize,
}

/// What stands between a context and what follows it.
const BETWEEN: &str = " ";
/// What follows the query of a multiple-choice item.
const ASKS: &str = "\nAnswer:";

impl Item {
    /// Contexts and what follows each, an answer each; one for a last word.
    fn pairs(&self) -> Vec<(String, String)> {
        let after = |text: &str| format!("{BETWEEN}{text}");
        match self {
            Self::Choices { query, choices, .. } => {
                let context = format!("{}{ASKS}", query.strip_suffix('\n').unwrap_or(query));
                choices.iter().map(|choice| (context.clone(), after(choice))).collect()
            }
            Self::Contexts { contexts, continuation, .. } => {
                contexts.iter().map(|context| (context.clone(), after(continuation))).collect()
            }
            Self::LastWord { context, continuation } => vec![(context.clone(), after(continuation))],
        }
    }
}

impl Task {
    /// All items as tokens, an item after the other.
    ///
    /// `encode` tokenizes a text without special tokens; `bos` is the token that the tokenizer puts first, if it does. What is
    /// longer than `most` predictions allow loses its beginning.
    ///
    /// # Errors
    /// What `encode` says, and a continuation that is no token of its own, or too long.
    ///
    /// # Source
    /// lm-evaluation-harness: context and continuation are tokenized together and cut where the context alone would end; white
    /// space at the context's end counts with the continuation; one token more than the model's longest text is kept, since
    /// the last is only predicted.
    pub fn requests<E: From<Error>>(
        &self,
        encode: impl Fn(&str) -> Result<Vec<u32>, E>,
        bos: Option<u32>,
        most: usize,
    ) -> Result<Vec<Request>, E> {
        let mut requests = Vec::new();
        for (at, item) in self.items.iter().enumerate() {
            for (context, continuation) in item.pairs() {
                let begins = context.trim_end().len();
                let whole = encode(&format!("{context}{continuation}"))?;
                let before = encode(&context[..begins])?.len();
                let wrong =
                    |what: &str| Error::Item { task: self.name.clone(), item: at, what: what.to_owned() };
                let asked = whole.len().saturating_sub(before);
                if asked == 0 {
                    return Err(wrong("has a continuation without a token of its own").into());
                }
                if asked > most {
                    return Err(wrong("has a continuation longer than the model's longest text").into());
                }
                let mut tokens: Vec<u32> = bos.into_iter().chain(whole).collect();
                if tokens.len() == asked {
                    return Err(wrong("has no context, and the tokenizer has no token to begin with").into());
                }
                tokens.drain(..tokens.len().saturating_sub(most + 1));
                requests.push(Request { tokens, asked });
            }
        }
        Ok(requests)
    }
}

impl Request {
    /// What the model reads: all tokens but the last, which is only predicted.
    pub(super) fn read(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// The positions of what it reads that predict the continuation.
    pub(super) fn asks(&self) -> std::ops::Range<usize> {
        let read = self.read().len();
        read - self.asked..read
    }

    /// The continuation.
    pub(super) fn continuation(&self) -> &[u32] {
        &self.tokens[self.tokens.len() - self.asked..]
    }

    /// Tokens the model reads.
    pub fn read_tokens(&self) -> usize {
        self.read().len()
    }

    /// Predictions it is asked for.
    pub fn asked(&self) -> usize {
        self.asked
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// A token for each word with the white space before it.
    fn words(text: &str) -> Vec<u32> {
        let mut words: Vec<String> = Vec::new();
        let mut ended = false;
        for c in text.chars() {
            let begins = words.is_empty() || c.is_whitespace() && !ended;
            ended = c.is_whitespace();
            if begins {
                words.push(String::new());
            }
            words.last_mut().unwrap().push(c);
        }
        words.iter().map(|word| word.bytes().map(u32::from).sum()).collect()
    }

    fn requests(item: Item, most: usize) -> Result<Vec<Request>, Error> {
        Task { name: "t".into(), sha256: String::new(), items: vec![item] }.requests(
            |text| Ok(words(text)),
            Some(1),
            most,
        )
    }

    #[test]
    fn a_choice_follows_its_query_and_the_word_answer() {
        let item =
            Item::Choices { query: "Why so\n".into(), choices: vec!["a b".into(), "c".into()], gold: 0 };
        let found = requests(item, 100).unwrap();
        let whole: Vec<u32> = [1].into_iter().chain(words("Why so\nAnswer: a b")).collect();
        assert_eq!(found[0].tokens, whole);
        assert_eq!(found.iter().map(|request| request.asked).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(found[0].continuation(), words(" a b"));
        assert_eq!(found[0].asks(), 3..5);
    }

    #[test]
    fn a_continuation_is_asked_for_after_each_context() {
        let contexts = vec!["he said".into(), "she had said".into()];
        let found = requests(Item::Contexts { contexts, continuation: "so".into(), gold: 1 }, 100).unwrap();
        assert_eq!(found.iter().map(Request::read_tokens).collect::<Vec<_>>(), [3, 4]);
        assert!(found.iter().all(|request| request.continuation() == words(" so")));
    }

    #[test]
    fn white_space_at_the_end_of_a_context_counts_with_the_continuation() {
        let item = Item::LastWord { context: "a b \n".into(), continuation: "c".into() };
        let found = requests(item, 100).unwrap();
        assert_eq!(found[0].continuation(), words(" \n c"));
    }

    #[test]
    fn what_is_too_long_loses_its_beginning() {
        let item = Item::LastWord { context: "a b c d e".into(), continuation: "f".into() };
        let found = requests(item, 3).unwrap();
        assert_eq!(found[0].tokens, words(" c d e f")[..]);
        assert_eq!((found[0].read_tokens(), found[0].asks()), (3, 2..3));
    }

    #[test]
    fn a_continuation_that_does_not_fit_is_refused() {
        let item = Item::LastWord { context: "a".into(), continuation: "b c d".into() };
        let error = requests(item, 2).unwrap_err().to_string();
        assert_eq!(error, "item 0 of task `t` has a continuation longer than the model's longest text");
    }

    #[test]
    fn an_item_without_context_is_asked_after_bos_and_refused_without() {
        let item = Item::LastWord { context: String::new(), continuation: "b".into() };
        assert_eq!(requests(item.clone(), 9).unwrap()[0].read(), [1]);
        let task = Task { name: "t".into(), sha256: String::new(), items: vec![item] };
        assert!(task.requests(|text| Ok::<_, Error>(words(text)), None, 9).is_err());
    }
}
