//! GGUF metadata: the keys under which llama.cpp keeps a model's numbers.

use super::unequal::DECI;
use super::{
    AttentionScale, Experts, LayerSizes, LongRope, MOST_LAYERS, ModelConfig, Multipliers, RopeScaling,
    listed, value,
};
use crate::Error;
use crate::family::{FAMILIES, Family, GgufRope, GgufWindow, LLAMA, Scales, Sliding, SoftCap};
use attar_checkpoint::gguf::{Array, File, Value};
use attar_checkpoint::{Container, decode_floats};

/// The tensors that carry factors for the rotary frequencies: for all windows, for short ones, for long ones.
const ROPE_FREQS: &str = "rope_freqs.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";

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
        let keys = Keys { file, arch };
        let (family, experts) = keys.family()?;
        let has = |name: &str| file.info(name).is_some();
        let hidden_size = keys.needed("embedding_length")?;
        let num_hidden_layers = keys.needed("block_count")?;
        let layer_sizes = keys.layer_sizes(num_hidden_layers)?;
        let first = match layer_sizes.first() {
            Some(first) => *first,
            None => keys.sizes_of_all()?,
        };
        let head_dim = match keys.size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(first.num_attention_heads).unwrap_or(0),
        };
        keys.refuse_other("attention.value_length", head_dim)?;
        let rotary_dim = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
        if !family.partial_rotary {
            keys.refuse_other("rope.dimension_count", head_dim)?;
        }
        let embedding = file.info("token_embd.weight").ok_or_else(|| missing("token_embd.weight"))?;
        let scales =
            keys.multipliers(family, [num_hidden_layers, hidden_size, first.num_attention_heads, head_dim])?;
        let layers = num_hidden_layers.min(MOST_LAYERS);
        let rope_layers = match family.no_rope_layer_interval {
            None => vec![true; layers],
            Some(interval) => (1..=layers).map(|nth| !nth.is_multiple_of(interval)).collect(),
        };
        let config = Self {
            family,
            hidden_size,
            num_hidden_layers,
            intermediate_size: first.intermediate_size,
            num_attention_heads: first.num_attention_heads,
            num_key_value_heads: first.num_key_value_heads,
            layer_sizes: Vec::new(),
            head_dim,
            vocab_size: embedding.shape.first().copied().unwrap_or(0),
            rms_norm_eps: keys
                .number("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))? as f32,
            rotary_dim,
            rope_theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: keys.rope_scaling(family)?,
            local_rope_theta: match family.local_rope_theta {
                None => None,
                Some(default) => Some(keys.number("rope.freq_base_swa")?.unwrap_or(default)),
            },
            rope_layers,
            experts,
            attention_scale: scales.attention,
            attention_cap: keys.soft_cap("attn_logit_softcapping", family.attention_cap)?,
            embedding_multiplier: scales.embedding,
            residual_multiplier: scales.residual,
            logits_scaling: scales.logits,
            logit_cap: keys.soft_cap("final_logit_softcapping", family.logit_cap)?,
            tie_word_embeddings: !has("output.weight"),
            attention_bias: has("blk.0.attn_q.bias"),
            output_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
            sliding_windows: keys.sliding_windows(family, layers)?,
            max_position_embeddings: keys.needed("context_length")?,
            bos_token_id: keys.token("bos_token_id"),
            eos_token_ids: keys.token("eos_token_id").into_iter().collect(),
        };
        if layer_sizes.is_empty() { config } else { config.with_layer_sizes(layer_sizes) }.checked()
    }

    /// The architecture of its GGUF files.
    fn gguf_arch(&self) -> &'static str {
        if self.layer_sizes.is_empty() { self.family.gguf_arch } else { DECI }
    }

    /// The keys that llama.cpp needs to load this model, `general.architecture` first. Names, file type and tokenizer
    /// are the writer's to add, and the [`gguf_tensors`](Self::gguf_tensors).
    ///
    /// # Errors
    /// Something that llama.cpp's implementation of the architecture does not compute.
    pub fn gguf_metadata(&self) -> Result<Vec<(String, Value)>, Error> {
        self.refuse_what_llama_cpp_lacks()?;
        let arch = self.gguf_arch();
        let u32 = |x: usize| Value::U32(x as u32);
        let of_layers = |of: fn(&LayerSizes) -> usize| match &self.layer_sizes[..] {
            [] => u32(of(&self.sizes(0))),
            each => Value::Array(Array::U32(each.iter().map(|sizes| of(sizes) as u32).collect())),
        };
        let mut keys = vec![
            ("block_count", u32(self.num_hidden_layers)),
            ("context_length", u32(self.max_position_embeddings)),
            ("embedding_length", u32(self.hidden_size)),
            ("feed_forward_length", of_layers(|sizes| sizes.intermediate_size)),
            ("attention.head_count", of_layers(|sizes| sizes.num_attention_heads)),
            ("attention.head_count_kv", of_layers(|sizes| sizes.num_key_value_heads)),
            ("attention.key_length", u32(self.head_dim)),
            ("attention.value_length", u32(self.head_dim)),
            ("attention.layer_norm_rms_epsilon", Value::F32(self.rms_norm_eps)),
            ("rope.dimension_count", u32(self.rotary_dim)),
            ("rope.freq_base", Value::F32(self.rope_theta as f32)),
            ("vocab_size", u32(self.vocab_size)),
        ];
        if let Some(experts) = &self.experts {
            keys.push(("expert_count", u32(experts.num_experts)));
            keys.push(("expert_used_count", u32(experts.num_experts_per_tok)));
            keys.push(("expert_feed_forward_length", u32(experts.moe_intermediate_size)));
        }
        match &self.rope_scaling {
            Some(RopeScaling::Linear(factor)) => {
                keys.push(("rope.scaling.type", Value::String("linear".into())));
                keys.push(("rope.scaling.factor", Value::F32(*factor as f32)));
            }
            Some(RopeScaling::LongRope(long)) => {
                let original = u32(long.original_max_position_embeddings);
                keys.push(("rope.scaling.original_context_length", original));
                keys.push(("rope.scaling.attn_factor", Value::F32(long.attention_factor)));
            }
            _ => {}
        }
        if let Some(theta) = self.local_rope_theta {
            keys.push(("rope.freq_base_swa", Value::F32(theta as f32)));
        }
        keys.extend(self.gguf_windows());
        keys.extend(self.attention_cap.map(|cap| ("attn_logit_softcapping", Value::F32(cap))));
        keys.extend(self.logit_cap.map(|cap| ("final_logit_softcapping", Value::F32(cap))));
        if let (Scales::Configured, AttentionScale::Times(scale)) = (self.family.scales, self.attention_scale)
        {
            keys.extend([
                ("attention.scale", Value::F32(scale)),
                ("embedding_scale", Value::F32(self.embedding_multiplier)),
                ("residual_scale", Value::F32(self.residual_multiplier)),
                ("logit_scale", Value::F32(self.logits_scaling)),
            ]);
        }
        let architecture = ("general.architecture".to_owned(), Value::String(arch.into()));
        Ok([architecture]
            .into_iter()
            .chain(keys.into_iter().map(|(key, value)| (format!("{arch}.{key}"), value)))
            .collect())
    }

    fn gguf_windows(&self) -> Vec<(&'static str, Value)> {
        let width = self.sliding_windows.iter().flatten().next().copied();
        let width = ("attention.sliding_window", Value::U32(width.unwrap_or(0) as u32));
        match self.family.gguf_window {
            GgufWindow::Unsaid => Vec::new(),
            GgufWindow::Width => vec![width],
            GgufWindow::Layers { .. } => {
                let slides: Vec<_> = self.sliding_windows.iter().map(Option::is_some).collect();
                vec![width, ("attention.sliding_window_pattern", Value::Array(Array::Bool(slides)))]
            }
        }
    }

    /// The tensors that a GGUF file of the model must have besides its weights: what llama.cpp divides the rotary
    /// frequencies by, `[rotary_dim / 2]` each.
    pub fn gguf_tensors(&self) -> Vec<(&'static str, Vec<f32>)> {
        match &self.rope_scaling {
            None | Some(RopeScaling::Linear(_)) => Vec::new(),
            Some(RopeScaling::LongRope(long)) => {
                vec![(LONG_FACTORS, long.long_factor.clone()), (SHORT_FACTORS, long.short_factor.clone())]
            }
            Some(scaling @ (RopeScaling::Llama3(_) | RopeScaling::Factors(_))) => {
                vec![(ROPE_FREQS, scaling.factors(&self.unscaled_frequencies(), 0))]
            }
        }
    }

    fn refuse_what_llama_cpp_lacks(&self) -> Result<(), Error> {
        let family = self.family;
        let plain_heads = self.head_dim * self.num_attention_heads == self.hidden_size;
        let scaling = match &self.rope_scaling {
            None | Some(RopeScaling::Linear(_)) => None,
            Some(RopeScaling::LongRope(_)) => Some(("`longrope`", GgufRope::LongShort)),
            Some(RopeScaling::Llama3(_) | RopeScaling::Factors(_)) => Some(("`llama3`", GgufRope::Factors)),
        };
        let refusals = [
            (
                scaling.is_some_and(|(_, needed)| needed != family.gguf_rope),
                "rope_scaling",
                scaling.map_or(String::new(), |(name, _)| name.into()),
                "`default` and `linear`",
            ),
            (
                family.gguf_plain_heads && !plain_heads,
                "head_dim",
                self.head_dim.to_string(),
                "hidden_size / num_attention_heads",
            ),
            (self.output_bias && !family.gguf_biases, "attention_bias", "true".into(), "false"),
            (self.mlp_bias && !family.gguf_biases, "mlp_bias", "true".into(), "false"),
            (self.tie_word_embeddings && !family.gguf_tied, "tie_word_embeddings", "true".into(), "false"),
            (
                matches!(family.gguf_window, GgufWindow::Layers { width: Some(_) })
                    && self.sliding_windows.iter().all(Option::is_none),
                "sliding_window",
                "null".into(),
                "a number",
            ),
            (
                family.attention_cap.is_given() && self.attention_cap.is_none(),
                "attn_logit_softcapping",
                "null".into(),
                "a number",
            ),
            (
                family.logit_cap.is_given() && self.logit_cap.is_none(),
                "final_logit_softcapping",
                "null".into(),
                "a number",
            ),
        ];
        match refusals.into_iter().find(|(refused, ..)| *refused) {
            Some((_, key, found, known)) => Err(self.llama_cpp_lacks(key, found, known)),
            None => self.refuse_other_constants(),
        }
    }

    /// Refuses numbers that GGUF files do not say and llama.cpp takes to be others.
    fn refuse_other_constants(&self) -> Result<(), Error> {
        if let Some(experts) = &self.experts {
            if !experts.norm_topk_prob {
                return Err(self.llama_cpp_lacks("norm_topk_prob", "false".into(), "true"));
            }
            if experts.layers.contains(&false) {
                let found = "not empty, or layers are passed over".into();
                return Err(self.llama_cpp_lacks("mlp_only_layers", found, "experts in every layer"));
            }
        }
        if let Some(interval) = self.family.no_rope_layer_interval
            && !self.rope_layers.iter().zip(1usize..).all(|(&has, nth)| has != nth.is_multiple_of(interval))
        {
            let known = format!("all but every {interval}th");
            return Err(self.llama_cpp_lacks("no_rope_layers", "another choice of layers".into(), &known));
        }
        if let (Scales::RootOfHiddenSize { gguf_wide_layers }, AttentionScale::InverseRoot(scalar)) =
            (self.family.scales, self.attention_scale)
        {
            let wide = self.num_hidden_layers == gguf_wide_layers;
            let known = if wide { self.hidden_size / self.num_attention_heads } else { self.head_dim };
            if scalar != known {
                let (found, known) = (scalar.to_string(), known.to_string());
                return Err(self.llama_cpp_lacks("query_pre_attn_scalar", found, &known));
            }
        }
        Ok(())
    }

    fn llama_cpp_lacks(&self, key: &str, found: String, known: &str) -> Error {
        let known = format!("{known} in GGUF files of architecture `{}`", self.gguf_arch());
        Error::Unsupported { key: key.into(), found, known }
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

    /// The sizes that all layers have.
    fn sizes_of_all(&self) -> Result<LayerSizes, Error> {
        let num_attention_heads = self.needed("attention.head_count")?;
        Ok(LayerSizes {
            intermediate_size: self.needed("feed_forward_length")?,
            num_attention_heads,
            num_key_value_heads: self.size("attention.head_count_kv")?.unwrap_or(num_attention_heads),
        })
    }

    /// For each layer its sizes, where the architecture lets layers differ; else none.
    fn layer_sizes(&self, layers: usize) -> Result<Vec<LayerSizes>, Error> {
        if self.arch != DECI {
            return Ok(Vec::new());
        }
        if layers > MOST_LAYERS {
            return Err(value("num_hidden_layers", layers, format!("a number from 1 to {MOST_LAYERS}")));
        }
        let [ffn, heads, kv_heads] =
            ["feed_forward_length", "attention.head_count", "attention.head_count_kv"]
                .map(|key| self.of_layers(key, layers));
        let (ffn, heads) = (ffn?, heads?);
        let kv_heads = if self.file.metadata(&self.key("attention.head_count_kv")).is_some() {
            kv_heads?
        } else {
            heads.clone()
        };
        let sizes = |((intermediate_size, num_attention_heads), num_key_value_heads)| LayerSizes {
            intermediate_size,
            num_attention_heads,
            num_key_value_heads,
        };
        Ok(ffn.into_iter().zip(heads).zip(kv_heads).map(sizes).collect())
    }

    /// For each layer its number: of a list its own, else that of all.
    fn of_layers(&self, key: &str, layers: usize) -> Result<Vec<usize>, Error> {
        let key = self.key(key);
        let found = self.file.metadata(&key).ok_or_else(|| missing(&key))?;
        let whole = |x: Value| x.as_u64().and_then(|x| usize::try_from(x).ok());
        let numbers = match found {
            Value::Array(list) if list.len() == layers => {
                (0..layers).map(|layer| list.get(layer).and_then(whole)).collect()
            }
            Value::Array(_) => None,
            one => whole(one.clone()).map(|one| vec![one; layers]),
        };
        let expected = || format!("a whole number, or a list of {layers}, one for each layer");
        let numbers: Vec<usize> = numbers.ok_or_else(|| value(&key, shown(found), expected()))?;
        match numbers.iter().position(|&number| number == 0) {
            None => Ok(numbers),
            Some(layer) => Err(Error::Unsupported {
                key,
                found: format!("0 in layer {layer}"),
                known: "layers that have attention and an MLP".into(),
            }),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let key = self.key(key);
        let number =
            |found: &Value| found.as_f64().ok_or_else(|| value(&key, shown(found), "a number".into()));
        self.file.metadata(&key).map(number).transpose()
    }

    /// The family of the architecture, and the experts where it has some. All layers have them, and llama.cpp lets the
    /// shares of a token's experts always add up to 1.
    fn family(&self) -> Result<(&'static Family, Option<Experts>), Error> {
        let arch = if self.arch == DECI { LLAMA.gguf_arch } else { self.arch };
        let of_arch = || FAMILIES.iter().copied().filter(|family| family.gguf_arch == arch);
        if of_arch().next().is_none() {
            let mut known = Vec::new();
            for family in FAMILIES {
                if !known.contains(&family.gguf_arch) {
                    known.push(family.gguf_arch);
                }
            }
            known.push(DECI);
            return Err(Error::UnknownArchitecture { found: self.arch.into(), known: listed(known) });
        }
        let num_experts = self.size("expert_count")?.unwrap_or(0);
        let Some(family) = of_arch().find(|family| family.experts.is_some() == (num_experts > 0)) else {
            let known = if num_experts > 0 { "0" } else { "a number of experts" };
            let key = self.key("expert_count");
            return Err(Error::Unsupported { key, found: num_experts.to_string(), known: known.into() });
        };
        if num_experts == 0 {
            return Ok((family, None));
        }
        let num_experts_per_tok = self.needed("expert_used_count")?;
        let moe_intermediate_size = match self.size("expert_feed_forward_length")? {
            Some(features) => features,
            None if family.experts.is_some_and(|experts| experts.mixes_dense) => {
                self.needed("feed_forward_length")?.checked_div(num_experts_per_tok).unwrap_or(0)
            }
            None => self.needed("feed_forward_length")?,
        };
        let layers = vec![true; self.needed("block_count")?.min(MOST_LAYERS)];
        let experts =
            Experts { num_experts, num_experts_per_tok, moe_intermediate_size, norm_topk_prob: true, layers };
        Ok((family, Some(experts)))
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

    /// Of a model with these numbers of layers, features, heads and features of a head.
    fn multipliers(
        &self,
        family: &Family,
        [layers, hidden_size, heads, head_dim]: [usize; 4],
    ) -> Result<Multipliers, Error> {
        let scale = |key, default| Ok::<_, Error>(self.number(key)?.unwrap_or(default) as f32);
        Ok(match family.scales {
            Scales::Plain => Multipliers::plain(head_dim),
            Scales::RootOfHiddenSize { gguf_wide_layers } => {
                let wide = layers == gguf_wide_layers;
                let scalar = if wide { hidden_size.checked_div(heads).unwrap_or(0) } else { head_dim };
                Multipliers { embedding: (hidden_size as f64).sqrt() as f32, ..Multipliers::plain(scalar) }
            }
            Scales::Configured => Multipliers {
                attention: AttentionScale::Times(scale("attention.scale", 1.0 / (head_dim as f64).sqrt())?),
                embedding: scale("embedding_scale", 1.0)?,
                residual: scale("residual_scale", 1.0)?,
                logits: scale("logit_scale", 1.0)?,
            },
        })
    }

    /// A bound that is missing, or zero, is the one that llama.cpp takes then.
    fn soft_cap(&self, key: &str, cap: SoftCap) -> Result<Option<f32>, Error> {
        let SoftCap::Configured(default) = cap else { return Ok(None) };
        Ok(self.number(key)?.map(|cap| cap as f32).filter(|cap| *cap != 0.0).or(default))
    }

    fn sliding_windows(&self, family: &Family, layers: usize) -> Result<Vec<Option<usize>>, Error> {
        let key = "attention.sliding_window";
        let width = match (family.gguf_window, self.size(key)?) {
            (GgufWindow::Unsaid, _) => None,
            (GgufWindow::Width, found) => found,
            (GgufWindow::Layers { width }, found) => found.or(width),
        };
        let Some(width) = width.filter(|width| *width > 0) else { return Ok(vec![None; layers]) };
        if family.gguf_window == GgufWindow::Width {
            return Ok(vec![Some(width); layers]);
        }
        let Sliding::AllButEvery { period, .. } = family.sliding else {
            return Ok(vec![Some(width); layers]);
        };
        let key = self.key("attention.sliding_window_pattern");
        let by_period =
            |period: usize| (1..=layers).map(|nth| period == 0 || !nth.is_multiple_of(period)).collect();
        let slides: Vec<bool> = match self.file.metadata(&key) {
            None => by_period(period),
            Some(Value::Array(list)) if list.len() == layers => {
                let slides = |x: Value| x.as_bool().unwrap_or_else(|| x.as_u64() != Some(0));
                (0..layers).map(|i| list.get(i).is_some_and(slides)).collect()
            }
            Some(found) => {
                let period = found.as_u64().and_then(|x| usize::try_from(x).ok());
                let expected = || format!("a number, or a list of {layers}, one for each layer");
                by_period(period.ok_or_else(|| value(&key, shown(found), expected()))?)
            }
        };
        Ok(slides.into_iter().map(|slides| slides.then_some(width)).collect())
    }

    fn rope_scaling(&self, family: &Family) -> Result<Option<RopeScaling>, Error> {
        let key = self.key("rope.scaling.type");
        let kind = self.file.metadata(&key).map_or(Some("none"), Value::as_str);
        let has_long = family.gguf_rope == GgufRope::LongShort && self.file.info(LONG_FACTORS).is_some();
        match kind {
            Some("none" | "longrope") if has_long => self.long_rope().map(Some),
            Some("none") => Ok(self.factors(ROPE_FREQS)?.map(RopeScaling::Factors)),
            Some("linear") => Ok(self.number("rope.scaling.factor")?.map(RopeScaling::Linear)),
            found => {
                let found = found.map_or("no name".into(), |found| format!("`{found}`"));
                Err(Error::Unsupported { key, found, known: listed(ROPE_TYPES) })
            }
        }
    }

    fn long_rope(&self) -> Result<RopeScaling, Error> {
        let needed = |name: &str| self.factors(name)?.ok_or_else(|| missing(name));
        let original = "rope.scaling.original_context_length";
        Ok(RopeScaling::LongRope(LongRope {
            short_factor: needed(SHORT_FACTORS)?,
            long_factor: needed(LONG_FACTORS)?,
            original_max_position_embeddings: match self.size(original)? {
                Some(tokens) => tokens,
                None => self.needed("context_length")?,
            },
            attention_factor: self.number("rope.scaling.attn_factor")?.unwrap_or(1.0) as f32,
        }))
    }

    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>, Error> {
        let Some(info) = self.file.info(name) else { return Ok(None) };
        let load = |source| Error::Load { name: name.into(), source };
        let bytes = self.file.bytes(name).map_err(|error| load(error.into()))?;
        Ok(Some(decode_floats(info.dtype, bytes).map_err(|error| load(error.into()))?))
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        other => format!("{other:?}"),
    }
}
