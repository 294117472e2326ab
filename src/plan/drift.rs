//! Whether the unquantized model runs beside the one that becomes codes.

use attar_model::Device;
use attar_quant::Detail;
use clap::ValueEnum;
use serde::Deserialize;

use super::memory::Beside;
use super::{CalibrationSize, Equalize, Memory, PlannedTensor, Request, memory, reads_inputs};
use crate::diagnostic::{Failure, Result};

/// Tokens per column from which on drift is corrected unless the user says otherwise: on fewer, what is regressed is mostly noise.
const CORRECTED_FROM: usize = 16;

/// What the pass will need, and whether the model as it was runs beside.
pub(super) fn correction(
    request: &Request,
    (tensors, calibration): (&[PlannedTensor], Option<CalibrationSize>),
    device: &Device,
) -> Result<(Memory, bool)> {
    let config = &request.source.config;
    let estimate = |twin| {
        let beside = Beside { twin, scout: request.equalize != Equalize::No, ..Beside::default() };
        memory::estimate(config, tensors, calibration, beside, request.max_memory)
    };
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
