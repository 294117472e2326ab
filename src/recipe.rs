//! `attar run`: a recipe in TOML, several outputs from one model compared in one table.
//!
//! Paths in a recipe start from the folder it lies in.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use attar_eval::{Convention, Reference, Report};
use serde::Deserialize;

use crate::cli::{Global, Method, PrecisionArg};
use crate::commands::deliver::Delivery;
use crate::commands::quantize::{check_weights, devices};
use crate::commands::{CalibrationRequest, ScoringRequest};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::score::Scoring;
use crate::pipeline::teacher::open_cache_of;
use crate::pipeline::{Clock, Job, refuse_quantized};
use crate::plan::{Plan, TensorRule};
use crate::scheme::Scheme;
use crate::source::Source;
use crate::talk::say;

/// What is to be done, in the order it is done.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The model all outputs are made from.
    model: PathBuf,
    /// A folder for the comparison in every form.
    report: Option<PathBuf>,
    /// How exactly matrices are multiplied.
    #[serde(default)]
    precision: PrecisionArg,
    #[serde(default)]
    calibration: CalibrationTable,
    #[serde(default)]
    evaluation: EvaluationTable,
    quantize: Vec<QuantizeTable>,
}

/// Text to learn from; the built-in one where no files are named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CalibrationTable {
    files: Vec<PathBuf>,
    tokens: usize,
    ctx: Option<usize>,
}

impl Default for CalibrationTable {
    fn default() -> Self {
        Self { files: Vec::new(), tokens: crate::cli::CALIB_TOKENS, ctx: None }
    }
}

/// Text to score on; the built-in one where none is named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EvaluationTable {
    text: Option<PathBuf>,
    ctx: Option<usize>,
    chunks: Option<usize>,
    convention: Convention,
    /// A teacher cache of the model, which then is not run to be compared with.
    reference: Option<PathBuf>,
}

impl Default for EvaluationTable {
    fn default() -> Self {
        Self { text: None, ctx: None, chunks: None, convention: Convention::LlamaCpp, reference: None }
    }
}

/// One output.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantizeTable {
    output: PathBuf,
    scheme: String,
    #[serde(default)]
    method: Method,
    #[serde(default)]
    tensor: Vec<String>,
    pre_tokenizer: Option<String>,
}

impl Recipe {
    fn read(path: &Path) -> Result<Self> {
        Self::read_inner(path)
            .doing(|| format!("while reading the recipe `{}`", path.display()))
            .hint(|| "a recipe is a TOML file; fixtures/demo.toml is one to start from")
    }

    fn read_inner(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let mut recipe: Self = toml::from_str(&text).map_err(|error| Failure::new(error.to_string()))?;
        if recipe.quantize.is_empty() {
            return Err(Failure::new("the recipe makes nothing").hint("add a [[quantize]] table"));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths =
            [&mut recipe.model].into_iter().chain(&mut recipe.report).chain(&mut recipe.evaluation.text);
        let paths = paths.chain(&mut recipe.evaluation.reference).chain(&mut recipe.calibration.files);
        for path in paths.chain(recipe.quantize.iter_mut().map(|table| &mut table.output)) {
            *path = tidy(&folder.join(&*path));
        }
        let mut outputs = HashSet::new();
        if let Some(twice) = recipe.quantize.iter().find(|table| !outputs.insert(&table.output)) {
            return Err(Failure::new(format!("it makes the output `{}` twice", twice.output.display()))
                .hint("give every [[quantize]] table an output of its own"));
        }
        Ok(recipe)
    }
}

/// `a/b/../c` as `a/c`, where `b` is no link to elsewhere.
fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;

    let mut tidy = PathBuf::new();
    for part in path.components() {
        let is_name = matches!(tidy.components().next_back(), Some(Component::Normal(_)));
        if part == Component::ParentDir && is_name && !tidy.is_symlink() {
            tidy.pop();
        } else {
            tidy.push(part);
        }
    }
    if tidy.as_os_str().is_empty() { PathBuf::from(".") } else { tidy }
}

/// An output with its words parsed.
struct Order<'a> {
    table: &'a QuantizeTable,
    scheme: Scheme,
    rules: Vec<TensorRule>,
}

impl<'a> Order<'a> {
    fn parse(table: &'a QuantizeTable) -> Result<Self> {
        let at = || format!("while reading the output `{}` of the recipe", table.output.display());
        let scheme = table.scheme.parse().doing(at)?;
        let rules = table.tensor.iter().map(|rule| rule.parse()).collect::<Result<_>>().doing(at)?;
        Ok(Self { table, scheme, rules })
    }

    /// As `attar quantize` has it: rounding needs no text, and weighs by one that is given.
    fn learns(&self, calibration: &CalibrationTable) -> bool {
        self.scheme.has_codes() && (self.table.method != Method::Rtn || !calibration.files.is_empty())
    }
}

/// Reads the recipe, plans and checks every output, makes them one after the other, compares them.
///
/// # Errors
/// Whatever kept it from being done; all that can be found out before the first output is made is.
pub fn run(path: &Path, global: &Global) -> Result<()> {
    let talk = global.talk();
    let recipe = Recipe::read(path)?;
    let delivery = Delivery { folder: global.report.clone().or(recipe.report.clone()), ..global.delivery() };
    let orders = recipe.quantize.iter().map(Order::parse).collect::<Result<Vec<_>>>()?;
    let source = Source::open(&recipe.model)?;
    refuse_quantized(&source)?;
    let tokenizer = source.tokenizer()?;
    let CalibrationTable { files, tokens, ctx } = &recipe.calibration;
    let calibration = if orders.iter().any(|order| order.learns(&recipe.calibration)) {
        let request = CalibrationRequest { files, tokens: *tokens, ctx: *ctx };
        Some(request.read(&source, &tokenizer)?)
    } else {
        None
    };
    let EvaluationTable { text, ctx, chunks, convention, reference } = &recipe.evaluation;
    let cache = reference.as_deref().map(|path| open_cache_of(&source, path)).transpose()?;
    let computer = global.computer(&[&source.config])?;
    let precision = recipe.precision.into();
    let request = ScoringRequest {
        file: text.as_ref(),
        ctx: *ctx,
        chunks: *chunks,
        convention: *convention,
        precision,
        as_in: cache.as_ref(),
        models: 1 + usize::from(cache.is_none()),
        max_memory: global.max_memory,
        computer: &computer,
    };
    let scoring = request.read(&source, &tokenizer)?;

    let jobs: Vec<Job<'_>> = orders
        .iter()
        .map(|order| Job {
            source: &source,
            tokenizer: Some(&tokenizer),
            scheme: Some(order.scheme),
            method: order.table.method,
            zeros: None,
            rules: &order.rules,
            calibration: calibration.as_ref().filter(|_| order.learns(&recipe.calibration)),
            output: &order.table.output,
            overwrite: global.overwrite(),
            pre_tokenizer: order.table.pre_tokenizer.as_deref(),
            precision,
            max_memory: global.max_memory,
            computer: &computer,
            talk,
        })
        .collect();
    let plans = jobs.iter().map(Job::plan).collect::<Result<Vec<Plan>>>()?;
    if global.dry_run {
        for (job, plan) in jobs.iter().zip(&plans) {
            say(&format!("{}\n{plan}\n\n", job.output.display()))?;
        }
        return Ok(());
    }
    jobs.iter().zip(&plans).try_for_each(|(job, plan)| job.check(plan))?;
    delivery.check(&jobs.iter().map(|job| job.output).collect::<Vec<_>>())?;
    check_weights(&source, talk)?;
    let reference = match cache {
        Some(cache) => Reference::kept(cache),
        None => scoring.reference(&source, talk)?,
    };
    make(&jobs, &plans, &scoring, &reference, &delivery)
}

/// Makes every output and scores it against the model.
fn make(
    jobs: &[Job<'_>],
    plans: &[Plan],
    scoring: &Scoring,
    reference: &Reference<'_>,
    delivery: &Delivery,
) -> Result<()> {
    let Some(talk) = jobs.first().map(|job| job.talk) else { return Ok(()) };
    let mut reports: Vec<Report> = Vec::with_capacity(jobs.len());
    for (job, plan) in jobs.iter().zip(plans) {
        talk.note(&format!("\n{}", job.output.display()));
        let mut clock = Clock::default();
        let (written, mut report) = job.run(plan, &mut clock)?;
        report.evaluation = Some(clock.time("evaluate", || scoring.score(&written, Some(reference), talk))?);
        report.run = Some(clock.run(Some(job.precision), devices(plan, Some(scoring))));
        reports.push(report);
    }
    talk.note("");
    delivery.compared(&reports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_tidied_and_never_climb_by_accident() {
        for (path, tidied) in [
            ("fixtures/../out/x", "out/x"),
            ("../a", "../a"),
            ("a/../../b", "../b"),
            ("/a/./b", "/a/b"),
            ("a/..", "."),
        ] {
            assert_eq!(tidy(Path::new(path)), Path::new(tidied));
        }
    }
}
