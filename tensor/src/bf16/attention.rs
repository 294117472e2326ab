//! Causal attention with queries, keys, values and probabilities rounded to bf16.

use super::kernel::{BLOCK, Kernel, LANES, Left, NO_SUMS};
use super::pack::{Line, PANEL, Panels, Strips, chunks, pack_whole};
use super::product::{Held, contiguous, put};
use crate::exp::exp;
use crate::lanes::{dispatch, max, sum};
use crate::op::Attention;
use crate::op::soft_cap::cap_each;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use std::ops::Range;

/// [`attention`](crate::op::attention) with every factor of a product rounded to bf16; scores, exponentials and sums are f32.
///
/// Parallel over windows and key heads; a thread holds the keys and values of one and the scores of a block of queries.
///
/// # Panics
/// If the shapes do not fit.
pub fn bf16_attention(
    shape: Attention,
    q: ArrayView2<'_, f32>,
    k: ArrayView2<'_, f32>,
    v: ArrayView2<'_, f32>,
) -> Array2<f32> {
    with(Kernel::best(), shape, [q, k, v])
}

/// It by a kernel of choice.
pub(super) fn with(kernel: Kernel, shape: Attention, [q, k, v]: [ArrayView2<'_, f32>; 3]) -> Array2<f32> {
    shape.assert_fits([q, k, v]);
    let Attention { heads, kv_heads, head_dim, ctx, .. } = shape;
    let group = heads / kv_heads * head_dim;
    let mut out = Array2::zeros(q.dim());
    let mut tasks = Vec::new();
    for (window, mut rest) in out.axis_chunks_iter_mut(Axis(0), ctx).enumerate() {
        for kv in 0..kv_heads {
            let (out, further) = rest.split_at(Axis(1), group);
            tasks.push((window * ctx..(window + 1) * ctx, kv, out));
            rest = further;
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each_init(Room::default, |room, (rows, kv, out)| {
        let q = q.slice(s![rows.clone(), kv * group..(kv + 1) * group]);
        let k = k.slice(s![rows.clone(), kv * head_dim..(kv + 1) * head_dim]);
        let v = v.slice(s![rows, kv * head_dim..(kv + 1) * head_dim]);
        attend(kernel, shape, [q, k, v], room, out);
    });
    out
}

/// What a thread works in.
#[derive(Default)]
struct Room {
    scores: Vec<f32>,         // [block, keys], keys a multiple of what a line holds
    probabilities: Vec<Line>, // [block, keys], not yet divided by their sum
}

/// The queries that share one key head of one window: q and out are `[ctx, heads / kv_heads * head_dim]`, k and v
/// `[ctx, head_dim]`.
fn attend(
    kernel: Kernel,
    shape: Attention,
    [q, k, v]: [ArrayView2<'_, f32>; 3],
    room: &mut Room,
    mut out: ArrayViewMut2<'_, f32>,
) {
    let head_dim = shape.head_dim;
    let (keys, values) = (Panels::of_rows(k), Panels::of_columns(v));
    let mut rows = contiguous(&mut out);
    for (head, q) in q.axis_chunks_iter(Axis(1), head_dim).enumerate() {
        let queries = Strips::of(q);
        for (strip, rows) in rows.chunks_mut(BLOCK).enumerate() {
            let (top, bottom) = (strip * BLOCK, strip * BLOCK + rows.len());
            let seen = shape.first_seen(top) / PANEL * PANEL..bottom;
            let row_len = seen.len().next_multiple_of(PANEL).next_multiple_of(2 * LANES);
            room.scores.resize(BLOCK * row_len, 0.0);
            let mut scores: Vec<&mut [f32]> = room.scores.chunks_exact_mut(row_len).collect();
            score(kernel, &queries, strip, &keys, seen.clone(), &mut scores[..rows.len()]);
            let row_lines = row_len / (2 * LANES);
            room.probabilities.resize(BLOCK * row_lines, Line([0; LANES]));
            let mut scales = [0.0; BLOCK];
            let lines = room.probabilities.chunks_exact_mut(row_lines);
            for (((query, scores), lines), scale) in
                (top..bottom).zip(&mut scores).zip(lines).zip(&mut scales)
            {
                let own = shape.first_seen(query) - seen.start..query + 1 - seen.start;
                *scale = 1.0 / weigh(scores, own, shape);
                pack_whole(scores, lines);
            }
            let columns = head * head_dim..(head + 1) * head_dim;
            mix(kernel, &room.probabilities, &values, seen, rows, columns.clone());
            for (row, scale) in rows.iter_mut().zip(scales) {
                for x in &mut row[columns.clone()] {
                    *x *= scale;
                }
            }
        }
    }
}

/// Products of a block of queries with the keys in `seen`, which starts with a panel, and some after them.
pub(super) fn score(
    kernel: Kernel,
    queries: &Strips,
    strip: usize,
    keys: &Panels,
    seen: Range<usize>,
    scores: &mut [&mut [f32]],
) {
    let mut sums = NO_SUMS;
    let mut held = Held::Replaced;
    for (from, to) in chunks(keys.depth()) {
        let left = queries.chunk(strip, from, to);
        for key in seen.clone().step_by(PANEL) {
            let (right, vectors) = keys.panel(key / PANEL, from..to);
            kernel.block(left, scores.len(), right, vectors, &mut sums);
            put(&sums, scores, key - seen.start..key - seen.start + PANEL, held);
        }
        held = Held::AddedTo;
    }
}

/// `e^(x - largest)` of the scaled and capped scores in `own`, 0 elsewhere; returns their sum.
fn weigh(scores: &mut [f32], own: Range<usize>, shape: Attention) -> f32 {
    scores[..own.start].fill(0.0);
    scores[own.end..].fill(0.0);
    let own = &mut scores[own];
    dispatch(
        #[inline(always)]
        || {
            for x in own.iter_mut() {
                *x *= shape.scale;
            }
            if let Some(cap) = shape.soft_cap {
                cap_each(own, cap);
            }
            let largest = max(own);
            for x in own.iter_mut() {
                *x = exp(*x - largest);
            }
            sum(own, |x| x)
        },
    )
}

/// Sums of the values in `seen`, weighted by the probabilities of each row.
pub(super) fn mix(
    kernel: Kernel,
    probabilities: &[Line],
    values: &Panels,
    seen: Range<usize>,
    rows: &mut [&mut [f32]],
    columns: Range<usize>,
) {
    let row_step = probabilities.len() / BLOCK * LANES;
    let mut sums = NO_SUMS;
    let mut held = Held::Replaced;
    for (from, to) in chunks(seen.len()) {
        let left = Left { lines: probabilities, first: from, row_step, pair_step: 1 };
        for column in columns.clone().step_by(PANEL) {
            let pairs = seen.start / 2 + from..seen.start / 2 + to;
            let (right, vectors) = values.panel((column - columns.start) / PANEL, pairs);
            kernel.block(left, rows.len(), right, vectors, &mut sums);
            put(&sums, rows, column..columns.end.min(column + PANEL), held);
        }
        held = Held::AddedTo;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::round::{even, to_bf16};
    use crate::op::attention::tests::{SHAPES, by_definition, inputs};
    use crate::testing::{bits, in_pools};

    /// Windows longer than a chunk, heads wider than a panel.
    fn shapes() -> impl Iterator<Item = Attention> {
        let long = Attention { ctx: 1100, head_dim: 64, ..SHAPES[2] };
        SHAPES.into_iter().chain([long, Attention { sliding_window: Some(60), ..long }])
    }

    /// What is left to lose once q, k and v are rounded: half a unit in the last of eight places of every probability.
    #[test]
    fn attention_equals_its_definition_by_every_kernel() {
        for shape in shapes() {
            let rounded = inputs(shape, 2).map(|x| x.mapv(|x| even(to_bf16(x))));
            let [q, k, v] = &rounded;
            let truth = by_definition(shape, q, k, v);
            for kernel in Kernel::available() {
                let found = with(kernel, shape, [q.view(), k.view(), v.view()]);
                let worst =
                    found.iter().zip(&truth).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max);
                assert!(worst < 4e-3, "{worst:e} by {kernel:?} in {shape:?}");
            }
        }
    }

    #[test]
    fn a_window_does_not_depend_on_the_windows_beside_it() {
        for shape in shapes() {
            let [q, k, v] = inputs(shape, 3);
            let together = bf16_attention(shape, q.view(), k.view(), v.view());
            let rows = s![shape.ctx..2 * shape.ctx, ..];
            let alone = bf16_attention(shape, q.slice(rows), k.slice(rows), v.slice(rows));
            assert_eq!(bits(&alone), bits(&together.slice(rows).to_owned()));
        }
    }

    #[test]
    fn a_token_does_not_depend_on_the_tokens_after_it() {
        for shape in shapes().filter(|shape| shape.ctx > 10) {
            let [q, mut k, mut v] = inputs(shape, 1);
            let before = bf16_attention(shape, q.view(), k.view(), v.view());
            let after = shape.ctx / 2 + 1;
            k.slice_mut(s![after.., ..]).fill(0.5);
            v.slice_mut(s![after.., ..]).fill(-7.0);
            let changed = bf16_attention(shape, q.view(), k.view(), v.view());
            let kept = s![..after, ..];
            assert_eq!(bits(&before.slice(kept).to_owned()), bits(&changed.slice(kept).to_owned()));
            assert_ne!(bits(&before), bits(&changed));
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_attention() {
        for shape in shapes() {
            let [q, k, v] = inputs(shape, 2);
            in_pools(|| bits(&bf16_attention(shape, q.view(), k.view(), v.view())));
        }
    }
}
