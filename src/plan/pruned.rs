//! The plan of a model that keeps the floats of its source and loses some of them.

use attar_checkpoint::Dtype;
use attar_model::{Device, ModelConfig, TensorSpec};

use super::memory::Beside;
use super::{
    CalibrationSize, Equalize, Memory, Output, Plan, PlannedTensor, Treatment, gguf_float, kept_file_type,
    memory,
};
use crate::diagnostic::Result;
use crate::pipeline::stream::Carry;
use crate::source::Source;

/// Gram matrices, parts of them and their factors that stand beside one another while columns are chosen and repaired.
const SQUARES: u64 = 5;

impl Plan {
    /// Every tensor of `config`, a smaller model made of `source`, in the float type that `before` has: its tensor there; what else the
    /// pass holds `beside` it is counted in its memory, in bytes.
    ///
    /// # Errors
    /// More memory than allowed.
    pub fn of_pruned(
        source: &Source,
        config: &ModelConfig,
        before: impl Fn(&TensorSpec) -> Option<TensorSpec>,
        gguf: bool,
        (calibration, beside): (Option<CalibrationSize>, u64),
        max_memory: Option<u64>,
    ) -> Result<Self> {
        let planned = |spec: TensorSpec, old: &TensorSpec| {
            let dtype = if gguf { gguf_float(source, old) } else { source.float_dtype(old) };
            let bytes = (spec.len() * dtype.block_bytes()) as u64;
            PlannedTensor { spec, treatment: Treatment::Float(dtype), bytes, fallback: None, sparse: false }
        };
        let tensors = config.tensors().into_iter().filter_map(|spec| {
            let old = before(&spec)?;
            Some(planned(spec, &old))
        });
        let tensors = tensors.collect();
        let whole: Vec<_> = source.specs.iter().map(|spec| planned(spec.clone(), spec)).collect();
        let memory = pass_memory(source, &whole, (calibration, beside), max_memory)?;
        let output = if gguf { Output::Gguf { file_type: kept_file_type(source) } } else { Output::Plain };
        Ok(Self {
            output,
            tensors,
            calibration,
            imatrix: None,
            memory,
            device: Device::Cpu,
            solves_there: false,
            corrects: false,
            equalize: Equalize::No,
            keeps_codes: false,
            tuning: None,
            experts: config.experts.clone(),
        })
    }

    /// The float type that a tensor is written in.
    pub fn float_of(tensor: &PlannedTensor) -> Dtype {
        tensor.float_in_file().unwrap_or(Dtype::F32)
    }
}

/// What the pass holds: as any pass over whole blocks, nothing carried from one stage to the next, and the squares.
fn pass_memory(
    source: &Source,
    whole: &[PlannedTensor],
    (calibration, beside): (Option<CalibrationSize>, u64),
    max_memory: Option<u64>,
) -> Result<Memory> {
    let config = &source.config;
    let features = config.query_size().max(config.intermediate_size) as u64;
    let squares = if calibration.is_some() { SQUARES * features * features * memory::F32 } else { 0 };
    let mut memory = memory::estimate(
        config,
        whole,
        calibration,
        Beside { bytes: squares + beside, ..Beside::default() },
        max_memory,
    )?;
    memory.carry = Carry { attn_out: false, mlp_mid: false };
    Ok(memory)
}
