//! Answers counted.

use super::{Answer, Item, Task};
use crate::Perplexity;
use crate::report::{Share, TaskComparison, TaskResult};

impl Task {
    /// Counts what a model answered, an answer for each of the task's requests.
    ///
    /// # Panics
    /// Where there are fewer or more answers than requests.
    ///
    /// # Source
    /// lm-evaluation-harness: the first of the likeliest answers is picked, or of those whose likelihood per character is
    /// largest; the standard error of a mean divides by one less than the items.
    pub fn result(&self, answers: &[Answer]) -> TaskResult {
        let mut left = answers;
        let (mut picked, mut normalised) = (Vec::new(), Vec::new());
        for item in &self.items {
            let (own, rest) = left.split_at(item.answers());
            left = rest;
            let (plain, by_length) = item.pick(own);
            picked.push(plain);
            normalised.extend(by_length);
        }
        assert!(left.is_empty(), "an answer for each request");
        let right = |picked: &[u64]| {
            let pairs = picked.iter().zip(&self.items);
            Share::of(
                pairs.filter(|(picked, item)| item.is_right(**picked)).count() as u64,
                picked.len() as u64,
            )
        };
        let last_word = matches!(self.items[0], Item::LastWord { .. });
        let losses = || answers.iter().map(|answer| -answer.log_likelihood).collect::<Vec<_>>();
        TaskResult {
            name: self.name.clone(),
            file: String::new(),
            items_sha256: self.sha256.clone(),
            items: self.items.len() as u64,
            accuracy: right(&picked),
            normalised_accuracy: (!normalised.is_empty()).then(|| right(&normalised)),
            perplexity: last_word.then(|| Perplexity::of(&losses())),
            picked,
            normalised,
            reference: None,
        }
    }
}

impl Item {
    /// Answers it asks for.
    pub fn answers(&self) -> usize {
        match self {
            Self::Choices { choices, .. } => choices.len(),
            Self::Contexts { contexts, .. } => contexts.len(),
            Self::LastWord { .. } => 1,
        }
    }

    /// What is picked, and where answers are texts of different lengths what is picked by likelihood per character; of a last
    /// word 1 where it is found, else 0.
    fn pick(&self, answers: &[Answer]) -> (u64, Option<u64>) {
        let likeliest = |scores: Vec<f64>| {
            let best =
                (0..scores.len()).fold(0, |best, at| if scores[at] > scores[best] { at } else { best });
            best as u64
        };
        let plain = || likeliest(answers.iter().map(|answer| answer.log_likelihood).collect());
        match self {
            Self::Choices { choices, .. } => {
                let per_character = |(answer, choice): (&Answer, &String)| {
                    answer.log_likelihood / choice.chars().count() as f64
                };
                (plain(), Some(likeliest(answers.iter().zip(choices).map(per_character).collect())))
            }
            Self::Contexts { .. } => (plain(), None),
            Self::LastWord { .. } => (u64::from(answers[0].greedy), None),
        }
    }

    fn is_right(&self, picked: u64) -> bool {
        picked == self.gold().map_or(1, |gold| gold as u64)
    }
}

/// Sets a model's result beside that of the reference on the same items.
///
/// # Panics
/// Where they are of different items.
pub fn compare(task: &Task, result: &mut TaskResult, reference: &TaskResult) {
    assert_eq!(result.picked.len(), reference.picked.len(), "both answered the same items");
    let (mut lost, mut won, mut changed) = (0, 0, 0);
    for ((&now, &then), item) in result.picked.iter().zip(&reference.picked).zip(&task.items) {
        changed += u64::from(now != then);
        lost += u64::from(item.is_right(then) && !item.is_right(now));
        won += u64::from(item.is_right(now) && !item.is_right(then));
    }
    result.reference = Some(TaskComparison {
        accuracy: reference.accuracy,
        normalised_accuracy: reference.normalised_accuracy,
        perplexity: reference.perplexity,
        changed,
        lost,
        won,
        p_value: sign_test(lost, won),
    });
}

/// How likely it is that of `lost + won` flips, each as likely to fall on either side, so many or more fall on one: the exact
/// two-sided sign test, which for paired answers is called after `McNemar`.
fn sign_test(lost: u64, won: u64) -> f64 {
    let (flips, fewer) = (lost + won, lost.min(won));
    // Binomial probabilities from the middle's logarithms: each is the one before times (n - k) / (k + 1).
    let mut term = -(flips as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=fewer {
        tail += term.exp();
        term += ((flips - k) as f64 / (k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(log_likelihood: f64) -> Answer {
        Answer { log_likelihood, greedy: false }
    }

    fn choices(texts: [&str; 2], gold: usize) -> Item {
        Item::Choices { query: "q".into(), choices: texts.map(str::to_owned).to_vec(), gold }
    }

    #[test]
    fn the_likeliest_is_picked_and_per_character_perhaps_another() {
        let task = Task {
            name: "t".into(),
            sha256: String::new(),
            items: vec![choices(["ä", "bbbbbb"], 1), choices(["a", "b"], 1)],
        };
        let result = task.result(&[said(-2.0), said(-3.0), said(-1.0), said(-1.0)]);
        assert_eq!((result.picked, result.normalised), (vec![0, 0], vec![1, 0]));
        assert!((result.accuracy.value, result.normalised_accuracy.map(|a| a.value)) == (0.0, Some(0.5)));
    }

    #[test]
    fn a_last_word_is_right_where_each_token_is_the_likeliest() {
        let item = Item::LastWord { context: "a".into(), continuation: "b".into() };
        let task = Task { name: "t".into(), sha256: String::new(), items: vec![item; 2] };
        let found = Answer { log_likelihood: -1.0, greedy: true };
        let result = task.result(&[found, said(-3.0)]);
        assert!((result.accuracy.value - 0.5).abs() < 1e-12);
        assert!((result.accuracy.stderr - 0.5).abs() < 1e-12, "the root of 1/4 over one");
        assert!(result.perplexity.is_some_and(|p| (p.value - 2.0_f64.exp()).abs() < 1e-12));
    }

    #[test]
    fn flips_are_counted_on_both_sides() {
        let task = Task { name: "t".into(), sha256: String::new(), items: vec![choices(["a", "b"], 0); 4] };
        let of = |picked: [usize; 4]| {
            let answers = picked.map(|picked| [0, 1].map(|at| said(if at == picked { -1.0 } else { -2.0 })));
            task.result(&answers.concat())
        };
        let mut result = of([0, 1, 1, 0]);
        compare(&task, &mut result, &of([0, 0, 0, 1]));
        let against = result.reference.as_ref();
        assert!(against.is_some_and(|c| (c.changed, c.lost, c.won) == (3, 2, 1)), "{against:?}");
    }

    #[test]
    fn the_sign_test_is_the_binomial_one() {
        assert!((sign_test(0, 0) - 1.0).abs() < 1e-12);
        assert!((sign_test(0, 5) - 2.0 / 32.0).abs() < 1e-12);
        assert!((sign_test(5, 1) - 2.0 * 7.0 / 64.0).abs() < 1e-12);
        assert!((sign_test(3, 3) - 1.0).abs() < 1e-12);
        assert!((sign_test(900, 1000) - 0.0232).abs() < 5e-4, "{}", sign_test(900, 1000));
    }
}
