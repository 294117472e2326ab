//! Blocks of sums by Intel's matrix extension: `tdpbf16ps` adds the products of 16 rows and 16 columns over 32 terms at once.
//!
//! Order of a sum: of 32 terms those at even places are added up apart from those at odd ones, then both to what was there;
//! denormal numbers count as zero.

use super::kernel::{BLOCK, LANES, Left, Sums, VECTORS};
use super::pack::Line;
use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::cell::Cell;

/// Rows of a tile, and pairs of terms that one instruction takes.
pub const ROWS: usize = 16;

/// Whether the processor has the tiles and the system lets this process use them.
pub fn is_granted() -> bool {
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    const ASK_FOR: libc::c_long = 0x1023; // ARCH_REQ_XCOMP_PERM
    const TILE_DATA: libc::c_long = 18; // the place of the tiles in a thread's saved state
    let has = __cpuid_count(7, 0).edx & (TILE | BF16) == TILE | BF16;
    // SAFETY: the call takes two numbers and changes nothing but what the process may use.
    has && is_x86_feature_detected!("avx512f")
        && unsafe { libc::syscall(libc::SYS_arch_prctl, ASK_FOR, TILE_DATA) } == 0
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles of 16 lines.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Gives this thread's tiles their shapes, once: nothing else in the process uses them.
fn shape_tiles() {
    thread_local! {
        static SHAPED: Cell<bool> = const { Cell::new(false) };
    }
    SHAPED.with(|shaped| {
        if !shaped.replace(true) {
            // SAFETY: the shapes are what the instruction expects, and the process may use tiles, since a kernel that does was chosen.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly, preserves_flags));
            };
        }
    });
}

/// [`Kernel::block`](super::kernel::Kernel::block) for 16 or 32 rows whose pairs follow one another.
pub fn block(left: Left<'_>, rows: usize, right: &[Line], vectors: usize, sums: &mut Sums) {
    let pairs = right.len() / vectors;
    assert!(
        left.pair_step == 1 && left.first.is_multiple_of(LANES) && left.row_step.is_multiple_of(LANES),
        "rows of whole lines"
    );
    let (lines, row_lines) = (&left.lines[left.first / LANES..], left.row_step / LANES);
    let (whole, rest) = right.split_at(pairs / ROWS * ROWS * vectors);
    if pairs == 0 {
        sums[..rows].as_flattened_mut().as_flattened_mut().fill(0.0);
    }
    if !whole.is_empty() {
        steps([lines, whole], row_lines, rows, vectors, sums, Start::Zero);
    }
    if !rest.is_empty() {
        let mut filled = [Line([0; LANES]); ROWS * VECTORS];
        filled[..rest.len()].copy_from_slice(rest);
        let start = if whole.is_empty() { Start::Zero } else { Start::Sums };
        steps([&lines[pairs / ROWS..], &filled[..ROWS * vectors]], row_lines, rows, vectors, sums, start);
    }
}

/// What the tiles hold before the first step.
#[derive(Clone, Copy)]
enum Start {
    Zero,
    Sums,
}

/// Steps of 16 pairs, at least one: `left` has one line a row and step, `right` `[16, vectors]` lines a step.
fn steps(
    [left, right]: [&[Line]; 2],
    row_lines: usize,
    rows: usize,
    vectors: usize,
    sums: &mut Sums,
    start: Start,
) {
    let steps = right.len() / (ROWS * vectors);
    assert!(rows == ROWS || rows == BLOCK, "tiles of 16 rows");
    assert!(
        steps > 0 && steps <= row_lines && (rows - 1) * row_lines + steps <= left.len(),
        "a line a row and step"
    );
    shape_tiles();
    // For each tile of rows, where its lines are; then tile by tile of sums: its number, the byte of a line of `right` where its
    // columns start, and its byte in sums.
    macro_rules! add_up {
        ($($rows:literal: $(($tile:literal, $column:literal, $sum:literal)),+);+) => {
            // SAFETY: the process may use tiles, since the kernel was chosen, and they have their shapes; left and right hold the
            // lines of all steps as asserted above; sums are `BLOCK` rows of `VECTORS` lines. Nothing else uses the tiles.
            unsafe {
                asm!(
                    "test {goes_on}, {goes_on}",
                    "jnz 3f",
                    $($(concat!("tilezero tmm", $tile),)+)+
                    "jmp 2f",
                    "3:",
                    $($(concat!("tileloadd tmm", $tile, ", [{sums} + {sums_row}*1 + ", $sum, "]"),)+)+
                    "2:",
                    $(
                        concat!("tileloadd tmm6, [{", $rows, "} + {row}*1]"),
                        $(
                            concat!("tileloadd tmm7, [{right} + {pair}*1 + ", $column, "]"),
                            concat!("tdpbf16ps tmm", $tile, ", tmm6, tmm7"),
                        )+
                    )+
                    "add {upper}, 64",
                    "add {lower}, 64",
                    "add {right}, {right_step}",
                    "dec {steps}",
                    "jnz 2b",
                    $($(concat!("tilestored [{sums} + {sums_row}*1 + ", $sum, "], tmm", $tile),)+)+
                    upper = inout(reg) left.as_ptr() => _,
                    lower = inout(reg) left.as_ptr().wrapping_add(ROWS * row_lines) => _,
                    right = inout(reg) right.as_ptr() => _,
                    right_step = in(reg) ROWS * vectors * size_of::<Line>(),
                    row = in(reg) row_lines * size_of::<Line>(),
                    pair = in(reg) vectors * size_of::<Line>(),
                    steps = inout(reg) steps => _,
                    sums = in(reg) sums.as_mut_ptr(),
                    sums_row = in(reg) size_of_val(&sums[0]),
                    goes_on = in(reg) usize::from(matches!(start, Start::Sums)),
                    options(nostack),
                );
            }
        };
    }
    match (rows > ROWS, vectors) {
        (false, 1) => add_up!("upper": (0, 0, 0)),
        (false, 2) => add_up!("upper": (0, 0, 0), (1, 64, 64)),
        (false, _) => add_up!("upper": (0, 0, 0), (1, 64, 64), (2, 128, 128)),
        (true, 1) => add_up!("upper": (0, 0, 0); "lower": (3, 0, 3072)),
        (true, 2) => add_up!("upper": (0, 0, 0), (1, 64, 64); "lower": (4, 64, 3136), (3, 0, 3072)),
        (true, _) => add_up!(
            "upper": (0, 0, 0), (1, 64, 64), (2, 128, 128);
            "lower": (5, 128, 3200), (4, 64, 3136), (3, 0, 3072)
        ),
    }
}

/// A copy of the rows of a left factor whose rows follow one another, line by line, filled up with zeros.
pub fn by_row<'a>(left: Left<'a>, rows: usize, pairs: usize, room: &'a mut Vec<Line>) -> Left<'a> {
    // A line more, so that the rows do not meet in the same sets of a cache.
    let row_lines = pairs.div_ceil(LANES) + 1;
    room.resize((rows * row_lines).max(room.len()), Line([0; LANES]));
    let last = left.first + rows + pairs.saturating_sub(1) * left.pair_step;
    assert!(
        left.row_step == 1 && rows.is_multiple_of(ROWS) && last <= left.lines.len() * LANES,
        "rows side by side"
    );
    let words: *const u32 = left.lines.as_ptr().cast();
    for top in (0..rows).step_by(ROWS) {
        for line in 0..pairs.div_ceil(LANES) {
            let here = LANES.min(pairs - line * LANES);
            let first = left.first + top + line * LANES * left.pair_step;
            let to = &mut room[top * row_lines + line..];
            // SAFETY: `is_granted` has detected the instructions; the first words of the pairs and 16 of each are within the lines.
            unsafe { transpose(words.add(first), left.pair_step, here, to, row_lines) };
        }
    }
    Left { lines: room, first: 0, row_step: row_lines * LANES, pair_step: 1 }
}

/// The transpose of sixteen lines of words, of which the first `here` are read, `step` words apart, and the others are zero, to every
/// `to_step`-th of the lines `to`.
///
/// # Safety
/// The machine has AVX-512, and the words that are read are there.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(words: *const u32, step: usize, here: usize, to: &mut [Line], to_step: usize) {
    let mut x = [_mm512_setzero_si512(); LANES];
    for (line, x) in x.iter_mut().enumerate().take(here) {
        // SAFETY: as for this function.
        *x = unsafe { _mm512_loadu_si512(words.add(line * step).cast()) };
    }
    let mut y = [_mm512_setzero_si512(); LANES];
    for i in (0..LANES).step_by(2) {
        (y[i], y[i + 1]) = (_mm512_unpacklo_epi32(x[i], x[i + 1]), _mm512_unpackhi_epi32(x[i], x[i + 1]));
    }
    // Of each quarter of a line: x[4 i + j] holds word j of the lines 4 i to 4 i + 3.
    for i in (0..LANES).step_by(4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for j in 0..4 {
        let [a, b, c, d] = [x[j], x[4 + j], x[8 + j], x[12 + j]];
        let (low, high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (low_after, high_after) =
            (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        y[j] = _mm512_shuffle_i32x4::<0x88>(low, low_after);
        y[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low, low_after);
        y[4 + j] = _mm512_shuffle_i32x4::<0x88>(high, high_after);
        y[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high, high_after);
    }
    for (row, y) in y.into_iter().enumerate() {
        // SAFETY: a line has 16 words.
        unsafe { _mm512_storeu_si512(to[row * to_step].0.as_mut_ptr().cast(), y) };
    }
}
