//! `attar inspect`: what a file is and what was done to it; of a model that attar runs also what each scheme would make of it.

mod contents;
mod history;
mod imatrix;
mod subject;

use std::fmt::Write as _;
use std::path::Path;

use attar_checkpoint::gguf;
use attar_checkpoint::listing::Layout;
use attar_eval::render::{Page, Section, Table, left, right};
use attar_eval::{Report, report};
use attar_model::{LayerSizes, Precision};
use attar_quant::Rtn;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::device::Computer;
use crate::diagnostic::{Explain, Failure, Result};
use crate::mix::FILE_TYPES;
use crate::pipeline::describe;
use crate::plan::{CalibrationSize, Correct, Equalize, NO_RULES, Plan, Request};
use crate::scheme::Scheme;
use crate::source::Source;
use crate::talk::{human_bytes, say, terminal, thousands};
use contents::{Contents, dims};
pub use history::file_type_name;
use history::{Fact, kind, short};
pub use subject::Subject;

/// Schemes of folders worth showing; what does not divide the rows drops out.
const FOLDER_SCHEMES: [&str; 13] = [
    "w8a8",
    "fp8",
    "fp8-block",
    "mxfp8",
    "nvfp4",
    "mxfp4",
    "w8a16-g128",
    "w4a16-g128",
    "w4a16-g128-asym",
    "w4a16-g64",
    "w4a16-g32",
    "w4a16-channel",
    "w3a16-g64",
];

/// Describes a model, or whatever else has tensors, on stdout.
///
/// # Errors
/// What is neither GGUF nor safetensors; headers that are broken.
pub fn run(path: &Path, global: &Global) -> Result<()> {
    if attar_checkpoint::imatrix::layout_at(path).is_some() {
        return imatrix::run(path, global);
    }
    let (subject, source) = (Subject::open(path), Source::open(path));
    let subject = match (subject, &source) {
        (Ok(subject), _) => subject,
        // What is wrong with a model is said as every command says it.
        (Err(_), Err(_)) => return source.map(drop),
        (Err(error), Ok(_)) => return Err(error).doing(|| format!("while opening `{}`", path.display())),
    };
    let contents = Contents::of(&subject);
    let page = page(&subject, &contents, source.as_ref());
    let mut text = terminal().lay_out(&page);
    if global.verbose {
        text.push_str(&metadata(&subject));
        text.push_str(&source.as_ref().map_or_else(|_| listed(&subject), tensors));
    }
    let model = source.as_ref().map_or_else(|_| foreign(&subject, &contents), describe);
    let delivery = global.delivery();
    delivery.check(&[])?;
    delivery.in_files_with(&Report::new(model), "inspection", &inspection(&subject, &page))?;
    say(&text)
}

/// What is shown of it.
fn page(
    subject: &Subject,
    contents: &Contents<'_>,
    source: std::result::Result<&Source, &Failure>,
) -> Page<'static> {
    let mut facts: Vec<Fact> = vec![("file", files(subject))];
    match source {
        Ok(source) => facts.extend(about(source)),
        Err(_) => facts.extend(shape(subject, contents)),
    }
    facts
        .extend(tokenizer(subject).into_iter().filter(|(label, _)| source.is_err() || *label != "tokenizer"));
    facts.extend(history::facts(subject, contents));
    let missing = subject.listing.missing.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
    if !missing.is_empty() {
        facts.push(("missing", missing.join(", ")));
    }
    let mut first = Section { facts, ..Section::default() };
    let mut sections = Vec::new();
    match source {
        Ok(source) if !source.is_quantized() => sections.push(schemes(source)),
        Ok(_) => {
            let remark = "Its weights are quantized already: schemes start from full precision.";
            sections.extend([contents.by_type(), contents.by_name()]);
            sections.push(Section { remarks: vec![remark.to_owned()], ..Section::default() });
        }
        Err(failure) => {
            first.facts.extend(contents.largest().map(|text| ("largest", text)));
            let is_bare = !subject.is_gguf() && subject.path.is_file();
            let why = if is_bare { "what is run is a folder with a config.json" } else { failure.cause() };
            first.facts.push(("in attar", format!("shown, not run: {why}")));
            if !subject.listing.tensors.is_empty() {
                sections.extend([contents.by_type(), contents.by_name()]);
            }
        }
    }
    sections.insert(0, first);
    Page { schema: report::SCHEMA, title: subject.path.display().to_string(), sections }
}

/// The container.
fn files(subject: &Subject) -> String {
    let listing = &subject.listing;
    let layout = match listing.layout {
        Layout::Gguf { version, alignment } => {
            format!("GGUF version {version}, aligned to {alignment} bytes")
        }
        Layout::Safetensors => "safetensors".to_owned(),
        Layout::NoWeights => return "a folder without weights".to_owned(),
    };
    let bytes = listing.files.iter().map(|(_, len)| *len).fold(0, u64::saturating_add);
    let count = listing.files.len() + listing.missing.len();
    let files = if count > 1 { format!(", {count} files") } else { String::new() };
    format!("{layout}{files}, {}", human_bytes(bytes))
}

/// Family and sizes of what attar does not run, as far as it says them.
fn shape(subject: &Subject, contents: &Contents<'_>) -> Vec<Fact> {
    let kind = match (kind(subject), subject.listing.tensors.is_empty()) {
        (Some(kind), _) if kind != "model" => Some(kind.to_owned()),
        (_, true) if subject.is_gguf() => Some("vocabulary only: it has no tensors".to_owned()),
        _ => None,
    };
    let mut facts: Vec<Fact> = kind.map(|kind| ("kind", kind)).into_iter().collect();
    facts.extend(subject.architecture().map(|name| ("architecture", short(&name))));
    if self::kind(subject) != Some("imatrix") && contents.bytes() > 0 {
        facts.push(("parameters", thousands(contents.parameters())));
        let bits = contents.bits_per_weight();
        let bits = bits.map_or(String::new(), |bits| format!(", {bits:.2} bits per weight"));
        facts.push(("size", format!("{}{bits}", human_bytes(contents.bytes()))));
    }
    let counts: [(&'static str, &str, &[&str]); 8] = [
        ("layers", "block_count", &["num_hidden_layers", "n_layer", "num_layers", "n_layers"]),
        ("hidden size", "embedding_length", &["hidden_size", "n_embd", "d_model"]),
        ("channels", "feed_forward_length", &["intermediate_size", "n_inner", "d_inner"]),
        ("query heads", "attention.head_count", &["num_attention_heads", "n_head"]),
        ("key heads", "attention.head_count_kv", &["num_key_value_heads", "multi_query_group_num"]),
        ("experts", "expert_count", &["num_experts", "num_local_experts", "n_routed_experts"]),
        ("context", "context_length", &["max_position_embeddings", "n_positions", "seq_length"]),
        ("vocabulary", "vocab_size", &["vocab_size"]),
    ];
    let known = counts.iter().filter_map(|(label, gguf, config)| {
        let number = thousands(subject.count(gguf, config).filter(|number| *number > 0)?);
        Some((*label, if *label == "context" { format!("{number} tokens") } else { number }))
    });
    facts.extend(known);
    facts
}

/// What is said of the tokenizer without reading it.
fn tokenizer(subject: &Subject) -> Vec<Fact> {
    let (named, has_chat) = if subject.is_gguf() {
        let pre = subject.text("tokenizer.ggml.pre").map(|pre| format!("splits as {}", short(pre)));
        let tokens = subject.listing.value("tokenizer.ggml.tokens").and_then(gguf::Value::as_array);
        let tokens = tokens.map(|tokens| format!("{} tokens", thousands(tokens.len() as u64)));
        let model = subject.text("tokenizer.ggml.model").map(short);
        let words: Vec<String> = model.into_iter().chain(pre).chain(tokens).collect();
        let named = if words.is_empty() { None } else { Some(words.join(", ")) };
        (named, subject.text("tokenizer.chat_template").is_some())
    } else {
        let is_beside = subject.path.join("chat_template.jinja").is_file();
        let named = subject.tokenizer["tokenizer_class"].as_str().map(short);
        (named, is_beside || !subject.tokenizer["chat_template"].is_null())
    };
    let chat = if has_chat { "yes" } else { "none" };
    named
        .map(|named| [("tokenizer", named), ("chat template", chat.to_owned())])
        .into_iter()
        .flatten()
        .collect()
}

/// What a report says of a model that attar does not run.
fn foreign(subject: &Subject, contents: &Contents<'_>) -> report::Model {
    report::Model {
        source: subject.path.display().to_string(),
        family: subject
            .architecture()
            .or(kind(subject).map(str::to_owned))
            .unwrap_or_else(|| "unknown".to_owned()),
        parameters: contents.parameters(),
        bytes: contents.bytes(),
        quantized_as: None,
    }
}

/// All that was found, for a program to read.
fn inspection(subject: &Subject, page: &Page) -> Value {
    let listing = &subject.listing;
    let facts = page.sections.first().map_or(&[][..], |section| &section.facts);
    let facts: serde_json::Map<_, _> =
        facts.iter().map(|(label, text)| ((*label).to_owned(), json!(text))).collect();
    let tensor = |tensor: &attar_checkpoint::listing::Tensor| json!({"name": tensor.name, "type": tensor.dtype, "shape": tensor.shape, "bytes": tensor.bytes});
    let metadata: serde_json::Map<_, _> =
        listing.metadata.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
    json!({
        "facts": facts,
        "files": listing.files.iter().map(|(path, len)| json!({"path": path, "bytes": len})).collect::<Vec<_>>(),
        "metadata": metadata,
        "quantization": subject.quantization.as_ref().map(|(_, said)| said),
        "tensors": listing.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}

/// A metadata value as JSON; of a long array its length.
fn plain(value: &gguf::Value) -> Value {
    match value {
        gguf::Value::String(text) => json!(text),
        gguf::Value::Bool(yes) => json!(yes),
        gguf::Value::F32(x) => json!(x),
        gguf::Value::F64(x) => json!(x),
        gguf::Value::Array(array) if array.len() > 64 => json!({"length": array.len()}),
        gguf::Value::Array(array) => {
            json!(
                (0..array.len())
                    .filter_map(|at| array.get(at))
                    .map(|value| plain(&value))
                    .collect::<Vec<_>>()
            )
        }
        gguf::Value::I8(_) | gguf::Value::I16(_) | gguf::Value::I32(_) | gguf::Value::I64(_) => {
            json!(value.as_f64().map(|x| x as i64))
        }
        _ => json!(value.as_u64()),
    }
}

/// Every metadata value in a line of its own.
fn metadata(subject: &Subject) -> String {
    let values = &subject.listing.metadata;
    let width = values.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
    let lines = values.iter().map(|(key, value)| {
        let text = match plain(value) {
            Value::String(text) => short(&text),
            Value::Object(long) => format!("an array of {}", long["length"]),
            other => short(&other.to_string()),
        };
        format!("{}  {}\n", printable(&format!("{key:width$}")), printable(&text))
    });
    let lines: String = lines.collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// Every tensor of what attar does not run.
fn listed(subject: &Subject) -> String {
    let tensors = &subject.listing.tensors;
    let width = tensors.iter().map(|tensor| tensor.name.chars().count()).max().unwrap_or(0).max(6);
    let mut text = format!("\n{:<width$} {:>24} {:>10} {:>10}\n", "tensor", "shape", "type", "size");
    for tensor in tensors {
        let (name, shape, size) = (printable(&tensor.name), dims(&tensor.shape), human_bytes(tensor.bytes));
        let _ = writeln!(text, "{name:<width$} {shape:>24} {:>10} {size:>10}", printable(&tensor.dtype));
    }
    text
}

/// A text from a file without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Family and sizes of a model.
fn about(source: &Source) -> Vec<Fact> {
    let config = &source.config;
    let bits = 8.0 * source.bytes() as f64 / source.parameters() as f64;
    let each = |of: fn(&LayerSizes) -> usize, all: usize| {
        let least = config.layer_sizes.iter().map(of).min().unwrap_or(all);
        if least == all { all.to_string() } else { format!("{least} to {all}") }
    };
    let query_heads = each(|sizes| sizes.num_attention_heads, config.num_attention_heads);
    let kv_heads = each(|sizes| sizes.num_key_value_heads, config.num_key_value_heads);
    let shared = config.num_attention_heads != config.num_key_value_heads;
    let sharing = if shared { format!(", sharing {kv_heads} for keys and values") } else { String::new() };
    let heads = format!("{query_heads} of {}{sharing}", config.head_dim);
    let channels = each(|sizes| sizes.intermediate_size, config.intermediate_size);
    let layers = match &config.layer_sizes[..] {
        [] => config.num_hidden_layers.to_string(),
        each => format!("{}, with sizes of their own", each.len()),
    };
    let tokenizer = match source.tokenizer() {
        Ok(tokenizer) => format!("{} tokens", thousands(tokenizer.vocab_size() as u64)),
        Err(failure) => failure.cause().to_owned(),
    };
    vec![
        ("family", config.family.name.to_owned()),
        ("parameters", thousands(source.parameters())),
        ("size", format!("{}, {bits:.2} bits per weight", human_bytes(source.bytes()))),
        ("layers", layers),
        ("hidden size", format!("{}, in the MLP {channels}", config.hidden_size)),
        ("heads", heads),
        (
            "vocabulary",
            format!(
                "{} rows, {}",
                thousands(config.vocab_size as u64),
                if config.tie_word_embeddings { "the head is the embedding" } else { "a head of its own" }
            ),
        ),
        ("tokenizer", tokenizer),
        ("context", format!("{} tokens", thousands(config.max_position_embeddings as u64))),
    ]
}

/// Every tensor of a model, by its names in both containers.
fn tensors(source: &Source) -> String {
    let mut text =
        format!("\n{:<48} {:<28} {:>16} {:>8} {:>10}\n", "tensor", "in GGUF", "shape", "type", "size");
    for spec in &source.specs {
        let shape = spec.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        let (stored, size) = (source.stored_type(spec), human_bytes(source.stored_bytes(spec)));
        let _ = writeln!(text, "{:<48} {:<28} {shape:>16} {stored:>8} {size:>10}", spec.name, spec.gguf_name);
    }
    text
}

/// A line per scheme; what its container or the shapes forbid is left out.
fn schemes(source: &Source) -> Section<'static> {
    let file_types = FILE_TYPES.iter().map(|t| (Scheme::Gguf(*t), true));
    let in_folders = FOLDER_SCHEMES.iter().filter_map(|name| Some((name.parse().ok()?, false)));
    let mut rows = Vec::new();
    for (scheme, gguf) in file_types.chain(in_folders) {
        let calibration = Some(CalibrationSize { tokens: 1, ctx: 1 });
        let request = Request {
            source,
            scheme: Some(scheme),
            gguf,
            layout: None,
            keeps_codes: false,
            rules: &NO_RULES,
            calibration,
            imatrix: None,
            max_memory: None,
            precision: Precision::F32,
            computer: &Computer::cpu(),
            solver: &Rtn,
            zeros: None,
            correct: Correct::Off,
            equalize: Equalize::No,
            tunes: false,
        };
        let Ok(plan) = Plan::new(&request) else { continue };
        let unfit = plan.tensors.iter().filter(|t| t.fallback.is_some()).count();
        let note = match (unfit, gguf) {
            (0, true) => String::new(),
            (0, false) => "a folder".to_owned(),
            (unfit, _) => format!("{unfit} tensors whose rows do not fit fall back"),
        };
        rows.push(vec![
            if gguf { scheme.name() } else { scheme.in_folder().name() },
            human_bytes(plan.bytes()),
            format!("{:.3}", plan.bits_per_weight()),
            note,
        ]);
    }
    let columns = vec![left("scheme"), right("size"), right("bits/weight"), left("notes")];
    Section { table: Some(Table { columns, rows }), ..Section::default() }
}
