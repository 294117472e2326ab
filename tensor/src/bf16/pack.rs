//! Both factors of a product, rounded and laid out in the order the kernel reads them.
//!
//! Legend: a is `[m, k]`, b `[k, n]`; terms k and k + 1 stand together in one word, the last one beside a zero where k is odd.

use super::DEPTH;
use super::kernel::{BLOCK, LANES, Left, VECTORS};
use super::round::{even, odd, pair};
use crate::lanes::dispatch;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, Axis, CowArray, Ix2};
use rayon::slice::ParallelSliceMut;
use std::mem::MaybeUninit;

/// A cache line of pairs, and a vector of the kernel.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u32; LANES]);

const ZERO: Line = Line([0; LANES]);

/// Columns of a panel but the last, which is as many vectors wide as it needs.
pub const PANEL: usize = LANES * VECTORS;

/// The right factor, `[k, n]`, panel after panel: of each, pair after pair of terms, side by side for its columns.
#[derive(Debug, Clone)]
pub struct Panels {
    lines: Vec<Line>,
    depth: usize,
    columns: usize,
}

impl Panels {
    /// Of a matrix that has the columns in its rows, `[n, k]`: a weight.
    pub fn of_rows(w: ArrayView2<'_, f32>) -> Self {
        let (columns, depth) = w.dim();
        Self::filled(depth, columns, |first, panels| {
            for (i, panel) in panels.iter_mut().enumerate() {
                let first = first + i * PANEL;
                let vectors = vectors_of(columns - first);
                for column in first..columns.min(first + PANEL) {
                    let (vector, lane) = ((column - first) / LANES, (column - first) % LANES);
                    let row = w.row(column);
                    let row = row.as_standard_layout();
                    let terms = row.as_slice().unwrap_or(&[]).chunks(2);
                    for (lines, terms) in panel.chunks_exact_mut(vectors).zip(terms) {
                        lines[vector].0[lane] = pair(terms[0], terms.get(1).copied().unwrap_or(0.0));
                    }
                }
            }
        })
    }

    /// Of a matrix as it stands, `[k, n]`: activations of which sums over tokens are wanted.
    pub fn of_columns(x: ArrayView2<'_, f32>) -> Self {
        let (depth, columns) = x.dim();
        let x = with_contiguous_rows(x);
        let rows: Vec<&[f32]> = x.outer_iter().filter_map(|row| row.to_slice()).collect();
        Self::filled(depth, columns, |first, panels| {
            for (i, two) in rows.chunks(2).enumerate() {
                for (panel, lines) in panels.iter_mut().enumerate() {
                    let from = first + panel * PANEL;
                    let to = columns.min(from + PANEL);
                    let vectors = vectors_of(columns - from);
                    let odds = two.get(1).map_or(&[0.0; PANEL][..to - from], |row| &row[from..to]);
                    interleave(&two[0][from..to], odds, &mut lines[i * vectors..(i + 1) * vectors]);
                }
            }
        })
    }

    /// Calls `fill` with the first column and the lines of some panels that follow one another.
    fn filled(depth: usize, columns: usize, fill: impl Fn(usize, &mut [&mut [Line]]) + Sync) -> Self {
        const TOGETHER: usize = 8; // panels, so that a row is read in pieces of 1.5 KB
        let pairs = depth.div_ceil(2);
        let mut lines = vec![ZERO; pairs * columns.div_ceil(LANES)];
        let panel = (pairs * VECTORS).max(1);
        lines.par_chunks_mut(TOGETHER * panel).enumerate().for_each(|(group, lines)| {
            let mut panels: Vec<_> = lines.chunks_mut(panel).collect();
            fill(group * TOGETHER * PANEL, &mut panels);
        });
        Self { lines, depth, columns }
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// Term k of a column.
    pub fn at(&self, k: usize, column: usize) -> f32 {
        let (panel, within) = (column / PANEL, column % PANEL);
        let (lines, vectors) = self.panel(panel, 0..self.depth.div_ceil(2));
        let pair = lines[k / 2 * vectors + within / LANES].0[within % LANES];
        if k.is_multiple_of(2) { even(pair) } else { odd(pair) }
    }

    /// Some pairs of a panel, and its width in vectors.
    pub fn panel(&self, panel: usize, pairs: std::ops::Range<usize>) -> (&[Line], usize) {
        let all = self.depth.div_ceil(2);
        let vectors = vectors_of(self.columns - panel * PANEL);
        let start = panel * VECTORS * all;
        (&self.lines[start + pairs.start * vectors..start + pairs.end * vectors], vectors)
    }

    /// Columns of one panel from `first` on as rows of the left factor.
    pub fn as_left(&self, first: usize, pairs: std::ops::Range<usize>) -> Left<'_> {
        let (lines, vectors) = self.panel(first / PANEL, pairs);
        Left { lines, first: first % PANEL, row_step: 1, pair_step: vectors * LANES }
    }
}

/// Vectors that the columns from some panel's first on need of it.
fn vectors_of(columns: usize) -> usize {
    columns.div_ceil(LANES).min(VECTORS)
}

/// Two rows of one length side by side, pair by pair; words of a last line that they do not fill are left as they are.
pub fn interleave(evens: &[f32], odds: &[f32], lines: &mut [Line]) {
    let ((evens, even_rest), (odds, odd_rest)) = (evens.as_chunks::<LANES>(), odds.as_chunks::<LANES>());
    dispatch(
        #[inline(always)]
        || {
            for ((line, evens), odds) in lines.iter_mut().zip(evens).zip(odds) {
                for ((word, &even), &odd) in line.0.iter_mut().zip(evens).zip(odds) {
                    *word = pair(even, odd);
                }
            }
        },
    );
    if let Some(line) = lines.get_mut(evens.len()) {
        for ((word, &even), &odd) in line.0.iter_mut().zip(even_rest).zip(odd_rest) {
            *word = pair(even, odd);
        }
    }
}

/// A matrix whose rows are slices: itself, or a copy.
fn with_contiguous_rows(x: ArrayView2<'_, f32>) -> CowArray<'_, f32, Ix2> {
    if x.ncols() < 2 || x.strides()[1] == 1 { x.into() } else { x.as_standard_layout().into_owned().into() }
}

/// The left factor, `[m, k]`, in strips of a block's rows: of each, chunk after chunk of the summed length, row by row.
///
/// Rows that are missing in the last strip are zero. A row of a chunk is followed by a line of zeros, so that the rows of a
/// strip do not meet in the same sets of a cache.
#[derive(Debug, Clone)]
pub struct Strips {
    lines: Vec<Line>,
    depth: usize,
}

impl Strips {
    /// Rounds and packs a.
    pub fn of(a: ArrayView2<'_, f32>) -> Self {
        let (rows, depth) = a.dim();
        let strip = BLOCK * lines_of_row(depth);
        let len = rows.div_ceil(BLOCK) * strip;
        let mut lines = Vec::with_capacity(len);
        let spare: &mut [MaybeUninit<Line>] = &mut lines.spare_capacity_mut()[..len];
        let a = with_contiguous_rows(a);
        let strips = spare.par_chunks_mut(strip.max(1)).zip(a.axis_chunks_iter(Axis(0), BLOCK));
        strips.for_each(|(strip, rows)| {
            let mut terms: [&[f32]; BLOCK] = [&[]; BLOCK];
            for (terms, row) in terms.iter_mut().zip(rows.outer_iter()) {
                *terms = row.to_slice().unwrap_or(&[]);
            }
            pack_strip(&terms, depth, strip);
        });
        // SAFETY: there is a strip of rows for every `strip` lines, and `pack_strip` has written every line of it.
        unsafe { lines.set_len(len) };
        Self { lines, depth }
    }

    /// The pairs `from..to`, a chunk, of a strip.
    pub fn chunk(&self, strip: usize, from: usize, to: usize) -> Left<'_> {
        let start = BLOCK * (strip * lines_of_row(self.depth) + from / DEPTH * lines_of(0, DEPTH));
        let row_lines = lines_of(from, to);
        let lines = &self.lines[start..start + BLOCK * row_lines];
        Left { lines, first: 0, row_step: row_lines * LANES, pair_step: 1 }
    }
}

/// The chunks of a sum of `depth` terms, in pairs.
pub fn chunks(depth: usize) -> impl Iterator<Item = (usize, usize)> {
    let pairs = depth.div_ceil(2);
    (0..pairs).step_by(DEPTH).map(move |from| (from, pairs.min(from + DEPTH)))
}

/// Lines of one row's chunk in a strip.
fn lines_of(from: usize, to: usize) -> usize {
    (to - from).div_ceil(LANES) + 1
}

/// Lines of one row's chunks together.
fn lines_of_row(depth: usize) -> usize {
    chunks(depth).map(|(from, to)| lines_of(from, to)).sum()
}

/// Rounds terms, as many as fill the lines.
pub fn pack_whole(terms: &[f32], lines: &mut [Line]) {
    dispatch(
        #[inline(always)]
        || {
            for (line, terms) in lines.iter_mut().zip(terms.as_chunks().0) {
                *line = packed(terms);
            }
        },
    );
}

/// Writes every line of a strip, chunk after chunk of rows of `depth` terms; a row that is missing has none.
fn pack_strip(rows: &[&[f32]; BLOCK], depth: usize, strip: &mut [MaybeUninit<Line>]) {
    dispatch(
        #[inline(always)]
        || {
            let mut rest = strip;
            for (from, to) in chunks(depth) {
                let (chunk, further) = rest.split_at_mut(BLOCK * lines_of(from, to));
                for (row, lines) in rows.iter().zip(chunk.chunks_exact_mut(lines_of(from, to))) {
                    pack_row(row.get(2 * from..depth.min(2 * to)).unwrap_or(&[]), lines);
                }
                rest = further;
            }
        },
    );
}

/// Writes every line: the terms in pairs, then zeros.
#[inline(always)]
fn pack_row(terms: &[f32], lines: &mut [MaybeUninit<Line>]) {
    let (whole, rest) = terms.as_chunks();
    let (full, after) = lines.split_at_mut(whole.len());
    for (line, terms) in full.iter_mut().zip(whole) {
        line.write(packed(terms));
    }
    for line in &mut *after {
        line.write(ZERO);
    }
    if let (Some(line), false) = (after.first_mut(), rest.is_empty()) {
        let mut terms = [0.0; 2 * LANES];
        terms[..rest.len()].copy_from_slice(rest);
        line.write(packed(&terms));
    }
}

#[inline(always)]
fn packed(terms: &[f32; 2 * LANES]) -> Line {
    let mut line = ZERO;
    for (word, terms) in line.0.iter_mut().zip(terms.as_chunks::<2>().0) {
        *word = pair(terms[0], terms[1]);
    }
    line
}
