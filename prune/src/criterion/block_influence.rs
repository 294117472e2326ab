use super::Depth;
use super::depth::{Calibrated, Removal, Step, mean_of_cosines};
use crate::Error;

/// The layers go that turn the stream least, all judged in the whole model.
///
/// On small models the first layer turns it least of all and costs most: measure before you trust it.
///
/// # Source
/// Men et al., "`ShortGPT`: Layers in Large Language Models are More Redundant Than You Expect", arXiv:2403.03853, equation 1.
pub struct BlockInfluence;

impl Depth for BlockInfluence {
    fn keep(&self, model: &Calibrated<'_>, count: usize) -> Result<Removal, Error> {
        let mut hidden = model.embedded()?;
        let mut steps = Vec::with_capacity(model.layers());
        for layer in 0..model.layers() {
            let before = hidden.clone();
            model.pass(&model.block(layer)?, &mut hidden);
            let score = mean_of_cosines(before.view(), hidden.view(), |cosine| 1.0 - cosine);
            steps.push(Step { layer, score });
        }
        steps.sort_by(|a, b| a.score.total_cmp(&b.score)); // stable: equals as they stand
        steps.truncate(model.layers() - count);
        Removal::of(steps, model.layers())
    }
}
