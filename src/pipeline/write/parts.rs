//! A matrix that a folder holds as several tensors, on its way there some rows at a time.

use std::collections::HashMap;

use attar_quant::{FolderEncoding, Holds, Part};

use crate::diagnostic::Result;

/// A matrix whose rows have not all come.
#[derive(Default)]
pub struct Unfinished {
    rows: usize,
    columns: HashMap<&'static str, Vec<u8>>, // tensors whose rows lie side by side, by ending
}

impl Unfinished {
    /// Gives `write` what can be written of a `[rows, cols]` matrix now that its next `here` rows have come, `packed`. What lies side by
    /// side waits for the last of them.
    ///
    /// # Errors
    /// Those of `write`; bytes that are not as many as the shape takes.
    pub fn add(
        &mut self,
        encoding: &dyn FolderEncoding,
        [rows, cols]: [usize; 2],
        (packed, here): (&[u8], usize),
        mut write: impl FnMut(&Part, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (whole, before) = (encoding.parts(rows, cols), encoding.parts(self.rows, cols));
        let is_first = self.rows == 0;
        self.rows += here;
        let places = whole.iter().zip(before.iter().map(Part::count));
        for ((part, bytes), (whole, before)) in encoding.split(packed, here, cols)?.into_iter().zip(places) {
            match &whole.holds {
                Holds::Rows => write(whole, bytes)?,
                Holds::Whole if is_first => write(whole, bytes)?,
                Holds::Said(said) if is_first => write(whole, said)?,
                Holds::Whole | Holds::Said(_) => {}
                Holds::Columns => {
                    let all =
                        self.columns.entry(part.ending).or_insert_with(|| vec![0; whole.packed_bytes()]);
                    let [line, own, at] =
                        [whole.count(), part.count(), before].map(|n| n * part.width_bytes());
                    for (to, from) in all.chunks_exact_mut(line.max(1)).zip(bytes.chunks_exact(own.max(1))) {
                        to[at..at + own].copy_from_slice(from);
                    }
                    if self.rows == rows {
                        write(whole, all)?;
                    }
                }
            }
        }
        Ok(())
    }
}
