//! A task's items, as they stand in a file of JSON lines.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::Error;

/// Questions of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// How reports name it.
    pub name: String,
    /// SHA-256 of the lines they stand in; lower-case hex.
    pub sha256: String,
    /// At least one; all of the same variant.
    pub items: Vec<Item>,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Which choice follows the query?
    Choices {
        /// Without the `Answer:` that is put after it.
        query: String,
        /// Two or more.
        choices: Vec<String>,
        /// The right one, counted from 0.
        gold: usize,
    },
    /// After which context does the continuation follow best?
    Contexts {
        /// Two or more.
        contexts: Vec<String>,
        /// What follows each of them.
        continuation: String,
        /// The right one, counted from 0.
        gold: usize,
    },
    /// Does the continuation follow, each of its tokens the likeliest?
    LastWord {
        /// What stands before it.
        context: String,
        /// One word, as a rule.
        continuation: String,
    },
}

/// A line as it stands; other keys are passed over.
#[derive(Deserialize)]
struct Line {
    query: Option<String>,
    choices: Option<Vec<String>>,
    context: Option<String>,
    context_options: Option<Vec<String>>,
    continuation: Option<String>,
    gold: Option<i64>,
}

impl Task {
    /// Reads JSON lines, at most `limit` of them: `query`, `choices`, `gold`; `context_options`, `continuation`, `gold`; or
    /// `context`, `continuation`. Empty lines are passed over.
    ///
    /// # Errors
    /// A line that is none of these, another one than those before it, has a `gold` outside its choices, fewer than two
    /// choices, or nothing where there must be text; no line at all.
    pub fn parse(name: &str, lines: &str, limit: Option<usize>) -> Result<Self, Error> {
        let (mut items, mut hash) = (Vec::<Item>::new(), Sha256::new());
        let numbered = lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (at, line) in numbered.take(limit.unwrap_or(usize::MAX)) {
            let wrong = |what: String| Error::Task { task: name.to_owned(), line: at + 1, what };
            let item =
                serde_json::from_str(line).map_err(|error| wrong(format!("is not an item: {error}")))?;
            let item = Item::from_line(item).map_err(wrong)?;
            if items.first().is_some_and(|first| first.kind() != item.kind()) {
                return Err(wrong("is of another kind than the lines before it".to_owned()));
            }
            items.push(item);
            hash.update(line.trim());
            hash.update("\n");
        }
        if items.is_empty() {
            return Err(Error::NoItems { task: name.to_owned() });
        }
        let digits = hash.finalize().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let sha256 = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect();
        Ok(Self { name: name.to_owned(), sha256, items })
    }
}

impl Item {
    fn kind(&self) -> std::mem::Discriminant<Self> {
        std::mem::discriminant(self)
    }

    /// The right answer among those it is asked for; none where there is but one.
    pub fn gold(&self) -> Option<usize> {
        match *self {
            Self::Choices { gold, .. } | Self::Contexts { gold, .. } => Some(gold),
            Self::LastWord { .. } => None,
        }
    }

    fn from_line(line: Line) -> Result<Self, String> {
        let Line { query, choices, context, context_options, continuation, gold } = line;
        let item = match (query, choices, context, context_options, continuation) {
            (Some(query), Some(choices), None, None, None) => {
                let gold = right(gold, "choices", &choices)?;
                Self::Choices { query, choices, gold }
            }
            (None, None, None, Some(contexts), Some(continuation)) => {
                let gold = right(gold, "context_options", &contexts)?;
                Self::Contexts { contexts, continuation: told("continuation", continuation)?, gold }
            }
            (None, None, Some(context), None, Some(continuation)) => {
                Self::LastWord { context, continuation: told("continuation", continuation)? }
            }
            _ => {
                let shapes =
                    "query, choices, gold; context_options, continuation, gold; or context, continuation";
                return Err(format!("has other keys than {shapes}"));
            }
        };
        Ok(item)
    }
}

fn told(key: &str, text: String) -> Result<String, String> {
    if text.is_empty() { Err(format!("has an empty `{key}`")) } else { Ok(text) }
}

/// `gold`, where it is one of `options`.
fn right(gold: Option<i64>, key: &str, options: &[String]) -> Result<usize, String> {
    if options.len() < 2 {
        return Err(format!("has {} of `{key}`, and there must be two at least", options.len()));
    }
    if options.iter().any(String::is_empty) {
        return Err(format!("has an empty text among its `{key}`"));
    }
    let gold = gold.ok_or("has no `gold`")?;
    let index = usize::try_from(gold).ok().filter(|&gold| gold < options.len());
    index.ok_or_else(|| format!("has gold {gold}, but its {} `{key}` count from 0", options.len()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn refused(lines: &str) -> String {
        Task::parse("t", lines, None).unwrap_err().to_string()
    }

    #[test]
    fn each_of_the_three_kinds_is_known_by_its_keys() {
        let choices = r#"{"query": "Q", "choices": ["a", "b"], "gold": 1, "id": 7}"#;
        let contexts = r#"{"context_options": ["x", "y"], "continuation": "z", "gold": 0}"#;
        let last = r#"{"context": "c", "continuation": "d"}"#;
        let only = |line: &str| Task::parse("t", line, None).unwrap().items.remove(0);
        assert_eq!(
            only(choices),
            Item::Choices { query: "Q".into(), choices: vec!["a".into(), "b".into()], gold: 1 }
        );
        assert_eq!(
            only(contexts),
            Item::Contexts { contexts: vec!["x".into(), "y".into()], continuation: "z".into(), gold: 0 }
        );
        assert_eq!(only(last), Item::LastWord { context: "c".into(), continuation: "d".into() });
    }

    #[test]
    fn a_limit_keeps_the_first_items_and_reads_no_further() {
        let lines = "{\"context\": \"a\", \"continuation\": \"b\"}\n\nnot an item\n";
        assert_eq!(Task::parse("t", lines, Some(1)).unwrap().items.len(), 1);
    }

    #[test]
    fn a_gold_outside_the_choices_is_refused_with_its_line() {
        for gold in ["2", "-1"] {
            let lines = format!("\n{{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": {gold}}}\n");
            let told = format!("line 2 of task `t` has gold {gold}, but its 2 `choices` count from 0");
            assert_eq!(refused(&lines), told);
        }
    }

    #[test]
    fn what_is_no_item_is_refused() {
        let last = r#"{"context": "c", "continuation": "d"}"#;
        let choices = r#"{"query": "Q", "choices": ["a", "b"], "gold": 1}"#;
        assert!(refused(r#"{"query": "Q", "choices": ["a", "b"]}"#).contains("no `gold`"));
        assert!(refused(r#"{"query": "Q", "choices": ["a"], "gold": 0}"#).contains("two at least"));
        assert!(refused(r#"{"query": "Q", "choices": ["a", ""], "gold": 0}"#).contains("empty text"));
        assert!(refused(r#"{"context": "c", "continuation": ""}"#).contains("empty `continuation`"));
        assert!(refused(r#"{"query": "Q", "continuation": "a"}"#).contains("other keys"));
        assert!(refused("{").contains("is not an item"));
        assert!(refused(&format!("{last}\n{choices}")).contains("line 2"));
        assert_eq!(refused(" \n"), "task `t` has no items");
    }
}
