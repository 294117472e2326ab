//! What is known of one weight.

use super::Flaw;

/// Sums of squares of what a weight multiplies, column by column; of a stack of experts one row for each.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    sums: Vec<f32>,   // [rows, columns]
    counts: Vec<u64>, // [rows], or one for all rows
}

impl Entry {
    /// Sums of squares, row after row, and how many tokens stand behind each row, or one count for all.
    ///
    /// # Errors
    /// No sums or counts, counts that do not divide the sums, a sum that is negative or not finite.
    pub fn new(name: &str, sums: Vec<f32>, counts: Vec<u64>) -> Result<Self, Flaw> {
        let name = || name.to_owned();
        let is_whole = !counts.is_empty() && !sums.is_empty() && sums.len().is_multiple_of(counts.len());
        if !is_whole {
            return Err(Flaw::Shape { name: name(), sums: sums.len(), counts: counts.len() });
        }
        if let Some(place) = sums.iter().position(|sum| !sum.is_finite() || *sum < 0.0) {
            return Err(Flaw::NoSum { name: name(), place, value: sums[place].to_string() });
        }
        Ok(Self { sums, counts })
    }

    /// All sums, row after row.
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// Tokens behind each row, or behind all.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The sums of row `row` where the entry is one of `rows` rows, and the tokens behind them.
    ///
    /// # Panics
    /// Where the sums are not so many rows, or there is no such row.
    pub fn row(&self, row: usize, rows: usize) -> (&[f32], u64) {
        assert!(row < rows && self.sums.len().is_multiple_of(rows), "row {row} of {rows}");
        let columns = self.sums.len() / rows;
        let count = if self.counts.len() == rows { self.counts[row] } else { self.counts[0] };
        (&self.sums[row * columns..][..columns], count)
    }

    /// The mean square of every column of every row that tokens stand behind, as llama-quantize uses it.
    pub fn means(&self) -> impl Iterator<Item = f32> + '_ {
        let columns = self.sums.len() / self.counts.len();
        let rows = self.sums.chunks_exact(columns).zip(&self.counts).filter(|(_, count)| **count > 0);
        rows.flat_map(|(sums, &count)| sums.iter().map(move |sum| sum / count as f32))
    }

    /// Sums and counts of `by` times as much.
    pub(super) fn scale_up(&mut self, by: u32) {
        self.counts.iter_mut().for_each(|count| *count = count.saturating_mul(u64::from(by)));
        self.sums.iter_mut().for_each(|sum| *sum = (*sum * by as f32).min(f32::MAX));
    }

    /// Counts times `weight`, rounded to whole ones and never to none, and sums that keep the means.
    pub(super) fn weigh(&mut self, weight: f64) {
        let columns = self.sums.len() / self.counts.len();
        for (sums, count) in self.sums.chunks_exact_mut(columns).zip(&mut self.counts) {
            if *count > 0 {
                let weighed = ((*count as f64 * weight).round() as u64).max(1);
                let factor = weighed as f64 / *count as f64;
                for sum in sums {
                    *sum = (f64::from(*sum) * factor).min(f64::from(f32::MAX)) as f32;
                }
                *count = weighed;
            }
        }
    }

    pub(super) fn check_mergeable(&self, name: &str, other: &Self) -> Result<(), Flaw> {
        let [own, others] = [self, other].map(|entry| [entry.sums.len(), entry.counts.len()]);
        let rows_fit = own[1] == others[1] || own[1] == 1 || others[1] == 1;
        if own[0] == others[0] && rows_fit {
            Ok(())
        } else {
            Err(Flaw::Mismatch { name: name.to_owned(), own, others })
        }
    }

    /// Adds another entry of the same shape; one count stands for all rows.
    pub(super) fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts = vec![self.counts[0]; other.counts.len()];
        }
        for (row, count) in self.counts.iter_mut().enumerate() {
            let more = if other.counts.len() == 1 { other.counts[0] } else { other.counts[row] };
            *count = count.saturating_add(more);
        }
        let sums = self.sums.iter_mut().zip(&other.sums);
        sums.for_each(|(sum, more)| *sum = (*sum + more).min(f32::MAX));
    }
}
