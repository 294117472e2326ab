//! The search for the scales of grouped integers, and codes on a grid, against their definitions.

use crate::{on_every_machine, random};
use attar_tensor::cuda::{GroupSearch, Stored, Zero, bf16};
use half::f16;
use ndarray::{Array2, ArrayView1};

const REACHES: [f32; 5] = [0.88, 1.0, 1.15, 1.46, 2.03];

/// `code - zero` of the nearest code.
fn level(steps: f32, zero: f32, top: f32) -> f32 {
    steps.max(-zero).min(top - zero).round_ties_even()
}

/// The stored number nearest to x, and its neighbours in magnitude.
fn around(stored: Stored, x: f32) -> [f32; 3] {
    let neighbours = |bits: u16, largest: u16| {
        let (sign, magnitude) = (bits & 0x8000, (bits & 0x7fff).min(largest));
        [magnitude, magnitude.saturating_sub(1), (magnitude + 1).min(largest)].map(|bits| sign | bits)
    };
    match stored {
        Stored::F16 => {
            neighbours(f16::from_f32(x).to_bits(), 0x7bff).map(|bits| f16::from_bits(bits).to_f32())
        }
        Stored::Bf16 => {
            neighbours(bf16::from_f32(x).to_bits(), 0x7f7f).map(|bits| bf16::from_bits(bits).to_f32())
        }
        Stored::F32 => [x; 3],
    }
}

/// Scale and zero of one group, one candidate after the other.
fn one_group(x: ArrayView1<'_, f32>, w: &[f32], search: GroupSearch<'_>) -> (f32, f32) {
    let top = f32::from(search.max_code);
    let middle = f32::from(search.max_code / 2 + 1);
    let largest = x.iter().fold(0.0f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
    let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(low, high), &x| (low.min(x), high.max(x)));
    let mut ranges = Vec::new();
    for &reach in search.reaches {
        match search.zero {
            Zero::Middle => {
                ranges.extend([-1.0, 1.0].map(|sign| (sign * reach * middle / largest, middle)));
            }
            Zero::Free => {
                let inverse = reach * top / (high - low);
                let zero = (-low * inverse / reach).round_ties_even();
                ranges.extend([0.0, -1.0, 1.0].map(|shift| (inverse, (zero + shift).max(0.0).min(top))));
            }
        }
    }
    let (mut score, mut scale, mut zero) = (0.0, 0.0, middle);
    for (inverse, candidate) in ranges {
        let (mut xl, mut ll) = (0.0f32, 0.0f32);
        for (x, w) in x.iter().zip(w) {
            let level = level(x * inverse, candidate, top);
            xl += w * x * level;
            ll += w * level * level;
        }
        let fitted = xl / ll;
        if ll > 0.0 && fitted * xl > score {
            (score, scale, zero) = (fitted * xl, fitted, candidate);
        }
    }
    let (mut least, mut chosen) = (f32::INFINITY, 0.0);
    for scale in around(search.stored, scale) {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut error = 0.0f32;
        for (x, w) in x.iter().zip(w) {
            let off = x - scale * level(x * inverse, zero, top);
            error += w * off * off;
        }
        if error < least {
            (least, chosen) = (error, scale);
        }
    }
    (chosen, zero)
}

#[test]
fn the_search_for_scales_finds_the_bits_of_its_definition() {
    on_every_machine(|cuda| {
        for (at, group_size) in [16, 40].into_iter().enumerate() {
            let (rows, cols) = (5, 3 * group_size);
            let mut w = random((rows, cols), 31 + at as u64);
            // Numbers that f16 holds only as multiples of its smallest, too large ones, a group of nothing, one of one value.
            w.row_mut(1).mapv_inplace(|x| x * 2e-6);
            w.row_mut(2).mapv_inplace(|x| x * 3e6);
            w.row_mut(3).iter_mut().take(group_size).for_each(|x| *x = 0.0);
            w.row_mut(4).fill(0.25);
            let mut importance: Vec<f32> = random((1, cols), 41).iter().map(|x| x * x).collect();
            importance[1] = 0.0;
            let there = cuda.upload::<f32>(w.view()).unwrap();
            for (max_code, zero, stored) in [
                (15, Zero::Middle, Stored::F16),
                (15, Zero::Free, Stored::F16),
                (7, Zero::Middle, Stored::Bf16),
                (255, Zero::Free, Stored::F32),
            ] {
                let search = GroupSearch { group_size, max_code, zero, stored, reaches: &REACHES };
                for importance in [None, Some(importance.as_slice())] {
                    let grid = cuda.search_groups(there.view(), importance, search).unwrap();
                    let scale = cuda.download(grid.scale.view()).unwrap();
                    let zeros = cuda.download(grid.zero.view()).unwrap();
                    for ((row, group), scale) in scale.indexed_iter() {
                        let from = group * group_size;
                        let row_of = w.row(row);
                        let x = row_of.slice(ndarray::s![from..from + group_size]);
                        let ones = vec![1.0; group_size];
                        let weights = importance.map_or(&ones[..], |all| &all[from..from + group_size]);
                        let (want, zero) = one_group(x, weights, search);
                        assert_eq!((*scale, zeros[[row, group]]), (want, zero), "{search:?}: {row}, {group}");
                    }
                    assert!(cuda.download(grid.min.view()).unwrap().iter().all(|&min| min == 0.0));
                }
            }
        }
    });
}

#[test]
fn codes_on_a_grid_are_the_nearest_and_decode_to_its_values() {
    on_every_machine(|cuda| {
        let (rows, cols, group_size) = (7, 24, 8);
        let (w, dim) = (random((rows, cols), 3), (rows, cols / group_size));
        let scale = random(dim, 21).mapv(|x| if x > 0.8 { 0.0 } else { 0.15 + 0.05 * x });
        let zero = Array2::from_shape_fn(dim, |(row, _)| if row % 2 == 0 { 0.0 } else { 8.0 });
        let min = Array2::from_shape_fn(dim, |(row, _)| if row % 2 == 0 { 1.1 } else { 0.0 });
        let upload = |x: &Array2<f32>| cuda.upload::<f32>(x.view()).unwrap();
        let grid = attar_tensor::cuda::Grid {
            scale: upload(&scale),
            zero: upload(&zero),
            min: upload(&min),
            group_size,
            max_code: 15,
        };
        let there = upload(&w);
        let codes = cuda.nearest_codes(there.view(), &grid).unwrap();
        let found = Array2::from_shape_vec((rows, cols), cuda.download_items(codes.view()).unwrap()).unwrap();
        let decoded = cuda.download(cuda.decode::<f32>(codes.view(), &grid).unwrap().view()).unwrap();
        let narrow = cuda.download(cuda.decode::<bf16>(codes.view(), &grid).unwrap().view()).unwrap();
        let errors = cuda.rounding_errors(there.view(), codes.view(), &grid).unwrap();
        let errors = cuda.download(errors.view()).unwrap();
        for ((row, col), &x) in w.indexed_iter() {
            let at = [row, col / group_size];
            let steps = if scale[at] == 0.0 { 0.0 } else { (x + min[at]) / scale[at] };
            let code = level(steps, zero[at], 15.0) + zero[at];
            let value = scale[at] * (code - zero[at]) - min[at];
            let at = [row, col];
            let found = [f32::from(found[at]), decoded[at], narrow[at], errors[at]];
            let truth = [code, value, bf16::from_f32(value).to_f32(), x - value];
            assert_eq!(found.map(f32::to_bits), truth.map(f32::to_bits), "{row}, {col}");
        }
    });
}
