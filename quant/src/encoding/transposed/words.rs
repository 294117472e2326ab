//! 32-bit words of codes that run along the outputs of a matrix, and the way from rows of outputs to rows of inputs.

use rayon::prelude::*;

use super::super::integer::bits;

/// Lines that are written together, so that what is read once serves several.
const BAND: usize = 32;

/// The output feature, of eight in a row, that each field of a word belongs to, lowest bits first.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// A matrix of `rows` lines of items of `width` bytes with its lines and columns changed over.
pub(super) fn transposed(bytes: &[u8], rows: usize, width: usize) -> Vec<u8> {
    let line = bytes.len() / rows.max(1); // of what comes in
    let (out_line, mut out) = (rows * width, vec![0; bytes.len()]);
    out.par_chunks_mut((out_line * BAND).max(1)).enumerate().for_each(|(band, out)| {
        for row in 0..rows {
            let items = bytes[row * line..][..line].chunks_exact(width).skip(band * BAND);
            for (to, item) in out.chunks_exact_mut(out_line).zip(items) {
                to[row * width..][..width].copy_from_slice(item);
            }
        }
    });
    out
}

/// Takes 1 from every zero, in lines of `line` bytes, as version 1 of GPTQ's files has them.
pub(super) fn subtract_one(zeros: &mut [u8], bits: u8, line: usize) {
    shift(zeros, bits, line, -1);
}

/// The reverse: in whole words where fields do not straddle them, so that a zero of 0 whose subtraction had borrowed from its neighbour
/// comes back as both were.
pub(super) fn add_one(zeros: &mut [u8], bits: u8, line: usize) {
    shift(zeros, bits, line, 1);
}

fn shift(zeros: &mut [u8], bits: u8, line: usize, by: i8) {
    let max = u8::MAX >> (8 - bits);
    if 32 % u32::from(bits) != 0 {
        let mut fields = vec![0; line * 8 / usize::from(bits)];
        for line in zeros.chunks_exact_mut(line.max(1)) {
            bits::unpack(line, bits, &mut fields);
            for field in &mut fields {
                *field = field.wrapping_add_signed(by) & max;
            }
            bits::pack(&fields, bits, line);
        }
        return;
    }
    let ones = u32::MAX / u32::from(max);
    for word in zeros.as_chunks_mut::<4>().0 {
        let held = u32::from_le_bytes(*word);
        *word = if by < 0 { held.wrapping_sub(ones) } else { held.wrapping_add(ones) }.to_le_bytes();
    }
}

/// Words of the codes of 4 bits of eight neighbours each, in lines of `line`; what lacks neighbours stands with zeros.
pub(super) fn pack_awq(codes: &[u8], line: usize) -> Vec<u8> {
    let word = |codes: &[u8]| {
        let field = |at: &usize| u32::from(codes.get(*at).map_or(0, |code| code & 15));
        AWQ_ORDER.iter().rev().fold(0, |word, at| word << 4 | field(at)).to_le_bytes()
    };
    codes.chunks_exact(line.max(1)).flat_map(|line| line.chunks(8).flat_map(word)).collect()
}

/// The reverse of [`pack_awq`].
pub(super) fn unpack_awq(words: &[u8], line: usize) -> Vec<u8> {
    let unpacked = |word: &[u8; 4]| {
        let (word, mut codes) = (u32::from_le_bytes(*word), [0; 8]);
        AWQ_ORDER.iter().enumerate().for_each(|(field, &at)| codes[at] = (word >> (4 * field)) as u8 & 15);
        codes
    };
    let lines = words.chunks_exact((4 * line.div_ceil(8)).max(1));
    lines.flat_map(|words| words.as_chunks().0.iter().flat_map(unpacked).take(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_change_over_whatever_the_width() {
        for (rows, cols, width) in [(3, 70, 1), (33, 5, 2), (1, 1, 4), (64, 32, 4), (4, 0, 2)] {
            let bytes: Vec<u8> = (0..rows * cols * width).map(|at| (at * 7 % 251) as u8).collect();
            let over = transposed(&bytes, rows, width);
            for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                let [from, to] = [row * cols + col, col * rows + row].map(|at| at * width);
                assert_eq!(over[to..to + width], bytes[from..from + width], "{row} {col}");
            }
        }
    }

    /// The zeros of the words `0x11111111` are all 1, and 0 after the subtraction.
    #[test]
    fn zeros_less_one_come_back_also_where_one_of_them_was_0() {
        for (bits, words) in [(2, 1), (3, 3), (4, 1), (8, 1)] {
            let max = u8::MAX >> (8 - bits);
            let count = 32 * words / usize::from(bits);
            let zeros: Vec<u8> = (0..count).map(|at| (at * 5 % 7) as u8 & max).collect();
            let mut bytes = vec![0; 4 * words];
            bits::pack(&zeros, bits, &mut bytes);
            let packed = bytes.clone();
            subtract_one(&mut bytes, bits, 4 * words);
            assert_ne!(bytes, packed);
            add_one(&mut bytes, bits, 4 * words);
            assert_eq!(bytes, packed, "{bits} bits");
        }
        let mut ones = 0x1111_1111u32.to_le_bytes();
        subtract_one(&mut ones, 4, 4);
        assert_eq!(ones, [0; 4]);
    }

    #[test]
    fn awq_words_hold_the_even_outputs_below_the_odd_ones() {
        let words = pack_awq(&[0, 1, 2, 3, 4, 5, 6, 7], 8);
        assert_eq!(u32::from_le_bytes(words[..].try_into().expect("one word")), 0x7531_6420);
        assert_eq!(unpack_awq(&words, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        let lines = [1, 2, 3, 4, 5, 6];
        assert_eq!(unpack_awq(&pack_awq(&lines, 3), 3), lines);
    }
}
