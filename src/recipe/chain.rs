//! A recipe from the door to the last output.
//!
//! What a stage will read that an earlier one has still to write is planned by what is known of it: see
//! [`Source::unwritten`]. So everything is planned and checked before any work begins.

use std::path::Path;

use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::{Reference, Report};
use attar_model::Precision;

use super::pruning::{Asked, Pruning};
use super::{CalibrationTable, EvaluationTable, Order, Recipe, Stages, resolved};
use crate::Outcome;
use crate::cli::{DistillArgs, Global, RunArgs};
use crate::commands::check;
use crate::commands::deliver::Delivery;
use crate::commands::distill::{self, Pair, School};
use crate::commands::quantize::{check_weights, devices};
use crate::commands::{CalibrationRequest, ScoringRequest};
use crate::device::Computer;
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::fit::Goal;
use crate::pipeline::prune::shape::Shape;
use crate::pipeline::score::{Kept, Scoring};
use crate::pipeline::teacher::{Original, open_cache_of};
use crate::pipeline::{Calibration, Clock, Job, describe, describe_written, refuse_quantized};
use crate::source::Source;
use crate::talk::say;

/// Reads the recipe, plans and checks every stage, does them one after the other, compares what they made.
///
/// # Errors
/// Whatever kept it from being done; all that can be found out before the first output is made is.
pub fn run(args: &RunArgs, global: &Global) -> Result<Outcome> {
    let talk = global.talk();
    let (recipe, stages) = Recipe::read(args, talk)?;
    let limits = recipe.limits()?;
    let delivery = Delivery { folder: global.report.clone().or(recipe.report.clone()), ..global.delivery() };
    let orders = Order::all(&recipe)?;
    let source = Source::open(&recipe.model)?;
    refuse_quantized(&source)?;
    let tokenizer = source.tokenizer()?;
    let pruning = stages.prune.as_ref().map(|args| Asked::new(args, &source)).transpose()?;
    if let Some(Asked::Zeros { .. }) = pruning {
        spare_zeros(&stages, &orders)?;
    }
    let teacher = stages.distill.as_ref().map(|args| Original::open(&args.teacher)).transpose()?;
    let CalibrationTable { files, tokens, ctx, seed } = &recipe.calibration;
    let learns = orders.iter().any(|order| order.learns(&recipe.calibration));
    let calibration = if learns || pruning.as_ref().is_some_and(Asked::chooses) {
        let request = CalibrationRequest { files, tokens: *tokens, ctx: *ctx, seed: *seed };
        Some(request.read(&source, &tokenizer)?)
    } else {
        None
    };
    let EvaluationTable { text, ctx, chunks, convention, reference } = &recipe.evaluation;
    let cache = reference.as_deref().map(|path| open_cache_of(&source, path, talk)).transpose()?;
    let models = teacher.as_ref().map_or(vec![&source.config], |teacher| distill::shapes(&source, teacher));
    let computer = global.computer(&models)?;
    let request = ScoringRequest {
        file: text.as_ref(),
        ctx: *ctx,
        chunks: *chunks,
        convention: *convention,
        precision: recipe.precision.into(),
        as_in: cache.as_ref().map(Kept::Cache),
        models: 1 + usize::from(cache.is_none()),
        max_memory: global.max_memory,
        computer: &computer,
    };
    let scoring = request.read(&source, &tokenizer)?;

    let chain = Chain {
        recipe: &recipe,
        stages: &stages,
        orders: &orders,
        source: &source,
        tokenizer: &tokenizer,
        pruning: pruning.as_ref(),
        teacher: teacher.as_ref(),
        calibration: calibration.as_ref(),
        computer: &computer,
        global,
        resume: args.resume,
    };
    let ahead = chain.plan()?;
    if global.dry_run {
        let resolved = resolved::text(&chain, &scoring, delivery.folder.as_deref());
        return say(&format!("{resolved}\n{}", ahead.text)).map(|()| Outcome::Done);
    }
    ahead.check(&chain)?;
    delivery.check(&recipe.outputs(&stages))?;
    check_weights(&source, talk)?;
    let reference = match cache {
        Some(cache) => Reference::kept(cache),
        None => scoring.reference(&source, talk)?,
    };
    let mut reports = chain.make(ahead, &scoring, &reference)?;
    talk.note("");
    let outcome = match &limits {
        Some(limits) => check::hold(limits, &mut reports)?,
        None => Outcome::Done,
    };
    delivery.compared(&reports)?;
    Ok(outcome)
}

/// Refuses what would fill zeros that [prune] has made.
fn spare_zeros(stages: &Stages, orders: &[Order<'_>]) -> Result<()> {
    if stages.distill.is_some() {
        return Err(Failure::new("[prune] sets weights to 0, and what [distill] teaches fills them again")
            .hint(
                "give `sparsity` to [[quantize]] in place of [prune]: what was taught is then made sparse",
            ));
    }
    match orders.iter().find(|order| order.scheme.has_codes() && order.zeros.is_none()) {
        Some(order) => Err(Failure::new(format!(
            "[prune] sets weights to 0, and the codes of `{}` fill them again",
            order.table.output.display()
        ))
        .hint(
            "give `sparsity` to [[quantize]] in place of [prune]: zeros and codes are then decided together",
        )),
        None => Ok(()),
    }
}

/// Everything that stages share.
pub(super) struct Chain<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) stages: &'a Stages,
    pub(super) orders: &'a [Order<'a>],
    pub(super) source: &'a Source,
    tokenizer: &'a Tokenizer,
    pruning: Option<&'a Asked<'a>>,
    teacher: Option<&'a Original>,
    pub(super) calibration: Option<&'a Calibration>,
    pub(super) computer: &'a Computer,
    global: &'a Global,
    resume: bool,
}

/// What will happen.
struct Ahead<'a> {
    pruning: Option<Pruning<'a>>,
    /// What later stages may begin with: what is left of the model, of each shape that it may come to; none where nothing goes.
    cuts: Vec<Source>,
    school: Option<School<'a>>,
    /// What each of those will have become once it has learned.
    taught: Vec<Source>,
    text: String,
}

impl<'a> Chain<'a> {
    /// Plans every stage on what the one before it will leave.
    fn plan(&self) -> Result<Ahead<'a>> {
        let mut text = Vec::new();
        let mut add = |output: &Path, plan: &str| text.push(format!("{}\n{plan}\n\n", output.display()));
        let follows = self.stages.distill.is_some() || !self.orders.is_empty();
        let (mut pruning, mut cuts) = (None, Vec::new());
        if let Some(asked) = self.pruning {
            let models = (self.source, self.tokenizer);
            let job = asked.plan(models, self.calibration, self.computer, self.global)?;
            add(job.output(), &job.to_string());
            if follows {
                cuts = match self.kept(job.output(), &job.shapes())? {
                    Some(cut) => vec![cut],
                    None => job.promises()?,
                };
            }
            pruning = Some(job);
        }
        let first = cuts.first().unwrap_or(self.source);
        let school = self.school(first)?;
        let mut taught = Vec::new();
        if let Some(school) = &school {
            add(school.output(), &school.plan(first)?);
            if !self.orders.is_empty() {
                let students = if cuts.is_empty() { vec![self.source] } else { cuts.iter().collect() };
                let leaves = |student: &Source| {
                    let kept = self.kept(school.output(), &[Shape::of(&student.config)])?;
                    kept.map_or_else(|| school.promise(student), Ok)
                };
                taught = students.into_iter().map(leaves).collect::<Result<_>>()?;
            }
        }
        let mut ahead = Ahead { pruning, cuts, school, taught, text: String::new() };
        for order in self.orders {
            for (at, source) in ahead.ends(self.source).into_iter().enumerate() {
                let job = self.job(order, source);
                let plan = match &order.goal {
                    Some(goal) => job.promise_fit(goal),
                    None => job.plan().map(|plan| plan.to_string()),
                };
                let plan = plan.doing(|| match &self.pruning {
                    Some(_) => format!("while planning what is made of {}", Shape::of(&source.config)),
                    None => format!("while planning `{}`", order.table.output.display()),
                })?;
                if at == 0 {
                    add(&order.table.output, &plan);
                }
            }
        }
        ahead.text = text.concat();
        Ok(ahead)
    }

    /// An output that a run before this one left, where this one goes on with it.
    ///
    /// # Errors
    /// A model of another shape than those the recipe may make there.
    fn kept(&self, output: &Path, shapes: &[Shape]) -> Result<Option<Source>> {
        if !self.resume || !output.exists() {
            return Ok(None);
        }
        let found = Source::open(output)?;
        let shape = Shape::of(&found.config);
        if shapes.contains(&shape) {
            return Ok(Some(found));
        }
        Err(Failure::new(format!(
            "`{}` is not what this recipe makes there: it has {shape}",
            output.display()
        ))
        .hint("move it away, or give --force in place of --resume, which makes everything anew"))
    }

    /// What is known of an output that was made before, which is opened again.
    fn found(&self, written: &Source, model: &Source, names: (String, Option<String>)) -> Result<Report> {
        let report = describe_written(written, describe(model), names, self.global.talk())?;
        self.global.talk().note("kept as it is");
        Ok(report)
    }

    fn school(&self, student: &Source) -> Result<Option<School<'a>>> {
        let (Some(args), Some(original)) = (&self.stages.distill, self.teacher) else { return Ok(None) };
        let pair = Pair { original, student, tokenizer: self.tokenizer };
        School::open(args, pair, self.computer.clone(), self.global).map(Some)
    }

    fn job<'j>(&'j self, order: &'j Order<'_>, source: &'j Source) -> Job<'j> {
        Job {
            source,
            tokenizer: Some(self.tokenizer),
            scheme: Some(order.scheme),
            layout: None,
            keeps_codes: false,
            method: order.table.method,
            zeros: order.zeros.as_deref(),
            rules: &order.rules,
            calibration: self.calibration.filter(|_| order.learns(&self.recipe.calibration)),
            imatrix: order.imatrix.as_ref(),
            learned: None,
            tuning: order.table.tune_tokens,
            correct: order.table.correct_drift,
            output: &order.table.output,
            overwrite: self.global.overwrite(),
            pre_tokenizer: order.table.pre_tokenizer.as_deref(),
            max_part_bytes: None,
            precision: self.recipe.precision.into(),
            max_memory: self.global.max_memory,
            computer: self.computer,
            talk: self.global.talk(),
        }
    }

    /// No output may take the place of what is read to the end.
    fn spare_models(&self) -> Result<()> {
        let teacher = self.stages.distill.as_ref().map(|args| args.teacher.as_path());
        for model in [Some(self.source.path.as_path()), teacher].into_iter().flatten() {
            for output in self.recipe.outputs(self.stages) {
                let (Ok(inner), Ok(outer)) = (model.canonicalize(), output.canonicalize()) else { continue };
                if inner.starts_with(outer) {
                    let (output, model) = (output.display(), model.display());
                    return Err(Failure::new(format!(
                        "the output `{output}` would take the place of `{model}`, which is read"
                    ))
                    .hint("name another output"));
                }
            }
        }
        Ok(())
    }

    /// Does every stage, and scores what it made against the model.
    fn make(
        &self,
        ahead: Ahead<'_>,
        scoring: &Scoring<'_>,
        reference: &Reference<'_>,
    ) -> Result<Vec<Report>> {
        let scored = Scored { chain: self, scoring, reference };
        let mut reports = Vec::new();
        let mut cut = None;
        if let Some(job) = &ahead.pruning {
            let mut clock = scored.begin(job.output());
            let (written, mut report) = match self.kept(job.output(), &job.shapes())? {
                Some(cut) => {
                    let report = self.found(&cut, self.source, job.names(&cut))?;
                    (cut, report)
                }
                None => job.run(&mut clock)?,
            };
            scored.score(&written, &mut report, &mut clock)?;
            report.run = Some(clock.run(Some(Precision::F32), job.devices()));
            reports.push(report);
            cut = Some(written);
        }
        let student = cut.as_ref().unwrap_or(self.source);
        let mut taught = None;
        // Which of several shapes is left is known only now.
        let same = ahead.cuts.first().is_none_or(|planned| planned.config == student.config);
        let planned = same && !self.stages.distill.as_ref().is_some_and(DistillArgs::reads_student);
        let school = if planned { ahead.school } else { self.school(student)? };
        if let Some(school) = &school {
            let mut clock = scored.begin(school.output());
            let (written, mut report) = match self.kept(school.output(), &[Shape::of(&student.config)])? {
                Some(taught) => {
                    let report = self.found(&taught, student, school.names(student)?)?;
                    (taught, report)
                }
                None => school.run(student, school.check(student)?, &mut clock)?,
            };
            scored.score(&written, &mut report, &mut clock)?;
            report.run = Some(school.facts_of_run(&clock));
            reports.push(report);
            if school.has_state() {
                school.close()?;
            }
            taught = Some(written);
        }
        let source = taught.as_ref().unwrap_or(student);
        for order in self.orders {
            reports.push(self.quantize(order, source, &scored)?);
        }
        Ok(reports)
    }

    fn quantize(&self, order: &Order<'_>, source: &Source, scored: &Scored<'_>) -> Result<Report> {
        let mut job = self.job(order, source);
        let mut clock = scored.begin(job.output);
        let kept = self.kept(job.output, &[Shape::of(&source.config)])?;
        let goal = order.goal.as_ref().filter(|_| kept.is_none());
        let fitted = goal.map(|goal| clock.time("measure", || job.fit(goal))).transpose()?;
        if let Some(fitted) = &fitted {
            job = fitted.applied_to(&job);
        }
        let plan = job.plan()?;
        let (written, mut report) = match kept {
            Some(written) => {
                let scheme = order.goal.as_ref().map_or_else(|| job.scheme_name(&plan), Goal::name);
                let report = self.found(&written, source, (scheme, job.method_name(&plan)))?;
                (written, report)
            }
            None => job.run(&plan, &mut clock)?,
        };
        report.allocation = fitted.as_ref().map(|fitted| fitted.report.clone());
        scored.score(&written, &mut report, &mut clock)?;
        report.run = Some(clock.run(Some(job.precision), devices(&plan, Some(scored.scoring))));
        Ok(report)
    }
}

/// How every output is scored.
struct Scored<'a> {
    chain: &'a Chain<'a>,
    scoring: &'a Scoring<'a>,
    reference: &'a Reference<'a>,
}

impl Scored<'_> {
    fn begin(&self, output: &Path) -> Clock {
        self.chain.global.talk().note(&format!("\n{}", output.display()));
        Clock::default()
    }

    /// Scores an output against the model, and says which that was.
    fn score(&self, written: &Source, report: &mut Report, clock: &mut Clock) -> Result<()> {
        let score = || self.scoring.score(written, Some(self.reference), self.chain.global.talk());
        report.evaluation = Some(clock.time("evaluate", score)?);
        let original = describe(self.chain.source);
        report.original = (report.model != original).then_some(original);
        Ok(())
    }
}

impl Ahead<'_> {
    /// What the outputs may be made of.
    fn ends<'s>(&'s self, source: &'s Source) -> Vec<&'s Source> {
        [&self.taught, &self.cuts]
            .into_iter()
            .find(|stage| !stage.is_empty())
            .map_or(vec![source], |stage| stage.iter().collect())
    }

    /// What would keep an output from being written, as far as can be told without writing.
    fn check(&self, chain: &Chain<'_>) -> Result<()> {
        chain.spare_models()?;
        if let Some(job) = &self.pruning
            && chain.kept(job.output(), &job.shapes())?.is_none()
        {
            job.check()?;
        }
        let student = self.cuts.first().unwrap_or(chain.source);
        if let Some(school) = &self.school
            && chain.kept(school.output(), &[Shape::of(&student.config)])?.is_none()
        {
            school.check(student)?;
        }
        for order in chain.orders {
            for source in self.ends(chain.source) {
                let job = chain.job(order, source);
                if chain.kept(job.output, &[Shape::of(&source.config)])?.is_none() {
                    job.check(&job.plan()?)?;
                }
            }
        }
        Ok(())
    }
}
