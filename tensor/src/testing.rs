//! What the tests of this crate share: random matrices, exact comparison, pools of several sizes.

use ndarray::Array2;

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
