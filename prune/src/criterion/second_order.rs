use super::{Evidence, Measure, Width, column_squares};
use crate::repair::{Inverse, error};
use crate::{KeepList, Pools};
use attar_model::{cholesky_of_inverse, matmul};
use ndarray::{Array2, Axis, s};

/// What the output of the matrix loses with a unit once the others have made up for it as well as they can, exactly:
/// `w_s ([h^-1]_ss)^-1 w_s'`. Some go, the others are repaired, and the rest is scored again, until enough have gone.
///
/// # Source
/// Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (1993), for units of several columns;
/// Kurtic et al., "`ZipLM`", arXiv:2302.04089, one unit at a time. Here a sixteenth of those that have to go at a time.
pub struct SecondOrder;

/// In how many steps units go.
const STEPS: usize = 16;

impl Width for SecondOrder {
    fn scores(&self, evidence: &Evidence<'_>) -> Vec<f64> {
        Left::of(evidence, KeepList::all(evidence.statistics.units())).scores
    }

    fn keep(&self, evidence: &Evidence<'_>, pools: Pools) -> KeepList {
        let units = evidence.statistics.units();
        let excess = units / pools.pools - pools.kept;
        let mut keep = KeepList::all(units);
        for step in 1..=STEPS.min(excess) {
            let target = excess * step / STEPS.min(excess);
            let left = Pools { pools: pools.pools, kept: units / pools.pools - target };
            let Left { keep: before, scores, .. } = Left::of(evidence, keep);
            keep = before.then(&KeepList::top_of(&scores, left));
        }
        keep
    }

    fn measure(&self) -> Measure {
        Measure::Energy
    }

    /// Units that go in one step share what the output loses with all of them, by their scores.
    fn costs(&self, evidence: &Evidence<'_>) -> Vec<f64> {
        let excess = evidence.statistics.units() - 1;
        let mut costs = Vec::with_capacity(excess);
        let (mut now, mut lost) = (Left::of(evidence, KeepList::all(excess + 1)), 0.0);
        for step in 1..=STEPS.min(excess) {
            let kept = excess + 1 - excess * step / STEPS.min(excess);
            let further = KeepList::top(&now.scores, kept);
            let mut gone: Vec<f64> = further.dropped().iter().map(|&unit| now.scores[unit]).collect();
            gone.sort_by(f64::total_cmp);
            now = Left::of(evidence, now.keep.then(&further));
            let before = std::mem::replace(&mut lost, now.lost(evidence));
            let share = (lost - before).max(0.0) / gone.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            costs.extend(gone.iter().map(|score| score * share));
        }
        costs
    }
}

/// What is left when some units have gone, and the others have made up for them.
struct Left {
    keep: KeepList,
    scores: Vec<f64>,    // of the units that are still there
    weight: Array2<f32>, // [hidden_size, their features]
}

impl Left {
    /// Where h cannot be inverted what is dropped is not made up for either: then a unit's own energy counts.
    fn of(evidence: &Evidence<'_>, keep: KeepList) -> Self {
        let (gram, unit) = (&evidence.statistics.gram, evidence.statistics.unit());
        let features = keep.in_parts(unit);
        let Ok(inverse) = Inverse::of(gram, &features) else {
            let squares = column_squares(evidence.reads);
            let energy = |&f: &usize| squares[f] * f64::from(gram[[f, f]]);
            let scores = features.kept().chunks(unit).map(|unit| unit.iter().map(energy).sum()).collect();
            let weight = evidence.reads.select(Axis(1), features.kept());
            return Self { keep, scores, weight };
        };
        let w = inverse.repaired(evidence.reads, gram, &features);
        let scores = if unit == 1 {
            column_squares(w.view()).into_iter().zip(inverse.diagonal()).map(|(w, h)| w / h).collect()
        } else {
            let of_unit = |index: usize| w.slice(s![.., index * unit..(index + 1) * unit]).to_owned();
            (0..keep.len())
                .map(|index| loss_of_block(of_unit(index), &inverse.block(index * unit, unit)))
                .collect()
        };
        Self { keep, scores, weight: w }
    }

    /// `tr(E H E')` of the error E that has been made.
    fn lost(&self, evidence: &Evidence<'_>) -> f64 {
        let features = self.keep.in_parts(evidence.statistics.unit());
        error(evidence.reads, &evidence.statistics.gram, &features, self.weight.view())
    }
}

/// `tr(w m^-1 w')` for a block m of the inverse, `[features, features]`, and its columns w.
fn loss_of_block(w: Array2<f32>, m: &Array2<f32>) -> f64 {
    let squares = |x: &Array2<f32>| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    match cholesky_of_inverse(m) {
        Ok(u) => squares(&matmul(w.view(), u.t())),
        // Rounding made it indefinite: its diagonal alone.
        Err(_) => w
            .axis_iter(Axis(1))
            .zip(m.diag())
            .map(|(w, &m)| {
                w.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
                    / f64::from(m).max(f64::MIN_POSITIVE)
            })
            .sum(),
    }
}
