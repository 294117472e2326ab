use super::Depth;
use super::depth::{Calibrated, Removal, Step};
use crate::Error;

/// The layer goes without which the calibration text is predicted best; then the next one, of what is left.
///
/// A step is one pass over the blocks: each is loaded once, and passes all streams in which an earlier layer was left out beside
/// the one in which none was. With m layers that is m (m + 1) / 2 passes of a block, and nothing is computed twice.
pub struct StreamLoss;

impl Depth for StreamLoss {
    fn keep(&self, model: &Calibrated<'_>, count: usize) -> Result<Removal, Error> {
        let head = model.head()?;
        let mut left: Vec<usize> = (0..model.layers()).collect();
        let mut steps = Vec::new();
        while left.len() > count {
            let losses = losses_without_each(model, &head, &left)?;
            // Among equals the later one.
            let least = |best: usize, here: usize| if losses[here] <= losses[best] { here } else { best };
            let at = (1..left.len()).fold(0, least);
            steps.push(Step { layer: left.remove(at), score: losses[at] });
        }
        Removal::of(steps, model.layers())
    }
}

/// For each of the layers that are left the loss without it.
fn losses_without_each(
    model: &Calibrated<'_>,
    head: &attar_model::Head,
    left: &[usize],
) -> Result<Vec<f64>, Error> {
    let mut with_all = model.embedded()?;
    let mut without = Vec::with_capacity(left.len());
    for (at, &layer) in left.iter().enumerate() {
        let block = model.block(layer)?;
        for hidden in &mut without {
            model.pass(&block, hidden);
        }
        without.push(with_all.clone());
        if at + 1 < left.len() {
            model.pass(&block, &mut with_all);
        }
    }
    Ok(without.iter().map(|hidden| model.loss(head, hidden.view())).collect())
}
