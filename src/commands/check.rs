//! `attar check`: the CI gate. Measures as `attar eval` does, holds the figures to limits, and says so wherever CI listens.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use attar_eval::Report;
use attar_eval::gate::{self, Limits, Prospect, Subject};
use attar_eval::render::Subject as Rendered;
use attar_eval::report::{Check, Difference, Limit, Verdict};
use attar_eval::tasks::{Task, compare};
use attar_model::teacher::LogProbs;

use crate::Outcome;
use crate::cli::{CheckArgs, EvalArgs, Global};
use crate::commands::deliver::{self, Delivery};
use crate::commands::eval::{self, Measured};
use crate::diagnostic::{Explain, Failure, Result};
use crate::hub;
use crate::pipeline::score::Scoring;
use crate::pipeline::verify::Facts;
use crate::recipe;
use crate::talk::{Talk, say};

/// Measures, judges, tells.
///
/// # Errors
/// What `attar eval` fails on; a baseline that is missing, or of another model or text; a limit on what is not measured.
pub fn run(args: &CheckArgs, global: &Global) -> Result<Outcome> {
    let outcome = checked(args, global);
    if let Err(failure) = &outcome
        && on_github()
    {
        let cause = escape(&failure.in_one_line());
        say(&format!("::error title=attar check could not be done::{cause}\n"))?;
    }
    outcome
}

fn checked(args: &CheckArgs, global: &Global) -> Result<Outcome> {
    let mut args = match &args.config {
        Some(config) => recipe::check_table(config, args)?,
        None => args.clone(),
    };
    hub::settle(args.model.iter_mut().chain(&mut args.reference), global.talk())?;
    let model = args.model.clone().ok_or_else(|| {
        Failure::new("no model is named").hint("name it on the command line, or as `model` in [check]")
    })?;
    let baseline = args.baseline()?;
    if let Some(baseline) = &baseline {
        args.take_from(baseline);
    }
    let limits = args.limits(baseline.as_ref());
    let asked = args.eval(model);
    let texts = args.texts(&limits, baseline.is_some());
    let admit = |report: &Report, scorings: &[Scoring<'_>]| {
        let prospect = Prospect {
            report,
            cuts: scorings.iter().map(Scoring::cut).collect(),
            tasks: !args.task.is_empty(),
            reference: args.reference.is_some(),
            baseline: baseline.as_ref(),
        };
        match limits.admit(&prospect) {
            Err(error) if !args.update_baseline => Err(args.explain(&error, baseline.as_ref())),
            _ => Ok(()),
        }
    };
    let delivery = global.delivery();
    args.check_files(&asked)?;
    let Some(measured) = eval::measure(&asked, &texts, global, &delivery, admit)? else {
        say(&format!("limits: {limits}\n"))?;
        return Ok(Outcome::Done);
    };
    let Measured { mut report, tasks } = measured;
    if args.update_baseline {
        return args.update(&report, baseline.as_ref(), &delivery);
    }
    if let Some(baseline) = &baseline {
        beside(&tasks, &mut report, baseline).map_err(|error| args.explain(&error, Some(baseline)))?;
    }
    let name = args.baseline.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let subject = Subject {
        report: &report,
        bytes: Facts::bytes_of(&asked.model)?,
        baseline: baseline.as_ref().map(|baseline| (name.as_str(), baseline)),
        reference: report.original.as_ref().map(|original| original.source.as_str()),
    };
    let check = limits.judge(&subject).map_err(|error| args.explain(&error, baseline.as_ref()))?;
    let passed = check.passed;
    report.check = Some(check);
    let short = in_short(&report);
    delivery.briefly(&report, if global.verbose { &report } else { &short })?;
    args.tell(&short, global.talk())?;
    Ok(if passed { Outcome::Done } else { Outcome::GateFailed })
}

/// Sets the answers beside those of the baseline.
fn beside(tasks: &[Task], report: &mut Report, baseline: &Report) -> std::result::Result<(), gate::Error> {
    for (task, now) in tasks.iter().zip(&mut report.tasks) {
        let named = baseline.tasks.iter().find(|then| then.name == now.name);
        let same = named.filter(|then| then.items_sha256 == now.items_sha256 && then.items == now.items);
        let Some(then) = same else {
            let detail = named.map(|then| {
                format!(
                    " as it is now: it had {} items, and has {}, or they have changed",
                    then.items, now.items
                )
            });
            let subject = format!("the task `{}`", now.name);
            return Err(gate::Error::OtherTokens { subject, detail: detail.unwrap_or_default() });
        };
        compare(task, now, then);
    }
    Ok(())
}

impl CheckArgs {
    /// The report to compare with, where there is one to be.
    fn baseline(&self) -> Result<Option<Report>> {
        let Some(path) = &self.baseline else {
            let none = Failure::new("no baseline is named to be written").hint("name it with --baseline");
            return if self.update_baseline { Err(none) } else { Ok(None) };
        };
        match (path.exists(), self.update_baseline) {
            (true, _) => deliver::read_report(path).map(Some),
            (false, true) => Ok(None),
            (false, false) => Err(Failure::new(format!("there is no baseline `{}`", path.display()))
                .hint("make one with --update-baseline, and commit it")),
        }
    }

    /// A path that the baseline names: where it leads from here or, if nowhere, from the baseline's folder.
    fn named(&self, path: &str) -> PathBuf {
        let here = PathBuf::from(path);
        let there = self.baseline.as_deref().and_then(Path::parent).map(|folder| folder.join(path));
        there.filter(|there| !here.exists() && there.exists()).unwrap_or(here)
    }

    /// Texts, how they are cut, tasks and reference of the baseline, where no others are named.
    fn take_from(&mut self, baseline: &Report) {
        let kept = baseline.evaluation.as_ref().and_then(|then| Some(&then.reference.as_ref()?.path));
        if self.text.is_empty() && self.task.is_empty() {
            // A kept reference may have brought the text with it.
            let texts = baseline.evaluations().map(|then| &then.text);
            let files = texts.filter(|text| Some(*text) != kept);
            self.text = files.map(|text| self.named(text)).collect();
            let tasks = baseline.tasks.iter().filter(|then| !then.file.is_empty());
            self.task = tasks.map(|then| self.named(&then.file)).collect();
            let items = baseline.tasks.iter().map(|then| then.items as u32).max();
            self.items = self.items.or(items);
        }
        if let Some(then) = &baseline.evaluation {
            self.ctx = self.ctx.or(Some(then.ctx as usize));
            let most = baseline.evaluations().map(|then| then.chunks as usize).max();
            self.chunks = self.chunks.or(most);
            self.convention = self.convention.or(Some(then.convention.into()));
        }
        if self.reference.is_none() {
            let source = baseline.original.as_ref().map(|original| &original.source).or(kept);
            // A model that is not at hand is not needed to compare perplexities.
            self.reference = source.map(|path| self.named(path)).filter(|path| path.exists());
        }
    }

    /// What is asked for, or where nothing is what a baseline is held to.
    fn limits(&self, baseline: Option<&Report>) -> Limits {
        let limits = Limits::from(self.limits);
        match baseline {
            Some(baseline) if limits.is_empty() => Limits::unasked(baseline),
            _ => limits,
        }
    }

    /// The texts to score; `None` is the one that the reference brings or that comes with attar.
    fn texts(&self, limits: &Limits, has_baseline: bool) -> Vec<Option<PathBuf>> {
        let files: Vec<_> = self.text.iter().cloned().map(Some).collect();
        let wanted = limits.want_text() || self.update_baseline && self.task.is_empty() && !has_baseline;
        let unnamed = wanted || self.reference.as_deref().is_some_and(LogProbs::is_at);
        if files.is_empty() && unnamed { vec![None] } else { files }
    }

    /// Files for CI replace nothing but their like, and none of what is read.
    fn check_files(&self, asked: &EvalArgs) -> Result<()> {
        let forms = [(&self.junit, "junit"), (&self.markdown, "markdown")];
        let written: Vec<_> = forms.iter().filter_map(|(file, form)| Some((file.as_ref()?, *form))).collect();
        let read =
            [Some(&asked.model), self.reference.as_ref(), self.baseline.as_ref(), self.config.as_ref()];
        let read: Vec<&PathBuf> = read.into_iter().flatten().chain(&self.text).chain(&self.task).collect();
        for (number, (file, form)) in written.iter().enumerate() {
            deliver::check_file(file)?;
            let before = written[..number].iter().map(|(file, _)| file);
            let taken = read.iter().chain(before).any(|other| deliver::same_place(other, file));
            if taken {
                return Err(Failure::new(format!("`{}` would be written over", file.display()))
                    .hint("name another file"));
            }
            deliver::check_replaces_ours(file, form)?;
        }
        match &self.baseline {
            Some(baseline) if self.update_baseline => deliver::check_file(baseline),
            _ => Ok(()),
        }
    }

    /// What can be done where a limit cannot be judged.
    fn explain(&self, error: &gate::Error, baseline: Option<&Report>) -> Failure {
        let gone = baseline.and_then(|baseline| baseline.original.as_ref());
        let gone = gone.filter(|_| self.reference.is_none());
        let hint = match (error, gone) {
            (gate::Error::NoLimit, _) => {
                "give a limit, for example --max-kl 0.02, or a --baseline: attar check --help lists them"
                    .to_owned()
            }
            (gate::Error::Needs { .. }, Some(original)) => format!(
                "the baseline was made beside `{}`, which is not here: name it with --reference, keep its predictions with attar eval \
                 --save-reference, or give limits that need none, as --max-perplexity-increase 1%",
                original.source
            ),
            (gate::Error::Needs { .. }, None) => {
                "attar check --help says what each limit compares".to_owned()
            }
            (gate::Error::OtherModel { .. } | gate::Error::OtherTokens { .. }, _) => {
                "name the baseline of this model and text, or make it anew with --update-baseline".to_owned()
            }
        };
        let failure = Failure::new(error.to_string()).hint(hint);
        match &self.baseline {
            Some(path) => failure.doing(format!("while comparing with the baseline `{}`", path.display())),
            None => failure,
        }
    }

    /// Writes what the model scores now, and shows what changed.
    fn update(&self, report: &Report, before: Option<&Report>, delivery: &Delivery) -> Result<Outcome> {
        let Some(path) = &self.baseline else { return Ok(Outcome::Done) };
        let baseline = report.as_baseline();
        deliver::put_as("json", path, &baseline)?;
        match before {
            Some(before) => {
                delivery.shown(Rendered::Difference(&Difference::of(before, &baseline)), "terminal")?;
            }
            None => delivery.briefly(report, &in_short(report))?,
        }
        say(&format!("\nbaseline written: {}\n", path.display()))?;
        Ok(Outcome::Done)
    }

    /// Says what became of the limits wherever CI listens.
    fn tell(&self, short: &Report, talk: Talk) -> Result<()> {
        if let Some(path) = &self.junit {
            deliver::put_as("junit", path, short)?;
        }
        if let Some(path) = &self.markdown {
            deliver::put_as("markdown", path, short)?;
        }
        if on_github() {
            let markdown = deliver::named("markdown")?.render(short);
            let summary = env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty());
            // The verdict counts, whoever hears of it.
            if let Some(Err(failure)) = summary.map(|path| append(Path::new(&path), &markdown)) {
                talk.warn(&failure.in_one_line());
            }
            say(&short.check.as_ref().map(annotations).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// What a pull request wants to know.
fn in_short(report: &Report) -> Report {
    let mut short = Report { tensors: Vec::new(), run: None, ..report.clone() };
    short.drop_details();
    short
}

fn append(path: &Path, text: &str) -> Result<()> {
    let write = || OpenOptions::new().append(true).create(true).open(path)?.write_all(text.as_bytes());
    write().doing(|| format!("while adding to the step summary `{}`", path.display()))
}

fn on_github() -> bool {
    env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true")
}

/// Text as a workflow command holds it.
fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// GitHub's workflow commands: an annotation for every limit that failed, and for every one that only chance may have passed.
fn annotations(check: &Check) -> String {
    let property = |text: &str| escape(text).replace(':', "%3A").replace(',', "%2C");
    let line = |limit: &Limit| {
        let level = match limit.verdict {
            Verdict::Passed => return None,
            Verdict::Noise => "warning",
            Verdict::Failed => "error",
        };
        let title = property(&format!("attar check: {}, {}", limit.name, limit.subject));
        Some(format!("::{level} title={title}::{}\n", escape(&limit.said)))
    };
    check.limits.iter().filter_map(line).collect()
}

/// Holds what a recipe made to the recipe's limits, each against the model all began with.
///
/// # Errors
/// A limit on what is not measured.
pub fn hold(limits: &Limits, reports: &mut [Report]) -> Result<Outcome> {
    let mut outcome = Outcome::Done;
    for report in reports {
        let bytes = report.output.as_ref().map_or(report.model.bytes, |output| output.bytes);
        let reference = report.beginning().source.clone();
        let subject = Subject { report, bytes, baseline: None, reference: Some(&reference) };
        let check = limits.judge(&subject).doing(|| "while holding what was made to [check]")?;
        if !check.passed {
            outcome = Outcome::GateFailed;
        }
        report.check = Some(check);
    }
    Ok(outcome)
}

/// Arguments that a table gives, as far as the command line does not.
pub fn merged(typed: &CheckArgs, table: CheckArgs) -> CheckArgs {
    let either =
        |typed: &[PathBuf], table: Vec<PathBuf>| if typed.is_empty() { table } else { typed.to_vec() };
    let for_ci = |path: Option<PathBuf>| path.filter(|_| !typed.update_baseline);
    CheckArgs {
        model: typed.model.clone().or(table.model),
        config: typed.config.clone(),
        baseline: typed.baseline.clone().or(table.baseline),
        update_baseline: typed.update_baseline,
        text: either(&typed.text, table.text),
        task: either(&typed.task, table.task),
        items: typed.items.or(table.items),
        ctx: typed.ctx.or(table.ctx),
        chunks: typed.chunks.or(table.chunks),
        convention: typed.convention.or(table.convention),
        reference: typed.reference.clone().or(table.reference),
        precision: typed.precision.or(table.precision),
        limits: typed.limits.or(table.limits),
        junit: typed.junit.clone().or(for_ci(table.junit)),
        markdown: typed.markdown.clone().or(for_ci(table.markdown)),
    }
}
