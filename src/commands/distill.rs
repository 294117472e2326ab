//! `attar distill`: a student learns from its teacher, is written, reopened and scored.

mod lesson;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_distill::{DeviceTraining, Disguise, LayerMap, Progress, Teacher, Training};
use attar_eval::{Convention, Report, report};
use attar_model::device::{Element, bf16};
use attar_model::{Device, ModelConfig, Precision, Role};
use attar_quant::Named;
use ndarray::{Array2, ArrayView2};

use crate::cli::{DistillArgs, Global, Method};
use crate::commands::ScoringRequest;
use crate::commands::quantize::check_weights;
use crate::data;
use crate::device::{self, Computer};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::local::{self, BlockByBlock};
use crate::pipeline::pupil::{self, Desk, OnDevice, OnProcessor};
use crate::pipeline::teacher::Original;
use crate::pipeline::training::{self, Data, Kept, Record, Run};
use crate::pipeline::{Clock, Job, describe, refuse_quantized};
use crate::plan::{CalibrationSize, LocalMemory, Plan, Treatment};
use crate::scheme::Scheme;
use crate::source::Source;
use crate::talk::{Talk, say, thousands};
use lesson::{Lesson, Manner, facts};

/// What is said of a teacher whose tokens are others.
const SAME_TOKENS: &str = "a student learns from a teacher with the same tokenizer only";

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
    manner: Manner,
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
        if let Original::Model(teacher) = original {
            check_tokens(teacher, tokenizer, global.talk())?;
        }
        let map = args.layers(original, student)?;
        let data = args.data(original, student, tokenizer)?;
        let lesson = Lesson::new(args, map.as_ref(), &data);
        let (computer, desk) = args.desk(pair, &data, computer)?;
        let manner = args.manner((desk, map), (student, original), (&data, &lesson), global.max_memory)?;
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
            manner,
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
        let lesson = self.lesson.plan(self.args, student, &self.data, &self.manner);
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
        let plan = job.plan()?;
        job.check(&plan)?;
        training::check_room(&self.state, student, plan.bytes())?;
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
        let Self { args, lesson, manner, .. } = self;
        let plan = self.job(student).plan()?;
        training::end_on_signal()?;
        let disguise = args.scheme.map(|_| Stored::new(&plan));
        let (record, progress) = clock.time("distill", || match (manner, args.precision.into()) {
            (Manner::Whole, _) => self.teach(student, kept, disguise.as_ref()),
            (Manner::There(desk), Precision::F32) => self.teach_there::<f32>(desk, student, kept),
            (Manner::There(desk), Precision::Bf16) => self.teach_there::<bf16>(desk, student, kept),
            (Manner::Layers { map, seen, memory }, precision) => {
                let Original::Model(teacher) = self.original else {
                    unreachable!("layers are held to a model's")
                };
                let (optimizer, keeping) = (lesson.optimizer, &memory.keeping);
                let course =
                    local::Course { teacher, map, optimizer, precision, keeping, state: &self.state };
                self.teach_layers(student, course, seen, kept)
            }
        })?;
        let taught = Source::open(&self.state)?;
        let job = self.job(&taught);
        let (written, mut report) = job.run(&job.plan()?, clock)?;
        report.model = describe(student);
        if let (Some(output), None) = (&mut report.output, args.scheme) {
            output.method = Some(METHOD.to_owned());
        }
        report.distillation = Some(facts(args, (lesson, manner), &self.data, record, progress.steps));
        Ok((written, report))
    }

    /// What the report says of where and how long it ran.
    pub fn facts_of_run(&self, clock: &Clock) -> report::Run {
        let mut run = clock.run(Some(self.args.precision.into()), [&Device::Cpu]);
        if let Manner::There(desk) = &self.manner {
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
        self.lesson.fingerprint(self.args, student, &self.data, &self.manner)
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
        let mut pupil = OnProcessor { training, teacher: &teacher, aim: lesson.aim.clone() };
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
        let mut pupil = OnDevice { training, teacher, aim: lesson.aim.clone(), at_once };
        self.course(student).train(&mut pupil, record)
    }

    /// [`teach`](Self::teach) layer by layer.
    fn teach_layers(
        &self,
        student: &Source,
        course: local::Course<'_>,
        seen: &[usize],
        kept: Option<Kept>,
    ) -> Result<(Record, Progress)> {
        let pupil = BlockByBlock::new(course, student, &self.data, seen.to_vec())?;
        let (mut pupil, record) = match kept {
            Some(kept) => kept.resumed(|progress, remembered| pupil.after(progress, remembered))?,
            None => (pupil, Record::default()),
        };
        self.course(student).train(&mut pupil, record)
    }

    fn course<'s>(&'s self, student: &'s Source) -> Run<'s> {
        let Self { args, lesson, manner, .. } = self;
        Run {
            source: student,
            data: &self.data,
            batch: args.batch.into(),
            steps: lesson.steps(manner),
            part_steps: lesson.optimizer.schedule.steps,
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

impl DistillArgs {
    /// Holds what was asked for to the teacher and the student.
    fn check(&self, original: &Original, student: &Source) -> Result<()> {
        if !student.config.layer_sizes.is_empty() {
            return Err(Failure::new(
                "the layers of the student differ in size, and a run is kept in a folder, whose config.json cannot say that",
            )
            .hint("teach what attar prune --across-layers writes without --arch deci: its zeros stay zeros"));
        }
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

    /// Where the student learns if that is a CUDA device; what computes all else.
    fn desk(&self, pair: Pair<'_, '_>, data: &Data, computer: Computer) -> Result<(Computer, Option<Desk>)> {
        let sizes = (usize::from(self.batch), data.windows.ctx());
        let course = if self.scheme.is_some() {
            Err(Failure::new("a student sees its weights as they are stored on the processor only")
                .hint("leave --device out, or --scheme, and quantize what was taught"))
        } else if self.local || self.hidden_loss.is_some() {
            Err(Failure::from(attar_distill::Error::StreamsOnDevice)
                .hint("leave --device out, or --local and --hidden-loss, and learn from predictions alone"))
        } else {
            pupil::course(pair.student, pair.original, sizes, self.precision.into())
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
