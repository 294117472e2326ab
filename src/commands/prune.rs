//! `attar prune`: a smaller model of the same kind.

use attar_checkpoint::tokenizer::Tokenizer;
use attar_model::{Device, Precision};
use attar_prune::criterion::{CRITERIA, Depth, Kind, Width, criterion};

use crate::cli::{Global, Method, PrecisionArg, PruneArgs, QuantizeArgs, ShapeArgs, TargetArgs, TypesArgs};
use crate::commands::quantize::{self, check_weights};
use crate::commands::{CalibrationRequest, ScoringRequest};
use crate::device::{Computer, DeviceArg};
use crate::diagnostic::{Failure, Result};
use crate::pipeline::prune::across::{Across, Layout};
use crate::pipeline::prune::grid::Goal;
use crate::pipeline::prune::shape::{Shape, Wanted};
use crate::pipeline::prune::{Chooser, Compensation, PruneJob};
use crate::pipeline::{Calibration, Clock, is_gguf, refuse_quantized};
use crate::plan::Correct;
use crate::source::Source;
use crate::talk::say;

pub use crate::pipeline::prune::METHOD;

/// Plans, checks, chooses, cuts, reopens, scores, reports.
///
/// # Errors
/// Whatever kept it from being done; what can be found out early is.
pub fn run(args: &PruneArgs, global: &Global) -> Result<()> {
    if args.zeros.sparsity.is_some() {
        return quantize::run(&args.as_floats()?, global);
    }
    let talk = global.talk();
    let delivery = global.delivery();
    if let DeviceArg::Cuda(_) = global.device {
        return Err(Failure::new("attar prune computes on the processor only").hint("leave --device out"));
    }
    let cpu = Computer::cpu();
    let source = Source::open(&args.model)?;
    refuse_quantized(&source)?;
    // Before any text is read.
    let order = Order::new(args, &source)?;
    let needs_tokens = order.chooses() || !args.no_eval || is_gguf(&args.output);
    let tokenizer = if needs_tokens { Some(source.tokenizer()?) } else { source.tokenizer().ok() };
    let calibration = match &tokenizer {
        Some(tokenizer) if order.chooses() => {
            let request = CalibrationRequest {
                files: &args.calib,
                tokens: args.calib_tokens,
                ctx: args.ctx,
                seed: None,
            };
            Some(request.read(&source, tokenizer)?)
        }
        _ => None,
    };
    let scoring = match &tokenizer {
        Some(tokenizer) if !args.no_eval => Some(
            ScoringRequest {
                file: args.text.as_ref(),
                ctx: args.ctx,
                chunks: args.chunks,
                convention: args.convention.into(),
                precision: Precision::F32,
                as_in: None,
                models: 2,
                max_memory: global.max_memory,
                computer: &cpu,
            }
            .read(&source, tokenizer)?,
        ),
        _ => None,
    };
    let job = order.job(tokenizer.as_ref(), calibration.as_ref(), global);
    let plan = job.plan()?;
    if global.dry_run {
        return say(&format!("{plan}\n"));
    }
    job.check(&plan)?;
    delivery.check(&[job.output])?;

    let mut clock = Clock::default();
    clock.time("check", || check_weights(&source, talk))?;
    let (written, mut report) = job.run(&mut clock)?;
    if let Some(scoring) = &scoring {
        let reference = clock.time("reference", || scoring.reference(&source, talk))?;
        report.evaluation = Some(clock.time("evaluate", || scoring.score(&written, Some(&reference), talk))?);
    }
    report.run = Some(clock.run(Some(Precision::F32), [&Device::Cpu]));
    delivery.one(&report)
}

/// What is asked for of a model, its words made sense of.
pub struct Order<'a> {
    args: &'a PruneArgs,
    source: &'a Source,
    goal: Goal,
    across: Option<Across>,
    width: Chooser<dyn Width>,
    depth: Chooser<dyn Depth>,
}

impl<'a> Order<'a> {
    /// Holds what is asked for to the model.
    ///
    /// # Errors
    /// A shape it cannot have, criteria that there are not.
    pub fn new(args: &'a PruneArgs, source: &'a Source) -> Result<Self> {
        let (width, depth) = (args.width()?, args.depth()?);
        refuse_unequal(source)?;
        let wanted = args.wanted();
        let goal = Goal::resolve(&source.config, &wanted)?;
        let layout = if args.arch.is_some() { Layout::Deci } else { Layout::FilledUp };
        let across = match &goal {
            Goal::Shape(shape) => Across::resolve(&source.config, shape, &wanted, layout, width)?,
            Goal::Search(_) => None,
        };
        if args.arch.is_some() && !is_gguf(&args.output) {
            return Err(Failure::new("--arch is for GGUF files, and the output is a folder").hint(
                "let the output's name end in .gguf, or leave --arch out: layers are filled up with zeros",
            ));
        }
        Ok(Self { args, source, goal, across, width, depth })
    }

    /// Whether a text has to say what goes.
    pub fn chooses(&self) -> bool {
        let Goal::Shape(after) = self.goal else { return true };
        self.args.drop.is_empty() || after != Shape { layers: after.layers, ..Shape::of(&self.source.config) }
    }

    /// The work.
    pub fn job<'b>(
        &'b self,
        tokenizer: Option<&'b Tokenizer>,
        calibration: Option<&'b Calibration>,
        global: &Global,
    ) -> PruneJob<'b> {
        let repairs = if self.args.no_repair { Compensation::None } else { Compensation::LeastSquares };
        PruneJob {
            source: self.source,
            tokenizer,
            goal: &self.goal,
            drop: &self.args.drop,
            across: self.across,
            width: self.width,
            depth: self.depth,
            compensation: repairs,
            calibration: calibration.filter(|_| self.chooses()),
            output: &self.args.output,
            overwrite: global.overwrite(),
            pre_tokenizer: self.args.pre_tokenizer.as_deref(),
            max_memory: global.max_memory,
            talk: global.talk(),
        }
    }
}

impl PruneArgs {
    /// What `attar quantize` would be told to make zeros alone: the model in its own floats.
    ///
    /// # Errors
    /// A model that cannot be opened; a smaller shape asked for too.
    pub fn as_floats(&self) -> Result<QuantizeArgs> {
        let source = Source::open(&self.model)?;
        if self.wanted() != Wanted::default() || self.no_repair {
            return Err(Failure::new("zeros and a smaller shape are made one after the other")
                .hint("prune the shape first, then its output with --sparsity"));
        }
        Ok(QuantizeArgs {
            split_max_size: None,
            allow_requantize: false,
            seed: None,
            model: self.model.clone(),
            output: self.output.clone(),
            scheme: Some(source.matrix_dtype().to_string().parse()?),
            target: TargetArgs::default(),
            method: Method::Auto,
            zeros: self.zeros.clone(),
            calib: self.calib.clone(),
            imatrix: None,
            calib_tokens: self.calib_tokens,
            ctx: self.ctx,
            text: self.text.clone(),
            reference: None,
            chunks: self.chunks,
            convention: self.convention,
            precision: PrecisionArg::F32,
            no_eval: self.no_eval,
            tensor: Vec::new(),
            types: TypesArgs::default(),
            tune_tokens: None,
            correct_drift: Correct::Off,
            format: None,
            pre_tokenizer: self.pre_tokenizer.clone(),
        })
    }

    fn wanted(&self) -> Wanted {
        let ShapeArgs { layers, ffn, heads, kv_heads, hidden, target_params: target } = self.shape;
        let (drop, align) = (self.drop.clone(), self.align.map(|align| align as usize));
        let (experts, across_layers) = (self.experts, self.across_layers);
        Wanted { layers, drop, ffn, heads, kv_heads, hidden, experts, align, target, across_layers }
    }

    fn width(&self) -> Result<Chooser<dyn Width>> {
        match criterion(&self.criterion).map(|found| (found.name, found.kind)) {
            Some((name, Kind::Width(by))) => Ok(Chooser { name, by }),
            _ => Err(unknown("--criterion", &self.criterion, |kind| matches!(kind, Kind::Width(_)))),
        }
    }

    fn depth(&self) -> Result<Chooser<dyn Depth>> {
        match criterion(&self.depth_criterion).map(|found| (found.name, found.kind)) {
            Some((name, Kind::Depth(by))) => Ok(Chooser { name, by }),
            _ => Err(unknown("--depth-criterion", &self.depth_criterion, |kind| {
                matches!(kind, Kind::Depth(_))
            })),
        }
    }
}

/// Layers that differ in size already are not cut further.
fn refuse_unequal(source: &Source) -> Result<()> {
    if source.config.layer_sizes.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        "the layers of this model differ in size, and only those of models whose layers are alike can be cut",
    )
    .hint("prune the model it was made from, along all axes at once"))
}

/// A name that is none of a kind.
fn unknown(option: &str, found: &str, is_kind: impl Fn(Kind) -> bool) -> Failure {
    let known = CRITERIA.iter().filter(|criterion| is_kind(criterion.kind));
    let known: Vec<_> = known.map(|criterion| format!("{} ({})", criterion.name, criterion.about)).collect();
    Failure::new(format!("{option}: there is no criterion `{found}`"))
        .hint(format!("known are {}", known.join("; ")))
}
