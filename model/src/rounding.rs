//! What matrices read, rounded to eight bits as it comes.

use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut1, Axis};

/// The numbers that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// Integers, -128 to 127.
    Int8,
    /// Floats with four bits of exponent and three of mantissa, up to 448.
    E4m3,
}

/// How programs that multiply in eight bits round what a matrix reads: to numbers times a scale that puts the largest magnitude of what
/// shares it on the largest number.
///
/// # Source
/// vLLM: `dynamic_scaled_int8_quant` and `dynamic_per_token_scaled_fp8_quant` in `csrc/quantization`, and `per_token_group_quant_fp8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// The numbers.
    pub number: Number,
    /// Consecutive features of a token that share a scale; `None` where all do.
    pub run: Option<usize>,
}

/// The smallest scale of a whole token.
const SMALLEST: f32 = 1.0 / (448.0 * 512.0);

/// The smallest of a run.
const SMALLEST_OF_RUN: f32 = 1e-10 / 448.0;

impl Rounding {
    /// What is left of activations `[tokens, features]`.
    #[must_use]
    pub fn apply(self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut rounded = x.as_standard_layout().into_owned();
        rounded.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut token| {
            let run = self.run.unwrap_or(token.len()).max(1);
            token.axis_chunks_iter_mut(Axis(0), run).for_each(|shared| self.round(shared));
        });
        rounded
    }

    fn round(self, mut shared: ArrayViewMut1<'_, f32>) {
        let largest = shared.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        match self.number {
            Number::Int8 => {
                let (scale, inverse) = (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 });
                shared.mapv_inplace(|x| (x * inverse).round_ties_even().clamp(-128.0, 127.0) * scale);
            }
            Number::E4m3 => {
                let smallest = if self.run.is_some() { SMALLEST_OF_RUN } else { SMALLEST };
                let scale = (largest / 448.0).max(smallest);
                shared.mapv_inplace(|x| e4m3(x / scale) * scale);
            }
        }
    }
}

/// The nearest float of four bits of exponent and three of mantissa, of two as near the even one; beyond the largest that.
fn e4m3(x: f32) -> f32 {
    let magnitude = x.abs().min(448.0);
    let exponent = (magnitude.to_bits() >> 23).max(127 - 6); // below, steps stay what they are there
    let step = f32::from_bits((exponent - 3) << 23);
    ((magnitude / step).round_ties_even() * step).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn eight_bit_floats_are_the_nearest_there_are() {
        let magnitude = |byte: u32| match byte >> 3 {
            0 => (byte & 7) as f32 / 512.0,
            exponent => (8 + (byte & 7)) as f32 * 2.0f32.powi(exponent as i32 - 10),
        };
        let all: Vec<f32> = (0..127).map(magnitude).collect();
        assert_eq!(all.last(), Some(&448.0));
        for (byte, pair) in all.windows(2).enumerate() {
            let middle = 0.5 * (pair[0] + pair[1]);
            for (x, want) in [
                (pair[0], pair[0]),
                (middle.next_down(), pair[0]),
                (middle, pair[byte % 2]),
                (middle.next_up(), pair[1]),
                (pair[1], pair[1]),
            ] {
                assert_eq!((e4m3(x), e4m3(-x)), (want, -want), "{x}");
            }
        }
        assert_eq!(e4m3(1e9).to_bits(), 448.0f32.to_bits());
    }

    #[test]
    fn tokens_and_runs_are_scaled_by_their_largest() {
        let x = array![[127.0, -63.4, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [-254.0, 3.0, 1.0, 0.9]];
        let whole = Rounding { number: Number::Int8, run: None };
        let want = array![[127.0, -63.0, 0.0, 2.0], [0.0; 4], [-254.0, 4.0, 0.0, 0.0]];
        assert_eq!(whole.apply(x.view()), want, "halves go to the even one");
        let runs = Rounding { number: Number::Int8, run: Some(2) };
        let left = runs.apply(x.view());
        assert_eq!(left.row(0).to_vec()[..2], [127.0, -63.0]);
        assert!((left[[0, 2]] - 0.5).abs() < 0.006 && (left[[0, 3]] - 1.5).abs() < 1e-6);
        let fp8 = Rounding { number: Number::E4m3, run: None };
        assert_eq!(
            fp8.apply(array![[448.0, 17.0, 0.001, -0.0]].view()),
            array![[448.0, 16.0, 0.001_953_125, 0.0]]
        );
        assert_eq!(fp8.apply(x.view()).row(1).to_vec(), [0.0; 4]);
    }
}
