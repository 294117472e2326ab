//! What was done to a checkpoint, as far as it says so itself.

use std::collections::BTreeSet;

use attar_checkpoint::gguf;
use serde_json::Value;

use super::contents::{Contents, ranges};
use super::subject::{Subject, find};
use crate::mix::FILE_TYPES;
use crate::talk::thousands;

/// A label and what is to be said of it.
pub type Fact = (&'static str, String);

/// Longest text of somebody else's that is shown.
const LONGEST: usize = 160;

/// Everything that can be told, in the order in which it was done.
pub fn facts(subject: &Subject, contents: &Contents<'_>) -> Vec<Fact> {
    let mut facts = origin(subject);
    facts.extend(adapter(subject));
    facts.extend(layers(subject).map(|text| ("layers found", text)));
    facts.extend(file_type(subject).map(|text| ("file type", text)));
    facts.extend(quantization(subject).map(|text| ("quantized", text)));
    let main = contents.main_type().filter(|_| !matches!(kind(subject), Some("imatrix")));
    facts.extend(main.map(|(name, bits)| ("mostly", format!("{name}, {bits:.3} bits per weight"))));
    let kept = contents.kept();
    if !kept.is_empty() {
        facts.push(("more bits", listed(&kept)));
    }
    facts.extend(imatrix(subject));
    facts
}

/// `general.type` of a GGUF.
pub fn kind(subject: &Subject) -> Option<&str> {
    subject.text("general.type")
}

/// Who made it, of what.
fn origin(subject: &Subject) -> Vec<Fact> {
    let keys = [
        ("name", "general.name"),
        ("author", "general.author"),
        ("organization", "general.organization"),
        ("license", "general.license"),
        ("made from", "general.base_model.0.name"),
        ("at", "general.base_model.0.repo_url"),
        ("quantized by", "general.quantized_by"),
    ];
    let mut facts: Vec<Fact> =
        keys.iter().filter_map(|(label, key)| Some((*label, short(subject.text(key)?)))).collect();
    let base =
        subject.config["base_model_name_or_path"].as_str().or(subject.config["_name_or_path"].as_str());
    facts.extend(base.filter(|base| !base.is_empty()).map(|base| ("made from", short(base))));
    if !subject.is_gguf() {
        let texts = subject.listing.metadata.iter().filter(|(key, _)| key != "format");
        let texts: Vec<_> = texts
            .take(6)
            .filter_map(|(key, text)| Some(format!("{key}: {}", short(text.as_str()?))))
            .collect();
        if !texts.is_empty() {
            facts.push(("notes", texts.join("; ")));
        }
    }
    facts
}

/// Rank, strength and place of a low-rank adapter.
fn adapter(subject: &Subject) -> Vec<Fact> {
    let ends = ["lora_a", "lora_A.weight", "lora_A.default.weight", "lora_down.weight"];
    let firsts = subject.listing.tensors.iter().filter(|t| ends.iter().any(|end| t.name.ends_with(end)));
    let ranks: BTreeSet<u64> = firsts.filter_map(|tensor| tensor.shape.first().copied()).collect();
    let said = subject.text("adapter.type").or(subject.config["peft_type"].as_str());
    if ranks.is_empty() && said.is_none() {
        return Vec::new();
    }
    let rank = if ranks.is_empty() { String::new() } else { format!(", rank {}", ranges(&ranks)) };
    let alpha = subject.listing.value("adapter.lora.alpha").and_then(gguf::Value::as_f64);
    let alpha = alpha.or(subject.config["lora_alpha"].as_f64());
    let alpha = alpha.map_or(String::new(), |alpha| format!(", alpha {alpha}"));
    let mut facts = vec![("adapter", format!("{}{rank}{alpha}", said.unwrap_or("lora").to_lowercase()))];
    let targets = strings(&subject.config["target_modules"]);
    if !targets.is_empty() {
        facts.push(("adapts", listed(&targets)));
    }
    facts
}

/// Layers that are said to be there and have no tensors.
fn layers(subject: &Subject) -> Option<String> {
    let declared =
        subject.count("block_count", &["num_hidden_layers", "n_layer", "num_layers", "n_layers"])?;
    let found = subject.layers();
    let count = found.len() as u64;
    if count == declared || found.is_empty() || !subject.listing.missing.is_empty() {
        return None;
    }
    let last = found.last().copied().unwrap_or_default();
    let gaps: BTreeSet<u64> = (0..last.min(100_000)).filter(|number| !found.contains(number)).collect();
    let gaps = if gaps.is_empty() { String::new() } else { format!("; none of {}", ranges(&gaps)) };
    Some(format!("tensors of {}, where {} are declared{gaps}", thousands(count), thousands(declared)))
}

/// What llama.cpp calls the mix of types, where attar has a name for it.
pub fn file_type_name(subject: &Subject) -> Option<&'static str> {
    let id = subject.number("general.file_type")?;
    FILE_TYPES.iter().find(|known| u64::from(known.id) == id).map(|known| known.name)
}

/// The same in full.
fn file_type(subject: &Subject) -> Option<String> {
    let id = subject.number("general.file_type")?;
    let name = file_type_name(subject);
    let version = subject.number("general.quantization_version");
    let version = version.map_or(String::new(), |version| format!(", quantization version {version}"));
    Some(match name {
        Some(name) => format!("{name} (llama.cpp's number {id}){version}"),
        None => format!("number {id}, which attar has no name for{version}"),
    })
}

/// The configuration of the tool that quantized.
fn quantization(subject: &Subject) -> Option<String> {
    let (file, said) = subject.quantization.as_ref()?;
    let method = ["quant_method", "quant_algo"].iter().find_map(|key| said.get(key)?.as_str());
    let mut words = Vec::new();
    flatten("", said, &mut words);
    words.retain(|word| method.is_none_or(|method| !word.ends_with(&format!(" {method}"))));
    let left_out = ["ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers"];
    let left_out = left_out.iter().find_map(|key| find(said, key)).map(strings).unwrap_or_default();
    let mut text = method.unwrap_or("quantized").to_owned();
    if *file != attar_checkpoint::hf::CONFIG {
        text.extend([" (by ", file, ")"]);
    }
    for word in words.iter().take(24) {
        text.extend([", ", word]);
    }
    if !left_out.is_empty() {
        text.extend(["; left out: ", &listed(&left_out)]);
    }
    Some(text)
}

/// Settings that say something, as `key value`, whatever they lie in.
fn flatten(key: &str, value: &Value, words: &mut Vec<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(key, inner)| flatten(key, inner, words)),
        Value::String(text) if !text.is_empty() => words.push(format!("{key} {}", short(text))),
        Value::Number(number) => words.push(format!("{key} {number}")),
        Value::Bool(yes) => words.push(format!("{key} {}", if *yes { "yes" } else { "no" })),
        Value::Array(values) if !values.is_empty() && values.iter().all(Value::is_number) => {
            let numbers: Vec<_> = values.iter().map(ToString::to_string).collect();
            words.push(format!("{key} {}", numbers.join(" x ")));
        }
        _ => {}
    }
}

/// The importance matrix that guided llama-quantize.
fn imatrix(subject: &Subject) -> Vec<Fact> {
    let mut words = Vec::new();
    words.extend(subject.text("quantize.imatrix.file").map(short));
    words.extend(subject.text("quantize.imatrix.dataset").map(|text| format!("of {}", short(text))));
    for (key, unit) in [("entries_count", "entries"), ("chunks_count", "chunks")] {
        let number = subject.number(&format!("quantize.imatrix.{key}"));
        words.extend(number.map(|number| format!("{} {unit}", thousands(number))));
    }
    let is_quantized = subject.number("general.file_type").is_some_and(|id| !matches!(id, 0 | 1 | 32));
    match (words.is_empty(), is_quantized) {
        (false, _) => vec![("imatrix", words.join(", "))],
        (true, true) => vec![("imatrix", "none is named".to_owned())],
        (true, false) => Vec::new(),
    }
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(values) => values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

/// The first of many, and how many more.
pub fn listed(texts: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown = texts.iter().take(SHOWN).map(|text| short(text)).collect::<Vec<_>>().join(", ");
    match texts.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// As much of a text as is worth a line.
pub fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LONGEST {
        return line;
    }
    line.chars().take(LONGEST - 1).chain(['…']).collect()
}
