//! How values lie in bytes: the storage tags of safetensors and GGUF.

use std::fmt;

/// How a tensor's values are stored.
///
/// Types both containers have (`f32`, `i8`, ...) carry one tag whichever file they came from;
/// [`Dtype::Ggml`] is left for the types only GGUF has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is its type's name")]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    /// 8 bits, 4 of exponent, no infinities (the OCP `e4m3fn`).
    F8E4m3,
    /// 8 bits, 5 of exponent.
    F8E5m2,
    /// 8 bits, all exponent: a scale, not a weight.
    F8E8m0,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// One of ggml's own types.
    Ggml(GgmlType),
}

/// Storage types that are no blocks: the tag, its safetensors name, its bytes, its ggml twin.
const PLAIN: &[(Dtype, &str, usize, Option<GgmlType>)] = &[
    (Dtype::F64, "F64", 8, Some(GgmlType::F64)),
    (Dtype::F32, "F32", 4, Some(GgmlType::F32)),
    (Dtype::F16, "F16", 2, Some(GgmlType::F16)),
    (Dtype::Bf16, "BF16", 2, Some(GgmlType::Bf16)),
    (Dtype::F8E4m3, "F8_E4M3", 1, None),
    (Dtype::F8E5m2, "F8_E5M2", 1, None),
    (Dtype::F8E8m0, "F8_E8M0", 1, None),
    (Dtype::I64, "I64", 8, Some(GgmlType::I64)),
    (Dtype::I32, "I32", 4, Some(GgmlType::I32)),
    (Dtype::I16, "I16", 2, Some(GgmlType::I16)),
    (Dtype::I8, "I8", 1, Some(GgmlType::I8)),
    (Dtype::U64, "U64", 8, None),
    (Dtype::U32, "U32", 4, None),
    (Dtype::U16, "U16", 2, None),
    (Dtype::U8, "U8", 1, None),
    (Dtype::Bool, "BOOL", 1, None),
];

impl Dtype {
    fn plain(self) -> Option<&'static (Dtype, &'static str, usize, Option<GgmlType>)> {
        PLAIN.iter().find(|(dtype, ..)| *dtype == self)
    }

    /// Whether [`decode_floats`](crate::decode_floats) has an answer.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4m3 | Self::F8E5m2)
    }

    /// The tag safetensors writes, if it has one.
    pub fn safetensors_name(self) -> Option<&'static str> {
        self.plain().map(|row| row.1)
    }

    /// The type a safetensors tag stands for.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        PLAIN.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The type GGUF stores this as, if it can.
    pub fn ggml_type(self) -> Option<GgmlType> {
        match self {
            Self::Ggml(ggml) => Some(ggml),
            plain => plain.plain().and_then(|row| row.3),
        }
    }

    /// How many values share one block; 1 for everything but ggml's block types.
    pub fn block_len(self) -> usize {
        match self {
            Self::Ggml(ggml) => ggml.block_len(),
            _ => 1,
        }
    }

    /// Bytes of one block; of one value where the type has no blocks.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Ggml(ggml) => ggml.block_bytes(),
            plain => plain.plain().map_or(0, |row| row.2),
        }
    }

    /// Bytes of a tensor of `shape` (outermost first).
    ///
    /// `None` where the count overflows or the last dimension is no whole number of blocks.
    pub fn bytes_for(self, shape: &[usize]) -> Option<u64> {
        let row_len = shape.last().copied().unwrap_or(1);
        if row_len % self.block_len() != 0 {
            return None;
        }
        let rows = shape[..shape.len().saturating_sub(1)]
            .iter()
            .try_fold(1u64, |product, &dim| product.checked_mul(dim as u64))?;
        let row_bytes = ((row_len / self.block_len()) as u64).checked_mul(self.block_bytes() as u64)?;
        rows.checked_mul(row_bytes)
    }
}

impl From<GgmlType> for Dtype {
    /// The common tag where both containers have the type, [`Dtype::Ggml`] otherwise.
    fn from(ggml: GgmlType) -> Self {
        PLAIN.iter().find(|row| row.3 == Some(ggml)).map_or(Self::Ggml(ggml), |row| row.0)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ggml(ggml) => ggml.fmt(f),
            plain => f.write_str(&plain.safetensors_name().unwrap_or_default().to_ascii_lowercase()),
        }
    }
}

/// A tensor type of ggml, by the id GGUF stores.
///
/// # Source
/// `enum ggml_type` of llama.cpp at commit 0c1e57098.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is its type's name")]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    Iq2Xxs,
    Iq2Xs,
    Iq3Xxs,
    Iq1S,
    Iq4Nl,
    Iq3S,
    Iq2S,
    Iq4Xs,
    I8,
    I16,
    I32,
    I64,
    F64,
    Iq1M,
    Bf16,
    Tq1_0,
    Tq2_0,
    Mxfp4,
    Nvfp4,
    Q1_0,
    Q2_0,
}

/// Every type: tag, id in the file, name, values in a block, bytes of a block.
const GGML: &[(GgmlType, u32, &str, usize, usize)] = &[
    (GgmlType::F32, 0, "f32", 1, 4),
    (GgmlType::F16, 1, "f16", 1, 2),
    (GgmlType::Q4_0, 2, "q4_0", 32, 18),
    (GgmlType::Q4_1, 3, "q4_1", 32, 20),
    (GgmlType::Q5_0, 6, "q5_0", 32, 22),
    (GgmlType::Q5_1, 7, "q5_1", 32, 24),
    (GgmlType::Q8_0, 8, "q8_0", 32, 34),
    (GgmlType::Q8_1, 9, "q8_1", 32, 36),
    (GgmlType::Q2K, 10, "q2_k", 256, 84),
    (GgmlType::Q3K, 11, "q3_k", 256, 110),
    (GgmlType::Q4K, 12, "q4_k", 256, 144),
    (GgmlType::Q5K, 13, "q5_k", 256, 176),
    (GgmlType::Q6K, 14, "q6_k", 256, 210),
    (GgmlType::Q8K, 15, "q8_k", 256, 292),
    (GgmlType::Iq2Xxs, 16, "iq2_xxs", 256, 66),
    (GgmlType::Iq2Xs, 17, "iq2_xs", 256, 74),
    (GgmlType::Iq3Xxs, 18, "iq3_xxs", 256, 98),
    (GgmlType::Iq1S, 19, "iq1_s", 256, 50),
    (GgmlType::Iq4Nl, 20, "iq4_nl", 32, 18),
    (GgmlType::Iq3S, 21, "iq3_s", 256, 110),
    (GgmlType::Iq2S, 22, "iq2_s", 256, 82),
    (GgmlType::Iq4Xs, 23, "iq4_xs", 256, 136),
    (GgmlType::I8, 24, "i8", 1, 1),
    (GgmlType::I16, 25, "i16", 1, 2),
    (GgmlType::I32, 26, "i32", 1, 4),
    (GgmlType::I64, 27, "i64", 1, 8),
    (GgmlType::F64, 28, "f64", 1, 8),
    (GgmlType::Iq1M, 29, "iq1_m", 256, 56),
    (GgmlType::Bf16, 30, "bf16", 1, 2),
    (GgmlType::Tq1_0, 34, "tq1_0", 256, 54),
    (GgmlType::Tq2_0, 35, "tq2_0", 256, 66),
    (GgmlType::Mxfp4, 39, "mxfp4", 32, 17),
    (GgmlType::Nvfp4, 40, "nvfp4", 64, 36),
    (GgmlType::Q1_0, 41, "q1_0", 128, 18),
    (GgmlType::Q2_0, 42, "q2_0", 64, 18),
];

impl GgmlType {
    /// Every type that may stand in a file, in the order of their ids.
    pub fn all() -> impl Iterator<Item = Self> {
        GGML.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (GgmlType, u32, &'static str, usize, usize) {
        // The table is in declaration order; a test holds it to that.
        &GGML[self as usize]
    }

    /// The id GGUF stores.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// The type an id stands for; `None` for unknown ids and for those ggml has removed.
    pub fn from_id(id: u32) -> Option<Self> {
        GGML.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// The name, in lower case: `q4_k`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// The type of a name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        GGML.iter().find(|row| row.2.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// Values in one block.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bits that a value takes on average.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_len() as f64
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ggml_table_is_in_declaration_order_and_every_id_and_name_leads_back() {
        for (place, row) in GGML.iter().enumerate() {
            assert_eq!(row.0 as usize, place, "{}", row.2);
            assert_eq!(GgmlType::from_id(row.1), Some(row.0));
            assert_eq!(GgmlType::from_name(row.2), Some(row.0));
            assert_eq!(Dtype::from(row.0).ggml_type(), Some(row.0));
            assert_eq!(Dtype::from(row.0).block_bytes(), row.4, "{}", row.2);
        }
    }

    #[test]
    fn removed_and_unknown_ids_stand_for_nothing() {
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(GgmlType::from_id(id), None, "{id}");
        }
    }

    #[test]
    fn every_safetensors_tag_leads_back() {
        for row in PLAIN {
            assert_eq!(Dtype::from_safetensors_name(row.1), Some(row.0));
        }
    }

    #[test]
    fn bytes_are_counted_in_whole_blocks_and_never_overflow() {
        let q4_k = Dtype::Ggml(GgmlType::Q4K);
        assert_eq!(q4_k.bytes_for(&[3, 512]), Some(3 * 2 * 144));
        assert_eq!(q4_k.bytes_for(&[3, 128]), None);
        assert_eq!(Dtype::F32.bytes_for(&[]), Some(4));
        assert_eq!(Dtype::F32.bytes_for(&[0, 7]), Some(0));
        assert_eq!(Dtype::F32.bytes_for(&[1 << 62, 1]), None);
        assert_eq!(Dtype::I8.bytes_for(&[1 << 40, 1 << 40]), None);
    }
}
