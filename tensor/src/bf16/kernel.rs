//! The inner loop: blocks of rows by up to forty-eight columns of sums, of which tiles stay in registers while a chunk of terms goes by.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::pack::{Line, PANEL};
use super::round::{even, odd};
use std::sync::OnceLock;

/// Rows of a block: what a kernel is given at once.
pub const BLOCK: usize = 32;

/// Rows whose sums are in vector registers at once.
const ROWS: usize = 8;

/// Columns of a vector.
pub const LANES: usize = 16;

/// Vectors of a tile's row, at most. With 8 rows: 24 sums, 3 columns of b and one number of a make 28 of 32 registers.
pub const VECTORS: usize = 3;

/// A row of sums.
type Row = [[f32; LANES]; VECTORS];

/// The sums of a block.
pub type Sums = [Row; BLOCK];

/// Sums to be written.
pub const NO_SUMS: Sums = [[[0.0; LANES]; VECTORS]; BLOCK];

/// Where the block ends that `row` is in, of rows that are columns of panels: no block lies in two panels, and all are of 16 or 32 rows.
pub fn block_end(row: usize) -> usize {
    ((row / BLOCK + 1) * BLOCK).min((row / PANEL + 1) * PANEL)
}

/// Rows of the left factor: the pair of row r at place p is word `first + r * row_step + p * pair_step`.
///
/// One of the steps is 1. Where pairs follow one another, rows are whole lines, and what stands in a line after the last pair is finite.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub lines: &'a [Line],
    pub first: usize,
    pub row_step: usize,
    pub pair_step: usize,
}

impl Left<'_> {
    fn at(&self, row: usize, pair: usize) -> u32 {
        let word = self.first + row * self.row_step + pair * self.pair_step;
        self.lines[word / LANES].0[word % LANES]
    }

    /// Whether so many rows are there up to their last pairs.
    fn holds(&self, rows: usize, pairs: usize) -> bool {
        let last = self.first + (rows - 1) * self.row_step + pairs.saturating_sub(1) * self.pair_step;
        last < self.lines.len() * LANES
    }

    /// The rows after the first `row`.
    #[cfg(target_arch = "x86_64")]
    fn after(self, row: usize) -> Self {
        Self { first: self.first + row * self.row_step, ..self }
    }
}

/// Whose instructions add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// No machine's in particular: the truth.
    Plain,
    /// Numbers widened to f32, then fused steps; a fused step of an exact product rounds as the plain one does.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// `vdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// `tdpbf16ps`, on tiles of 16 rows.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
}

impl Kernel {
    /// All that this machine can run, the fastest last.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        let kernels = [
            Some(Self::Plain),
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"))
                .then_some(Self::Avx512),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            amx::is_granted().then_some(Self::Amx),
        ];
        kernels.into_iter().flatten()
    }

    /// The fastest.
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().next_back().unwrap_or(Self::Plain))
    }

    /// Whether the terms of a sum are added in the order of the plain kernel.
    #[cfg(test)]
    pub fn adds_pair_by_pair(self) -> bool {
        self.rows() == ROWS
    }

    /// Rows that are computed together: a block of fewer costs and reads as many as fill such groups.
    fn rows(self) -> usize {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => amx::ROWS,
            _ => ROWS,
        }
    }

    /// The left factor as the kernel reads it best: itself, or a copy of its rows in `room` where pairs follow one another.
    ///
    /// # Panics
    /// If left has fewer rows or pairs.
    pub fn arranged<'a>(
        self,
        left: Left<'a>,
        rows: usize,
        pairs: usize,
        room: &'a mut Vec<Line>,
    ) -> Left<'a> {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx if left.pair_step != 1 => {
                let rows = rows.next_multiple_of(amx::ROWS);
                assert!(left.holds(rows, pairs), "as many rows and pairs as are arranged");
                amx::by_row(left, rows, pairs, room)
            }
            _ => left,
        }
    }

    /// Replaces the first `vectors` vectors of the first `rows` rows of `sums` by the sums of products of `left`, as it is
    /// [arranged](Self::arranged), and `right`, `[pairs, vectors]`. What the rows after them hold then means nothing.
    ///
    /// # Panics
    /// If right is not whole pairs, or left has fewer of them.
    pub fn block(self, left: Left<'_>, rows: usize, right: &[Line], vectors: usize, sums: &mut Sums) {
        assert!((1..=VECTORS).contains(&vectors) && right.len().is_multiple_of(vectors), "whole pairs");
        assert!((1..=BLOCK).contains(&rows), "rows of one block");
        let whole = rows.next_multiple_of(self.rows());
        assert!(right.is_empty() || left.holds(whole, right.len() / vectors), "as many pairs left as right");
        match self {
            Self::Plain => plain(left, right, vectors, &mut sums[..rows]),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                for (tile, sums) in sums[..whole].as_chunks_mut().0.iter_mut().enumerate() {
                    // SAFETY: `available` has detected the instructions; the asserts above are what the loops rely on.
                    unsafe { x86::avx2(left.after(tile * ROWS), right, vectors, sums) };
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                for (tile, sums) in sums[..whole].as_chunks_mut().0.iter_mut().enumerate() {
                    let left = left.after(tile * ROWS);
                    // SAFETY: as above.
                    unsafe {
                        match (vectors, left.pair_step) {
                            (1, 1) => x86::avx512::<1, { x86::BY_ROW }>(left, right, sums),
                            (2, 1) => x86::avx512::<2, { x86::BY_ROW }>(left, right, sums),
                            (_, 1) => x86::avx512::<3, { x86::BY_ROW }>(left, right, sums),
                            (1, _) => x86::avx512::<1, { x86::BY_PAIR }>(left, right, sums),
                            (2, _) => x86::avx512::<2, { x86::BY_PAIR }>(left, right, sums),
                            (_, _) => x86::avx512::<3, { x86::BY_PAIR }>(left, right, sums),
                        }
                    }
                }
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => amx::block(left, whole, right, vectors, sums),
        }
    }
}

fn plain(left: Left<'_>, right: &[Line], vectors: usize, sums: &mut [Row]) {
    sums.fill([[0.0; LANES]; VECTORS]);
    for (pair, lines) in right.chunks_exact(vectors).enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let x = left.at(row, pair);
            for (sums, line) in sums.iter_mut().zip(lines) {
                for (sum, &w) in sums.iter_mut().zip(&line.0) {
                    *sum += odd(x) * odd(w);
                    *sum += even(x) * even(w);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Left, Line, ROWS, Row, VECTORS};
    use std::arch::x86_64::{
        __m256, __m512bh, __m512i, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_load_si256,
        _mm256_set1_epi32, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm512_dpbf16_ps,
        _mm512_load_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::mem::transmute;

    /// Left factors whose pairs of one row follow one another.
    pub const BY_ROW: u8 = 0;
    /// Left factors whose rows of one pair follow one another.
    pub const BY_PAIR: u8 = 1;

    /// # Safety
    /// The machine has the instructions; left holds `right.len() / V` pairs, its step of 1 is the one that ORDER says.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn avx512<const V: usize, const ORDER: u8>(
        left: Left<'_>,
        right: &[Line],
        sums: &mut [Row; ROWS],
    ) {
        let (row_step, pair_step) = if ORDER == BY_ROW { (left.row_step, 1) } else { (1, left.pair_step) };
        let mut acc = [[_mm512_setzero_ps(); V]; ROWS];
        // SAFETY: the caller has checked that all pairs are there; lines are aligned as their vectors must be.
        unsafe {
            let mut x = left.lines.as_ptr().cast::<i32>().add(left.first);
            for lines in right.chunks_exact(V) {
                let mut w = [transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0)); V];
                for (w, line) in w.iter_mut().zip(lines) {
                    *w = transmute::<__m512i, __m512bh>(_mm512_load_si512(line.0.as_ptr().cast()));
                }
                for (row, acc) in acc.iter_mut().enumerate() {
                    let x = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x.add(row * row_step)));
                    for (acc, &w) in acc.iter_mut().zip(&w) {
                        *acc = _mm512_dpbf16_ps(*acc, x, w);
                    }
                }
                x = x.wrapping_add(pair_step);
            }
            for (sums, acc) in sums.iter_mut().zip(&acc) {
                for (sums, &acc) in sums.iter_mut().zip(acc) {
                    _mm512_storeu_ps(sums.as_mut_ptr(), acc);
                }
            }
        }
    }

    /// Rows of which AVX2 has registers for the sums.
    const FEW: usize = 4;

    /// # Safety
    /// The machine has the instructions; left holds `right.len() / vectors` pairs.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(left: Left<'_>, right: &[Line], vectors: usize, sums: &mut [Row; ROWS]) {
        for vector in 0..vectors.min(VECTORS) {
            for top in (0..ROWS).step_by(FEW) {
                // SAFETY: as for this function.
                let acc = unsafe { few_rows(left, top, right, vectors, vector) };
                for (sums, acc) in sums[top..top + FEW].iter_mut().zip(&acc) {
                    let (first, second) = sums[vector].split_at_mut(LANES / 2);
                    // SAFETY: either half has eight floats.
                    unsafe {
                        _mm256_storeu_ps(first.as_mut_ptr(), acc[0]);
                        _mm256_storeu_ps(second.as_mut_ptr(), acc[1]);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`avx2`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn few_rows(
        left: Left<'_>,
        top: usize,
        right: &[Line],
        vectors: usize,
        vector: usize,
    ) -> [[__m256; 2]; FEW] {
        let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        let mut acc = [[_mm256_setzero_ps(); 2]; FEW];
        // SAFETY: the caller has checked that all pairs are there; lines are aligned as their halves must be.
        unsafe {
            let mut x = left.lines.as_ptr().cast::<i32>().add(left.first + top * left.row_step);
            for lines in right.chunks_exact(vectors) {
                let w = lines.get_unchecked(vector).0.as_ptr();
                let w = [_mm256_load_si256(w.cast()), _mm256_load_si256(w.add(LANES / 2).cast())];
                for (row, acc) in acc.iter_mut().enumerate() {
                    let x = _mm256_set1_epi32(*x.add(row * left.row_step));
                    let x_odd = _mm256_castsi256_ps(_mm256_and_si256(x, high));
                    let x_even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
                    for (acc, &w) in acc.iter_mut().zip(&w) {
                        let w_odd = _mm256_castsi256_ps(_mm256_and_si256(w, high));
                        let w_even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w));
                        *acc = _mm256_fmadd_ps(x_odd, w_odd, *acc);
                        *acc = _mm256_fmadd_ps(x_even, w_even, *acc);
                    }
                }
                x = x.wrapping_add(left.pair_step);
            }
        }
        acc
    }
}
