//! Pruning, from what is asked for to a smaller model that has been reopened.
//!
//! Layers are chosen first, then features of the residual stream, each in passes of their own; then one pass streams through what is
//! left and cuts heads, channels and experts, each by what it sees of the model as it has become before it.

mod pass;
pub mod shape;

use std::collections::BTreeMap;
use std::path::Path;

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::scratch;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::{Report, report};
use attar_model::{ModelConfig, Place, TensorSpec, Windows};
use attar_prune::criterion::depth::{Calibrated, Step};
use attar_prune::criterion::{Depth, FirstOrder, Width};
use attar_prune::{Cuts, KeepList, Pruned, hidden};

use super::write::Target;
use super::{Calibration, Clock, describe, is_gguf, verify};
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::{CalibrationSize, Plan};
use crate::source::Source;
use crate::talk::{Talk, human_bytes, thousands};
use pass::Pass;
use shape::{Shape, Wanted, say_ruled_out, say_shapes};

/// Tokens that say enough about the residual stream: they stand in memory at once.
const HIDDEN_TOKENS: usize = 32_768;

/// How what goes is chosen.
#[derive(Clone, Copy)]
pub struct Chooser<T: ?Sized + 'static> {
    /// The criterion's name.
    pub name: &'static str,
    /// The criterion.
    pub by: &'static T,
}

/// Whether what stays takes over the work of what goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compensation {
    /// As well as least squares can.
    LeastSquares,
    /// It stays as it is.
    None,
}

impl Compensation {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeastSquares => "least-squares",
            Self::None => "none",
        }
    }
}

/// One model to be made smaller.
pub struct PruneJob<'a> {
    /// The model.
    pub source: &'a Source,
    /// Its tokenizer, where it has one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// What is to be kept.
    pub wanted: &'a Wanted,
    /// How heads and channels are chosen.
    pub width: Chooser<dyn Width>,
    /// How layers are chosen.
    pub depth: Chooser<dyn Depth>,
    /// Whether what stays is repaired.
    pub compensation: Compensation,
    /// The text that what goes is chosen by, where there is anything to choose.
    pub calibration: Option<&'a Calibration>,
    /// The file or folder to be written.
    pub output: &'a Path,
    /// Whether one that exists is replaced.
    pub overwrite: Overwrite,
    /// The user's word for `tokenizer.ggml.pre`.
    pub pre_tokenizer: Option<&'a str>,
    /// Memory the pass may use, if bounded.
    pub max_memory: Option<u64>,
    /// Where progress is told.
    pub talk: Talk,
}

/// What will happen.
pub struct PrunePlan {
    /// The shape of what is left.
    pub shape: Shape,
    /// Every tensor of it.
    pub tensors: Plan,
    config: ModelConfig,
    text: String,
}

impl std::fmt::Display for PrunePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// What has been decided, and why.
struct Decided {
    cuts: Cuts,
    steps: Vec<Step>,
    gradients: Option<FirstOrder>,
}

impl PruneJob<'_> {
    /// Decides what will happen, as far as it depends on no text.
    ///
    /// # Errors
    /// A shape that the model cannot have, more memory than allowed.
    pub fn plan(&self) -> Result<PrunePlan> {
        let config = &self.source.config;
        let shape = Shape::resolve(config, self.wanted).doing(|| "while planning the new shape")?;
        self.refuse_what_is_not_carried(&shape)?;
        let cuts = shape.stand_in(config, &self.wanted.drop)?;
        let config =
            cuts.config(config).doing(|| "while planning the new shape").hint(|| "prune along other axes")?;
        let tensors = self.tensors(&cuts)?;
        let text = self.describe(&shape, &config, &tensors);
        Ok(PrunePlan { shape, tensors, config, text })
    }

    fn describe(&self, shape: &Shape, config: &ModelConfig, tensors: &Plan) -> String {
        let before = &self.source.config;
        let [old, new] = [self.source.bytes(), tensors.bytes()].map(human_bytes);
        let mut lines = vec![
            say_shapes(before, config),
            format!("{new} of weights in place of {old}\n"),
            say_ruled_out(before, config),
        ];
        if shape.layers < before.num_hidden_layers && self.wanted.drop.is_empty() {
            lines.push(format!("layers are chosen by {}\n", self.depth.name));
        }
        if self.cuts_columns(shape) {
            let repaired = match self.compensation {
                Compensation::LeastSquares => "what stays is repaired by least squares",
                Compensation::None => "what stays is left as it is",
            };
            lines.push(format!("heads and channels are chosen by {}; {repaired}\n", self.width.name));
        }
        if let Some(CalibrationSize { tokens, ctx }) = tensors.calibration {
            lines.push(format!("calibration: {} tokens in windows of {ctx}\n", thousands(tokens as u64)));
        }
        lines.concat() + &tensors.memory.to_string()
    }

    fn tensors(&self, cuts: &Cuts) -> Result<Plan> {
        let config = cuts.config(&self.source.config)?;
        let pruned = Pruned::new(&self.source.config, cuts, self.source)?;
        let size = |calibration: &Calibration| CalibrationSize {
            tokens: calibration.windows.tokens().len(),
            ctx: calibration.windows.ctx(),
        };
        let before = |spec: &TensorSpec| pruned.before(&spec.name).cloned();
        let calibration = self.calibration.map(size);
        Plan::of_pruned(self.source, &config, before, is_gguf(self.output), calibration, self.max_memory)
    }

    /// Heads, channels or experts go.
    fn cuts_width(&self, shape: &Shape) -> bool {
        self.cuts_columns(shape) || shape.experts != Shape::of(&self.source.config).experts
    }

    fn cuts_columns(&self, shape: &Shape) -> bool {
        let before = Shape::of(&self.source.config);
        shape.ffn != before.ffn || shape.heads != before.heads || shape.kv_heads != before.kv_heads
    }

    /// What a family computes with that no list of what is kept can carry over.
    fn refuse_what_is_not_carried(&self, shape: &Shape) -> Result<()> {
        let (config, before) = (&self.source.config, Shape::of(&self.source.config));
        let heads_go = shape.heads != before.heads || shape.kv_heads != before.kv_heads;
        if heads_go && config.family.qk_norm == attar_model::family::QkNorm::Whole {
            let family = config.family.name;
            return Err(Failure::new(format!(
                "heads of a {family} model cannot be cut: all of them are normed together"
            ))
            .hint("--ffn, --layers and --hidden work"));
        }
        if self.width.by.needs_gradients() && self.cuts_columns(shape) && config.experts.is_some() {
            return Err(Failure::new(format!(
                "--criterion {} needs gradients, and experts have none",
                self.width.name
            ))
            .hint("--criterion second-order needs none"));
        }
        Ok(())
    }

    fn target<'b>(&'b self, plan: &'b Plan, config: &'b ModelConfig) -> Target<'b> {
        Target {
            plan,
            source: self.source,
            config,
            tokenizer: self.tokenizer,
            path: self.output,
            overwrite: self.overwrite,
            pre_tokenizer: self.pre_tokenizer,
        }
    }

    /// What would keep the output from being written, as far as can be told without writing.
    ///
    /// # Errors
    /// As [`Target::check`]; a disk too full for a temporary file.
    pub fn check(&self, plan: &PrunePlan) -> Result<()> {
        if let Place::Folder(folder) = &plan.tensors.memory.keeping.place {
            scratch::check_room(folder, plan.tensors.memory.hidden_bytes)
                .doing(|| "while preparing the temporary file for hidden states")?;
        }
        self.target(&plan.tensors, &plan.config).check()
    }

    /// Chooses, cuts, repairs, writes, reopens what was written and compares it, number by number, with what was meant.
    ///
    /// The report still lacks the evaluation.
    ///
    /// # Errors
    /// What kept the output from being written, or the first tensor that reads back otherwise.
    pub fn run(&self, plan: &PrunePlan, clock: &mut Clock) -> Result<(Source, Report)> {
        let shape = plan.shape;
        let Decided { cuts, steps, gradients } = self.decide(&shape, clock)?;
        // Which channels go changes no shape, so the plan of all tensors is known before the pass.
        let mut stand_in = shape.stand_in(&self.source.config, &cuts.layers.dropped())?;
        stand_in.hidden = cuts.hidden.clone();
        let (tensors, config) = (self.tensors(&stand_in)?, stand_in.config(&self.source.config)?);
        let mut sink = self.target(&tensors, &config).create()?;
        let pass = Pass {
            source: self.source,
            plan: &tensors,
            shape,
            width: self.width.by,
            compensation: self.compensation,
            gradients: gradients.as_ref(),
            windows: self.calibration.filter(|_| self.cuts_width(&shape)).map(|c| &c.windows),
            talk: self.talk,
        };
        let outcome = clock.time("prune", || pass.run(cuts, &mut sink))?;
        let hashes = clock.time("write", || sink.finish(&tensors))?;
        let (written, facts) =
            clock.time("verify", || verify::reopen(self.output, &tensors, &hashes, self.talk))?;
        let mut report = Report::new(describe(self.source));
        report.output = Some(report::Output {
            path: self.output.display().to_string(),
            format: tensors.output.format().to_owned(),
            scheme: tensors.main_type(),
            method: None,
            bytes: facts.bytes,
            bits_per_weight: tensors.bits_per_weight(),
            sha256: Some(facts.sha256),
        });
        report.tensors = outcome.tensors;
        for tensor in &mut report.tensors {
            tensor.decoded_sha256 = hashes.get(&tensor.name).cloned();
        }
        report.pruning = Some(self.pruning(&shape, &config, &steps, outcome.layers));
        report.calibration = self.calibration.map(|calibration| calibration.facts.clone());
        Ok((written, report))
    }

    fn pruning(
        &self,
        shape: &Shape,
        config: &ModelConfig,
        steps: &[Step],
        layers: Vec<report::PrunedLayer>,
    ) -> report::Pruning {
        let named =
            self.wanted.drop.iter().map(|&layer| report::DroppedLayer { layer: layer as u64, score: None });
        let chosen = steps
            .iter()
            .map(|step| report::DroppedLayer { layer: step.layer as u64, score: Some(step.score) });
        let compensation = if self.cuts_columns(shape) { self.compensation } else { Compensation::None };
        report::Pruning {
            before: reported(&self.source.config),
            after: reported(config),
            criterion: self.cuts_columns(shape).then(|| self.width.name.to_owned()),
            depth_criterion: (!steps.is_empty()).then(|| self.depth.name.to_owned()),
            compensation: compensation.name().to_owned(),
            dropped_layers: named.chain(chosen).collect(),
            layers,
        }
    }

    /// Everything that is decided before the pass: layers, features of the residual stream, and what the loss says.
    fn decide(&self, shape: &Shape, clock: &mut Clock) -> Result<Decided> {
        let config = &self.source.config;
        let mut cuts = Cuts::none(config);
        let mut steps = Vec::new();
        if !self.wanted.drop.is_empty() {
            cuts.layers = KeepList::without(&self.wanted.drop, config.num_hidden_layers)?;
        } else if shape.layers < config.num_hidden_layers {
            let removal = clock.time("choose layers", || self.choose_layers(shape.layers))?;
            (cuts.layers, steps) = (removal.keep, removal.steps);
        }
        if shape.hidden < config.hidden_size {
            clock.time("choose features", || self.choose_features(shape.hidden, &mut cuts))?;
        }
        let wants_gradients = self.width.by.needs_gradients() && self.cuts_columns(shape);
        let gradients = match self.calibration.filter(|_| wants_gradients) {
            Some(calibration) => {
                Some(clock.time("gradients", || self.gradients(&cuts, &calibration.windows))?)
            }
            None => None,
        };
        Ok(Decided { cuts, steps, gradients })
    }

    fn windows(&self) -> Result<&Windows> {
        let calibration = self.calibration.ok_or_else(|| Failure::new("there is no text to choose by"))?;
        Ok(&calibration.windows)
    }

    fn choose_layers(&self, count: usize) -> Result<attar_prune::criterion::depth::Removal> {
        let config = &self.source.config;
        let stage = self.talk.stage("layers", (config.num_hidden_layers - count) as u64, "layers");
        let removal = {
            let quiet = || ();
            let model = Calibrated::new(config, self.source, self.windows()?, &quiet);
            self.depth.by.keep(&model, count).doing(|| "while choosing layers")?
        };
        for step in &removal.steps {
            stage.detail(&format!("layer {} goes: {} {:.5}", step.layer, self.depth.name, step.score));
        }
        stage.step(removal.steps.len() as u64, "chosen");
        stage.done();
        Ok(removal)
    }

    /// Which features of the residual stream stay, and what norms are multiplied by then.
    fn choose_features(&self, count: usize, cuts: &mut Cuts) -> Result<()> {
        let of = &self.source.config;
        let windows = first_tokens(self.windows()?, HIDDEN_TOKENS);
        let (keep, factors) = {
            let pruned = Pruned::new(of, cuts, self.source)?;
            let blocks = pruned.config().num_hidden_layers as u64;
            let stage = self.talk.stage("features", 2 * blocks, "blocks");
            let mut step = |_| stage.step(1, "blocks");
            let at = || "while choosing features of the residual stream";
            let scores = hidden::scores(pruned.config(), &pruned, &windows, &mut step).doing(at)?;
            let keep = KeepList::top(&scores, count);
            let factors =
                hidden::norm_factors(pruned.config(), &pruned, &windows, &keep, &mut step).doing(at)?;
            stage.done();
            (keep, factors)
        };
        let old = |layer: usize| cuts.layers.kept().get(layer).copied();
        let factors =
            factors.into_iter().map(|((role, layer), factor)| ((role, layer.and_then(old)), factor));
        cuts.norms = factors.collect::<BTreeMap<_, _>>();
        cuts.hidden = keep;
        Ok(())
    }

    fn gradients(&self, cuts: &Cuts, windows: &Windows) -> Result<FirstOrder> {
        let pruned = Pruned::new(&self.source.config, cuts, self.source)?;
        let count = windows.count().min((attar_prune::criterion::TAYLOR_TOKENS / windows.ctx()).max(1));
        let stage = self.talk.stage("gradients", count as u64, "windows");
        let mut step = |_| stage.step(1, "windows");
        let gradients = FirstOrder::measure(pruned.config(), &pruned, windows, &mut step)
            .doing(|| "while measuring how the loss depends on heads and channels")?;
        stage.done();
        Ok(gradients)
    }
}

/// The first windows, of about `most` tokens.
fn first_tokens(windows: &Windows, most: usize) -> Windows {
    let count = windows.count().min((most / windows.ctx()).max(1));
    Windows::new(windows.ctx(), windows.tokens()[..count * windows.ctx()].to_vec())
}

fn reported(config: &ModelConfig) -> report::Shape {
    let shape = Shape::of(config);
    report::Shape {
        layers: shape.layers as u64,
        hidden_size: shape.hidden as u64,
        intermediate_size: shape.ffn as u64,
        query_heads: shape.heads as u64,
        kv_heads: shape.kv_heads as u64,
        experts: shape.experts.map(|experts| experts as u64),
        parameters: config.tensors().iter().map(|spec| spec.len() as u64).sum(),
    }
}
