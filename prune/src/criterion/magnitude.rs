use super::{Evidence, Width, by_unit, column_squares};

/// The sum of squares of the weights that make a unit and read it.
pub struct Magnitude;

impl Width for Magnitude {
    fn scores(&self, evidence: &Evidence<'_>) -> Vec<f64> {
        let mut squares = column_squares(evidence.reads);
        for made_by in &evidence.made_by {
            for (sum, row) in squares.iter_mut().zip(made_by.outer_iter()) {
                *sum += row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            }
        }
        by_unit(evidence.statistics.units(), evidence.statistics.unit(), |feature| squares[feature])
    }
}
