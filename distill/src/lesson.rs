//! What a teacher says of some windows, as a loss for its student.

use crate::{Error, LayerMap};
use attar_model::teacher::{Cache, TopK};
use attar_model::{
    HeadRows, Likeness, Loss, Mixture, Model, ModelConfig, NextToken, TowardsLikeliest, TowardsTeacher,
    Windows, relative_error_backward,
};
use ndarray::{Array1, Array2, ArrayView, ArrayView2, ArrayViewMut2, Dimension, RemoveAxis, Slice};
use std::collections::BTreeMap;
use std::ops::Range;

/// Where what the teacher says comes from.
#[derive(Debug)]
pub enum Teacher<'a> {
    /// A model that is run over every window when it is learned from.
    Online(&'a Model),
    /// What was kept of one, and its head where hidden states were.
    Kept(&'a Cache, Option<HeadRows>),
}

/// What a student is to learn.
#[derive(Debug, Clone, PartialEq)]
pub struct Aim {
    /// How it is to come near its teacher.
    pub likeness: Likeness,
    /// The share of cross-entropy with the tokens of the text, 0 to 1; the rest is the teacher's.
    pub cross_entropy: f32,
    /// What its residual stream is to be, beside what it predicts.
    pub streams: Option<Streams>,
}

/// The residual stream after some blocks of a student is to be that after some of its teacher's.
///
/// What is minimised is the square error relative to the square of the teacher's stream, token by token; its mean over all tokens of
/// all windows and over the pairs of blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Streams {
    /// The blocks.
    pub map: LayerMap,
    /// What the mean error is multiplied by before it is added to what predictions cost.
    pub weight: f32,
}

/// What a teacher said of some windows.
#[derive(Debug)]
pub struct Signal<'a> {
    said: Said<'a>,
    weights: Array1<f32>, // [tokens]
    text: NextToken,
    aim: &'a Aim,
    streams: BTreeMap<usize, Array2<f32>>, // the teacher's, by the student's block, [tokens, hidden_size]
    stream_weight: f32,                    // of each token after each block
}

#[derive(Debug)]
enum Said<'a> {
    /// What the head reads, `[tokens, hidden_size]`.
    Normed(&'a HeadRows, Array2<f32>),
    Likeliest(TopK),
}

/// One for each position of some windows that counts, divided by their number among `all` windows; zero for the others.
pub fn token_weights(windows: &Windows, positions: Range<usize>, all: usize) -> Array1<f32> {
    let share = 1.0 / (all * positions.len()).max(1) as f32;
    let ctx = windows.ctx();
    Array1::from_shape_fn(windows.tokens().len(), |token| {
        if positions.contains(&(token % ctx)) { share } else { 0.0 }
    })
}

impl<'a> Teacher<'a> {
    /// What was kept, with its head.
    ///
    /// # Errors
    /// A head that cannot be read.
    pub fn kept(cache: &'a Cache) -> Result<Self, Error> {
        let head = cache.head().map(|head| head.rows(0..head.vocab_size())).transpose()?;
        Ok(Self::Kept(cache, head))
    }

    /// Holds a student to the teacher: they know the same tokens.
    ///
    /// # Errors
    /// If they do not.
    pub fn check(&self, student: &ModelConfig) -> Result<(), Error> {
        let teacher = match self {
            Self::Online(model) => model.config().vocab_size,
            Self::Kept(cache, _) => cache.facts().vocab_size,
        };
        if teacher == student.vocab_size {
            return Ok(());
        }
        Err(Error::Vocabulary { teacher, student: student.vocab_size })
    }

    /// The positions of a window that are learned from: all that predict one of its tokens, or those that were kept.
    pub fn positions(&self, ctx: usize) -> Range<usize> {
        match self {
            Self::Online(_) => 0..ctx - 1,
            Self::Kept(cache, _) => cache.facts().positions(),
        }
    }

    /// What the teacher says of `windows`, which are those of the numbers `which` among all it is asked about; each token counts
    /// its share of `all` windows of a step.
    ///
    /// # Errors
    /// A token outside the vocabulary; what was kept cannot be read, or is to say what the streams of its layers are.
    pub fn of(
        &'a self,
        windows: &Windows,
        which: &[usize],
        aim: &'a Aim,
        all: usize,
    ) -> Result<Signal<'a>, Error> {
        if aim.streams.is_some() && matches!(self, Self::Kept(..)) {
            return Err(Error::KeptWithoutStreams);
        }
        let mut streams = BTreeMap::new();
        let positions = self.positions(windows.ctx());
        let ctx = windows.ctx();
        let rows = |window: &usize| window * positions.len()..(window + 1) * positions.len();
        let said = match self {
            Self::Online(model) => {
                let pairs = aim.streams.as_ref().map_or(&[][..], |streams| streams.map.pairs());
                let hidden = model.streams(windows, &mut |layer, stream| {
                    let followers = pairs.iter().filter(|pair| pair.1 == layer);
                    streams.extend(followers.map(|pair| (pair.0, stream.to_owned())));
                })?;
                let head = model.head();
                Said::Normed(head.rows(), head.norm(hidden.view()))
            }
            Self::Kept(cache, Some(head)) => {
                let kept = which.iter().map(|window| cache.hidden(rows(window)));
                let kept = kept.collect::<Result<Vec<_>, _>>()?;
                Said::Normed(head, placed(kept.iter().map(|kept| kept.view()), ctx, &positions))
            }
            Self::Kept(cache, None) => {
                let kept = which.iter().map(|window| cache.top_k(rows(window)));
                let kept = kept.collect::<Result<Vec<_>, _>>()?;
                Said::Likeliest(TopK {
                    ids: placed(kept.iter().map(|kept| kept.ids.view()), ctx, &positions),
                    log_probs: placed(kept.iter().map(|kept| kept.log_probs.view()), ctx, &positions),
                    rest: placed(kept.iter().map(|kept| kept.rest.view()), ctx, &positions),
                    targets: placed(kept.iter().map(|kept| kept.targets.view()), ctx, &positions),
                })
            }
        };
        let weights = token_weights(windows, positions, all);
        let text = NextToken::weighted(windows, weights.clone());
        let stream_weight = aim
            .streams
            .as_ref()
            .map_or(0.0, |of| f64::from(of.weight) / (all * ctx * of.map.pairs().len()).max(1) as f64);
        Ok(Signal { said, weights, text, aim, streams, stream_weight: stream_weight as f32 })
    }
}

/// What was kept of some windows' scored positions where they stand among all tokens; zeros elsewhere, which are not read.
pub(crate) fn placed<'a, T: Clone + Default + 'a, D: Dimension + RemoveAxis>(
    windows: impl ExactSizeIterator<Item = ArrayView<'a, T, D>>,
    ctx: usize,
    positions: &Range<usize>,
) -> ndarray::Array<T, D> {
    let count = windows.len();
    let mut all: Option<ndarray::Array<T, D>> = None;
    for (window, kept) in windows.enumerate() {
        let all = all.get_or_insert_with(|| {
            let mut dim = kept.raw_dim();
            dim[0] = count * ctx;
            ndarray::Array::default(dim)
        });
        let start = window * ctx + positions.start;
        let rows = Slice::from(start..start + positions.len());
        all.slice_axis_mut(ndarray::Axis(0), rows).assign(&kept);
    }
    all.unwrap_or_else(|| ndarray::Array::default(D::zeros(D::NDIM.unwrap_or(1))))
}

impl Loss for Signal<'_> {
    fn backward(&self, rows: Range<usize>, logits: ArrayViewMut2<'_, f32>) -> f64 {
        let (weights, &Aim { likeness, cross_entropy, .. }) = (self.weights.clone(), self.aim);
        let likeness: Box<dyn Loss + '_> = match &self.said {
            Said::Normed(teacher, normed) => {
                Box::new(TowardsTeacher { teacher, normed: normed.view(), weights, likeness })
            }
            Said::Likeliest(teacher) => {
                Box::new(TowardsLikeliest { teacher, weights, divergence: likeness.divergence })
            }
        };
        if cross_entropy == 0.0 {
            return likeness.backward(rows, logits);
        }
        Mixture(vec![(1.0 - cross_entropy, &*likeness), (cross_entropy, &self.text)]).backward(rows, logits)
    }

    fn stream_backward(&self, layer: usize, stream: ArrayView2<'_, f32>) -> Option<(f64, Array2<f32>)> {
        let target = self.streams.get(&layer)?;
        let mut gradient = stream.to_owned();
        let error = relative_error_backward(gradient.view_mut(), target.view(), self.stream_weight);
        Some((error, gradient))
    }
}
