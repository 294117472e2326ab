//! A whole model on the device, whose weights change: forward, loss, backward, optimizer. The twin of [`Model`].

use super::backward::{Kept, Sums};
use super::block::{AllTurns, DeviceBlock, norm_of};
use super::head::HeadMatrix;
use super::teacher::DeviceTeacher;
use super::weights::{Parts, rows_of};
use crate::forward::{LogitShape, check_tokens};
use crate::{Error, Keep, Likeness, Model, ModelConfig, Role, Windows};
use attar_tensor::Precision;
use attar_tensor::cuda::{
    Cuda, CudaError, Element, Item, Keep as Sum, Lesson, Matrix, Rows, RowsMut, Tokens, Trained, bf16,
};
use attar_tensor::op::{AdamW, Divergence, Moments};
use ndarray::{Array2, ArrayD, ArrayView1, ArrayView2, ArrayViewD, Axis, Ix2};
use std::collections::{BTreeMap, HashMap};

/// A parameter's place: its layer, or none outside of all, and its role.
type Place = (Option<usize>, Role);

/// Numbers between the starts of two parameters are a multiple of this, so that every product finds its factors aligned.
const ALIGNMENT: usize = 128;

/// Where a parameter stands among all matrices or all vectors.
#[derive(Debug, Clone, Copy)]
struct Span {
    vector: bool,
    from: usize,
    dim: (usize, usize),
}

impl Span {
    fn to(self) -> usize {
        self.from + self.dim.0 * self.dim.1
    }

    /// The parameter as the model stores it.
    fn stored(self, x: Array2<f32>) -> ArrayD<f32> {
        if self.vector { x.remove_axis(Axis(0)).into_dyn() } else { x.into_dyn() }
    }

    /// The parameter, of all its kind.
    fn of<X: Item>(self, all: Rows<'_, X>) -> Rows<'_, X> {
        all.reshaped(1).rows(self.from, self.to()).reshaped(self.dim.1)
    }

    /// The parameter, of all its kind, to be written.
    fn of_mut<X: Item>(self, all: RowsMut<'_, X>) -> RowsMut<'_, X> {
        all.reshaped(1).rows(self.from, self.to()).reshaped(self.dim.1)
    }
}

/// Something for all matrices together and for all vectors.
#[derive(Debug)]
struct Both<X> {
    matrices: X,
    vectors: X,
}

impl<X> Both<X> {
    fn of(&self, span: Span) -> &X {
        if span.vector { &self.vectors } else { &self.matrices }
    }

    fn of_mut(&mut self, span: Span) -> &mut X {
        if span.vector { &mut self.vectors } else { &mut self.matrices }
    }
}

/// Where the parameters of a model stand, and how many numbers they are.
fn places(config: &ModelConfig) -> (BTreeMap<Place, Span>, Both<usize>) {
    let (mut spans, mut counts) = (BTreeMap::new(), Both { matrices: 0, vectors: 0 });
    for spec in config.tensors() {
        for &part in spec.role.parts() {
            let dim = match spec.shape[..] {
                [rows, cols] => (rows_of(config, (spec.role, rows), part), cols),
                _ => (1, spec.len()),
            };
            let mut span = Span { vector: spec.shape.len() == 1, from: 0, dim };
            let count = counts.of_mut(span);
            span.from = *count;
            *count = span.to().next_multiple_of(ALIGNMENT);
            spans.insert((spec.layer, part), span);
        }
    }
    (spans, counts)
}

/// The weights of a model on the device: all matrices in one array, all vectors in another.
#[derive(Debug)]
struct Weights {
    cuda: Cuda,
    config: ModelConfig,
    turns: AllTurns,
    spans: BTreeMap<Place, Span>,
    trained: Both<Trained>,
}

/// The gradients of one layer's weights, or of those outside of all.
struct Gradients<'a> {
    spans: &'a BTreeMap<Place, Span>,
    all: &'a mut Both<Matrix<f32>>,
    layer: Option<usize>,
}

impl Sums for Gradients<'_> {
    fn of(&mut self, role: Role) -> Option<RowsMut<'_, f32>> {
        let span = *self.spans.get(&(self.layer, role))?;
        Some(span.of_mut(self.all.of_mut(span).view_mut()))
    }
}

/// What one block's backward pass will read.
enum Trace<T> {
    Input(Matrix<T>),
    Activations(Box<Kept<T>>),
}

/// A part of a step that has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The blocks, forward.
    Forward,
    /// The head and the loss, forward and backward.
    Head,
    /// The blocks, backward.
    Backward,
}

/// Writes parameters to where they stand on the device, a vector as `[1, features]`: of a layer, or of none, and a role.
pub type FillParameters<'f> = dyn FnMut(Option<usize>, Role, RowsMut<'_, f32>) -> Result<(), Error> + 'f;

/// How much of a step stands on the device at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtOnce {
    /// What is kept of the forward pass.
    pub keep: Keep,
    /// Tokens whose logits stand at once.
    pub logits: usize,
}

/// Some windows with what is to be learned of them, on the device.
#[derive(Debug)]
pub struct DeviceLesson<'a, T> {
    tokens: Tokens,
    targets: Matrix<u32>,                            // [1, tokens]
    weights: Matrix<f32>,                            // [1, tokens]
    teacher: Option<(HeadMatrix<'a, T>, Matrix<T>)>, // with what it reads, [tokens, its hidden_size]
    likeness: Likeness,
    cross_entropy: f32,
}

impl<'a, T: Element> DeviceLesson<'a, T> {
    /// Cross-entropy with the token that comes next, each token counting its weight; one of weight 0 is masked.
    ///
    /// # Errors
    /// A token outside the vocabulary; if memory is short.
    ///
    /// # Panics
    /// If there are not as many weights as tokens.
    pub fn next_token(
        cuda: &Cuda,
        config: &ModelConfig,
        windows: &Windows,
        weights: ArrayView1<'_, f32>,
    ) -> Result<Self, Error> {
        let ids = windows.tokens();
        check_tokens(config, ids)?;
        assert_eq!(ids.len(), weights.len(), "a weight for each token");
        let targets: Vec<u32> = ids.iter().skip(1).copied().chain([0]).take(ids.len()).collect();
        Ok(Self {
            tokens: cuda.tokens(ids, config.vocab_size)?,
            targets: cuda.upload_items(&targets, (1, ids.len()))?,
            weights: cuda.vector(&weights.to_vec())?,
            teacher: None,
            likeness: Likeness { divergence: Divergence::ForwardKl, temperature: 1.0 },
            cross_entropy: 1.0,
        })
    }

    /// The same with what a teacher says of it, cross-entropy being no more than a share.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    pub fn taught_by(
        self,
        teacher: &'a DeviceTeacher<T>,
        likeness: Likeness,
        cross_entropy: f32,
    ) -> Result<Self, Error> {
        let normed = teacher.normed(&self.tokens)?;
        Ok(Self { teacher: Some((teacher.head()?, normed)), likeness, cross_entropy, ..self })
    }

    /// The same with what a teacher's head reads, `[tokens, hidden_size]` of its own size.
    ///
    /// # Errors
    /// If memory is short.
    pub fn towards(
        self,
        cuda: &Cuda,
        head: &'a KeptHead<T>,
        normed: ArrayView2<'_, f32>,
        (likeness, cross_entropy): (Likeness, f32),
    ) -> Result<Self, Error> {
        let head = HeadMatrix { weight: head.weight.view(), shape: head.shape };
        Ok(Self { teacher: Some((head, cuda.upload(normed)?)), likeness, cross_entropy, ..self })
    }
}

/// A teacher's head on the device, as products of `T` read it, where the rest of the teacher was run before.
#[derive(Debug)]
pub struct KeptHead<T> {
    weight: Matrix<T>,
    shape: LogitShape,
}

impl<T: Element> KeptHead<T> {
    /// Puts a head on the device.
    ///
    /// # Errors
    /// Rows that cannot be loaded; if memory is short.
    pub fn load(cuda: &Cuda, head: &crate::HeadSource<'_>) -> Result<Self, Error> {
        Ok(Self { weight: super::head::matrix(cuda, head)?, shape: head.shape() })
    }
}

/// A model with all its weights on the device, to be trained with products of `T`; weights, their gradients and what the optimizer
/// remembers are f32.
///
/// Losses and gradients of several lessons add up, until [`finish`](Self::finish) reads what they came to and
/// [`step`](Self::step) uses them.
#[derive(Debug)]
pub struct DeviceModel<T> {
    weights: Weights,
    gradients: Both<Matrix<f32>>,
    figures: Matrix<f64>, // [2, 1]: the loss, the sum of all gradients' squares
    at_once: AtOnce,
    products: std::marker::PhantomData<T>,
}

/// The products' precision.
fn precision_of<T: Element>() -> Precision {
    if T::DEFINITION == bf16::DEFINITION { Precision::Bf16 } else { Precision::F32 }
}

impl<T: Element> DeviceModel<T> {
    /// Makes room for every parameter and lets `fill` write it, a vector as `[1, features]`; for windows of `ctx` tokens.
    ///
    /// # Errors
    /// Those of `fill`; a model that the device cannot run; too little memory.
    pub fn new(
        cuda: &Cuda,
        config: &ModelConfig,
        ctx: usize,
        at_once: AtOnce,
        fill: &mut FillParameters<'_>,
    ) -> Result<Self, Error> {
        super::check(config)?;
        let (spans, counts) = places(config);
        let mut values =
            Both { matrices: cuda.zeros((1, counts.matrices))?, vectors: cuda.zeros((1, counts.vectors))? };
        for (&(layer, role), &span) in &spans {
            fill(layer, role, span.of_mut(values.of_mut(span).view_mut()))?;
        }
        let trained = Both {
            matrices: cuda.trained(values.matrices, precision_of::<T>())?,
            vectors: cuda.trained(values.vectors, Precision::F32)?,
        };
        Ok(Self {
            gradients: Both {
                matrices: cuda.zeros((1, counts.matrices))?,
                vectors: cuda.zeros((1, counts.vectors))?,
            },
            weights: Weights {
                cuda: cuda.clone(),
                config: config.clone(),
                turns: AllTurns::new(cuda, config, ctx)?,
                spans,
                trained,
            },
            figures: cuda.zeros((2, 1))?,
            at_once,
            products: std::marker::PhantomData,
        })
    }

    /// A copy of a model on the device.
    ///
    /// # Errors
    /// A model that the device cannot run; too little memory.
    pub fn of(cuda: &Cuda, model: &Model, ctx: usize, at_once: AtOnce) -> Result<Self, Error> {
        Self::new(cuda, model.config(), ctx, at_once, &mut |layer, role, to| {
            let parameter = model.parameter(role, layer).ok_or_else(|| missing(role))?;
            Ok(cuda.write(to, in_rows(parameter))?)
        })
    }

    /// The device.
    pub fn cuda(&self) -> &Cuda {
        &self.weights.cuda
    }

    /// The numbers of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.weights.config
    }

    /// Goes through a lesson forward and backward: its loss and the gradients of all weights are added to those before it. Tells
    /// what has been asked for; nothing is waited for.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    ///
    /// # Panics
    /// If the lesson is not whole windows.
    pub fn backward(
        &mut self,
        lesson: &DeviceLesson<'_, T>,
        done: &mut dyn FnMut(Phase) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Self { weights, gradients: all, figures, at_once, .. } = self;
        let (hidden, mut traces) = weights.forward(lesson, Some(at_once.keep))?;
        done(Phase::Forward)?;
        let mut sums = Gradients { spans: &weights.spans, all, layer: None };
        let total = figures.view_mut().rows(0, 1);
        let d = weights.head(hidden, lesson, at_once.logits, total, Some(&mut sums))?;
        done(Phase::Head)?;
        let Some(mut d) = d else { unreachable!("a gradient was asked for") };
        for layer in (0..weights.config.num_hidden_layers).rev() {
            let block = weights.block::<T>(layer);
            let kept = match traces.pop() {
                Some(Trace::Activations(kept)) => *kept,
                Some(Trace::Input(mut input)) => block.forward_keeping(&mut input)?,
                None => unreachable!("every block left a trace"),
            };
            sums.layer = Some(layer);
            block.backward(kept, &mut d, &mut sums)?;
        }
        sums.layer = None;
        if let Some(d_table) = sums.of(Role::Embedding) {
            let scale = weights.config.embedding_multiplier;
            weights.cuda.embedding_backward(d_table, d.view(), &lesson.tokens, scale)?;
        }
        done(Phase::Backward)
    }

    /// The loss of a lesson as the weights stand now.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    ///
    /// # Panics
    /// If the lesson is not whole windows.
    pub fn loss(&self, lesson: &DeviceLesson<'_, T>) -> Result<f64, Error> {
        let (hidden, _) = self.weights.forward(lesson, None)?;
        let mut total = self.cuda().zeros((1, 1))?;
        self.weights.head(hidden, lesson, self.at_once.logits, total.view_mut(), None)?;
        Ok(self.cuda().download_items(total.view())?[0])
    }

    /// The loss of all lessons since the last step, and the norm of all gradients together. Waits for them.
    ///
    /// # Errors
    /// If something asked of the device before has failed.
    pub fn finish(&mut self) -> Result<(f64, f64), Error> {
        let Self { weights, gradients, figures, .. } = self;
        for x in [&gradients.matrices, &gradients.vectors] {
            weights.cuda.add_squares(figures.view_mut().rows(1, 2), x.view())?;
        }
        let figures = weights.cuda.download_items(figures.view())?;
        Ok((figures[0], figures[1].sqrt()))
    }

    /// Step number `number` of [`AdamW`] against `scale` times the gradients; norms and biases do not decay. Then there are none.
    ///
    /// # Errors
    /// If a launch fails.
    ///
    /// # Panics
    /// If the number is 0: steps are counted from 1.
    pub fn step(&mut self, adamw: AdamW, number: u32, scale: f32) -> Result<(), Error> {
        let Self { weights: Weights { cuda, trained, .. }, gradients, .. } = self;
        cuda.step(&mut trained.matrices, gradients.matrices.view(), adamw, number, scale)?;
        let plain = AdamW { weight_decay: 0.0, ..adamw };
        cuda.step(&mut trained.vectors, gradients.vectors.view(), plain, number, scale)?;
        self.forget()
    }

    /// Sets gradients and losses to zero.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn forget(&mut self) -> Result<(), Error> {
        let cuda = &self.weights.cuda;
        cuda.clear(&mut self.gradients.matrices)?;
        cuda.clear(&mut self.gradients.vectors)?;
        Ok(cuda.clear(&mut self.figures)?)
    }

    /// All parameters there are.
    pub fn places(&self) -> impl Iterator<Item = (Option<usize>, Role)> {
        self.weights.spans.keys().copied()
    }

    /// The shape of one role's weight as the model stores it; nothing for a role that it lacks.
    pub fn shape(&self, layer: Option<usize>, role: Role) -> Vec<usize> {
        match self.weights.spans.get(&(layer, role)) {
            Some(Span { vector: true, dim, .. }) => vec![dim.1],
            Some(Span { dim, .. }) => vec![dim.0, dim.1],
            None => Vec::new(),
        }
    }

    /// The weight of one role, a vector as `[1, features]`.
    ///
    /// # Errors
    /// A role the model lacks; if something asked of the device before has failed.
    pub fn parameter(&self, layer: Option<usize>, role: Role) -> Result<Array2<f32>, Error> {
        let span = self.weights.span(layer, role)?;
        let Weights { cuda, trained, .. } = &self.weights;
        Ok(cuda.download(span.of(trained.of(span).weight.view()))?)
    }

    /// The sum of the gradients of one role.
    ///
    /// # Errors
    /// As [`parameter`](Self::parameter).
    pub fn gradient(&self, layer: Option<usize>, role: Role) -> Result<Array2<f32>, Error> {
        let span = self.weights.span(layer, role)?;
        Ok(self.cuda().download(span.of(self.gradients.of(span).view()))?)
    }

    /// What the optimizer remembers of one role.
    ///
    /// # Errors
    /// As [`parameter`](Self::parameter).
    pub fn moments(&self, layer: Option<usize>, role: Role) -> Result<Moments, Error> {
        let span = self.weights.span(layer, role)?;
        let Weights { cuda, trained, .. } = &self.weights;
        let Trained { mean, mean_square, .. } = trained.of(span);
        let read = |x: &Matrix<f32>| Ok::<_, Error>(span.stored(cuda.download(span.of(x.view()))?));
        Ok(Moments { mean: read(mean)?, mean_square: read(mean_square)? })
    }

    /// Puts back what [`moments`](Self::moments) gave.
    ///
    /// # Errors
    /// A role the model lacks; if the device refuses.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn set_moments(&mut self, layer: Option<usize>, role: Role, moments: &Moments) -> Result<(), Error> {
        let span = self.weights.span(layer, role)?;
        let Weights { cuda, trained, .. } = &mut self.weights;
        let Trained { mean, mean_square, .. } = trained.of_mut(span);
        for (to, from) in [(mean, &moments.mean), (mean_square, &moments.mean_square)] {
            cuda.write(span.of_mut(to.view_mut()), in_rows(from.view()))?;
        }
        Ok(())
    }
}

impl Weights {
    fn span(&self, layer: Option<usize>, role: Role) -> Result<Span, Error> {
        self.spans.get(&(layer, role)).copied().ok_or_else(|| missing(role))
    }

    fn matrix<T: Element>(&self, role: Role) -> Result<Rows<'_, T>, Error> {
        Ok(self.span(None, role)?.of(self.trained.matrices.read()))
    }

    fn block<T: Element>(&self, layer: usize) -> DeviceBlock<'_, T> {
        let mut parts = Parts { matrices: HashMap::new(), vectors: HashMap::new() };
        for (&(_, role), &span) in self.spans.iter().filter(|((at, _), _)| *at == Some(layer)) {
            if span.vector {
                parts.vectors.insert(role, span.of(self.trained.vectors.weight.view()));
            } else {
                parts.matrices.insert(role, span.of(self.trained.matrices.read()));
            }
        }
        DeviceBlock { cuda: &self.cuda, config: &self.config, layer, turns: &self.turns, parts }
    }

    /// The hidden states after the last block, and what each block leaves for the backward pass if that is to follow.
    fn forward<T: Element>(
        &self,
        lesson: &DeviceLesson<'_, T>,
        keep: Option<Keep>,
    ) -> Result<(Matrix<T>, Vec<Trace<T>>), Error> {
        let (table, scale) = (self.matrix(Role::Embedding)?, self.config.embedding_multiplier);
        let mut hidden = self.cuda.embedding(table, &lesson.tokens, scale)?;
        let mut traces = Vec::new();
        for layer in 0..self.config.num_hidden_layers {
            let block = self.block(layer);
            match keep {
                Some(Keep::Activations) => {
                    traces.push(Trace::Activations(Box::new(block.forward_keeping(&mut hidden)?)));
                }
                Some(Keep::Inputs) => {
                    traces.push(Trace::Input(self.cuda.copied(hidden.view())?));
                    block.forward(hidden.view_mut())?;
                }
                None => block.forward(hidden.view_mut())?,
            }
        }
        Ok((hidden, traces))
    }

    /// Adds the loss of hidden states after the last block to `total`. Where there are `sums` the hidden states' gradient is returned,
    /// and those of norm and matrix are added there. Logits stand for `at_once` tokens at a time.
    fn head<T: Element>(
        &self,
        hidden: Matrix<T>,
        lesson: &DeviceLesson<'_, T>,
        at_once: usize,
        total: RowsMut<'_, f64>,
        mut sums: Option<&mut Gradients<'_>>,
    ) -> Result<Option<Matrix<T>>, Error> {
        let (cuda, config) = (&self.cuda, &self.config);
        let role = if config.tie_word_embeddings { Role::Embedding } else { Role::Head };
        let head = HeadMatrix::<T> {
            weight: self.matrix(role)?,
            shape: LogitShape { scaling: config.logits_scaling, cap: config.logit_cap },
        };
        let norm = self.span(None, Role::FinalNorm)?.of(self.trained.vectors.weight.view());
        let tokens = hidden.dim().0;
        let mut losses = cuda.room::<f64>((tokens, 1))?;
        let mut d_hidden = if sums.is_some() { Some(cuda.zeros::<T>(hidden.dim())?) } else { None };
        for from in (0..tokens).step_by(at_once) {
            let to = tokens.min(from + at_once);
            let hidden = hidden.view().rows(from, to);
            let mut normed = cuda.room(hidden.dim())?;
            cuda.rms_norm(normed.view_mut(), hidden, norm, norm_of(config))?;
            let losses = losses.view_mut().rows(from, to).reshaped(to - from);
            let d_products = self.chunk(head, normed.view(), lesson, (from, to), losses)?;
            let (Some(sums), Some(d_hidden)) = (&mut sums, &mut d_hidden) else { continue };
            if let Some(d_weight) = sums.of(role) {
                cuda.weight_backward(d_weight, d_products.view(), normed.view(), Sum::Sum)?;
            }
            cuda.input_backward(normed.view_mut(), d_products.view(), head.weight, Sum::Nothing)?;
            let gradients = (d_hidden.view_mut().rows(from, to), sums.of(Role::FinalNorm));
            cuda.rms_norm_backward(gradients, hidden, norm, norm_of(config), normed.view())?;
        }
        cuda.add_total(total, losses.view())?;
        Ok(d_hidden)
    }

    /// The losses of some tokens, and the gradient of what the head's matrix makes of them.
    fn chunk<T: Element>(
        &self,
        head: HeadMatrix<'_, T>,
        normed: Rows<'_, T>,
        lesson: &DeviceLesson<'_, T>,
        (from, to): (usize, usize),
        losses: RowsMut<'_, f64>,
    ) -> Result<Matrix<T>, CudaError> {
        let logits = head.logits(&self.cuda, normed)?;
        let teacher = match &lesson.teacher {
            Some((head, normed)) => Some(head.logits(&self.cuda, normed.view().rows(from, to))?),
            None => None,
        };
        let mut d_products = self.cuda.room(logits.dim())?;
        let each = to - from;
        self.cuda.lesson_backward(
            (losses, d_products.view_mut()),
            logits.view(),
            teacher.as_ref().map(Matrix::view),
            (
                lesson.targets.view().reshaped(1).rows(from, to).reshaped(each),
                lesson.weights.view().reshaped(1).rows(from, to).reshaped(each),
            ),
            Lesson {
                divergence: lesson.likeness.divergence,
                temperature: lesson.likeness.temperature,
                cross_entropy: lesson.cross_entropy,
                factor: 1.0 / head.shape.scaling,
                cap: head.shape.cap,
            },
        )?;
        Ok(d_products)
    }
}

fn missing(role: Role) -> Error {
    Error::Missing { key: format!("{role:?}") }
}

/// A matrix, or a vector as its one row.
fn in_rows(x: ArrayViewD<'_, f32>) -> ArrayView2<'_, f32> {
    let x = if x.ndim() == 1 { x.insert_axis(Axis(0)) } else { x };
    x.into_dimensionality::<Ix2>().unwrap_or_else(|_| unreachable!("parameters are vectors and matrices"))
}
