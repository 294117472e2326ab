//! The ends of a model, and its blocks one after another.

use crate::weights::{matrix, rows, vector};
use crate::{Block, Error, ModelConfig, Role, TensorSpec, Weights};
use ndarray::{Array1, Array2, ArrayView2};

/// Tokens in windows of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    ctx: usize,
    tokens: Vec<u32>,
}

impl Windows {
    /// Tokens `[windows * ctx]`, window after window.
    ///
    /// # Panics
    /// If the tokens are not whole windows.
    pub fn new(ctx: usize, tokens: Vec<u32>) -> Self {
        assert!(
            ctx > 0 && tokens.len().is_multiple_of(ctx),
            "{} tokens are not windows of {ctx}",
            tokens.len()
        );
        Self { ctx, tokens }
    }

    /// Tokens of a window.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// All tokens, window after window.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many windows there are.
    pub fn count(&self) -> usize {
        self.tokens.len() / self.ctx
    }
}

fn outside(config: &ModelConfig, role: Role) -> Result<TensorSpec, Error> {
    config.tensor(role, None).ok_or_else(|| Error::Missing { key: format!("{role:?}") })
}

/// The embedding of each token, `[tokens, hidden_size]`.
///
/// # Errors
/// A token outside the vocabulary, found before anything is loaded; an embedding that cannot be loaded.
pub fn embed(config: &ModelConfig, weights: &dyn Weights, tokens: &[u32]) -> Result<Array2<f32>, Error> {
    let vocab_size = config.vocab_size;
    if let Some((position, &token)) =
        tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocab_size)
    {
        return Err(Error::Token { token, position, vocab_size });
    }
    let wanted: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
    rows(weights, &outside(config, Role::Embedding)?, &wanted)
}

/// The final norm and the matrix that makes logits.
#[derive(Debug, Clone)]
pub struct Head {
    norm: Array1<f32>,
    weight: Array2<f32>, // [vocab_size, hidden_size]
    eps: f32,
}

impl Head {
    /// Loads the final norm, and the head or the embedding it is tied to.
    ///
    /// # Errors
    /// A tensor that cannot be loaded or has another shape than the configuration says.
    pub fn load(config: &ModelConfig, weights: &dyn Weights) -> Result<Self, Error> {
        let role = if config.tie_word_embeddings { Role::Embedding } else { Role::Head };
        Ok(Self {
            norm: vector(weights, &outside(config, Role::FinalNorm)?)?,
            weight: matrix(weights, &outside(config, role)?)?,
            eps: config.rms_norm_eps,
        })
    }

    /// The matrix, `[vocab_size, hidden_size]`.
    pub fn weight(&self) -> ArrayView2<'_, f32> {
        self.weight.view()
    }

    /// The final norm of hidden states `[tokens, hidden_size]`: what the head reads.
    pub fn norm(&self, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        attar_tensor::op::rms_norm(hidden, self.norm.view(), self.eps)
    }

    /// Logits `[tokens, vocab_size]` of normed hidden states; the caller takes a few rows at a time.
    pub fn logits(&self, normed: ArrayView2<'_, f32>) -> Array2<f32> {
        attar_tensor::linear(normed, self.weight.view())
    }
}

/// The hidden states after the last block and before the final norm, `[tokens, hidden_size]`.
///
/// One block is in memory at a time; `progress` hears of each one that is done.
///
/// # Errors
/// A token outside the vocabulary, a tensor that cannot be loaded or has another shape than the configuration says.
pub fn hidden_states(
    config: &ModelConfig,
    weights: &dyn Weights,
    windows: &Windows,
    progress: &mut dyn FnMut(usize),
) -> Result<Array2<f32>, Error> {
    let mut hidden = embed(config, weights, windows.tokens())?;
    for layer in 0..config.num_hidden_layers {
        Block::load(config, layer, weights)?.forward(&mut hidden, windows.ctx());
        progress(layer);
    }
    Ok(hidden)
}
