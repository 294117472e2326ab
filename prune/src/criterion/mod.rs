//! What decides what goes. Each criterion is one file and one line in [`CRITERIA`].

mod activation;
mod angular;
mod block_influence;
mod fluctuation;
mod magnitude;
mod reap;
mod second_order;
mod stream_loss;
mod taylor;

pub mod depth;

pub use reap::{ExpertScores, Reap};
pub use taylor::{FirstOrder, TAYLOR_TOKENS};

use crate::{Error, KeepList, Pools, Statistics};
use depth::{Calibrated, Removal};
use ndarray::ArrayView2;

/// What a criterion knows of features that can go: those one matrix reads.
pub struct Evidence<'a> {
    /// What the calibration text says of them.
    pub statistics: &'a Statistics,
    /// The matrix that reads them: o or down, `[hidden_size, features]`.
    pub reads: ArrayView2<'a, f32>,
    /// The matrices whose rows make them: q, or gate and up, `[features, hidden_size]` each.
    pub made_by: Vec<ArrayView2<'a, f32>>,
    /// What the loss says of them, where the criterion asks for it: for each window and feature `sum w dL/dw` over the
    /// feature's column of the matrix that reads it, `[windows, features]`.
    pub gradients: Option<ArrayView2<'a, f32>>,
}

/// What scores are measured in: whether those of one layer can be held to those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// In something that units of one layer have in common, and those of others have not.
    OfItsOwn,
    /// In the energy of what the residual stream loses.
    Energy,
    /// In a change of the loss.
    Loss,
}

/// Ranks the units of an activation, heads or channels.
pub trait Width: Sync {
    /// How much is lost with each unit, `[units]`; the higher, the later it goes.
    fn scores(&self, evidence: &Evidence<'_>) -> Vec<f64>;

    /// Which units are kept: those of the highest scores, unless the scores of those that stay change as others go.
    fn keep(&self, evidence: &Evidence<'_>, pools: Pools) -> KeepList {
        KeepList::top_of(&self.scores(evidence), pools)
    }

    /// What scores are measured in.
    fn measure(&self) -> Measure {
        Measure::OfItsOwn
    }

    /// What is lost with each unit in the order in which they go, the last one perhaps left out.
    fn costs(&self, evidence: &Evidence<'_>) -> Vec<f64> {
        let mut scores = self.scores(evidence);
        scores.sort_by(f64::total_cmp);
        scores
    }

    /// Whether it reads [`Evidence::gradients`], for which the whole model has to stand in memory.
    fn needs_gradients(&self) -> bool {
        false
    }
}

/// Chooses layers.
pub trait Depth: Sync {
    /// The `count` layers that stay.
    ///
    /// # Errors
    /// A model that cannot be run.
    fn keep(&self, model: &Calibrated<'_>, count: usize) -> Result<Removal, Error>;

    /// Whether the layers that go when few do are the first that go when many do, in the same order.
    fn takes_one_after_the_other(&self) -> bool {
        true
    }
}

/// What a criterion decides about.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Heads and channels.
    Width(&'static dyn Width),
    /// Layers.
    Depth(&'static dyn Depth),
    /// Experts.
    Experts(Reap),
}

/// A way to decide what goes.
#[derive(Clone, Copy)]
pub struct Criterion {
    /// Its name on the command line and in reports.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// What it decides about.
    pub kind: Kind,
}

/// Every criterion; of each kind the default comes first.
pub const CRITERIA: &[Criterion] = &[
    Criterion {
        name: "second-order",
        about: "what is lost after the others have made up for it, from the Gram matrix, a few at a time",
        kind: Kind::Width(&second_order::SecondOrder),
    },
    Criterion {
        name: "activation",
        about: "length of the activation: mean over a window, root mean square over windows (Minitron)",
        kind: Kind::Width(&activation::Activation),
    },
    Criterion {
        name: "fluctuation",
        about: "variance of the activation times squared weights (FLAP)",
        kind: Kind::Width(&fluctuation::Fluctuation),
    },
    Criterion {
        name: "taylor",
        about: "first-order change of the loss, by a backward pass of the whole model",
        kind: Kind::Width(&taylor::Taylor),
    },
    Criterion {
        name: "magnitude",
        about: "squares of the weights that make and read it; knows no text",
        kind: Kind::Width(&magnitude::Magnitude),
    },
    Criterion {
        name: "loss",
        about: "one layer at a time, that without which the calibration text is predicted best",
        kind: Kind::Depth(&stream_loss::StreamLoss),
    },
    Criterion {
        name: "block-influence",
        about: "1 - cosine between what goes into a layer and what comes out (ShortGPT)",
        kind: Kind::Depth(&block_influence::BlockInfluence),
    },
    Criterion {
        name: "angular",
        about: "the run of layers across which the stream turns least",
        kind: Kind::Depth(&angular::Angular),
    },
    Criterion {
        name: "reap",
        about: "mean over an expert's tokens of its share times the length of what it gives (REAP)",
        kind: Kind::Experts(Reap),
    },
];

/// The criterion of a name.
pub fn criterion(name: &str) -> Option<&'static Criterion> {
    CRITERIA.iter().find(|criterion| criterion.name == name)
}

/// Sums of `of(feature)` over the features of each unit.
fn by_unit(units: usize, unit: usize, of: impl Fn(usize) -> f64) -> Vec<f64> {
    (0..units).map(|index| (index * unit..(index + 1) * unit).map(&of).sum()).collect()
}

/// The sum of squares of each column, `[cols]`.
fn column_squares(w: ArrayView2<'_, f32>) -> Vec<f64> {
    let mut squares = vec![0.0; w.ncols()];
    for row in w.outer_iter() {
        squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
    }
    squares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_criterion_has_a_name_of_its_own_and_is_found_by_it() {
        for one in CRITERIA {
            assert_eq!(criterion(one.name).map(|found| found.about), Some(one.about));
            assert_eq!(CRITERIA.iter().filter(|other| other.name == one.name).count(), 1, "{}", one.name);
        }
        assert!(criterion("guess").is_none());
    }
}
