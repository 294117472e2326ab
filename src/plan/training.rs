//! What a student that learns as a whole holds: its weights with what the optimizer adds to them, its teacher, and what a step
//! keeps for the backward pass.

use std::fmt;

use attar_model::family::QkNorm;
use attar_model::{Keep, ModelConfig, Precision};

use super::CalibrationSize;
use super::machine::available_bytes;
use super::memory::{ALLOCATOR_PART, F32, PROGRAM_BYTES, SHARE};
use crate::diagnostic::{Failure, Result};
use crate::talk::{human_bytes, thousands};

/// Tokens that go through a student together, at most, unless one window is longer.
pub const STEP_TOKENS: usize = 4096;

/// Windows of `ctx` tokens in a step of tuning: a thousand tokens or one window. Many small steps do more than few large ones, since what one has changed the next
/// one sees: of the same tokens, steps of 4,096 bring books-2m as w3a16-g64 to 0.0101, those of 1,024 to 0.0097.
pub fn tuning_windows(ctx: usize) -> usize {
    (1024 / ctx).max(1)
}

/// Tokens whose logits stand at once, at most.
const LOGIT_ROWS: u64 = 512;

/// What a student learns from, as far as memory goes.
#[derive(Clone, Copy, Debug)]
pub enum Teaching<'a> {
    /// A model that runs beside it.
    Online(&'a ModelConfig),
    /// Hidden states of so many features that were kept, with their head.
    Hidden(usize),
    /// So many of the likeliest tokens.
    Likeliest(usize),
}

/// A run, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct TrainingSize<'a> {
    /// What learns.
    pub student: &'a ModelConfig,
    /// What from.
    pub teaching: Teaching<'a>,
    /// Windows of a step.
    pub batch: usize,
    /// Tokens of a window.
    pub ctx: usize,
    /// Tokens of all windows.
    pub data_tokens: usize,
    /// Layers whose residual streams are compared.
    pub streams: usize,
    /// What the factors of products are rounded to.
    pub precision: Precision,
    /// Numbers for each weight that stand beside gradients and moments: one where the student sees its weights as they will be stored, which are put
    /// aside meanwhile.
    pub masters: u64,
}

/// What a run will need, and what it keeps of a step.
#[derive(Clone, Debug)]
pub struct TrainingMemory {
    /// Expected peak, in bytes.
    pub peak_bytes: u64,
    /// What is kept of the forward pass.
    pub keep: Keep,
    /// Bytes of the student's weights.
    weights_bytes: u64,
    /// Bytes of gradients, moments and masters.
    optimizer_bytes: u64,
    /// Bytes of what teaches.
    teacher_bytes: u64,
    /// Tokens that go through the student together.
    tokens: u64,
    /// Bytes of what they leave and what is worked out of it.
    step_bytes: u64,
}

impl TrainingMemory {
    /// Chooses the fastest way that fits into `max_memory`, or into what the machine can well spare.
    ///
    /// # Errors
    /// More memory than allowed even where blocks are computed twice; the hint says how many windows a step would fit, if any.
    pub fn within(size: TrainingSize<'_>, max_memory: Option<u64>) -> Result<Self> {
        Self::fitting(size, max_memory).map_err(|(lean, limit)| lean.too_large(size, limit))
    }

    /// The leanest way and the limit where no way fits.
    fn fitting(size: TrainingSize<'_>, max_memory: Option<u64>) -> std::result::Result<Self, (Self, u64)> {
        let limit = max_memory.or_else(|| available_bytes().map(|bytes| bytes / SHARE)).unwrap_or(u64::MAX);
        let fast = Self::of(size, Keep::Activations);
        let lean = Self::of(size, Keep::Inputs);
        match max_memory {
            _ if fast.peak_bytes <= limit => Ok(fast),
            Some(limit) if lean.peak_bytes > limit => Err((lean, limit)),
            _ => Ok(lean),
        }
    }

    fn of(size: TrainingSize<'_>, keep: Keep) -> Self {
        let TrainingSize { student, teaching, ctx, precision, masters, .. } = size;
        let windows = size.batch.min((STEP_TOKENS / ctx).max(1));
        let tokens = (windows * ctx) as u64;
        let chunk = (1024_usize.next_multiple_of(ctx) as u64).min(tokens);
        let numbers = Numbers::of(student);
        let in_parts = if size.batch > windows { numbers.largest_part } else { 0 };
        let optimizer = (3 + masters) * numbers.weights + in_parts;
        let (teacher, said, asking) = teaching.numbers(student, precision, tokens, ctx);
        let compared = size.streams as u64 * tokens * numbers.hidden;
        let traces = numbers.layers
            * match keep {
                Keep::Activations => tokens * numbers.kept,
                Keep::Inputs => tokens * numbers.hidden,
            };
        let again = if keep == Keep::Inputs { chunk * numbers.kept } else { 0 };
        // Of each number that a product reads two halves in bf16, and of a block's weights too.
        let packed = if precision == Precision::Bf16 { chunk * numbers.worked_on + numbers.block } else { 0 };
        let block = chunk * numbers.worked_on + again + packed;
        let logits = LOGIT_ROWS.min(tokens) * numbers.vocab * 4;
        let learning = 3 * tokens * numbers.hidden + 2 * compared + traces + block.max(logits);
        let step = said + learning.max(asking) + size.data_tokens as u64;
        let held = F32 * (numbers.weights + optimizer + teacher + step);
        Self {
            peak_bytes: PROGRAM_BYTES + held + held / ALLOCATOR_PART,
            keep,
            weights_bytes: F32 * numbers.weights,
            optimizer_bytes: F32 * optimizer,
            teacher_bytes: F32 * teacher,
            tokens,
            step_bytes: F32 * step,
        }
    }

    /// The same of tuning what was chosen of a model, codes among it: beside gradients and moments stand how far each code has gone, the code, what it was, and
    /// what it was when all was best.
    ///
    /// # Errors
    /// More memory than allowed even where blocks are computed twice.
    pub fn tuning(
        config: &ModelConfig,
        CalibrationSize { tokens, ctx }: CalibrationSize,
        precision: Precision,
        max_memory: Option<u64>,
    ) -> Result<Self> {
        let size = TrainingSize {
            student: config,
            teaching: Teaching::Online(config),
            batch: tuning_windows(ctx),
            ctx,
            data_tokens: tokens,
            streams: 0,
            precision,
            masters: 2,
        };
        Self::fitting(size, max_memory).map_err(|(lean, limit)| {
            let [needed, limit] = [lean.peak_bytes, limit].map(human_bytes);
            Failure::new(format!(
                "tuning this model needs about {needed} of memory, and --max-memory is {limit}"
            ))
            .hint("leave --tune-tokens out: what goes block by block takes far less")
        })
    }

    fn too_large(&self, size: TrainingSize<'_>, limit: u64) -> Failure {
        let fits = |batch: &usize| {
            Self::of(TrainingSize { batch: *batch, ..size }, Keep::Inputs).peak_bytes <= limit
        };
        let hint = match (1..size.batch).rev().find(fits) {
            Some(batch) => format!("--batch {batch} fits, or shorter windows by --ctx"),
            None => "the student with its optimizer and what teaches it need this much".to_owned(),
        };
        let (needed, limit) = (human_bytes(self.peak_bytes), human_bytes(limit));
        Failure::new(format!(
            "teaching this student needs about {needed} of memory, and --max-memory is {limit}"
        ))
        .hint(hint)
    }
}

/// The sizes of a model that memory depends on.
struct Numbers {
    weights: u64,
    layers: u64,
    hidden: u64,
    vocab: u64,
    block: u64,        // weights of the largest
    largest_part: u64, // weights whose gradients are made together: a block, or all outside of them
    kept: u64,         // numbers a token leaves in a layer for the backward pass
    worked_on: u64,    // numbers a token takes besides, on the way through a layer and back
}

impl Numbers {
    fn of(config: &ModelConfig) -> Self {
        let mut parts = vec![0; config.num_hidden_layers + 1];
        for spec in config.tensors() {
            parts[spec.layer.map_or(0, |layer| layer + 1)] += spec.len() as u64;
        }
        let [hidden, ffn] = [config.hidden_size, config.intermediate_size].map(|size| size as u64);
        let [query, key] = [config.query_size(), config.key_value_size()].map(|size| size as u64);
        let before_norm = if config.family.qk_norm == QkNorm::Never { 0 } else { query + key };
        Self {
            weights: parts.iter().sum(),
            layers: config.num_hidden_layers as u64,
            hidden,
            vocab: config.vocab_size as u64,
            block: parts[1..].iter().copied().max().unwrap_or(0),
            largest_part: parts.iter().copied().max().unwrap_or(0),
            kept: 2 * (hidden + query + key + ffn) + before_norm,
            worked_on: 2 * (hidden + ffn).max(hidden + query + key),
        }
    }
}

impl Teaching<'_> {
    /// Numbers in f32 that stand all the time, those that tell what it says of `tokens`, and those that finding this out takes.
    fn numbers(
        self,
        student: &ModelConfig,
        precision: Precision,
        tokens: u64,
        ctx: usize,
    ) -> (u64, u64, u64) {
        let vocab = student.vocab_size as u64;
        match self {
            Self::Online(config) => {
                let numbers = Numbers::of(config);
                // Packed but for the rows that are looked up.
                let weights = match precision {
                    Precision::F32 => numbers.weights,
                    Precision::Bf16 => numbers.weights / 2 + vocab * numbers.hidden,
                };
                let at_once = 1024 * rayon::current_num_threads() as u64;
                let passing = at_once.next_multiple_of(ctx as u64).min(tokens) * numbers.worked_on;
                (weights, tokens * numbers.hidden, tokens * numbers.hidden + passing)
            }
            Self::Hidden(size) => (vocab * size as u64, tokens * size as u64, tokens * size as u64),
            Self::Likeliest(count) => (0, tokens * (2 * count as u64 + 2), tokens * (2 * count as u64 + 2)),
        }
    }
}

impl TrainingMemory {
    fn say(&self, f: &mut fmt::Formatter<'_>, what: &str) -> fmt::Result {
        let [weights, optimizer, teacher, step] =
            [self.weights_bytes, self.optimizer_bytes, self.teacher_bytes, self.step_bytes].map(human_bytes);
        writeln!(
            f,
            "{what}: {weights} of weights, {optimizer} of gradients and moments, {teacher} of the teacher, {step} for {} tokens at once",
            thousands(self.tokens)
        )?;
        if self.keep == Keep::Inputs {
            writeln!(f, "blocks are computed twice to save memory")?;
        }
        Ok(())
    }

    /// The lines of a plan that tunes.
    pub(super) fn say_tuning(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.say(f, "tuning")
    }
}

/// The last lines of a plan that teaches.
impl fmt::Display for TrainingMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.say(f, "memory")?;
        write!(f, "expected peak memory of teaching: {}", human_bytes(self.peak_bytes))
    }
}
