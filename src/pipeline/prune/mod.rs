//! Pruning, from what is asked for to a smaller model that has been reopened.
//!
//! Layers are chosen first, then features of the residual stream, each in passes of their own; then one pass streams through what is
//! left and cuts heads, channels and experts, each by what it sees of the model as it has become before it.

pub mod across;
pub mod grid;
mod pass;
mod search;
pub mod shape;

use std::collections::BTreeMap;
use std::path::Path;

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::scratch;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::{Report, report};
use attar_model::{LayerSizes, ModelConfig, Place, TensorSpec, Windows};
use attar_prune::criterion::depth::{Calibrated, Removal, Step};
use attar_prune::criterion::{Depth, FirstOrder, Width};
use attar_prune::{Cuts, KeepList, Pruned, hidden};

use super::write::Target;
use super::{Calibration, Clock, describe, is_gguf, verify};
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::{CalibrationSize, Plan};
use crate::source::Source;
use crate::talk::{Talk, human_bytes, thousands};
use across::{Across, Layout};
use grid::Goal;
use pass::Pass;
use search::Found;
use shape::{Shape, ruled_out, say_shapes};

/// What the report calls how floats were made.
pub const METHOD: &str = "prune";

/// Tokens that say enough about the residual stream: they stand in memory at once.
const HIDDEN_TOKENS: usize = 32_768;

/// How what goes is chosen.
pub struct Chooser<T: ?Sized + 'static> {
    /// The criterion's name.
    pub name: &'static str,
    /// The criterion.
    pub by: &'static T,
}

impl<T: ?Sized> Clone for Chooser<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Chooser<T> {}

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
#[derive(Clone, Copy)]
pub struct PruneJob<'a> {
    /// The model.
    pub source: &'a Source,
    /// Its tokenizer, where it has one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// What is to be left.
    pub goal: &'a Goal,
    /// The layers that go, where they are named.
    pub drop: &'a [usize],
    /// How layers compete for channels and heads, if they do.
    pub across: Option<Across>,
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

/// What will happen, or for a search what may: of each shape.
pub struct PrunePlan {
    outlooks: Vec<Outlook>,
    shapes: Vec<Shape>,
    text: String,
}

/// What a shape comes to.
struct Outlook {
    shape: Shape,
    tensors: Plan,
    config: ModelConfig,
}

impl PrunePlan {
    /// The shapes that what is left may have.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }
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
        let before = Shape::of(&self.source.config);
        let planned: Vec<_> = match (self.goal, self.across) {
            (Goal::Shape(shape), Some(across)) if across.layout == Layout::FilledUp => {
                vec![*shape, across.widest(&before, *shape)]
            }
            (Goal::Shape(shape), _) => vec![*shape],
            (Goal::Search(grid), _) => grid.shapes.iter().map(|(shape, _)| *shape).collect(),
        };
        let outlooks = planned.iter().map(|shape| self.outlook(*shape));
        let mut outlooks = outlooks.collect::<Result<Vec<_>>>()?;
        let first = match self.goal {
            Goal::Shape(_) => {
                outlooks.first().map_or_else(String::new, |first| self.say_shape(first, &outlooks))
            }
            Goal::Search(grid) => {
                let peak = search::peak_bytes(self, grid)?;
                for Outlook { tensors, .. } in &mut outlooks {
                    tensors.memory.peak_bytes = tensors.memory.peak_bytes.max(peak);
                }
                grid.say(&self.source.config)
            }
        };
        let text = first + &self.describe(&outlooks);
        let shapes = match (self.goal, self.across) {
            (Goal::Shape(shape), Some(across)) => across.shapes(&before, *shape),
            _ => planned,
        };
        Ok(PrunePlan { outlooks, shapes, text })
    }

    fn outlook(&self, shape: Shape) -> Result<Outlook> {
        let config = &self.source.config;
        self.refuse_what_is_not_carried(&shape)?;
        let cuts = shape.stand_in(config, self.drop)?;
        let at = || "while planning the new shape";
        let config = self.written(&cuts).doing(at).hint(|| "prune along other axes")?;
        Ok(Outlook { shape, tensors: self.tensors(&cuts, &config)?, config })
    }

    /// The configuration of what is written when these cuts have been made.
    fn written(&self, cuts: &Cuts) -> Result<ModelConfig> {
        let left = cuts.config(&self.source.config)?;
        match self.across {
            Some(across) => across.written(&self.source.config, left),
            None => Ok(left),
        }
    }

    fn say_shape(&self, first: &Outlook, all: &[Outlook]) -> String {
        let (before, old) = (&self.source.config, self.source.bytes());
        let alike = || {
            let [old, new] = [old, first.tensors.bytes()].map(human_bytes);
            format!("{new} of weights in place of {old}\n")
        };
        let sizes = self.across.map_or_else(alike, |across| across.say(all, old, &Shape::of(before)));
        let ruled_out = ruled_out(before, &first.config);
        let ruled_out: String = ruled_out.iter().flat_map(|what| [what, "\n"]).collect();
        say_shapes(before, &first.config) + &sizes + &ruled_out
    }

    fn describe(&self, outlooks: &[Outlook]) -> String {
        let mut lines = Vec::new();
        let some = |goes: &dyn Fn(&Shape) -> bool| outlooks.iter().any(|outlook| goes(&outlook.shape));
        if some(&|shape| shape.layers < self.source.config.num_hidden_layers) && self.drop.is_empty() {
            lines.push(format!("layers are chosen by {}\n", self.depth.name));
        }
        if some(&|shape| self.cuts_columns(shape)) {
            let repaired = match self.compensation {
                Compensation::LeastSquares => "what stays is repaired by least squares",
                Compensation::None => "what stays is left as it is",
            };
            lines.push(format!("heads and channels are chosen by {}; {repaired}\n", self.width.name));
        }
        // The pass is over the same model and text whatever is left of it.
        if let Some(Outlook { tensors, .. }) = outlooks.first() {
            if let Some(CalibrationSize { tokens, ctx }) = tensors.calibration {
                lines.push(format!("calibration: {} tokens in windows of {ctx}\n", thousands(tokens as u64)));
            }
            lines.push(tensors.memory.to_string());
        }
        lines.concat()
    }

    /// What becomes of every tensor of `config`, which is what is written when these cuts have been made.
    fn tensors(&self, cuts: &Cuts, config: &ModelConfig) -> Result<Plan> {
        let size = |calibration: &Calibration| CalibrationSize {
            tokens: calibration.windows.tokens().len(),
            ctx: calibration.windows.ctx(),
        };
        self.tensors_beside((cuts, config), self.calibration.map(size), 0)
    }

    /// Those of a pass over so much text, with so many bytes of something else in memory.
    fn tensors_beside(
        &self,
        (cuts, config): (&Cuts, &ModelConfig),
        calibration: Option<CalibrationSize>,
        beside: u64,
    ) -> Result<Plan> {
        let pruned = Pruned::new(&self.source.config, cuts, self.source)?;
        let before = |spec: &TensorSpec| pruned.before(&spec.name).cloned();
        let size = (calibration, beside);
        Plan::of_pruned(self.source, config, before, is_gguf(self.output), size, self.max_memory)
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
            .hint(
                "every query is divided by the root mean square of all heads, another at each token, so without some of them no norm \
                 weight gives the others what they were; --ffn, --layers and --hidden work",
            ));
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
            max_part_bytes: None,
        }
    }

    /// What would keep the output from being written, as far as can be told without writing.
    ///
    /// # Errors
    /// As [`Target::check`]; a disk too full for a temporary file.
    pub fn check(&self, plan: &PrunePlan) -> Result<()> {
        plan.outlooks.iter().try_for_each(|Outlook { tensors, config, .. }| {
            if let Place::Folder(folder) = &tensors.memory.keeping.place {
                scratch::check_room(folder, tensors.memory.hidden_bytes)
                    .doing(|| "while preparing the temporary file for hidden states")?;
            }
            self.target(tensors, config).check()
        })
    }

    /// What will be found once the output is written, all but its numbers; of a search what may be.
    ///
    /// # Errors
    /// As [`Target::promise`].
    pub fn promises(&self, plan: &PrunePlan) -> Result<Vec<Source>> {
        plan.outlooks.iter().map(|outlook| self.target(&outlook.tensors, &outlook.config).promise()).collect()
    }

    /// Chooses, cuts, repairs, writes, reopens what was written and compares it, number by number, with what was meant.
    ///
    /// The report still lacks the evaluation.
    ///
    /// # Errors
    /// What kept the output from being written, or the first tensor that reads back otherwise.
    pub fn run(&self, clock: &mut Clock) -> Result<(Source, Report)> {
        let (shape, layers, search) = match self.goal {
            Goal::Shape(shape) => (*shape, None, None),
            Goal::Search(grid) => {
                let Found { shape, layers, report } = clock.time("search", || search::run(self, grid))?;
                (shape, layers, Some(report))
            }
        };
        let Decided { cuts, steps, gradients } = self.decide(&shape, layers, clock)?;
        let sizes = match self.across {
            Some(across) => {
                clock.time("weigh", || self.share_out(across, shape, &cuts, gradients.as_ref()))?
            }
            None => Vec::new(),
        };
        let stand_in = self.stand_in(&shape, &cuts, &sizes)?;
        let config = self.written(&stand_in)?;
        let tensors = self.tensors(&stand_in, &config)?;
        let mut sink = self.target(&tensors, &config).create()?;
        let pass = Pass { sizes: &sizes, ..self.pass(shape, &tensors, gradients.as_ref()) };
        let windows = self.calibration.filter(|_| self.cuts_width(&shape)).map(|c| &c.windows);
        let outcome = clock.time("prune", || pass.run(cuts, windows, (&config, &mut sink)))?;
        let hashes = clock.time("write", || sink.finish())?;
        let (written, facts) =
            clock.time("verify", || verify::reopen(self.output, &tensors, &hashes, self.talk))?;
        let mut report = Report::new(describe(self.source));
        report.output = Some(report::Output {
            path: self.output.display().to_string(),
            format: tensors.output.format().to_owned(),
            scheme: tensors.main_type(),
            method: Some(METHOD.to_owned()),
            parameters: Some(tensors.weights()),
            bytes: facts.bytes,
            bits_per_weight: tensors.bits_per_weight(),
            sha256: Some(facts.sha256),
        });
        report.tensors = outcome.tensors;
        for tensor in &mut report.tensors {
            tensor.decoded_sha256 = hashes.get(&tensor.name).cloned();
        }
        let zeros = self.zeros(&tensors, &stand_in)?;
        let across_layers = self.across.map(|across| report::AcrossLayers {
            layout: across.layout.name().to_owned(),
            zero_bytes: zeros,
        });
        report.pruning = Some(report::Pruning {
            search,
            across_layers,
            ..self.pruning(&shape, &config, &steps, outcome.layers)
        });
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
        let named = self.drop.iter().map(|&layer| report::DroppedLayer { layer: layer as u64, score: None });
        let chosen = steps
            .iter()
            .map(|step| report::DroppedLayer { layer: step.layer as u64, score: Some(step.score) });
        let compensation = if self.cuts_columns(shape) { self.compensation } else { Compensation::None };
        report::Pruning {
            search: None,
            across_layers: None,
            before: reported(&self.source.config),
            after: reported(config),
            criterion: self.cuts_columns(shape).then(|| self.width.name.to_owned()),
            depth_criterion: (!steps.is_empty()).then(|| self.depth.name.to_owned()),
            compensation: compensation.name().to_owned(),
            ruled_out: ruled_out(&self.source.config, config),
            dropped_layers: named.chain(chosen).collect(),
            layers,
        }
    }

    /// Cuts as they will be, but for which heads and channels go: that changes no shape, so the plan of all tensors is known
    /// before the pass.
    fn stand_in(&self, shape: &Shape, cuts: &Cuts, sizes: &[LayerSizes]) -> Result<Cuts> {
        let mut stand_in = shape.stand_in_of(&self.source.config, &cuts.layers.dropped(), sizes)?;
        stand_in.hidden = cuts.hidden.clone();
        Ok(stand_in)
    }

    fn pass<'b>(&'b self, shape: Shape, plan: &'b Plan, gradients: Option<&'b FirstOrder>) -> Pass<'b> {
        Pass {
            source: self.source,
            plan,
            shape,
            sizes: &[],
            width: self.width.by,
            compensation: self.compensation,
            gradients,
            talk: self.talk,
        }
    }

    /// The sizes of every layer that stays, found in a pass of its own.
    fn share_out(
        &self,
        across: Across,
        shape: Shape,
        cuts: &Cuts,
        gradients: Option<&FirstOrder>,
    ) -> Result<Vec<LayerSizes>> {
        let stand_in = self.stand_in(&shape, cuts, &[])?;
        let tensors = self.tensors(&stand_in, &self.written(&stand_in)?)?;
        let sizes = self.pass(shape, &tensors, gradients).share_out(cuts, self.windows()?, across.step)?;
        for (layer, sizes) in cuts.layers.kept().iter().zip(&sizes) {
            let LayerSizes { intermediate_size, num_key_value_heads, .. } = sizes;
            self.talk.detail(&format!(
                "layer {layer} keeps {intermediate_size} channels and {num_key_value_heads} key heads"
            ));
        }
        Ok(sizes)
    }

    /// Bytes of the zeros that layers are filled up with.
    fn zeros(&self, tensors: &Plan, stand_in: &Cuts) -> Result<u64> {
        let left = self.tensors(stand_in, &stand_in.config(&self.source.config)?)?;
        Ok(tensors.bytes().saturating_sub(left.bytes()))
    }

    /// Everything that is decided before the pass: layers unless they are known already, features of the residual stream, and
    /// what the loss says.
    fn decide(&self, shape: &Shape, known: Option<Removal>, clock: &mut Clock) -> Result<Decided> {
        let config = &self.source.config;
        let mut cuts = Cuts::none(config);
        let mut steps = Vec::new();
        if !self.drop.is_empty() {
            cuts.layers = KeepList::without(self.drop, config.num_hidden_layers)?;
        } else if shape.layers < config.num_hidden_layers {
            let removal = match known {
                Some(removal) => removal,
                None => clock.time("choose layers", || self.choose_layers(shape.layers))?,
            };
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

    fn choose_layers(&self, count: usize) -> Result<Removal> {
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
    let parameters = config.tensors().iter().map(|spec| spec.len() as u64).sum();
    reported_shape(&Shape::of(config), parameters)
}

fn reported_shape(shape: &Shape, parameters: u64) -> report::Shape {
    report::Shape {
        layers: shape.layers as u64,
        hidden_size: shape.hidden as u64,
        intermediate_size: shape.ffn as u64,
        query_heads: shape.heads as u64,
        kv_heads: shape.kv_heads as u64,
        experts: shape.experts.map(|experts| experts as u64),
        parameters,
    }
}
