//! `attar distill`: a student learns from its teacher, is written, reopened and scored.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_distill::{
    Aim, Decay, DeviceTraining, Disguise, LayerMap, Optimizer, Progress, Schedule, Streams, Teacher, Training,
};
use attar_eval::{Convention, report};
use attar_model::device::{Element, bf16};
use attar_model::teacher::tokens_sha256;
use attar_model::{AdamW, Device, Divergence, Keep, Likeness, Precision, Role, Step};
use attar_quant::Named;
use ndarray::{Array2, ArrayView2};
use sha2::{Digest, Sha256};

use crate::cli::{DecayArg, DistillArgs, Global, LossArg, Method};
use crate::commands::quantize::check_weights;
use crate::commands::{ScoringRequest, prepare};
use crate::data;
use crate::device::{self, Computer};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::pupil::{self, Desk, OnDevice, OnProcessor};
use crate::pipeline::teacher::Original;
use crate::pipeline::training::{self, Data, Kept, Record, Run};
use crate::pipeline::{Clock, Job, describe, refuse_quantized};
use crate::plan::{Plan, Treatment};
use crate::source::Source;
use crate::talk::{Talk, human_bytes, say, thousands};
use crate::text::hex;

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
    args.check(&original, &student)?;
    let tokenizer = student.tokenizer()?;
    let streams = args.streams(&original, &student)?;
    let data = args.data(&original, &student, &tokenizer)?;
    let lesson = Lesson::new(args, streams, &data);

    let scheme = match args.scheme {
        Some(scheme) => scheme,
        None => student.matrix_dtype().to_string().parse()?,
    };
    let cpu = Computer::cpu();
    let (computer, desk) = args.desk(&original, &student, &data, global)?;
    let job = |source| Job {
        source,
        tokenizer: Some(&tokenizer),
        scheme: Some(scheme),
        method: Method::Rtn,
        zeros: None,
        rules: &[],
        calibration: None,
        output: &args.output,
        overwrite: global.overwrite(),
        pre_tokenizer: None,
        precision: args.precision.into(),
        max_memory: global.max_memory,
        computer: &cpu,
        talk,
    };
    if global.dry_run {
        let lesson = lesson.plan(args, &student, &data, desk.as_ref());
        return say(&format!("{lesson}\n{}\n", job(&student).plan()?));
    }
    let Some(plan) = prepare(&job(&student), &delivery, global)? else { return Ok(()) };
    let scoring = if args.no_eval {
        None
    } else {
        Some(args.scoring(&original, &computer, global).read(&student, &tokenizer)?)
    };
    let state = state_of(&args.output);
    let fingerprint = lesson.fingerprint(args, &student, &data, desk.as_ref());
    let kept = args.taken_up(&state, &fingerprint, global)?;

    let mut clock = Clock::default();
    clock.time("check", || check_weights(&student, talk))?;
    training::end_on_signal()?;
    let disguise = args.scheme.map(|_| Stored::new(&plan));
    let school = School { args, student: &student, original: &original, data: &data, lesson: &lesson, talk };
    let (record, progress) = clock.time("distill", || match (&desk, args.precision.into()) {
        (None, _) => school.teach(&state, fingerprint, kept, disguise.as_ref()),
        (Some(desk), Precision::F32) => school.teach_there::<f32>(desk, &state, fingerprint, kept),
        (Some(desk), Precision::Bf16) => school.teach_there::<bf16>(desk, &state, fingerprint, kept),
    })?;

    let taught = Source::open(&state)?;
    let job = job(&taught);
    let (written, mut report) = job.run(&job.plan()?, &mut clock)?;
    report.model = describe(&student);
    report.distillation = Some(facts(args, &lesson, &data, record, progress.steps));
    if let Some(scoring) = &scoring {
        let reference = match &original {
            Original::Model(teacher) => Some(clock.time("reference", || scoring.reference(teacher, talk))?),
            Original::Cache(_) => None,
        };
        report.evaluation =
            Some(clock.time("evaluate", || scoring.score(&written, reference.as_ref(), talk))?);
    }
    let mut run = clock.run(Some(job.precision), [&Device::Cpu]);
    if let Some(desk) = &desk {
        run.device = device::name_of(&desk.cuda);
    }
    report.run = Some(run);
    delivery.one(&report)?;
    drop(taught);
    std::fs::remove_dir_all(&state).doing(|| format!("while removing `{}`", state.display()))
}

/// Who teaches whom what.
struct School<'a> {
    args: &'a DistillArgs,
    student: &'a Source,
    original: &'a Original,
    data: &'a Data,
    lesson: &'a Lesson,
    talk: Talk,
}

impl School<'_> {
    /// Takes the run up where it was kept, or begins it, and goes on to its last step.
    fn teach(
        &self,
        state: &Path,
        fingerprint: String,
        kept: Option<Kept>,
        disguise: Option<&Stored>,
    ) -> Result<(Record, Progress)> {
        let Self { args, student, original, lesson, .. } = *self;
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
        let mut pupil = OnProcessor { training, teacher: &teacher, aim: lesson.aim.clone() };
        self.course(state, fingerprint).train(&mut pupil, record)
    }

    /// [`teach`](Self::teach) on a CUDA device.
    fn teach_there<T: Element>(
        &self,
        desk: &Desk,
        state: &Path,
        fingerprint: String,
        kept: Option<Kept>,
    ) -> Result<(Record, Progress)> {
        let (lesson, ctx) = (self.lesson, self.data.windows.ctx());
        let student = desk.student::<T>(kept.as_ref().map_or(self.student, |kept| &kept.student), ctx)?;
        let training = DeviceTraining::new(student, lesson.optimizer);
        let (training, record) = match kept {
            Some(kept) => kept.resumed(|progress, remembered| training.after(progress, remembered))?,
            None => (training, Record::default()),
        };
        let teacher = desk.teacher(self.original, ctx)?;
        let at_once = desk.plan.windows_at_once as usize;
        let mut pupil = OnDevice { training, teacher, aim: lesson.aim.clone(), at_once };
        self.course(state, fingerprint).train(&mut pupil, record)
    }

    fn course<'s>(&'s self, state: &'s Path, fingerprint: String) -> Run<'s> {
        let Self { args, student, data, lesson, talk, .. } = *self;
        Run {
            source: student,
            data,
            batch: args.batch.into(),
            steps: lesson.optimizer.schedule.steps,
            seed: args.seed,
            state,
            save_every: Duration::from_secs_f64(60.0 * args.save_every),
            fingerprint,
            log: args.log.as_deref(),
            talk,
        }
    }
}

/// The folder a run is kept in on the way to `output`.
fn state_of(output: &Path) -> PathBuf {
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
    fn new(args: &DistillArgs, streams: Option<Streams>, data: &Data) -> Self {
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
            aim: Aim { likeness, cross_entropy: args.cross_entropy as f32, streams },
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
             {} steps of {} tokens, {} tokens in all\n{}memory of the student and its optimizer: {}\n{device}",
            args.teacher.display(),
            args.student.display(),
            thousands(student.parameters()),
            thousands(data.learned_windows() as u64),
            data.windows.ctx(),
            data.held_out.len(),
            thousands(steps),
            thousands(step_tokens as u64),
            thousands(steps * step_tokens as u64),
            self.aim.streams.as_ref().map_or(String::new(), |streams| say_layers(&streams.map)),
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

/// Which layers are compared, for a person.
fn say_layers(map: &LayerMap) -> String {
    let pairs = map.pairs().iter().map(|(student, teacher)| format!("{student}:{teacher}"));
    format!("layers of the student compared with the teacher's: {}\n", pairs.collect::<Vec<_>>().join(","))
}

/// What the report says of a run.
fn facts(
    args: &DistillArgs,
    lesson: &Lesson,
    data: &Data,
    record: Record,
    steps: u64,
) -> report::Distillation {
    let ctx = data.windows.ctx() as u64;
    report::Distillation {
        teacher: args.teacher.display().to_string(),
        data: args.data.iter().map(|file| file.path.display().to_string()).collect(),
        data_sha256: tokens_sha256(data.windows.tokens()),
        loss: args.loss.name().to_owned(),
        temperature: args.temperature,
        cross_entropy: args.cross_entropy,
        hidden_loss: args.hidden_loss,
        layer_map: lesson.aim.streams.as_ref().map_or_else(Vec::new, |streams| reported(&streams.map)),
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

    /// What the residual stream is to be after which layers, if anything is asked of it.
    fn streams(&self, original: &Original, student: &Source) -> Result<Option<Streams>> {
        let Some(weight) = self.hidden_loss else { return Ok(None) };
        let map = self.map(original, student).doing(|| "while comparing layers of student and teacher")?;
        Ok(Some(Streams { map, weight: weight as f32 }))
    }

    /// Which layer of the teacher each of the student is compared with.
    fn map(&self, original: &Original, student: &Source) -> Result<LayerMap> {
        let Original::Model(teacher) = original else {
            return Err(Failure::from(attar_distill::Error::KeptWithoutStreams)
                .hint("give the teacher itself in place of its cache"));
        };
        let [of_student, of_teacher] = [&student.config, &teacher.config];
        let even = || LayerMap::even(of_student.num_hidden_layers, of_teacher.num_hidden_layers);
        let map = self.layer_map.clone().unwrap_or_else(even);
        map.check(of_student, of_teacher).hint(|| {
            "--layer-map names layers of both, and both need one hidden size; predictions alone can be learned by any student"
        })?;
        Ok(map)
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

    /// What computes, and where on it the student learns if that is a CUDA device.
    fn desk(
        &self,
        original: &Original,
        student: &Source,
        data: &Data,
        global: &Global,
    ) -> Result<(Computer, Option<Desk>)> {
        let mut models = vec![&student.config];
        if let Original::Model(teacher) = original {
            models.push(&teacher.config);
        }
        let computer = global.computer(&models)?;
        let sizes = (usize::from(self.batch), data.windows.ctx());
        let course = if self.scheme.is_some() {
            Err(Failure::new("a student sees its weights as they are stored on the processor only")
                .hint("leave --device out, or --scheme, and quantize what was taught"))
        } else if self.hidden_loss.is_some() {
            Err(Failure::from(attar_distill::Error::StreamsOnDevice)
                .hint("leave --device out, or --hidden-loss, and learn from predictions alone"))
        } else {
            pupil::course(student, original, sizes, self.precision.into())
        };
        match course {
            Ok(course) => {
                let desk = computer.desk(course)?;
                Ok((computer, desk))
            }
            Err(reason) => Ok((computer.without_device(reason)?, None)),
        }
    }

    /// The run that is to be taken up again, if one is.
    fn taken_up(&self, state: &Path, fingerprint: &str, global: &Global) -> Result<Option<Kept>> {
        match (Kept::is_at(state), self.resume) {
            (true, true) => Kept::open(state, fingerprint).map(Some),
            (true, false) if global.overwrite() == Overwrite::No => {
                Err(Failure::new(format!("`{}` keeps a run that was not finished", state.display()))
                    .hint("--resume goes on with it, --force begins anew"))
            }
            (false, true) => {
                Err(Failure::new(format!("there is no run to go on with: no `{}`", state.display()))
                    .hint("leave --resume out to begin one"))
            }
            _ => Ok(None),
        }
    }
}

fn reported(map: &LayerMap) -> Vec<[u64; 2]> {
    map.pairs().iter().map(|&(student, teacher)| [student as u64, teacher as u64]).collect()
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
