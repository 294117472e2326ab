use attar_tensor::{Precision, bf16_gram_add, bf16_squares_add, gram_add, squares_add};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

/// What a solver knows of the inputs of a weight: sums over the tokens that passed.
///
/// Weights that read the same activation (q, k and v; gate and up) share one.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// The sums.
    pub sums: Sums,
    /// Tokens summed.
    pub tokens: u64,
}

/// How much of the inputs a solver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// How large each of them is.
    Squares,
    /// How they go together too: costs a product of all tokens with themselves.
    Gram,
}

/// Sums over tokens x.
#[derive(Debug, Clone, PartialEq)]
pub enum Sums {
    /// The diagonal of the Gram matrix alone: `sum x_i^2`, `[in_features]`.
    Squares(Array1<f32>),
    /// `sum x x^T`, `[in_features, in_features]`, symmetric.
    Gram(Array2<f32>),
}

impl Sums {
    /// `sum x_i^2`, `[in_features]`.
    #[must_use]
    pub fn squares(&self) -> ArrayView1<'_, f32> {
        match self {
            Self::Squares(squares) => squares.view(),
            Self::Gram(gram) => gram.diag(),
        }
    }
}

impl Statistics {
    /// Of no tokens yet, to become a Gram matrix.
    #[must_use]
    pub fn new(in_features: usize) -> Self {
        Self::with(Detail::Gram, in_features)
    }

    /// Of no tokens yet.
    #[must_use]
    pub fn with(detail: Detail, in_features: usize) -> Self {
        let sums = match detail {
            Detail::Squares => Sums::Squares(Array1::zeros(in_features)),
            Detail::Gram => Sums::Gram(Array2::zeros((in_features, in_features))),
        };
        Self { sums, tokens: 0 }
    }

    /// The Gram matrix, `[in_features, in_features]`, if more was summed than its diagonal.
    #[must_use]
    pub fn gram(&self) -> Option<&Array2<f32>> {
        match &self.sums {
            Sums::Squares(_) => None,
            Sums::Gram(gram) => Some(gram),
        }
    }

    /// Adds the tokens of `x`, `[tokens, in_features]`.
    ///
    /// # Panics
    /// Where `x` has another number of features.
    pub fn observe(&mut self, x: ArrayView2<'_, f32>) {
        self.observe_in(x, Precision::F32);
    }

    /// Adds the tokens of `x`, `[tokens, in_features]`, multiplied in `precision`; sums are f32.
    ///
    /// # Panics
    /// Where `x` has another number of features.
    pub fn observe_in(&mut self, x: ArrayView2<'_, f32>, precision: Precision) {
        assert_eq!(x.ncols(), self.in_features(), "activations and statistics must have the same features");
        match (&mut self.sums, precision) {
            (Sums::Squares(squares), Precision::F32) => squares_add(x, squares),
            (Sums::Squares(squares), Precision::Bf16) => bf16_squares_add(x, squares),
            (Sums::Gram(gram), Precision::F32) => gram_add(x, gram),
            (Sums::Gram(gram), Precision::Bf16) => bf16_gram_add(x, gram),
        }
        self.tokens += x.nrows() as u64;
    }

    /// Adds what another pass over other tokens saw. Sums of f32 depend on their order in the last bits: merging
    /// passes in one fixed order gives the same bits whoever made them.
    ///
    /// # Panics
    /// Where `other` has another number of features, or sums of another kind.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(other.in_features(), self.in_features(), "both statistics must have the same features");
        match (&mut self.sums, &other.sums) {
            (Sums::Squares(to), Sums::Squares(from)) => *to += from,
            (Sums::Gram(to), Sums::Gram(from)) => *to += from,
            _ => panic!("squares and a Gram matrix have no sum"),
        }
        self.tokens += other.tokens;
    }

    /// Multiplies all sums, as if each token counted for so much.
    pub fn scale(&mut self, by: f32) {
        match &mut self.sums {
            Sums::Squares(squares) => *squares *= by,
            Sums::Gram(gram) => *gram *= by,
        }
    }

    /// The mean square of each input: llama.cpp's importance matrix. All zero where no token was seen.
    #[must_use]
    pub fn importance(&self) -> Vec<f32> {
        let tokens = self.tokens.max(1) as f32;
        self.sums.squares().iter().map(|sum| sum / tokens).collect()
    }

    /// Features of the inputs.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.sums.squares().len()
    }

    /// Tokens per column: below some ten, what the off-diagonals say is mostly noise.
    #[must_use]
    pub fn tokens_per_column(&self) -> f64 {
        self.tokens as f64 / self.in_features().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, s};
    use proptest::prelude::*;

    /// Small integers: every sum is exact, so the order cannot matter.
    fn activations(tokens: usize, features: usize, seed: u64) -> Array2<f32> {
        let mut state = seed | 1;
        Array2::from_shape_simple_fn((tokens, features), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % 17) as f32 - 8.0
        })
    }

    proptest! {
        #[test]
        fn statistics_merged_equal_statistics_of_one_pass(
            tokens in 1usize..200, features in 1usize..40, cut in 0.0f64..1.0, seed: u64,
        ) {
            let x = activations(tokens, features, seed);
            let cut = (cut * tokens as f64) as usize;
            let mut whole = Statistics::new(features);
            whole.observe(x.view());
            let mut first = Statistics::new(features);
            first.observe(x.slice(s![..cut, ..]));
            let mut second = Statistics::new(features);
            second.observe(x.slice(s![cut.., ..]));
            first.merge(&second);
            prop_assert_eq!(first, whole);
        }
    }

    /// With real numbers too, as long as each part is one observation of the pass.
    #[test]
    fn merging_in_the_order_of_observation_gives_the_same_bits() {
        let x = activations(300, 24, 5).mapv(|v| (v * 0.37).sin());
        let mut whole = Statistics::new(24);
        let mut merged = Statistics::new(24);
        for part in [s![..100, ..], s![100..117, ..], s![117.., ..]] {
            whole.observe(x.slice(part));
            let mut alone = Statistics::new(24);
            alone.observe(x.slice(part));
            merged.merge(&alone);
        }
        assert_eq!(merged, whole);
    }

    #[test]
    fn in_bf16_the_statistics_are_those_of_rounded_activations() {
        let x = activations(300, 24, 6); // small integers: bf16 holds them, and every sum is exact
        let (mut exact, mut rounded) = (Statistics::new(24), Statistics::new(24));
        exact.observe(x.view());
        rounded.observe_in(x.view(), Precision::Bf16);
        assert_eq!(rounded, exact);
        rounded.observe_in(x.mapv(|x| x * 1.0001).view(), Precision::Bf16);
        exact.observe(x.view());
        assert_eq!(rounded, exact);
    }

    #[test]
    fn squares_alone_are_the_diagonal_of_the_gram_matrix_and_merge_like_it() {
        let x = activations(300, 24, 7);
        for precision in [Precision::F32, Precision::Bf16] {
            let of = |detail, x: ArrayView2<'_, f32>| {
                let mut statistics = Statistics::with(detail, 24);
                statistics.observe_in(x, precision);
                statistics
            };
            let mut merged = of(Detail::Squares, x.slice(s![..111, ..]));
            merged.merge(&of(Detail::Squares, x.slice(s![111.., ..])));
            let whole = of(Detail::Gram, x.view());
            assert_eq!(merged.sums.squares(), whole.sums.squares());
            assert_eq!(merged.importance(), whole.importance());
            assert!(merged.gram().is_none() && whole.gram().is_some());
        }
    }

    #[test]
    fn importance_is_the_mean_square_of_each_input() {
        let mut statistics = Statistics::new(2);
        statistics.observe(ndarray::array![[1.0, -2.0], [3.0, 0.0]].view());
        assert_eq!(statistics.importance(), [5.0, 2.0]);
        assert_eq!(Statistics::new(1).importance(), [0.0]);
    }
}
