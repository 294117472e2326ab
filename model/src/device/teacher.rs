//! A whole model on the device that is only run: what a student learns from.

use super::block::{AllTurns, DeviceBlock, norm_of};
use super::head::HeadMatrix;
use super::weights::{Blank, Fill, Stored, prepare_one, specs};
use crate::forward::LogitShape;
use crate::{Error, ModelConfig, Role, Weights};
use attar_tensor::cuda::{Cuda, Element, Matrix, Tokens};

/// All weights of a model on the device, matrices as products of `T` read them.
#[derive(Debug)]
pub struct DeviceTeacher<T> {
    cuda: Cuda,
    config: ModelConfig,
    turns: AllTurns,
    blocks: Vec<Stored<T>>,
    ends: Stored<T>,
}

impl<T: Element> DeviceTeacher<T> {
    /// Makes room for every tensor and lets `fill` write it; for windows of `ctx` tokens.
    ///
    /// # Errors
    /// Those of `fill`; a model that the device cannot run; too little memory.
    pub fn new(cuda: &Cuda, config: &ModelConfig, ctx: usize, fill: &mut Fill<'_, T>) -> Result<Self, Error> {
        super::check(config)?;
        let ends: Vec<_> = config.tensors().into_iter().filter(|spec| spec.layer.is_none()).collect();
        let ends = Stored::new(cuda, &ends, fill)?;
        let blocks =
            (0..config.num_hidden_layers).map(|layer| Stored::new(cuda, &specs(config, layer), fill));
        Ok(Self {
            blocks: blocks.collect::<Result<_, _>>()?,
            ends,
            turns: AllTurns::new(cuda, config, ctx)?,
            cuda: cuda.clone(),
            config: config.clone(),
        })
    }

    /// Puts all weights there.
    ///
    /// # Errors
    /// Tensors that cannot be loaded; a model that the device cannot run; too little memory.
    pub fn load(cuda: &Cuda, config: &ModelConfig, weights: &dyn Weights, ctx: usize) -> Result<Self, Error> {
        Self::new(cuda, config, ctx, &mut |spec, blank| {
            let prepared = prepare_one::<T>(spec, weights)?;
            match blank {
                Blank::Matrix(to) => cuda.write_bytes(to, prepared.bytes())?,
                Blank::Vector(to) => cuda.write_bytes(to, prepared.bytes())?,
            }
            drop(prepared);
            weights.let_go(&spec.name);
            Ok(())
        })
    }

    /// What the head reads of some windows, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    ///
    /// # Panics
    /// If the tokens are not whole windows.
    pub fn normed(&self, tokens: &Tokens) -> Result<Matrix<T>, Error> {
        let table = self.ends.matrix(Role::Embedding);
        let table = table.ok_or_else(|| missing(Role::Embedding))?;
        let mut hidden = self.cuda.embedding(table, tokens, self.config.embedding_multiplier)?;
        for (layer, stored) in self.blocks.iter().enumerate() {
            let block = DeviceBlock {
                cuda: &self.cuda,
                config: &self.config,
                layer,
                turns: &self.turns,
                parts: stored.parts(&self.config),
            };
            block.forward(hidden.view_mut())?;
        }
        let norm = self.ends.vector(Role::FinalNorm).ok_or_else(|| missing(Role::FinalNorm))?;
        self.cuda.rms_norm_in_place(hidden.view_mut(), norm, norm_of(&self.config))?;
        Ok(hidden)
    }

    /// What makes logits of it.
    pub(super) fn head(&self) -> Result<HeadMatrix<'_, T>, Error> {
        let role = if self.config.tie_word_embeddings { Role::Embedding } else { Role::Head };
        let weight = self.ends.matrix(role).ok_or_else(|| missing(role))?;
        let shape = LogitShape { scaling: self.config.logits_scaling, cap: self.config.logit_cap };
        Ok(HeadMatrix { weight, shape })
    }
}

fn missing(role: Role) -> Error {
    Error::Missing { key: format!("{role:?}") }
}
