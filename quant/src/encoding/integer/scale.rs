use attar_checkpoint::Dtype;
use half::{bf16, f16};

/// How the scales of grouped integers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleDtype {
    /// Half precision: the finest of the 16-bit types.
    F16,
    /// bfloat16: eight bits of mantissa, so a scale may be off by 0.2 %; the search knows.
    Bf16,
    /// 32-bit floats: what a reader computes then equals what is computed here, to the last bit.
    F32,
}

impl ScaleDtype {
    /// Bytes per scale.
    #[must_use]
    pub const fn width_bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The type of the tensor that holds them.
    #[must_use]
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::F32 => Dtype::F32,
        }
    }

    /// The one that such a tensor holds; `None` for types that scales are not stored as.
    #[must_use]
    pub fn of(dtype: Dtype) -> Option<Self> {
        [Self::F16, Self::Bf16, Self::F32].into_iter().find(|scale| scale.dtype() == dtype)
    }

    /// The stored values nearest to `x`: at it, just below and just above in magnitude; all finite.
    pub(super) fn around(self, x: f32) -> [f32; 3] {
        match self {
            Self::F16 => {
                let bits = f16::from_f32(x).to_bits();
                neighbours(bits, f16::MAX.to_bits()).map(|bits| f16::from_bits(bits).to_f32())
            }
            Self::Bf16 => {
                let bits = bf16::from_f32(x).to_bits();
                neighbours(bits, bf16::MAX.to_bits()).map(|bits| bf16::from_bits(bits).to_f32())
            }
            Self::F32 => [x; 3],
        }
    }

    /// The [`width_bytes`](Self::width_bytes) of one scale.
    pub(in crate::encoding) fn bytes(self, x: f32) -> impl Iterator<Item = u8> {
        let bytes = match self {
            Self::F16 => u32::from(f16::from_f32(x).to_bits()),
            Self::Bf16 => u32::from(bf16::from_f32(x).to_bits()),
            Self::F32 => x.to_bits(),
        };
        bytes.to_le_bytes().into_iter().take(self.width_bytes())
    }

    /// The nearest it can hold.
    pub(in crate::encoding) fn rounded(self, x: f32) -> f32 {
        let bytes: Vec<u8> = self.bytes(x).collect();
        self.read(&bytes)
    }

    /// Reads one scale from its [`width_bytes`](Self::width_bytes).
    pub(in crate::encoding) fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }
}

/// Sign and magnitude: neighbouring bit patterns are neighbouring numbers.
fn neighbours(bits: u16, largest: u16) -> [u16; 3] {
    let (sign, magnitude) = (bits & 0x8000, (bits & 0x7fff).min(largest));
    [magnitude, magnitude.saturating_sub(1), (magnitude + 1).min(largest)].map(|magnitude| sign | magnitude)
}
