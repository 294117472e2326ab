//! What a pass will hold in memory at its peak: one block, its statistics, the hidden states. Never the model.

use attar_model::ModelConfig;

use super::{CalibrationSize, Memory, PlannedTensor, Treatment};
use crate::diagnostic::{Failure, Result};
use crate::pipeline::stream::CHUNK_TOKENS;
use crate::talk::human_bytes;

const F32: u64 = 4;

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
    let Some(limit) = max_memory else {
        // Keeping it is a third less work, but not worth a surprise on a small machine.
        let keep_mlp_mid = roomy < 2 * lean;
        return Ok(Memory { peak_bytes: if keep_mlp_mid { roomy } else { lean }, keep_mlp_mid });
    };
    if lean > limit {
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
    let coded = || tensors.iter().filter(|t| matches!(t.treatment, Treatment::Codes(_)));
    // A matrix being quantized: itself, its working copy, the decoded result, its codes.
    let largest_solve = coded().map(weights).max().unwrap_or(0) * (3 * F32 + 1);
    let largest_read = tensors.iter().map(weights).max().unwrap_or(0) * F32;
    let Some(CalibrationSize { tokens, .. }) = calibration else {
        return largest_solve.max(largest_read);
    };
    let (tokens, hidden, ffn) = (tokens as u64, config.hidden_size as u64, config.intermediate_size as u64);
    let query = (config.num_attention_heads * config.head_dim) as u64;
    let block: u64 = tensors.iter().filter(|t| t.spec.layer == Some(0)).map(weights).sum();
    let widest = coded().filter(|t| t.spec.tap.is_some()).map(|t| t.spec.shape[1] as u64).max().unwrap_or(0);
    // The Gram matrix and, in f64, its factor with one working copy.
    let statistics = widest * widest * (F32 + 2 * 8);
    let carried = tokens * if keep_mlp_mid { query.max(ffn) } else { query };
    let chunk = (CHUNK_TOKENS as u64).min(tokens) * (2 * hidden + 3 * ffn);
    let in_blocks = (tokens * hidden + carried + chunk + block) * F32 + statistics + largest_solve;
    in_blocks.max(tokens * hidden * F32 + largest_read + largest_solve)
}
