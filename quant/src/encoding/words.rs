//! The words of GGUF's codebook types: the runs of four or eight weights that have an index.
//!
//! A word says for each weight its place among the rising magnitudes (or ternary levels) of the format; signs, where there are
//! any, are stored beside it. A code is the place of a weight among all its levels, negative ones first.

/// The largest number of weights in a word.
const LONGEST: usize = 8;
/// What stands in [`Words::index`] where there is no word.
const NONE: u16 = u16::MAX;

/// A table of words, in the order of their indices.
pub(super) struct Words {
    places: Vec<[u8; LONGEST]>,
    index: Vec<u16>, // by the packed places
    len: usize,
    bits: usize,
}

impl Words {
    /// Words of `len` weights from the packed places that `fixtures/golden/quant/grids.py` writes.
    pub fn new(packed: &[u8], len: usize) -> Self {
        let bits = if len == LONGEST { 2 } else { 3 };
        let mut index = vec![NONE; 1 << (bits * len)];
        let mut places = Vec::with_capacity(packed.len() / 2);
        for bytes in packed.as_chunks::<2>().0 {
            let word = u16::from_le_bytes(*bytes);
            index[usize::from(word)] = places.len() as u16;
            places.push(std::array::from_fn(|i| {
                if i < len { (word >> (bits * i)) as u8 & ((1 << bits) - 1) } else { 0 }
            }));
        }
        Self { places, index, len, bits }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Weights in a word.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The places of the weights of word `index`.
    pub fn places(&self, index: usize) -> &[u8] {
        &self.places[index][..self.len]
    }

    /// The index of the word with these places.
    ///
    /// # Panics
    /// Where there is none: codes to be stored come from the codebook.
    pub fn find(&self, places: impl Iterator<Item = u8>) -> usize {
        let packed =
            places.enumerate().fold(0, |packed, (i, place)| packed | usize::from(place) << (self.bits * i));
        let index = self.index[packed];
        assert!(index != NONE, "the run of codes with the places {packed:#x} is not in the codebook");
        usize::from(index)
    }
}

/// How the signs of eight weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    /// One bit each.
    Free,
    /// Seven bits: the number of negative weights is even.
    Even,
}

/// The code of the weight in `place` of `magnitudes`.
#[inline(always)]
pub(super) fn signed_code(place: u8, negative: bool, magnitudes: u8) -> u8 {
    if negative { magnitudes - 1 - place } else { magnitudes + place }
}

/// The place of the magnitude of `code`: the reverse of [`signed_code`].
pub(super) fn place_of(code: u8, magnitudes: u8) -> u8 {
    if code < magnitudes { magnitudes - 1 - code } else { code - magnitudes }
}

/// One bit for each of eight codes, set where it is negative.
///
/// # Panics
/// Where an odd number is negative and the signs are [`Signs::Even`]: codes to be stored come from the codebook.
pub(super) fn sign_bits(codes: &[u8], magnitudes: u8, signs: Signs) -> u8 {
    let bits = codes.iter().rev().fold(0, |bits, &code| bits << 1 | u8::from(code < magnitudes));
    let odd = bits.count_ones() % 2 == 1;
    assert!(
        signs == Signs::Free || !odd,
        "a run with an odd number of negative codes is not in the codebook"
    );
    bits
}

/// All eight signs from the seven stored.
pub(super) fn even_signs(seven: u8) -> u8 {
    let seven = seven & 127;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// The codes of words, one after the other, with one bit of `signs` a weight.
pub(super) fn read_signed(words: &Words, indices: &[usize], signs: u8, magnitudes: u8, codes: &mut [u8]) {
    let places = indices.iter().flat_map(|&index| words.places(index));
    for (i, (code, &place)) in codes.iter_mut().zip(places).enumerate() {
        *code = signed_code(place, signs >> i & 1 == 1, magnitudes);
    }
}

/// The index of the word whose magnitudes `codes` have.
pub(super) fn find_signed(words: &Words, codes: &[u8], magnitudes: u8) -> usize {
    words.find(codes.iter().map(|&code| place_of(code, magnitudes)))
}
