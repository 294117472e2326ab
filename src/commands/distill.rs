//! `attar distill`: a student learns from its teacher, is written, reopened and scored.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_distill::{Aim, Decay, DeviceTraining, Disguise, Optimizer, Progress, Schedule, Teacher, Training};
use attar_eval::{Convention, Report, report};
use attar_model::device::{Element, bf16};
use attar_model::teacher::tokens_sha256;
use attar_model::{AdamW, Device, Divergence, Keep, Likeness, ModelConfig, Precision, Role, Step};
use attar_quant::Named;
use ndarray::{Array2, ArrayView2};
use sha2::{Digest, Sha256};

use crate::cli::{DecayArg, DistillArgs, Global, LossArg, Method};
use crate::commands::ScoringRequest;
use crate::commands::quantize::check_weights;
use crate::data;
use crate::device::{self, Computer};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::pupil::{self, Desk, OnDevice, OnProcessor};
use crate::pipeline::teacher::Original;
use crate::pipeline::training::{self, Data, Kept, Record, Run};
use crate::pipeline::{Clock, Job, describe, refuse_quantized};
use crate::plan::{Plan, Treatment};
use crate::scheme::Scheme;
use crate::source::Source;
use crate::talk::{Talk, human_bytes, say, thousands};
use crate::text::hex;

/// What the report calls how floats were made.
pub const METHOD: &str = "distill";

/// Tokens per window where the user names none, unless a model was made for less.
const CTX: usize = 512;

/// Plans, checks, teaches, writes, reopens, scores, reports.
///
/// # Errors
/// Whatever kept it from being done; what can be found out early is.
pub fn run(args: &DistillArgs, global: &Global) -> Result<()> {
    let talk = global.talk();
    let delivery = global.delivery();
    let student = Source::open(&args.student)?;
    refuse_quantized(&student)?;
    let original = Original::open(&args.teacher)?;
    let tokenizer = student.tokenizer()?;
    let computer = global.computer(&shapes(&student, &original))?;
    let pair = Pair { original: &original, student: &student, tokenizer: &tokenizer };
    let school = School::open(args, pair, computer, global)?;
    if global.dry_run {
        return say(&format!("{}\n", school.plan(&student)?));
    }
    let kept = school.check(&student)?;
    delivery.check(&[&args.output])?;
    let scoring = if args.no_eval {
        None
    } else {
        Some(args.scoring(&original, &school.computer, global).read(&student, &tokenizer)?)
    };

    let mut clock = Clock::default();
    clock.time("check", || check_weights(&student, talk))?;
    let (written, mut report) = school.run(&student, kept, &mut clock)?;
    if let Some(scoring) = &scoring {
        let reference = match &original {
            Original::Model(teacher) => Some(clock.time("reference", || scoring.reference(teacher, talk))?),
            Original::Cache(_) => None,
        };
        report.evaluation =
            Some(clock.time("evaluate", || scoring.score(&written, reference.as_ref(), talk))?);
    }
    report.run = Some(school.facts_of_run(&clock));
    delivery.one(&report)?;
    school.close()
}

/// The shapes of the models that learn and teach.
pub fn shapes<'a>(student: &'a Source, original: &'a Original) -> Vec<&'a ModelConfig> {
    let teacher = match original {
        Original::Model(teacher) => Some(&teacher.config),
        Original::Cache(_) => None,
    };
    [&student.config].into_iter().chain(teacher).collect()
}

/// A teacher and its student, which need not be written yet.
#[derive(Clone, Copy)]
pub struct Pair<'a, 's> {
    /// What is learned from.
    pub original: &'a Original,
    /// What learns.
    pub student: &'s Source,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
}

/// Who teaches whom what, and where.
pub struct School<'a> {
    args: &'a DistillArgs,
    original: &'a Original,
    tokenizer: &'a Tokenizer,
    scheme: Scheme,
    data: Data,
    lesson: Lesson,
    computer: Computer,
    desk: Option<Desk>,
    cpu: Computer,
    state: PathBuf,
    overwrite: Overwrite,
    max_memory: Option<u64>,
    talk: Talk,
}

impl<'a> School<'a> {
    /// Holds what is asked for to the teacher and the student, and reads what is learned from.
    ///
    /// # Errors
    /// Vocabularies that differ, texts that cannot be read or are too short, a device that was named and cannot do it.
    pub fn open(
        args: &'a DistillArgs,
        pair: Pair<'a, '_>,
        computer: Computer,
        global: &Global,
    ) -> Result<Self> {
        let Pair { original, student, tokenizer } = pair;
        args.check(original, student)?;
        let data = args.data(original, student, tokenizer)?;
        let lesson = Lesson::new(args, &data);
        let (computer, desk) = args.desk(pair, &data, computer)?;
        let scheme = match args.scheme {
            Some(scheme) => scheme,
            None => student.matrix_dtype().to_string().parse()?,
        };
        Ok(Self {
            args,
            original,
            tokenizer,
            scheme,
            data,
            lesson,
            computer,
            desk,
            cpu: Computer::cpu(),
            state: state_of(&args.output),
            overwrite: global.overwrite(),
            max_memory: global.max_memory,
            talk: global.talk(),
        })
    }

    /// How `student` is written once it has learned.
    fn job<'s>(&'s self, student: &'s Source) -> Job<'s> {
        Job {
            source: student,
            tokenizer: Some(self.tokenizer),
            scheme: Some(self.scheme),
            method: Method::Rtn,
            zeros: None,
            rules: &[],
            calibration: None,
            output: &self.args.output,
            overwrite: self.overwrite,
            pre_tokenizer: None,
            precision: self.args.precision.into(),
            max_memory: self.max_memory,
            computer: &self.cpu,
            talk: self.talk,
        }
    }

    /// What will happen, for a person.
    ///
    /// # Errors
    /// As [`Job::plan`].
    pub fn plan(&self, student: &Source) -> Result<String> {
        let lesson = self.lesson.plan(self.args, student, &self.data, self.desk.as_ref());
        Ok(format!("{lesson}\n{}", self.job(student).plan()?))
    }

    /// The student as it will be found once it is written.
    ///
    /// # Errors
    /// An output that nothing can be made of afterwards.
    pub fn promise(&self, student: &Source) -> Result<Source> {
        let job = self.job(student);
        job.promise(&job.plan()?)
    }

    /// Whether there is a run that was not finished, or was not cleared away.
    pub fn has_state(&self) -> bool {
        Kept::is_at(&self.state)
    }

    /// What is written.
    pub fn output(&self) -> &Path {
        &self.args.output
    }

    /// What would keep the output from being written; the run that is to be taken up again, if one is.
    ///
    /// # Errors
    /// As [`Job::check`]; a run that was not finished, or none where one is to be taken up.
    pub fn check(&self, student: &Source) -> Result<Option<Kept>> {
        let job = self.job(student);
        job.check(&job.plan()?)?;
        match (Kept::is_at(&self.state), self.args.resume) {
            (true, true) => Kept::open(&self.state, &self.fingerprint(student)).map(Some),
            (true, false) if self.overwrite == Overwrite::No => {
                Err(Failure::new(format!("`{}` keeps a run that was not finished", self.state.display()))
                    .hint("--resume goes on with it, --force begins anew"))
            }
            (false, true) => {
                Err(Failure::new(format!("there is no run to go on with: no `{}`", self.state.display()))
                    .hint("leave --resume out to begin one"))
            }
            _ => Ok(None),
        }
    }

    /// Teaches, writes and reopens. The report still lacks evaluation and run; until [`close`](Self::close) the run can be
    /// taken up again at its end.
    ///
    /// # Errors
    /// As [`Run::train`] and [`Job::run`].
    pub fn run(&self, student: &Source, kept: Option<Kept>, clock: &mut Clock) -> Result<(Source, Report)> {
        let Self { args, desk, .. } = self;
        let plan = self.job(student).plan()?;
        training::end_on_signal()?;
        let disguise = args.scheme.map(|_| Stored::new(&plan));
        let (record, progress) = clock.time("distill", || match (desk, args.precision.into()) {
            (None, _) => self.teach(student, kept, disguise.as_ref()),
            (Some(desk), Precision::F32) => self.teach_there::<f32>(desk, student, kept),
            (Some(desk), Precision::Bf16) => self.teach_there::<bf16>(desk, student, kept),
        })?;
        let taught = Source::open(&self.state)?;
        let job = self.job(&taught);
        let (written, mut report) = job.run(&job.plan()?, clock)?;
        report.model = describe(student);
        if let (Some(output), None) = (&mut report.output, args.scheme) {
            output.method = Some(METHOD.to_owned());
        }
        report.distillation = Some(facts(args, &self.data, record, progress.steps));
        Ok((written, report))
    }

    /// What the report says of where and how long it ran.
    pub fn facts_of_run(&self, clock: &Clock) -> report::Run {
        let mut run = clock.run(Some(self.args.precision.into()), [&Device::Cpu]);
        if let Some(desk) = &self.desk {
            run.device = device::name_of(&desk.cuda);
        }
        run
    }

    /// Removes what was kept on the way: the student is written and reported.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub fn close(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.state).doing(|| format!("while removing `{}`", self.state.display()))
    }

    fn fingerprint(&self, student: &Source) -> String {
        self.lesson.fingerprint(self.args, student, &self.data, self.desk.as_ref())
    }

    /// Takes the run up where it was kept, or begins it, and goes on to its last step.
    fn teach(
        &self,
        student: &Source,
        kept: Option<Kept>,
        disguise: Option<&Stored>,
    ) -> Result<(Record, Progress)> {
        let Self { args, original, lesson, .. } = self;
        let model = training::load(kept.as_ref().map_or(student, |kept| &kept.student))?;
        let mut training = Training::new(model, lesson.optimizer, lesson.step);
        if let Some(disguise) = disguise {
            training = training.disguised(disguise);
        }
        let (training, record) = match kept {
            Some(kept) => kept.resumed(|progress, remembered| training.after(progress, remembered))?,
            None => (training, Record::default()),
        };
        let loaded;
        let teacher = match original {
            Original::Model(source) => {
                let mut model = training::load(source)?;
                model.pack(args.precision.into());
                loaded = model;
                Teacher::Online(&loaded)
            }
            Original::Cache(cache) => Teacher::kept(cache)?,
        };
        let mut pupil = OnProcessor { training, teacher: &teacher, aim: lesson.aim };
        self.course(student).train(&mut pupil, record)
    }

    /// [`teach`](Self::teach) on a CUDA device.
    fn teach_there<T: Element>(
        &self,
        desk: &Desk,
        student: &Source,
        kept: Option<Kept>,
    ) -> Result<(Record, Progress)> {
        let (lesson, ctx) = (&self.lesson, self.data.windows.ctx());
        let model = desk.student::<T>(kept.as_ref().map_or(student, |kept| &kept.student), ctx)?;
        let training = DeviceTraining::new(model, lesson.optimizer);
        let (training, record) = match kept {
            Some(kept) => kept.resumed(|progress, remembered| training.after(progress, remembered))?,
            None => (training, Record::default()),
        };
        let teacher = desk.teacher(self.original, ctx)?;
        let at_once = desk.plan.windows_at_once as usize;
        let mut pupil = OnDevice { training, teacher, aim: lesson.aim, at_once };
        self.course(student).train(&mut pupil, record)
    }

    fn course<'s>(&'s self, student: &'s Source) -> Run<'s> {
        let Self { args, lesson, .. } = self;
        Run {
            source: student,
            data: &self.data,
            batch: args.batch.into(),
            steps: lesson.optimizer.schedule.steps,
            seed: args.seed,
            state: &self.state,
            save_every: Duration::from_secs_f64(60.0 * args.save_every),
            fingerprint: self.fingerprint(student),
            log: args.log.as_deref(),
            talk: self.talk,
        }
    }
}

/// The folder a run is kept in on the way to `output`.
pub fn state_of(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".training");
    output.with_file_name(name)
}

/// What is done at each step, and how often.
struct Lesson {
    aim: Aim,
    optimizer: Optimizer,
    step: Step,
}

impl Lesson {
    fn new(args: &DistillArgs, data: &Data) -> Self {
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
        let adamw = AdamW { beta2: 0.95, weight_decay: args.weight_decay as f32, ..AdamW::default() };
        Self {
            aim: Aim { likeness, cross_entropy: args.cross_entropy as f32 },
            optimizer: Optimizer { adamw, schedule, clip: Some(args.clip as f32) },
            step: Step { keep: Keep::Activations, precision: args.precision.into() },
        }
    }

    /// What will happen, for a person.
    fn plan(&self, args: &DistillArgs, student: &Source, data: &Data, desk: Option<&Desk>) -> String {
        let (steps, step_tokens) =
            (self.optimizer.schedule.steps, usize::from(args.batch) * data.windows.ctx());
        // Weights, gradients and two moments, in f32.
        let memory = 16 * student.parameters();
        let device = desk.map_or(String::new(), |Desk { cuda, plan }| {
            let kept = if plan.keeps_activations { "nothing is" } else { "blocks are" };
            format!(
                "device: {}, {} of {} to be used; {} windows at once, {kept} computed twice\n",
                cuda.facts().name,
                human_bytes(plan.peak_bytes()),
                human_bytes(cuda.limit_bytes()),
                plan.windows_at_once
            )
        });
        format!(
            "teacher: {}\nstudent: {}, {} parameters\ndata: {} windows of {} to learn from, {} held out\n\
             {} steps of {} tokens, {} tokens in all\nmemory of the student and its optimizer: {}\n{device}",
            args.teacher.display(),
            args.student.display(),
            thousands(student.parameters()),
            thousands(data.learned_windows() as u64),
            data.windows.ctx(),
            data.held_out.len(),
            thousands(steps),
            thousands(step_tokens as u64),
            thousands(steps * step_tokens as u64),
            human_bytes(memory),
        )
    }

    /// All that decides the result but the number of threads, in one line.
    fn fingerprint(&self, args: &DistillArgs, student: &Source, data: &Data, desk: Option<&Desk>) -> String {
        let mut hash = Sha256::new();
        for part in [
            format!("{:?} {:?} {:?}", self.aim, self.optimizer, self.step.precision),
            format!("{} {} {:?} {:?}", args.batch, args.seed, data.texts, data.held_out),
            format!("{:?} {:?}", args.scheme, student.config),
            format!("{} {}", args.teacher.display(), args.student.display()),
            tokens_sha256(data.windows.tokens()),
        ] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        if let Some(desk) = desk {
            hash.update(format!("{} {:?}", desk.cuda.facts().name, desk.plan));
        }
        hex(&hash.finalize())
    }
}

/// What the report says of a run.
fn facts(args: &DistillArgs, data: &Data, record: Record, steps: u64) -> report::Distillation {
    let ctx = data.windows.ctx() as u64;
    report::Distillation {
        teacher: args.teacher.display().to_string(),
        data: args.data.iter().map(|file| file.path.display().to_string()).collect(),
        data_sha256: tokens_sha256(data.windows.tokens()),
        loss: args.loss.name().to_owned(),
        temperature: args.temperature,
        cross_entropy: args.cross_entropy,
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

impl DistillArgs {
    /// Holds what was asked for to the teacher and the student.
    fn check(&self, original: &Original, student: &Source) -> Result<()> {
        let teacher = match original {
            Original::Model(teacher) => teacher.config.vocab_size,
            Original::Cache(cache) => cache.facts().vocab_size,
        };
        if teacher != student.config.vocab_size {
            return Err(Failure::new(format!(
                "the teacher knows {} tokens, the student {}",
                thousands(teacher as u64),
                thousands(student.config.vocab_size as u64)
            ))
            .hint("a student learns from a teacher with the same tokenizer only"));
        }
        match original {
            Original::Model(_) if self.data.is_empty() => {
                Err(Failure::new("there is nothing to learn from").hint("give text with --data FILE"))
            }
            Original::Cache(_) if !self.data.is_empty() => {
                Err(Failure::new("a teacher cache is of a text of its own, and --data names another")
                    .hint("leave --data out, or give the teacher itself"))
            }
            Original::Cache(_) if self.ctx.is_some() => {
                Err(Failure::new("a teacher cache has windows of its own length").hint("leave --ctx out"))
            }
            Original::Cache(cache) if cache.head().is_none() && (self.temperature - 1.0).abs() > 0.0 => {
                Err(Failure::new("of the likeliest tokens alone nobody knows what another temperature makes")
                    .hint("leave --temperature out, or keep hidden states: --save-as hidden-bf16"))
            }
            _ => Ok(()),
        }
    }

    fn data(&self, original: &Original, student: &Source, tokenizer: &Tokenizer) -> Result<Data> {
        if let Original::Cache(cache) = original {
            return data::of_cache(cache.windows(), cache.path(), self.held_out);
        }
        let ctx = self.ctx.unwrap_or(CTX.min(student.config.max_position_embeddings)).max(2);
        let end = student.config.eos_token_ids.first().copied();
        data::read(&self.data, tokenizer, end, ctx, self.held_out)
    }

    fn scoring<'a>(
        &'a self,
        original: &'a Original,
        computer: &'a Computer,
        global: &Global,
    ) -> ScoringRequest<'a> {
        ScoringRequest {
            file: self.text.as_ref(),
            ctx: self.ctx,
            chunks: self.chunks,
            convention: Convention::LlamaCpp,
            precision: Precision::F32,
            as_in: None,
            models: 1 + usize::from(matches!(original, Original::Model(_))),
            max_memory: global.max_memory,
            computer,
        }
    }

    /// Where the student learns if that is a CUDA device; what computes all else.
    fn desk(&self, pair: Pair<'_, '_>, data: &Data, computer: Computer) -> Result<(Computer, Option<Desk>)> {
        let sizes = (usize::from(self.batch), data.windows.ctx());
        let course = match self.scheme {
            None => pupil::course(pair.student, pair.original, sizes, self.precision.into()),
            Some(_) => {
                Err(Failure::new("a student sees its weights as they are stored on the processor only")
                    .hint("leave --device out, or --scheme, and quantize what was taught"))
            }
        };
        match course {
            Ok(course) => {
                let desk = computer.desk(course)?;
                Ok((computer, desk))
            }
            Err(reason) => Ok((computer.without_device(reason)?, None)),
        }
    }
}

/// Weights as the plan's encodings store them, rounded to nearest.
struct Stored(HashMap<(Option<usize>, Role), Named>);

impl Stored {
    fn new(plan: &Plan) -> Self {
        let coded = plan.tensors.iter().filter_map(|tensor| match tensor.treatment {
            Treatment::Codes(encoding) => Some((&tensor.spec, encoding)),
            Treatment::Float(_) => None,
        });
        let parts = coded.flat_map(|(spec, encoding)| {
            spec.role.parts().iter().map(move |&part| ((spec.layer, part), encoding))
        });
        Self(parts.collect())
    }
}

impl Disguise for Stored {
    fn stored(&self, layer: Option<usize>, role: Role, weight: ArrayView2<'_, f32>) -> Option<Array2<f32>> {
        let encoding = self.0.get(&(layer, role))?;
        let (rows, cols) = weight.dim();
        encoding.unpack(&encoding.quantize(weight, None), rows, cols).ok()
    }
}
