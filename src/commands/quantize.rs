//! `attar quantize`: the main job.

use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::Reference;
use attar_model::Device;
use attar_quant::Solver;

use crate::cli::{Global, Layout, QuantizeArgs};
use crate::commands::{CalibrationRequest, ScoringRequest, prepare};
use crate::device::Computer;
use crate::diagnostic::{Failure, Result};
use crate::imatrix::Imatrix;
use crate::pipeline::fit::Goal;
use crate::pipeline::score::{Kept, Scoring};
use crate::pipeline::site::check_split;
use crate::pipeline::teacher::open_cache_of;
use crate::pipeline::{Calibration, Clock, Job, is_gguf, refuse_quantized, twice_quantized};
use crate::plan::{Plan, TypeRules};
use crate::scheme::Scheme;
use crate::source::Source;

/// Plans, checks, compresses, reopens, scores, reports.
///
/// # Errors
/// Whatever kept it from being done; what can be found out early is.
pub fn run(args: &QuantizeArgs, global: &Global) -> Result<()> {
    let talk = global.talk();
    let delivery = global.delivery();
    let source = Source::open(&args.model)?;
    if !args.allow_requantize {
        refuse_quantized(&source)?;
    } else if source.is_quantized() {
        talk.warn(&twice_quantized(&source.main_type()));
    }
    args.layout_fits()?;
    check_split(args.split_max_size, &args.output)?;
    let (rules, goal) = (args.rules()?, args.goal()?);

    let zeros = args.zeros.solver();
    let imatrix = args.imatrix.as_deref().map(|path| Imatrix::read(path, args.scheme(), args.method));
    let imatrix = imatrix.transpose()?;
    let by_text = args.method.learns(args.scheme(), &args.calib) && imatrix.is_none();
    let learns = by_text || zeros.is_some() || goal.is_some();
    let needs_tokens = learns || !args.no_eval || is_gguf(&args.output);
    let tokenizer = if needs_tokens { Some(source.tokenizer()?) } else { source.tokenizer().ok() };
    let calibration = match &tokenizer {
        Some(tokenizer) if learns => {
            let request = CalibrationRequest {
                files: &args.calib,
                tokens: args.calib_tokens,
                ctx: args.ctx,
                seed: args.seed,
            };
            Some(request.read(&source, tokenizer)?)
        }
        _ => None,
    };
    let computer =
        if learns || !args.no_eval { global.computer(&[&source.config])? } else { Computer::cpu() };
    let cache = args.reference.as_deref().map(|path| open_cache_of(&source, path, talk)).transpose()?;
    let scoring = match &tokenizer {
        Some(tokenizer) if !args.no_eval => Some(
            ScoringRequest {
                file: args.text.as_ref(),
                ctx: args.ctx,
                chunks: args.chunks,
                convention: args.convention.into(),
                precision: args.precision.into(),
                as_in: cache.as_ref().map(Kept::Cache),
                models: 1 + usize::from(cache.is_none()),
                max_memory: global.max_memory,
                computer: &computer,
            }
            .read(&source, tokenizer)?,
        ),
        _ => None,
    };
    let models = (&source, tokenizer.as_ref());
    let job = args.job(models, (zeros.as_deref(), &rules), calibration.as_ref(), &computer, global);
    let mut job = Job { imatrix: imatrix.as_ref(), ..job };
    let mut clock = Clock::default();
    let fitted = goal.map(|goal| clock.time("measure", || job.fit(&goal))).transpose()?;
    if let Some(fitted) = &fitted {
        job = fitted.applied_to(&job);
    }
    let Some(plan) = prepare(&job, &delivery, global)? else { return Ok(()) };

    clock.time("check", || check_weights(&source, talk))?;
    let (written, mut report) = job.run(&plan, &mut clock)?;
    report.allocation = fitted.as_ref().map(|fitted| fitted.report.clone());
    if let Some(scoring) = &scoring {
        let reference = match cache {
            Some(cache) => Reference::kept(cache),
            None => clock.time("reference", || scoring.reference(&source, talk))?,
        };
        report.evaluation = Some(clock.time("evaluate", || scoring.score(&written, Some(&reference), talk))?);
    }
    report.run = Some(clock.run(Some(job.precision), devices(&plan, scoring.as_ref())));
    delivery.one(&report)
}

/// Where the work of a plan and of scoring is done.
pub fn devices<'a>(plan: &'a Plan, scoring: Option<&'a Scoring<'_>>) -> impl Iterator<Item = &'a Device> {
    let scoring = scoring.map(|scoring| &scoring.memory.streaming.device);
    std::iter::once(&plan.device).chain(scoring)
}

/// Looks for NaN and infinity in every weight.
///
/// # Errors
/// The first tensor that has one.
pub fn check_weights(source: &Source, talk: crate::talk::Talk) -> Result<()> {
    let stage = talk.stage("checking", source.parameters(), "weights");
    source.check_finite(|spec| stage.step(spec.len() as u64, spec.role.as_str()))?;
    stage.done();
    Ok(())
}

impl QuantizeArgs {
    /// The work, with what its words and files have been made into.
    pub fn job<'a>(
        &'a self,
        (source, tokenizer): (&'a Source, Option<&'a Tokenizer>),
        (zeros, rules): (Option<&'a dyn Solver>, &'a TypeRules),
        calibration: Option<&'a Calibration>,
        computer: &'a Computer,
        global: &Global,
    ) -> Job<'a> {
        Job {
            source,
            tokenizer,
            scheme: Some(self.scheme()),
            layout: self.format.and_then(Layout::quantized),
            keeps_codes: false,
            method: self.method,
            zeros,
            rules,
            calibration,
            imatrix: None,
            learned: None,
            output: &self.output,
            overwrite: global.overwrite(),
            pre_tokenizer: self.pre_tokenizer.as_deref(),
            max_part_bytes: self.split_max_size,
            tuning: self.tune_tokens,
            correct: self.correct_drift,
            precision: self.precision.into(),
            max_memory: global.max_memory,
            computer,
            talk: global.talk(),
        }
    }

    /// The scheme, or what stands for it until types are chosen.
    pub fn scheme(&self) -> Scheme {
        self.scheme.unwrap_or_else(Goal::stand_in)
    }

    /// The size that types are to be chosen for, where one is named.
    ///
    /// # Errors
    /// Types that are allowed without a size to choose them for.
    pub fn goal(&self) -> Result<Option<Goal>> {
        Goal::of(self.target.target_size, self.target.target_bpw, &self.target.allow)
    }

    /// What is said of tensor types besides the scheme.
    ///
    /// # Errors
    /// A rule that is none.
    pub fn rules(&self) -> Result<TypeRules> {
        Ok(TypeRules {
            tensors: self.tensor.iter().map(|rule| rule.parse()).collect::<Result<_>>()?,
            pure: self.types.pure,
            output: self.types.output_type,
            embedding: self.types.embedding_type,
            fallback: self.types.mix,
            no_fallback: self.types.no_fallback,
            exact: None,
        })
    }

    /// Whether `--format` names the layout the scheme has.
    fn layout_fits(&self) -> Result<()> {
        let Some(layout) = self.format else { return Ok(()) };
        let is_gguf = is_gguf(&self.output);
        let scheme = if is_gguf { self.scheme() } else { self.scheme().in_folder() };
        let fits = match layout.quantized() {
            None => !scheme.has_codes(),
            Some(layout) => layout.holds(scheme),
        };
        if fits && !is_gguf {
            return Ok(());
        }
        let (scheme, output) = (scheme.name(), self.output.display());
        Err(Failure::new(format!("--format {} does not go with scheme {scheme} and output `{output}`", layout.name()))
            .hint("plain holds f32, f16 and bf16, compressed-tensors holds wNa16-gG, fp8, w8a8, nvfp4 and their like, gptq wNa16-gG with N = 2, 3, \
               4 or 8, awq that with N = 4, fp8 holds fp8-block; a GGUF file has one layout only"))
    }
}
