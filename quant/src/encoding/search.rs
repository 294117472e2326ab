//! The scale searches that the block formats share, lane by lane (see [`crate::lanes`]).
//!
//! Each does what the function of llama.cpp it is named after does, to the last bit: same candidates, same
//! order of sums, same strict comparisons, no fused operations.

use crate::lanes::{LANES, Lanes, between, lanes, nearest, nearest_whole};

/// Blocks whose largest magnitude is below this are stored as zeros.
pub(super) const NOTHING: f32 = 1e-15;

/// What [`symmetric`] found: values `scale * (code - half)`.
pub(super) struct Symmetric {
    /// The least-squares scale, 0 for a block of zeros.
    pub scale: Lanes,
    inverse: Lanes,
    empty: [bool; LANES],
    half: i32,
}

impl Symmetric {
    /// The codes of the candidates that won (not of the scales refitted to them), run after run as `x` and `codes` lie.
    #[inline(always)]
    pub fn write_codes(&self, x: &[f32], codes: &mut [u8], len: usize) {
        let half = self.half as f32;
        for (k, (x, codes)) in x.chunks_exact(len).zip(codes.chunks_exact_mut(len)).take(LANES).enumerate() {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = (between(nearest_whole(self.inverse[k] * x), -half, half - 1.0) + half) as i32 as u8;
            }
            if self.empty[k] {
                codes.fill(0);
            }
        }
    }
}

/// The scale that minimises `sum w (x - scale * level)^2` over 19 ways to choose the levels
/// `-half..half`, the largest magnitude near `-half`.
///
/// # Source
/// `make_qx_quants` of llama.cpp's ggml-quants.c, its weighted branch.
#[inline(always)]
pub(super) fn symmetric<const N: usize>(x: &[Lanes; N], w: &[Lanes; N], half: i32) -> Symmetric {
    let mut largest = [0.0f32; LANES];
    let mut magnitude = [0.0f32; LANES];
    for x in x {
        largest = lanes(|k| if x[k].abs() > magnitude[k] { x[k] } else { largest[k] });
        magnitude = largest.map(f32::abs);
    }
    let mut inverse = lanes(|k| -(half as f32) / largest[k]);
    let mut wx = *w;
    for (wx, x) in wx.iter_mut().zip(x) {
        *wx = lanes(|k| wx[k] * x[k]);
    }
    let (xl, ll) = level_sums(x, (w, &wx), &inverse, half);
    let mut scale = lanes(|k| if ll[k] == 0.0 { 0.0 } else { xl[k] / ll[k] });
    let mut best = lanes(|k| scale[k] * xl[k]);
    for step in (-9i8..=9).filter(|&step| step != 0) {
        let reach = half as f32 + 0.1 * f32::from(step);
        let candidate = lanes(|k| -reach / largest[k]);
        let (xl, ll) = level_sums(x, (w, &wx), &candidate, half);
        let of_better = |new: &Lanes, old: &Lanes| {
            lanes(|k| if (ll[k] > 0.0) & (xl[k] * xl[k] > best[k] * ll[k]) { new[k] } else { old[k] })
        };
        let fitted = lanes(|k| xl[k] / ll[k]);
        scale = of_better(&fitted, &scale);
        inverse = of_better(&candidate, &inverse);
        best = of_better(&lanes(|k| fitted[k] * xl[k]), &best);
    }
    let empty = magnitude.map(|m| m < NOTHING);
    Symmetric { scale: lanes(|k| if empty[k] { 0.0 } else { scale[k] }), inverse, empty, half }
}

/// `sum w x level` and `sum w level^2` for the levels that `inverse` rounds to; `wx` is `w x`.
#[inline(always)]
fn level_sums<const N: usize>(
    x: &[Lanes; N],
    (w, wx): (&[Lanes; N], &[Lanes; N]),
    inverse: &Lanes,
    half: i32,
) -> (Lanes, Lanes) {
    let (lowest, highest) = (-half as f32, (half - 1) as f32);
    let mut xl = [0.0f32; LANES];
    let mut ll = [0.0f32; LANES];
    for i in 0..N {
        let level = lanes(|k| between(nearest_whole(inverse[k] * x[i][k]), lowest, highest));
        xl = lanes(|k| xl[k] + wx[i][k] * level[k]);
        ll = lanes(|k| ll[k] + w[i][k] * level[k] * level[k]);
    }
    (xl, ll)
}

/// The candidates of [`affine`]: ranges widened by `first + step * i` levels, `i` in `0..=steps`.
#[derive(Clone, Copy)]
pub(super) struct Candidates {
    /// Levels added to the range in the first candidate.
    pub first: f32,
    /// Levels added from candidate to candidate.
    pub step: f32,
    /// Candidates after the first.
    pub steps: u8,
    /// Whether candidates are compared by the magnitudes of their errors, not the squares.
    pub by_magnitude: bool,
}

impl Candidates {
    /// What the searches with an importance use.
    pub const WEIGHTED: Self = Self { first: -0.9, step: 0.05, steps: 36, by_magnitude: false };
}

/// What [`affine`] found: values `scale * code - min`.
pub(super) struct Affine {
    /// 0 for a block of one value.
    pub scale: Lanes,
    /// Never negative: 0 is always within reach.
    pub min: Lanes,
    /// The sum of the weights of the errors.
    pub weight: Lanes,
    inverse: Lanes,
    offset: Lanes,
    flat: [bool; LANES],
    max_code: i32,
}

impl Affine {
    /// The codes of the candidates that won (not of the scales and minima refitted to them), run after run as `x` and
    /// `codes` lie.
    #[inline(always)]
    pub fn write_codes(&self, x: &[f32], codes: &mut [u8], len: usize) {
        for (k, (x, codes)) in x.chunks_exact(len).zip(codes.chunks_exact_mut(len)).take(LANES).enumerate() {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = nearest(self.inverse[k] * (x - self.offset[k])).clamp(0, self.max_code) as u8;
            }
            if self.flat[k] {
                codes.fill(0);
            }
        }
    }
}

/// The scale and minimum of least weighted squared error over the candidates, each fitted in closed
/// form to the codes it gives. A better candidate's minimum is also where the next ones start.
///
/// # Source
/// `make_qkx2_quants` and `make_qkx3_quants` of llama.cpp's ggml-quants.c, which are the same where both have weights.
#[inline(always)]
pub(super) fn affine<const N: usize>(
    x: &[Lanes; N],
    w: &[Lanes; N],
    max_code: i32,
    candidates: Candidates,
) -> Affine {
    let top = max_code as f32;
    let Ranges { max, min: mut low, weight, weighted } = ranges(x, w);
    let flat: [bool; LANES] = std::array::from_fn(|k| max[k] <= low[k]);
    let mut inverse = lanes(|k| top / (max[k] - low[k]));
    let mut offset = low;
    let mut scale = lanes(|k| 1.0 / inverse[k]);
    let mut codes = [[0.0; LANES]; N];
    least_squares(x, w, Line { inverse: &inverse, low: &low, max_code }, (&weight, &weighted), &mut codes);
    let mut best = error((x, w), &codes, (&scale, &low), candidates);
    for i in 0..=candidates.steps {
        let reach = candidates.first + candidates.step * f32::from(i) + top;
        let candidate = lanes(|k| reach / (max[k] - low[k]));
        let line = Line { inverse: &candidate, low: &low, max_code };
        let (determinant, fit_scale, fit_min) = least_squares(x, w, line, (&weight, &weighted), &mut codes);
        let error = error((x, w), &codes, (&fit_scale, &fit_min), candidates);
        let of_better = |new: &Lanes, old: &Lanes| {
            lanes(|k| if (determinant[k] > 0.0) & (error[k] < best[k]) { new[k] } else { old[k] })
        };
        scale = of_better(&fit_scale, &scale);
        inverse = of_better(&candidate, &inverse);
        offset = of_better(&low, &offset);
        low = of_better(&fit_min, &low);
        best = of_better(&error, &best);
    }
    let scale = lanes(|k| if flat[k] { 0.0 } else { scale[k] });
    Affine { scale, min: low.map(|m| -m), weight, inverse, offset, flat, max_code }
}

struct Ranges {
    max: Lanes,
    min: Lanes,      // never above 0
    weight: Lanes,   // sum w
    weighted: Lanes, // sum w x
}

#[inline(always)]
fn ranges<const N: usize>(x: &[Lanes; N], w: &[Lanes; N]) -> Ranges {
    let (mut min, mut max, mut weight) = (x[0], x[0], w[0]);
    let mut weighted = lanes(|k| w[0][k] * x[0][k]);
    for i in 1..N {
        let (x, w) = (&x[i], &w[i]);
        min = lanes(|k| if x[k] < min[k] { x[k] } else { min[k] });
        max = lanes(|k| if x[k] > max[k] { x[k] } else { max[k] });
        weight = lanes(|k| weight[k] + w[k]);
        weighted = lanes(|k| weighted[k] + w[k] * x[k]);
    }
    Ranges { max, min: min.map(|m| if m > 0.0 { 0.0 } else { m }), weight, weighted }
}

/// `sum w (scale * code + min - x)^2`, or with the magnitudes of the errors in place of their squares.
#[inline(always)]
fn error<const N: usize>(
    (x, w): (&[Lanes; N], &[Lanes; N]),
    codes: &[Lanes; N],
    (scale, min): (&Lanes, &Lanes),
    candidates: Candidates,
) -> Lanes {
    let mut error = [0.0f32; LANES];
    for i in 0..N {
        let off = lanes(|k| scale[k] * codes[i][k] + min[k] - x[i][k]);
        let cost = if candidates.by_magnitude { off.map(f32::abs) } else { off.map(|off| off * off) };
        error = lanes(|k| error[k] + w[i][k] * cost[k]);
    }
    error
}

/// How `x` becomes codes: `(x - low) * inverse`, rounded and bounded.
struct Line<'a> {
    inverse: &'a Lanes,
    low: &'a Lanes,
    max_code: i32,
}

/// Codes by `line`, then determinant, scale and minimum of the weighted fit of `scale * code + min` to `x`, the minimum not
/// above 0. `sums` are those of `w` and of `w x`.
#[inline(always)]
fn least_squares<const N: usize>(
    x: &[Lanes; N],
    w: &[Lanes; N],
    line: Line<'_>,
    (weight, weighted): (&Lanes, &Lanes),
    codes: &mut [Lanes; N],
) -> (Lanes, Lanes, Lanes) {
    let mut l = [0.0f32; LANES];
    let mut ll = [0.0f32; LANES];
    let mut xl = [0.0f32; LANES];
    for i in 0..N {
        for k in 0..LANES {
            let steps = line.inverse[k] * (x[i][k] - line.low[k]);
            let code = nearest(steps).clamp(0, line.max_code) as f32;
            let wl = w[i][k] * code;
            l[k] += wl;
            ll[k] += wl * code;
            xl[k] += wl * x[i][k];
            codes[i][k] = code;
        }
    }
    let determinant = lanes(|k| weight[k] * ll[k] - l[k] * l[k]);
    let free_min = lanes(|k| (ll[k] * weighted[k] - l[k] * xl[k]) / determinant[k]);
    let scale = lanes(|k| {
        let free = (weight[k] * xl[k] - weighted[k] * l[k]) / determinant[k];
        if free_min[k] > 0.0 { xl[k] / ll[k] } else { free }
    });
    (determinant, scale, free_min.map(|m| if m > 0.0 { 0.0 } else { m }))
}

/// Integer levels `0..=max_level` for the scales (or minima) `x` of one super-block, weighted by `w`, and the
/// factor that turns them back.
///
/// # Source
/// `make_qp_quants` of llama.cpp's ggml-quants.c.
pub(super) fn positive<const N: usize>(x: &[f32; N], w: &[f32; N], max_level: i32) -> (f32, [u8; N]) {
    let max = x.iter().fold(0.0f32, |max, &x| if max > x { max } else { x });
    if max < NOTHING {
        return (0.0, [0; N]);
    }
    let inverse = best_positive_inverse(x, w, max_level as f32, max);
    let mut levels = [0u8; N];
    let (mut xl, mut ll) = (0.0f32, 0.0f32);
    for i in 0..N {
        levels[i] = nearest(inverse * x[i]).min(max_level) as u8;
        let level = f32::from(levels[i]);
        xl += w[i] * x[i] * level;
        ll += w[i] * level * level;
    }
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..N {
            let old = f32::from(levels[i]);
            let mut rest_xl = xl - w[i] * x[i] * old;
            let mut rest_ll = ll - w[i] * old * old;
            if rest_xl > 0.0 && rest_ll > 0.0 {
                let level = nearest(x[i] * rest_ll / rest_xl).min(max_level);
                if level != i32::from(levels[i]) {
                    rest_xl += w[i] * x[i] * level as f32;
                    rest_ll += w[i] * level as f32 * level as f32;
                    if rest_xl * rest_xl * ll > xl * xl * rest_ll {
                        (levels[i], xl, ll) = (level as u8, rest_xl, rest_ll);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    (if ll > 0.0 { xl / ll } else { 0.0 }, levels)
}

fn best_positive_inverse<const N: usize>(x: &[f32; N], w: &[f32; N], top: f32, max: f32) -> f32 {
    let mut inverse = top / max;
    let error = |inverse: f32, level: &dyn Fn(f32) -> f32| {
        let scale = 1.0 / inverse;
        let mut sum = 0.0f32;
        for i in 0..N {
            let off = x[i] - scale * level(inverse * x[i]);
            sum += w[i] * off * off;
        }
        sum
    };
    let mut best = error(inverse, &|at| f32::from(nearest(at) as u8));
    for step in (-4i8..=4).filter(|&step| step != 0) {
        let candidate = (0.1 * f32::from(step) + top) / max;
        let error = error(candidate, &|at| nearest(at).min(top as i32) as f32);
        if error < best {
            (best, inverse) = (error, candidate);
        }
    }
    inverse
}
