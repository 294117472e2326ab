use super::{Evidence, Width, column_squares};
use crate::repair::Inverse;
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
        scores_of(evidence, &KeepList::all(evidence.statistics.units()))
    }

    fn keep(&self, evidence: &Evidence<'_>, pools: Pools) -> KeepList {
        let units = evidence.statistics.units();
        let excess = units / pools.pools - pools.kept;
        let mut keep = KeepList::all(units);
        for step in 1..=STEPS.min(excess) {
            let target = excess * step / STEPS.min(excess);
            let scores = scores_of(evidence, &keep);
            let left = Pools { pools: pools.pools, kept: units / pools.pools - target };
            keep = keep.then(&KeepList::top_of(&scores, left));
        }
        keep
    }
}

/// The scores of the units that are still there. Where h cannot be inverted what is dropped is not made up for either: then
/// its own energy counts.
fn scores_of(evidence: &Evidence<'_>, keep: &KeepList) -> Vec<f64> {
    let (gram, unit) = (&evidence.statistics.gram, evidence.statistics.unit());
    let features = keep.in_parts(unit);
    let Ok(inverse) = Inverse::of(gram, &features) else {
        let squares = column_squares(evidence.reads);
        let energy = |&f: &usize| squares[f] * f64::from(gram[[f, f]]);
        return features.kept().chunks(unit).map(|unit| unit.iter().map(energy).sum()).collect();
    };
    let w = inverse.repaired(evidence.reads, gram, &features);
    if unit == 1 {
        let squares = column_squares(w.view());
        return squares.into_iter().zip(inverse.diagonal()).map(|(w, h)| w / h).collect();
    }
    let score = |index: usize| {
        let start = index * unit;
        loss_of_block(w.slice(s![.., start..start + unit]).to_owned(), &inverse.block(start, unit))
    };
    (0..keep.len()).map(score).collect()
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
