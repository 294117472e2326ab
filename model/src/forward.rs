//! The ends of a model, and its blocks one after another.

use crate::block::tokens_at_once;
use crate::device::{self, Device};
use crate::weights::{matrix, rows};
use crate::{Block, Error, HiddenStates, Keeping, ModelConfig, Norm, Role, TensorSpec, Weight, Weights};
use attar_tensor::Precision;
use attar_tensor::op::soft_cap;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use std::ops::Range;

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

    /// Some of them, one after the other.
    ///
    /// # Panics
    /// If there is no such window.
    #[must_use]
    pub fn select(&self, which: impl IntoIterator<Item = usize>) -> Self {
        let tokens = which.into_iter().flat_map(|window| &self.tokens[window * self.ctx..][..self.ctx]);
        Self { ctx: self.ctx, tokens: tokens.copied().collect() }
    }
}

fn outside(config: &ModelConfig, role: Role) -> Result<TensorSpec, Error> {
    config.tensor(role, None).ok_or_else(|| Error::Missing { key: format!("{role:?}") })
}

/// Holds tokens to the vocabulary.
///
/// # Errors
/// The first that is outside.
pub fn check_tokens(config: &ModelConfig, tokens: &[u32]) -> Result<(), Error> {
    let vocab_size = config.vocab_size;
    match tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocab_size) {
        Some((position, &token)) => Err(Error::Token { token, position, vocab_size }),
        None => Ok(()),
    }
}

/// The embedding of each token, `[tokens, hidden_size]`, scaled.
///
/// # Errors
/// A token outside the vocabulary, found before anything is loaded; an embedding that cannot be loaded.
pub fn embed(config: &ModelConfig, weights: &dyn Weights, tokens: &[u32]) -> Result<Array2<f32>, Error> {
    let mut hidden = rows(weights, &outside(config, Role::Embedding)?, &rows_of(config, tokens)?)?;
    scale_embeddings(config, hidden.view_mut());
    Ok(hidden)
}

/// [`embed`] from an embedding `[vocab_size, hidden_size]` that is in memory.
pub(crate) fn embed_from(
    config: &ModelConfig,
    embedding: ArrayView2<'_, f32>,
    tokens: &[u32],
) -> Result<Array2<f32>, Error> {
    let mut hidden = embedding.select(Axis(0), &rows_of(config, tokens)?);
    scale_embeddings(config, hidden.view_mut());
    Ok(hidden)
}

/// The embedding, `[vocab_size, hidden_size]`.
pub(crate) fn embedding(config: &ModelConfig, weights: &dyn Weights) -> Result<Array2<f32>, Error> {
    matrix(weights, &outside(config, Role::Embedding)?)
}

/// The rows of the embedding that some tokens stand for.
fn rows_of(config: &ModelConfig, tokens: &[u32]) -> Result<Vec<usize>, Error> {
    check_tokens(config, tokens)?;
    Ok(tokens.iter().map(|&token| token as usize).collect())
}

/// Multiplies rows of the embedding by what the family multiplies them by: what they are when the first block reads them.
#[expect(clippy::float_cmp, reason = "it is one or it is not")]
pub fn scale_embeddings(config: &ModelConfig, mut hidden: ArrayViewMut2<'_, f32>) {
    if config.embedding_multiplier != 1.0 {
        hidden *= config.embedding_multiplier;
    }
}

/// Loads the norm between the last block and the head.
///
/// # Errors
/// A tensor that cannot be loaded or has another shape than the configuration says.
pub fn final_norm(config: &ModelConfig, weights: &dyn Weights) -> Result<Norm, Error> {
    Norm::load(config, &outside(config, Role::FinalNorm)?, weights)
}

/// What becomes of the head's products before they are logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitShape {
    /// They are divided by this.
    pub scaling: f32,
    /// Then softly bounded by this.
    pub cap: Option<f32>,
}

impl LogitShape {
    /// In place of products `[tokens, rows]`.
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    pub(crate) fn apply(self, mut products: ArrayViewMut2<'_, f32>) {
        if self.scaling != 1.0 {
            products /= self.scaling;
        }
        let Some(cap) = self.cap else { return };
        if products.is_standard_layout() {
            return soft_cap(products, cap);
        }
        // Of a slice of wider rows each row is one run of memory, all of them together are none.
        for row in products.rows_mut() {
            soft_cap(row.insert_axis(Axis(0)), cap);
        }
    }
}

/// Rows of the matrix that makes logits: all of them or those of a slice of the vocabulary.
#[derive(Debug, Clone)]
pub struct HeadRows {
    pub(crate) weight: Weight, // [rows, hidden_size]
    pub(crate) shape: LogitShape,
}

impl HeadRows {
    /// Logits of normed hidden states `[tokens, hidden_size]`, `[tokens, rows]`, into `out`, which is not read.
    ///
    /// A logit is the same bits whichever rows stand beside its own.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn logits_into(&self, normed: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
        self.weight.apply_into(out.view_mut(), &normed.into());
        self.shape.apply(out);
    }
}

/// Where the matrix that makes logits is read from, as many rows at a time as fit.
#[derive(Clone)]
pub struct HeadSource<'a> {
    weights: &'a dyn Weights,
    name: String,
    vocab_size: usize,
    hidden_size: usize,
    shape: LogitShape,
    precision: Precision,
}

impl<'a> HeadSource<'a> {
    /// The head of a model, or the embedding it is tied to.
    ///
    /// # Errors
    /// A configuration that names neither.
    pub fn of(config: &ModelConfig, weights: &'a dyn Weights) -> Result<Self, Error> {
        let spec = outside(config, if config.tie_word_embeddings { Role::Embedding } else { Role::Head })?;
        let shape = LogitShape { scaling: config.logits_scaling, cap: config.logit_cap };
        let (vocab_size, hidden_size) = (config.vocab_size, config.hidden_size);
        Ok(Self { weights, name: spec.name, vocab_size, hidden_size, shape, precision: Precision::F32 })
    }

    /// The matrix `[vocab_size, hidden_size]` called `name` among `weights`.
    pub(crate) fn named(
        weights: &'a dyn Weights,
        name: &str,
        [vocab_size, hidden_size]: [usize; 2],
        shape: LogitShape,
    ) -> Self {
        Self { weights, name: name.to_owned(), vocab_size, hidden_size, shape, precision: Precision::F32 }
    }

    /// The same rows, multiplied by in `precision`.
    #[must_use]
    pub fn multiplied_in(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The matrix's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How exactly its rows are multiplied by.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What becomes of the products.
    pub(crate) fn shape(&self) -> LogitShape {
        self.shape
    }

    /// Rows of the whole matrix.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Columns of the matrix.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// The numbers of some rows, `[tokens.len(), hidden_size]`.
    ///
    /// # Errors
    /// Rows that cannot be loaded or have another length than the configuration says.
    pub fn values(&self, tokens: Range<usize>) -> Result<Array2<f32>, Error> {
        let count = tokens.len();
        let load_error = |source| Error::Load { name: self.name.clone(), source };
        let values = self.weights.load_range(&self.name, tokens).map_err(load_error)?;
        if values.dim() == (count, self.hidden_size) {
            return Ok(values);
        }
        let expected = vec![count, self.hidden_size];
        Err(Error::Shape { name: self.name.clone(), found: values.shape().to_vec(), expected })
    }

    /// The rows that make the logits of these tokens.
    ///
    /// # Errors
    /// As [`HeadSource::values`].
    pub fn rows(&self, tokens: Range<usize>) -> Result<HeadRows, Error> {
        let mut weight = Weight::from(self.values(tokens)?);
        weight.pack(self.precision);
        Ok(HeadRows { weight, shape: self.shape })
    }
}

/// The final norm and the whole matrix that makes logits.
#[derive(Debug, Clone)]
pub struct Head {
    pub(crate) norm: Norm,
    pub(crate) rows: HeadRows,
}

impl Head {
    /// Loads the final norm, and the head or the embedding it is tied to.
    ///
    /// # Errors
    /// A tensor that cannot be loaded or has another shape than the configuration says.
    pub fn load(config: &ModelConfig, weights: &dyn Weights) -> Result<Self, Error> {
        let rows = HeadSource::of(config, weights)?.rows(0..config.vocab_size)?;
        Ok(Self { norm: final_norm(config, weights)?, rows })
    }

    /// Keeps of the matrix what products in `precision` need, see [`Weight::pack`].
    pub fn pack(&mut self, precision: Precision) {
        self.rows.weight.pack(precision);
    }

    /// The matrix as a maker of logits.
    pub fn rows(&self) -> &HeadRows {
        &self.rows
    }

    /// The matrix, `[vocab_size, hidden_size]`.
    ///
    /// # Panics
    /// If it is packed.
    pub fn weight(&self) -> ArrayView2<'_, f32> {
        self.rows.weight.view()
    }

    /// The final norm of hidden states `[tokens, hidden_size]`: what the head reads.
    pub fn norm(&self, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        self.norm.apply(hidden)
    }

    /// Logits `[tokens, vocab_size]` of normed hidden states; the caller takes a few rows at a time.
    pub fn logits(&self, normed: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut logits = Array2::zeros((normed.nrows(), self.rows.weight.dim().0));
        self.rows.logits_into(normed, logits.view_mut());
        logits
    }
}

/// Does `work` while the tensors called `names` are read from the disk.
///
/// They are read into the system's cache, which takes nothing of the memory that the work may take; decoding them is a
/// small part of a block's work and waits until they are loaded.
pub fn while_reading_ahead<T>(names: Vec<String>, weights: &dyn Weights, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        if !names.is_empty() {
            scope.spawn(move || names.iter().for_each(|name| weights.read_ahead(name)));
        }
        work()
    })
}

/// How a forward pass over a whole text is run. Neither where hidden states are kept nor how many tokens go together changes
/// a bit; [`KeptFloat::Bf16`](crate::KeptFloat), [`Precision::Bf16`] and another [`Device`] do.
#[derive(Debug, Clone, Default)]
pub struct Streaming {
    /// How exactly matrices are multiplied.
    pub precision: Precision,
    /// How the hidden states of all tokens are kept between two blocks.
    pub keeping: Keeping,
    /// Tokens that pass through a block together, rounded up to whole windows; as many as compute fastest if `None`.
    pub tokens_at_once: Option<usize>,
    /// Where blocks and heads are computed.
    pub device: Device,
}

impl Streaming {
    /// By default but for where hidden states are kept.
    pub fn kept(keeping: &Keeping) -> Self {
        Self { keeping: keeping.clone(), ..Self::default() }
    }

    /// Row ranges of whole windows of `ctx` tokens that pass through a block together.
    pub fn chunks(&self, tokens: usize, ctx: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = match self.tokens_at_once {
            Some(tokens) => tokens.div_ceil(ctx).max(1) * ctx,
            None => tokens_at_once(ctx),
        };
        (0..tokens).step_by(step).map(move |start| start..tokens.min(start + step))
    }
}

/// The embeddings of all tokens, `[tokens, hidden_size]`, kept as `streaming` has it, a few tokens at a time.
///
/// # Errors
/// A token outside the vocabulary, found before anything is loaded; an embedding that cannot be loaded; a temporary file that
/// cannot be made or written.
pub fn streamed_embeddings(
    config: &ModelConfig,
    weights: &dyn Weights,
    windows: &Windows,
    streaming: &Streaming,
) -> Result<HiddenStates, Error> {
    let tokens = windows.tokens();
    check_tokens(config, tokens)?;
    let mut hidden = HiddenStates::zeros([tokens.len(), config.hidden_size], &streaming.keeping)?;
    for rows in streaming.chunks(tokens.len(), windows.ctx()) {
        hidden.write(rows.start, embed(config, weights, &tokens[rows])?.view())?;
    }
    Ok(hidden)
}

/// [`hidden_states`] within a memory budget: kept as `streaming` has it, a few tokens at a time, the next block read from
/// the disk while one computes.
///
/// # Errors
/// As [`hidden_states`]; a temporary file that cannot be made, written or read.
pub fn streamed_hidden_states(
    config: &ModelConfig,
    weights: &dyn Weights,
    windows: &Windows,
    streaming: &Streaming,
    progress: &mut dyn FnMut(usize),
) -> Result<HiddenStates, Error> {
    let (tokens, ctx) = (windows.tokens(), windows.ctx());
    let mut hidden = streamed_embeddings(config, weights, windows, streaming)?;
    // No device kernel rounds what matrices read.
    let rounds = || config.tensors().iter().any(|spec| weights.rounding(&spec.name).is_some());
    if let Device::Cuda(on) = &streaming.device
        && !rounds()
    {
        return device::hidden_states(on, config, weights, hidden, (ctx, streaming.precision), progress);
    }
    for layer in 0..config.num_hidden_layers {
        let mut block = Block::load(config, layer, weights)?;
        block.pack(streaming.precision);
        let next = config.tensors().into_iter().filter(|spec| spec.layer == Some(layer + 1));
        while_reading_ahead(next.map(|spec| spec.name).collect(), weights, || {
            streaming
                .chunks(tokens.len(), ctx)
                .try_for_each(|rows| hidden.update(rows, |here| block.forward_rows(here, ctx)))
        })?;
        progress(layer);
    }
    Ok(hidden)
}

/// The hidden states after the last block and before the final norm, `[tokens, hidden_size]`.
///
/// Matrices are multiplied in `precision`. One block is in memory at a time; `progress` hears of each one that is done.
///
/// # Errors
/// A token outside the vocabulary, a tensor that cannot be loaded or has another shape than the configuration says.
pub fn hidden_states(
    config: &ModelConfig,
    weights: &dyn Weights,
    windows: &Windows,
    precision: Precision,
    progress: &mut dyn FnMut(usize),
) -> Result<Array2<f32>, Error> {
    let streaming = Streaming { precision, ..Streaming::default() };
    Ok(streamed_hidden_states(config, weights, windows, &streaming, progress)?.into_array()?)
}
