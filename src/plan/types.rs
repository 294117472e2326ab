//! Which type each tensor of a GGUF file gets: the scheme's, made to fit, and what the user says besides.

use std::collections::BTreeMap;

use attar_checkpoint::{Dtype, GgmlType};
use attar_model::{Role, TensorSpec};
use attar_quant::encoding;
use regex::Regex;

use super::{Request, Treatment};
use crate::diagnostic::{Explain, Failure, Result, nearest};
use crate::mix::{Fallback, FileType, Matrix, MixContext, shape_fallback};
use crate::scheme::Scheme;

/// What the user may say about single tensors: `REGEX=TYPE`.
#[derive(Clone, Debug)]
pub struct TensorRule {
    pub(super) pattern: Regex,
    pub(super) wanted: String,
}

impl std::str::FromStr for TensorRule {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self> {
        let (pattern, wanted) = text.rsplit_once('=').ok_or_else(|| {
            Failure::new(format!("`{text}` is not a tensor rule"))
                .hint("write REGEX=TYPE, for example --tensor 'ffn_down=q6_k'")
        })?;
        let pattern = Regex::new(pattern).doing(|| format!("while reading the tensor rule `{text}`")).hint(
            || "what stands before the `=` is a regular expression, for example --tensor 'ffn_down=q6_k'",
        )?;
        let wanted = wanted.to_ascii_lowercase();
        if wanted != "float" && GgmlType::from_name(&wanted).is_none() && wanted.parse::<Scheme>().is_err() {
            let types = GgmlType::all().map(GgmlType::name).filter(|name| encoding(name).is_some());
            let meant = nearest(&wanted, types.chain(["float"]));
            return Err(not_written(&wanted).did_you_mean(meant))
                .doing(|| format!("while reading the tensor rule `{text}`"));
        }
        Ok(Self { pattern, wanted })
    }
}

/// A type for every tensor of a GGUF file that has one chosen for it.
#[derive(Clone, Debug)]
pub struct Exact {
    /// The type, by the tensor's name in the file.
    pub types: BTreeMap<String, GgmlType>,
    /// What they were chosen for, in place of a scheme's name.
    pub name: String,
}

/// What the user says of tensor types besides the scheme.
#[derive(Clone, Debug, Default)]
pub struct TypeRules {
    /// Rules for single tensors, first match wins.
    pub tensors: Vec<TensorRule>,
    /// Every matrix gets the file type's main type.
    pub pure: bool,
    /// The type of the head.
    pub output: Option<GgmlType>,
    /// The type of the embedding.
    pub embedding: Option<GgmlType>,
    /// What becomes of rows that do not fit.
    pub fallback: Fallback,
    /// Whether such rows are refused instead.
    pub no_fallback: bool,
    /// Types that were chosen tensor by tensor, which nothing else changes.
    pub exact: Option<Exact>,
}

/// Nothing but the scheme.
pub static NO_RULES: TypeRules = TypeRules {
    tensors: Vec::new(),
    pure: false,
    output: None,
    embedding: None,
    fallback: Fallback::LlamaCpp,
    no_fallback: false,
    exact: None,
};

impl TypeRules {
    /// The type that was asked for a matrix, where one was.
    pub(super) fn wanted(
        &self,
        spec: &TensorSpec,
        file_type: FileType,
        context: MixContext,
    ) -> Result<GgmlType> {
        let exact = self.exact.as_ref().and_then(|exact| exact.types.get(&spec.gguf_name));
        if let Some(wanted) =
            exact.copied().map_or_else(|| self.asked(spec, context.tied), |t| Ok(Some(t)))?
        {
            return Ok(wanted);
        }
        if self.pure {
            return Ok(file_type.default_type);
        }
        let matrix = Matrix {
            role: spec.role,
            layer: spec.layer.unwrap_or(0),
            row_length: spec.shape[1],
            is_expert: spec.expert.is_some(),
        };
        Ok(file_type.tensor_type(matrix, context))
    }

    /// The type that the user names for a matrix, where one is named.
    ///
    /// # Errors
    /// A rule whose type no GGUF file has.
    pub fn asked(&self, spec: &TensorSpec, tied: bool) -> Result<Option<GgmlType>> {
        let is_head = spec.role == Role::Head || (spec.role == Role::Embedding && tied);
        if let Some(wanted) = self.output.filter(|_| is_head) {
            return Ok(Some(wanted));
        }
        if let Some(wanted) = self.embedding.filter(|_| spec.role == Role::Embedding) {
            return Ok(Some(wanted));
        }
        let rule = self.tensors.iter().find(|rule| rule.matches(spec));
        rule.map(|rule| ggml_type(&rule.wanted)).transpose()
    }

    /// Whether anything is said that only GGUF files have.
    pub(super) fn is_for_gguf(&self) -> bool {
        self.pure
            || self.no_fallback
            || self.output.is_some()
            || self.embedding.is_some()
            || self.fallback != Fallback::LlamaCpp
    }
}

/// The tensor type of a name that attar writes.
///
/// # Errors
/// With the nearest name.
pub fn written_type(name: &str) -> Result<GgmlType> {
    let name = name.to_ascii_lowercase();
    ggml_type(&name).map_err(|failure| {
        let types = GgmlType::all().map(GgmlType::name).filter(|name| encoding(name).is_some());
        failure.did_you_mean(nearest(&name, types))
    })
}

impl TensorRule {
    pub(super) fn matches(&self, spec: &TensorSpec) -> bool {
        self.pattern.is_match(&spec.name) || self.pattern.is_match(&spec.gguf_name)
    }
}

/// The type llama-quantize would give this matrix, or the user's rule, made to fit the row.
pub(super) fn gguf_matrix(
    spec: &TensorSpec,
    row_length: usize,
    request: &Request,
) -> Result<(Treatment, Option<String>)> {
    let Some(Scheme::Gguf(file_type)) = request.scheme else {
        return Ok((Treatment::Float(request.source.float_dtype(spec)), None));
    };
    let config = &request.source.config;
    let experts = config.experts.as_ref().map_or(0, |experts| experts.num_experts);
    let context = MixContext {
        experts,
        layers: config.num_hidden_layers,
        tied: config.tie_word_embeddings,
        with_data: request.calibration.is_some() || request.imatrix.is_some(),
        is_llama_70b: config.family.gguf_arch == "llama"
            && config.num_hidden_layers == 80
            && experts != 8
            && config.num_attention_heads != config.num_key_value_heads,
        queries_per_key: config.num_attention_heads / config.num_key_value_heads.max(1),
    };
    let wanted = request.rules.wanted(spec, file_type, context)?;
    let chosen = shape_fallback(wanted, row_length, request.rules.fallback);
    let unfit =
        || format!("rows of {row_length} do not fit {} (blocks of {})", wanted.name(), wanted.block_len());
    if chosen != wanted && request.rules.no_fallback {
        return Err(Failure::new(unfit()).hint(format!(
            "leave --no-fallback out to have it as {}, or say what it is to be: --tensor '{}=q8_0'",
            chosen.name(),
            spec.role.as_str()
        )));
    }
    if !context.with_data && file_type.needs_data(spec.role, chosen) {
        return Err(Failure::new(format!(
            "{} is no use without knowing what its inputs are like",
            chosen.name()
        ))
        .hint("calibrate (leave --method out), give an importance matrix, or choose q2_k or a larger type"));
    }
    let fallback = (chosen != wanted).then(|| format!("{}: {}", unfit(), chosen.name()));
    let treatment = match float_dtype(chosen) {
        Some(dtype) => Treatment::Float(dtype),
        None => Treatment::Codes(encoding(chosen.name()).ok_or_else(|| not_written(chosen.name()))?),
    };
    Ok((treatment, fallback))
}

fn ggml_type(name: &str) -> Result<GgmlType> {
    GgmlType::from_name(name).filter(|t| encoding(t.name()).is_some()).ok_or_else(|| not_written(name))
}

fn not_written(name: &str) -> Failure {
    Failure::new(format!("attar does not write the tensor type `{name}`"))
        .hint(format!("types: {}", written_types().join(" ")))
}

/// The names of the types attar writes, the one of most bits first.
fn written_types() -> Vec<&'static str> {
    let mut types: Vec<_> = GgmlType::all().filter(|t| encoding(t.name()).is_some()).collect();
    types.sort_by_key(|t| std::cmp::Reverse(t.block_bytes() * 1024 / t.block_len()));
    types.into_iter().map(GgmlType::name).collect()
}

/// The floats of a tensor type that has no blocks.
pub fn float_dtype(ggml_type: GgmlType) -> Option<Dtype> {
    match ggml_type {
        GgmlType::F32 => Some(Dtype::F32),
        GgmlType::F16 => Some(Dtype::F16),
        GgmlType::Bf16 => Some(Dtype::Bf16),
        _ => None,
    }
}
