//! What the `tokenizers` crate takes on trust and panics over where a `tokenizer.json` lies.

use serde_json::Value;

use super::json::{merge_pairs, steps};

/// Holds merges to the vocabulary, and templates to the tokens they name.
///
/// # Errors
/// Says what does not fit.
pub(super) fn check(file: &Value) -> Result<(), String> {
    check_merges(&file["model"])?;
    for step in steps(&file["post_processor"], "processors") {
        if step["type"] == "TemplateProcessing" {
            check_template(step)?;
        }
    }
    Ok(())
}

fn check_merges(model: &Value) -> Result<(), String> {
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    for (left, right) in merge_pairs(model) {
        let rest = right.strip_prefix(prefix).unwrap_or_default();
        let merged = format!("{left}{rest}");
        if let Some(missing) = [left, right, &merged].into_iter().find(|text| !model["vocab"][*text].is_u64())
        {
            return Err(format!("the merge of `{left}` and `{right}` needs a token `{missing}`"));
        }
    }
    Ok(())
}

fn check_template(step: &Value) -> Result<(), String> {
    for (template, sequences) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        for piece in step[template].as_array().into_iter().flatten() {
            let (special, sequence) = (&piece["SpecialToken"]["id"], &piece["Sequence"]["id"]);
            let is_known = match (special.as_str(), sequence.as_str()) {
                (Some(id), None) => step["special_tokens"][id].is_object(),
                (None, Some(id)) => sequences.contains(&id),
                _ => false,
            };
            if !is_known {
                return Err(format!("the template `{template}` has {piece}, which stands for nothing"));
            }
        }
    }
    Ok(())
}
