//! From the bytes of a checkpoint to the numbers of a tensor.

use std::ops::Range;
use std::sync::Arc;

use attar_checkpoint::compressed_tensors::Rounds;
use attar_checkpoint::{Dtype, TensorInfo, decode_floats};
use attar_model::{FilePlace, LoadError, Rounding, RowOrder, TensorSpec, Weights};
use attar_quant::{Encoding, Fit, FolderEncoding, Holds, encoding_of};
use ndarray::{Array2, ArrayD, Axis, IxDyn};
use rayon::prelude::*;

use super::{Opened, Source, StorageError, rows_and_cols};
use crate::layout::{kind_of, rounding};
use crate::scheme::{IntegerScheme, Scheme};

/// Values that are decoded together where a tensor is only looked through, perhaps by every thread at once.
const LOOK_WEIGHTS: usize = 1 << 21;

/// How a tensor's numbers are stored.
pub(super) enum Stored<'a> {
    Floats(&'a TensorInfo),
    Blocks(&'a TensorInfo, &'static dyn Encoding),
    Parts(Arc<dyn FolderEncoding>, [usize; 2]),
}

impl Source {
    pub(super) fn stored(&self, spec: &TensorSpec) -> std::result::Result<Stored<'_>, StorageError> {
        let name = self.stored_name(spec);
        let cannot =
            |stored: &dyn ToString| StorageError::Type { name: name.to_owned(), stored: stored.to_string() };
        if let Opened::Folder { quantization: Some(quantization), files, .. } = &self.opened
            && let Some((encoding, shape)) = quantization.find(&**files, name)?
        {
            return Ok(Stored::Parts(encoding, shape));
        }
        if let Some(info) = self.container().info(name) {
            return match info.dtype {
                Dtype::Ggml(ggml) => encoding_of(ggml)
                    .map(|encoding| Stored::Blocks(info, encoding))
                    .ok_or_else(|| cannot(&ggml)),
                dtype if dtype.is_float() => Ok(Stored::Floats(info)),
                other => Err(cannot(&other)),
            };
        }
        Err(StorageError::Missing { name: name.to_owned() })
    }

    /// Rows of a tensor as they lie in the file, decoded; a vector is rows of one.
    fn decode(&self, spec: &TensorSpec, rows: Range<usize>) -> std::result::Result<Vec<f32>, StorageError> {
        let name = self.stored_name(spec);
        let [count, cols] = rows_and_cols(spec);
        if rows.end > count {
            return Err(StorageError::Row { name: name.to_owned(), row: rows.end - 1, rows: count });
        }
        match self.stored(spec)? {
            Stored::Floats(info) => Ok(decode_floats(info.dtype, self.tensor_bytes(spec, &rows)?)?),
            Stored::Blocks(_, encoding) => {
                let values = encoding.unpack(self.tensor_bytes(spec, &rows)?, rows.len(), cols)?;
                Ok(values.into_raw_vec_and_offset().0)
            }
            Stored::Parts(encoding, shape) => {
                let (bytes, around) = self.rows_around(name, &*encoding, shape, &rows)?;
                let values = encoding.unpack(&bytes, around.len(), cols)?.into_raw_vec_and_offset().0;
                let (skip, len) = ((rows.start - around.start) * cols, rows.len() * cols);
                Ok(if values.len() == len { values } else { values[skip..skip + len].to_vec() })
            }
        }
    }

    /// The grid and codes of some rows of a matrix, in the model's order; `None` of one that has none.
    ///
    /// # Errors
    /// As [`Weights::load_rows`].
    pub fn codes(
        &self,
        spec: &TensorSpec,
        rows: Range<usize>,
    ) -> std::result::Result<Option<Fit>, StorageError> {
        let [count, cols] = rows_and_cols(spec);
        let at: Vec<usize> = match self.row_order(spec) {
            RowOrder::AsIs => rows.collect(),
            order @ RowOrder::RopeInterleaved { .. } => order.from_gguf(count)[rows].to_vec(),
        };
        let Some((first, last)) = at.iter().min().zip(at.iter().max()) else { return Ok(None) };
        let wanted = *first..last + 1;
        let (fit, around) = match self.stored(spec)? {
            Stored::Floats(_) => return Ok(None),
            Stored::Blocks(_, encoding) => {
                let Some(grid) = encoding.grid() else { return Ok(None) };
                let bytes = self.tensor_bytes(spec, &wanted)?;
                (grid.unpack_codes(bytes, wanted.len(), cols)?, wanted)
            }
            Stored::Parts(encoding, shape) => {
                let Some(grid) = encoding.grid() else { return Ok(None) };
                let (bytes, around) = self.rows_around(self.stored_name(spec), &*encoding, shape, &wanted)?;
                (grid.unpack_codes(&bytes, around.len(), cols)?, around)
            }
        };
        self.release(spec);
        let at: Vec<usize> = at.into_iter().map(|row| row - around.start).collect();
        let is_all = at.len() == around.len() && at.iter().enumerate().all(|(i, &row)| i == row);
        Ok(Some(if is_all { fit } else { fit.select(&at) }))
    }

    /// How what a matrix multiplies is rounded while it is read by programs that serve the model.
    fn rounds(&self, spec: &TensorSpec) -> Rounds {
        match &self.opened {
            Opened::Folder { quantization: Some(quantization), files, .. } => {
                quantization.rounds(&**files, self.stored_name(spec))
            }
            _ => Rounds::No,
        }
    }

    /// What inputs of matrices are rounded to, as the forward pass follows it, for people; `None` where nothing is rounded.
    pub fn inputs_told(&self) -> Option<String> {
        let mut all = self.specs.iter().filter(|spec| spec.tap.is_some()).map(|spec| self.rounds(spec));
        match all.find(|&rounds| rounds != Rounds::No)? {
            Rounds::As(inputs) => Some(inputs.to_string()),
            Rounds::Otherwise => {
                Some("as they are, though programs that serve the model round them".to_owned())
            }
            Rounds::No => None,
        }
    }

    /// Whether a tensor is codes.
    pub fn has_codes(&self, spec: &TensorSpec) -> bool {
        matches!(self.stored(spec), Ok(Stored::Blocks(..) | Stored::Parts(..)))
    }

    /// What a matrix is stored as, where a folder can have the same: the scheme, and the type of its scales.
    pub fn stored_as(&self, spec: &TensorSpec) -> Option<(Scheme, Dtype)> {
        let (name, integers, scales) = match self.stored(spec).ok()? {
            Stored::Floats(_) => return None,
            Stored::Blocks(_, encoding) => (encoding.name(), encoding.grid()?.integers(), Dtype::F16),
            Stored::Parts(encoding, _) => {
                let scales = encoding.float_dtype().unwrap_or(Dtype::F32);
                (encoding.name(), encoding.grid()?.integers(), scales)
            }
        };
        let scheme = match integers {
            Some(integers) => Scheme::Integer(IntegerScheme::of(integers)),
            None => Scheme::Numbers(kind_of(&name)?),
        };
        Some((scheme, scales))
    }

    /// The packed bytes of all rows that must be taken together to have some, and which these are.
    fn rows_around(
        &self,
        name: &str,
        encoding: &dyn FolderEncoding,
        shape: [usize; 2],
        rows: &Range<usize>,
    ) -> std::result::Result<(Vec<u8>, Range<usize>), StorageError> {
        let [count, _] = shape;
        let together = encoding.rows_together(count).max(1);
        let around = rows.start / together * together..count.min(rows.end.next_multiple_of(together));
        Ok((self.packed_rows(name, encoding, shape, &around)?, around))
    }

    /// The packed bytes of some rows, whole runs of them, of a matrix that several tensors stand for.
    fn packed_rows(
        &self,
        name: &str,
        encoding: &dyn FolderEncoding,
        [count, cols]: [usize; 2],
        rows: &Range<usize>,
    ) -> std::result::Result<Vec<u8>, StorageError> {
        let mut packed = Vec::with_capacity(encoding.bytes_for(rows.len(), cols));
        let [whole, before, here] =
            [count, rows.start, rows.len()].map(|rows| encoding.parts(rows, cols).into_iter());
        for ((whole, before), here) in whole.zip(before).zip(here) {
            if let Holds::Said(_) = whole.holds {
                continue;
            }
            let missing = || StorageError::Missing { name: name.to_owned() };
            let bytes = self.container().bytes(&whole.name(name).ok_or_else(missing)?)?;
            let counts = [whole.count(), before.count(), here.count()];
            match whole.holds {
                Holds::Rows => {
                    let [_, first, own] = counts.map(|n| n * bytes.len() / counts[0].max(1));
                    packed.extend_from_slice(&bytes[first..first + own]);
                }
                Holds::Columns => {
                    let [line, first, own] = counts.map(|n| n * whole.width_bytes());
                    let lines = bytes.chunks_exact(line.max(1));
                    lines.for_each(|line| packed.extend_from_slice(&line[first..first + own]));
                }
                Holds::Whole | Holds::Said(_) => packed.extend_from_slice(bytes),
            }
        }
        Ok(packed)
    }

    /// Lets the memory go that the file's bytes of a tensor are mapped to: it has been decoded.
    pub(super) fn release(&self, spec: &TensorSpec) {
        for name in self.stored_parts(spec) {
            self.container().release(&name);
        }
    }

    /// The bytes of some rows of one of the model's tensors.
    pub(super) fn tensor_bytes(
        &self,
        spec: &TensorSpec,
        rows: &Range<usize>,
    ) -> std::result::Result<&[u8], StorageError> {
        let (first, count) = self.rows_in_file(spec);
        self.row_bytes(self.stored_name(spec), count, &(first + rows.start..first + rows.end))
    }

    /// The bytes of some rows of one of the file's tensors, of `count` rows.
    fn row_bytes(
        &self,
        name: &str,
        count: usize,
        rows: &Range<usize>,
    ) -> std::result::Result<&[u8], StorageError> {
        let bytes = self.container().bytes(name)?;
        let per_row = bytes.len() / count.max(1);
        Ok(&bytes[rows.start * per_row..rows.end * per_row])
    }

    /// The first row of a tensor in what is stored under its name in the file, and the rows of all that.
    pub(super) fn rows_in_file(&self, spec: &TensorSpec) -> (usize, usize) {
        match self.stacked.get(&spec.name) {
            Some(FilePlace { first_row, shape, .. }) => {
                (*first_row, shape[..shape.len() - 1].iter().product())
            }
            None => (0, rows_and_cols(spec)[0]),
        }
    }

    /// The largest magnitude of a tensor's numbers.
    pub(crate) fn largest(&self, spec: &TensorSpec) -> std::result::Result<f32, StorageError> {
        let mut largest = 0.0f32;
        self.look_through(spec, |values| {
            largest = values.iter().fold(largest, |largest, x| largest.max(x.abs()));
        })?;
        Ok(largest)
    }

    /// Shows `look` the numbers of a tensor, in the order of the file, some rows at a time.
    pub(super) fn look_through(
        &self,
        spec: &TensorSpec,
        mut look: impl FnMut(&[f32]),
    ) -> std::result::Result<(), StorageError> {
        let [rows, cols] = rows_and_cols(spec);
        let step = (LOOK_WEIGHTS / cols.max(1)).max(32) / 32 * 32;
        for start in (0..rows).step_by(step) {
            look(&self.decode(spec, start..rows.min(start + step))?);
            self.release(spec);
        }
        Ok(())
    }

    fn spec(&self, name: &str) -> std::result::Result<&TensorSpec, StorageError> {
        let unknown = || StorageError::Unknown { name: name.to_owned() };
        self.by_name.get(name).map(|&index| &self.specs[index]).ok_or_else(unknown)
    }
}

impl Weights for Source {
    fn load(&self, name: &str) -> std::result::Result<ArrayD<f32>, LoadError> {
        let spec = self.spec(name)?;
        let rows = spec.shape[0];
        let mut values = self.decode(spec, 0..rows)?;
        if self.is_gguf() {
            spec.gguf_adds.from_gguf(&mut values);
        }
        let values = ArrayD::from_shape_vec(IxDyn(&spec.shape), values)?;
        self.release(spec);
        Ok(match self.row_order(spec) {
            RowOrder::AsIs => values,
            order @ RowOrder::RopeInterleaved { .. } => values.select(Axis(0), &order.from_gguf(rows)),
        })
    }

    fn load_rows(&self, name: &str, rows: &[usize]) -> std::result::Result<Array2<f32>, LoadError> {
        let spec = self.spec(name)?;
        let [count, cols] = rows_and_cols(spec);
        let stored = match self.row_order(spec) {
            RowOrder::AsIs => None,
            order @ RowOrder::RopeInterleaved { .. } => Some(order.from_gguf(count)),
        };
        let at = |&row: &usize| {
            stored.as_ref().map_or(Some(row), |stored| stored.get(row).copied()).unwrap_or(count)
        };
        let at: Vec<usize> = rows.iter().map(at).collect();
        let mut values = vec![0.0; rows.len() * cols];
        let (mut runs, mut rest) = (Vec::new(), &mut values[..]);
        for run in at.chunk_by(|row, next| row + 1 == *next) {
            let (to, further) = rest.split_at_mut(run.len() * cols);
            runs.push((run[0]..run[0] + run.len(), to));
            rest = further;
        }
        runs.into_par_iter().try_for_each(|(run, to)| {
            to.copy_from_slice(&self.decode(spec, run)?);
            if self.is_gguf() {
                spec.gguf_adds.from_gguf(to);
            }
            Ok::<_, StorageError>(())
        })?;
        self.release(spec);
        Ok(Array2::from_shape_vec((rows.len(), cols), values)?)
    }

    fn read_ahead(&self, name: &str) {
        // Of a tensor that experts share the first of them has all read.
        if let Some(spec) = self.spec(name).ok().filter(|spec| self.rows_in_file(spec).0 == 0) {
            self.stored_parts(spec).iter().for_each(|name| self.container().read_ahead(name));
        }
    }

    fn load_range(&self, name: &str, rows: Range<usize>) -> std::result::Result<Array2<f32>, LoadError> {
        let spec = self.spec(name)?;
        if self.row_order(spec) != RowOrder::AsIs {
            return self.load_rows(name, &rows.collect::<Vec<_>>());
        }
        let [_, cols] = rows_and_cols(spec);
        let values = self.decode(spec, rows.clone())?;
        self.release(spec);
        Ok(Array2::from_shape_vec((rows.len(), cols), values)?)
    }

    fn bf16_bytes(&self, name: &str) -> Option<&[u8]> {
        let spec = self.spec(name).ok().filter(|spec| spec.is_matrix())?;
        match self.stored(spec).ok()? {
            Stored::Floats(info) if info.dtype == Dtype::Bf16 && self.row_order(spec) == RowOrder::AsIs => {
                self.tensor_bytes(spec, &(0..spec.shape[0])).ok()
            }
            _ => None,
        }
    }

    fn rounding(&self, name: &str) -> Option<Rounding> {
        match self.rounds(self.spec(name).ok()?) {
            Rounds::As(inputs) => Some(rounding(inputs)),
            Rounds::No | Rounds::Otherwise => None,
        }
    }

    fn let_go(&self, name: &str) {
        if let Ok(spec) = self.spec(name) {
            self.release(spec);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }
}
