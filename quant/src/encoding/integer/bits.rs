//! A dense stream of codes in little-endian 32-bit words, lowest bits first; a code may straddle two words.

/// Words that `codes` codes of `bits` bits take.
pub(in super::super) fn words(codes: usize, bits: u8) -> usize {
    (codes * usize::from(bits)).div_ceil(32)
}

/// Fills `bytes`, whole words, from the front; bits past the last code are 0.
pub(in super::super) fn pack(codes: &[u8], bits: u8, bytes: &mut [u8]) {
    let (mut stream, mut held) = (0u32, 0u8);
    let mut out = bytes.iter_mut();
    for &code in codes {
        stream |= u32::from(code) << held;
        held += bits;
        while held >= 8 {
            *out.next().expect("bytes for every code") = stream as u8;
            stream >>= 8;
            held -= 8;
        }
    }
    if held > 0 {
        *out.next().expect("bytes for every code") = stream as u8;
    }
    out.for_each(|byte| *byte = 0);
}

/// The reverse of [`pack`].
pub(in super::super) fn unpack(bytes: &[u8], bits: u8, codes: &mut [u8]) {
    let mask = u8::MAX >> (8 - bits);
    let (mut stream, mut held) = (0u32, 0u8);
    let mut bytes = bytes.iter();
    for code in codes {
        if held < bits {
            stream |= u32::from(*bytes.next().expect("bytes for every code")) << held;
            held += 8;
        }
        *code = stream as u8 & mask;
        stream >>= bits;
        held -= bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words are little-endian, so a stream of bits over words is the same stream over bytes.
    #[test]
    fn three_bit_codes_straddle_bytes_and_words() {
        let codes: Vec<u8> = (0..43).map(|i| (i * 5 + 3) % 8).collect();
        let mut bytes = vec![0xff; 4 * words(codes.len(), 3)];
        pack(&codes, 3, &mut bytes);
        assert_eq!(bytes.len(), 20);
        for (i, &code) in codes.iter().enumerate() {
            let word = |w: usize| {
                bytes
                    .get(4 * w..4 * w + 4)
                    .map_or(0, |b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            };
            let stream = word(3 * i / 32) | word(3 * i / 32 + 1) << 32;
            assert_eq!((stream >> (3 * i % 32)) as u8 & 7, code, "code {i}");
        }
        let mut back = vec![0; 43];
        unpack(&bytes, 3, &mut back);
        assert_eq!(back, codes);
    }
}
