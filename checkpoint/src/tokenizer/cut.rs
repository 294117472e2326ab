//! Cuts a text where no token can reach across, so that the parts encode independently.
//!
//! Most words of a text come again, and each is encoded once.

use std::collections::HashMap;

use rayon::prelude::*;

/// As many parts are worth handing to a thread.
const TASK_PARTS: usize = 64;

/// The first bytes of the three spellings of a space inside a token: ` `, `Ġ` and `▁`.
const SPACES: [&str; 3] = [" ", "Ġ", "▁"];

/// Whether some token reaches from a letter over the space behind it.
pub(super) fn reaches_over_space(token: &str) -> bool {
    SPACES.iter().any(|space| {
        token.match_indices(space).any(|(at, _)| at > 0 && token.as_bytes()[at - 1].is_ascii_alphabetic())
    })
}

/// Cuts `text` before `space` wherever that stands alone between two ASCII letters.
///
/// All parts but the first start with `space`.
pub(super) fn parts<'a>(text: &'a str, space: &str) -> Vec<&'a str> {
    let bytes = text.as_bytes();
    let is_letter = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_alphabetic);
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(space) {
        if is_letter(at.wrapping_sub(1)) && is_letter(at + space.len()) {
            parts.push(&text[start..at]);
            start = at;
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Encodes the parts of `text` on all threads, equal ones once; `encode` gets each part and whether it is the first.
///
/// # Errors
/// The first error of `encode`.
pub(super) fn encode_parts<E: Send>(
    text: &str,
    space: &str,
    encode: impl Fn(&str, Position) -> Result<Vec<u32>, E> + Sync,
) -> Result<Vec<u32>, E> {
    let parts = parts(text, space);
    let mut distinct: Vec<(&str, Position)> = Vec::new();
    let mut seen = HashMap::new();
    let places: Vec<usize> = (0..)
        .zip(&parts)
        .map(|(i, &part)| {
            let position = if i == 0 { Position::First } else { Position::Later };
            *seen.entry((part, position)).or_insert_with_key(|&key| {
                distinct.push(key);
                distinct.len() - 1
            })
        })
        .collect();
    let ids = distinct
        .par_iter()
        .with_min_len(TASK_PARTS)
        .map(|&(part, position)| encode(part, position))
        .collect::<Result<Vec<_>, E>>()?;
    Ok(places.into_iter().flat_map(|place| &ids[place]).copied().collect())
}

/// Where a part stood in its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Position {
    /// At the beginning.
    First,
    /// Behind another part; it starts with a space.
    Later,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_join_to_the_text_and_are_cut_between_words(text in "[a-c1▁é. \n]{0,60}") {
            for space in [" ", "▁"] {
                let parts = parts(&text, space);
                prop_assert_eq!(parts.concat(), text.as_str());
                for pair in parts.windows(2) {
                    prop_assert!(pair[0].as_bytes()[pair[0].len() - 1].is_ascii_alphabetic());
                    prop_assert!(pair[1].starts_with(space));
                    prop_assert!(pair[1].as_bytes()[space.len()].is_ascii_alphabetic());
                }
            }
        }
    }

    #[test]
    fn only_a_letter_before_the_space_stops_a_cut() {
        for (token, reaches) in [
            ("the", false),
            ("▁the", false),
            ("▁▁", false),
            (".▁", false),
            ("a▁", true),
            ("of the", true),
            ("oĠt", true),
        ] {
            assert_eq!(reaches_over_space(token), reaches, "{token}");
        }
    }
}
