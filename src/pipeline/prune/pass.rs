//! One block at a time: see what o reads, cut heads and repair o; see what down reads, cut channels and repair down; write the
//! block, and go on with what was written.

use attar_checkpoint::{Dtype, round_floats};
use attar_eval::report;
use attar_model::{
    Block, Gated, LayerSizes, ModelConfig, Role, Share, Streaming, Tap, Weights, Windows, streamed_embeddings,
};
use attar_prune::criterion::{Evidence, FirstOrder, Reap, Width};
use attar_prune::repair::{Repaired, drop_columns, repair};
use attar_prune::{Cuts, KeepList, Pools, Pruned, Statistics};
use ndarray::{Array2, ArrayD, ArrayView2, s};

use super::Compensation;
use super::shape::Shape;
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::stream::{CHUNK_TOKENS, Stream};
use crate::pipeline::write::Sink;
use crate::plan::{Plan, PlannedTensor};
use crate::source::{CHUNK_WEIGHTS, Source, rows_and_cols};
use crate::talk::{Stage, Talk};

/// Everything a pass needs.
pub struct Pass<'a> {
    /// The model that is read.
    pub source: &'a Source,
    /// The tensors that are written.
    pub plan: &'a Plan,
    /// What is to be left.
    pub shape: Shape,
    /// The sizes of every layer that stays, where they are not all the shape's.
    pub sizes: &'a [LayerSizes],
    /// How heads and channels are chosen.
    pub width: &'static dyn Width,
    /// Whether o and down are repaired.
    pub compensation: Compensation,
    /// What the loss says, where the criterion asks for it.
    pub gradients: Option<&'a FirstOrder>,
    /// Where progress is told.
    pub talk: Talk,
}

/// What a pass has done.
pub struct Outcome {
    /// What became of each tensor, in the order of the plan.
    pub tensors: Vec<report::Tensor>,
    /// What is left of each layer.
    pub layers: Vec<report::PrunedLayer>,
}

/// Which matrix reads the features that go.
#[derive(Clone, Copy)]
pub(super) enum Reader {
    O,
    Down,
}

impl Reader {
    fn role(self) -> Role {
        match self {
            Self::O => Role::O,
            Self::Down => Role::Down,
        }
    }

    fn made_by(self) -> &'static [Role] {
        match self {
            Self::O => &[Role::Q],
            Self::Down => &[Role::Gate, Role::Up],
        }
    }
}

/// The text on its way through what is left.
pub(super) struct Flow {
    pub(super) stream: Stream,
    /// Tokens, the first ones, by which what goes is chosen and what stays is repaired; the others are carried along.
    deciding: usize,
}

impl Flow {
    /// Takes the stream to a tap of a block and shows `observe` what decides there.
    pub(super) fn observe(
        &mut self,
        block: &Block,
        tap: Tap,
        mut observe: impl FnMut(ArrayView2<'_, f32>),
    ) -> Result<()> {
        let mut left = self.deciding;
        self.stream.advance(block, tap, |x| {
            let rows = left.min(x.nrows());
            left -= rows;
            if rows > 0 {
                observe(x.slice(s![..rows, ..]));
            }
        })?;
        Ok(())
    }

    /// The sum of squares of the residual stream over all tokens.
    pub(super) fn energy(&self) -> Result<f64> {
        let mut energy = 0.0;
        self.stream.each_chunk(|hidden| {
            energy += hidden.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        })?;
        Ok(energy)
    }
}

/// A layer on its way: what has been decided of it, and the matrices that have been repaired.
pub(super) struct Layer<'a> {
    /// Its number before.
    old: usize,
    /// Its number among those that stay.
    new: usize,
    cuts: &'a mut Cuts,
    repaired: Vec<(Role, Array2<f32>)>,
    report: report::PrunedLayer,
}

impl Pass<'_> {
    /// Cuts and writes every tensor into `sink`, with layers and residual stream cut as `cuts` says already; heads, channels and
    /// experts are chosen by `windows`, where any go. What is left of a layer is filled up to what `written` says, the configuration of
    /// what is written.
    ///
    /// # Errors
    /// A tensor that cannot be read or written, activations that are not finite.
    pub fn run(
        &self,
        mut cuts: Cuts,
        windows: Option<&Windows>,
        (written, sink): (&ModelConfig, &mut Sink),
    ) -> Result<Outcome> {
        let stage = self.talk.stage("pruning", self.plan.weights(), "weights");
        let mut done = Done { written, sink, stage: &stage, tensors: Vec::new() };
        let mut layers = Vec::new();
        let mut flow = windows.map(|windows| self.flow(&cuts, windows, windows.count())).transpose()?;
        for (new, old) in cuts.layers.kept().to_vec().into_iter().enumerate() {
            let report = self
                .written(new, old, &mut cuts, flow.as_mut(), &mut done)
                .doing(|| format!("while pruning layer {old}"))?;
            layers.push(report);
        }
        let pruned = Pruned::new(&self.source.config, &cuts, self.source)?;
        for tensor in self.plan.outside_blocks() {
            done.write(tensor, &pruned)?;
        }
        let Done { mut tensors, .. } = done;
        let position = |name: &str| self.plan.tensors.iter().position(|t| t.spec.name == name);
        tensors.sort_by_cached_key(|report| position(&report.name));
        stage.done();
        Ok(Outcome { tensors, layers })
    }

    /// Cuts as [`run`](Self::run) does by the first windows, `deciding` of them, and writes nothing: where all windows come out.
    ///
    /// # Errors
    /// A tensor that cannot be read, activations that are not finite.
    pub fn rehearse(&self, mut cuts: Cuts, windows: &Windows, deciding: usize) -> Result<Stream> {
        let mut flow = self.flow(&cuts, windows, deciding)?;
        for (new, old) in cuts.layers.kept().to_vec().into_iter().enumerate() {
            self.layer(new, old, &mut cuts, Some(&mut flow))
                .doing(|| format!("while trying to prune layer {old}"))?;
        }
        Ok(flow.stream)
    }

    pub(super) fn flow(&self, cuts: &Cuts, windows: &Windows, deciding: usize) -> Result<Flow> {
        Ok(Flow { stream: self.stream(cuts, windows)?, deciding: deciding * windows.ctx() })
    }

    fn stream(&self, cuts: &Cuts, windows: &Windows) -> Result<Stream> {
        let memory = &self.plan.memory;
        // Only layers and features are cut so far, so that this is a whole model.
        let pruned = Pruned::new(&self.source.config, cuts, self.source)?;
        let streaming = Streaming::kept(&memory.keeping);
        let hidden = streamed_embeddings(pruned.config(), &pruned, windows, &streaming)?;
        Ok(Stream::new(hidden, windows.ctx(), memory.keeping.clone(), memory.carry))
    }

    /// Cuts a layer and writes it.
    fn written(
        &self,
        new: usize,
        old: usize,
        cuts: &mut Cuts,
        flow: Option<&mut Flow>,
        done: &mut Done,
    ) -> Result<report::PrunedLayer> {
        let layer = self.layer(new, old, cuts, flow)?;
        let pruned = self.pruned(&layer).filled_up_to(done.written);
        for tensor in self.plan.of_layer(new) {
            done.write(tensor, &pruned)?;
        }
        drop(pruned);
        Ok(layer.finish())
    }

    fn layer<'c>(
        &self,
        new: usize,
        old: usize,
        cuts: &'c mut Cuts,
        flow: Option<&mut Flow>,
    ) -> Result<Layer<'c>> {
        let mut layer = Layer::new(new, old, cuts);
        if let Some(flow) = flow {
            self.heads(&mut layer, flow)?;
            if self.source.config.experts_of(old).is_some() {
                self.experts(&mut layer, &mut flow.stream)?;
            } else {
                self.channels(&mut layer, flow)?;
            }
        }
        Ok(layer)
    }

    /// The sizes that are to be left of a layer.
    fn sizes(&self, layer: &Layer<'_>) -> LayerSizes {
        self.sizes.get(layer.new).copied().unwrap_or_else(|| self.shape.sizes())
    }

    /// The layer as it has become.
    fn pruned<'b>(&'b self, layer: &'b Layer<'_>) -> Pruned<'b> {
        let mut pruned = Pruned::block(&self.source.config, layer.cuts, self.source, layer.old);
        for (role, weight) in &layer.repaired {
            if let Some(spec) = pruned.config().tensor(*role, Some(layer.new)) {
                pruned.change(&spec.name, weight.clone().into_dyn());
            }
        }
        pruned
    }

    /// What is left of a layer, to be run.
    pub(super) fn load(&self, layer: &Layer<'_>) -> Result<Block> {
        let pruned = self.pruned(layer);
        Ok(Block::load_without_experts(pruned.config(), layer.new, &pruned)?)
    }

    /// Chooses the heads that stay and repairs o; the stream is then still at the block's input.
    fn heads(&self, layer: &mut Layer<'_>, flow: &mut Flow) -> Result<()> {
        let config = &self.source.config;
        let (groups, size) =
            (config.num_key_value_heads, config.num_attention_heads / config.num_key_value_heads);
        let LayerSizes { num_attention_heads, num_key_value_heads: kept_groups, .. } = self.sizes(layer);
        let each = num_attention_heads / kept_groups;
        if kept_groups == groups && each == size {
            return Ok(());
        }
        let block = self.load(layer)?;
        let mut by_head = Statistics::new(config.num_attention_heads, config.head_dim);
        let mut by_group = (kept_groups < groups).then(|| Statistics::new(groups, size * config.head_dim));
        let ctx = flow.stream.ctx();
        flow.observe(&block, Tap::AttnOut, |x| {
            by_head.observe(x, ctx);
            if let Some(by_group) = &mut by_group {
                by_group.observe(x, ctx);
            }
        })?;
        let kv_heads = match &by_group {
            Some(statistics) => self.choose(layer, &block, Reader::O, statistics, Pools::one(kept_groups))?,
            None => KeepList::all(groups),
        };
        let heads = if each == size {
            kv_heads.in_parts(size)
        } else {
            let pools = Pools { pools: groups, kept: each };
            let best = self.choose(layer, &block, Reader::O, &by_head, pools)?;
            let in_group = best.kept().iter().copied().filter(|head| kv_heads.keeps(head / size));
            KeepList::new(in_group, best.of())?
        };
        let features = heads.in_parts(config.head_dim);
        layer.report.o_proj = Some(self.repair(layer, &block, Reader::O, &by_head, &features)?);
        let cuts = &mut layer.cuts.blocks[layer.old];
        (cuts.kv_heads, cuts.query_heads) = (kv_heads, heads);
        Ok(())
    }

    /// Adds the attention's output, chooses the channels that stay, repairs down, and takes the stream to the next block.
    fn channels(&self, layer: &mut Layer<'_>, flow: &mut Flow) -> Result<()> {
        let config = &self.source.config;
        let mut block = self.load(layer)?;
        flow.stream.advance(&block, Tap::MlpIn, |_| ())?;
        let LayerSizes { intermediate_size: kept, .. } = self.sizes(layer);
        if kept < config.intermediate_size {
            let mut statistics = Statistics::new(config.intermediate_size, 1);
            let ctx = flow.stream.ctx();
            flow.observe(&block, Tap::MlpMid, |x| statistics.observe(x, ctx))?;
            let keep = self.choose(layer, &block, Reader::Down, &statistics, Pools::one(kept))?;
            layer.report.down_proj = Some(self.repair(layer, &block, Reader::Down, &statistics, &keep)?);
            layer.cuts.blocks[layer.old].ffn = keep;
            block = self.load(layer)?;
        }
        flow.stream.finish(&block)?;
        Ok(())
    }

    fn choose(
        &self,
        layer: &Layer<'_>,
        block: &Block,
        reader: Reader,
        statistics: &Statistics,
        pools: Pools,
    ) -> Result<KeepList> {
        Ok(self.width.keep(&self.evidence(layer, block, reader, statistics)?, pools))
    }

    /// What is known of what o or down reads.
    pub(super) fn evidence<'e>(
        &'e self,
        layer: &Layer<'_>,
        block: &'e Block,
        reader: Reader,
        statistics: &'e Statistics,
    ) -> Result<Evidence<'e>> {
        if !statistics.is_finite() {
            return Err(Failure::new(format!("what {} reads is not finite", reader.role().as_str())).hint(
                "the model overflows on the calibration text: attar eval shows whether it works at all",
            ));
        }
        let gradients = self.gradients.map(|gradients| gradients.of(reader.role(), layer.new));
        Ok(Evidence {
            statistics,
            reads: block.linear(reader.role()).weight.view(),
            made_by: reader.made_by().iter().map(|&role| block.linear(role).weight.view()).collect(),
            gradients,
        })
    }

    /// Cuts the columns of o or down, repaired and rounded to what the file will hold.
    fn repair(
        &self,
        layer: &mut Layer<'_>,
        block: &Block,
        reader: Reader,
        statistics: &Statistics,
        features: &KeepList,
    ) -> Result<report::Lost> {
        let w = block.linear(reader.role()).weight.view();
        let Repaired { weight, error_dropped, error, fallback } = match self.compensation {
            Compensation::LeastSquares => repair(w, &statistics.gram, features),
            Compensation::None => drop_columns(w, &statistics.gram, features),
        };
        let tensor = self.plan.of_layer(layer.new).find(|t| t.spec.role == reader.role());
        let dtype = tensor.map_or(Dtype::F32, Plan::float_of);
        layer.repaired.push((reader.role(), rounded(&weight, dtype)?));
        Ok(report::Lost { error_dropped, error, fallback })
    }

    /// Adds the attention's output, chooses the experts that stay, and takes the stream to the next block.
    fn experts(&self, layer: &mut Layer<'_>, stream: &mut Stream) -> Result<()> {
        let block = self.load(layer)?;
        let Some(experts) = block.experts() else { return Ok(()) };
        let mut shares = stream.route(&block, experts.router(), |_| ())?;
        if self.shape.experts.is_some_and(|kept| kept < shares.len()) {
            let keep = self.best_experts(layer, stream, &shares)?;
            layer.cuts.blocks[layer.old].experts = Some(keep);
            let block = self.load(layer)?;
            shares = Vec::new();
            for start in (0..stream.tokens()).step_by(CHUNK_TOKENS) {
                let rows: Vec<_> = (start..stream.tokens().min(start + CHUNK_TOKENS)).collect();
                if let Some(experts) = block.experts() {
                    Share::append_all(
                        &mut shares,
                        start,
                        &experts.router().route(stream.experts_in(&rows)?.view()).shares(),
                    );
                }
            }
        }
        let pruned = self.pruned(layer);
        for (index, Share { rows, weights }) in shares.iter().enumerate() {
            let expert = Gated::load_expert(pruned.config(), layer.new, index, &pruned)?;
            for (rows, weights) in rows.chunks(CHUNK_TOKENS).zip(weights.chunks(CHUNK_TOKENS)) {
                let out = expert.out(expert.mid(stream.experts_in(rows)?.view()).view());
                stream.add_expert(rows, weights, &out)?;
            }
        }
        drop(pruned);
        stream.leave_experts();
        Ok(())
    }

    fn best_experts(&self, layer: &Layer<'_>, stream: &Stream, shares: &[Share]) -> Result<KeepList> {
        let pruned = self.pruned(layer);
        let mut scores = Reap.start(shares.len());
        for (index, Share { rows, weights }) in shares.iter().enumerate() {
            let expert = Gated::load_expert(pruned.config(), layer.new, index, &pruned)?;
            for (rows, weights) in rows.chunks(CHUNK_TOKENS).zip(weights.chunks(CHUNK_TOKENS)) {
                let out = expert.out(expert.mid(stream.experts_in(rows)?.view()).view());
                scores.observe(index, weights, out.view());
            }
        }
        Ok(scores.keep(self.shape.experts.unwrap_or(shares.len())))
    }
}

impl<'a> Layer<'a> {
    /// Nothing has been decided yet.
    pub(super) fn new(new: usize, old: usize, cuts: &'a mut Cuts) -> Self {
        let report = report::PrunedLayer {
            layer: old as u64,
            channels: 0,
            query_heads: Vec::new(),
            kv_heads: Vec::new(),
            experts: None,
            o_proj: None,
            down_proj: None,
        };
        Self { old, new, cuts, repaired: Vec::new(), report }
    }

    fn finish(self) -> report::PrunedLayer {
        let numbers = |list: &KeepList| list.kept().iter().map(|&index| index as u64).collect();
        let kept = &self.cuts.blocks[self.old];
        report::PrunedLayer {
            channels: kept.ffn.len() as u64,
            query_heads: numbers(&kept.query_heads),
            kv_heads: numbers(&kept.kv_heads),
            experts: kept.experts.as_ref().map(numbers),
            ..self.report
        }
    }
}

/// What is left of numbers that are stored as `dtype`.
fn rounded(weight: &Array2<f32>, dtype: Dtype) -> Result<Array2<f32>> {
    let shape = weight.dim();
    let values: Vec<f32> = weight.iter().copied().collect();
    let kept = round_floats(dtype, &values)?;
    if let Some(at) = kept.iter().position(|x| !x.is_finite()) {
        return Err(Failure::new(format!("the repaired value {:e} is too large for {dtype}", values[at]))
            .hint("--no-repair leaves weights as they are"));
    }
    Ok(Array2::from_shape_vec(shape, kept)?)
}

/// Where finished tensors go.
struct Done<'a> {
    written: &'a ModelConfig,
    sink: &'a mut Sink,
    stage: &'a Stage,
    tensors: Vec<report::Tensor>,
}

impl Done<'_> {
    /// Writes a tensor of what is left, embedding and head some rows at a time.
    fn write(&mut self, tensor: &PlannedTensor, pruned: &Pruned<'_>) -> Result<()> {
        let at = || format!("while writing `{}`", tensor.spec.name);
        let (name, dtype) = (&tensor.spec.name, Plan::float_of(tensor));
        let failed = |source| attar_model::Error::Load { name: name.clone(), source };
        if tensor.spec.layer.is_none() && tensor.spec.is_matrix() {
            let [rows, _] = rows_and_cols(&tensor.spec);
            let step = self.sink.rows().step(tensor, CHUNK_WEIGHTS);
            for start in (0..rows).step_by(step) {
                let part =
                    pruned.load_range(name, start..rows.min(start + step)).map_err(failed).doing(at)?;
                self.sink.floats(tensor, dtype, part.iter().copied().collect()).doing(at)?;
            }
        } else {
            let values: ArrayD<f32> = pruned.load(name).map_err(failed).doing(at)?;
            self.sink.floats(tensor, dtype, values.iter().copied().collect()).doing(at)?;
        }
        self.note(tensor);
        Ok(())
    }

    fn note(&mut self, tensor: &PlannedTensor) {
        let spec = &tensor.spec;
        let stored_name = self.sink.stored_name(tensor);
        self.stage.step(tensor.weights() as u64, spec.role.as_str());
        self.tensors.push(report::Tensor {
            name: spec.name.clone(),
            stored_name: (stored_name != spec.name).then(|| stored_name.to_owned()),
            role: spec.role.as_str().to_owned(),
            expert: spec.expert.map(|expert| expert.index as u64),
            encoding: tensor.encoding_name(),
            bits_per_weight: 8.0 * tensor.bytes as f64 / tensor.weights() as f64,
            ..report::Tensor::default()
        });
    }
}
