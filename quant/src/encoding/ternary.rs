//! Super-blocks of 256 weights that are -1, 0 or 1 times one half-precision scale: `tq1_0` and `tq2_0`.

use super::block::{Group, Rows, half_at, half_bytes};
use super::sweep::{best_scale, by_magnitude, encode};
use crate::lanes::of_largest_magnitude;

/// Weights per super-block.
pub(super) const SUPER: usize = 256;

/// What a header says of its super-block.
pub(super) fn group(header: &[u8]) -> Group {
    Group { scale: half_at(header, 0), zero: 1.0, min: 0.0 }
}

/// Headers (the scale) and codes on `scale * (code - 1)`.
///
/// Without an importance the scale is the largest magnitude, as models trained to be ternary want it; with one it is that of least
/// weighted squared error, or the largest magnitude where nothing has weight.
///
/// # Source
/// `quantize_row_tq1_0_ref` and `quantize_row_tq2_0_ref` of llama.cpp for the former.
pub(super) fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
    let blocks = rows.x.as_chunks::<SUPER>().0.iter().zip(headers.as_chunks_mut::<2>().0);
    for (i, ((x, header), codes)) in blocks.zip(codes.as_chunks_mut::<SUPER>().0).enumerate() {
        let magnitude = of_largest_magnitude(x).abs();
        let searched = rows.importance.map_or(0.0, |importance| {
            let importance = &importance[i * SUPER % rows.cols..][..SUPER];
            best_scale(x, importance, &by_magnitude(x), (-1, 1)).0
        });
        *header = half_bytes(if searched > 0.0 { searched } else { magnitude });
        // The reference rounds on the scale before that is rounded to half precision.
        let scale = if searched > 0.0 { half_at(header, 0) } else { magnitude };
        encode(x, scale, (-1, 1), codes);
    }
}
