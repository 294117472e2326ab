//! What `[prune]` comes to: a smaller shape, or zeros in the shape there is.

use std::path::Path;

use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::Report;
use attar_model::Device;
use attar_quant::Solver;

use crate::cli::{Global, PruneArgs, QuantizeArgs};
use crate::commands::prune::{METHOD, Order};
use crate::device::Computer;
use crate::diagnostic::Result;
use crate::pipeline::prune::shape::Shape;
use crate::pipeline::prune::{PruneJob, PrunePlan};
use crate::pipeline::{Calibration, Clock, Job};
use crate::plan::{NO_RULES, Plan};
use crate::source::Source;

/// What is asked for, its words made sense of.
pub enum Asked<'a> {
    /// A smaller shape.
    Shape(Order<'a>),
    /// Zeros in the blocks' matrices.
    Zeros {
        /// What `attar quantize` would be told to make them alone.
        args: Box<QuantizeArgs>,
        /// What makes them.
        solver: Box<dyn Solver>,
    },
}

impl<'a> Asked<'a> {
    /// Holds what is asked for to the model.
    ///
    /// # Errors
    /// As [`Order::new`]; zeros and a smaller shape at once.
    pub fn new(args: &'a PruneArgs, source: &'a Source) -> Result<Self> {
        match args.zeros.solver() {
            Some(solver) => Ok(Self::Zeros { args: Box::new(args.as_floats()?), solver }),
            None => Ok(Self::Shape(Order::new(args, source)?)),
        }
    }

    /// Whether a text has to say what goes.
    pub fn chooses(&self) -> bool {
        match self {
            Self::Shape(order) => order.chooses(),
            Self::Zeros { .. } => true,
        }
    }

    /// Decides what will happen to `source`.
    ///
    /// # Errors
    /// As [`PruneJob::plan`] and [`Job::plan`].
    pub fn plan<'b>(
        &'b self,
        (source, tokenizer): (&'b Source, &'b Tokenizer),
        calibration: Option<&'b Calibration>,
        computer: &'b Computer,
        global: &Global,
    ) -> Result<Pruning<'b>> {
        match self {
            Self::Shape(order) => {
                let job = order.job(Some(tokenizer), calibration, global);
                let plan = job.plan()?;
                Ok(Pruning::Shape(Box::new(job), plan))
            }
            Self::Zeros { args, solver } => {
                let models = (source, Some(tokenizer));
                let job = args.job(models, (Some(&**solver), &NO_RULES), calibration, computer, global);
                let plan = job.plan()?;
                Ok(Pruning::Zeros(Box::new(job), Box::new(plan)))
            }
        }
    }
}

/// The work of the stage, planned.
pub enum Pruning<'a> {
    /// A smaller shape.
    Shape(Box<PruneJob<'a>>, PrunePlan),
    /// Zeros.
    Zeros(Box<Job<'a>>, Box<Plan>),
}

impl std::fmt::Display for Pruning<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shape(_, plan) => plan.fmt(f),
            Self::Zeros(_, plan) => plan.fmt(f),
        }
    }
}

impl Pruning<'_> {
    /// What is written.
    pub fn output(&self) -> &Path {
        match self {
            Self::Shape(job, _) => job.output,
            Self::Zeros(job, _) => job.output,
        }
    }

    /// The shapes that what is left may have.
    pub fn shapes(&self) -> Vec<Shape> {
        match self {
            Self::Shape(_, plan) => plan.shapes().to_vec(),
            Self::Zeros(job, _) => vec![Shape::of(&job.source.config)],
        }
    }

    /// What will be found once the output is written, all but its numbers; of a search what may be.
    ///
    /// # Errors
    /// As [`PruneJob::promises`] and [`Job::promise`].
    pub fn promises(&self) -> Result<Vec<Source>> {
        match self {
            Self::Shape(job, plan) => job.promises(plan),
            Self::Zeros(job, plan) => Ok(vec![job.promise(plan)?]),
        }
    }

    /// What would keep the output from being written, as far as can be told without writing.
    ///
    /// # Errors
    /// As [`PruneJob::check`] and [`Job::check`].
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Shape(job, plan) => job.check(plan),
            Self::Zeros(job, plan) => job.check(plan),
        }
    }

    /// Writes the output, reopens it and compares it with what was meant.
    ///
    /// # Errors
    /// As [`PruneJob::run`] and [`Job::run`].
    pub fn run(&self, clock: &mut Clock) -> Result<(Source, Report)> {
        match self {
            Self::Shape(job, _) => job.run(clock),
            Self::Zeros(job, plan) => job.run(plan, clock),
        }
    }

    /// Its scheme and its method as reports have them, of an output `written` before.
    pub fn names(&self, written: &Source) -> (String, Option<String>) {
        match self {
            Self::Shape(..) => (written.matrix_dtype().to_string(), Some(METHOD.to_owned())),
            Self::Zeros(job, plan) => (job.scheme_name(plan), job.method_name(plan)),
        }
    }

    /// Where it was computed.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        let device = match self {
            Self::Shape(..) => &Device::Cpu,
            Self::Zeros(_, plan) => &plan.device,
        };
        std::iter::once(device)
    }
}
