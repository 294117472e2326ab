//! What a student that learns block by block holds: one block with its optimizer, and two residual streams.

use std::fmt;

use attar_checkpoint::scratch;
use attar_model::{Keeping, KeptFloat, ModelConfig, Place};

use super::CalibrationSize;
use super::machine::available_bytes;
use super::memory::{ALLOCATOR_PART, F32, PROGRAM_BYTES, SHARE, say_hidden_states};
use super::scoring::scratch_folder;
use crate::diagnostic::{Explain, Failure, Result};
use crate::talk::human_bytes;

/// Tokens that go through a block that learns together, rounded up to whole windows.
pub const PART_TOKENS: usize = 1024;

/// Numbers of a block that learns, for each of its weights: itself, its gradient, two moments, and its factors in bf16 both ways.
const LEARNING: u64 = 5;

/// What a block-local run will need, and where it keeps the streams.
#[derive(Clone, Debug)]
pub struct LocalMemory {
    /// Expected peak, in bytes.
    pub peak_bytes: u64,
    /// Bytes of both streams.
    pub streams_bytes: u64,
    /// How each is kept.
    pub keeping: Keeping,
}

impl LocalMemory {
    /// For so many tokens; the streams go to a temporary file where they do not fit into `max_memory`, or into what the machine can
    /// well spare.
    ///
    /// # Errors
    /// More memory than allowed even so; no disk for a temporary file that is needed, or one too full.
    pub fn within(
        [student, teacher]: [&ModelConfig; 2],
        CalibrationSize { tokens, ctx }: CalibrationSize,
        max_memory: Option<u64>,
    ) -> Result<Self> {
        let part = PART_TOKENS.next_multiple_of(ctx).min(tokens) as u64;
        let passing = [student, teacher].map(|config| block_weights(config) + 2 * part_numbers(config, part));
        let learning = LEARNING * block_weights(student) + 2 * part_numbers(student, part);
        let numbers = passing.into_iter().fold(learning, u64::max);
        let streams_bytes = tokens as u64 * (student.hidden_size + teacher.hidden_size) as u64 * F32;
        let peak = |streams_bytes: u64| {
            let held = numbers * F32 + streams_bytes;
            PROGRAM_BYTES + held + held / ALLOCATOR_PART
        };
        let limit = max_memory.or_else(|| available_bytes().map(|bytes| bytes / SHARE)).unwrap_or(u64::MAX);
        if peak(streams_bytes) <= limit {
            let keeping = Keeping { float: KeptFloat::F32, place: Place::Memory };
            return Ok(Self { peak_bytes: peak(streams_bytes), streams_bytes, keeping });
        }
        if let Some(limit) = max_memory.filter(|&limit| peak(0) > limit) {
            let (needed, limit) = (human_bytes(peak(0)), human_bytes(limit));
            return Err(Failure::new(format!(
                "this needs about {needed} of memory, and --max-memory is {limit}"
            ))
            .hint("a block and its optimizer alone need this much"));
        }
        let folder = scratch_folder()?;
        scratch::check_room(&folder, streams_bytes)
            .doing(|| "while preparing the temporary file for hidden states")?;
        let keeping = Keeping { float: KeptFloat::F32, place: Place::Folder(folder) };
        Ok(Self { peak_bytes: peak(0), streams_bytes, keeping })
    }
}

/// Weights of the largest block.
fn block_weights(config: &ModelConfig) -> u64 {
    let mut blocks = vec![0; config.num_hidden_layers];
    for spec in config.tensors() {
        if let Some(block) = spec.layer.and_then(|layer| blocks.get_mut(layer)) {
            *block += spec.len() as u64;
        }
    }
    blocks.into_iter().max().unwrap_or(0)
}

/// Numbers that so many tokens leave in a block for its backward pass.
fn part_numbers(config: &ModelConfig, tokens: u64) -> u64 {
    let attention = 2 * config.query_size() + 2 * config.key_value_size();
    tokens * (4 * config.hidden_size + attention + 3 * config.intermediate_size) as u64
}

/// The last lines of a plan.
impl fmt::Display for LocalMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        say_hidden_states(f, self.streams_bytes, &self.keeping.place)?;
        write!(f, "expected peak memory of teaching: {}", human_bytes(self.peak_bytes))
    }
}
