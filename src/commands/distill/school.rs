//! Who teaches whom what, where, and what is kept of it on the way.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attar_checkpoint::atomic::{self, Overwrite};
use attar_checkpoint::tokenizer::Tokenizer;
use attar_distill::{DeviceTraining, Disguise, Progress, Teacher, Training};
use attar_eval::{Report, report};
use attar_model::device::{Element, bf16};
use attar_model::{Device, Keep, Precision, Role, Step};
use attar_quant::Named;
use ndarray::{Array2, ArrayView2};

use super::lesson::{Lesson, Manner, facts};
use super::{METHOD, SAME_TOKENS, state_of};
use crate::cli::{DistillArgs, Global, Method};
use crate::device::{self, Computer};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::local::{self, BlockByBlock};
use crate::pipeline::pupil::{Desk, OnDevice, OnProcessor};
use crate::pipeline::score::Scoring;
use crate::pipeline::teacher::Original;
use crate::pipeline::training::{self, Data, Kept, Record, Run};
use crate::pipeline::{Clock, Job, describe};
use crate::plan::{Correct, NO_RULES, Plan, Treatment};
use crate::scheme::Scheme;
use crate::source::Source;
use crate::talk::{Talk, thousands};

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
        match original {
            Original::Model(teacher) => check_tokens(teacher, tokenizer, global.talk())?,
            Original::Cache(cache) => cache.check_vocabulary(&tokenizer.vocabulary_sha256())?,
        }
        let map = args.layers(original, student)?;
        let data = args.data(original, student, tokenizer, global.talk())?;
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
            layout: None,
            keeps_codes: false,
            method: Method::Rtn,
            zeros: None,
            rules: &NO_RULES,
            calibration: None,
            imatrix: None,
            learned: None,
            tuning: None,
            correct: Correct::Off,
            output: &self.args.output,
            overwrite: self.overwrite,
            pre_tokenizer: None,
            max_part_bytes: None,
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

    /// The scheme and the method of what is written, as reports have them.
    ///
    /// # Errors
    /// As [`Job::plan`].
    pub fn names(&self, student: &Source) -> Result<(String, Option<String>)> {
        let job = self.job(student);
        let plan = job.plan()?;
        let method =
            if self.args.scheme.is_some() { job.method_name(&plan) } else { Some(METHOD.to_owned()) };
        Ok((job.scheme_name(&plan), method))
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
        atomic::remove_abandoned(&self.state);
        let disguise = args.scheme.map(|_| Stored::new(&plan));
        let (record, progress) = clock.time("distill", || match (manner, args.precision.into()) {
            (Manner::Whole(memory), _) => self.teach(student, kept, disguise.as_ref(), memory.keep),
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

    /// The text that what was taught is compared with its teacher on, where it is; where reports go is looked at too.
    pub(super) fn scoring(&self, student: &Source, global: &Global) -> Result<Option<Scoring<'a>>> {
        global.delivery().check(&[&self.args.output])?;
        let request = self.args.scoring(self.original, &self.computer, global);
        (!self.args.no_eval).then(|| request.read(student, self.tokenizer)).transpose()
    }

    /// Scores what was written and hands over the report.
    pub(super) fn deliver(
        &self,
        written: &Source,
        mut report: Report,
        scoring: Option<&Scoring<'_>>,
        mut clock: Clock,
        global: &Global,
    ) -> Result<()> {
        if let Some(scoring) = scoring {
            let reference = match self.original {
                Original::Model(teacher) => {
                    Some(clock.time("reference", || scoring.reference(teacher, self.talk))?)
                }
                Original::Cache(_) => None,
            };
            let score = || scoring.score(written, reference.as_ref(), self.talk);
            report.evaluation = Some(clock.time("evaluate", score)?);
        }
        report.run = Some(self.facts_of_run(&clock));
        global.delivery().one(&report)
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
        keep: Keep,
    ) -> Result<(Record, Progress)> {
        let Self { args, original, lesson, .. } = self;
        let model = training::load(kept.as_ref().map_or(student, |kept| &kept.student))?;
        let mut training =
            Training::new(model, lesson.optimizer, Step { keep, precision: args.precision.into() });
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

/// Weights as the plan's encodings store them, rounded to nearest.
struct Stored(HashMap<(Option<usize>, Role), Named>);

impl Stored {
    fn new(plan: &Plan) -> Self {
        let coded = plan.tensors.iter().filter_map(|tensor| match &tensor.treatment {
            Treatment::Codes(encoding) => Some((&tensor.spec, encoding)),
            Treatment::Float(_) => None,
        });
        let parts = coded.flat_map(|(spec, encoding)| {
            spec.role.parts().iter().map(move |&part| ((spec.layer, part), encoding.clone()))
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
