//! Which of llama.cpp's pre-tokenizers splits a text as a byte-level BPE's own rule does.
//!
//! A GGUF names the splitting rule instead of holding it. The rule stands in tokenizer.json, so it is compared with those
//! that the names mean; where it is none of them, the ids of a check text tell, as in llama.cpp's converter.

mod known;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::TokenizerError;
use known::{Rule, Split};

/// Hashes of the check text's ids and the names they lead to.
const HASHES: &str = include_str!("pre/hashes.tsv");
/// The text llama.cpp's converter encodes to tell tokenizers apart.
pub(super) const CHECK_TEXT: &str = include_str!("pre/check.txt");

/// The rule with this name, if attar can split by it.
pub(super) fn rule(name: &str) -> Option<&'static Rule> {
    known::RULES.iter().find(|rule| rule.name == name || rule.aliases.contains(&name))
}

/// Every name that llama.cpp accepts as far as known here, sorted.
pub(super) fn names() -> Vec<&'static str> {
    let rules =
        known::RULES.iter().flat_map(|rule| std::iter::once(rule.name).chain(rule.aliases.iter().copied()));
    let mut names: Vec<_> = rules.chain(hashes().map(|(_, name)| name)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// `name` itself if it is one of llama.cpp's.
///
/// # Errors
/// It is not.
pub(super) fn checked(name: &str) -> Result<&'static str, TokenizerError> {
    names()
        .into_iter()
        .find(|known| *known == name)
        .ok_or_else(|| TokenizerError::NoSuchPreTokenizer { name: name.to_owned() })
}

/// What recognition looks at.
pub(super) struct Evidence<'a> {
    /// `pre_tokenizer` of tokenizer.json.
    pub pre_tokenizer: &'a Value,
    /// `ignore_merges` of its model.
    pub ignore_merges: bool,
    /// Whether `ignore_merges` changes nothing, since merges alone lead to every token.
    pub merges_reach_every_token: &'a dyn Fn() -> bool,
    /// Encodes a text, special tokens added.
    pub encode: &'a dyn Fn(&str) -> Result<Vec<u32>, TokenizerError>,
}

/// llama.cpp's name for a tokenizer: by its splitting rule, else by the hash of the check text.
///
/// # Errors
/// Neither is known, or the check text cannot be encoded.
pub(super) fn recognise(evidence: &Evidence<'_>) -> Result<&'static str, TokenizerError> {
    if let Some(name) = by_rule(evidence) {
        return Ok(name);
    }
    let hash = hash_of(&(evidence.encode)(CHECK_TEXT)?);
    let found = hashes().find(|(known, _)| *known == hash).map(|(_, name)| name);
    found
        .ok_or_else(|| TokenizerError::UnknownPreTokenizer { hash, rule: evidence.pre_tokenizer.to_string() })
}

fn by_rule(evidence: &Evidence<'_>) -> Option<&'static str> {
    let splits = splits(evidence.pre_tokenizer)?;
    let mut same: Vec<_> = known::RULES.iter().filter(|rule| splits == rule.splits).collect();
    same.sort_by_key(|rule| rule.ignore_merges != evidence.ignore_merges);
    let best = same.first()?;
    let agrees = best.ignore_merges == evidence.ignore_merges || (evidence.merges_reach_every_token)();
    agrees.then_some(best.name)
}

fn hashes() -> impl Iterator<Item = (&'static str, &'static str)> {
    HASHES.lines().filter_map(|line| line.split_once('\t'))
}

/// sha256 of the ids as Python prints a list.
fn hash_of(ids: &[u32]) -> String {
    use std::fmt::Write as _;

    let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    Sha256::digest(format!("[{list}]")).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // a String never fails
        hex
    })
}

/// The steps by which a `pre_tokenizer` of tokenizer.json splits, if all are among those that names can mean.
fn splits(pre_tokenizer: &Value) -> Option<Vec<Split<'_>>> {
    let mut splits = Vec::new();
    let steps = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.iter().collect(),
        _ => vec![pre_tokenizer],
    };
    let (last, steps) = steps.split_last()?;
    for step in steps {
        splits.push(match step["type"].as_str()? {
            "Split" if keeps_everything(step) => Split::Regex(step["pattern"]["Regex"].as_str()?),
            "Digits" if step["individual_digits"] == true => Split::Digits,
            _ => return None,
        });
    }
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    if last["use_regex"] != false {
        splits.push(Split::Gpt2);
    }
    Some(splits)
}

/// Whether the rule is a known one whose parts all end where a letter is followed by a space and another letter.
pub(super) fn parts_end_at_spaces(pre_tokenizer: &Value) -> bool {
    splits(pre_tokenizer).is_some_and(|splits| {
        known::RULES.iter().any(|rule| splits == rule.splits && rule.parts_end_at_spaces)
    })
}

/// Whether a split makes every match and every gap a part: said plainly, or by removing the gaps of a rule without any.
fn keeps_everything(step: &Value) -> bool {
    match step["behavior"].as_str() {
        Some("Isolated") => true,
        Some("Removed") => step["invert"] == true,
        _ => false,
    }
}

/// The `pre_tokenizer` that splits by `rule`, as tokenizer.json states it.
pub(super) fn pre_tokenizer(rule: &Rule) -> Value {
    let mut steps: Vec<Value> = Vec::new();
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    for split in rule.splits {
        match split {
            Split::Regex(regex) => steps.push(
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
            ),
            Split::Digits => steps.push(json!({"type": "Digits", "individual_digits": true})),
            Split::Gpt2 => {}
        }
    }
    steps.push(byte_level(rule.splits.last() == Some(&Split::Gpt2)));
    json!({"type": "Sequence", "pretokenizers": steps})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_rule_is_read_back_from_its_own_json() {
        for rule in known::RULES {
            let json = pre_tokenizer(rule);
            assert_eq!(splits(&json).as_deref(), Some(rule.splits), "{}", rule.name);
            let found = recognise(&Evidence {
                pre_tokenizer: &json,
                ignore_merges: rule.ignore_merges,
                merges_reach_every_token: &|| false,
                encode: &|_| panic!("the rule is enough"),
            });
            assert_eq!(found.ok(), Some(rule.name));
        }
    }

    #[test]
    fn a_rule_with_other_merging_is_recognised_only_where_that_changes_nothing() {
        let json = pre_tokenizer(rule("qwen2").expect("a known name"));
        for (reached, expected) in [(true, Some("qwen2")), (false, None)] {
            let found = recognise(&Evidence {
                pre_tokenizer: &json,
                ignore_merges: true,
                merges_reach_every_token: &|| reached,
                encode: &|_| Ok(vec![1, 2, 3]),
            });
            assert_eq!(found.ok(), expected);
        }
    }

    #[test]
    fn an_unknown_rule_is_refused_with_the_flag_that_helps() {
        let error = recognise(&Evidence {
            pre_tokenizer: &json!({"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated"}),
            ignore_merges: false,
            merges_reach_every_token: &|| true,
            encode: &|_| Ok(vec![1, 2, 3]),
        })
        .expect_err("no such rule");
        assert!(error.to_string().contains("x+"), "{error}");
        assert!(error.hint().expect("a hint").contains("--pre-tokenizer"), "{error}");
    }

    #[test]
    fn hashes_are_of_lists_as_python_prints_them() {
        // python3 -c "import hashlib; print(hashlib.sha256(str([1, 20, 300]).encode()).hexdigest())"
        assert_eq!(
            hash_of(&[1, 20, 300]),
            "2b11dd99168b04b8c99d750ca151553f647ea839ae99d1c534f11efd7c4748a2"
        );
        assert!(hashes().count() > 90);
        assert!(hashes().all(|(hash, _)| hash.len() == 64));
        assert_eq!(CHECK_TEXT.chars().count(), 350);
    }

    #[test]
    fn no_name_means_two_rules() {
        let mut names: Vec<_> = known::RULES.iter().map(|rule| rule.name).collect();
        names.extend(known::RULES.iter().flat_map(|rule| rule.aliases));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
