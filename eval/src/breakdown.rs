//! Where it hurts: the scored tokens in groups, window by window, and on a scale of divergence.

use std::collections::HashMap;
use std::ops::Range;

use attar_model::teacher::tokens_sha256;

use crate::evaluate::{Against, TokenScore, finite_perplexity};
use crate::perplexity::mean_and_stderr;
use crate::report::{Breakdown, ByWindow, Group, Histogram, Mean};
use crate::{Error, Passage};

/// Bins of the histogram in each power of ten.
const BINS_PER_DECADE: i32 = 5;
/// Powers of ten where the histogram's second bin begins and its last one.
const DECADES: Range<i32> = -7..2;
/// Groups by position, where the first positions of a window are not scored.
const POSITION_GROUPS: usize = 4;
/// How often a token stands in a text, from group to group.
const FREQUENCIES: [(usize, &str); 4] =
    [(1, "once"), (2, "2 to 9 times"), (10, "10 to 99 times"), (100, "100 times and more")];

/// What a token is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    WordBegins,
    WordGoesOn,
    Digits,
    Punctuation,
    Symbols,
    WhiteSpace,
    Other,
}

/// Every kind, in the order of the report.
const KINDS: [(Kind, &str); 7] = [
    (Kind::WordBegins, "letters after a space"),
    (Kind::WordGoesOn, "letters without a space"),
    (Kind::Digits, "digits"),
    (Kind::Punctuation, "punctuation"),
    (Kind::Symbols, "symbols, as in code"),
    (Kind::WhiteSpace, "white space"),
    (Kind::Other, "special tokens, parts of letters"),
];

impl Kind {
    /// Of a token's text, its space before it included.
    fn of(text: &str) -> Self {
        let word = text.trim();
        let each = |is: fn(char) -> bool| word.chars().all(is);
        if text.is_empty() || text.contains(char::REPLACEMENT_CHARACTER) {
            Self::Other
        } else if word.is_empty() {
            Self::WhiteSpace
        } else if word.chars().any(char::is_alphabetic) {
            if text.starts_with(char::is_whitespace) { Self::WordBegins } else { Self::WordGoesOn }
        } else if word.chars().any(char::is_numeric) {
            Self::Digits
        } else if each(|c| ".,;:!?'\"()-".contains(c) || (!c.is_ascii() && !c.is_alphanumeric())) {
            Self::Punctuation
        } else {
            Self::Symbols
        }
    }
}

/// The scored tokens in groups by position, by kind where tokens can be read, and by frequency.
pub(crate) fn breakdown(scores: &[TokenScore], passage: Passage) -> Result<Breakdown, Error> {
    let starts = position_starts(&passage.positions());
    let ends = starts.iter().skip(1).copied().chain([passage.positions().end]);
    let names: Vec<String> = starts.iter().zip(ends).map(|(from, to)| span(from + 1, to)).collect();
    let per_window = passage.positions().len();
    let place = |token: usize| {
        let position = passage.positions().start + token % per_window;
        starts.partition_point(|start| *start <= position) - 1
    };
    let position = groups(scores, &names, place)?;

    let targets = passage.targets();
    let mut counts = HashMap::<u32, usize>::new();
    for &token in passage.windows.tokens() {
        *counts.entry(token).or_default() += 1;
    }
    let often = |token: usize| {
        let count = counts.get(&(targets[token] as u32)).copied().unwrap_or(1);
        FREQUENCIES.partition_point(|(least, _)| *least <= count) - 1
    };
    let frequency = groups(scores, &FREQUENCIES.map(|(_, name)| name), often)?;

    let kinds = kinds(passage);
    let kind = match &kinds {
        None => Vec::new(),
        Some(kinds) => {
            let of = |token: usize| kinds.get(&(targets[token] as u32)).copied().unwrap_or(KINDS.len() - 1);
            groups(scores, &KINDS.map(|(_, name)| name), of)?
        }
    };
    Ok(Breakdown { position, kind, frequency })
}

/// What every predicted token is, as a place in [`KINDS`]: by its text where it first stands.
fn kinds(passage: Passage) -> Option<HashMap<u32, usize>> {
    let mut kinds = HashMap::new();
    for window in passage.windows.tokens().chunks_exact(passage.windows.ctx()) {
        for position in passage.positions() {
            let token = window[position + 1];
            if let std::collections::hash_map::Entry::Vacant(entry) = kinds.entry(token) {
                let text = passage.token_after(&window[position..=position], token)?;
                let kind = Kind::of(&text);
                entry.insert(KINDS.iter().position(|(known, _)| *known == kind).unwrap_or(KINDS.len() - 1));
            }
        }
    }
    Some(kinds)
}

/// Where each group of positions begins. From the first position on, each is four times as long as the one before.
fn position_starts(positions: &Range<usize>) -> Vec<usize> {
    let len = positions.len();
    if positions.start == 0 {
        let powers = std::iter::successors(Some(4), |start: &usize| start.checked_mul(4));
        return [0].into_iter().chain(powers.map(|end| end - 1).take_while(|start| *start < len)).collect();
    }
    let count = POSITION_GROUPS.min(len);
    (0..count).map(|group| positions.start + group * len / count).collect()
}

/// Tokens `from` to `to`, the last included, as words.
fn span(from: usize, to: usize) -> String {
    if from == to { from.to_string() } else { format!("{from} to {to}") }
}

fn groups(
    scores: &[TokenScore],
    names: &[impl AsRef<str>],
    of: impl Fn(usize) -> usize,
) -> Result<Vec<Group>, Error> {
    let mut members: Vec<Vec<&TokenScore>> = names.iter().map(|_| Vec::new()).collect();
    for (token, score) in scores.iter().enumerate() {
        members[of(token)].push(score);
    }
    let named = names.iter().zip(members).filter(|(_, members)| !members.is_empty());
    named.map(|(name, members)| group(name.as_ref(), &members)).collect()
}

fn group(name: &str, members: &[&TokenScore]) -> Result<Group, Error> {
    let nll: Vec<f64> = members.iter().map(|score| score.nll).collect();
    let against: Vec<&Against> = members.iter().filter_map(|score| score.against.as_ref()).collect();
    let excess: Option<Vec<f64>> =
        members.iter().map(|score| Some(score.nll - score.against.as_ref()?.nll?)).collect();
    let kl: Vec<f64> = against.iter().map(|against| against.kl_divergence).collect();
    let same = against.iter().filter(|against| against.same_top).count();
    let mean = |values: &[f64]| {
        let (mean, stderr) = mean_and_stderr(values);
        Mean { mean, stderr }
    };
    Ok(Group {
        name: name.to_owned(),
        tokens: members.len() as u64,
        perplexity: finite_perplexity(&nll)?,
        perplexity_ratio: excess.map(|excess| finite_perplexity(&excess)).transpose()?,
        kl_divergence: (!kl.is_empty()).then(|| mean(&kl)),
        top1_agreement: (!against.is_empty()).then(|| same as f64 / against.len() as f64),
    })
}

/// What each window scores.
pub(crate) fn by_window(scores: &[TokenScore], passage: Passage) -> ByWindow {
    let mut by_window =
        ByWindow { tokens_sha256: tokens_sha256(passage.windows.tokens()), ..ByWindow::default() };
    for window in scores.chunks(passage.positions().len().max(1)) {
        let mean = |of: &dyn Fn(&TokenScore) -> f64| window.iter().map(of).sum::<f64>() / window.len() as f64;
        by_window.nll.push(mean(&|score| score.nll));
        if window.iter().all(|score| score.against.is_some()) {
            let against = || window.iter().filter_map(|score| score.against.as_ref());
            let reference: Option<Vec<f64>> = against().map(|against| against.nll).collect();
            let mean_nll = reference.map(|nll| nll.iter().sum::<f64>() / window.len() as f64);
            by_window.reference_nll.extend(mean_nll);
            let kl = against().map(|against| against.kl_divergence).sum::<f64>();
            by_window.kl_divergence.push(kl / window.len() as f64);
            by_window.same_top.push(against().filter(|against| against.same_top).count() as u64);
        }
    }
    if by_window.reference_nll.len() < by_window.nll.len() {
        by_window.reference_nll.clear(); // known of some only
    }
    by_window
}

/// How many of the divergences lie where, without the empty bins at the far ends.
pub(crate) fn histogram(divergences: &[f64]) -> Histogram {
    let steps = DECADES.start * BINS_PER_DECADE..=DECADES.end * BINS_PER_DECADE;
    let edges = steps.map(|step| 10_f64.powf(f64::from(step) / f64::from(BINS_PER_DECADE)));
    let mut from: Vec<f64> = [0.0].into_iter().chain(edges).collect();
    let mut tokens = vec![0_u64; from.len()];
    for divergence in divergences {
        tokens[from.partition_point(|edge| edge <= divergence).max(1) - 1] += 1;
    }
    let last = tokens.iter().rposition(|count| *count > 0).unwrap_or(0);
    tokens.truncate(last + 1);
    from.truncate((last + 2).min(from.len()));
    if from.len() > tokens.len() {
        tokens.push(0); // so that the last bin with tokens has an end
    }
    // The first bin holds all that is nearly nothing; empty ones after it say nothing.
    let first = tokens.iter().skip(1).position(|count| *count > 0).unwrap_or(0);
    from.drain(1..=first);
    tokens.drain(1..=first);
    Histogram { from, tokens }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_apart_by_what_they_are_made_of() {
        for (text, kind) in [
            (" the", Kind::WordBegins),
            ("ing", Kind::WordGoesOn),
            ("naïve", Kind::WordGoesOn),
            (" 1984", Kind::Digits),
            ("7", Kind::Digits),
            ("x2", Kind::WordGoesOn),
            (".\"", Kind::Punctuation),
            (" —", Kind::Punctuation),
            ("{", Kind::Symbols),
            (" =>", Kind::Symbols),
            ("\n\n", Kind::WhiteSpace),
            ("  ", Kind::WhiteSpace),
            ("", Kind::Other),
            ("\u{fffd}", Kind::Other),
        ] {
            assert_eq!(Kind::of(text), kind, "{text:?}");
        }
    }

    #[test]
    fn groups_of_positions_cover_every_position_once() {
        assert_eq!(position_starts(&(256..511)), [256, 319, 383, 447]);
        assert_eq!(position_starts(&(0..511)), [0, 3, 15, 63, 255]);
        assert_eq!(position_starts(&(0..1)), [0]);
        assert_eq!(position_starts(&(1..2)), [1]);
        for positions in [0..7, 4..7, 2..3, 0..300] {
            let starts = position_starts(&positions);
            assert_eq!(starts[0], positions.start);
            assert!(
                starts.is_sorted_by(|a, b| a < b) && starts.iter().all(|start| positions.contains(start))
            );
        }
    }

    #[test]
    fn every_token_is_in_one_bin() {
        let divergences = [0.0, 1e-12, 1e-7, 2e-3, 2.1e-3, 0.5, 12.0];
        let Histogram { from, tokens } = histogram(&divergences);
        assert_eq!(from.len(), tokens.len());
        assert_eq!(tokens.iter().sum::<u64>(), divergences.len() as u64);
        assert!(from.is_sorted_by(|a, b| a < b) && from[0] == 0.0);
        assert_eq!(tokens[0], 2);
    }

    #[test]
    fn divergences_far_apart_leave_out_the_bins_before_the_first_only() {
        let Histogram { from, tokens } = histogram(&[0.0, 0.15, 0.9]);
        assert_eq!(tokens[0], 1);
        assert!(from[1] > 0.09 && from[1] < 0.16, "{from:?}");
        assert_eq!(*tokens.last().unwrap_or(&9), 0, "the last bin ends the one before");
        assert_eq!(histogram(&[0.0]).tokens.iter().sum::<u64>(), 1);
        assert_eq!(histogram(&[1e9]).tokens.iter().sum::<u64>(), 1);
    }
}
