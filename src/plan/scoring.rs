//! What scoring a model will hold in memory at its peak: a block and a part of the text, then heads and logits; beside
//! both the hidden states. Never the model.

use std::fmt;

use attar_checkpoint::scratch;
use attar_eval::Budget;
use attar_model::device::{Aim, Work as DeviceWork};
use attar_model::{Keeping, KeptFloat, ModelConfig, Place, Precision, Streaming};

use super::machine::available_bytes;
use super::memory::{F32, PROGRAM_BYTES, SHARE, say_hidden_states};
use crate::device::{self, Computer};
use crate::diagnostic::{Failure, Result};
use crate::talk::human_bytes;

/// A text to be scored, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct ScoringSize {
    /// Its tokens.
    pub tokens: usize,
    /// Tokens of a window.
    pub ctx: usize,
    /// Tokens that count.
    pub scored: usize,
    /// Models whose hidden states are held at once: the one that is scored, and a reference unless it was run before.
    pub models: usize,
    /// Models whose logits stand side by side: the one that is scored, and any reference.
    pub heads: usize,
}

/// What scoring will need, and how it keeps within that.
#[derive(Clone, Debug)]
pub struct ScoringMemory {
    /// How models are run over the text.
    pub streaming: Streaming,
    /// Memory for heads and logits.
    pub budget: Budget,
    /// Bytes of the hidden states.
    pub hidden_bytes: u64,
    /// Expected peak, in bytes.
    pub peak_bytes: u64,
}

impl ScoringMemory {
    /// Chooses the fastest way that fits into `max_memory`, or into what the machine can well spare.
    ///
    /// # Errors
    /// More memory than allowed even at the leanest; no disk for a temporary file that is needed.
    pub fn plan(
        config: &ModelConfig,
        size: ScoringSize,
        precision: Precision,
        max_memory: Option<u64>,
        computer: &Computer,
    ) -> Result<Self> {
        let work = Work::new(config, size);
        let limit = max_memory.or_else(|| available_bytes().map(|bytes| bytes / SHARE)).unwrap_or(u64::MAX);
        let peak = |way| work.peak(way, work.budget(way, max_memory));
        let [.., leanest] = WAYS;
        let fitting = WAYS.into_iter().find(|way| peak(*way) <= limit);
        let way = match (fitting, max_memory) {
            (Some(way), _) => way,
            (None, None) => leanest,
            (None, Some(limit)) => {
                let (needed, limit) = (human_bytes(peak(leanest)), human_bytes(limit));
                return Err(Failure::new(format!(
                    "scoring this model needs about {needed} of memory, and --max-memory is {limit}"
                ))
                .hint(
                    "a block of it and one window of the text need this much; a smaller --ctx needs less",
                ));
            }
        };
        let place = if way.spilled { Place::Folder(scratch_folder()?) } else { Place::Memory };
        let streaming = Streaming {
            precision,
            keeping: Keeping { float: KeptFloat::F32, place },
            tokens_at_once: way.window_by_window.then_some(size.ctx),
            device: computer.plan(
                config,
                DeviceWork {
                    tokens: size.tokens as u64,
                    ctx: size.ctx as u64,
                    aim: Aim::Evaluate { heads: size.heads as u64 },
                    precision,
                },
            )?,
        };
        let budget = work.budget(way, max_memory);
        Ok(Self { streaming, budget, hidden_bytes: work.hidden, peak_bytes: peak(way) })
    }
}

/// A folder on a disk for the hidden states.
///
/// # Errors
/// There is none.
pub(super) fn scratch_folder() -> Result<std::path::PathBuf> {
    scratch::default_folder().ok_or_else(|| {
        Failure::new(
            "the hidden states do not fit into memory, and the folders for temporary files lie in memory too",
        )
        .hint("set TMPDIR to a folder on a disk")
    })
}

/// The ways to run, the fastest first.
const WAYS: [Way; 3] = [
    Way { spilled: false, window_by_window: false },
    Way { spilled: false, window_by_window: true },
    Way { spilled: true, window_by_window: true },
];

#[derive(Clone, Copy)]
struct Way {
    spilled: bool,
    window_by_window: bool,
}

/// Numbers a token takes for each expert it goes to, when it is routed and in the expert's share.
const ROUTED: usize = 10;

/// Bytes of what stands in memory.
struct Work {
    block: u64,     // with all experts
    per_token: u64, // between two steps of a block
    tokens: u64,
    ctx: u64,
    hidden: u64, // of all models
    head: [usize; 2],
    models: usize,
}

impl Work {
    fn new(config: &ModelConfig, size: ScoringSize) -> Self {
        let tensors = config.tensors();
        let layers = 0..config.num_hidden_layers;
        let of_layer = |layer| tensors.iter().filter(move |spec| spec.layer == Some(layer));
        let block = layers.map(|layer| of_layer(layer).map(|spec| spec.len() as u64).sum::<u64>()).max();
        let largest = tensors.iter().filter(|spec| spec.layer.is_some()).map(|spec| spec.len() as u64).max();
        let (hidden, ffn) = (config.hidden_size as u64, config.intermediate_size as u64);
        let attention = 2 * (config.query_size() + config.key_value_size()) as u64;
        // Of experts one works at a time, perhaps on all tokens, gathered for it.
        let experts = config.experts.as_ref().map_or(0, |experts| {
            let routed = experts.num_experts + ROUTED * experts.num_experts_per_tok;
            2 * hidden + (2 * experts.moe_intermediate_size + routed) as u64
        });
        let held = size.tokens + (size.models - 1) * size.scored;
        Self {
            // A matrix stands twice while it is decoded, turned or packed.
            block: F32 * (block.unwrap_or(0) + largest.unwrap_or(0)),
            per_token: F32 * (2 * hidden + attention.max(2 * ffn).max(experts)),
            tokens: size.tokens as u64,
            ctx: size.ctx as u64,
            hidden: F32 * hidden * held as u64,
            head: [config.vocab_size, config.hidden_size],
            models: size.models,
        }
    }

    fn kept(&self, way: Way) -> u64 {
        PROGRAM_BYTES + if way.spilled { 0 } else { self.hidden }
    }

    /// What a limit leaves to heads and logits, once the blocks are done.
    fn budget(&self, way: Way, limit: Option<u64>) -> Budget {
        limit.map(|limit| Budget::of(limit.saturating_sub(self.kept(way)))).unwrap_or_default()
    }

    fn peak(&self, way: Way, budget: Budget) -> u64 {
        let together = if way.window_by_window {
            self.ctx
        } else {
            (1024 * rayon::current_num_threads() as u64).max(self.ctx).min(self.tokens)
        };
        let [vocab_size, hidden_size] = self.head;
        let logits = budget.portion(vocab_size, hidden_size, self.models).bytes();
        self.kept(way) + (self.block + together * self.per_token).max(logits)
    }
}

/// The last lines of a plan.
impl fmt::Display for ScoringMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", device::Lines(&self.streaming.device))?;
        say_hidden_states(f, self.hidden_bytes, &self.streaming.keeping.place)?;
        write!(f, "expected peak memory: {}", human_bytes(self.peak_bytes))
    }
}
