use super::{Evidence, Measure, Width};
use crate::Error;
use attar_model::{Gradients, Keep, Model, ModelConfig, NextToken, Precision, Role, Step, Weights, Windows};
use ndarray::{Array2, ArrayView2, s};

/// The square of how the loss changes to first order when a unit goes, summed over windows.
///
/// The sum of weight times gradient over the columns that read a unit is that over the rows that make it too, by the chain rule,
/// so one of the two counts.
///
/// # Source
/// Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, equation 8, over units as in Ma et
/// al., "LLM-Pruner", arXiv:2305.11627.
pub struct Taylor;

/// Tokens that are enough for gradients: each window costs as much as three forward passes of the whole model.
pub const TAYLOR_TOKENS: usize = 32_768;

impl Width for Taylor {
    fn scores(&self, evidence: &Evidence<'_>) -> Vec<f64> {
        let unit = evidence.statistics.unit();
        let mut scores = vec![0.0; evidence.statistics.units()];
        for window in evidence.gradients.iter().flat_map(|gradients| gradients.outer_iter()) {
            for (index, score) in scores.iter_mut().enumerate() {
                let change: f64 = (index * unit..(index + 1) * unit).map(|f| f64::from(window[f])).sum();
                *score += change * change;
            }
        }
        scores
    }

    fn measure(&self) -> Measure {
        Measure::Loss
    }

    fn needs_gradients(&self) -> bool {
        true
    }
}

/// For each layer, window and feature of what o and down read, `sum w dL/dw` over its column.
pub struct FirstOrder {
    o: Vec<Array2<f32>>,    // for each layer [windows, query_size]
    down: Vec<Array2<f32>>, // for each layer [windows, intermediate_size]
}

impl FirstOrder {
    /// Runs the whole model, which must fit into memory, forward and backward over some windows, one after the other, up to
    /// [`TAYLOR_TOKENS`]; `progress` hears of each that is done.
    ///
    /// # Errors
    /// A model with experts, which has no backward pass; weights that cannot be loaded, a token outside the vocabulary.
    pub fn measure(
        config: &ModelConfig,
        weights: &dyn Weights,
        windows: &Windows,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, Error> {
        let ctx = windows.ctx();
        let count = windows.count().min((TAYLOR_TOKENS / ctx).max(1));
        let zeros = |features| vec![Array2::zeros((count, features)); config.num_hidden_layers];
        let mut all = Self { o: zeros(config.query_size()), down: zeros(config.intermediate_size) };
        let model = Model::load(config, weights)?;
        let step = Step { keep: Keep::Inputs, precision: Precision::F32 };
        for window in 0..count {
            let tokens = windows.tokens()[window * ctx..(window + 1) * ctx].to_vec();
            let one = Windows::new(ctx, tokens);
            let mut take = |layer: Option<usize>, gradients: Gradients| {
                let Some(layer) = layer else { return };
                for (role, all) in [(Role::O, &mut all.o), (Role::Down, &mut all.down)] {
                    let both = model.parameter(role, Some(layer)).zip(gradients.get(role));
                    if let Some((w, gradient)) = both {
                        let mut to = all[layer].slice_mut(s![window, ..]);
                        for (w, gradient) in w.outer_iter().zip(gradient.outer_iter()) {
                            let both = w.iter().zip(&gradient);
                            to.iter_mut().zip(both).for_each(|(to, (w, gradient))| *to += w * gradient);
                        }
                    }
                }
            };
            let reads = |spec: &attar_model::TensorSpec| matches!(spec.role, Role::O | Role::Down);
            model.backward(&one, &NextToken::mean(&one), step, &reads, &mut take)?;
            progress(window);
        }
        Ok(all)
    }

    /// Of what o or down of a layer reads, `[windows, features]`.
    ///
    /// # Panics
    /// If the role is another one, or there is no such layer.
    pub fn of(&self, role: Role, layer: usize) -> ArrayView2<'_, f32> {
        match role {
            Role::O => self.o[layer].view(),
            Role::Down => self.down[layer].view(),
            other => panic!("{other:?} reads nothing that is pruned"),
        }
    }
}
