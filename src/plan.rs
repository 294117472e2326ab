//! What will happen: every tensor, its type and size, what it takes, and what cannot work, before any work starts.

mod collecting;
mod lines;
mod local;
mod machine;
mod memory;
mod pruned;
mod scoring;
mod training;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use attar_checkpoint::{Dtype, GgmlType};
use attar_model::device::{Aim, Work};
use attar_model::{Device, ExpertNumbers, Precision, Role, TensorSpec};
use attar_quant::{Detail, GridEncoding, IntEncoding, Named, ScaleDtype, Solver, Sparsity, encoding};
use clap::ValueEnum;
use regex::Regex;
use serde::Deserialize;

use crate::device::{self, Computer};
use crate::diagnostic::{Explain, Failure, Result, nearest};
use crate::imatrix::{Imatrix, Used};
use crate::mix::{Fallback, FileType, Matrix, MixContext, shape_fallback};
use crate::scheme::{IntegerScheme, Scheme};
use crate::source::Source;
use crate::talk::{human_bytes, thousands};
pub use local::{LocalMemory, PART_TOKENS};
pub(crate) use machine::in_kib;
pub use memory::Memory;
pub use scoring::{ScoringMemory, ScoringSize};
pub use training::{STEP_TOKENS, Teaching, TrainingMemory, TrainingSize};

/// What becomes of one tensor.
#[derive(Clone, Copy, Debug)]
pub enum Treatment {
    /// Stored as floats of this type.
    Float(Dtype),
    /// Stored as codes on a grid.
    Codes(Named),
}

/// One tensor of the plan.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// The tensor in the model.
    pub spec: TensorSpec,
    /// What becomes of it.
    pub treatment: Treatment,
    /// Bytes it takes in the output, scales and zero points included.
    pub bytes: u64,
    /// Why it did not get the type the scheme says.
    pub fallback: Option<String>,
    /// Whether some of its weights become 0.
    pub sparse: bool,
}

impl PlannedTensor {
    /// Short name of the type it gets, as reports and plans show it.
    pub fn encoding_name(&self) -> String {
        match &self.treatment {
            Treatment::Float(dtype) => dtype.to_string(),
            Treatment::Codes(encoding) => encoding.name().into_owned(),
        }
    }

    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.spec.len()
    }

    /// The floats in the file: the weights themselves, or their scales; `None` for blocks.
    pub fn float_in_file(&self) -> Option<Dtype> {
        match &self.treatment {
            Treatment::Float(dtype) => Some(*dtype),
            Treatment::Codes(Named::Integer(encoding)) => Some(scale_float(encoding.scale_dtype())),
            Treatment::Codes(Named::Listed(_)) => None,
        }
    }
}

/// The container to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// One GGUF file with this `general.file_type`.
    Gguf {
        /// Number of the file type, see [`crate::mix::FileType`].
        file_type: u32,
    },
    /// A folder of safetensors as transformers saves floats.
    Plain,
    /// A folder of safetensors with packed integers.
    CompressedTensors(IntegerScheme),
}

/// How many tokens calibrate, in windows of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationSize {
    /// Tokens in all windows together.
    pub tokens: usize,
    /// Tokens per window.
    pub ctx: usize,
}

/// What will happen to a model.
pub struct Plan {
    /// The container to be written.
    pub output: Output,
    /// Every tensor, in the order of the model.
    pub tensors: Vec<PlannedTensor>,
    /// Text the method learns from, if it does.
    pub calibration: Option<CalibrationSize>,
    /// The importance matrix that stands in for a text, if one does.
    pub imatrix: Option<Used>,
    /// What that needs.
    pub memory: Memory,
    /// What computes it.
    pub device: Device,
    /// Whether codes are chosen on a device too.
    pub solves_there: bool,
    /// Whether the model as it was runs beside, so that each matrix makes up for what those before it have lost.
    pub corrects: bool,
    /// The experts some layers' MLPs are made of.
    pub experts: Option<ExpertNumbers>,
}

/// What the user may say about single tensors: `REGEX=TYPE`.
#[derive(Clone, Debug)]
pub struct TensorRule {
    pattern: Regex,
    wanted: String,
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
    fn wanted(&self, spec: &TensorSpec, file_type: FileType, context: MixContext) -> Result<GgmlType> {
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
    fn is_for_gguf(&self) -> bool {
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
    fn matches(&self, spec: &TensorSpec) -> bool {
        self.pattern.is_match(&spec.name) || self.pattern.is_match(&spec.gguf_name)
    }
}

/// What is asked of a plan.
pub struct Request<'a> {
    /// The model to be compressed.
    pub source: &'a Source,
    /// The number format; none keeps every number as it is.
    pub scheme: Option<Scheme>,
    /// Whether the output is one GGUF file.
    pub gguf: bool,
    /// What is said of tensor types besides.
    pub rules: &'a TypeRules,
    /// Text the method learns from, if it does.
    pub calibration: Option<CalibrationSize>,
    /// An importance matrix in its place.
    pub imatrix: Option<&'a Imatrix>,
    /// Memory the pass may use, if bounded.
    pub max_memory: Option<u64>,
    /// How exactly matrices are multiplied.
    pub precision: Precision,
    /// Whether each matrix makes up for what those before it have lost.
    pub correct: Correct,
    /// What computes.
    pub computer: &'a Computer,
    /// How codes are chosen where there are statistics.
    pub solver: &'a dyn Solver,
    /// What sets weights of the blocks' matrices to 0, where that is asked for.
    pub zeros: Option<&'a dyn Solver>,
}

impl Plan {
    /// Decides every tensor's type and size.
    ///
    /// # Errors
    /// A scheme its container cannot hold, a group size that does not divide a row, a rule that fits nothing, more
    /// memory than allowed.
    pub fn new(request: &Request) -> Result<Self> {
        let output = output(request)?;
        check_rules(request)?;
        if let Some(imatrix) = request.imatrix {
            imatrix.check(request.source)?;
        }
        let tensors = request
            .source
            .specs
            .iter()
            .map(|spec| {
                plan_tensor(spec, request, &output).doing(|| format!("while planning `{}`", spec.name))
            })
            .collect::<Result<Vec<_>>>()?;
        if matches!(output, Output::Gguf { .. }) {
            check_stacks(&tensors)?;
        }
        let has_codes = tensors.iter().any(|t| matches!(t.treatment, Treatment::Codes(_)));
        let calibration = request.calibration.filter(|_| has_codes || request.zeros.is_some());
        let there = request.zeros.unwrap_or(request.solver).on_device();
        let aim = if there.is_some() { Aim::Quantize } else { Aim::Observe };
        let device = match calibration {
            Some(CalibrationSize { tokens, ctx }) => request.computer.plan(
                &request.source.config,
                Work { tokens: tokens as u64, ctx: ctx as u64, aim, precision: request.precision },
            )?,
            None => Device::Cpu,
        };
        let experts = request.source.config.experts.clone();
        let (memory, corrects) = correction(request, (&tensors, calibration), &device)?;
        let is_even = |t: &PlannedTensor| match &t.treatment {
            Treatment::Codes(encoding) => encoding.grid().is_none_or(GridEncoding::is_even),
            Treatment::Float(_) => true,
        };
        let solves_there =
            aim == Aim::Quantize && matches!(device, Device::Cuda(_)) && tensors.iter().all(is_even);
        let imatrix = request.imatrix.map(|imatrix| imatrix.used().clone());
        Ok(Self { output, tensors, calibration, imatrix, memory, device, solves_there, corrects, experts })
    }

    /// The tensors of one layer.
    pub fn of_layer(&self, layer: usize) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors.iter().filter(move |t| t.spec.layer == Some(layer))
    }

    /// Embedding, final norm, head.
    pub fn outside_blocks(&self) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors.iter().filter(|t| t.spec.layer.is_none())
    }

    /// Bytes of all weights in the output.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    /// Number of weights in the output.
    pub fn weights(&self) -> u64 {
        self.tensors.iter().map(|t| t.weights() as u64).sum()
    }

    /// The type of most weights.
    pub fn main_type(&self) -> String {
        let mut weights = BTreeMap::<String, usize>::new();
        for tensor in &self.tensors {
            *weights.entry(tensor.encoding_name()).or_default() += tensor.weights();
        }
        weights.into_iter().max_by_key(|(_, weights)| *weights).map_or_else(String::new, |(name, _)| name)
    }

    /// Average bits per weight, embeddings and head included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / self.weights() as f64
    }
}

fn output(request: &Request) -> Result<Output> {
    match (request.scheme, request.gguf) {
        (Some(Scheme::Gguf(file_type)), true) => Ok(Output::Gguf { file_type: file_type.id }),
        (Some(Scheme::Integer(scheme)), true) => Err(Failure::new(format!(
            "a GGUF file cannot hold `{}`",
            Scheme::Integer(scheme).name()
        ))
        .hint("name the output without .gguf to get a folder of safetensors, or choose a GGUF type such as q4_k_m")),
        (Some(Scheme::Integer(scheme)), false) => Ok(Output::CompressedTensors(scheme)),
        (Some(Scheme::Gguf(file_type)), false) if float_dtype(file_type.default_type).is_some() => Ok(Output::Plain),
        (Some(scheme), false) => Err(Failure::new(format!(
            "a folder of safetensors cannot hold the GGUF type `{}`",
            scheme.name()
        ))
        .hint("let the output's name end in .gguf, or choose integers such as w4a16-g128")),
        (None, true) => Ok(Output::Gguf { file_type: kept_file_type(request.source) }),
        (None, false) => Ok(Output::Plain),
    }
}

/// `general.file_type` of a GGUF that keeps the floats of its source: the type of most matrices.
fn kept_file_type(source: &Source) -> u32 {
    match source.matrix_dtype() {
        Dtype::F16 => 1,
        Dtype::Bf16 => 32,
        _ => 0,
    }
}

/// The type a float tensor of the source keeps in a GGUF file, where vectors and routers are f32.
fn gguf_float(source: &Source, spec: &TensorSpec) -> Dtype {
    if spec.is_matrix() && spec.role != Role::Router { source.float_dtype(spec) } else { Dtype::F32 }
}

fn check_rules(request: &Request) -> Result<()> {
    if request.rules.is_for_gguf()
        && !matches!(request.scheme, Some(Scheme::Gguf(t)) if request.gguf && t.has_codes())
    {
        return Err(Failure::new("--pure, --output-type, --embedding-type, --mix and --no-fallback are about tensor types of GGUF files")
            .hint("name an output that ends in .gguf and a scheme such as q4_k_m, or leave them out"));
    }
    for rule in &request.rules.tensors {
        if !request.source.specs.iter().any(|spec| spec.is_matrix() && rule.matches(spec)) {
            return Err(Failure::new(format!("no matrix of the model matches --tensor '{}'", rule.pattern))
                .hint("attar inspect -v lists the names, Hugging Face's and GGUF's; both are searched"));
        }
    }
    Ok(())
}

/// In a GGUF file the experts of a layer share one tensor for each role, so they share a type.
fn check_stacks(tensors: &[PlannedTensor]) -> Result<()> {
    let mut types = std::collections::HashMap::new();
    for tensor in tensors.iter().filter(|t| t.spec.expert.is_some()) {
        let (name, wanted) = (&tensor.spec.gguf_name, tensor.encoding_name());
        let (first, first_name) = types.entry(name).or_insert_with(|| (wanted.clone(), &tensor.spec.name));
        if *first != wanted {
            return Err(Failure::new(format!(
                "`{first_name}` as {first} and `{}` as {wanted} cannot both stand in `{name}`",
                tensor.spec.name
            ))
            .hint("a GGUF file keeps all experts of a layer in one tensor: let the rule match all of them or none"));
        }
    }
    Ok(())
}

fn plan_tensor(spec: &TensorSpec, request: &Request, output: &Output) -> Result<PlannedTensor> {
    let rule = request.rules.tensors.iter().find(|rule| rule.matches(spec));
    let (treatment, fallback) = match (output, &spec.shape[..]) {
        (Output::Gguf { .. }, _) if spec.role == Role::Router => (Treatment::Float(Dtype::F32), None),
        (Output::Gguf { .. }, [_, row_length]) => gguf_matrix(spec, *row_length, request)?,
        (Output::Gguf { .. }, _) => (Treatment::Float(Dtype::F32), None),
        (Output::Plain, _) => (Treatment::Float(plain_dtype(spec, request, rule)?), None),
        (Output::CompressedTensors(scheme), _) => (folder_matrix(spec, request, *scheme, rule)?, None),
    };
    let bytes = match &treatment {
        Treatment::Float(dtype) => (spec.len() * dtype.block_bytes()) as u64,
        Treatment::Codes(encoding) => encoding.bytes_for(spec.shape[0], spec.shape[1]) as u64,
    };
    let sparse = match request.zeros.and_then(Solver::sparsity) {
        Some(sparsity) if reads_inputs(spec) => {
            // A rule that leaves a matrix unquantized leaves it whole.
            let left = rule.is_some() && matches!(treatment, Treatment::Float(_));
            if !left {
                holds_zeros(spec, sparsity, &treatment)?;
            }
            !left
        }
        _ => false,
    };
    Ok(PlannedTensor { spec: spec.clone(), treatment, bytes, fallback, sparse })
}

/// A matrix of a block whose input is observed.
fn reads_inputs(spec: &TensorSpec) -> bool {
    spec.layer.is_some() && spec.tap.is_some() && spec.role != Role::Router && spec.is_matrix()
}

/// Refuses zeros where rows do not fit their pattern, or the format has no exact 0.
fn holds_zeros(spec: &TensorSpec, sparsity: Sparsity, treatment: &Treatment) -> Result<()> {
    let cols = spec.shape[1];
    if !cols.is_multiple_of(sparsity.together()) {
        return Err(Failure::new(format!("the pattern {sparsity} does not divide its rows of {cols}"))
            .hint("--sparsity 0.5 sets as many weights to 0, anywhere"));
    }
    if let Treatment::Codes(encoding) = treatment
        && !encoding.grid().is_some_and(GridEncoding::has_zero)
    {
        let name = encoding.name();
        return Err(Failure::new(format!("{name} cannot hold zeros: its blocks have minima of their own"))
            .hint("integers such as w4a16-g128, q4_0, q5_0, q6_k, q8_0 and floats can"));
    }
    Ok(())
}

/// Tokens per column from which on drift is corrected unless the user says otherwise: on fewer, what is regressed is mostly noise.
const CORRECTED_FROM: usize = 16;

/// What the pass will need, and whether the model as it was runs beside.
fn correction(
    request: &Request,
    (tensors, calibration): (&[PlannedTensor], Option<CalibrationSize>),
    device: &Device,
) -> Result<(Memory, bool)> {
    let config = &request.source.config;
    let estimate = |twin| memory::estimate(config, tensors, calibration, (0, twin), request.max_memory);
    let unable = match calibration {
        None => Some("nothing is learned from a text"),
        Some(_) if request.solver.reads() != Detail::Gram => Some("the method feeds no errors back"),
        Some(_) if request.zeros.is_some() => Some("weights become 0"),
        Some(_) if config.experts.is_some() => Some("the model has experts"),
        Some(_) if !matches!(device, Device::Cpu) => Some("that is done on the processor only"),
        Some(_) => None,
    };
    match (request.correct, unable) {
        (Correct::On, Some(why)) => {
            Err(Failure::new(format!("drift cannot be corrected: {why}")).hint("leave --correct-drift out"))
        }
        (Correct::On, None) => Ok((estimate(true)?, true)),
        (Correct::Auto, None) => {
            let widest = tensors.iter().filter(|t| reads_inputs(&t.spec)).map(|t| t.spec.shape[1]).max();
            let tokens = calibration.map_or(0, |calibration| calibration.tokens);
            // Never by memory: a budget changes no output.
            let enough = tokens >= CORRECTED_FROM * widest.unwrap_or(0);
            Ok((estimate(enough)?, enough))
        }
        (Correct::Off, _) | (Correct::Auto, Some(_)) => Ok((estimate(false)?, false)),
    }
}

/// Whether the unquantized model runs beside the one that becomes codes, so that each matrix makes up for what those before it have lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Correct {
    /// Where there is text enough.
    #[default]
    Auto,
    /// Yes, or not at all.
    On,
    /// No.
    Off,
}

/// The type llama-quantize would give this matrix, or the user's rule, made to fit the row.
fn gguf_matrix(
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

/// Integers for the matrices of the blocks, everything else as it is.
fn folder_matrix(
    spec: &TensorSpec,
    request: &Request,
    scheme: IntegerScheme,
    rule: Option<&TensorRule>,
) -> Result<Treatment> {
    let kept = Treatment::Float(request.source.float_dtype(spec));
    match rule.map(|rule| rule.wanted.as_str()) {
        Some("float") => return Ok(kept),
        Some(other) => {
            return Err(Failure::new(format!(
                "`{other}` is not a type for single tensors of a compressed-tensors folder"
            ))
            .hint("the one exception a folder can make is REGEX=float, which leaves a matrix unquantized"));
        }
        None => {}
    }
    if !reads_inputs(spec) {
        return Ok(kept);
    }
    let (rows, cols) = (spec.shape[0], spec.shape[1]);
    let IntegerScheme { bits, group_size, symmetric } = scheme;
    if !cols.is_multiple_of(group_size) {
        let fitting = [128, 64, 32, 16, 8].into_iter().find(|g| cols.is_multiple_of(*g));
        let advice = fitting.map_or("leave it unquantized".to_owned(), |g| {
            format!("use groups of {g}, or leave it unquantized")
        });
        return Err(Failure::new(format!("groups of {group_size} do not divide its rows of {cols}"))
            .hint(format!("{advice}: --tensor '{}=float'", spec.role.as_str())));
    }
    if !symmetric && !(rows * usize::from(bits)).is_multiple_of(32) {
        return Err(Failure::new(format!(
            "{rows} zero points of {bits} bits do not fill whole 32-bit words"
        ))
        .hint(format!(
            "use the symmetric scheme, or leave it unquantized: --tensor '{}=float'",
            spec.role.as_str()
        )));
    }
    let scale_dtype = match request.source.float_dtype(spec) {
        Dtype::F16 => ScaleDtype::F16,
        Dtype::Bf16 => ScaleDtype::Bf16,
        _ => ScaleDtype::F32,
    };
    let encoding = if symmetric {
        IntEncoding::symmetric(bits, group_size)
    } else {
        IntEncoding::asymmetric(bits, group_size)
    };
    Ok(Treatment::Codes(Named::Integer(encoding.with_scale(scale_dtype))))
}

/// The float type scales are stored as.
pub fn scale_float(scale: ScaleDtype) -> Dtype {
    match scale {
        ScaleDtype::F16 => Dtype::F16,
        ScaleDtype::Bf16 => Dtype::Bf16,
        ScaleDtype::F32 => Dtype::F32,
    }
}

/// The float type of a plain folder: the rule's or the scheme's for matrices, the source's for everything else.
fn plain_dtype(spec: &TensorSpec, request: &Request, rule: Option<&TensorRule>) -> Result<Dtype> {
    if let Some(rule) = rule.filter(|_| spec.is_matrix()) {
        let named = GgmlType::from_name(&rule.wanted).and_then(float_dtype);
        return named.ok_or_else(|| {
            Failure::new(format!("a plain folder of safetensors cannot hold `{}`", rule.wanted))
                .hint("its types are f32, f16 and bf16")
        });
    }
    Ok(match request.scheme {
        Some(Scheme::Gguf(file_type)) => float_dtype(file_type.default_type).unwrap_or(Dtype::F32),
        _ => request.source.float_dtype(spec),
    })
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

/// The plan as a person reads it: one line per distinct treatment, then the sums.
impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<48} {:>16} {:>12} {:>10}", "tensor", "shape", "type", "size")?;
        for lines::Line { name, shape, encoding, bytes, fallback } in lines::of(&self.tensors) {
            let shape = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
            let mut line = String::new();
            write!(line, "{name:<48} {shape:>16} {encoding:>12} {:>10}", human_bytes(bytes))?;
            if let Some(fallback) = fallback {
                write!(line, "  {fallback}")?;
            }
            writeln!(f, "{line}")?;
        }
        writeln!(
            f,
            "{} weights, {}, {:.3} bits per weight",
            thousands(self.weights()),
            human_bytes(self.bytes()),
            self.bits_per_weight()
        )?;
        if let Some(CalibrationSize { tokens, ctx }) = self.calibration {
            writeln!(f, "calibration: {} tokens in windows of {ctx}", thousands(tokens as u64))?;
            if self.corrects {
                writeln!(
                    f,
                    "drift: the unquantized model runs beside, each matrix makes up for what is lost before it"
                )?;
            }
            if let Some(ExpertNumbers { num_experts, num_experts_per_tok, .. }) = &self.experts {
                let each = thousands((tokens * num_experts_per_tok / num_experts) as u64);
                writeln!(
                    f,
                    "experts: one of {num_experts} in memory at a time, each on some {each} of the tokens"
                )?;
            }
        }
        if let Some(used) = &self.imatrix {
            write!(f, "{used}")?;
        }
        if self.calibration.is_some() {
            write!(f, "{}", device::Lines(&self.device))?;
            if let Device::Cuda(_) = self.device {
                let place = if self.solves_there { "there too" } else { "on the processor" };
                writeln!(f, "codes are chosen {place}")?;
            }
        }
        write!(f, "{}", self.memory)
    }
}
