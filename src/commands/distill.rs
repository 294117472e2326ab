//! `attar distill`: a student learns from its teacher, is written, reopened and scored.

mod lesson;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_distill::{DeviceTraining, Disguise, LayerMap, Progress, Teacher, Training};
use attar_eval::Convention;
use attar_model::device::{Element, bf16};
use attar_model::{Device, ModelConfig, Precision, Role};
use attar_quant::Named;
use ndarray::{Array2, ArrayView2};

use crate::cli::{DistillArgs, Global, Method};
use crate::commands::quantize::check_weights;
use crate::commands::{ScoringRequest, prepare};
use crate::data;
use crate::device::{self, Computer};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::local::{self, BlockByBlock};
use crate::pipeline::pupil::{self, Desk, OnDevice, OnProcessor};
use crate::pipeline::teacher::Original;
use crate::pipeline::training::{self, Data, Kept, Record, Run};
use crate::pipeline::{Clock, Job, describe, refuse_quantized};
use crate::plan::{CalibrationSize, LocalMemory, Plan, Treatment};
use crate::source::Source;
use crate::talk::{Talk, say, thousands};
use lesson::{Lesson, Manner, facts};

/// What is said of a teacher whose tokens are others.
const SAME_TOKENS: &str = "a student learns from a teacher with the same tokenizer only";

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
    if let Original::Model(teacher) = &original {
        check_tokens(teacher, &tokenizer, talk)?;
    }
    let map = args.layers(&original, &student)?;
    let data = args.data(&original, &student, &tokenizer)?;
    let lesson = Lesson::new(args, map.as_ref(), &data);

    let scheme = match args.scheme {
        Some(scheme) => scheme,
        None => student.matrix_dtype().to_string().parse()?,
    };
    let cpu = Computer::cpu();
    let (computer, desk) = args.desk(&original, &student, &data, global)?;
    let manner = args.manner((desk, map), (&student, &original), (&data, &lesson), global.max_memory)?;
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
        let lesson = lesson.plan(args, &student, &data, &manner);
        return say(&format!("{lesson}\n{}\n", job(&student).plan()?));
    }
    let Some(plan) = prepare(&job(&student), &delivery, global)? else { return Ok(()) };
    let state = state_of(&args.output);
    training::check_room(&state, &student, plan.bytes())?;
    let scoring = if args.no_eval {
        None
    } else {
        Some(args.scoring(&original, &computer, global).read(&student, &tokenizer)?)
    };
    let fingerprint = lesson.fingerprint(args, &student, &data, &manner);
    let kept = args.taken_up(&state, &fingerprint, global)?;

    let mut clock = Clock::default();
    clock.time("check", || check_weights(&student, talk))?;
    training::end_on_signal()?;
    let disguise = args.scheme.map(|_| Stored::new(&plan));
    let school = School {
        args,
        student: &student,
        original: &original,
        data: &data,
        lesson: &lesson,
        manner: &manner,
        state: &state,
        fingerprint: &fingerprint,
        talk,
    };
    let (record, progress) = clock.time("distill", || match (&manner, args.precision.into()) {
        (Manner::Whole, _) => school.teach(kept, disguise.as_ref()),
        (Manner::There(desk), Precision::F32) => school.teach_there::<f32>(desk, kept),
        (Manner::There(desk), Precision::Bf16) => school.teach_there::<bf16>(desk, kept),
        (Manner::Layers { map, seen, memory }, precision) => {
            let Original::Model(teacher) = &original else { unreachable!("layers are held to a model's") };
            let (optimizer, keeping) = (lesson.optimizer, &memory.keeping);
            let course = local::Course { teacher, map, optimizer, precision, keeping, state: &state };
            school.teach_layers(course, seen, kept)
        }
    })?;

    let taught = Source::open(&state)?;
    let job = job(&taught);
    let (written, mut report) = job.run(&job.plan()?, &mut clock)?;
    report.model = describe(&student);
    report.distillation = Some(facts(args, (&lesson, &manner), &data, record, progress.steps));
    if let Some(scoring) = &scoring {
        let reference = match &original {
            Original::Model(teacher) => Some(clock.time("reference", || scoring.reference(teacher, talk))?),
            Original::Cache(_) => None,
        };
        report.evaluation =
            Some(clock.time("evaluate", || scoring.score(&written, reference.as_ref(), talk))?);
    }
    let mut run = clock.run(Some(job.precision), [&Device::Cpu]);
    if let Manner::There(desk) = &manner {
        run.device = device::name_of(&desk.cuda);
    }
    report.run = Some(run);
    delivery.one(&report)?;
    drop(taught);
    std::fs::remove_dir_all(&state).doing(|| format!("while removing `{}`", state.display()))
}

/// Holds a student's tokens to its teacher's, where those are known.
fn check_tokens(teacher: &Source, student: &Tokenizer, talk: Talk) -> Result<()> {
    let Ok(tokenizer) = teacher.tokenizer() else {
        talk.warn("the teacher has no tokenizer that attar reads: its tokens are taken for the student's");
        return Ok(());
    };
    let differing = tokenizer.differing_from(student);
    let Some(&first) = differing.first() else { return Ok(()) };
    let text = |of: &Tokenizer| of.tokens()[first as usize].text.clone();
    Err(Failure::new(format!(
        "{} tokens stand for other text in the teacher than in the student: token {first} for `{}` and for `{}`",
        thousands(differing.len() as u64),
        text(&tokenizer),
        text(student)
    ))
    .hint(SAME_TOKENS))
}

/// Who teaches whom what.
struct School<'a> {
    args: &'a DistillArgs,
    student: &'a Source,
    original: &'a Original,
    data: &'a Data,
    lesson: &'a Lesson,
    manner: &'a Manner,
    state: &'a Path,
    fingerprint: &'a str,
    talk: Talk,
}

impl School<'_> {
    /// Takes the run up where it was kept, or begins it, and goes on to its last step.
    fn teach(&self, kept: Option<Kept>, disguise: Option<&Stored>) -> Result<(Record, Progress)> {
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
        self.run().train(&mut pupil, record)
    }

    /// [`teach`](Self::teach) on a CUDA device.
    fn teach_there<T: Element>(&self, desk: &Desk, kept: Option<Kept>) -> Result<(Record, Progress)> {
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
        self.run().train(&mut pupil, record)
    }

    /// [`teach`](Self::teach) layer by layer.
    fn teach_layers(
        &self,
        course: local::Course<'_>,
        seen: &[usize],
        kept: Option<Kept>,
    ) -> Result<(Record, Progress)> {
        let pupil = BlockByBlock::new(course, self.student, self.data, seen.to_vec())?;
        let (mut pupil, record) = match kept {
            Some(kept) => kept.resumed(|progress, remembered| pupil.after(progress, remembered))?,
            None => (pupil, Record::default()),
        };
        self.run().train(&mut pupil, record)
    }

    fn run(&self) -> Run<'_> {
        let Self { args, student, data, lesson, manner, state, fingerprint, talk, .. } = *self;
        Run {
            source: student,
            data,
            batch: args.batch.into(),
            steps: lesson.steps(manner),
            part_steps: lesson.optimizer.schedule.steps,
            seed: args.seed,
            state,
            save_every: Duration::from_secs_f64(60.0 * args.save_every),
            fingerprint: fingerprint.to_owned(),
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
            .hint(SAME_TOKENS));
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

    /// Which layer of the teacher each of the student is held to, if any is: as the user has it, or all, evenly spread.
    fn layers(&self, original: &Original, student: &Source) -> Result<Option<LayerMap>> {
        if !self.local && self.hidden_loss.is_none() {
            return Ok(None);
        }
        let at = || "while comparing layers of student and teacher";
        let Original::Model(teacher) = original else {
            return Err(Failure::from(attar_distill::Error::KeptWithoutStreams)
                .hint("give the teacher itself in place of its cache"))
            .doing(at);
        };
        let [of_student, of_teacher] = [&student.config, &teacher.config];
        let even = || LayerMap::even(of_student.num_hidden_layers, of_teacher.num_hidden_layers);
        let map = self.layer_map.clone().unwrap_or_else(even);
        map.check(of_student, of_teacher).doing(at).hint(|| {
            "--layer-map names layers of both, and both need one hidden size; predictions alone can be learned by any student"
        })?;
        if !self.local {
            return Ok(Some(map));
        }
        if !map.rises() {
            return Err(Failure::new("layers that learn one after another follow layers that rise too")
                .hint(
                    "let the teacher's numbers rise in --layer-map, or use --hidden-loss in place of --local",
                ))
            .doing(at);
        }
        match map.pairs().iter().find(|(layer, _)| of_student.experts_of(*layer).is_some()) {
            Some(&(layer, _)) => Err(Failure::from(attar_model::Error::NoBackward { layer })
                .hint("leave layers with experts out of --layer-map"))
            .doing(at),
            None => Ok(Some(map)),
        }
    }

    /// How the student is taught: on a device, layer by layer, or whole.
    fn manner(
        &self,
        (desk, map): (Option<Desk>, Option<LayerMap>),
        (student, original): (&Source, &Original),
        work: (&Data, &Lesson),
        max_memory: Option<u64>,
    ) -> Result<Manner> {
        match (desk, map, original) {
            (Some(desk), ..) => Ok(Manner::There(desk)),
            (None, Some(map), Original::Model(teacher)) if self.local => {
                self.layer_by_layer(map, [&student.config, &teacher.config], work, max_memory)
            }
            _ => Ok(Manner::Whole),
        }
    }

    /// What a student needs whose layers learn one after another.
    fn layer_by_layer(
        &self,
        map: LayerMap,
        configs: [&ModelConfig; 2],
        (data, lesson): (&Data, &Lesson),
        max_memory: Option<u64>,
    ) -> Result<Manner> {
        let ctx = data.windows.ctx();
        let seen = data.seen(self.batch.into(), self.seed, lesson.optimizer.schedule.steps);
        let size = CalibrationSize { tokens: seen.len() * ctx, ctx };
        let memory = LocalMemory::within(configs, size, max_memory)?;
        Ok(Manner::Layers { map, seen, memory })
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
        } else if self.local || self.hidden_loss.is_some() {
            Err(Failure::from(attar_distill::Error::StreamsOnDevice)
                .hint("leave --device out, or --local and --hidden-loss, and learn from predictions alone"))
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
