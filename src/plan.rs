//! What will happen: every tensor, its type and size, what it takes, and what cannot work, before any work starts.

mod collecting;
mod drift;
mod equalize;
mod kept;
mod lines;
mod local;
mod machine;
mod memory;
mod pruned;
mod scoring;
mod shared;
mod training;
mod types;

use std::fmt::Write as _;

use attar_checkpoint::compressed_tensors::Inputs;
use attar_checkpoint::{Dtype, GgmlType};
use attar_model::device::{Aim, Work};
use attar_model::{Device, ExpertNumbers, Precision, Role, TensorSpec};
use attar_quant::{GridEncoding, Named, Solver, Sparsity};

use crate::device::{self, Computer};
use crate::diagnostic::{Explain, Failure, Result};
use crate::imatrix::{Imatrix, Used};
use crate::layout::{FolderLayout, LAYOUTS};
use crate::scheme::Scheme;
use crate::source::{Source, of_most};
use crate::talk::{human_bytes, thousands};
pub use drift::Correct;
pub use equalize::Equalize;
use kept::Kept;
pub use local::{LocalMemory, PART_TOKENS};
pub(crate) use machine::in_kib;
pub use memory::Memory;
pub use scoring::{ScoringMemory, ScoringSize};
pub use training::{STEP_TOKENS, Teaching, TrainingMemory, TrainingSize, tuning_windows};
pub use types::{Exact, NO_RULES, TensorRule, TypeRules, float_dtype, written_type};

/// What becomes of one tensor.
#[derive(Clone, Debug)]
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
            Treatment::Codes(Named::Folder(encoding)) => encoding.float_dtype(),
            Treatment::Codes(Named::Listed(_)) => None,
        }
    }
}

/// The container to be written.
#[derive(Clone, Debug)]
pub enum Output {
    /// One GGUF file with this `general.file_type`.
    Gguf {
        /// Number of the file type, see [`crate::mix::FileType`].
        file_type: u32,
    },
    /// A folder of safetensors as transformers saves floats.
    Plain,
    /// A folder of safetensors with quantized weights.
    Folder {
        /// How it holds them.
        layout: &'static dyn FolderLayout,
        /// As what.
        scheme: Scheme,
    },
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
#[derive(Clone)]
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
    /// What is done to channels before codes are chosen.
    pub equalize: Equalize,
    /// Whether codes are those of the source.
    pub keeps_codes: bool,
    /// What tuning the whole needs, where that is asked for.
    pub tuning: Option<TrainingMemory>,
    /// The experts some layers' MLPs are made of.
    pub experts: Option<ExpertNumbers>,
}

/// What is asked of a plan.
pub struct Request<'a> {
    /// The model to be compressed.
    pub source: &'a Source,
    /// The number format; none keeps every number as it is.
    pub scheme: Option<Scheme>,
    /// Whether the output is one GGUF file.
    pub gguf: bool,
    /// How a folder holds what is quantized; none takes the first layout that can.
    pub layout: Option<&'static dyn FolderLayout>,
    /// Whether codes that there are stay what they are; the container alone changes.
    pub keeps_codes: bool,
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
    /// What is done to channels before codes are chosen.
    pub equalize: Equalize,
    /// Whether what is chosen is tuned together in the end, by a text that must be there.
    pub tunes: bool,
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
        let kept = request.keeps_codes.then(|| Kept::of(request)).transpose()?;
        let output = kept.as_ref().map_or_else(|| output(request), |kept| Ok(kept.output.clone()))?;
        check_rules(request)?;
        if let Some(imatrix) = request.imatrix {
            imatrix.check(request.source)?;
        }
        let tensors = request
            .source
            .specs
            .iter()
            .map(|spec| {
                plan_tensor(spec, request, &output, kept.as_ref())
                    .doing(|| format!("while planning `{}`", spec.name))
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
            // Channels are equalized on the processor.
            Some(CalibrationSize { tokens, ctx }) if request.equalize == Equalize::No => {
                request.computer.plan(
                    &request.source.config,
                    Work { tokens: tokens as u64, ctx: ctx as u64, aim, precision: request.precision },
                )?
            }
            _ => Device::Cpu,
        };
        let experts = request.source.config.experts.clone();
        let (mut memory, corrects) = drift::correction(request, (&tensors, calibration), &device)?;
        if request.tunes && request.source.config.experts.is_some() {
            return Err(Failure::new("a model with experts cannot be tuned: they have no backward pass")
                .hint("leave --tune-tokens out"));
        }
        let tuning = calibration.filter(|_| request.tunes).map(|calibration| {
            TrainingMemory::tuning(&request.source.config, calibration, request.precision, request.max_memory)
        });
        let tuning = tuning.transpose()?;
        memory.peak_bytes = memory.peak_bytes.max(tuning.as_ref().map_or(0, |tuning| tuning.peak_bytes));
        let is_even = |t: &PlannedTensor| match &t.treatment {
            Treatment::Codes(encoding) => encoding.grid().is_none_or(GridEncoding::is_even),
            Treatment::Float(_) => true,
        };
        let solves_there =
            aim == Aim::Quantize && matches!(device, Device::Cuda(_)) && tensors.iter().all(is_even);
        let imatrix = request.imatrix.map(|imatrix| imatrix.used().clone());
        let equalize = request.equalize;
        Ok(Self {
            output,
            tensors,
            calibration,
            imatrix,
            memory,
            device,
            solves_there,
            corrects,
            equalize,
            keeps_codes: request.keeps_codes,
            tuning,
            experts,
        })
    }

    /// The tensors of one layer.
    pub fn of_layer(&self, layer: usize) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors.iter().filter(move |t| t.spec.layer == Some(layer))
    }

    /// The names of what is loaded first of a layer, if there is such a layer: experts but the first come one by one.
    pub fn first_of(&self, layer: usize) -> Vec<String> {
        let is_first = |t: &&PlannedTensor| t.spec.expert.is_none_or(|expert| expert.index == 0);
        self.of_layer(layer).filter(is_first).map(|t| t.spec.name.clone()).collect()
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

    /// How programs that serve the output round the inputs of its matrices, if they do.
    pub fn inputs(&self) -> Option<Inputs> {
        match self.output {
            Output::Folder { scheme, .. } => scheme.inputs(),
            Output::Gguf { .. } | Output::Plain => None,
        }
    }

    /// The type of most weights.
    pub fn main_type(&self) -> String {
        of_most(self.tensors.iter().map(|t| (t.encoding_name(), t.weights()))).unwrap_or_default()
    }

    /// Average bits per weight, embeddings and head included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / self.weights() as f64
    }
}

fn output(request: &Request) -> Result<Output> {
    let Some(scheme) = request.scheme else {
        return Ok(if request.gguf {
            Output::Gguf { file_type: kept_file_type(request.source) }
        } else {
            Output::Plain
        });
    };
    match (scheme, request.gguf) {
        (Scheme::Gguf(file_type), true) => return Ok(Output::Gguf { file_type: file_type.id }),
        (Scheme::Gguf(file_type), false) if float_dtype(file_type.default_type).is_some() => return Ok(Output::Plain),
        (_, true) => return Err(Failure::new(format!(
            "a GGUF file cannot hold `{}`",
            scheme.name()
        ))
        .hint("name the output without .gguf to get a folder of safetensors, or choose a GGUF type such as q4_k_m")),
        (_, false) => {}
    }
    let scheme = scheme.in_folder();
    let layout = request.layout.or_else(|| LAYOUTS.iter().copied().find(|layout| layout.holds(scheme)));
    let layout = layout.ok_or_else(|| {
        Failure::new(format!("a folder of safetensors cannot hold the GGUF type `{}`", scheme.name()))
            .hint("let the output's name end in .gguf, or choose integers such as w4a16-g128")
    })?;
    Ok(Output::Folder { layout, scheme })
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

fn plan_tensor(
    spec: &TensorSpec,
    request: &Request,
    output: &Output,
    kept: Option<&Kept>,
) -> Result<PlannedTensor> {
    let rule = request.rules.tensors.iter().find(|rule| rule.matches(spec));
    let held = kept.and_then(|kept| kept.encodings.get(&spec.name)).cloned();
    let (treatment, fallback) = match (held, output, &spec.shape[..]) {
        (Some(held), ..) => (Treatment::Codes(held), None),
        (None, Output::Gguf { .. }, _) if spec.role == Role::Router => (Treatment::Float(Dtype::F32), None),
        (None, Output::Gguf { .. }, [_, row_length]) => types::gguf_matrix(spec, *row_length, request)?,
        (None, Output::Gguf { .. }, _) => (Treatment::Float(Dtype::F32), None),
        (None, Output::Plain, _) => (Treatment::Float(plain_dtype(spec, request, rule)?), None),
        (None, Output::Folder { .. }, _) if kept.is_some() => {
            (Treatment::Float(request.source.float_dtype(spec)), None)
        }
        (None, Output::Folder { layout, scheme }, _) => {
            (folder_matrix(spec, request, (*layout, *scheme), rule)?, None)
        }
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

/// Codes for the matrices of the blocks, everything else as it is.
fn folder_matrix(
    spec: &TensorSpec,
    request: &Request,
    (layout, scheme): (&dyn FolderLayout, Scheme),
    rule: Option<&TensorRule>,
) -> Result<Treatment> {
    let float = request.source.float_dtype(spec);
    let kept = Treatment::Float(float);
    match rule.map(|rule| rule.wanted.as_str()) {
        Some("float") => return Ok(kept),
        Some(other) => {
            return Err(Failure::new(format!(
                "`{other}` is not a type for single tensors of a {} folder",
                layout.name()
            ))
            .hint("the one exception a folder can make is REGEX=float, which leaves a matrix unquantized"));
        }
        None => {}
    }
    if !reads_inputs(spec) {
        return Ok(kept);
    }
    Ok(Treatment::Codes(layout.encoding(scheme, spec, float)?))
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
            if self.equalize == Equalize::Activations {
                writeln!(f, "channels: equalized block by block, by how large their inputs are")?;
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
                let place = if self.solves_there {
                    "there too, without what --device cpu takes longer for and loses less by: drift corrected, scales fitted once more"
                } else {
                    "on the processor"
                };
                writeln!(f, "codes are chosen {place}")?;
            }
        }
        if let Some(tuning) = &self.tuning {
            tuning.say_tuning(f)?;
        }
        write!(f, "{}", self.memory)
    }
}
