//! `attar check`: the CI gate. Measures as `attar eval` does, holds the figures to limits, and says so wherever CI listens.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use attar_eval::gate::{self, Limits, Subject};
use attar_eval::render;
use attar_eval::report::{Check, TaskComparison, Verdict};
use attar_eval::tasks::{Task, compare};
use attar_eval::{Convention, Report};

use crate::Outcome;
use crate::cli::{CheckArgs, ConventionArg, Global};
use crate::commands::deliver::{self, Delivery};
use crate::commands::eval::{self, Measured};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::verify::Facts;
use crate::recipe;
use crate::talk::say;
use crate::text::Text;

/// Measures, judges, tells.
///
/// # Errors
/// What `attar eval` fails on; a baseline that is missing, or of another model or text; a limit on what is not measured.
pub fn run(args: &CheckArgs, global: &Global) -> Result<Outcome> {
    let mut args = match &args.config {
        Some(config) => recipe::check_table(config, args)?,
        None => args.clone(),
    };
    let model = args.model.clone().ok_or_else(|| {
        Failure::new("no model is named").hint("name it on the command line, or as `model` in [check]")
    })?;
    let baseline = args.baseline()?;
    if let Some(baseline) = &baseline {
        args.take_from(baseline);
    }
    let limits = args.limits(baseline.is_some())?;
    let delivery = global.delivery();
    let files = [&args.junit, &args.markdown].into_iter().flatten().collect::<Vec<_>>();
    for file in &files {
        deliver::check_file(file)?;
    }
    let asked = args.eval(model);
    let Some(measured) = eval::measure(&asked, global, &delivery)? else { return Ok(Outcome::Done) };
    let Measured { mut report, tasks } = measured;
    if args.update_baseline {
        return args.update(&report, &delivery);
    }
    if let Some(baseline) = &baseline {
        beside(&tasks, &mut report, baseline);
    }
    let name = args.baseline.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let subject = Subject {
        report: &report,
        bytes: Facts::bytes_of(&asked.model)?,
        baseline: baseline.as_ref().map(|baseline| (name.as_str(), baseline)),
        reference: report.original.as_ref().map(|original| original.source.as_str()),
    };
    let check = limits.judge(&subject).map_err(|error| explain(error, &args))?;
    let passed = check.passed;
    report.check = Some(check);
    tell(&report, &args)?;
    delivery.one(&report)?;
    Ok(if passed { Outcome::Done } else { Outcome::GateFailed })
}

/// What can be done where a limit cannot be judged.
fn explain(error: gate::Error, args: &CheckArgs) -> Failure {
    let hint = match &error {
        gate::Error::NoLimit => {
            "give a limit, for example --max-kl 0.02, or a --baseline: attar check --help lists them"
        }
        gate::Error::Needs { .. } => "attar check --help says what each limit compares",
        gate::Error::OtherModel { .. } | gate::Error::OtherTokens { .. } => {
            "name the baseline of this model and text, or make it anew with --update-baseline"
        }
    };
    let at =
        args.baseline.as_ref().map(|path| format!("while comparing with the baseline `{}`", path.display()));
    let failure = Err::<(), _>(error).hint(|| hint);
    let failure = match at {
        Some(at) => failure.doing(|| at),
        None => failure.doing(|| "while checking the model"),
    };
    failure.err().unwrap_or_else(|| Failure::new(hint))
}

/// Sets the answers beside those of the baseline, where it has them.
fn beside(tasks: &[Task], report: &mut Report, baseline: &Report) {
    for (task, now) in tasks.iter().zip(&mut report.tasks) {
        let of_reference: Option<TaskComparison> = now.reference.take();
        match baseline.tasks.iter().find(|then| then.name == now.name && then.items == now.items) {
            Some(then) => compare(task, now, then),
            None => now.reference = of_reference,
        }
    }
}

impl CheckArgs {
    /// The report to compare with, where there is one to be.
    fn baseline(&self) -> Result<Option<Report>> {
        let Some(path) = &self.baseline else { return Ok(None) };
        if self.update_baseline && !path.exists() {
            return Ok(None);
        }
        if !path.exists() {
            return Err(Failure::new(format!("there is no baseline `{}`", path.display()))
                .hint("make one with --update-baseline, and commit it"));
        }
        deliver::read_report(path).map(Some)
    }

    /// Texts and reference of the baseline, where no others are named.
    fn take_from(&mut self, baseline: &Report) {
        if self.text.is_empty() && self.task.is_empty() {
            let texts = baseline.evaluations().filter(|then| !Text::is_built_in(&then.text));
            self.text = texts.map(|then| PathBuf::from(&then.text)).collect();
            if let Some(then) = &baseline.evaluation {
                self.ctx = self.ctx.or(Some(then.ctx as usize));
                self.chunks = self.chunks.or(Some(then.chunks as usize));
                self.convention = self.convention.or(Some(match then.convention {
                    Convention::LlamaCpp => ConventionArg::LlamaCpp,
                    Convention::Hf => ConventionArg::Hf,
                }));
            }
        }
        if self.reference.is_none() {
            let kept = || Some(&baseline.evaluation.as_ref()?.reference.as_ref()?.path);
            let source = baseline.original.as_ref().map(|original| &original.source).or_else(kept);
            // A model that is not at hand is not needed to compare perplexities.
            self.reference = source.map(PathBuf::from).filter(|path| path.exists());
        }
    }

    /// What is asked for, or where nothing is what a baseline is held to.
    fn limits(&self, has_baseline: bool) -> Result<Limits> {
        let limits = Limits::from(self.limits);
        match (limits.is_empty(), has_baseline || self.update_baseline) {
            (false, _) => Ok(limits),
            (true, true) => Ok(Limits::DEFAULT),
            (true, false) => Err(explain(gate::Error::NoLimit, self)),
        }
    }

    fn update(&self, report: &Report, delivery: &Delivery) -> Result<Outcome> {
        let Some(path) = &self.baseline else { return Ok(Outcome::Done) };
        let json = render::renderer("json").map(|json| json.render(&report.as_baseline()));
        deliver::put(path, &json.unwrap_or_default())?;
        delivery.one(report)?;
        say(&format!("\nbaseline written: {}\n", path.display()))?;
        Ok(Outcome::Done)
    }
}

/// Says what became of the limits wherever CI listens.
fn tell(report: &Report, args: &CheckArgs) -> Result<()> {
    let short = in_short(report);
    let rendered = |name: &str, report: &Report| {
        render::renderer(name).map(|renderer| renderer.render(report)).unwrap_or_default()
    };
    if let Some(path) = &args.junit {
        deliver::put(path, &rendered("junit", &short))?;
    }
    let markdown = rendered("markdown", &short);
    if let Some(path) = &args.markdown {
        deliver::put(path, &markdown)?;
    }
    if env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true") {
        if let Some(path) = env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) {
            append(Path::new(&path), &markdown)?;
        }
        say(&report.check.as_ref().map(annotations).unwrap_or_default())?;
    }
    Ok(())
}

/// What a pull request wants to know.
fn in_short(report: &Report) -> Report {
    let mut short = Report { tensors: Vec::new(), run: None, ..report.clone() };
    for evaluation in short.evaluation.iter_mut().chain(&mut short.further_evaluations) {
        evaluation.worst_tokens = Vec::new();
        evaluation.breakdown = None;
        evaluation.kl_histogram = None;
    }
    short
}

fn append(path: &Path, text: &str) -> Result<()> {
    let write = || OpenOptions::new().append(true).create(true).open(path)?.write_all(text.as_bytes());
    write().doing(|| format!("while adding to the step summary `{}`", path.display()))
}

/// GitHub's workflow commands: an annotation for every limit that failed, and for every one that only chance may have passed.
fn annotations(check: &Check) -> String {
    let escape = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| escape(text).replace(':', "%3A").replace(',', "%2C");
    let line = |limit: &attar_eval::report::Limit| {
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
    let limits = crate::cli::LimitArgs {
        max_perplexity_increase: typed
            .limits
            .max_perplexity_increase
            .or(table.limits.max_perplexity_increase),
        max_kl_increase: typed.limits.max_kl_increase.or(table.limits.max_kl_increase),
        max_kl: typed.limits.max_kl.or(table.limits.max_kl),
        max_kl_p99: typed.limits.max_kl_p99.or(table.limits.max_kl_p99),
        min_top1: typed.limits.min_top1.or(table.limits.min_top1),
        max_bytes: typed.limits.max_bytes.or(table.limits.max_bytes),
        max_accuracy_drop: typed.limits.max_accuracy_drop.or(table.limits.max_accuracy_drop),
        min_accuracy: typed.limits.min_accuracy.or(table.limits.min_accuracy),
    };
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
        precision: table.precision,
        limits,
        junit: typed.junit.clone().or(table.junit),
        markdown: typed.markdown.clone().or(table.markdown),
    }
}
