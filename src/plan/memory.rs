//! What a pass will hold in memory at its peak: one block, its statistics, the hidden states. Never the model.

use attar_model::ModelConfig;

use super::{CalibrationSize, Memory, PlannedTensor};
use crate::diagnostic::{Failure, Result};
use crate::pipeline::stream::CHUNK_TOKENS;
use crate::source::CHUNK_WEIGHTS;
use crate::talk::human_bytes;

const F32: u64 = 4;

/// Matrices of the size of the rows being solved that a solver holds at once: the weights and what is left of them, errors,
/// their product with the Hessian, what two sets of codes decode to, and the codes.
const SOLVER_COPIES: u64 = 8;

/// The program itself, its tokenizer, and what the allocator keeps back.
const PROGRAM_BYTES: u64 = 64 << 20;

/// Below this the peak is no matter, and speed counts.
const SMALL_BYTES: u64 = 1 << 30;

/// Estimates the peak, and whether keeping the down projection's input fits into `max_memory`.
///
/// # Errors
/// More memory than allowed even at the leanest.
pub fn estimate(
    config: &ModelConfig,
    tensors: &[PlannedTensor],
    calibration: Option<CalibrationSize>,
    max_memory: Option<u64>,
) -> Result<Memory> {
    let lean = peak(config, tensors, calibration, false);
    let roomy = peak(config, tensors, calibration, true);
    let limit = match max_memory {
        Some(limit) => limit,
        // Keeping it is a third less work, but not worth a surprise on a small machine.
        None => SMALL_BYTES.max(lean + lean / 4),
    };
    if max_memory.is_some() && lean > limit {
        return Err(Failure::new(format!(
            "this needs about {} of memory, and --max-memory is {}",
            human_bytes(lean),
            human_bytes(limit)
        ))
        .hint(match calibration {
            Some(_) => "calibrate on fewer tokens (--calib-tokens), or with --method rtn, which needs no hidden states",
            None => "the largest matrix alone needs this much",
        }));
    }
    let keep_mlp_mid = roomy <= limit;
    Ok(Memory { peak_bytes: if keep_mlp_mid { roomy } else { lean }, keep_mlp_mid })
}

fn peak(
    config: &ModelConfig,
    tensors: &[PlannedTensor],
    calibration: Option<CalibrationSize>,
    keep_mlp_mid: bool,
) -> u64 {
    let weights = |t: &PlannedTensor| t.weights() as u64;
    let part = (CHUNK_WEIGHTS as u64).min(tensors.iter().map(weights).max().unwrap_or(0));
    let solving = SOLVER_COPIES * part * F32;
    let Some(CalibrationSize { tokens, ctx }) = calibration else { return PROGRAM_BYTES + solving };
    let (tokens, ctx) = (tokens as u64, ctx as u64);
    let (hidden, ffn) = (config.hidden_size as u64, config.intermediate_size as u64);
    let (query, key_value) = (config.query_size() as u64, config.key_value_size() as u64);
    let chunk = (CHUNK_TOKENS as u64).max(ctx).min(tokens);
    let of_block = || tensors.iter().filter(|t| t.spec.layer == Some(0));
    let block: u64 = of_block().map(weights).sum();
    // A matrix of several parts is put together while it is solved, and taken apart while it is loaded.
    let fused = of_block().filter(|t| t.spec.role.parts().len() > 1).map(weights).max().unwrap_or(0);
    // Each stage: the features whose statistics it takes, what it carries per token, what it computes per token.
    let stages = [
        (hidden, 0, hidden),
        (query, query, 2 * (hidden + query + key_value)),
        (hidden, query, hidden),
        (ffn, if keep_mlp_mid { ffn } else { 0 }, hidden + 3 * ffn),
    ];
    let stage = |(features, carried, computed): (u64, u64, u64)| {
        let square = features * features * F32;
        // Beside the Gram matrix stand activations, then its factor in f64 and f32, then that in f32 and a solver's work.
        tokens * carried * F32 + square + (chunk * computed * F32).max(3 * square).max(square + solving)
    };
    PROGRAM_BYTES
        + tokens * hidden * F32
        + (block + fused) * F32
        + stages.map(stage).into_iter().max().unwrap_or(0)
}
