//! What the tests of this crate share: random matrices, exact comparison, pools of several sizes.

use ndarray::{Array2, Zip};

/// Reproducible values in about [-1, 1), by a 64-bit mix of seed and position.
pub fn random(dim: (usize, usize), seed: u64) -> Array2<f32> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    Array2::from_shape_simple_fn(dim, || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

/// The values as bits, so that equality means equality.
pub fn bits(x: &Array2<f32>) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Runs `f` in pools of 1, 2, 3 and 8 threads and asserts that all results are equal.
#[expect(clippy::unwrap_used)]
pub fn in_pools<T: PartialEq + Send>(f: impl Fn() -> T + Send + Sync) -> T {
    let run = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f);
    let one = run(1);
    for threads in [2, 3, 8] {
        assert!(run(threads) == one, "{threads} threads and one thread differ");
    }
    one
}

/// How many elements of each argument are moved: all of a small one, some evenly spread over a large one.
const MOVED: usize = 150;

/// Holds gradients to central differences in f64 of `sum(d_out * f(arguments))`, to 1e-5 of each argument's largest slope.
///
/// `f` is an operation's definition; `found` are the gradients of its arguments that its backward returned for `d_out`.
pub fn assert_gradients(
    arguments: &[&Array2<f32>],
    found: &[&Array2<f32>],
    d_out: &Array2<f32>,
    f: impl Fn(&[Array2<f64>]) -> Array2<f64>,
) {
    const STEP: f64 = 1e-4;
    assert_eq!(arguments.len(), found.len());
    let mut at: Vec<_> = arguments.iter().map(|x| x.mapv(f64::from)).collect();
    let d_out = d_out.mapv(f64::from);
    let value =
        |at: &[Array2<f64>]| Zip::from(&f(at)).and(&d_out).fold(0.0, |sum, out, d_out| sum + out * d_out);
    for (argument, found) in found.iter().enumerate() {
        assert_eq!(found.dim(), at[argument].dim(), "argument {argument}");
        let cols = found.ncols();
        let places = (0..found.len()).step_by(found.len().div_ceil(MOVED)).map(|i| [i / cols, i % cols]);
        let slopes: Vec<_> = places
            .map(|place| {
                let middle = at[argument][place];
                let [up, down] = [STEP, -STEP].map(|step| {
                    at[argument][place] = middle + step;
                    value(&at)
                });
                at[argument][place] = middle;
                (place, (up - down) / (2.0 * STEP))
            })
            .collect();
        let largest = slopes.iter().fold(0.0, |largest: f64, (_, slope)| largest.max(slope.abs()));
        for (place, slope) in slopes {
            let found = f64::from(found[place]);
            let apart = (found - slope).abs();
            assert!(apart <= 1e-5 * largest + 1e-9, "argument {argument} at {place:?}: {found}, not {slope}");
        }
    }
}
