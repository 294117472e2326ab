//! What holds for every encoding and every solver, on seeds rather than on chosen numbers.
#![expect(clippy::unwrap_used, reason = "a refusal where none is due fails its test")]

use attar_quant::{
    Detail, ENCODINGS, Error, Factor, Fit, Gptq, GridEncoding, Holds, IntEncoding, Named, Rtn, SOLVERS,
    ScaleDtype, ScaledEncoding, Settings, Solution, Solver, Statistics, Sums, Transposed, Words, encoding,
    encoding_of,
};
use ndarray::{Array1, Array2, Axis, array, s};
use proptest::prelude::*;

/// Every listed encoding, grouped integers of all widths, and all numbers with scales.
fn all_encodings() -> Vec<Named> {
    let integers = (2..=8).flat_map(|bits| {
        [
            IntEncoding::symmetric(bits, 32),
            IntEncoding::asymmetric(bits, 64).with_scale(ScaleDtype::Bf16),
            IntEncoding::asymmetric(bits, 128).with_scale(ScaleDtype::F32),
        ]
    });
    let transposed = [
        Transposed::new(IntEncoding::symmetric(3, 32), Words::GptqV1),
        Transposed::new(IntEncoding::asymmetric(8, 64), Words::GptqV2),
        Transposed::new(IntEncoding::asymmetric(4, 128), Words::AwqGemm),
    ];
    let scaled = [ScaleDtype::F16, ScaleDtype::Bf16].into_iter().flat_map(ScaledEncoding::all);
    let listed = ENCODINGS.iter().map(|&listed| Named::Listed(listed));
    let folders = integers.map(Named::from).chain(transposed.map(Named::from)).chain(scaled.map(Named::from));
    listed.chain(folders).collect()
}

/// Bytes whose columns belong to groups that are there: in the order of their places.
fn with_groups(encoding: &Named, bytes: Vec<u8>, [rows, cols]: [usize; 2]) -> Vec<u8> {
    let Named::Folder(folder) = encoding else { return bytes };
    let plain = folder.quantize(Array2::zeros((rows, cols)).view(), None);
    let plain = folder.split(&plain, rows, cols).unwrap();
    let parts = folder.split(&bytes, rows, cols).unwrap().into_iter().zip(plain);
    parts
        .flat_map(|((part, own), (_, plain))| if part.holds == Holds::Whole { plain } else { own }.to_vec())
        .collect()
}

/// Those of them that have codes.
fn grid_encodings() -> Vec<Named> {
    all_encodings().into_iter().filter(|encoding| encoding.grid().is_some()).collect()
}

/// Those of them whose codes are free of each other: what the solvers can choose in.
fn free_encodings() -> Vec<Named> {
    let free = |encoding: &Named| encoding.grid().is_some_and(|grid| grid.codebook().is_none());
    all_encodings().into_iter().filter(free).collect()
}

/// The codes nearest to `codes` that `encoding` can store.
fn storable(encoding: &dyn GridEncoding, fit: &Fit, codes: Array2<u8>) -> Array2<u8> {
    let Some(codebook) = encoding.codebook() else { return codes };
    let x = codes.mapv(|code| fit.grid.levels.unwrap()[usize::from(code)]);
    let mut codes = codes;
    let metric = Array2::<f32>::eye(codebook.run());
    codebook.nearest(metric.as_slice().unwrap(), x.as_slice().unwrap(), codes.as_slice_mut().unwrap());
    codes
}

/// Numbers about normal, from a seed.
fn normal(shape: (usize, usize), seed: u64) -> Array2<f32> {
    let mut state = seed;
    Array2::from_shape_simple_fn(shape, || {
        let mut sum = 0.0;
        for _ in 0..6 {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            sum += ((z ^ z >> 31) >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        }
        sum * 1.414
    })
}

/// Statistics of inputs that a few directions dominate, as activations are.
fn correlated(features: usize, tokens: usize, seed: u64) -> Statistics {
    let hidden = normal((tokens, features / 4), seed);
    let mixing = normal((features / 4, features), seed + 1);
    let noise = normal((tokens, features), seed + 2);
    let gain = Array1::from_shape_fn(features, |c| 0.2 + ((c * 7919) % 31) as f32 / 8.0);
    let x =
        (attar_tensor::matmul(hidden.view(), mixing.view()) / (features as f32).sqrt() + noise * 0.2) * gain;
    let mut statistics = Statistics::new(features);
    statistics.observe(x.view());
    statistics
}

fn gram_of(statistics: &mut Statistics) -> &mut Array2<f32> {
    match &mut statistics.sums {
        Sums::Gram(gram) => gram,
        Sums::Squares(_) => panic!("no Gram matrix"),
    }
}

fn factor(statistics: &Statistics) -> Factor<'_> {
    Factor::new(statistics, Settings::default())
}

fn solve(solver: &dyn Solver, w: &Array2<f32>, factor: &Factor<'_>, encoding: &Named) -> Solution {
    solver.solve(w.view(), Some(factor), encoding.grid().unwrap()).unwrap()
}

fn bits(a: &Array2<f32>) -> Vec<u32> {
    a.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_listed_encoding_is_the_ggml_type_of_its_name_and_takes_its_bytes() {
    for listed in ENCODINGS {
        let ggml = listed.ggml_type().unwrap();
        assert_eq!((ggml.name(), ggml.block_len()), (&*listed.name(), listed.block_len()));
        assert_eq!(
            ggml.block_bytes() * 3 * 2,
            listed.bytes_for(3, 2 * ggml.block_len()),
            "{}",
            listed.name()
        );
        assert_eq!(encoding_of(ggml).map(attar_quant::Encoding::name), Some(listed.name()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn packing_any_codes_and_unpacking_them_is_identity(seed: u64, rows in 1usize..5) {
        for encoding in grid_encodings() {
            let grid_encoding = encoding.grid().unwrap();
            let w = normal((rows, 512), seed);
            let mut fit = grid_encoding.search(w.view(), None);
            let max_code = u16::from(fit.grid.max_code) + 1;
            let codes = normal((rows, 512), !seed).mapv(|x| (x.to_bits() as u16 % max_code) as u8);
            fit.codes = storable(grid_encoding, &fit, codes);
            let bytes = grid_encoding.pack(&fit.grid, fit.codes.view());
            prop_assert_eq!(bytes.len(), encoding.bytes_for(rows, 512));
            prop_assert_eq!(&grid_encoding.unpack_codes(&bytes, rows, 512).unwrap(), &fit, "{}", encoding.name());
            let decoded = encoding.unpack(&bytes, rows, 512).unwrap();
            prop_assert_eq!(bits(&decoded), bits(&fit.decoded()), "{}", encoding.name());
        }
    }

    /// Formats use every bit they take, so any bytes are some matrix and come back as they were. Of `tq1_0`, whose bytes have more
    /// cases than the weights in them, the matrix comes back.
    #[test]
    fn unpacking_any_bytes_and_packing_them_is_identity(seed: u64) {
        for encoding in grid_encodings() {
            // 32 rows: also the zero points of grouped integers then fill whole words.
            let mut bytes: Vec<u8> = normal((1, encoding.bytes_for(32, 512)), seed).iter().map(|x| x.to_bits() as u8).collect();
            if let Named::Folder(_) = encoding {
                // Some bytes of eight-bit floats, and one power of two, are no numbers.
                bytes.iter_mut().filter(|byte| **byte & 0x7f == 0x7f).for_each(|byte| *byte ^= 1);
            }
            let bytes = with_groups(&encoding, bytes, [32, 512]);
            let grid_encoding = encoding.grid().unwrap();
            let fit = grid_encoding.unpack_codes(&bytes, 32, 512).unwrap();
            let packed = grid_encoding.pack(&fit.grid, fit.codes.view());
            if encoding.name() == "tq1_0" {
                let again = grid_encoding.unpack_codes(&packed, 32, 512).unwrap();
                prop_assert!(again.codes == fit.codes && again.grid.header == fit.grid.header);
            } else {
                prop_assert!(packed == bytes, "{}", encoding.name());
            }
        }
    }

    #[test]
    fn floats_round_to_the_nearest_they_can_hold(x in prop::num::f32::NORMAL) {
        let pack = |name| encoding(name).unwrap().quantize(array![[x]].view(), None);
        prop_assert_eq!(pack("f32"), x.to_le_bytes());
        prop_assert_eq!(pack("f16"), half::f16::from_f32(x).to_le_bytes());
        prop_assert_eq!(pack("bf16"), half::bf16::from_f32(x).to_le_bytes());
    }

    /// With no correlation between inputs there is nothing to feed back.
    #[test]
    fn a_diagonal_hessian_reduces_gptq_to_round_to_nearest(seed: u64) {
        let w = normal((7, 256), seed);
        let diagonal = normal((1, 256), !seed).row(0).mapv(|x| 10.0 + x);
        let statistics = Statistics { sums: Sums::Gram(Array2::from_diag(&diagonal)), tokens: 1 << 16 };
        let factor = factor(&statistics);
        for encoding in free_encodings() {
            for sweeps in [0, 2] {
                let solution = solve(&Gptq { sweeps, refits: 0 }, &w, &factor, &encoding);
                prop_assert_eq!(&solution.codes, &solution.grid.round(w.view()), "{}", encoding.name());
            }
        }
    }

    #[test]
    fn what_a_solver_says_it_decodes_to_is_what_the_packed_bytes_decode_to(seed: u64) {
        let (w, statistics) = (normal((5, 256), seed), correlated(256, 400, seed));
        let factor = factor(&statistics);
        for encoding in grid_encodings() {
            for solver in SOLVERS {
                let solution = solve(*solver, &w, &factor, &encoding);
                let bytes = encoding.grid().unwrap().pack(&solution.grid, solution.codes.view());
                let decoded = encoding.unpack(&bytes, 5, 256).unwrap();
                prop_assert_eq!(bits(&decoded), bits(&solution.decoded), "{} into {}", solver.name(), encoding.name());
            }
        }
    }
}

/// The margin is the point: on inputs like these feedback is worth a good part of the error, in every format.
#[test]
fn feedback_beats_rounding_to_nearest_on_correlated_inputs_and_what_follows_never_loses() {
    let (w, statistics) = (normal((48, 512), 3), correlated(512, 8192, 4));
    let factor = factor(&statistics);
    for encoding in grid_encodings() {
        let [plain, swept, refitted] = [(0, 0), (3, 0), (3, 2)]
            .map(|(sweeps, refits)| solve(&Gptq { sweeps, refits }, &w, &factor, &encoding).facts);
        let name = encoding.name();
        assert_eq!(plain.fallback, None, "{name}");
        assert!(plain.relative_error < 0.7 * plain.rtn_relative_error, "{name}: {plain:?}");
        assert!(swept.relative_error < 1.001 * plain.relative_error, "{name}: {swept:?} after {plain:?}");
        assert!(
            refitted.relative_error < 1.001 * swept.relative_error,
            "{name}: {refitted:?} after {swept:?}"
        );
    }
}

#[test]
fn threads_never_change_a_bit() {
    let (w, statistics) = (normal((150, 512), 5), correlated(512, 2000, 6));
    let [one, two, three] = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let factor = factor(&statistics);
            let solve =
                |encoding| SOLVERS.iter().map(|solver| solve(*solver, &w, &factor, &encoding)).collect();
            grid_encodings().into_iter().map(solve).collect::<Vec<Vec<Solution>>>()
        })
    });
    for (encoding, runs) in grid_encodings().iter().zip(one.iter().zip(two.iter().zip(&three))) {
        let (one, (two, three)) = runs;
        for (one, other) in one.iter().chain(one).zip(two.iter().chain(three)) {
            let name = encoding.name();
            assert!(one.codes == other.codes && one.grid == other.grid && one.facts == other.facts, "{name}");
        }
    }
}

/// Nothing is known of an input that was always 0, so its weights stay what they were as nearly as the grid allows.
#[test]
fn columns_without_input_are_rounded_to_nearest_and_counted() {
    let (w, mut statistics) = (normal((9, 512), 7), correlated(512, 3000, 8));
    let dead = [3usize, 64, 65, 66, 300];
    for col in dead.into_iter().chain(96..128) {
        gram_of(&mut statistics).row_mut(col).fill(0.0);
        gram_of(&mut statistics).column_mut(col).fill(0.0);
    }
    let factor = factor(&statistics);
    for encoding in free_encodings() {
        let solution = solve(&Gptq::DEFAULT, &w, &factor, &encoding);
        let nearest = solution.grid.round(w.view());
        assert_eq!(solution.facts.dead_columns, dead.len() + 32, "{}", encoding.name());
        for col in dead.into_iter().chain(96..128) {
            assert_eq!(solution.codes.column(col), nearest.column(col), "{} column {col}", encoding.name());
        }
        let group = s![.., 96..128];
        let (kept, had) = (solution.decoded.slice(group), w.slice(group));
        let lost = (&kept - &had).mapv(|x| x * x).sum() / had.mapv(|x| x * x).sum();
        assert!(lost < 0.35, "{}: {lost} of a group without input is lost", encoding.name());
    }
}

#[test]
fn without_statistics_rtn_rounds_and_gptq_refuses() {
    let w = normal((4, 256), 9);
    let q4_k = encoding("q4_k").unwrap();
    let solution = Rtn.solve(w.view(), None, q4_k.grid().unwrap()).unwrap();
    assert_eq!(
        q4_k.grid().unwrap().pack(&solution.grid, solution.codes.view()),
        q4_k.quantize(w.view(), None)
    );
    assert!(solution.facts.relative_error > 0.0 && solution.facts.tokens_per_column.is_none());
    let refused = Gptq::DEFAULT.solve(w.view(), None, q4_k.grid().unwrap());
    assert_eq!(refused.err(), Some(Error::NoStatistics { solver: "gptq" }));
}

/// What a solver says it reads is all it reads: with the squares of the inputs alone it chooses the same codes.
#[test]
fn a_solver_that_reads_squares_chooses_the_same_codes_from_a_gram_matrix() {
    let (w, whole) = (normal((5, 256), 12), correlated(256, 900, 13));
    let squares = Statistics { sums: Sums::Squares(whole.sums.squares().to_owned()), tokens: whole.tokens };
    for solver in SOLVERS.iter().filter(|solver| solver.reads() == Detail::Squares) {
        for encoding in grid_encodings() {
            let of = |statistics| {
                solver.solve(w.view(), Some(&factor(statistics)), encoding.grid().unwrap()).unwrap()
            };
            let (lean, full) = (of(&squares), of(&whole));
            assert_eq!(lean.codes, full.codes, "{} with {}", encoding.name(), solver.name());
            assert_eq!(lean.decoded, full.decoded);
            assert!(lean.facts.relative_error > 0.0 && lean.facts.relative_error < 1.0);
        }
    }
}

#[test]
fn a_hessian_that_cannot_be_factored_is_a_recorded_fallback_to_rtn() {
    let w = normal((4, 256), 10);
    let q4_k = encoding("q4_k").unwrap();
    let mut nan = correlated(256, 500, 11);
    gram_of(&mut nan)[[7, 9]] = f32::NAN;
    let empty = Statistics::new(256);
    for (statistics, reason) in
        [(&nan, "the Gram matrix is not finite"), (&empty, "no token reached this input")]
    {
        let factor = factor(statistics);
        let solution = solve(&Gptq::DEFAULT, &w, &factor, &q4_k);
        assert_eq!(solution.codes, solve(&Rtn, &w, &factor, &q4_k).codes);
        assert_eq!(solution.facts.fallback.as_deref(), Some(reason));
        assert_eq!(solution.facts.damping, None);
    }
}

#[test]
fn what_cannot_be_solved_is_refused_with_the_numbers() {
    let q4_k = encoding("q4_k").unwrap();
    let refusal = |w: Array2<f32>, features: usize| {
        let statistics = Statistics::new(features);
        let factor = Factor::new(&statistics, Settings::default());
        Rtn.solve(w.view(), Some(&factor), q4_k.grid().unwrap()).unwrap_err()
    };
    let block = Error::BlockDoesNotDivide { in_features: 100, block_len: 256, encoding: "q4_k".into() };
    assert_eq!(refusal(normal((2, 100), 0), 100), block);
    assert_eq!(refusal(normal((2, 256), 0), 512), Error::Features { statistics: 512, in_features: 256 });
    let mut w = normal((2, 256), 0);
    (w[[1, 3]], w[[1, 9]]) = (f32::NAN, f32::INFINITY);
    assert_eq!(refusal(w, 256), Error::NotFinite { count: 2, total: 512, row: 1, col: 3 });
    assert!(matches!(q4_k.unpack(&[0; 143], 1, 256), Err(Error::Length { expected: 144, found: 143, .. })));
}

/// Against every zero point and a thousand scales per group: the search gives away next to nothing.
#[test]
fn searched_integer_scales_are_as_good_as_trying_them_all() {
    let w = normal((8, 256), 12).mapv(|x| x * (1.0 + x * x));
    let importance = normal((1, 256), 13).mapv(f32::exp).into_raw_vec_and_offset().0;
    for bits in 2..=5 {
        for integer in [IntEncoding::symmetric(bits, 64), IntEncoding::asymmetric(bits, 64)] {
            let encoding = Named::from(integer);
            let decoded = encoding.grid().unwrap().search(w.view(), Some(&importance)).decoded();
            let mut columns = (&decoded - &w)
                .axis_iter(Axis(1))
                .zip(&importance)
                .map(|(e, i)| i * e.dot(&e))
                .collect::<Vec<_>>();
            let searched: f32 = columns.drain(..).sum();
            let ratio = searched / least_loss(&w, &importance, integer);
            assert!(ratio < 1.02, "{}: {ratio}", encoding.name());
        }
    }
}

/// That is what the importance is for, also in formats whose reference does not look at it.
#[test]
fn a_search_with_the_importance_of_columns_loses_less_of_what_matters_than_one_without() {
    let w = normal((16, 512), 14).mapv(|x| x * (1.0 + x * x));
    let importance = normal((1, 512), 15).mapv(|x| (2.0 * x).exp()).into_raw_vec_and_offset().0;
    for encoding in grid_encodings() {
        let [with, without] = [Some(&*importance), None].map(|known| {
            let off = encoding.grid().unwrap().search(w.view(), known).decoded() - &w;
            off.columns().into_iter().zip(&importance).map(|(e, i)| i * e.dot(&e)).sum::<f32>()
        });
        // `q8_0` takes the largest magnitude either way; where one scale is for all, or a power of two for numbers that are floats
        // themselves, the same may be the best.
        let name = encoding.name();
        let may_be_equal = ["q8_0", "fp8-tensor", "mxfp8-g32"].contains(&&*name);
        assert!(with < without || may_be_equal && with <= without, "{name}: {with} {without}");
    }
}

/// The sum over the groups of the least weighted squared error that any scale and zero give.
fn least_loss(w: &Array2<f32>, importance: &[f32], integer: IntEncoding) -> f32 {
    let top = f32::from(u8::MAX >> (8 - integer.bits()));
    let middle = f32::midpoint(top, 1.0) as u8;
    let zeros = if integer.is_symmetric() { middle..=middle } else { 0..=top as u8 };
    let mut total = 0.0;
    for row in w.rows() {
        for (group, weights) in
            row.exact_chunks(integer.group_size()).into_iter().zip(importance.chunks(integer.group_size()))
        {
            let reach = group.fold(0.0f32, |reach, x| reach.max(x.abs()));
            let mut least = f32::INFINITY;
            for step in (-500i16..=500).filter(|&step| step != 0) {
                let scale = f32::from(step) / 500.0 * reach * 2.0 / top;
                for zero in zeros.clone().map(f32::from) {
                    let off = |x: f32| x - (x / scale).round().clamp(-zero, top - zero) * scale;
                    let loss = group.iter().zip(weights).map(|(&x, weight)| weight * off(x) * off(x)).sum();
                    least = least.min(loss);
                }
            }
            total += least;
        }
    }
    total
}

/// Factors of the scales a file stores: what the grid says is what the packed bytes decode to, as near as half precision is.
#[test]
fn rescaled_grids_decode_to_rescaled_values() {
    let w = normal((3, 512), 11);
    for encoding in grid_encodings() {
        let grid_encoding = encoding.grid().unwrap();
        let Some(unit) = grid_encoding.unit() else { continue };
        let fit = grid_encoding.search(w.view(), None);
        let factors =
            Array2::from_shape_fn((3, 512 / unit), |(row, at)| 0.9 + 0.05 * ((row + at) % 5) as f32);
        let rescaled = grid_encoding.rescaled(&fit.grid, factors.view(), factors.view());
        let bytes = grid_encoding.pack(&rescaled, fit.codes.view());
        let decoded = encoding.unpack(&bytes, 3, 512).unwrap();
        assert_eq!(bits(&decoded), bits(&rescaled.decode_all(fit.codes.view())), "{}", encoding.name());
        let before = fit.decoded();
        for ((at, &after), &before) in decoded.indexed_iter().zip(&before) {
            let want = before * factors[[at.0, at.1 / unit]];
            let near = (after - want).abs() <= 4e-3 * want.abs().max(1.0); // of numbers about as large as 1
            assert!(near, "{} at {at:?}: {after} for {want}", encoding.name());
        }
    }
}

/// Codes that a format can store, chosen at random on scales that it found, and another format that holds whatever it does.
fn held(from: &Named, to: &Named, seed: u64) {
    let (rows, cols) = (128, 256);
    let (from, to) = (from.grid().unwrap(), to.grid().unwrap());
    let found = from.search(normal((rows, cols), seed).view(), None);
    let mut state = seed;
    let codes = found.codes.mapv(|_| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        ((state >> 33) % (u64::from(found.grid.max_code) + 1)) as u8
    });
    let bytes = from.pack(&found.grid, codes.view());
    let read = from.unpack_codes(&bytes, rows, cols).unwrap();
    let there = to.holding(&read).unwrap_or_else(|error| panic!("{} in {}: {error}", from.name(), to.name()));
    let moved = to.pack(&there.grid, there.codes.view());
    let moved = to.unpack_codes(&moved, rows, cols).unwrap();
    assert_eq!(moved.decoded(), read.decoded(), "{} in {}", from.name(), to.name());
    let back = from.holding(&moved).unwrap();
    assert_eq!(from.pack(&back.grid, back.codes.view()), bytes, "{} in {} and back", from.name(), to.name());
}

/// Pairs of formats of which the second has all values of the first.
fn containers() -> Vec<[Named; 2]> {
    let listed = |name| encoding(name).unwrap();
    let int = |bits, group| IntEncoding::symmetric(bits, group);
    let asym = |bits, group| IntEncoding::asymmetric(bits, group);
    let scale = ScaleDtype::Bf16;
    vec![
        [listed("q4_0"), int(4, 32).into()],
        [listed("q4_0"), Transposed::new(int(4, 32), Words::GptqV1).into()],
        [listed("q4_0"), Transposed::new(asym(4, 32), Words::AwqGemm).into()],
        [listed("q5_0"), int(5, 32).into()],
        [listed("q8_0"), int(8, 32).into()],
        [listed("q8_0"), Transposed::new(int(8, 32), Words::GptqV1).into()],
        [Transposed::new(int(4, 128), Words::GptqV1).into(), listed("q4_0")],
        [int(4, 64).into(), listed("q4_0")],
        [int(2, 64).into(), listed("q4_0")],
        [int(3, 32).into(), listed("q4_0")],
        [int(8, 128).into(), listed("q8_0")],
        [int(4, 64).into(), Transposed::new(int(4, 64), Words::GptqV1).into()],
        [asym(3, 128).into(), Transposed::new(asym(3, 128), Words::GptqV2).into()],
        [asym(4, 128).into(), Transposed::new(asym(4, 128), Words::AwqGemm).into()],
        [ScaledEncoding::fp8_block(scale).into(), ScaledEncoding::fp8_block_inv(scale).into()],
        [ScaledEncoding::fp8(scale).into(), ScaledEncoding::fp8(ScaleDtype::F32).into()],
        [ScaledEncoding::int8(scale).into(), ScaledEncoding::int8(ScaleDtype::F32).into()],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_format_that_has_anothers_values_holds_its_codes_and_gives_them_back(seed in any::<u64>()) {
        for [from, to] in &containers() {
            held(from, to, seed);
        }
    }
}

/// Zero points of their own fit where the codes have one bit more.
#[test]
fn four_bits_with_zero_points_are_five_without() {
    let w = normal((32, 128), 3);
    for (from, to) in [(4, "q5_0"), (3, "q4_0"), (2, "q4_0")] {
        let fit = IntEncoding::asymmetric(from, 64).search(w.view(), None);
        let to = encoding(to).unwrap();
        assert_eq!(to.grid().unwrap().holding(&fit).unwrap().decoded(), fit.decoded());
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_the_reason() {
    let w = normal((128, 256), 4);
    let fit = |encoding: &dyn GridEncoding| encoding.search(w.view(), None);
    let refused =
        |to: &str, fit: &Fit| encoding(to).unwrap().grid().unwrap().holding(fit).unwrap_err().to_string();
    let q4_k = encoding("q4_k").unwrap();
    let (scales, fine) =
        (IntEncoding::symmetric(4, 16), IntEncoding::symmetric(4, 32).with_scale(ScaleDtype::F32));
    for (to, fit, reason) in [
        ("q4_0", fit(q4_k.grid().unwrap()), "minima"),
        ("q4_0", fit(&scales), "scales change"),
        ("q4_0", fit(&fine), "all their scales"),
        ("q4_0", fit(&IntEncoding::symmetric(5, 32)), "reach further"),
        ("q4_0", fit(encoding("iq4_nl").unwrap().grid().unwrap()), "levels"),
        ("q4_k", fit(&IntEncoding::symmetric(4, 32)), "made up otherwise"),
        ("nvfp4", fit(&ScaledEncoding::NVFP4), "made up otherwise"),
    ] {
        let said = refused(to, &fit);
        assert!(said.contains(reason), "{to}: {said}");
    }
}

/// The powers of two of four-bit floats are the same in a file and in a folder; of zeros one is negative in the folder only.
#[test]
fn mxfp4_moves_between_a_file_and_a_folder() {
    let file = encoding("mxfp4").unwrap();
    let fit = file.grid().unwrap().search(normal((32, 64), 5).view(), None);
    let there = ScaledEncoding::MXFP4.holding(&fit).unwrap();
    assert_eq!(there.decoded(), fit.decoded());
    assert_eq!(file.grid().unwrap().holding(&there).unwrap(), fit);
}
