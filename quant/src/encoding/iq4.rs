//! Blocks of 32 weights on sixteen uneven levels, denser near 0: `iq4_nl` and `iq4_xs`.

use super::block::Rows;
use super::block32::BLOCK;
use super::search::NOTHING;
use crate::lanes::{Kernel, LANES, Lanes, gather, lanes, widest};

/// What the codes stand for.
pub(super) const LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Levels to either side of the lowest that the largest magnitude is put on in turn.
const REACH: i8 = 7;

/// The scale of each block; errors on weights cost what `quantize_row_iq4_nl_impl` of llama.cpp says, which takes the
/// mean square over runs of `run` weights.
pub(super) fn scales(rows: &Rows<'_>, run: usize) -> Vec<f32> {
    let mut scales = vec![0.0; rows.x.len() / BLOCK];
    widest(Search { rows, run, scales: &mut scales });
    scales
}

struct Search<'a> {
    rows: &'a Rows<'a>,
    run: usize,
    scales: &'a mut [f32],
}

impl Kernel for Search<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rows, run, scales } = self;
        let costs = match rows.importance {
            Some(importance) => rows.costs(importance, run, 2.0),
            None => rows.x.iter().map(|x| x * x).collect(),
        };
        for (first, scales) in rows.batches(BLOCK).zip(scales.chunks_mut(LANES)) {
            let found = best_scale(&gather(rows.x, first), &gather(&costs, first));
            scales.copy_from_slice(&found[..scales.len()]);
        }
    }
}

/// The scale that minimises `sum w (x - scale * level)^2` over 16 ways to choose the levels, the largest magnitude near the
/// lowest; 0 for a block of zeros.
///
/// # Source
/// `quantize_row_iq4_nl_impl` of llama.cpp's ggml-quants.c.
#[inline(always)]
fn best_scale(x: &[Lanes; BLOCK], w: &[Lanes; BLOCK]) -> Lanes {
    let (mut largest, mut magnitude) = ([0.0f32; LANES], [0.0f32; LANES]);
    for x in x {
        largest = lanes(|k| if x[k].abs() > magnitude[k] { x[k] } else { largest[k] });
        magnitude = largest.map(f32::abs);
    }
    let inverse = lanes(|k| 1.0 / (-largest[k] / LEVELS[0]));
    let (xl, ll) = level_sums(x, w, &inverse);
    let mut scale = lanes(|k| if ll[k] > 0.0 { xl[k] / ll[k] } else { 0.0 });
    let mut best = lanes(|k| scale[k] * xl[k]);
    for step in -REACH..=REACH {
        let reach = f32::from(step) + LEVELS[0];
        let (xl, ll) = level_sums(x, w, &lanes(|k| reach / largest[k]));
        for k in 0..LANES {
            let better = (ll[k] > 0.0) & (xl[k] * xl[k] > best[k] * ll[k]);
            let fitted = xl[k] / ll[k];
            scale[k] = if better { fitted } else { scale[k] };
            best[k] = if better { fitted * xl[k] } else { best[k] };
        }
    }
    lanes(|k| if magnitude[k] < NOTHING { 0.0 } else { scale[k] })
}

/// `sum w x level` and `sum w level^2` for the levels nearest to `inverse * x`.
#[inline(always)]
fn level_sums(x: &[Lanes; BLOCK], w: &[Lanes; BLOCK], inverse: &Lanes) -> (Lanes, Lanes) {
    let (mut xl, mut ll) = ([0.0f32; LANES], [0.0f32; LANES]);
    for i in 0..BLOCK {
        let at = lanes(|k| inverse[k] * x[i][k]);
        let mut level = [LEVELS[0]; LANES];
        for (lower, upper) in LEVELS.iter().zip(&LEVELS[1..]) {
            for k in 0..LANES {
                // Whole numbers, so the sum of the steps up to a level is the level.
                level[k] += if at[k] >= 0.5 * (lower + upper) { upper - lower } else { 0.0 };
            }
        }
        for k in 0..LANES {
            let wl = w[i][k] * level[k];
            xl[k] += wl * x[i][k];
            ll[k] += wl * level[k];
        }
    }
    (xl, ll)
}

/// The codes nearest to the weights of each block in units of its scale, the upper one where two are as near.
pub(super) fn encode(x: &[f32], scales: &[f32], codes: &mut [u8]) {
    widest(Encode { x, scales, codes });
}

struct Encode<'a> {
    x: &'a [f32],
    scales: &'a [f32],
    codes: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.x.as_chunks::<BLOCK>().0.iter().zip(self.codes.as_chunks_mut::<BLOCK>().0);
        for ((x, codes), &scale) in blocks.zip(self.scales) {
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let at = x.map(|x| inverse * x);
            let mut code = [0u32; BLOCK];
            for (lower, upper) in LEVELS.iter().zip(&LEVELS[1..]) {
                for (code, at) in code.iter_mut().zip(at) {
                    *code += u32::from(at >= 0.5 * (lower + upper));
                }
            }
            *codes = code.map(|code| code as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest level by differences, as the reference compares them.
    fn nearest_level(x: f32) -> usize {
        let below = LEVELS.iter().rposition(|&level| x >= level);
        match below {
            None => 0,
            Some(15) => 15,
            Some(i) => i + usize::from(x - LEVELS[i] >= LEVELS[i + 1] - x),
        }
    }

    #[test]
    fn codes_are_those_of_the_nearest_levels_down_to_the_last_bit_beside_a_tie() {
        let mut x = vec![f32::MIN, -127.0, -0.0, 0.0, 113.0, f32::MAX];
        for (lower, upper) in LEVELS.iter().zip(&LEVELS[1..]) {
            let tie = 0.5 * (lower + upper);
            x.extend([tie.next_down(), tie, tie.next_up(), *lower, lower.next_down(), lower.next_up()]);
        }
        x.resize(x.len().next_multiple_of(BLOCK), 0.0);
        let mut codes = vec![0; x.len()];
        encode(&x, &vec![1.0; x.len() / BLOCK], &mut codes);
        for (x, code) in x.iter().zip(codes) {
            assert_eq!(usize::from(code), nearest_level(*x), "{x}");
        }
    }
}
