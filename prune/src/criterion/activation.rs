use super::{Evidence, Width};

/// The length of a unit's activation: the mean over a window's tokens, then the root of squares over windows.
///
/// # Source
/// Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", arXiv:2407.14679, section 2.2.
pub struct Activation;

impl Width for Activation {
    fn scores(&self, evidence: &Evidence<'_>) -> Vec<f64> {
        evidence.statistics.levels.iter().map(|level| level.sqrt()).collect()
    }
}
