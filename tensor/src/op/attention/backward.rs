//! Attention's backward pass: what was not kept of the forward pass is computed once more, a tile at a time.

use super::{Attention, Tile, softmax_rows, split_heads};
use crate::lanes::{dispatch, sum_of_products};
use crate::product::product_here;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

/// Queries that share products: fewer than going forward, for two tiles must stay in cache, and more of what no query sees is
/// spared.
const QUERIES: usize = 64;

/// Backward of [`attention`](super::attention): the gradients of q, k and v, from theirs and `d_out`, shaped as q.
///
/// Parallel over windows and key heads; the query heads that share one add to its gradients in their order. A thread holds scores
/// of at most `[64, ctx]`, two or, where they are capped, three times.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention_backward(
    shape: Attention,
    [q, k, v]: [ArrayView2<'_, f32>; 3],
    d_out: ArrayView2<'_, f32>,
) -> [Array2<f32>; 3] {
    let Attention { heads, kv_heads, head_dim, ctx, .. } = shape;
    shape.assert_fits([q, k, v]);
    assert_eq!(q.dim(), d_out.dim(), "the gradient of attention's output");
    let shared = heads / kv_heads * head_dim; // features of the queries that share a key
    let mut gradients = [q.dim(), k.dim(), v.dim()].map(Array2::<f32>::zeros);
    let [d_q, d_k, d_v] = &mut gradients;
    let windows = d_q.axis_chunks_iter_mut(Axis(0), ctx).zip(d_k.axis_chunks_iter_mut(Axis(0), ctx));
    let windows = windows.zip(d_v.axis_chunks_iter_mut(Axis(0), ctx)).enumerate();
    let tasks: Vec<_> = windows
        .flat_map(|(window, ((d_q, d_k), d_v))| {
            let keys = split_heads(d_k, head_dim).into_iter().zip(split_heads(d_v, head_dim));
            let heads = split_heads(d_q, shared).into_iter().zip(keys).enumerate();
            heads.map(move |(kv, (d_q, (d_k, d_v)))| (window, kv, [d_q, d_k, d_v]))
        })
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each_init(
        || Room::new(shape),
        |room, (window, kv, gradients)| {
            let rows = window * ctx..(window + 1) * ctx;
            let read = [(q, shared), (k, head_dim), (v, head_dim), (d_out, shared)];
            let read =
                read.map(|(x, features)| x.slice_move(s![rows.clone(), kv * features..(kv + 1) * features]));
            attend_backward(shape, read, room, gradients);
        },
    );
    gradients
}

/// What a thread works in, `[64, ctx]` each.
struct Room {
    probabilities: Array2<f32>,
    slopes: Array2<f32>,
    bends: Option<Array2<f32>>, // the slopes of the cap, where there is one
}

impl Room {
    fn new(shape: Attention) -> Self {
        let tile = || Array2::zeros((QUERIES.min(shape.ctx), shape.ctx));
        Self { probabilities: tile(), slopes: tile(), bends: shape.soft_cap.map(|_| tile()) }
    }
}

/// One key head of one window with the query heads that share it: q, `d_out` and `d_q` `[ctx, shared * head_dim]`, the others
/// `[ctx, head_dim]`. The gradients come as zeros.
fn attend_backward(
    shape: Attention,
    [q, k, v, d_out]: [ArrayView2<'_, f32>; 4],
    room: &mut Room,
    [mut d_q, mut d_k, mut d_v]: [ArrayViewMut2<'_, f32>; 3],
) {
    let Attention { head_dim, ctx, scale, .. } = shape;
    let heads = 0..q.ncols() / head_dim;
    for (head, top) in heads.flat_map(|head| (0..ctx).step_by(QUERIES).map(move |top| (head, top))) {
        let tile = Tile::new(shape, top, QUERIES);
        let (queries, keys) =
            (s![tile.queries(), head * head_dim..(head + 1) * head_dim], s![tile.keys(), ..]);
        let (q, d_out, k, v) = (q.slice(queries), d_out.slice(queries), k.slice(keys), v.slice(keys));
        let (mut d_k, mut d_v) = (d_k.slice_mut(keys), d_v.slice_mut(keys));
        let in_tile = s![..q.nrows(), ..k.nrows()];
        let mut p = room.probabilities.slice_mut(in_tile);
        let mut bends = room.bends.as_mut().map(|bends| bends.slice_mut(in_tile));
        product_here(scale, q, k.reversed_axes(), 0.0, p.view_mut());
        softmax_rows(shape, tile, p.view_mut(), bends.as_mut().map(|bends| bends.view_mut()));
        let mut d_s = room.slopes.slice_mut(in_tile);
        product_here(1.0, d_out, v.reversed_axes(), 0.0, d_s.view_mut());
        for (row, (p, mut d_s)) in p.outer_iter().zip(d_s.outer_iter_mut()).enumerate() {
            let seen = tile.seen(shape, row);
            if let (Some(p), Some(d_s)) = (p.as_slice(), d_s.as_slice_mut()) {
                d_s[..seen.start].fill(0.0);
                d_s[seen.end..].fill(0.0);
                softmax_backward(&p[seen.clone()], &mut d_s[seen]);
            }
        }
        if let Some(bends) = bends {
            d_s *= &bends;
        }
        product_here(1.0, p.view().reversed_axes(), d_out, 1.0, d_v.view_mut());
        product_here(scale, d_s.view(), k, 0.0, d_q.slice_mut(queries));
        product_here(scale, d_s.view().reversed_axes(), q, 1.0, d_k.view_mut());
    }
}

/// From probabilities p and the gradient of each, the gradient of the scores: `p (d_p - sum(p d_p))`, in place of `d_p`.
fn softmax_backward(p: &[f32], d_p: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || {
            let mean = sum_of_products(p, d_p);
            for (d_p, p) in d_p.iter_mut().zip(p) {
                *d_p = p * (*d_p - mean);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::attention::tests::{SHAPES, in_f64, inputs, shape};
    use crate::testing::{assert_gradients, bits, in_pools, random};

    #[test]
    fn the_gradient_of_attention_equals_finite_differences() {
        let shapes = [
            shape(4, 2, 6, 20),
            Attention { sliding_window: Some(4), ..shape(3, 1, 5, 9) },
            shape(3, 3, 5, 1),
            shape(2, 1, 2, 140),
            Attention { sliding_window: Some(11), ..shape(1, 1, 4, 150) },
            Attention { sliding_window: Some(9), soft_cap: Some(0.8), scale: 0.9, ..shape(4, 2, 4, 70) },
        ];
        for shape in shapes {
            let windows = if shape.ctx > 100 { 1 } else { 2 };
            let [q, k, v] = inputs(shape, windows);
            let d_out = random(q.dim(), 4);
            let found = attention_backward(shape, [q.view(), k.view(), v.view()], d_out.view());
            let found = found.each_ref();
            assert_gradients(&[&q, &k, &v], &found, &d_out, |x| in_f64(shape, [&x[0], &x[1], &x[2]]));
        }
    }

    #[test]
    fn a_windows_gradient_does_not_depend_on_the_windows_beside_it() {
        for shape in SHAPES {
            let [q, k, v] = inputs(shape, 3);
            let d_out = random(q.dim(), 4);
            let together = attention_backward(shape, [q.view(), k.view(), v.view()], d_out.view());
            let rows = s![shape.ctx..2 * shape.ctx, ..];
            let alone = attention_backward(shape, [&q, &k, &v].map(|x| x.slice(rows)), d_out.slice(rows));
            for (alone, together) in alone.iter().zip(&together) {
                assert_eq!(bits(alone), bits(&together.slice(rows).to_owned()));
            }
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_attentions_gradient() {
        for shape in SHAPES {
            let [q, k, v] = inputs(shape, 2);
            let d_out = random(q.dim(), 4);
            in_pools(|| {
                attention_backward(shape, [q.view(), k.view(), v.view()], d_out.view()).map(|x| bits(&x))
            });
        }
    }
}
