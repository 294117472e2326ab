//! Activations of all tokens of a text, in memory or in a temporary file.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;

use attar_checkpoint::{Dtype, Error as FileError, Scratch, decode_floats, encode_floats};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, CowArray, Ix2, s};

/// The floats that activations are kept in between two uses; what is computed with is f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeptFloat {
    /// As computed.
    #[default]
    F32,
    /// Rounded to the nearest bf16, which loses up to 1/256 of a value's magnitude each time it is written.
    Bf16,
}

impl KeptFloat {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        self.dtype().block_bytes()
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }
}

/// Where activations are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// In memory.
    #[default]
    Memory,
    /// In a nameless file in this folder.
    Folder(PathBuf),
}

/// How activations of many tokens are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keeping {
    /// In which floats.
    pub float: KeptFloat,
    /// Where.
    pub place: Place,
}

/// Activations `[tokens, features]` that are worked on a few rows at a time: hidden states, or what a stage carries.
///
/// Kept as f32 they are the same bits wherever they are kept.
#[derive(Debug)]
pub struct HiddenStates {
    shape: [usize; 2],
    float: KeptFloat,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Floats(Array2<f32>), // [tokens, features]
    Bytes(Vec<u8>),      // little-endian
    File(Scratch),       // little-endian
}

/// Values that are converted on the way to or from a file together.
const CHUNK_VALUES: usize = 1 << 18;

impl HiddenStates {
    /// Zeros, `[tokens, features]`; a file is made at its full length here.
    ///
    /// # Errors
    /// A folder that cannot be written to or has too little room.
    pub fn zeros(shape: [usize; 2], keeping: &Keeping) -> Result<Self, FileError> {
        let [tokens, features] = shape;
        let bytes = tokens * features * keeping.float.bytes();
        let store = match (&keeping.place, keeping.float) {
            (Place::Memory, KeptFloat::F32) => Store::Floats(Array2::zeros((tokens, features))),
            (Place::Memory, KeptFloat::Bf16) => Store::Bytes(vec![0; bytes]),
            (Place::Folder(folder), _) => Store::File(Scratch::create(folder, bytes as u64)?),
        };
        Ok(Self { shape, float: keeping.float, store })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.shape[0]
    }

    /// Values per token.
    pub fn features(&self) -> usize {
        self.shape[1]
    }

    /// Some rows, `[rows.len(), features]`; borrowed where they stand in memory as f32.
    ///
    /// # Errors
    /// A disk that fails.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn read(&self, rows: Range<usize>) -> Result<CowArray<'_, f32, Ix2>, FileError> {
        self.assert_inside(&rows);
        if let Store::Floats(all) = &self.store {
            return Ok(all.slice(s![rows, ..]).into());
        }
        let values = self.bounds(&rows);
        let mut out = Vec::with_capacity(values.len());
        let mut buffer = Vec::new();
        for start in values.clone().step_by(CHUNK_VALUES) {
            let part = start..values.end.min(start + CHUNK_VALUES);
            let bytes = self.byte_bounds(&part);
            let bytes = match &self.store {
                Store::Floats(_) => unreachable!("floats in memory are borrowed"),
                Store::Bytes(all) => &all[bytes],
                Store::File(file) => {
                    buffer.resize(bytes.len(), 0);
                    file.read_at(bytes.start as u64, &mut buffer)?;
                    &buffer[..]
                }
            };
            out.extend(decode_floats(self.float.dtype(), bytes)?);
        }
        let shape = (rows.len(), self.features());
        Ok(Array2::from_shape_vec(shape, out).expect("as many values as the rows have").into())
    }

    /// Overwrites the rows from `first_row` on with `values`, `[rows, features]`.
    ///
    /// # Errors
    /// A disk that refuses.
    ///
    /// # Panics
    /// If `values` has another number of features, or more rows than there are.
    pub fn write(&mut self, first_row: usize, values: ArrayView2<'_, f32>) -> Result<(), FileError> {
        assert_eq!(values.ncols(), self.features(), "as many features as the rows have");
        let rows = first_row..first_row + values.nrows();
        self.assert_inside(&rows);
        let start = self.bounds(&rows).start;
        if let Store::Floats(all) = &mut self.store {
            all.slice_mut(s![rows, ..]).assign(&values);
            return Ok(());
        }
        let values = match values.as_slice() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(values.iter().copied().collect()),
        };
        for (i, part) in values.chunks(CHUNK_VALUES).enumerate() {
            let encoded = encode_floats(self.float.dtype(), part)?;
            let start = start + i * CHUNK_VALUES;
            let bytes = self.byte_bounds(&(start..start + part.len()));
            match &mut self.store {
                Store::Floats(_) => unreachable!("floats in memory were assigned"),
                Store::Bytes(all) => all[bytes].copy_from_slice(&encoded),
                Store::File(file) => file.write_at(bytes.start as u64, &encoded)?,
            }
        }
        Ok(())
    }

    /// Lets `change` work on some rows, `[rows.len(), features]`, in place.
    ///
    /// # Errors
    /// A disk that fails or refuses.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn update<T>(
        &mut self,
        rows: Range<usize>,
        change: impl FnOnce(ArrayViewMut2<'_, f32>) -> T,
    ) -> Result<T, FileError> {
        if let Store::Floats(all) = &mut self.store {
            return Ok(change(all.slice_mut(s![rows, ..])));
        }
        let mut here = self.read(rows.clone())?.into_owned();
        let result = change(here.view_mut());
        self.write(rows.start, here.view())?;
        Ok(result)
    }

    /// Keeps of every window of `ctx` rows those at `positions`, in order and in place.
    ///
    /// # Errors
    /// A disk that fails or refuses.
    ///
    /// # Panics
    /// If the rows are not whole windows, or a window has fewer rows.
    pub fn keep_positions(&mut self, ctx: usize, positions: Range<usize>) -> Result<(), FileError> {
        assert!(self.tokens().is_multiple_of(ctx), "{} rows are not windows of {ctx}", self.tokens());
        assert!(positions.end <= ctx, "rows {positions:?} of {ctx}");
        let starts = (0..self.tokens()).step_by(ctx);
        self.keep_rows(starts.map(|start| start + positions.start..start + positions.end))
    }

    /// Keeps these rows only, in order and in place.
    ///
    /// # Errors
    /// A disk that fails or refuses.
    ///
    /// # Panics
    /// If there are fewer rows, or a range begins before the one before it has ended.
    pub fn keep_rows(&mut self, ranges: impl IntoIterator<Item = Range<usize>>) -> Result<(), FileError> {
        let (mut kept, mut passed) = (0, 0);
        for range in ranges {
            assert!(passed <= range.start, "rows {range:?} after {passed}");
            passed = range.end;
            let rows = self.read(range)?.into_owned();
            self.write(kept, rows.view())?;
            kept += rows.nrows();
        }
        self.shape[0] = kept;
        let len = self.shape[0] * self.shape[1];
        match &mut self.store {
            Store::Floats(all) => {
                let (mut values, _) = std::mem::take(all).into_raw_vec_and_offset();
                values.truncate(len);
                values.shrink_to_fit();
                *all = Array2::from_shape_vec(self.shape, values).expect("as many values as rows are kept");
            }
            Store::Bytes(all) => {
                all.truncate(len * self.float.bytes());
                all.shrink_to_fit();
            }
            Store::File(_) => {}
        }
        Ok(())
    }

    /// All of them, `[tokens, features]`, in memory.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn into_array(self) -> Result<Array2<f32>, FileError> {
        match self.store {
            Store::Floats(all) => Ok(all),
            _ => Ok(self.read(0..self.tokens())?.into_owned()),
        }
    }

    fn assert_inside(&self, rows: &Range<usize>) {
        assert!(rows.start <= rows.end && rows.end <= self.tokens(), "rows {rows:?} of {}", self.tokens());
    }

    /// The values of some rows.
    fn bounds(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.features()..rows.end * self.features()
    }

    /// The bytes of some values.
    fn byte_bounds(&self, values: &Range<usize>) -> Range<usize> {
        values.start * self.float.bytes()..values.end * self.float.bytes()
    }
}

/// Activations that stand in memory already.
impl From<Array2<f32>> for HiddenStates {
    fn from(values: Array2<f32>) -> Self {
        let (tokens, features) = values.dim();
        Self { shape: [tokens, features], float: KeptFloat::F32, store: Store::Floats(values) }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    fn everywhere(folder: &tempfile::TempDir) -> [Keeping; 4] {
        let folder = Place::Folder(folder.path().to_path_buf());
        [
            Keeping::default(),
            Keeping { float: KeptFloat::F32, place: folder.clone() },
            Keeping { float: KeptFloat::Bf16, place: Place::Memory },
            Keeping { float: KeptFloat::Bf16, place: folder },
        ]
    }

    /// Odd in every way: more rows than one conversion takes, values of every size.
    fn values(rows: usize, cols: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, cols), |(r, c)| {
            ((r * 7919 + c * 104_729) % 10_007) as f32 * 1.7e-3f32.powi((r % 5) as i32 - 2) - 3.3
        })
    }

    #[test]
    fn rows_come_back_as_they_went_in_and_bf16_within_its_rounding() {
        let folder = tempfile::tempdir().unwrap();
        let expected = values(700, 501);
        for keeping in everywhere(&folder) {
            let mut hidden = HiddenStates::zeros([700, 501], &keeping).unwrap();
            hidden.write(0, expected.slice(s![..300, ..])).unwrap();
            hidden.write(300, expected.slice(s![300.., ..])).unwrap();
            for rows in [0..700, 299..301, 0..0, 699..700] {
                let read = hidden.read(rows.clone()).unwrap();
                let expected = expected.slice(s![rows, ..]);
                match keeping.float {
                    KeptFloat::F32 => assert_eq!(read, expected),
                    KeptFloat::Bf16 => {
                        assert_eq!(read.dim(), expected.dim());
                        let far = |(x, y): (&f32, &f32)| (x - y).abs() > y.abs() / 256.0;
                        assert!(!read.iter().zip(&expected).any(far));
                    }
                }
            }
        }
    }

    #[test]
    fn a_change_in_place_is_a_change_wherever_the_rows_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for keeping in everywhere(&folder) {
            let mut hidden = HiddenStates::zeros([5, 3], &keeping).unwrap();
            hidden.write(0, Array2::from_elem((5, 3), 2.0).view()).unwrap();
            let seen = hidden.update(1..3, |mut rows| {
                rows += 1.0;
                rows.len()
            });
            assert_eq!(seen.unwrap(), 6);
            let all = hidden.into_array().unwrap();
            assert_eq!(all.column(2).to_vec(), [2.0, 3.0, 3.0, 2.0, 2.0], "{keeping:?}");
        }
    }

    #[test]
    fn some_rows_are_kept_wherever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        for keeping in everywhere(&folder) {
            let mut hidden = HiddenStates::zeros([9, 1], &keeping).unwrap();
            hidden.write(0, Array2::from_shape_fn((9, 1), |(row, _)| row as f32).view()).unwrap();
            hidden.keep_rows([0..1, 1..1, 4..7, 8..9]).unwrap();
            let kept = hidden.into_array().unwrap();
            assert_eq!(kept.column(0).to_vec(), [0.0, 4.0, 5.0, 6.0, 8.0], "{keeping:?}");
        }
    }

    #[test]
    fn some_positions_of_every_window_are_kept_wherever_the_rows_are() {
        let folder = tempfile::tempdir().unwrap();
        for keeping in everywhere(&folder) {
            let mut hidden = HiddenStates::zeros([12, 2], &keeping).unwrap();
            hidden.write(0, Array2::from_shape_fn((12, 2), |(row, _)| row as f32).view()).unwrap();
            hidden.keep_positions(4, 1..4).unwrap();
            assert_eq!(hidden.tokens(), 9);
            let kept = hidden.into_array().unwrap();
            assert_eq!(
                kept.column(1).to_vec(),
                [1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 9.0, 10.0, 11.0],
                "{keeping:?}"
            );
        }
    }

    #[test]
    fn rows_of_a_transposed_view_are_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for keeping in everywhere(&folder) {
            let mut hidden = HiddenStates::zeros([2, 3], &keeping).unwrap();
            hidden.write(0, ndarray::array![[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]].t()).unwrap();
            assert_eq!(hidden.into_array().unwrap(), ndarray::array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        }
    }

    #[test]
    fn kept_in_a_file_they_leave_no_name_behind() {
        let folder = tempfile::tempdir().unwrap();
        let keeping = Keeping { place: Place::Folder(folder.path().to_path_buf()), ..Keeping::default() };
        let _hidden = HiddenStates::zeros([64, 64], &keeping).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), usize::from(cfg!(windows)));
    }

    #[test]
    #[should_panic(expected = "rows 3..6 of 5")]
    fn rows_past_the_last_are_refused() {
        let _ = HiddenStates::from(Array2::zeros((5, 2))).read(3..6);
    }
}
