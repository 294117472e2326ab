//! What an embedding hands back.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};

/// Columns of an embedding that make one task.
const COLUMNS: usize = 64;

/// Adds to row `tokens[t]` of `d_embedding` `[vocab_size, hidden_size]` row t of `d_out` `[tokens, hidden_size]`, in the order of
/// the tokens.
///
/// # Panics
/// If the shapes do not fit or a token is outside the vocabulary.
pub fn embedding_backward(
    tokens: &[u32],
    d_out: ArrayView2<'_, f32>,
    mut d_embedding: ArrayViewMut2<'_, f32>,
) {
    assert_eq!(d_out.dim(), (tokens.len(), d_embedding.ncols()), "a gradient for each token");
    d_embedding.axis_chunks_iter_mut(Axis(1), COLUMNS).into_par_iter().enumerate().for_each(
        |(i, mut band)| {
            let columns = i * COLUMNS..i * COLUMNS + band.ncols();
            for (&token, d_out) in tokens.iter().zip(d_out.slice(s![.., columns]).outer_iter()) {
                let mut row = band.row_mut(token as usize);
                row += &d_out;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::Array2;

    #[test]
    fn the_gradient_of_an_embedding_equals_finite_differences() {
        let tokens = [3, 0, 3, 4, 3];
        let (embedding, d_out) = (random((6, 7), 1), random((5, 7), 2));
        let mut d_embedding = Array2::zeros(embedding.dim());
        embedding_backward(&tokens, d_out.view(), d_embedding.view_mut());
        assert_gradients(&[&embedding], &[&d_embedding], &d_out, |x| {
            x[0].select(Axis(0), &tokens.map(|token| token as usize))
        });
    }

    #[test]
    fn threads_never_change_a_bit_of_an_embeddings_gradient() {
        let tokens: Vec<u32> = (0..500).map(|i| i * i % 17).collect();
        let d_out = random((500, 150), 3);
        in_pools(|| {
            let mut d_embedding = Array2::zeros((17, 150));
            embedding_backward(&tokens, d_out.view(), d_embedding.view_mut());
            bits(&d_embedding)
        });
    }
}
