//! `attar eval`: what a model scores, alone or against the one it was made from.

use std::path::PathBuf;

use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::report::TaskResult;
use attar_eval::tasks::{Task, compare};
use attar_eval::{Reference, Report};
use attar_model::Device;
use attar_model::teacher::{LogProbs, Signal};

use crate::cli::{EvalArgs, Global};
use crate::commands::ScoringRequest;
use crate::commands::deliver::Delivery;
use crate::device::Computer;
use crate::diagnostic::{Failure, Result};
use crate::pipeline::score::Scoring;
use crate::pipeline::tasks::{self, Exam};
use crate::pipeline::teacher::{Beside, Keeping, Original, SaveAs};
use crate::pipeline::{Clock, describe};
use crate::source::Source;
use crate::talk::{Talk, say};

/// Measures, and tells.
///
/// # Errors
/// As [`measure`]; a report that cannot be written.
pub fn run(args: &EvalArgs, global: &Global) -> Result<()> {
    let delivery = global.delivery();
    let measured = measure(args, &args.texts()?, global, &delivery, |_, _| Ok(()))?;
    measured.map_or(Ok(()), |measured| delivery.one(&measured.report))
}

/// What was found, and the tasks whose answers are in it.
pub struct Measured {
    /// The figures.
    pub report: Report,
    /// The tasks, in the order of their results.
    pub tasks: Vec<Task>,
}

/// Cuts the `texts`, tokenizes the tasks, runs the models, keeps what is to be kept; a text that is not named is the reference's
/// own or the one that comes with attar. Before the work begins `admit` has its say, which is shown the models and how the texts
/// are cut. `None` where only the plan was asked for, which is then said.
///
/// # Errors
/// A model, cache, text or task that cannot be read, models with different tokenizers; what `admit` refuses.
pub fn measure(
    args: &EvalArgs,
    texts: &[Option<PathBuf>],
    global: &Global,
    delivery: &Delivery,
    admit: impl FnOnce(&Report, &[Scoring<'_>]) -> Result<()>,
) -> Result<Option<Measured>> {
    let talk = global.talk();
    let source = Source::open(&args.model)?;
    let beside = args.reference.as_deref().map(Beside::open).transpose()?;
    args.goes_together(texts, beside.as_ref())?;
    let tokenizer = source.tokenizer()?;
    let model = (&source, &tokenizer);
    let mut models = vec![&source.config];
    models.extend(beside.as_ref().and_then(Beside::model).map(|original| &original.config));
    let computer = global.computer(&models)?;
    let scorings = args.scorings(global, model, texts, beside.as_ref(), &computer)?;
    let tasks = tasks::read(&args.task, args.items.map(|items| items as usize))?;
    let exams = args.exams((global, &computer), model, beside.as_ref(), &tasks)?;
    let mut report = Report::new(describe(&source));
    report.original = beside.as_ref().and_then(Beside::model).map(describe);
    admit(&report, &scorings)?;
    if global.dry_run {
        say(&plan(args, beside.as_ref(), &scorings, &exams))?;
        return Ok(None);
    }
    let keep_at = args.save_reference.as_deref();
    delivery.check(&keep_at.into_iter().collect::<Vec<_>>())?;

    let mut clock = Clock::default();
    report.tasks = answers(&exams, &tasks, &mut clock, talk)?;
    for (task, file) in report.tasks.iter_mut().zip(&args.task) {
        task.file = file.display().to_string();
    }
    let memory = scorings.first().map(|scoring| &scoring.memory).or(exams.first().map(|exam| &exam.memory));
    let streaming = memory.map(|memory| memory.streaming.clone());
    drop(exams); // they hold on to the models
    let other = beside.map(Other::of);
    for (number, scoring) in scorings.iter().enumerate() {
        let begin = |path| Keeping::begin(path, args.save_as, scoring, model, global.overwrite(), talk);
        let keeping = keep_at.map(|path| clock.time("prepare", || begin(path))).transpose()?;
        let run_now = match &other {
            Some(Other::Run(original)) => {
                Some(clock.time("reference", || scoring.reference(original, talk))?)
            }
            _ => None,
        };
        let reference = match &other {
            Some(Other::Kept(reference)) => Some(reference),
            _ => run_now.as_ref(),
        };
        let scored = clock.time("evaluate", || scoring.predict(&source, reference, talk))?;
        let (predictions, evaluation) = scored;
        if number == 0 {
            report.evaluation = Some(evaluation);
        } else {
            report.further_evaluations.push(evaluation);
        }
        if let Some(keeping) = keeping {
            clock.time("keep", || keeping.finish(&predictions, scoring, talk))?;
        }
    }
    let devices = streaming.iter().map(|streaming| &streaming.device);
    report.run = Some(clock.run(streaming.as_ref().map(|streaming| streaming.precision), devices));
    Ok(Some(Measured { report, tasks }))
}

/// What the model answers, where there are tasks, beside what the reference does, where there is one.
fn answers(exams: &[Exam<'_>], tasks: &[Task], clock: &mut Clock, talk: Talk) -> Result<Vec<TaskResult>> {
    let Some(exam) = exams.first() else { return Ok(Vec::new()) };
    let mut answers = clock.time("tasks", || exam.sit("tasks", talk))?;
    if let Some(exam) = exams.get(1) {
        let then = clock.time("reference tasks", || exam.sit("reference", talk))?;
        for ((task, now), then) in tasks.iter().zip(&mut answers).zip(&then) {
            compare(task, now, then);
        }
    }
    Ok(answers)
}

/// What the model is compared with.
enum Other<'a> {
    /// A model, run over every text.
    Run(Box<Source>),
    /// What was kept, of one text.
    Kept(Reference<'a>),
}

impl Other<'_> {
    fn of(beside: Beside) -> Self {
        match beside {
            Beside::Original(Original::Model(source)) => Self::Run(source),
            Beside::Original(Original::Cache(cache)) => Self::Kept(Reference::Cache(cache)),
            Beside::LogProbs(file) => Self::Kept(Reference::LogProbs(file)),
        }
    }
}

impl EvalArgs {
    /// The texts to score; `None` is the one that the reference brings.
    ///
    /// # Errors
    /// There is nothing to score, and no task.
    fn texts(&self) -> Result<Vec<Option<PathBuf>>> {
        let files: Vec<_> = self.text.iter().cloned().map(Some).collect();
        if files.is_empty() && self.reference.as_deref().is_some_and(LogProbs::is_at) {
            return Ok(vec![None]);
        }
        if files.is_empty() && self.task.is_empty() {
            return Err(
                Failure::new("there is nothing to score").hint("name a text with --text, or a --task")
            );
        }
        Ok(files)
    }

    /// Refuses what cannot go together.
    fn goes_together(&self, texts: &[Option<PathBuf>], beside: Option<&Beside>) -> Result<()> {
        let kept = beside.and_then(Beside::kept);
        if texts.len() > 1 && (self.save_reference.is_some() || kept.is_some()) {
            return Err(Failure::new("what is kept of a model is kept of one text, and there are several")
                .hint("give one --text, or the model itself to --reference"));
        }
        Ok(())
    }

    /// The texts, cut.
    fn scorings<'t>(
        &self,
        global: &Global,
        (source, tokenizer): (&Source, &'t Tokenizer),
        texts: &[Option<PathBuf>],
        beside: Option<&Beside>,
        computer: &Computer,
    ) -> Result<Vec<Scoring<'t>>> {
        let kept = beside.and_then(Beside::kept);
        let original = beside.and_then(Beside::model);
        let scoring = |file: Option<&PathBuf>| {
            let request = ScoringRequest {
                file,
                ctx: self.ctx,
                chunks: self.chunks,
                convention: self.convention.into(),
                precision: self.precision.into(),
                as_in: kept,
                models: 1 + usize::from(original.is_some()),
                max_memory: global.max_memory,
                computer,
            };
            let scoring = request.read(source, tokenizer)?;
            if let Some(original) = original {
                request.check_other(&scoring, source, original)?;
            }
            Ok(scoring)
        };
        texts.iter().map(|file| scoring(file.as_ref())).collect()
    }

    /// The tasks for the model, then for the reference; none where there are no tasks.
    fn exams<'a>(
        &self,
        (global, computer): (&Global, &Computer),
        (source, tokenizer): (&'a Source, &Tokenizer),
        beside: Option<&'a Beside>,
        tasks: &'a [Task],
    ) -> Result<Vec<Exam<'a>>> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        if beside.is_some_and(|beside| beside.kept().is_some()) {
            return Err(tasks::refuse_kept(self.reference.as_deref().unwrap_or(&self.model)));
        }
        let exam = |source: &'a Source, tokenizer: &Tokenizer| {
            Exam::plan(tasks, source, tokenizer, self.precision.into(), global.max_memory, computer)
        };
        let mut exams = vec![exam(source, tokenizer)?];
        if let Some(original) = beside.and_then(Beside::model) {
            exams.push(exam(original, &original.tokenizer()?)?);
        }
        Ok(exams)
    }

    /// Whether what is kept or read has no head, and is not made or compared on a CUDA device.
    fn keeps_no_head(&self, beside: Option<&Beside>) -> bool {
        let read = beside.and_then(Beside::kept).is_some_and(|kept| !kept.has_head());
        let written = matches!(self.save_as, SaveAs::Cache(Signal::TopK(_)) | SaveAs::LlamaCpp);
        read || self.save_reference.is_some() && written
    }
}

/// What would be done.
fn plan(args: &EvalArgs, beside: Option<&Beside>, scorings: &[Scoring<'_>], exams: &[Exam]) -> String {
    let texts = scorings.iter().map(|Scoring { text, windows, memory, .. }| {
        let (tokens, ctx, count) = (windows.tokens().len(), windows.ctx(), windows.count());
        let head = match (&memory.streaming.device, args.keeps_no_head(beside)) {
            (Device::Cuda(_), true) => "likeliest tokens: found and compared on the processor\n",
            _ => "",
        };
        let name = if scorings.len() > 1 { format!("{text}: ") } else { String::new() };
        format!("{name}{tokens} tokens in {count} windows of {ctx}\n{head}{memory}\n")
    });
    let tasks = exams.iter().map(|exam| format!("tasks: {} texts\n{}\n", exam.texts(), exam.memory));
    texts.chain(tasks).collect()
}
