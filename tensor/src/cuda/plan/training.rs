//! How a student fits a device beside its teacher.

use super::{F32, F64, MOST_LOGITS_AT_ONCE, ModelShape, OVERHEAD, Stage, element_bytes, largest};
use crate::Precision;
use crate::cuda::CudaError;

/// Fewer tokens than this at once make products slower.
const ENOUGH_TOKENS: u64 = 1 << 12;

/// A whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeModel {
    /// Of a block, and of the ends.
    pub shape: ModelShape,
    /// Blocks.
    pub layers: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// Where what a teacher says comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teaching {
    /// A model beside the student.
    Online(WholeModel),
    /// Its head, `hidden_size` features wide.
    Head {
        /// Features that it reads.
        hidden_size: u64,
    },
}

/// What is to be learned, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// Who learns.
    pub student: WholeModel,
    /// From whom.
    pub teaching: Teaching,
    /// Windows of a step.
    pub windows: u64,
    /// Tokens of a window.
    pub ctx: u64,
    /// Of products and activations.
    pub precision: Precision,
}

/// How it is done within a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingPlan {
    /// Windows that go through the student at once.
    pub windows_at_once: u64,
    /// Tokens whose logits stand at once.
    pub logits_at_once: u64,
    /// Whether all that backward reads is kept, or each block's input alone.
    pub keeps_activations: bool,
    /// Every stage, in order.
    pub stages: Vec<Stage>,
}

impl WholeModel {
    fn head(self) -> u64 {
        self.shape.vocab_size * self.shape.hidden_size
    }

    /// Numbers of all weights.
    fn numbers(self) -> u64 {
        let ends = if self.tied { 1 } else { 2 };
        ends * self.head() + self.layers * self.shape.block_bytes(Precision::F32) / F32
    }
}

impl Course {
    /// What stands throughout: the student with gradients and moments, the teacher.
    fn standing(self) -> u64 {
        let element = element_bytes(self.precision);
        let narrow = if self.precision == Precision::Bf16 { element } else { 0 };
        let teacher = match self.teaching {
            Teaching::Online(teacher) => element * teacher.numbers(),
            Teaching::Head { hidden_size } => element * hidden_size * self.student.shape.vocab_size,
        };
        OVERHEAD + (4 * F32 + narrow) * self.student.numbers() + teacher
    }

    fn stages(self, windows: u64, logits: u64, keeps_activations: bool) -> Vec<Stage> {
        let (element, tokens) = (element_bytes(self.precision), windows * self.ctx);
        let ModelShape { hidden_size: d, intermediate_size: ff, vocab_size, .. } = self.student.shape;
        let (q, kv) = (self.student.shape.queries(), self.student.shape.keys());
        let said = match self.teaching {
            Teaching::Online(teacher) => teacher.shape.hidden_size,
            Teaching::Head { hidden_size } => hidden_size,
        };
        let standing = self.standing() + element * tokens * said;
        // Of a block: its input, q, k and v before and after their norms, what o reads, the stream between, gate and up.
        let block = 2 * d + 3 * q + 3 * kv + 2 * ff;
        let kept = element * tokens * self.student.layers * if keeps_activations { block } else { d };
        let stage = |name, bytes| Stage { name, bytes: standing + bytes };
        let mut stages = Vec::new();
        if let Teaching::Online(teacher) = self.teaching {
            let ModelShape { hidden_size: d, intermediate_size: ff, .. } = teacher.shape;
            let attention = d + 3 * teacher.shape.queries() + 2 * teacher.shape.keys();
            stages.push(stage("teacher", element * tokens * (d + attention.max(d + 2 * ff))));
        }
        stages.push(stage("forward", kept + element * tokens * (2 * d + block + ff)));
        let chunk = logits.min(tokens) * ((2 * F32 + element) * vocab_size + element * d);
        stages.push(stage("head", kept + 2 * element * tokens * d + F64 * tokens + chunk));
        // A block's activations once more, their gradients, and those of what its matrices read.
        stages.push(stage("backward", kept + element * tokens * (2 * block + 3 * d + 2 * ff)));
        stages
    }
}

impl TrainingPlan {
    /// The best plan within `limit_bytes`: nothing computed twice where that leaves enough tokens at once, then as many windows and
    /// logits at once as fit.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`] with the stage that does not fit even one window at a time.
    pub fn within(limit_bytes: u64, course: Course) -> Result<Self, CudaError> {
        let fits = |windows, logits, keeps| {
            course.stages(windows, logits, keeps).iter().all(|stage| stage.bytes <= limit_bytes)
        };
        for keeps_activations in [true, false] {
            let some = 128.min(course.ctx);
            let windows = largest(course.windows.max(1), |windows| fits(windows, some, keeps_activations));
            let Some(windows_at_once) = windows else { continue };
            let few = windows_at_once * course.ctx < ENOUGH_TOKENS && 2 * windows_at_once <= course.windows;
            if keeps_activations && few && fits(2 * windows_at_once, some, false) {
                continue;
            }
            let most = MOST_LOGITS_AT_ONCE.min(windows_at_once * course.ctx);
            let logits = largest(most, |logits| fits(windows_at_once, logits, keeps_activations));
            let logits_at_once = logits.unwrap_or(1);
            let stages = course.stages(windows_at_once, logits_at_once, keeps_activations);
            return Ok(Self { windows_at_once, logits_at_once, keeps_activations, stages });
        }
        let largest = course.stages(1, 1, false).into_iter().max_by_key(|stage| stage.bytes);
        let (name, needed_bytes) = largest.map_or(("nothing", 0), |stage| (stage.name, stage.bytes));
        let always = course.standing();
        Err(CudaError::TooLittleMemory {
            what: format!(
                "the stage `{name}` of a training step, one window of {} tokens at a time,",
                course.ctx
            ),
            needed_bytes,
            free_bytes: limit_bytes,
            fits: Some(if always < limit_bytes {
                "a shorter --ctx needs less".to_owned()
            } else {
                let gigabytes = always.div_ceil(100_000_000) as f64 / 10.0;
                format!(
                    "student, optimizer and teacher alone take {gigabytes} GB; a teacher cache of hidden states (attar eval \
                     --save-reference) takes less, and --device cpu works"
                )
            }),
        })
    }

    /// The most that stands on the device at once.
    pub fn peak_bytes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.bytes).max().unwrap_or(0)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn one_billion() -> WholeModel {
        let shape = ModelShape {
            hidden_size: 2048,
            intermediate_size: 8192,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            vocab_size: 128_256,
        };
        WholeModel { shape, layers: 16, tied: true }
    }

    fn course() -> Course {
        let shape =
            ModelShape { hidden_size: 4096, intermediate_size: 14_336, head_dim: 128, ..one_billion().shape };
        let teaching = Teaching::Online(WholeModel { shape, layers: 32, tied: false });
        Course { student: one_billion(), teaching, windows: 8, ctx: 2048, precision: Precision::Bf16 }
    }

    #[test]
    fn the_weights_of_models_are_counted() {
        assert_eq!(one_billion().numbers() / 1_000_000, 1235);
        let Teaching::Online(teacher) = course().teaching else { panic!("a model teaches") };
        assert_eq!(teacher.numbers() / 1_000_000, 8030);
    }

    #[test]
    fn a_student_of_1b_learns_from_8b_within_80_gb_and_nothing_is_computed_twice() {
        let plan = TrainingPlan::within(80 * GB, course()).unwrap();
        assert!(plan.keeps_activations && plan.peak_bytes() <= 80 * GB, "{plan:?}");
        assert_eq!((plan.windows_at_once, plan.logits_at_once), (8, 4096));
    }

    #[test]
    fn with_less_memory_a_plan_computes_twice_before_it_takes_few_tokens_and_never_passes_its_limit() {
        let mut seen = Vec::new();
        for gb in 40..80 {
            let Ok(plan) = TrainingPlan::within(gb * GB, course()) else { continue };
            assert!(plan.peak_bytes() <= gb * GB, "{gb} GB: {plan:?}");
            assert!(plan.windows_at_once >= 2 || !plan.keeps_activations, "{gb} GB: {plan:?}");
            seen.push(plan.keeps_activations);
        }
        assert!(seen.contains(&false) && seen.contains(&true));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let error = TrainingPlan::within(30 * GB, course()).unwrap_err();
        assert!(error.to_string().contains("of a training step"), "{error}");
        assert!(error.hint().unwrap().contains("alone take 38.9 GB"), "{:?}", error.hint());
    }
}
