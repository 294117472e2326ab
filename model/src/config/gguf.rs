//! GGUF metadata: the keys under which llama.cpp keeps a model's numbers.

use super::{ModelConfig, RopeScaling, listed, value};
use crate::Error;
use crate::family::{AttentionBias, FAMILIES};
use attar_checkpoint::gguf::{File, Value};
use attar_checkpoint::{Container, decode_floats};

/// The tensor that carries factors for the rotary frequencies.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Kinds of rotary scaling that are computed.
const ROPE_TYPES: [&str; 2] = ["none", "linear"];

impl ModelConfig {
    /// Reads the configuration of a model in a GGUF file, of whose tensors only names and the embedding's shape count.
    ///
    /// # Errors
    /// An architecture that is not known, a key that is missing or makes no sense, an option that is not computed.
    pub fn from_gguf(file: &File) -> Result<Self, Error> {
        let arch = file
            .metadata("general.architecture")
            .and_then(Value::as_str)
            .ok_or_else(|| missing("general.architecture"))?;
        let family = FAMILIES.iter().find(|family| family.gguf_arch == arch).ok_or_else(|| {
            let mut known: Vec<_> = FAMILIES.iter().map(|family| family.gguf_arch).collect();
            known.dedup();
            Error::UnknownArchitecture { found: arch.into(), known: listed(known) }
        })?;
        let keys = Keys { file, arch };
        let has = |name: &str| file.info(name).is_some();
        let hidden_size = keys.needed("embedding_length")?;
        let num_attention_heads = keys.needed("attention.head_count")?;
        let head_dim = match keys.size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
        };
        keys.refuse_other("attention.value_length", head_dim)?;
        keys.refuse_other("rope.dimension_count", head_dim)?;
        keys.refuse_other("expert_count", 0)?;
        let num_hidden_layers = keys.needed("block_count")?;
        let embedding = file.info("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
        let attention_bias = has("blk.0.attn_q.bias");
        Self {
            family,
            hidden_size,
            intermediate_size: keys.needed("feed_forward_length")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys.size("attention.head_count_kv")?.unwrap_or(num_attention_heads),
            head_dim,
            vocab_size: embedding.shape.first().copied().unwrap_or(0),
            rms_norm_eps: keys
                .number("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))? as f32,
            rope_theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: keys.rope_scaling()?,
            tie_word_embeddings: !has("output.weight"),
            attention_bias,
            output_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
            sliding_windows: vec![None; num_hidden_layers.min(super::MOST_LAYERS)],
            max_position_embeddings: keys.needed("context_length")?,
            bos_token_id: keys.token("bos_token_id"),
            eos_token_ids: keys.token("eos_token_id").into_iter().collect(),
        }
        .checked()
    }

    /// The keys that llama.cpp needs to load this model, `general.architecture` first. Names, file type and tokenizer
    /// are the writer's to add, and the tensor [`rope_freqs`](Self::rope_freqs) where there is one.
    ///
    /// # Errors
    /// Something that llama.cpp's implementation of the architecture does not compute.
    pub fn gguf_metadata(&self) -> Result<Vec<(String, Value)>, Error> {
        self.refuse_what_llama_cpp_lacks()?;
        let arch = self.family.gguf_arch;
        let u32 = |x: usize| Value::U32(x as u32);
        let mut keys = vec![
            ("block_count", u32(self.num_hidden_layers)),
            ("context_length", u32(self.max_position_embeddings)),
            ("embedding_length", u32(self.hidden_size)),
            ("feed_forward_length", u32(self.intermediate_size)),
            ("attention.head_count", u32(self.num_attention_heads)),
            ("attention.head_count_kv", u32(self.num_key_value_heads)),
            ("attention.key_length", u32(self.head_dim)),
            ("attention.value_length", u32(self.head_dim)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_norm_eps)),
            ("rope.dimension_count", u32(self.head_dim)),
            ("rope.freq_base", Value::F32(self.rope_theta as f32)),
            ("vocab_size", u32(self.vocab_size)),
        ];
        if let Some(RopeScaling::Linear(factor)) = self.rope_scaling {
            keys.push(("rope.scaling.type", Value::String("linear".into())));
            keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
        }
        let architecture = ("general.architecture".to_owned(), Value::String(arch.into()));
        Ok([architecture]
            .into_iter()
            .chain(keys.into_iter().map(|(key, value)| (format!("{arch}.{key}"), value)))
            .collect())
    }

    /// The contents of the tensor `rope_freqs.weight`, `[head_dim / 2]`, if the model's GGUF file must have it: what
    /// llama.cpp divides each rotary frequency by.
    pub fn rope_freqs(&self) -> Option<Vec<f32>> {
        match &self.rope_scaling {
            None | Some(RopeScaling::Linear(_)) => None,
            Some(scaling) => {
                Some(scaling.factors(&attar_tensor::op::rope_frequencies(self.rope_theta, self.head_dim)))
            }
        }
    }

    fn refuse_what_llama_cpp_lacks(&self) -> Result<(), Error> {
        let arch = self.family.gguf_arch;
        let refuse = |key: &str, found: String, known: &str| {
            Err(Error::Unsupported {
                key: key.into(),
                found,
                known: format!("{known} in GGUF files of architecture `{arch}`"),
            })
        };
        if self.rope_freqs().is_some() && !self.family.gguf_rope_freqs {
            return refuse("rope_scaling", "`llama3`".into(), "`default` and `linear`");
        }
        let plain_heads = self.head_dim * self.num_attention_heads == self.hidden_size;
        if self.family.attention_bias == AttentionBias::Qkv && !plain_heads {
            return refuse("head_dim", self.head_dim.to_string(), "hidden_size / num_attention_heads");
        }
        if self.output_bias && self.family.name != "llama" {
            return refuse("attention_bias", "true".into(), "false");
        }
        Ok(())
    }
}

fn missing(key: &str) -> Error {
    Error::Missing { key: key.into() }
}

/// Typed access to the keys of one architecture.
struct Keys<'a> {
    file: &'a File,
    arch: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// A number, or a list that repeats one number for every layer.
    fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        let key = self.key(key);
        let Some(found) = self.file.metadata(&key) else { return Ok(None) };
        let whole = |x: &Value| x.as_u64().and_then(|x| usize::try_from(x).ok());
        let size = match found.as_array() {
            None => whole(found),
            Some(list) => {
                let first = list.get(0);
                let same = (1..list.len()).all(|i| list.get(i) == first);
                first.filter(|_| same).as_ref().and_then(whole)
            }
        };
        size.map(Some).ok_or_else(|| value(&key, shown(found), "one whole number for all layers".into()))
    }

    fn needed(&self, key: &str) -> Result<usize, Error> {
        self.size(key)?.ok_or_else(|| missing(&self.key(key)))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let key = self.key(key);
        let number =
            |found: &Value| found.as_f64().ok_or_else(|| value(&key, shown(found), "a number".into()));
        self.file.metadata(&key).map(number).transpose()
    }

    fn refuse_other(&self, key: &str, only: usize) -> Result<(), Error> {
        match self.size(key)? {
            Some(found) if found != only => Err(Error::Unsupported {
                key: self.key(key),
                found: found.to_string(),
                known: only.to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn token(&self, key: &str) -> Option<u32> {
        let value = self.file.metadata(&format!("tokenizer.ggml.{key}"))?;
        value.as_u64().and_then(|token| token.try_into().ok())
    }

    fn rope_scaling(&self) -> Result<Option<RopeScaling>, Error> {
        let key = self.key("rope.scaling.type");
        let kind = self.file.metadata(&key).map_or(Some("none"), Value::as_str);
        match kind {
            Some("none") => self.rope_factors(),
            Some("linear") => Ok(self.number("rope.scaling.factor")?.map(RopeScaling::Linear)),
            found => {
                let found = found.map_or("no name".into(), |found| format!("`{found}`"));
                Err(Error::Unsupported { key, found, known: listed(ROPE_TYPES) })
            }
        }
    }

    fn rope_factors(&self) -> Result<Option<RopeScaling>, Error> {
        let Some(info) = self.file.info(ROPE_FREQS) else { return Ok(None) };
        let load = |source| Error::Load { name: ROPE_FREQS.into(), source };
        let bytes = self.file.bytes(ROPE_FREQS).map_err(|error| load(error.into()))?;
        Ok(Some(RopeScaling::Factors(decode_floats(info.dtype, bytes).map_err(|error| load(error.into()))?)))
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        other => format!("{other:?}"),
    }
}
