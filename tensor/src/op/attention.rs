//! Causal attention with grouped key-value heads, within windows of tokens.

mod backward;

pub use backward::attention_backward;

use crate::exp::exp;
use crate::lanes::{dispatch, max, sum};
use crate::op::soft_cap::{cap_each, slope};
use crate::product::product_here;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use std::ops::Range;

/// The shape of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, each shared by `heads / kv_heads` query heads that follow one another.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Tokens of a window: attention never crosses from one to the next.
    pub ctx: usize,
    /// A token sees itself and the `sliding_window - 1` tokens before it; all before it if `None`.
    pub sliding_window: Option<usize>,
    /// What products of queries and keys are multiplied by; [`per_head_dim`](Self::per_head_dim) in most models.
    pub scale: f32,
    /// The bound on those products, `cap * tanh(x / cap)`, if there is one.
    pub soft_cap: Option<f32>,
}

impl Attention {
    /// The usual scale: `1 / sqrt(head_dim)`.
    pub fn per_head_dim(head_dim: usize) -> f32 {
        1.0 / (head_dim as f32).sqrt()
    }

    /// # Panics
    /// If q, k and v are not whole windows of this shape.
    pub(crate) fn assert_fits(self, [q, k, v]: [ArrayView2<'_, f32>; 3]) {
        let Self { heads, kv_heads, head_dim, ctx, .. } = self;
        let tokens = q.nrows();
        assert!(ctx > 0 && tokens.is_multiple_of(ctx), "{tokens} tokens are not whole windows of {ctx}");
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads cannot share {kv_heads} keys");
        assert_eq!(q.dim(), (tokens, heads * head_dim), "queries");
        assert_eq!(k.dim(), (tokens, kv_heads * head_dim), "keys");
        assert_eq!(v.dim(), (tokens, kv_heads * head_dim), "values");
    }

    /// The first token of its window that a token sees.
    pub(crate) fn first_seen(self, token: usize) -> usize {
        self.sliding_window.map_or(0, |width| (token + 1).saturating_sub(width))
    }
}

/// Queries that share one product with the keys before them.
const QUERIES: usize = 128;

/// `softmax(cap(scale q kᵀ)) v` for each head of each window, a token seeing none after it.
///
/// q is `[windows * ctx, heads * head_dim]`, k and v `[windows * ctx, kv_heads * head_dim]`; the result is shaped as q.
/// Parallel over windows and heads; a thread holds scores of at most `[128, ctx]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention(
    shape: Attention,
    q: ArrayView2<'_, f32>,
    k: ArrayView2<'_, f32>,
    v: ArrayView2<'_, f32>,
) -> Array2<f32> {
    let Attention { heads, kv_heads, head_dim, ctx, .. } = shape;
    shape.assert_fits([q, k, v]);
    let mut out = Array2::zeros(q.dim());
    let tasks: Vec<_> = out
        .axis_chunks_iter_mut(Axis(0), ctx)
        .enumerate()
        .flat_map(|(window, rows)| {
            split_heads(rows, head_dim).into_iter().enumerate().map(move |(h, out)| (window, h, out))
        })
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each_init(
        || Array2::zeros((QUERIES.min(ctx), ctx)),
        |scores, (window, head, out)| {
            let rows = window * ctx..(window + 1) * ctx;
            let kv = head / (heads / kv_heads) * head_dim;
            let q = q.slice(s![rows.clone(), head * head_dim..(head + 1) * head_dim]);
            let k = k.slice(s![rows.clone(), kv..kv + head_dim]);
            let v = v.slice(s![rows, kv..kv + head_dim]);
            attend(shape, [q, k, v], scores, out);
        },
    );
    out
}

fn split_heads(rows: ArrayViewMut2<'_, f32>, head_dim: usize) -> Vec<ArrayViewMut2<'_, f32>> {
    let mut heads = Vec::new();
    let mut rest = rows;
    while rest.ncols() > 0 {
        let (head, further) = rest.split_at(Axis(1), head_dim);
        heads.push(head);
        rest = further;
    }
    heads
}

/// One head of one window, `[ctx, head_dim]` each of q, k, v and out; scores is room to work in.
fn attend(
    shape: Attention,
    [q, k, v]: [ArrayView2<'_, f32>; 3],
    scores: &mut Array2<f32>,
    mut out: ArrayViewMut2<'_, f32>,
) {
    for top in (0..shape.ctx).step_by(QUERIES) {
        let tile = Tile::new(shape, top, QUERIES);
        let (queries, keys) = (s![tile.queries(), ..], s![tile.keys(), ..]);
        let mut scores = scores.slice_mut(s![..tile.queries().len(), ..tile.keys().len()]);
        product_here(shape.scale, q.slice(queries), k.slice(keys).reversed_axes(), 0.0, scores.view_mut());
        softmax_rows(shape, tile, scores.view_mut(), None);
        product_here(1.0, scores.view(), v.slice(keys), 0.0, out.slice_mut(queries));
    }
}

/// Some queries of a window that share products with the keys they see.
#[derive(Clone, Copy)]
struct Tile {
    left: usize,   // the first key that the first query sees
    top: usize,    // the first query
    bottom: usize, // past the last query, and past the last key
}

impl Tile {
    fn new(shape: Attention, top: usize, queries: usize) -> Self {
        Self { left: shape.first_seen(top), top, bottom: shape.ctx.min(top + queries) }
    }

    fn queries(self) -> Range<usize> {
        self.top..self.bottom
    }

    fn keys(self) -> Range<usize> {
        self.left..self.bottom
    }

    /// The columns that a row sees, both counted within the tile.
    fn seen(self, shape: Attention, row: usize) -> Range<usize> {
        let query = self.top + row;
        shape.first_seen(query) - self.left..query + 1 - self.left
    }
}

/// Scores of a tile, capped where they are, become probabilities, zero for what a query does not see. Where scores are capped
/// and `bends` is asked for, it becomes the slope of the cap at each.
fn softmax_rows(
    shape: Attention,
    tile: Tile,
    mut scores: ArrayViewMut2<'_, f32>,
    mut bends: Option<ArrayViewMut2<'_, f32>>,
) {
    for (query, mut row) in scores.outer_iter_mut().enumerate() {
        let seen = tile.seen(shape, query);
        if let Some(row) = row.as_slice_mut() {
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            if let Some(cap) = shape.soft_cap {
                cap_each(&mut row[seen.clone()], cap);
                if let Some(bends) = &mut bends {
                    bends.row_mut(query).iter_mut().zip(&*row).for_each(|(bend, &x)| *bend = slope(x, cap));
                }
            }
            softmax(&mut row[seen]);
        }
    }
}

/// `e^x / sum(e^x)` over a slice, in place.
fn softmax(row: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || {
            let largest = max(row);
            for x in row.iter_mut() {
                *x = exp(*x - largest);
            }
            let scale = 1.0 / sum(row, |x| x);
            for x in row {
                *x *= scale;
            }
        },
    );
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{bits, in_pools, random};

    /// The truth: for every token and head, a softmax over the tokens it sees, in f64.
    pub(crate) fn by_definition(
        shape: Attention,
        q: &Array2<f32>,
        k: &Array2<f32>,
        v: &Array2<f32>,
    ) -> Array2<f64> {
        let wide = [q, k, v].map(|x| x.mapv(f64::from));
        in_f64(shape, wide.each_ref())
    }

    /// [`by_definition`] of what is in f64 already.
    pub(crate) fn in_f64(shape: Attention, [q, k, v]: [&Array2<f64>; 3]) -> Array2<f64> {
        let Attention { heads, kv_heads, head_dim, ctx, sliding_window, scale, soft_cap } = shape;
        let mut out = Array2::zeros(q.raw_dim());
        for (token, head) in (0..q.nrows()).flat_map(|token| (0..heads).map(move |head| (token, head))) {
            let kv = head / (heads / kv_heads);
            let first = (token + 1).saturating_sub(sliding_window.unwrap_or(ctx)).max(token / ctx * ctx);
            let dot = |other: usize| -> f64 {
                (0..head_dim).map(|i| q[[token, head * head_dim + i]] * k[[other, kv * head_dim + i]]).sum()
            };
            let capped =
                |score: f64| soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
            let weights: Vec<f64> =
                (first..=token).map(|other| capped(dot(other) * f64::from(scale)).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..head_dim {
                let mixed = weights.iter().zip(first..).map(|(w, other)| w * v[[other, kv * head_dim + i]]);
                out[[token, head * head_dim + i]] = mixed.sum::<f64>() / total;
            }
        }
        out
    }

    pub(crate) fn inputs(shape: Attention, windows: usize) -> [Array2<f32>; 3] {
        let tokens = windows * shape.ctx;
        let kv = shape.kv_heads * shape.head_dim;
        [
            random((tokens, shape.heads * shape.head_dim), 1) * 3.0,
            random((tokens, kv), 2),
            random((tokens, kv), 3),
        ]
    }

    pub(crate) const fn shape(heads: usize, kv_heads: usize, head_dim: usize, ctx: usize) -> Attention {
        Attention { heads, kv_heads, head_dim, ctx, sliding_window: None, scale: 0.3, soft_cap: None }
    }

    pub(crate) const SHAPES: [Attention; 6] = [
        shape(4, 2, 8, 20),
        shape(3, 3, 5, 1),
        shape(2, 1, 16, 300),
        Attention { sliding_window: Some(7), ..shape(2, 2, 8, 300) },
        Attention { sliding_window: Some(131), ..shape(6, 2, 4, 150) },
        Attention { sliding_window: Some(40), soft_cap: Some(1.5), scale: 0.7, ..shape(4, 2, 8, 140) },
    ];

    #[test]
    fn attention_equals_its_definition() {
        for shape in SHAPES {
            let [q, k, v] = inputs(shape, 2);
            let found = attention(shape, q.view(), k.view(), v.view());
            for (found, truth) in found.iter().zip(by_definition(shape, &q, &k, &v)) {
                assert!((f64::from(*found) - truth).abs() < 2e-6, "{found} instead of {truth} in {shape:?}");
            }
        }
    }

    #[test]
    fn a_window_does_not_depend_on_the_windows_beside_it() {
        for shape in SHAPES {
            let [q, k, v] = inputs(shape, 3);
            let together = attention(shape, q.view(), k.view(), v.view());
            let rows = s![shape.ctx..2 * shape.ctx, ..];
            let alone = attention(shape, q.slice(rows), k.slice(rows), v.slice(rows));
            assert_eq!(bits(&alone), bits(&together.slice(rows).to_owned()));
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_attention() {
        for shape in SHAPES {
            let [q, k, v] = inputs(shape, 2);
            in_pools(|| bits(&attention(shape, q.view(), k.view(), v.view())));
        }
    }
}
