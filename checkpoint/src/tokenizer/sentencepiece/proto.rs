//! Reads `tokenizer.model`: the few protobuf fields of a `SentencePiece` model that encoding needs.
//!
//! # Source
//! `sentencepiece_model.proto` of google/sentencepiece names and numbers the fields.

use crate::tokenizer::vocabulary::{Token, TokenKind};

/// What a `SentencePiece` model file holds.
#[derive(Debug, Default)]
pub(in crate::tokenizer) struct ModelFile {
    /// The vocabulary, by id.
    pub pieces: Vec<Token>,
    pub trainer: TrainerSpec,
    pub normalizer: NormalizerSpec,
}

/// How the vocabulary was made, as far as it matters for its use.
#[derive(Debug)]
pub(in crate::tokenizer) struct TrainerSpec {
    /// 1 unigram, 2 BPE, 3 word, 4 char.
    pub model_type: u64,
    pub treat_whitespace_as_suffix: bool,
    /// Ids, -1 where there is no such token.
    pub unk_id: i64,
    pub bos_id: i64,
    pub eos_id: i64,
    pub pad_id: i64,
}

impl Default for TrainerSpec {
    fn default() -> Self {
        Self { model_type: 1, treat_whitespace_as_suffix: false, unk_id: 0, bos_id: 1, eos_id: 2, pad_id: -1 }
    }
}

impl TrainerSpec {
    /// The ids by GGUF's words for their roles.
    pub fn roles(&self) -> [(&'static str, i64); 4] {
        [("bos", self.bos_id), ("eos", self.eos_id), ("unknown", self.unk_id), ("padding", self.pad_id)]
    }
}

/// What happens to a text before it is encoded.
#[derive(Debug, Clone)]
pub(in crate::tokenizer) struct NormalizerSpec {
    pub precompiled_charsmap: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
}

impl Default for NormalizerSpec {
    fn default() -> Self {
        Self {
            precompiled_charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

/// Parses a whole model file.
///
/// # Errors
/// Says what is wrong with the bytes.
pub(in crate::tokenizer) fn parse(bytes: &[u8]) -> Result<ModelFile, String> {
    let mut model = ModelFile::default();
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(bytes)) => {
                let id = model.pieces.len();
                model.pieces.push(piece(bytes).map_err(|cause| format!("piece {id}: {cause}"))?);
            }
            (2, Field::Bytes(bytes)) => model.trainer = trainer(bytes)?,
            (3, Field::Bytes(bytes)) => model.normalizer = normalizer(bytes)?,
            _ => {}
        }
    }
    if model.pieces.is_empty() {
        return Err("it holds no pieces".to_owned());
    }
    Ok(model)
}

fn piece(bytes: &[u8]) -> Result<Token, String> {
    let mut token = Token { text: String::new(), score: 0.0, kind: TokenKind::Normal };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => {
                token.text = String::from_utf8(text.to_vec()).map_err(|_| "its text is not UTF-8")?;
            }
            (2, Field::Fixed32(bits)) => token.score = f32::from_bits(bits),
            (3, Field::Varint(number)) => {
                token.kind = i64::try_from(number)
                    .ok()
                    .and_then(TokenKind::from_number)
                    .ok_or_else(|| format!("no piece type has number {number}"))?;
            }
            _ => {}
        }
    }
    Ok(token)
}

fn trainer(bytes: &[u8]) -> Result<TrainerSpec, String> {
    let mut spec = TrainerSpec::default();
    for field in Fields(bytes) {
        match field? {
            (3, Field::Varint(value)) => spec.model_type = value,
            (24, Field::Varint(value)) => spec.treat_whitespace_as_suffix = value != 0,
            (40, Field::Varint(value)) => spec.unk_id = signed(value),
            (41, Field::Varint(value)) => spec.bos_id = signed(value),
            (42, Field::Varint(value)) => spec.eos_id = signed(value),
            (43, Field::Varint(value)) => spec.pad_id = signed(value),
            _ => {}
        }
    }
    Ok(spec)
}

fn normalizer(bytes: &[u8]) -> Result<NormalizerSpec, String> {
    let mut spec = NormalizerSpec::default();
    for field in Fields(bytes) {
        match field? {
            (2, Field::Bytes(value)) => spec.precompiled_charsmap = value.to_vec(),
            (3, Field::Varint(value)) => spec.add_dummy_prefix = value != 0,
            (4, Field::Varint(value)) => spec.remove_extra_whitespaces = value != 0,
            (5, Field::Varint(value)) => spec.escape_whitespaces = value != 0,
            _ => {}
        }
    }
    Ok(spec)
}

/// Protobuf writes a negative int32 as the two's complement of 64 bits.
fn signed(value: u64) -> i64 {
    value.cast_signed()
}

/// A field's value in one of protobuf's wire types.
enum Field<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of one message, in file order: number and value.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (head, tail) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| format!("a field of {len} bytes has only {} left", self.0.len()))?;
        self.0 = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is longer than 64 bits".to_owned())
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), String> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| "a field is longer than memory")?;
                Field::Bytes(self.take(len)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            wire => return Err(format!("no field has wire type {wire}")),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_model_with_one_piece_is_read() {
        // piece { "a", -1.5, type 6 }, trainer { model_type 2, bos_id -1 }, normalizer { no dummy prefix }
        let mut bytes = vec![0x0a, 10, 0x0a, 1, b'a', 0x15];
        bytes.extend((-1.5_f32).to_le_bytes());
        bytes.extend([0x18, 6, 0x12, 14, 0x18, 2, 0xc8, 0x02]);
        bytes.extend([0xff; 9]);
        bytes.extend([0x01, 0x1a, 2, 0x18, 0]);
        let model = parse(&bytes).expect("a sound file");
        assert_eq!(model.pieces, [Token { text: "a".to_owned(), score: -1.5, kind: TokenKind::Byte }]);
        assert_eq!((model.trainer.model_type, model.trainer.bos_id, model.trainer.eos_id), (2, -1, 2));
        assert!(!model.normalizer.add_dummy_prefix);
        assert!(model.normalizer.escape_whitespaces);
    }

    #[test]
    fn a_file_cut_short_is_refused() {
        let whole = [0x0a, 3, 0x0a, 1, b'a'];
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
