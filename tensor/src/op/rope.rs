//! Rotary position embedding, in the order of Hugging Face's models: feature i of a head turns with feature
//! `i + head_dim / 2`.

use crate::lanes::dispatch;
use crate::op::task_rows;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

/// `theta^(-2i / head_dim)` for i below `head_dim / 2`: radians per position of each pair of features.
pub fn rope_frequencies(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32).collect()
}

/// The turns of every position in a window.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Array2<f32>, // [ctx, head_dim / 2]
    sin: Array2<f32>, // [ctx, head_dim / 2]
    head_dim: usize,  // more than twice the pairs where a head turns in part
}

impl Rope {
    /// Angles for positions `0..ctx`, from radians per position for each of the `head_dim / 2` pairs.
    ///
    /// An angle is an f32 product, as transformers computes it; its sine and cosine are correctly rounded.
    pub fn new(frequencies: &[f32], ctx: usize) -> Self {
        let angle = |(position, pair): (usize, usize)| f64::from(position as f32 * frequencies[pair]);
        let dim = (ctx, frequencies.len());
        Self {
            cos: Array2::from_shape_fn(dim, |at| angle(at).cos() as f32),
            sin: Array2::from_shape_fn(dim, |at| angle(at).sin() as f32),
            head_dim: 2 * frequencies.len(),
        }
    }

    /// The same turns of the first features of longer heads; the features after them stay as they are.
    ///
    /// # Panics
    /// If a head has fewer features than turn.
    #[must_use]
    pub fn within(self, head_dim: usize) -> Self {
        assert!(head_dim >= 2 * self.cos.ncols(), "heads of {head_dim} cannot turn {}", 2 * self.cos.ncols());
        Self { head_dim, ..self }
    }

    /// The same turns, which also multiply what they turn by `factor`.
    #[must_use]
    pub fn times(mut self, factor: f32) -> Self {
        self.cos *= factor;
        self.sin *= factor;
        self
    }

    /// Cosines and sines, `[ctx, pairs]` each, and the features of a head.
    pub(crate) fn tables(&self) -> (ArrayView2<'_, f32>, ArrayView2<'_, f32>, usize) {
        (self.cos.view(), self.sin.view(), self.head_dim)
    }

    /// Positions in a window.
    pub fn ctx(&self) -> usize {
        self.cos.nrows()
    }

    /// Turns every head of x `[windows * ctx, heads * head_dim]` by its row's position in its window.
    ///
    /// # Panics
    /// If x is not whole windows of whole heads, or not contiguous.
    pub fn apply(&self, x: ArrayViewMut2<'_, f32>) {
        self.turn(x, Direction::There);
    }

    /// What [`apply`](Self::apply) does to gradients: that of what came out, `[windows * ctx, heads * head_dim]`, becomes that of
    /// what went in, by turning back and multiplying by the same factor.
    ///
    /// # Panics
    /// As [`apply`](Self::apply).
    pub fn backward(&self, d: ArrayViewMut2<'_, f32>) {
        self.turn(d, Direction::Back);
    }

    fn turn(&self, mut x: ArrayViewMut2<'_, f32>, direction: Direction) {
        let (ctx, head_dim) = (self.ctx(), self.head_dim);
        let (tokens, features) = x.dim();
        assert!(tokens.is_multiple_of(ctx), "{tokens} tokens are not whole windows of {ctx}");
        assert!(features.is_multiple_of(head_dim), "{features} features are not whole heads of {head_dim}");
        assert!(x.is_standard_layout(), "heads are turned in contiguous rows");
        let rows = task_rows(features);
        x.axis_chunks_iter_mut(Axis(0), rows).into_par_iter().enumerate().for_each(|(task, mut chunk)| {
            for (row, mut x) in chunk.outer_iter_mut().enumerate() {
                let position = (task * rows + row) % ctx;
                let (cos, sin) = (self.cos.row(position), self.sin.row(position));
                if let (Some(x), Some(cos), Some(sin)) = (x.as_slice_mut(), cos.as_slice(), sin.as_slice()) {
                    turn_heads(x, head_dim, [cos, sin], direction);
                }
            }
        });
    }
}

#[derive(Clone, Copy)]
enum Direction {
    There,
    Back,
}

fn turn_heads(x: &mut [f32], head_dim: usize, [cos, sin]: [&[f32]; 2], direction: Direction) {
    dispatch(
        #[inline(always)]
        || {
            for head in x.chunks_exact_mut(head_dim) {
                let (first, second) = head[..2 * cos.len()].split_at_mut(cos.len());
                // Back is there with the two features of a pair exchanged.
                let (first, second) = match direction {
                    Direction::There => (first, second),
                    Direction::Back => (second, first),
                };
                for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::s;

    #[test]
    fn a_turn_equals_its_definition() {
        let rope = Rope::new(&rope_frequencies(10000.0, 6), 4);
        let x = random((8, 12), 1);
        let mut found = x.clone();
        rope.apply(found.view_mut());
        for ((row, column), &found) in found.indexed_iter() {
            let (head, i) = (column / 6, column % 6);
            let angle = (row % 4) as f64 * 10000f64.powf(-2.0 * (i % 3) as f64 / 6.0);
            let (a, b) = (f64::from(x[[row, head * 6 + i % 3]]), f64::from(x[[row, head * 6 + 3 + i % 3]]));
            let truth =
                if i < 3 { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() };
            assert!((f64::from(found) - truth).abs() < 1e-6, "{found} instead of {truth}");
        }
    }

    #[test]
    fn a_head_that_turns_in_part_keeps_its_other_features() {
        let rope = Rope::new(&rope_frequencies(10000.0, 4), 3).times(1.5);
        let x = random((6, 14), 1);
        let (mut part, mut whole) = (x.clone(), x.slice(s![.., 7..11]).to_owned());
        rope.apply(whole.view_mut());
        rope.within(7).apply(part.view_mut());
        assert_eq!(bits(&part.slice(s![.., 7..11]).to_owned()), bits(&whole));
        assert_eq!(part.slice(s![.., 11..]), x.slice(s![.., 11..]));
        let length = |x: &Array2<f32>, row: usize| x.row(row).dot(&x.row(row)).sqrt();
        let before = x.slice(s![.., 7..11]).to_owned();
        assert!((length(&whole, 2) - 1.5 * length(&before, 2)).abs() < 1e-6);
    }

    #[test]
    fn the_gradient_of_a_turn_equals_finite_differences() {
        // Heads of 7 features, of which 6 turn and grow.
        let rope = Rope::new(&rope_frequencies(100.0, 6), 4).within(7).times(1.5);
        let (x, d_out) = (random((8, 14), 6), random((8, 14), 7));
        let mut d_x = d_out.clone();
        rope.backward(d_x.view_mut());
        assert_gradients(&[&x], &[&d_x], &d_out, |x| {
            Array2::from_shape_fn(x[0].dim(), |(row, column)| {
                let (head, i) = (column / 7, column % 7);
                let feature = |i: usize| x[0][[row, head * 7 + i]];
                let angle = f64::from((row % 4) as f32 * 100f64.powf(-2.0 * (i % 3) as f64 / 6.0) as f32);
                let (a, b) = (feature(i % 3), feature(3 + i % 3));
                match i {
                    0..3 => 1.5 * (a * angle.cos() - b * angle.sin()),
                    3..6 => 1.5 * (b * angle.cos() + a * angle.sin()),
                    _ => feature(6),
                }
            })
        });
    }

    #[test]
    fn the_product_of_two_turned_heads_depends_on_their_distance_alone() {
        let rope = Rope::new(&rope_frequencies(10000.0, 16), 64);
        let (q, k) = (random((1, 16), 2), random((1, 16), 3));
        let turned = |x: &Array2<f32>| {
            let mut all = x.broadcast((64, 16)).map(|x| x.to_owned()).unwrap_or_default();
            rope.apply(all.view_mut());
            all
        };
        let (q, k) = (turned(&q), turned(&k));
        let dot = |i: usize, j: usize| q.row(i).dot(&k.row(j));
        for distance in 0..20 {
            assert!((dot(distance, 0) - dot(distance + 40, 40)).abs() < 1e-5);
        }
    }

    #[test]
    fn every_window_starts_at_position_zero() {
        let rope = Rope::new(&rope_frequencies(500.0, 8), 5);
        let x = random((15, 8), 4);
        let mut together = x.clone();
        rope.apply(together.view_mut());
        for window in 0..3 {
            let rows = s![window * 5..(window + 1) * 5, ..];
            let mut alone = x.slice(rows).to_owned();
            rope.apply(alone.view_mut());
            assert_eq!(bits(&alone), bits(&together.slice(rows).to_owned()));
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_a_turn() {
        let rope = Rope::new(&rope_frequencies(10000.0, 64), 128);
        in_pools(|| {
            let mut x = random((512, 256), 5);
            rope.apply(x.view_mut());
            bits(&x)
        });
    }
}
