//! How exactly matrices are multiplied.

/// What the factors of a matrix product are; sums are f32, and so is everything that is not such a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Precision {
    /// f32 as they are.
    #[default]
    F32,
    /// Rounded to bf16.
    Bf16,
}

impl Precision {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}
