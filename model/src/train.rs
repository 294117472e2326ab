//! A whole model in memory, whose weights change: forward, loss, backward.

use crate::block::refuse_experts;
use crate::products::{Activations, Learning};
use crate::{
    Block, Error, Gradients, Head, Kept, LoadError, Loss, ModelConfig, Precision, Role, TensorSpec, Weights,
    Windows,
};
use attar_tensor::op::{embedding_backward, soft_cap_backward};
use ndarray::{Array2, ArrayD, ArrayView2, ArrayViewD, ArrayViewMutD, Axis, Slice};
use std::collections::BTreeMap;

/// What is kept of a forward pass for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Each block's input, `hidden_size` numbers a token and layer: blocks go forward once more, a few windows at a time.
    Inputs,
    /// All that backward reads, some ten times as much: nothing but scores and norms is computed twice.
    Activations,
}

/// How a training step is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is kept of the forward pass. It never changes a bit.
    pub keep: Keep,
    /// What the factors of products are rounded to; weights and all that is no product are f32.
    pub precision: Precision,
}

/// A model with all its weights, to be trained.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    embedding: Option<Array2<f32>>, // none where the head is the embedding
    blocks: Vec<Block>,
    head: Head,
}

/// What one block's backward pass will read.
enum Trace {
    Input(Array2<f32>),
    Activations(Vec<Kept>),
}

/// What a forward pass leaves for the backward pass.
struct Forward {
    hidden: Array2<f32>, // after the last block
    traces: Vec<Trace>,
    streams_loss: f64,
    d_streams: BTreeMap<usize, Array2<f32>>, // by the block after which something is asked of the stream
}

impl Model {
    /// Loads all weights.
    ///
    /// # Errors
    /// A model with experts, before anything is loaded; a tensor that cannot be loaded or has another shape than the
    /// configuration says.
    pub fn load(config: &ModelConfig, weights: &dyn Weights) -> Result<Self, Error> {
        (0..config.num_hidden_layers).try_for_each(|layer| refuse_experts(config, layer))?;
        let embedding = (!config.tie_word_embeddings).then(|| crate::forward::embedding(config, weights));
        let blocks = (0..config.num_hidden_layers).map(|layer| Block::load(config, layer, weights));
        Ok(Self {
            embedding: embedding.transpose()?,
            blocks: blocks.collect::<Result<_, _>>()?,
            head: Head::load(config, weights)?,
            config: config.clone(),
        })
    }

    /// The numbers of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The final norm and the matrix that makes logits.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The weight of one role, in one layer or outside of all, as it is stored.
    pub fn parameter(&self, role: Role, layer: Option<usize>) -> Option<ArrayViewD<'_, f32>> {
        match (layer, role) {
            (Some(layer), _) => self.blocks.get(layer)?.parameter(role),
            (None, Role::Embedding) => Some(self.embedding().into_dyn()),
            (None, Role::Head) if self.embedding.is_none() => None,
            (None, _) => self.head.parameter(role),
        }
    }

    /// The weight of one role, in one layer or outside of all, as it is stored, to be changed in place.
    pub fn parameter_mut(&mut self, role: Role, layer: Option<usize>) -> Option<ArrayViewMutD<'_, f32>> {
        match (layer, role, &mut self.embedding) {
            (Some(layer), _, _) => self.blocks.get_mut(layer)?.parameter_mut(role),
            (None, Role::Embedding, Some(embedding)) => Some(embedding.view_mut().into_dyn()),
            (None, Role::Embedding, None) => self.head.parameter_mut(Role::Head),
            (None, Role::Head, None) => None,
            (None, _, _) => self.head.parameter_mut(role),
        }
    }

    /// Keeps of every matrix what products in `precision` need, see [`Weight::pack`](crate::Weight::pack): a model that is only run.
    pub fn pack(&mut self, precision: Precision) {
        if precision == Precision::F32 {
            return;
        }
        if self.embedding.is_none() {
            self.embedding = Some(self.head.weight().to_owned()); // rows are looked up as they are
        }
        self.blocks.iter_mut().for_each(|block| block.pack(precision));
        self.head.pack(precision);
    }

    /// The hidden states after the last block and before the final norm, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn hidden_states(&self, windows: &Windows) -> Result<Array2<f32>, Error> {
        self.streams(windows, &mut |_, _| ())
    }

    /// [`hidden_states`](Self::hidden_states), where `see` is shown the residual stream after each block, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn streams(
        &self,
        windows: &Windows,
        see: &mut dyn FnMut(usize, ArrayView2<'_, f32>),
    ) -> Result<Array2<f32>, Error> {
        let mut hidden = crate::forward::embed_from(&self.config, self.embedding(), windows.tokens())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            block.forward(&mut hidden, windows.ctx());
            see(layer, hidden.view());
        }
        Ok(hidden)
    }

    /// `[vocab_size, hidden_size]`.
    fn embedding(&self) -> ArrayView2<'_, f32> {
        self.embedding.as_ref().map_or_else(|| self.head.weight(), |embedding| embedding.view())
    }

    /// The loss of some windows, and the gradients of those weights that `trained` says yes to: block by block from the last to the
    /// first with its layer, then of those outside of all layers. Nothing is computed for a weight that is not trained, nor below
    /// the first that is.
    ///
    /// The result, gradients included, is the same to the bit for any number of threads and whatever is kept.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn backward(
        &self,
        windows: &Windows,
        loss: &dyn Loss,
        step: Step,
        trained: &dyn Fn(&TensorSpec) -> bool,
        deliver: &mut dyn FnMut(Option<usize>, Gradients),
    ) -> Result<f64, Error> {
        let ctx = windows.ctx();
        let specs: Vec<_> = self.config.tensors().into_iter().filter(|spec| trained(spec)).collect();
        let trains_embedding = specs.iter().any(|spec| spec.role == Role::Embedding);
        let lowest =
            if trains_embedding { Some(0) } else { specs.iter().filter_map(|spec| spec.layer).min() };
        let Forward { hidden, mut traces, streams_loss, mut d_streams } =
            self.forward(windows, loss, step, lowest)?;
        let outside = specs.iter().filter(|spec| spec.layer.is_none());
        let mut ends = Gradients::zeros(outside.map(|spec| (spec.role, spec.shape.as_slice())));
        let (loss, mut d) =
            self.head.backward(hidden.view(), loss, step.precision, self.head_role(), &mut ends);
        drop(hidden);
        let loss = loss + streams_loss;
        for layer in (lowest.unwrap_or(self.blocks.len())..self.blocks.len()).rev() {
            let mut gradients = self.blocks[layer].gradients(trained)?;
            let learner = self.blocks[layer].learner(step.precision);
            if let Some(asked) = d_streams.remove(&layer) {
                d += &asked;
            }
            match traces.pop() {
                Some(Trace::Activations(chunks)) => {
                    let rows = d.axis_chunks_iter_mut(Axis(0), Block::windows_at_once(ctx));
                    for (kept, d) in chunks.into_iter().zip(rows) {
                        learner.backward(kept, d, &mut gradients);
                    }
                }
                Some(Trace::Input(input)) => {
                    learner.backward_from_input(input.view(), ctx, d.view_mut(), &mut gradients);
                }
                None => unreachable!("every block that is trained left a trace"),
            }
            deliver(Some(layer), gradients);
        }
        if let Some(d_embedding) = ends.matrix_mut(Role::Embedding) {
            crate::scale_embeddings(&self.config, d.view_mut());
            embedding_backward(windows.tokens(), d.view(), d_embedding);
        }
        deliver(None, ends);
        Ok(loss)
    }

    /// The role under which the head's matrix is trained.
    fn head_role(&self) -> Role {
        if self.embedding.is_some() { Role::Head } else { Role::Embedding }
    }

    /// The forward pass; the blocks from `lowest` on leave what the backward pass will read.
    fn forward(
        &self,
        windows: &Windows,
        loss: &dyn Loss,
        step: Step,
        lowest: Option<usize>,
    ) -> Result<Forward, Error> {
        let ctx = windows.ctx();
        let mut hidden = crate::forward::embed_from(&self.config, self.embedding(), windows.tokens())?;
        let (mut traces, mut streams_loss, mut d_streams) = (Vec::new(), 0.0, BTreeMap::new());
        for (layer, block) in self.blocks.iter().enumerate() {
            let learner = block.learner(step.precision);
            let learns = lowest.is_some_and(|lowest| layer >= lowest);
            match step.keep {
                Keep::Inputs if learns => {
                    traces.push(Trace::Input(hidden.clone()));
                    learner.forward(&mut hidden, ctx);
                }
                Keep::Activations if learns => {
                    let chunks = hidden.axis_chunks_iter_mut(Axis(0), Block::windows_at_once(ctx));
                    let kept = chunks.map(|hidden| learner.forward_keeping(hidden, ctx)).collect();
                    traces.push(Trace::Activations(kept));
                }
                _ => learner.forward(&mut hidden, ctx),
            }
            if let Some((share, asked)) = loss.stream_backward(layer, hidden.view()) {
                streams_loss += share;
                if learns {
                    d_streams.insert(layer, asked);
                }
            }
        }
        Ok(Forward { hidden, traces, streams_loss, d_streams })
    }
}

impl Weights for Model {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let found = self.config.tensors().into_iter().find(|spec| spec.name == name);
        let weight = found.and_then(|spec| match (spec.layer, spec.role.parts().len()) {
            (Some(layer), 2..) => Some(self.blocks.get(layer)?.stored(spec.role).into_dyn()),
            (layer, _) => Some(self.parameter(spec.role, layer)?.to_owned()),
        });
        weight.ok_or_else(|| format!("the model has no {name}").into())
    }

    fn has(&self, name: &str) -> bool {
        self.config.tensors().iter().any(|spec| spec.name == name)
    }
}

/// Logits that stand at once, at most.
const LOGITS: usize = 1 << 22;

impl Head {
    /// The loss of hidden states `[tokens, hidden_size]` and their gradient, products in `precision`; those of norm and matrix are added to `gradients`, the
    /// matrix's under `role`, where they are asked for. Logits stand for a few hundred tokens at a time.
    ///
    /// # Panics
    /// If the matrix is packed.
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    pub fn backward(
        &self,
        hidden: ArrayView2<'_, f32>,
        loss: &dyn Loss,
        precision: Precision,
        role: Role,
        gradients: &mut Gradients,
    ) -> (f64, Array2<f32>) {
        let tokens = hidden.nrows();
        let at_once = (LOGITS / self.rows.weight.dim().0).clamp(128, 512);
        let matrix = Learning::new(&self.rows.weight, None, precision);
        let mut d_hidden = Array2::zeros(hidden.dim());
        let mut total = 0.0;
        for start in (0..tokens).step_by(at_once) {
            let rows = start..tokens.min(start + at_once);
            let slice = Slice::from(rows.clone());
            let hidden = hidden.slice_axis(Axis(0), slice);
            let normed = Activations::new(self.norm(hidden));
            let mut d_logits = matrix.apply(&normed);
            self.rows.shape.apply(d_logits.view_mut());
            let capped = self.rows.shape.cap.map(|cap| (cap, d_logits.clone()));
            total += loss.backward(rows, d_logits.view_mut());
            if let Some((cap, capped)) = capped {
                soft_cap_backward(capped.view(), cap, d_logits.view_mut());
            }
            if self.rows.shape.scaling != 1.0 {
                d_logits /= self.rows.shape.scaling;
            }
            let d_logits = Activations::new(d_logits);
            if let Some(d_weight) = gradients.matrix_mut(role) {
                matrix.add_weight_gradient(&d_logits, &normed, d_weight);
            }
            let d_normed = matrix.input_gradient(&d_logits);
            let d_hidden = d_hidden.slice_axis_mut(Axis(0), slice);
            self.norm.backward(hidden, d_normed.view(), d_hidden, gradients.vector_mut(Role::FinalNorm));
        }
        (total, d_hidden)
    }

    fn parameter(&self, role: Role) -> Option<ArrayViewD<'_, f32>> {
        match role {
            Role::FinalNorm => Some(self.norm.stored().view().into_dyn()),
            Role::Head => Some(self.rows.weight.view().into_dyn()),
            _ => None,
        }
    }

    fn parameter_mut(&mut self, role: Role) -> Option<ArrayViewMutD<'_, f32>> {
        match role {
            Role::FinalNorm => Some(self.norm.stored_mut().view_mut().into_dyn()),
            Role::Head => Some(self.rows.weight.view_mut().into_dyn()),
            _ => None,
        }
    }
}
