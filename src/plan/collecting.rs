//! The plan of a text that runs through a model as it is, to see what its matrices read.

use attar_model::device::{Aim, Work};
use attar_model::{Precision, TensorSpec};

use super::memory::Beside;
use super::{CalibrationSize, Equalize, Output, Plan, PlannedTensor, Treatment, memory};
use crate::device::Computer;
use crate::diagnostic::Result;
use crate::source::Source;

impl Plan {
    /// For so many tokens of `source`, nothing of which is written.
    ///
    /// # Errors
    /// More memory than allowed, here or on a device that was named.
    pub fn of_collecting(
        source: &Source,
        CalibrationSize { tokens, ctx }: CalibrationSize,
        precision: Precision,
        computer: &Computer,
        max_memory: Option<u64>,
    ) -> Result<Self> {
        let config = &source.config;
        let calibration = Some(CalibrationSize { tokens, ctx });
        let planned = |spec: &TensorSpec| PlannedTensor {
            spec: spec.clone(),
            treatment: Treatment::Float(source.float_dtype(spec)),
            bytes: source.stored_bytes(spec),
            fallback: None,
            sparse: false,
        };
        let tensors: Vec<_> = source.specs.iter().map(planned).collect();
        let memory = memory::estimate(config, &tensors, calibration, Beside::default(), max_memory)?;
        let work = Work { tokens: tokens as u64, ctx: ctx as u64, aim: Aim::Observe, precision };
        Ok(Self {
            output: Output::Plain,
            tensors,
            calibration,
            imatrix: None,
            memory,
            device: computer.plan(config, work)?,
            solves_there: false,
            corrects: false,
            equalize: Equalize::No,
            keeps_codes: false,
            tuning: None,
            experts: config.experts.clone(),
        })
    }
}
