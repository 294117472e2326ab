use crate::KeepList;
use ndarray::ArrayView2;

/// An expert counts for the mean, over the tokens that are sent to it, of its share times the length of what it gives. One that
/// gets no token counts for nothing.
///
/// # Source
/// Lasby et al., "REAP the Experts: Why Pruning Prevails for One-Shot `MoE` compression", arXiv:2510.13999, equation 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reap;

/// What is known so far of the experts of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertScores {
    sums: Vec<f64>,
    tokens: Vec<usize>,
}

impl Reap {
    /// Of `experts` experts none of which has given anything yet.
    pub fn start(self, experts: usize) -> ExpertScores {
        ExpertScores { sums: vec![0.0; experts], tokens: vec![0; experts] }
    }
}

impl ExpertScores {
    /// Takes in what an expert made, `[tokens, hidden_size]`, of some tokens, and what it counts for in each.
    ///
    /// # Panics
    /// If there is no such expert, or not one row for each token.
    pub fn observe(&mut self, expert: usize, weights: &[f32], out: ArrayView2<'_, f32>) {
        assert_eq!(out.nrows(), weights.len(), "one output for each token");
        let length = |row: ndarray::ArrayView1<'_, f32>| {
            row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
        };
        let sum: f64 = out.outer_iter().zip(weights).map(|(row, &w)| f64::from(w) * length(row)).sum();
        self.sums[expert] += sum;
        self.tokens[expert] += out.nrows();
    }

    /// What each expert counts for.
    pub fn scores(&self) -> Vec<f64> {
        self.sums.iter().zip(&self.tokens).map(|(sum, &tokens)| sum / tokens.max(1) as f64).collect()
    }

    /// The `count` that count for most.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn keep(&self, count: usize) -> KeepList {
        KeepList::top(&self.scores(), count)
    }
}
