//! What is done at each step of a run of distillation, and how it is told.

use attar_distill::{Aim, Decay, LayerMap, Optimizer, Schedule, Streams};
use attar_eval::report;
use attar_model::teacher::tokens_sha256;
use attar_model::{AdamW, Divergence, Likeness, Precision};
use sha2::{Digest, Sha256};

use crate::cli::{DecayArg, DistillArgs, LossArg};
use crate::pipeline::pupil::Desk;
use crate::pipeline::training::{Data, Record};
use crate::plan::{LocalMemory, TrainingMemory};
use crate::source::Source;
use crate::talk::{human_bytes, thousands};
use crate::text::hex;

/// What learns at a time, and where.
pub enum Manner {
    /// The whole student, on the processor.
    Whole(TrainingMemory),
    /// The whole student, on a CUDA device.
    There(Desk),
    /// One layer after another, on the processor.
    Layers {
        /// The layers, and which of the teacher's each follows.
        map: LayerMap,
        /// The windows that are seen, rising.
        seen: Vec<usize>,
        /// What that takes.
        memory: LocalMemory,
    },
}

impl Manner {
    /// How often the data is gone through from the start.
    fn parts(&self) -> u64 {
        match self {
            Self::Layers { map, .. } => map.pairs().len() as u64,
            Self::Whole(_) | Self::There(_) => 1,
        }
    }
}

/// What is done at each step, and how often.
pub struct Lesson {
    /// What a student that learns as a whole is to learn.
    pub aim: Aim,
    /// How gradients become steps; of a layer, where one learns after another.
    pub optimizer: Optimizer,
}

impl Lesson {
    /// As the user has it, steps by the length of the data where it names no number of tokens.
    pub fn new(args: &DistillArgs, map: Option<&LayerMap>, data: &Data) -> Self {
        let step_tokens = usize::from(args.batch) * data.windows.ctx();
        let all = data.learned_windows() * data.windows.ctx();
        let tokens = args.tokens.unwrap_or(all as u64);
        let steps = tokens.div_ceil(step_tokens as u64).max(1);
        let decay = match args.decay {
            DecayArg::Cosine => Decay::Cosine,
            DecayArg::Wsd => Decay::Wsd { share: 0.2 },
            DecayArg::Constant => Decay::Constant,
        };
        let schedule = Schedule {
            peak: args.learning_rate,
            floor: 0.1,
            warmup_steps: args.warmup.unwrap_or((steps / 20).min(100)),
            steps,
            decay,
        };
        let divergence = match args.loss {
            LossArg::ForwardKl => Divergence::ForwardKl,
            LossArg::ReverseKl => Divergence::ReverseKl,
            LossArg::Jsd => Divergence::JensenShannon { beta: args.beta as f32 },
        };
        let likeness = Likeness { divergence, temperature: args.temperature as f32 };
        let streams = args.hidden_loss.zip(map.cloned());
        let streams = streams.map(|(weight, map)| Streams { map, weight: weight as f32 });
        let adamw = AdamW { beta2: 0.95, weight_decay: args.weight_decay as f32, ..AdamW::default() };
        Self {
            aim: Aim { likeness, cross_entropy: args.cross_entropy as f32, streams },
            optimizer: Optimizer { adamw, schedule, clip: Some(args.clip as f32) },
        }
    }

    /// All steps.
    pub fn steps(&self, manner: &Manner) -> u64 {
        self.optimizer.schedule.steps * manner.parts()
    }

    /// What will happen, for a person.
    pub fn plan(&self, args: &DistillArgs, student: &Source, data: &Data, manner: &Manner) -> String {
        let (steps, step_tokens) = (self.steps(manner), usize::from(args.batch) * data.windows.ctx());
        let compared = self.aim.streams.as_ref().map_or(String::new(), |streams| {
            format!("layers of the student compared with the teacher's: {}\n", pairs(&streams.map))
        });
        let how = match manner {
            Manner::Whole(memory) => format!("{compared}{memory}\n"),
            Manner::There(Desk { cuda, plan }) => {
                let kept = if plan.keeps_activations { "nothing is" } else { "blocks are" };
                // Weights, gradients and two moments, in f32.
                let memory = human_bytes(16 * student.parameters());
                format!(
                    "memory of the student and its optimizer: {memory}\ndevice: {}, {} of {} to be used; {} windows at once, {kept} computed twice\n",
                    cuda.facts().name,
                    human_bytes(plan.peak_bytes()),
                    human_bytes(cuda.limit_bytes()),
                    plan.windows_at_once
                )
            }
            Manner::Layers { map, memory, .. } => format!(
                "layers of the student, one after another, and those of the teacher they follow: {}\n{memory}\n",
                pairs(map)
            ),
        };
        format!(
            "teacher: {}\nstudent: {}, {} parameters\ndata: {} windows of {} to learn from, {} held out\n\
             {} steps of {} tokens, {} tokens in all\n{how}",
            args.teacher.display(),
            student.path.display(),
            thousands(student.parameters()),
            thousands(data.learned_windows() as u64),
            data.windows.ctx(),
            data.held_out.len(),
            thousands(steps),
            thousands(step_tokens as u64),
            thousands(steps * step_tokens as u64),
        )
    }

    /// All that decides the result but the number of threads, in one line.
    pub fn fingerprint(&self, args: &DistillArgs, student: &Source, data: &Data, manner: &Manner) -> String {
        let mut hash = Sha256::new();
        for part in [
            format!("{:?} {:?} {:?}", self.aim, self.optimizer, Precision::from(args.precision)),
            format!("{} {} {:?} {:?}", args.batch, args.seed, data.texts, data.held_out),
            format!("{:?} {:?}", args.scheme, student.config),
            format!("{} {}", args.teacher.display(), student.path.display()),
            tokens_sha256(data.windows.tokens()),
        ] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        match manner {
            Manner::Whole(_) => {}
            Manner::There(Desk { cuda, plan }) => hash.update(format!("{} {plan:?}", cuda.facts().name)),
            Manner::Layers { map, .. } => hash.update(format!("{map:?}")),
        }
        hex(&hash.finalize())
    }
}

/// Layers of the student and those of the teacher, as `--layer-map` has them.
fn pairs(map: &LayerMap) -> String {
    let pairs = map.pairs().iter().map(|(student, teacher)| format!("{student}:{teacher}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// What the report says of a run.
pub fn facts(
    args: &DistillArgs,
    (lesson, manner): (&Lesson, &Manner),
    data: &Data,
    record: Record,
    steps: u64,
) -> report::Distillation {
    let map = match manner {
        Manner::Layers { map, .. } => Some(map),
        Manner::Whole(_) | Manner::There(_) => lesson.aim.streams.as_ref().map(|streams| &streams.map),
    };
    let ctx = data.windows.ctx() as u64;
    report::Distillation {
        teacher: args.teacher.display().to_string(),
        data: args.data.iter().map(|file| file.path.display().to_string()).collect(),
        data_sha256: tokens_sha256(data.windows.tokens()),
        loss: if args.local { report::BLOCK_OUTPUT } else { args.loss.name() }.to_owned(),
        temperature: args.temperature,
        cross_entropy: args.cross_entropy,
        hidden_loss: args.hidden_loss,
        layer_map: map.map_or_else(Vec::new, reported),
        steps,
        skipped_steps: record.skipped,
        step_tokens: u64::from(args.batch) * ctx,
        data_tokens: data.learned_windows() as u64 * ctx,
        held_out_tokens: data.held_out.len() as u64 * ctx,
        learning_rate: args.learning_rate,
        seed: args.seed,
        seconds: record.seconds,
        curve: record.curve,
    }
}

fn reported(map: &LayerMap) -> Vec<[u64; 2]> {
    map.pairs().iter().map(|&(student, teacher)| [student as u64, teacher as u64]).collect()
}
