//! The backward pass of attention with every factor of a product rounded to bf16.
//!
//! A block of queries at a time, probabilities and the gradients of scores are computed once more in f32 and written down in the
//! layouts of the products that read them: those over keys give `d_q` at once, those over queries give `d_k` and `d_v` after 128.

use super::attention::{mix, score};
use super::kernel::{BLOCK, Kernel, LANES, Left, NO_SUMS, block_end};
use super::pack::{Line, PANEL, Panels, Strips, interleave, pack_whole};
use super::product::{Held, contiguous, put};
use crate::exp::exp;
use crate::lanes::{dispatch, max, sum, sum_of_products};
use crate::op::Attention;
use crate::op::soft_cap::{cap_each, slope};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use std::ops::Range;

/// Queries whose shares of `d_k` and `d_v` are added up before they are added to memory; a multiple of a block.
const QUERIES: usize = 128;

/// [`attention_backward`](crate::op::attention_backward) with every factor of a product rounded to bf16; scores, exponentials, their
/// gradients and sums are f32.
///
/// Parallel over windows and key heads; a thread holds the keys, values and one query head of one, and of 128 queries probabilities
/// and gradients of scores.
///
/// # Panics
/// If the shapes do not fit.
pub fn bf16_attention_backward(
    shape: Attention,
    qkv: [ArrayView2<'_, f32>; 3],
    d_out: ArrayView2<'_, f32>,
) -> [Array2<f32>; 3] {
    with(Kernel::best(), shape, qkv, d_out)
}

/// It by a kernel of choice.
pub(super) fn with(
    kernel: Kernel,
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
    let mut tasks = Vec::new();
    for (window, ((mut d_q, mut d_k), mut d_v)) in
        windows.zip(d_v.axis_chunks_iter_mut(Axis(0), ctx)).enumerate()
    {
        for kv in 0..kv_heads {
            let (of_q, of_k, of_v);
            (of_q, d_q) = d_q.split_at(Axis(1), shared);
            (of_k, d_k) = d_k.split_at(Axis(1), head_dim);
            (of_v, d_v) = d_v.split_at(Axis(1), head_dim);
            tasks.push((window * ctx..(window + 1) * ctx, kv, [of_q, of_k, of_v]));
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each_init(Room::default, |room, (rows, kv, gradients)| {
        let read = [(q, shared), (k, head_dim), (v, head_dim), (d_out, shared)];
        let read =
            read.map(|(x, features)| x.slice_move(s![rows.clone(), kv * features..(kv + 1) * features]));
        attend_backward(kernel, shape, read, room, gradients);
    });
    gradients
}

/// What a thread works in.
#[derive(Default)]
struct Room {
    probabilities: Vec<f32>, // [block, keys], scores before; keys a multiple of what a line holds
    slopes: Vec<f32>,        // [block, keys], gradients of probabilities, then of scores
    bends: Vec<f32>,         // [keys], the slopes of the cap, where there is one
    over_keys: Vec<Line>,    // [block, keys], slopes in pairs of keys
    over_queries: [OverQueries; 2], // probabilities, slopes
}

/// Numbers `[queries, keys]` of a tile in pairs of queries.
#[derive(Default)]
struct OverQueries {
    lines: Vec<Line>, // [queries / 2, row_lines]
    row_lines: usize,
}

/// Some queries of a window, and the keys that they see and some before them, from the first of a panel on.
#[derive(Clone)]
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
}

/// The factors of one query head, `[ctx, head_dim]` each, in the layouts of the products that read them.
struct Head {
    queries: Strips,    // terms are features
    d_out: Strips,      // terms are features
    over_q: Panels,     // terms are queries
    over_d_out: Panels, // terms are queries
}

/// The keys and values of one head, `[ctx, head_dim]` each.
struct Shared {
    keys: Panels,      // terms are features
    values: Panels,    // terms are features
    over_keys: Panels, // terms are keys
}

/// One key head of one window with the query heads that share it: q, `d_out` and `d_q` `[ctx, shared * head_dim]`, the others
/// `[ctx, head_dim]`. The gradients of k and v come as zeros.
fn attend_backward(
    kernel: Kernel,
    shape: Attention,
    [q, k, v, d_out]: [ArrayView2<'_, f32>; 4],
    room: &mut Room,
    [mut d_q, mut d_k, mut d_v]: [ArrayViewMut2<'_, f32>; 3],
) {
    let Attention { head_dim, ctx, .. } = shape;
    let shared =
        Shared { keys: Panels::of_rows(k), values: Panels::of_rows(v), over_keys: Panels::of_columns(k) };
    let [mut d_q, mut d_k, mut d_v] = [&mut d_q, &mut d_k, &mut d_v].map(contiguous);
    let heads = q.axis_chunks_iter(Axis(1), head_dim).zip(d_out.axis_chunks_iter(Axis(1), head_dim));
    for (i, (q, d_out)) in heads.enumerate() {
        let head = Head {
            queries: Strips::of(q),
            d_out: Strips::of(d_out),
            over_q: Panels::of_columns(q),
            over_d_out: Panels::of_columns(d_out),
        };
        for top in (0..ctx).step_by(QUERIES) {
            let queries = top..ctx.min(top + QUERIES);
            let tile = Tile { keys: shape.first_seen(top) / PANEL * PANEL..queries.end, queries };
            for over in &mut room.over_queries {
                over.make_room(&tile);
            }
            for top in tile.queries.clone().step_by(BLOCK) {
                let rows = top..tile.queries.end.min(top + BLOCK);
                let seen = strip(kernel, shape, &head, &shared, &tile, rows.clone(), room);
                let columns = i * head_dim..(i + 1) * head_dim;
                mix(kernel, &room.over_keys, &shared.over_keys, seen, &mut d_q[rows], columns);
            }
            let [probabilities, slopes] = &room.over_queries;
            probabilities.add_product(kernel, shape, &tile, &head.over_d_out, &mut d_v);
            slopes.add_product(kernel, shape, &tile, &head.over_q, &mut d_k);
        }
    }
}

/// Probabilities and slopes of at most a block of queries of a tile, in the room's layouts; returns the keys that those over keys are for.
fn strip(
    kernel: Kernel,
    shape: Attention,
    head: &Head,
    shared: &Shared,
    tile: &Tile,
    rows: Range<usize>,
    room: &mut Room,
) -> Range<usize> {
    let seen = shape.first_seen(rows.start) / PANEL * PANEL..rows.end;
    let row_len = seen.len().next_multiple_of(PANEL).next_multiple_of(2 * LANES);
    let row_lines = row_len / (2 * LANES);
    room.probabilities.resize(BLOCK * row_len, 0.0);
    room.slopes.resize(BLOCK * row_len, 0.0);
    room.bends.resize(row_len, 0.0);
    room.over_keys.resize(BLOCK * row_lines, Line([0; LANES]));
    let mut probabilities: Vec<&mut [f32]> = room.probabilities.chunks_exact_mut(row_len).collect();
    let mut slopes: Vec<&mut [f32]> = room.slopes.chunks_exact_mut(row_len).collect();
    let block = rows.start / BLOCK;
    score(kernel, &head.queries, block, &shared.keys, seen.clone(), &mut probabilities[..rows.len()]);
    score(kernel, &head.d_out, block, &shared.values, seen.clone(), &mut slopes[..rows.len()]);
    let each = probabilities.iter_mut().zip(&mut slopes).zip(room.over_keys.chunks_exact_mut(row_lines));
    for (query, ((p, d), lines)) in (rows.start..).zip(each) {
        let own = if query < rows.end {
            shape.first_seen(query) - seen.start..query + 1 - seen.start
        } else {
            0..0
        };
        for row in [&mut **p, &mut **d] {
            row[..own.start].fill(0.0);
            row[own.end..].fill(0.0);
        }
        softmax_backward(shape, &mut p[own.clone()], &mut d[own.clone()], &mut room.bends[own]);
        pack_whole(d, lines);
    }
    let [p, d] = &mut room.over_queries;
    p.write(&probabilities, tile, &rows, &seen);
    d.write(&slopes, tile, &rows, &seen);
    seen
}

/// Products of a query and the keys it sees become probabilities p; the gradients of those become the gradients of the products,
/// `scale bend p (d - sum(p d))`, where bend is the slope of the cap, if there is one.
fn softmax_backward(shape: Attention, p: &mut [f32], d: &mut [f32], bends: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || {
            for x in p.iter_mut() {
                *x *= shape.scale;
            }
            if let Some(cap) = shape.soft_cap {
                cap_each(p, cap);
                bends.iter_mut().zip(&*p).for_each(|(bend, &x)| *bend = slope(x, cap));
            }
            let largest = max(p);
            for x in p.iter_mut() {
                *x = exp(*x - largest);
            }
            let share = 1.0 / sum(p, |x| x);
            let mean = sum_of_products(p, d) * share;
            for (p, d) in p.iter_mut().zip(d.iter_mut()) {
                *p *= share;
                *d = *p * (*d - mean) * shape.scale;
            }
            if shape.soft_cap.is_some() {
                d.iter_mut().zip(&*bends).for_each(|(d, bend)| *d *= bend);
            }
        },
    );
}

impl OverQueries {
    /// Room for a tile; a line more than a row needs, so that rows do not meet in the same sets of a cache.
    fn make_room(&mut self, tile: &Tile) {
        self.row_lines = tile.keys.len().div_ceil(LANES) + 1;
        let len = tile.queries.len().div_ceil(2) * self.row_lines;
        self.lines.resize(len.max(self.lines.len()), Line([0; LANES]));
    }

    /// Writes the rows of some queries; numbers of keys outside of `seen` are left as they are.
    fn write(&mut self, numbers: &[&mut [f32]], tile: &Tile, rows: &Range<usize>, seen: &Range<usize>) {
        let pairs = (rows.start - tile.queries.start) / 2..(rows.end - tile.queries.start).div_ceil(2);
        let first = (seen.start - tile.keys.start) / LANES;
        let lines = self.lines.chunks_exact_mut(self.row_lines).skip(pairs.start).take(pairs.len());
        for (lines, two) in lines.zip(numbers.chunks_exact(2)) {
            let whole = seen.len().next_multiple_of(LANES);
            interleave(&two[0][..whole], &two[1][..whole], &mut lines[first..]);
        }
    }

    /// `out += self.T @ right`: right is `[ctx, head_dim]`, of which the tile's queries are read; out `[ctx, head_dim]`, of which
    /// the keys they see are written. Of a block of keys no more queries take part than see one of them.
    fn add_product(
        &self,
        kernel: Kernel,
        shape: Attention,
        tile: &Tile,
        right: &Panels,
        out: &mut [&mut [f32]],
    ) {
        let row_words = self.row_lines * LANES;
        let (mut sums, mut room) = (NO_SUMS, Vec::new());
        let mut next = tile.keys.start;
        while next < tile.keys.end {
            let key = next;
            let past = tile.keys.end.min(block_end(key));
            next = past;
            let last = shape.sliding_window.map_or(usize::MAX, |width| past - 1 + width);
            let queries = tile.queries.start.max(key)..tile.queries.end.min(last);
            let pairs = queries.start / 2..queries.end.div_ceil(2);
            if pairs.is_empty() {
                continue;
            }
            let first = (pairs.start - tile.queries.start / 2) * row_words + key - tile.keys.start;
            let left = Left { lines: &self.lines, first, row_step: 1, pair_step: row_words };
            let left = kernel.arranged(left, past - key, pairs.len(), &mut room);
            for column in (0..right.columns()).step_by(PANEL) {
                let (right, vectors) = right.panel(column / PANEL, pairs.clone());
                kernel.block(left, past - key, right, vectors, &mut sums);
                let columns = column..column + PANEL.min(out[key].len() - column);
                put(&sums, &mut out[key..past], columns, Held::AddedTo);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::round::{even, to_bf16};
    use crate::op::attention::tests::{SHAPES, in_f64, inputs};
    use crate::op::attention_backward;
    use crate::testing::{bits, in_pools, random};

    /// Windows longer than a tile, heads wider than a panel, and caps.
    fn shapes() -> impl Iterator<Item = Attention> {
        let long = Attention { ctx: 300, head_dim: 64, ..SHAPES[2] };
        let capped = Attention { sliding_window: Some(9), soft_cap: Some(0.8), ..SHAPES[2] };
        SHAPES.into_iter().chain([long, Attention { sliding_window: Some(60), ..long }, capped])
    }

    fn by(
        kernel: Kernel,
        shape: Attention,
        [q, k, v]: &[Array2<f32>; 3],
        d_out: &Array2<f32>,
    ) -> [Array2<f32>; 3] {
        with(kernel, shape, [q.view(), k.view(), v.view()], d_out.view())
    }

    /// How far two gradients are apart, relative to the size of the second.
    fn apart(found: &Array2<f32>, truth: &Array2<f32>) -> f64 {
        let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let difference = square(&mut found.iter().zip(truth).map(|(x, y)| x - y));
        (difference / square(&mut truth.iter().copied()).max(1e-12)).sqrt()
    }

    /// Half a unit in the last of eight places, 2^-9, is lost of each probability and each slope at most, and one slope in a sum
    /// is much of it: a few such units, still below the 1e-2 that bf16 may lose.
    #[test]
    fn the_gradient_of_rounded_inputs_is_that_of_the_f32_twin() {
        for shape in shapes() {
            let rounded = inputs(shape, 2).map(|x| x.mapv(|x| even(to_bf16(x))));
            let [q, k, v] = &rounded;
            let d_out = random(q.dim(), 4).mapv(|x| even(to_bf16(x)));
            let truth = attention_backward(shape, [q.view(), k.view(), v.view()], d_out.view());
            for kernel in Kernel::available() {
                for (found, truth) in by(kernel, shape, &rounded, &d_out).iter().zip(&truth) {
                    let apart = apart(found, truth);
                    assert!(apart <= 5e-3, "{apart:e} by {kernel:?} in {shape:?}");
                }
            }
        }
    }

    /// Central differences in f64 along random directions of all three inputs at once.
    #[test]
    fn a_step_changes_the_output_by_what_the_gradient_says() {
        for shape in shapes().filter(|shape| shape.ctx < 100) {
            let inputs = inputs(shape, 2);
            let d_out = random(inputs[0].dim(), 4);
            let found = bf16_attention_backward(shape, inputs.each_ref().map(|x| x.view()), d_out.view());
            let value = |x: &[Array2<f64>; 3]| (in_f64(shape, x.each_ref()) * d_out.mapv(f64::from)).sum();
            for argument in 0..3 {
                let [mut up, mut down] = [1e-4, -1e-4].map(|_| inputs.each_ref().map(|x| x.mapv(f64::from)));
                let norm = found[argument].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                let along = found[argument].mapv(|x| f64::from(x) / norm.max(1e-12));
                up[argument].scaled_add(1e-4, &along);
                down[argument].scaled_add(-1e-4, &along);
                let slope = (value(&up) - value(&down)) / 2e-4;
                assert!((slope - norm).abs() <= 1e-2 * norm + 1e-6, "{slope}, not {norm}, in {shape:?}");
            }
        }
    }

    #[test]
    fn a_windows_gradient_does_not_depend_on_the_windows_beside_it() {
        for shape in shapes() {
            let inputs = inputs(shape, 3);
            let d_out = random(inputs[0].dim(), 4);
            let rows = s![shape.ctx..2 * shape.ctx, ..];
            let together = bf16_attention_backward(shape, inputs.each_ref().map(|x| x.view()), d_out.view());
            let alone =
                bf16_attention_backward(shape, inputs.each_ref().map(|x| x.slice(rows)), d_out.slice(rows));
            for (alone, together) in alone.iter().zip(&together) {
                assert_eq!(bits(alone), bits(&together.slice(rows).to_owned()));
            }
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_attentions_gradient() {
        for shape in shapes() {
            let inputs = inputs(shape, 2);
            let d_out = random(inputs[0].dim(), 4);
            in_pools(|| {
                bf16_attention_backward(shape, inputs.each_ref().map(|x| x.view()), d_out.view())
                    .map(|x| bits(&x))
            });
        }
    }
}
