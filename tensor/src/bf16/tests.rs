use super::kernel::Kernel;
use super::product::Held;
use super::round::{even, to_bf16};
use super::training::weight_backward_with;
use super::*;
use crate::testing::{bits, in_pools, random};
use ndarray::{Array1, s};
use proptest::prelude::*;

fn rounded(x: &Array2<f32>) -> Array2<f32> {
    x.mapv(|x| even(to_bf16(x)))
}

fn linear_by(kernel: Kernel, x: ArrayView2<'_, f32>, w: &Bf16Matrix) -> Array2<f32> {
    let mut out = Array2::from_elem((x.nrows(), w.dim().0), f32::NAN);
    product::with(kernel, x, w, out.view_mut(), Held::Replaced);
    out
}

fn gram_by(kernel: Kernel, x: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut gram = Array2::zeros((x.ncols(), x.ncols()));
    gram::with(kernel, x, &mut gram);
    gram
}

/// The worst distance from the f64 sum of products of rounded factors, relative to the sum of their absolute values.
fn error(found: &Array2<f32>, a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let (a, b) = (rounded(a), rounded(b));
    let mut worst = 0.0f64;
    for ((i, j), &found) in found.indexed_iter() {
        let terms = a.row(i).into_iter().zip(b.row(j)).map(|(&x, &y)| f64::from(x) * f64::from(y));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let distance = (f64::from(found) - sum).abs();
        worst = worst.max(if distance == 0.0 { 0.0 } else { distance / size });
    }
    worst
}

/// Far below the 1e-2 that a product in bf16 may lose: the rounding of the factors is no part of it, that of the sums is.
const ALLOWED: f64 = 1e-5;

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (8, 48, 32),
    (7, 47, 31),
    (9, 49, 33),
    (17, 16, 1),
    (5, 200, 1023),
    (30, 33, 1024),
    (13, 70, 1025),
    (3, 17, 2501),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_bf16_product_equals_its_definition_by_every_kernel(
        m in 1usize..40, n in 1usize..120, k in 1usize..1100, seed: u64,
    ) {
        let (x, w) = (random((m, k), seed), random((n, k), seed ^ 1));
        let packed = Bf16Matrix::from_f32(w.view());
        for kernel in Kernel::available() {
            let worst = error(&linear_by(kernel, x.view(), &packed), &x, &w);
            prop_assert!(worst <= ALLOWED, "{kernel:?}: {worst:e}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it(
        m in 1usize..130, n in 1usize..130, k in 1usize..1200, seed: u64, from in 0usize..130, len in 1usize..130
    ) {
        let (x, w) = (random((m, k), seed), Bf16Matrix::from_f32(random((n, k), seed ^ 1).view()));
        let (from, to) = (from % m, (from % m + len).min(m));
        let whole = bf16_linear(x.view(), &w);
        let part = bf16_linear(x.slice(s![from..to, ..]), &w);
        prop_assert_eq!(bits(&part), bits(&whole.slice(s![from..to, ..]).to_owned()));
    }
}

#[test]
fn odd_shapes_agree_with_the_plain_kernel() {
    for (m, n, k) in SHAPES {
        let (x, w) = (random((m, k), 1), Bf16Matrix::from_f32(random((n, k), 2).view()));
        let plain = linear_by(Kernel::Plain, x.view(), &w);
        for kernel in Kernel::available() {
            let found = linear_by(kernel, x.view(), &w);
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-7 * k as f32;
            assert!(found.iter().zip(&plain).all(near), "{kernel:?}, {m}x{n}x{k}");
        }
    }
}

/// A product of two bf16 numbers is exact, so fusing it with its addition changes nothing.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_twin_for_avx2_gives_the_bits_of_the_plain_kernel() {
    if !Kernel::available().any(|kernel| kernel == Kernel::Avx2) {
        return skipped("no AVX2 here");
    }
    for (m, n, k) in SHAPES {
        let (x, w) = (random((m, k), 3), Bf16Matrix::from_f32(random((n, k), 4).view()));
        assert_eq!(
            bits(&linear_by(Kernel::Avx2, x.view(), &w)),
            bits(&linear_by(Kernel::Plain, x.view(), &w)),
            "{m}x{n}x{k}"
        );
        assert_eq!(bits(&gram_by(Kernel::Avx2, x.view())), bits(&gram_by(Kernel::Plain, x.view())));
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::print_stderr, reason = "a skipped test must be seen to be skipped")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

#[test]
fn a_packed_matrix_holds_the_rounded_numbers() {
    for (m, n, _) in SHAPES {
        let w = random((n, m), 5);
        let packed = Bf16Matrix::from_f32(w.view());
        assert_eq!(packed.dim(), (n, m));
        assert_eq!(bits(&packed.to_f32()), bits(&rounded(&w)));
        let transposed = Bf16Matrix::from_f32(w.t());
        assert_eq!(bits(&transposed.to_f32()), bits(&rounded(&w.t().to_owned())));
    }
    let large = Bf16Matrix::from_f32(Array2::zeros((480, 640)).view());
    assert_eq!(large.bytes(), 2 * 480 * 640);
}

#[test]
fn adding_to_an_output_equals_adding_the_product() {
    let (x, w) = (random((21, 300), 6), Bf16Matrix::from_f32(random((55, 300), 7).view()));
    let mut out = random((21, 55), 8);
    let expected = &out + &bf16_linear(x.view(), &w);
    bf16_linear_add(x.view(), &w, out.view_mut());
    assert_eq!(bits(&out), bits(&expected));
}

#[test]
fn an_empty_sum_is_zero_and_an_empty_output_is_empty() {
    let no_terms = Bf16Matrix::from_f32(Array2::zeros((2, 0)).view());
    for kernel in Kernel::available() {
        assert_eq!(linear_by(kernel, Array2::zeros((3, 0)).view(), &no_terms), Array2::<f32>::zeros((3, 2)));
        assert_eq!(gram_by(kernel, Array2::zeros((0, 5)).view()), Array2::<f32>::zeros((5, 5)));
    }
    let w = Bf16Matrix::from_f32(Array2::zeros((2, 4)).view());
    assert_eq!(bf16_linear(Array2::zeros((0, 4)).view(), &w).dim(), (0, 2));
    let no_rows = Bf16Matrix::from_f32(Array2::zeros((0, 4)).view());
    assert_eq!(bf16_linear(Array2::zeros((3, 4)).view(), &no_rows).dim(), (3, 0));
}

#[test]
fn nan_and_infinity_reach_every_element_they_belong_to() {
    let mut x = random((10, 70), 9);
    x[[3, 69]] = f32::NAN;
    x[[4, 0]] = f32::INFINITY;
    let w = Bf16Matrix::from_f32(random((20, 70), 10).view());
    for kernel in Kernel::available() {
        let out = linear_by(kernel, x.view(), &w);
        for (row, out) in out.outer_iter().enumerate() {
            assert!(out.iter().all(|x| x.is_finite() != [3, 4].contains(&row)), "{kernel:?}, row {row}");
        }
    }
}

#[test]
fn strides_of_the_factors_never_change_a_bit() {
    let (x, w) = (random((19, 77), 11), random((50, 77), 12));
    let plain = bits(&bf16_linear(x.view(), &Bf16Matrix::from_f32(w.view())));
    let (x_t, w_t) = (x.t().as_standard_layout().to_owned(), w.t().as_standard_layout().to_owned());
    assert_eq!(plain, bits(&bf16_linear(x_t.t(), &Bf16Matrix::from_f32(w_t.t()))));
}

#[test]
fn threads_never_change_a_bit() {
    for (m, n, k) in [(1, 4096, 512), (700, 1500, 300), (33, 2000, 130), (1300, 100, 1500)] {
        let (x, w) = (random((m, k), 13), random((n, k), 14));
        in_pools(|| bits(&bf16_linear(x.view(), &Bf16Matrix::from_f32(w.view()))));
    }
    let x = random((1500, 700), 15);
    in_pools(|| {
        let mut gram = Array2::ones((700, 700));
        bf16_gram_add(x.view(), &mut gram);
        bits(&gram)
    });
}

#[test]
fn a_gram_matrix_equals_the_full_product_to_the_bit() {
    for (tokens, features) in [(1, 1), (5, 3), (700, 64), (101, 200), (2500, 250), (1025, 49), (40, 385)] {
        let x = random((tokens, features), 16);
        let transposed = Bf16Matrix::from_f32(x.t());
        for kernel in Kernel::available() {
            let gram = gram_by(kernel, x.view());
            let full = linear_by(kernel, x.t(), &transposed);
            assert_eq!(bits(&gram), bits(&full), "{kernel:?}, {tokens}x{features}");
            assert_eq!(bits(&gram), bits(&gram.t().as_standard_layout().to_owned()));
            assert!(error(&gram, &x.t().to_owned(), &x.t().to_owned()) <= ALLOWED);
        }
    }
}

fn weight_gradient_by(kernel: Kernel, d_out: ArrayView2<'_, f32>, x: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut d_w = Array2::zeros((d_out.ncols(), x.ncols()));
    weight_backward_with(kernel, &Bf16Columns::from_f32(d_out), &Bf16Columns::from_f32(x), d_w.view_mut());
    d_w
}

/// Tokens, in and out features: parts of panels, of tasks, of chunks, and an odd token.
const LEARNING: [(usize, usize, usize); 7] =
    [(1, 1, 1), (5, 3, 7), (101, 200, 48), (2050, 60, 49), (1025, 49, 17), (40, 385, 193), (33, 193, 400)];

#[test]
fn the_gradients_of_a_linear_layer_equal_their_definition_by_every_kernel() {
    for (tokens, out_features, in_features) in LEARNING {
        let (x, w) = (random((tokens, in_features), 18), random((out_features, in_features), 19));
        let d_out = random((tokens, out_features), 20);
        let (x_t, w_t, d_out_t) = (x.t().to_owned(), w.t().to_owned(), d_out.t().to_owned());
        let back = Bf16Matrix::of_transposed(w.view());
        assert_eq!(back.dim(), (in_features, out_features));
        for kernel in Kernel::available() {
            let d_x = linear_by(kernel, d_out.view(), &back);
            let d_w = weight_gradient_by(kernel, d_out.view(), x.view());
            for worst in [error(&d_x, &d_out, &w_t), error(&d_w, &d_out_t, &x_t)] {
                assert!(worst <= ALLOWED, "{kernel:?}, {tokens}x{out_features}x{in_features}: {worst:e}");
            }
        }
    }
}

/// The worst that rounding the factors may do: each keeps eight places, so a product of two is off by 2^-8 of itself, and a bit
/// for what the sum of absolute terms is rounded to.
#[test]
fn a_gradient_of_rounded_factors_is_within_a_hundredth_of_that_in_f64() {
    for (tokens, out_features, in_features) in LEARNING {
        let (x, d_out) = (random((tokens, in_features), 21), random((tokens, out_features), 22));
        let found = weight_gradient_by(Kernel::best(), d_out.view(), x.view());
        for ((row, col), found) in found.indexed_iter() {
            let terms = d_out.column(row).into_iter().zip(x.column(col));
            let terms = terms.map(|(&a, &b)| f64::from(a) * f64::from(b));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            assert!((f64::from(*found) - sum).abs() <= 1e-2 * size, "{found}, not {sum}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_twin_for_avx2_gives_the_plain_kernels_bits_of_a_weights_gradient() {
    if !Kernel::available().any(|kernel| kernel == Kernel::Avx2) {
        return skipped("no AVX2 here");
    }
    for (tokens, out_features, in_features) in LEARNING {
        let (x, d_out) = (random((tokens, in_features), 23), random((tokens, out_features), 24));
        let by = |kernel| bits(&weight_gradient_by(kernel, d_out.view(), x.view()));
        assert_eq!(by(Kernel::Avx2), by(Kernel::Plain), "{tokens}x{out_features}x{in_features}");
    }
}

#[test]
fn the_gradient_of_a_weight_that_reads_its_own_gradient_is_a_gram_matrix() {
    let x = random((1030, 250), 25);
    let columns = Bf16Columns::from_f32(x.view());
    let (mut gram, mut d_w) = (Array2::zeros((250, 250)), Array2::zeros((250, 250)));
    bf16_gram_add(x.view(), &mut gram);
    bf16_weight_backward(&columns, &columns, d_w.view_mut());
    assert_eq!(bits(&gram), bits(&d_w));
}

#[test]
fn activations_packed_once_multiply_as_those_packed_each_time() {
    let (x, w) = (random((21, 300), 26), random((55, 300), 27));
    let (rows, w) = (Bf16Rows::from_f32(x.view()), Bf16Matrix::from_f32(w.view()));
    let mut out = Array2::from_elem((21, 55), f32::NAN);
    rows.linear_into(&w, out.view_mut());
    assert_eq!(bits(&out), bits(&bf16_linear(x.view(), &w)));
    rows.linear_add(&w, out.view_mut());
    assert_eq!(bits(&out), bits(&(bf16_linear(x.view(), &w) * 2.0)));
}

#[test]
fn threads_never_change_a_bit_of_a_weights_gradient() {
    let (x, d_out) = (random((1500, 500), 28), random((1500, 400), 29));
    in_pools(|| bits(&weight_gradient_by(Kernel::best(), d_out.view(), x.view())));
}

#[test]
fn sums_of_squares_are_the_diagonal_of_the_gram_matrix() {
    for (tokens, features) in [(0, 3), (1, 1), (5, 3), (700, 64), (2500, 250), (1025, 49)] {
        let x = random((tokens, features), 18);
        let mut sums = Array1::zeros(features);
        bf16_squares_add(x.view(), &mut sums);
        for kernel in Kernel::available() {
            let gram = gram_by(kernel, x.view());
            for (sum, square) in sums.iter().zip(gram.diag()) {
                let equal = if kernel.adds_pair_by_pair() {
                    sum.to_bits() == square.to_bits()
                } else {
                    (sum - square).abs() <= 1e-5 * square
                };
                assert!(equal, "{sum} and {square}, {kernel:?}, {tokens}x{features}");
            }
        }
    }
}

#[test]
fn rows_packed_once_give_the_bits_of_rows_packed_for_one_product() {
    for (m, n, k) in SHAPES {
        let (x, w) = (random((m, k), 19), Bf16Matrix::from_f32(random((n, k), 20).view()));
        let rows = Bf16Rows::from_f32(x.view());
        let mut out = Array2::from_elem((m, n), f32::NAN);
        rows.linear_into(&w, out.view_mut());
        assert_eq!(bits(&out), bits(&bf16_linear(x.view(), &w)), "{m}x{n}x{k}");
        let mut added = out.clone();
        rows.linear_add(&w, out.view_mut());
        bf16_linear_add(x.view(), &w, added.view_mut());
        assert_eq!(bits(&out), bits(&added), "{m}x{n}x{k}");
    }
}

#[test]
fn gram_matrices_of_parts_add_up() {
    let x = random((2048, 100), 17);
    let (mut whole, mut parts) = (Array2::zeros((100, 100)), Array2::zeros((100, 100)));
    bf16_gram_add(x.view(), &mut whole);
    bf16_gram_add(x.slice(s![..1024, ..]), &mut parts);
    bf16_gram_add(x.slice(s![1024.., ..]), &mut parts);
    assert_eq!(bits(&whole), bits(&parts));
}

#[test]
#[should_panic(expected = "in_features")]
fn shapes_that_do_not_fit_are_refused() {
    bf16_linear(Array2::zeros((2, 3)).view(), &Bf16Matrix::from_f32(Array2::zeros((4, 2)).view()));
}
