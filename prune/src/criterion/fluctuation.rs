use super::{Evidence, Measure, Width, by_unit, column_squares};

/// The variance of a feature times the squares of the weights that read it, summed over a unit.
///
/// # Source
/// An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", arXiv:2312.11983, metric `WIFV`. What
/// layers lose is held to the energy of their residual stream, where FLAP standardises each layer's scores.
pub struct Fluctuation;

impl Width for Fluctuation {
    fn scores(&self, evidence: &Evidence<'_>) -> Vec<f64> {
        let (variance, squares) = (evidence.statistics.variance(), column_squares(evidence.reads));
        let statistics = evidence.statistics;
        by_unit(statistics.units(), statistics.unit(), |feature| variance[feature] * squares[feature])
    }

    fn measure(&self) -> Measure {
        Measure::Energy
    }
}
