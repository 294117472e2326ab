//! A checkpoint of whatever kind, and what stands beside its tensors.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use attar_checkpoint::gguf::Value as Metadata;
use attar_checkpoint::listing::{Layout, Listing, Tensor};
use attar_checkpoint::{Error, hf};
use serde_json::Value;

/// A file or folder that is looked at.
#[derive(Debug)]
pub struct Subject {
    /// Where it is.
    pub path: PathBuf,
    /// What its headers say.
    pub listing: Listing,
    /// `config.json` or `adapter_config.json` beside the tensors.
    pub config: Value,
    /// How it says that it was quantized, and the file that says so.
    pub quantization: Option<(&'static str, Value)>,
    /// `tokenizer_config.json`.
    pub tokenizer: Value,
}

/// Where tools write down how they quantized.
const QUANTIZATION_FILES: [&str; 3] = ["quantize_config.json", "quant_config.json", "hf_quant_config.json"];

impl Subject {
    /// Reads the headers and the small JSON files beside them.
    ///
    /// # Errors
    /// As [`Listing::open`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let listing = Listing::open(path)?;
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        // A lone file's neighbours may belong to another model.
        let is_whole = path.is_dir() || path.extension().is_some_and(|ending| ending == "json");
        let read = |name: &str| hf::read_object(&folder.join(name)).ok();
        let beside =
            |name: &str| read(name).filter(|_| is_whole && !matches!(listing.layout, Layout::Gguf { .. }));
        let config = beside(hf::CONFIG).or_else(|| beside("adapter_config.json")).unwrap_or_default();
        let tool = || QUANTIZATION_FILES.into_iter().find_map(|name| Some((name, beside(name)?)));
        let quantization =
            match find(&config, "quantization_config").or_else(|| find(&config, "compression_config")) {
                Some(said) => Some((hf::CONFIG, said.clone())),
                None => tool(),
            };
        let tokenizer = beside("tokenizer_config.json").unwrap_or_default();
        Ok(Self { path: path.to_owned(), config, quantization, tokenizer, listing })
    }

    /// Whether it is a GGUF.
    pub fn is_gguf(&self) -> bool {
        matches!(self.listing.layout, Layout::Gguf { .. })
    }

    /// A text of a GGUF's metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.listing.value(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// A number of a GGUF's metadata; of an array the largest.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.listing.value(key)? {
            Metadata::Array(array) => (0..array.len()).filter_map(|at| array.get(at)?.as_u64()).max(),
            value => value.as_u64(),
        }
    }

    /// A number under `gguf` behind the architecture's name, or under one of the keys that configurations have for it.
    pub fn count(&self, gguf: &str, config: &[&str]) -> Option<u64> {
        if self.is_gguf() {
            return self.number(&format!("{}.{gguf}", self.text("general.architecture")?));
        }
        config.iter().find_map(|key| find(&self.config, key)?.as_u64())
    }

    /// What the architecture is called.
    pub fn architecture(&self) -> Option<String> {
        if self.is_gguf() {
            return self.text("general.architecture").map(str::to_owned);
        }
        let named = self.config["architectures"][0].as_str().or(self.config["model_type"].as_str());
        named.map(str::to_owned)
    }

    /// Bits of a packed weight, where the quantization says it.
    fn packed_bits(&self) -> u64 {
        let said = self.quantization.as_ref().and_then(|(_, said)| {
            ["bits", "num_bits", "w_bit", "wbits"].iter().find_map(|key| deep(said, key)?.as_u64())
        });
        said.filter(|bits| (1..=32).contains(bits)).unwrap_or(4)
    }

    /// The weights of the model that each tensor stands for; none where it only helps to read others.
    pub fn weights(&self) -> Vec<u64> {
        let bits = self.packed_bits();
        self.listing.tensors.iter().map(|tensor| weights_of(tensor, bits)).collect()
    }

    /// The numbers of the layers that have tensors: those of the name that most tensors begin with.
    pub fn layers(&self) -> BTreeSet<u64> {
        let mut stacks: Vec<(&str, usize, BTreeSet<u64>)> = Vec::new();
        for tensor in &self.listing.tensors {
            let Some((stem, number)) = layer_of(&tensor.name) else { continue };
            match stacks.iter_mut().find(|(known, ..)| *known == stem) {
                Some((_, count, numbers)) => {
                    *count += 1;
                    numbers.insert(number);
                }
                None => stacks.push((stem, 1, BTreeSet::from([number]))),
            }
        }
        stacks.into_iter().max_by_key(|(_, count, _)| *count).map(|(.., numbers)| numbers).unwrap_or_default()
    }
}

/// What stands before the first number of a name, and the number: `blk` and 3 of `blk.3.attn_q.weight`.
pub fn layer_of(name: &str) -> Option<(&str, u64)> {
    let mut start = 0;
    for part in name.split('.') {
        if start > 0 && is_number(part) {
            return Some((&name[..start - 1], part.parse().ok()?));
        }
        start += part.len() + 1;
    }
    None
}

/// Whether a part of a name counts something.
pub fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// A value of a configuration, perhaps of the part that is about text.
pub fn find<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    let parts = [config, &config["text_config"], &config["llm_config"]];
    parts.into_iter().find_map(|part| part.get(key)).filter(|value| !value.is_null())
}

/// The first value of a key, however deep it lies.
fn deep<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(object) => {
            object.get(key).or_else(|| object.values().find_map(|inner| deep(inner, key)))
        }
        Value::Array(values) => values.iter().find_map(|inner| deep(inner, key)),
        _ => None,
    }
}

/// Endings of tensors that help to read others: scales, zero points, orders, tables.
const HELPERS: &[&str] = &[
    ".scales",
    ".qzeros",
    ".g_idx",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_scale_2",
    ".weight_global_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".weight_format",
    ".input_scale",
    ".input_global_scale",
    ".k_scale",
    ".v_scale",
    ".scale",
    "_scales",
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".SCB",
];

/// `bits` is what a packed weight has.
fn weights_of(tensor: &Tensor, bits: u64) -> u64 {
    let Tensor { name, dtype, .. } = tensor;
    if HELPERS.iter().any(|ending| name.ends_with(ending)) || name.contains(".quant_state.") {
        return 0;
    }
    let stored = tensor.elements();
    match dtype.as_str() {
        "i32" if name.ends_with(".qweight") || name.ends_with(".weight_packed") => {
            stored.saturating_mul(32) / bits
        }
        "u8" if [".weight", ".weight_packed", "_blocks"].iter().any(|ending| name.ends_with(ending)) => {
            stored.saturating_mul(2)
        }
        _ => stored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: &str, shape: &[u64]) -> Tensor {
        Tensor { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), bytes: 0 }
    }

    #[test]
    fn packed_weights_are_counted_one_by_one_and_what_helps_to_read_them_is_not() {
        for (name, dtype, shape, bits, weights) in [
            ("a.qweight", "i32", &[32, 256][..], 4, 256 * 256),
            ("a.qweight", "i32", &[24, 256], 3, 256 * 256),
            ("a.weight_packed", "i32", &[256, 32], 4, 256 * 256),
            ("a.weight_packed", "u8", &[256, 128], 4, 256 * 256),
            ("a.gate_up_proj_blocks", "u8", &[4, 8, 2, 16], 4, 2048),
            ("a.qzeros", "i32", &[2, 32], 4, 0),
            ("a.weight_scale_inv", "f32", &[2, 2], 4, 0),
            ("a.weight", "f8_e4m3", &[256, 256], 8, 256 * 256),
            ("a.weight.quant_state.bitsandbytes__nf4", "u8", &[80], 4, 0),
        ] {
            assert_eq!(weights_of(&tensor(name, dtype, shape), bits), weights, "{name} {dtype}");
        }
    }

    #[test]
    fn a_layer_is_the_first_number_of_a_name() {
        assert_eq!(layer_of("blk.3.ffn_down.weight"), Some(("blk", 3)));
        assert_eq!(layer_of("model.layers.12.mlp.experts.7.w1"), Some(("model.layers", 12)));
        for name in ["output.weight", "0.weight", "h.99999999999999999999.w", ""] {
            assert_eq!(layer_of(name), None, "{name}");
        }
    }
}
