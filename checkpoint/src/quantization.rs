//! What `config.json` says of how a folder's weights were quantized: which layout it is, and why one cannot be read.

use serde_json::Value;

/// The key of `config.json` a layout is described under.
pub const CONFIG_KEY: &str = "quantization_config";

/// Why the description of a layout cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// The JSON lacks something or has it in another type.
    #[error("its {CONFIG_KEY} is not of the form {layout} writes")]
    Json {
        /// The layout it claims to be.
        layout: &'static str,
        /// What was missed.
        source: serde_json::Error,
    },
    /// Another layout, or a part of this one that is not read here.
    #[error("its {CONFIG_KEY} has {key} = {value}; read are {known}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What could be read.
        known: String,
    },
}

impl Flaw {
    /// A value of `key` that is not read.
    pub fn unsupported(key: &'static str, value: &dyn ToString, known: impl Into<String>) -> Self {
        Self::Unsupported { key, value: value.to_string(), known: known.into() }
    }
}

/// What a `config.json` says of its quantization, if it says anything.
pub fn described(config: &Value) -> Option<&Value> {
    config.get(CONFIG_KEY).filter(|json| !json.is_null())
}

/// Weights of a row that share a scale, of which -1 says that all do.
pub(crate) fn group_size(said: i64) -> Result<Option<usize>, Flaw> {
    match usize::try_from(said) {
        Ok(size @ 1..) => Ok(Some(size)),
        Err(_) if said == -1 => Ok(None),
        _ => Err(Flaw::unsupported("group_size", &said, "-1 and sizes above 0")),
    }
}
