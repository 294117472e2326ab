//! How a model's blocks fit a device: what each stage needs, how many windows go at once, what stays on the host.
//!
//! Pure arithmetic, in bytes; nothing is asked of a device.

mod training;

pub use training::{Course, Teaching, TrainingPlan, WholeModel};

use super::{CudaError, Width};
use crate::Precision;

/// The sizes of a decoder that its memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Features of the hidden states.
    pub hidden_size: u64,
    /// Features inside the MLP.
    pub intermediate_size: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Features of a head.
    pub head_dim: u64,
    /// Tokens there are.
    pub vocab_size: u64,
}

/// What is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Tokens that pass through every block, whole windows.
    pub tokens: u64,
    /// Tokens of a window.
    pub ctx: u64,
    /// What is done on the way.
    pub aim: Aim,
    /// What matrices and activations are stored in.
    pub precision: Precision,
}

/// What is done with the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Forward alone, and losses.
    Evaluate {
        /// Models whose logits stand side by side: 2 where one is compared with another.
        heads: u64,
    },
    /// Statistics of every input; what is made of them is made on the host.
    Observe,
    /// Statistics of every input, and error feedback.
    Quantize,
}

impl Aim {
    fn observes(self) -> bool {
        matches!(self, Self::Observe | Self::Quantize)
    }
}

/// Where the hidden states of all tokens stay between blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the device.
    Device,
    /// On the host; windows come and go with each block.
    Host,
}

/// One stage and what stands on the device during it, everything included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Which.
    pub name: &'static str,
    /// What it needs.
    pub bytes: u64,
}

/// How the work is done within a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlan {
    /// Windows that pass through a block at once.
    pub windows_at_once: u64,
    /// Tokens whose logits stand at once.
    pub logits_at_once: u64,
    /// Where hidden states stay.
    pub hidden: Place,
    /// Bytes for what one stage of a block leaves to the next, the inputs of o and of down; 0 where that is computed twice, or
    /// nothing is observed.
    pub carried_bytes: u64,
    /// How Hessians are factored.
    pub width: Width,
    /// Every stage, in order.
    pub stages: Vec<Stage>,
}

const F32: u64 = 4;
const F64: u64 = 8;
/// Kernels, and room for the libraries to work in.
const OVERHEAD: u64 = 512 << 20;
/// More tokens at once than this make no product faster.
const MOST_TOKENS_AT_ONCE: u64 = 1 << 15;
/// More logits at once than this make no product faster.
const MOST_LOGITS_AT_ONCE: u64 = 1 << 12;

impl ModelShape {
    fn queries(self) -> u64 {
        self.heads * self.head_dim
    }

    fn keys(self) -> u64 {
        self.kv_heads * self.head_dim
    }

    /// Bytes of one block's weights.
    pub fn block_bytes(self, precision: Precision) -> u64 {
        let attention = self.hidden_size * (2 * self.queries() + 2 * self.keys());
        let mlp = 3 * self.hidden_size * self.intermediate_size;
        element_bytes(precision) * (attention + mlp) + F32 * (4 * self.hidden_size + 2 * self.head_dim)
    }
}

/// Bytes of one number of a matrix or an activation.
fn element_bytes(precision: Precision) -> u64 {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}

/// The choices of a plan, from which all else follows.
#[derive(Debug, Clone, Copy)]
struct Choice {
    windows: u64,
    logits: u64,
    hidden: Place,
    width: Width,
    carried_bytes: u64,
}

fn stages(shape: ModelShape, work: Work, choice: Choice) -> Vec<Stage> {
    let ModelShape { hidden_size: d, intermediate_size: ff, vocab_size, .. } = shape;
    let (q, kv, element) = (shape.queries(), shape.keys(), element_bytes(work.precision));
    let tokens = (choice.windows * work.ctx).min(work.tokens);
    let hidden = match choice.hidden {
        Place::Device => element * d * work.tokens,
        Place::Host => 2 * element * d * tokens,
    };
    // The block at work and the one on its way.
    let standing = OVERHEAD + hidden + 2 * shape.block_bytes(work.precision) + choice.carried_bytes;
    let gram = |n: u64| if work.aim.observes() { F32 * n * n } else { 0 };
    let stage = |name, bytes| Stage { name, bytes: standing + bytes };
    let mut stages = vec![
        stage("attention", gram(d) + gram(q) + element * tokens * (d + 2 * q + 2 * kv)),
        stage("mlp", gram(d) + gram(ff) + element * tokens * (d + 2 * ff)),
    ];
    if work.aim == Aim::Quantize {
        let solve = |out_features, in_features| solve_bytes(out_features, in_features, choice.width);
        stages.push(stage("solve q, k, v", solve(q, d)));
        stages.push(stage("solve o", solve(d, q)));
        stages.push(stage("solve gate, up", solve(ff, d)));
        stages.push(stage("solve down", solve(d, ff)));
    }
    let head = match work.aim {
        // The scored tokens' hidden states have gone to the host.
        Aim::Evaluate { heads } => {
            heads * (element * d * vocab_size + choice.logits * (F32 * vocab_size + element * d))
        }
        Aim::Observe | Aim::Quantize => hidden + gram(d) + element * tokens * d,
    };
    stages.push(Stage { name: "head", bytes: OVERHEAD + head });
    stages
}

/// Factoring a Hessian, or the work on a weight, whichever needs more; the Gram matrix stands during both.
fn solve_bytes(out_features: u64, in_features: u64, width: Width) -> u64 {
    let wide = match width {
        Width::F64 => F64,
        Width::F32 => F32,
    };
    let square = in_features * in_features;
    let weight = out_features * in_features;
    // The Gram matrix and its two halves; two grids, of which the finest formats have a triple for 16 columns, and two sets of codes.
    let grids = 2 * (3 * F32 * out_features * in_features.div_ceil(16) + weight);
    let standing = 2 * F32 * square + F32 * weight + grids;
    // A sixteenth of the matrix: room for the libraries to work in.
    let factor = (wide + F32) * square + wide * square / 16;
    // A span of columns of the weight, and its two halves.
    let span = 2 * F32 * 1024 * out_features;
    // The factor and its two halves, and of the weight what is left of it.
    let pass = 2 * F32 * square + F32 * weight + span;
    // The factor, the weight's errors and what pulls at it.
    let descent = F32 * square + 2 * F32 * weight + span;
    let energy = F32 * square + 2 * F32 * weight + span;
    standing + factor.max(pass).max(descent).max(energy)
}

/// What one stage of a block leaves to the next, of all tokens: the larger of the inputs of o and of down.
fn carried_bytes(shape: ModelShape, work: Work) -> u64 {
    let features = shape.queries().max(shape.intermediate_size);
    if work.aim.observes() { element_bytes(work.precision) * features * work.tokens } else { 0 }
}

/// The largest power of two, at most `most`, at which `fits`; none where even 1 does not.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
    let mut found = fits(1).then_some(1)?;
    while 2 * found <= most && fits(2 * found) {
        found *= 2;
    }
    Some(found)
}

impl DevicePlan {
    /// The best plan within `limit_bytes`: hidden states on the device where they fit, Hessians in f64 where they fit, then as many
    /// tokens at once as fit and help, then nothing computed twice where that fits too.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`] with the stage that does not fit even one window at a time, and what would.
    ///
    /// # Panics
    /// If the tokens are not whole windows.
    pub fn within(limit_bytes: u64, shape: ModelShape, work: Work) -> Result<Self, CudaError> {
        assert!(
            work.ctx > 0 && work.tokens.is_multiple_of(work.ctx),
            "{} tokens in windows of {}",
            work.tokens,
            work.ctx
        );
        let most_windows = (work.tokens / work.ctx).min(MOST_TOKENS_AT_ONCE / work.ctx).max(1);
        let fits =
            |choice: Choice| stages(shape, work, choice).iter().all(|stage| stage.bytes <= limit_bytes);
        let choices = [Width::F64, Width::F32].into_iter();
        let choices = choices.flat_map(|width| [Place::Device, Place::Host].map(|hidden| (width, hidden)));
        for (width, hidden) in choices {
            let fits_with = |windows, logits| {
                let choice = Choice { windows, logits, hidden, width, carried_bytes: 0 };
                fits(choice)
            };
            let Some(windows) = largest(most_windows, |windows| fits_with(windows, 1)) else { continue };
            let logits =
                largest(MOST_LOGITS_AT_ONCE.min(work.tokens.max(1)), |logits| fits_with(windows, logits));
            let Some(logits) = logits else { continue };
            let twice = Choice { windows, logits, hidden, width, carried_bytes: 0 };
            let once = Choice { carried_bytes: carried_bytes(shape, work), ..twice };
            let choice = if fits(once) { once } else { twice };
            let (carried_bytes, stages) = (choice.carried_bytes, stages(shape, work, choice));
            let (windows_at_once, logits_at_once) = (windows, logits);
            return Ok(Self { windows_at_once, logits_at_once, hidden, carried_bytes, width, stages });
        }
        Err(too_little(limit_bytes, shape, work))
    }

    /// The most that stands on the device at once.
    pub fn peak_bytes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.bytes).max().unwrap_or(0)
    }
}

fn too_little(limit_bytes: u64, shape: ModelShape, work: Work) -> CudaError {
    let choice = Choice { windows: 1, logits: 1, hidden: Place::Host, width: Width::F32, carried_bytes: 0 };
    let least = |work| stages(shape, work, choice);
    let largest = |work| least(work).into_iter().max_by_key(|stage| stage.bytes);
    let (name, needed_bytes) = largest(work).map_or(("nothing", 0), |stage| (stage.name, stage.bytes));
    // Shorter windows are what the user can change; whole ones, so by halves.
    let shorter =
        std::iter::successors(Some(work.ctx / 2), |ctx| Some(ctx / 2)).take_while(|&ctx| ctx >= 128);
    let fitting = shorter.into_iter().find(|&ctx| {
        let work = Work { ctx, tokens: work.tokens, ..work };
        largest(work).is_some_and(|stage| stage.bytes <= limit_bytes)
    });
    let gigabytes = needed_bytes.div_ceil(100_000_000) as f64 / 10.0;
    let fits = match fitting {
        Some(ctx) => format!("--ctx {ctx} fits; for --ctx {} the device needs {gigabytes} GB", work.ctx),
        None => {
            format!("this model needs a device with {gigabytes} GB, whatever the window; --device cpu works")
        }
    };
    CudaError::TooLittleMemory {
        what: format!("the stage `{name}`, one window of {} tokens at a time,", work.ctx),
        needed_bytes,
        free_bytes: limit_bytes,
        fits: Some(fits),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SMALL: ModelShape = ModelShape {
        hidden_size: 4096,
        intermediate_size: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab_size: 128_256,
    };
    const LARGE: ModelShape = ModelShape { hidden_size: 8192, intermediate_size: 28_672, heads: 64, ..SMALL };
    const GB: u64 = 1_000_000_000;

    impl Work {
        fn heads(self) -> u64 {
            match self.aim {
                Aim::Evaluate { heads } => heads,
                Aim::Observe | Aim::Quantize => 0,
            }
        }
    }

    fn quantize(windows: u64) -> Work {
        Work { tokens: windows * 2048, ctx: 2048, aim: Aim::Quantize, precision: Precision::Bf16 }
    }

    #[test]
    fn a_block_of_70b_parameters_has_the_bytes_of_its_weights() {
        assert_eq!(
            LARGE.block_bytes(Precision::Bf16),
            2 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28_672) + 4 * (4 * 8192 + 256)
        );
    }

    #[test]
    fn a_70b_model_is_quantized_within_141_gb_with_its_hidden_states_on_the_device() {
        let plan = DevicePlan::within(141 * GB, LARGE, quantize(512)).unwrap();
        assert_eq!((plan.hidden, plan.width, plan.windows_at_once), (Place::Device, Width::F64, 16));
        assert!(plan.peak_bytes() <= 141 * GB);
    }

    #[test]
    fn a_70b_model_is_quantized_within_24_gb() {
        let plan = DevicePlan::within(24 * GB, LARGE, quantize(128)).unwrap();
        assert!(plan.peak_bytes() <= 24 * GB, "{plan:?}");
        assert!(plan.windows_at_once * 2048 >= 8192, "too few tokens at once to multiply fast: {plan:?}");
        let plan = DevicePlan::within(24 * GB, LARGE, quantize(512)).unwrap();
        assert_eq!(plan.hidden, Place::Host, "17 GB of hidden states leave no room");
        assert!(plan.peak_bytes() <= 24 * GB, "{plan:?}");
    }

    #[test]
    fn more_memory_never_makes_a_worse_plan() {
        let rank = |plan: &DevicePlan| {
            let carries = plan.carried_bytes > 0;
            (plan.width == Width::F64, plan.hidden == Place::Device, plan.windows_at_once, carries)
        };
        for shape in [SMALL, LARGE] {
            let plans = (4..200).filter_map(|gb| DevicePlan::within(gb * GB, shape, quantize(128)).ok());
            let ranks: Vec<_> = plans.map(|plan| rank(&plan)).collect();
            assert!(ranks.is_sorted(), "{ranks:?}");
            assert_eq!(ranks.last(), Some(&(true, true, 16, true)));
        }
    }

    #[test]
    fn no_plan_passes_its_limit_and_each_is_as_large_as_it_can_be() {
        for gb in 3..150 {
            let Ok(plan) = DevicePlan::within(gb * GB, SMALL, quantize(64)) else { continue };
            assert!(plan.peak_bytes() <= gb * GB, "{gb} GB: {plan:?}");
            let DevicePlan { windows_at_once, logits_at_once, hidden, width, .. } = plan;
            let next = Choice {
                windows: 2 * windows_at_once,
                logits: logits_at_once,
                hidden,
                width,
                carried_bytes: 0,
            };
            let larger = stages(SMALL, quantize(64), next).iter().map(|stage| stage.bytes).max();
            assert!(windows_at_once == 16 || larger > Some(gb * GB), "{gb} GB: {windows_at_once} windows");
        }
    }

    #[test]
    fn f32_takes_twice_the_bytes_of_bf16_and_two_heads_twice_those_of_one() {
        let work =
            |heads, precision| Work { tokens: 64 * 512, ctx: 512, aim: Aim::Evaluate { heads }, precision };
        let head = |work| {
            let plan = DevicePlan::within(60 * GB, SMALL, work).unwrap();
            let head = plan.stages.iter().find(|stage| stage.name == "head").unwrap();
            (head.bytes - OVERHEAD - work.heads() * plan.logits_at_once * F32 * SMALL.vocab_size, plan)
        };
        let (narrow, plan) = head(work(1, Precision::Bf16));
        assert_eq!((plan.carried_bytes, plan.hidden), (0, Place::Device), "nothing is observed");
        assert_eq!(head(work(1, Precision::F32)).0, 2 * narrow);
        assert_eq!(head(work(2, Precision::Bf16)).0, 2 * narrow);
    }

    #[test]
    fn what_cannot_fit_is_refused_with_the_stage_and_what_would_fit() {
        let refusal = DevicePlan::within(8 * GB, LARGE, quantize(128)).unwrap_err();
        assert!(refusal.to_string().contains("`solve down`"), "{refusal}");
        assert!(refusal.hint().unwrap().contains("whatever the window"), "{:?}", refusal.hint());
        let (aim, precision) = (Aim::Evaluate { heads: 1 }, Precision::Bf16);
        let long = Work { tokens: 1 << 18, ctx: 1 << 17, aim, precision };
        let refusal = DevicePlan::within(6 * GB, SMALL, long).unwrap_err();
        assert!(refusal.hint().unwrap().starts_with("--ctx 32768 fits"), "{:?}", refusal.hint());
    }
}
