use super::Depth;
use super::depth::{Calibrated, Removal, Step, mean_of_cosines};
use crate::Error;
use std::f64::consts::PI;

/// A run of layers goes: that across which the stream turns least.
///
/// # Source
/// Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv:2403.17887, section 3.2, over all tokens where
/// the paper takes the last of each window.
pub struct Angular;

impl Depth for Angular {
    fn keep(&self, model: &Calibrated<'_>, count: usize) -> Result<Removal, Error> {
        let layers = model.layers();
        let run = layers - count;
        if run == 0 {
            return Removal::of(Vec::new(), layers);
        }
        let mut hidden = model.embedded()?;
        let mut inputs = vec![hidden.clone()];
        for layer in 0..layers {
            model.pass(&model.block(layer)?, &mut hidden);
            inputs.push(hidden.clone());
        }
        let angle = |cosine: f64| cosine.acos() / PI;
        let turned = |first: usize| mean_of_cosines(inputs[first].view(), inputs[first + run].view(), angle);
        let turns: Vec<f64> = (0..=count).map(turned).collect();
        let first =
            (1..turns.len()).fold(0, |best, here| if turns[here] < turns[best] { here } else { best });
        let steps = (first..first + run).map(|layer| Step { layer, score: turns[first] });
        Removal::of(steps.collect(), layers)
    }

    fn takes_one_after_the_other(&self) -> bool {
        false // a longer run need not hold the shorter one
    }
}
