//! Equalization: channels that matter are multiplied in the weights that read them and divided in what gives them. The model stays
//! what it was; rounding loses less where it counts.

use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::loss::energy;
use crate::{GridEncoding, Statistics};

/// Exponents that are tried, evenly from 0 to 1, this one left out.
const STEPS: u32 = 20;

/// Rows of each matrix that a scale is tried on, evenly spaced: what rounding costs differs little from row to row.
const SAMPLE_ROWS: usize = 256;

/// Keeps the mean size of a weight from 0.
const SMALLEST: f32 = 1e-4;

/// A matrix that reads the input to be equalized, and what its weights are to become.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// `[out_features, in_features]`.
    pub weight: ArrayView2<'a, f32>,
    /// The format.
    pub encoding: &'a dyn GridEncoding,
}

/// What is known of the input besides its statistics where it is rounded while it is read.
pub struct Rounded<'a> {
    /// Some of it, `[tokens, in_features]`.
    pub sample: ArrayView2<'a, f32>,
    /// What is left of such when it is rounded.
    pub round: &'a (dyn Fn(ArrayView2<'_, f32>) -> Array2<f32> + Sync),
}

/// What the columns of all readers are best multiplied by, and what gives their input divided by, `[channels]`; `None` where leaving
/// them as they are costs least.
///
/// `channel_of` says which channel of what gives it each column reads: several columns may read one, as the heads do that share a value
/// head. Tried is `x^r / w^(1-r)` and `x^r`, x being the root of the mean square of an input and w the mean size of its weights
/// relative to the largest of their block; each is judged by `tr(E H E^T)`, E being what rounding to nearest loses on a sample of rows.
/// Where the input is `rounded` they are judged by what comes of it, token by token.
///
/// # Panics
/// Where the shapes differ from the statistics', or a row is no whole number of blocks.
///
/// # Source
/// Lin et al., "AWQ", arXiv:2306.00978, section 3.2, and the `AutoAWQ` package's search; of inputs that are rounded Xiao et al.,
/// "`SmoothQuant`", arXiv:2211.10438, section 4. Deviations: errors are weighed by the Gram matrix of the input, not by running the module;
/// columns that read one channel share a scale, so that grouped-query attention can be equalized; of the second, the exponent is
/// searched for, and what it costs measured.
#[must_use]
pub fn equalizing_scales(
    readers: &[Reader<'_>],
    statistics: &Statistics,
    channel_of: &[usize],
    rounded: Option<&Rounded<'_>>,
) -> Option<Array1<f32>> {
    let channels = channel_of.iter().max().map_or(0, |last| last + 1);
    let inputs = by_channel(&statistics.importance(), channel_of, channels).mapv(f32::sqrt);
    let sampled: Vec<_> = readers.iter().map(|reader| sample(reader.weight)).collect();
    let sizes = by_channel(&mean_sizes(readers), channel_of, channels);
    let meant: Vec<_> = sampled.iter().map(|w| rounded.map(|rounded| rounded.sample.dot(&w.t()))).collect();
    let cost = |scale: Option<&Array1<f32>>| -> f64 {
        let columns: Option<Array1<f32>> =
            scale.map(|scale| channel_of.iter().map(|&channel| scale[channel]).collect());
        let read = rounded.map(|rounded| rounded.read(columns.as_ref()));
        let costs = readers.iter().zip(&sampled).zip(&meant).map(|((reader, w), meant)| {
            let lost = lost(w, reader.encoding, statistics, columns.as_ref());
            match meant.as_ref().zip(read.as_ref()) {
                None => energy(lost.view(), Some(&statistics.sums)),
                Some((meant, read)) => relative_error(meant, &read.dot(&(w - lost).t())),
            }
        });
        costs.sum()
    };
    let mut best = (cost(None), None);
    for step in 0..STEPS {
        let r = step as f32 / STEPS as f32;
        let alone = inputs.mapv(|x| x.powf(r));
        let both = &alone / &sizes.mapv(|w| w.max(SMALLEST).powf(1.0 - r));
        for scale in [alone, both].into_iter().filter_map(|scale| centred(&scale)) {
            let cost = cost(Some(&scale));
            if cost < best.0 {
                best = (cost, Some(scale));
            }
        }
    }
    best.1
}

impl Rounded<'_> {
    /// What is read of the sample where it is divided by `scale` before it is rounded, and multiplied after.
    fn read(&self, scale: Option<&Array1<f32>>) -> Array2<f32> {
        match scale {
            None => (self.round)(self.sample),
            Some(scale) => (self.round)((&self.sample / scale).view()) * scale,
        }
    }
}

/// The squared error of each token relative to what was meant, of all together: a few whose inputs are many times those of others count as
/// much as these.
fn relative_error(meant: &Array2<f32>, made: &Array2<f32>) -> f64 {
    let of_tokens = meant.rows().into_iter().zip(made.rows()).map(|(meant, made)| {
        let error: f32 = meant.iter().zip(made).map(|(meant, made)| (meant - made).powi(2)).sum();
        f64::from(error) / f64::from(meant.dot(&meant)).max(f64::MIN_POSITIVE)
    });
    of_tokens.sum()
}

/// The mean over the columns that read a channel.
fn by_channel(values: &[f32], channel_of: &[usize], channels: usize) -> Array1<f32> {
    let (mut sums, mut counts) = (Array1::zeros(channels), Array1::<f32>::zeros(channels));
    for (&value, &channel) in values.iter().zip(channel_of) {
        sums[channel] += value;
        counts[channel] += 1.0;
    }
    sums / counts.mapv(|count| count.max(1.0))
}

/// Of each column the mean size of its weights, relative to the largest of their block, over all rows of all readers.
fn mean_sizes(readers: &[Reader<'_>]) -> Vec<f32> {
    let mut sums = Vec::new();
    let mut rows = 0;
    for Reader { weight, encoding } in readers {
        sums.resize(weight.ncols(), 0.0);
        rows += weight.nrows();
        for row in weight.rows() {
            let row = row.to_vec();
            let blocks = row.chunks(encoding.block_len()).zip(sums.chunks_mut(encoding.block_len()));
            for (block, sums) in blocks {
                let largest = block.iter().fold(f32::MIN_POSITIVE, |largest, w| largest.max(w.abs()));
                sums.iter_mut().zip(block).for_each(|(sum, w)| *sum += w.abs() / largest);
            }
        }
    }
    sums.iter().map(|sum| sum / rows.max(1) as f32).collect()
}

/// Rows at even distances.
fn sample(w: ArrayView2<'_, f32>) -> Array2<f32> {
    let step = w.nrows().div_ceil(SAMPLE_ROWS).max(1);
    let rows: Vec<usize> = (0..w.nrows()).step_by(step).collect();
    w.select(Axis(0), &rows)
}

/// Scales whose largest and smallest are as far above 1 as below; `None` where one is not a positive number.
fn centred(scale: &Array1<f32>) -> Option<Array1<f32>> {
    let largest = scale.iter().copied().fold(f32::MIN, f32::max);
    let smallest = scale.iter().copied().fold(f32::MAX, f32::min);
    let middle = (largest * smallest).sqrt();
    let scale = scale / middle;
    scale.iter().all(|scale| scale.is_normal() && *scale > 0.0).then_some(scale)
}

/// What rounding `w` loses of it when its columns are multiplied by `scale` before and divided after.
fn lost(
    w: &Array2<f32>,
    encoding: &dyn GridEncoding,
    statistics: &Statistics,
    scale: Option<&Array1<f32>>,
) -> Array2<f32> {
    let mut importance = statistics.importance();
    let Some(scale) = scale else { return w - encoding.search(w.view(), Some(&importance)).decoded() };
    importance.iter_mut().zip(scale).for_each(|(importance, scale)| *importance /= scale * scale);
    let scaled = w * scale;
    (&scaled - encoding.search(scaled.view(), Some(&importance)).decoded()) / scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IntEncoding;

    fn noise(shape: (usize, usize), seed: u64) -> Array2<f32> {
        let mut state = seed;
        Array2::from_shape_simple_fn(shape, || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32) - 0.5
        })
    }

    fn inputs(large: &[usize]) -> Statistics {
        let mut x = noise((400, 64), 7);
        for &col in large {
            x.column_mut(col).mapv_inplace(|x| 30.0 * x);
        }
        let mut statistics = Statistics::new(64);
        statistics.observe(x.view());
        statistics
    }

    const W3: IntEncoding = IntEncoding::symmetric(3, 32);

    #[test]
    fn channels_of_large_inputs_are_multiplied_and_the_cost_falls() {
        let (w, statistics) = (noise((48, 64), 3), inputs(&[5, 40]));
        let columns: Vec<usize> = (0..64).collect();
        let readers = [Reader { weight: w.view(), encoding: &W3 }];
        let scale = equalizing_scales(&readers, &statistics, &columns, None).expect("two channels stand out");
        let mean = scale.sum() / 64.0;
        assert!(scale[5] > 1.5 * mean && scale[40] > 1.5 * mean, "{scale}");
        let [before, after] = [None, Some(&scale)].map(|scale| {
            energy(lost(&sample(w.view()), &W3, &statistics, scale).view(), Some(&statistics.sums))
        });
        assert!(after < 0.8 * before, "{before} -> {after}");
    }

    /// Eight-bit weights lose next to nothing; what is lost is lost in the input, where two channels set the scale of all others.
    #[test]
    fn where_inputs_are_rounded_their_errors_count_too() {
        const W8: IntEncoding = IntEncoding::symmetric(8, 32);
        let (w, statistics) = (noise((48, 64), 3), inputs(&[5, 40]));
        let mut sample = noise((64, 64), 9);
        for col in [5, 40] {
            sample.column_mut(col).mapv_inplace(|x| 30.0 * x);
        }
        let round = |x: ArrayView2<'_, f32>| {
            let mut x = x.to_owned();
            for mut token in x.rows_mut() {
                let step = token.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / 127.0;
                token.mapv_inplace(|x| (x / step).round() * step);
            }
            x
        };
        let rounded = Rounded { sample: sample.view(), round: &round };
        let columns: Vec<usize> = (0..64).collect();
        let readers = [Reader { weight: w.view(), encoding: &W8 }];
        let scale =
            equalizing_scales(&readers, &statistics, &columns, Some(&rounded)).expect("two stand out");
        let [before, after] = [None, Some(&scale)].map(|scale| {
            let made = rounded.read(scale).dot(&(&w - lost(&w, &W8, &statistics, scale)).t());
            relative_error(&sample.dot(&w.t()), &made)
        });
        assert!(after < 0.1 * before, "{before} -> {after}");
    }

    #[test]
    fn columns_that_read_one_channel_share_its_scale() {
        let (w, statistics) = (noise((48, 64), 4), inputs(&[5, 37]));
        let channel_of: Vec<usize> = (0..64).map(|col| col % 32).collect();
        let readers = [Reader { weight: w.view(), encoding: &W3 }];
        let scale =
            equalizing_scales(&readers, &statistics, &channel_of, None).expect("a channel stands out");
        assert_eq!(scale.len(), 32);
        assert!(scale.iter().all(|&other| other <= scale[5]), "{scale}");
    }

    #[test]
    fn scales_are_centred_and_what_is_no_number_is_no_scale() {
        let scale = centred(&Array1::from_vec(vec![1.0, 4.0])).expect("positive");
        assert_eq!(scale, Array1::from_vec(vec![0.5, 2.0]));
        assert!(centred(&Array1::from_vec(vec![0.0, 1.0])).is_none());
        assert!(centred(&Array1::from_vec(vec![f32::NAN, 1.0])).is_none());
    }
}
