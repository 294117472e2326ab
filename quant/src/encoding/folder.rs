//! How a matrix lies in a folder of safetensors: as which tensors.

use std::sync::Arc;

use attar_checkpoint::Dtype;

use super::Encoding;
use crate::Error;

/// One of the tensors that stand for a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What its name has in the place of the weight's `.weight`.
    pub ending: &'static str,
    /// How its values are stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What of the matrix it holds.
    pub holds: Holds,
}

/// What of a matrix a tensor holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// Something of each row, or of so many rows together, one after the other: the outermost dimension counts them.
    Rows,
    /// The same side by side: the innermost dimension counts them.
    Columns,
    /// Something of the matrix as a whole, which the packed bytes of any of its rows hold alike.
    Whole,
    /// These bytes, which follow from the encoding and the shape; packed bytes lack them.
    Said(Vec<u8>),
}

impl Part {
    /// A tensor that holds something of each row.
    #[must_use]
    pub fn rows(ending: &'static str, dtype: Dtype, shape: [usize; 2]) -> Self {
        Self { ending, dtype, shape: shape.to_vec(), holds: Holds::Rows }
    }

    /// Its name beside a weight `X.weight`; `None` for a name that does not end so.
    #[must_use]
    pub fn name(&self, weight: &str) -> Option<String> {
        Some(format!("{}{}", weight.strip_suffix(".weight")?, self.ending))
    }

    /// Bytes of one value.
    #[must_use]
    pub fn width_bytes(&self) -> usize {
        self.dtype.block_bytes()
    }

    /// Bytes of it that are in the packed bytes of the matrix.
    #[must_use]
    pub fn packed_bytes(&self) -> usize {
        match self.holds {
            Holds::Said(_) => 0,
            _ => self.shape.iter().product::<usize>() * self.width_bytes(),
        }
    }

    /// How many of the matrix's rows, or of what it holds of so many together, it has: where the next one would come.
    #[must_use]
    pub fn count(&self) -> usize {
        match self.holds {
            Holds::Rows => self.shape.first().copied().unwrap_or_default(),
            Holds::Columns => self.shape.last().copied().unwrap_or_default(),
            Holds::Whole | Holds::Said(_) => 0,
        }
    }
}

/// An [`Encoding`] that a folder of safetensors holds: each matrix as one or more tensors.
///
/// The packed bytes are those tensors, one after the other. What an encoding must know from outside its matrix, such as a scale that
/// several matrices share, is a field of the encoding: every tensor of a plan has one of its own.
pub trait FolderEncoding: Encoding {
    /// The tensors that stand for a `[rows, cols]` matrix, in the order of its packed bytes.
    ///
    /// Of some rows it says what those have of each tensor: rows before them, then they themselves, then rows after them fill the
    /// tensor of all, each in whole words, where runs begin at multiples of [`rows_together`](Self::rows_together).
    fn parts(&self, rows: usize, cols: usize) -> Vec<Part>;

    /// Rows of a matrix of `rows` that can only be packed together; all of them where they cannot be told apart.
    fn rows_together(&self, _rows: usize) -> usize {
        32 // as many fields of any width fill whole 32-bit words
    }

    /// The packed bytes of a `[rows, cols]` matrix, part by part; empty for what they lack.
    ///
    /// # Errors
    /// Where the bytes are not as many as the shape takes.
    fn split<'a>(&self, bytes: &'a [u8], rows: usize, cols: usize) -> Result<Vec<(Part, &'a [u8])>, Error> {
        self.check_bytes(bytes, rows, cols)?;
        let mut rest = bytes;
        let mut next = |part: Part| {
            let (own, after) = rest.split_at(part.packed_bytes());
            rest = after;
            (part, own)
        };
        Ok(self.parts(rows, cols).into_iter().map(&mut next).collect())
    }

    /// Whether all weights of a matrix share a scale, which programs that read several matrices as one expect those to share too.
    fn is_shared(&self) -> bool {
        false
    }

    /// The same with that scale fixed, for matrices of which the largest magnitude is `largest`; `None` where nothing is shared.
    fn for_largest(&self, _largest: f32) -> Option<Arc<dyn FolderEncoding>> {
        None
    }

    /// The float type that what a reader computes in should be, because its scales are cast to that.
    fn float_dtype(&self) -> Option<Dtype>;
}

/// Bytes of the packed matrix that `parts` make up.
pub(super) fn packed_bytes(parts: &[Part]) -> usize {
    parts.iter().map(Part::packed_bytes).sum()
}
