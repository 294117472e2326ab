//! Which numbers a format can hold, and how they lie in bytes.
//!
//! To add a format, write one file beside the others and add one line to [`ENCODINGS`].

mod block;
mod block32;
mod codebook;
mod float;
mod folder;
mod fp4;
mod held;
mod integer;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nearest;
mod nvfp4;
mod pairs;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod scaled;
mod search;
mod signed_search;
mod super_block;
mod sweep;
mod ternary;
mod ternary_search;
mod tq1_0;
mod tq2_0;
mod transposed;
mod word_search;
mod words;

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use attar_checkpoint::GgmlType;
use attar_tensor::cuda::{self, Cuda, CudaError, Matrix, Rows};
use ndarray::{Array2, ArrayView2, Axis};

pub use self::folder::{FolderEncoding, Holds, Part};
pub use self::integer::{IntEncoding, ScaleDtype};
pub use self::scaled::ScaledEncoding;
pub use self::transposed::{Transposed, Words};
use crate::{Error, Grid};

/// What goes wrong where a format without a grid does not round and unpack by itself.
const NO_GRID: &str = "a format without a grid has a way of its own";

/// A number format: how a matrix of weights lies in bytes, and what those bytes say.
pub trait Encoding: Send + Sync + fmt::Debug {
    /// The name used in schemes and reports: `q4_k`, `f16`, `w4-g64`.
    fn name(&self) -> Cow<'static, str>;

    /// The tensor type of a GGUF file that holds these bytes, `None` where there is none.
    fn ggml_type(&self) -> Option<GgmlType> {
        None
    }

    /// Weights of a row that are packed together: row lengths must be multiples of it.
    fn block_len(&self) -> usize;

    /// Bytes of a packed `[rows, cols]` matrix.
    fn bytes_for(&self, rows: usize, cols: usize) -> usize;

    /// Bits per weight, scales included, of a matrix with many rows.
    fn bits_per_weight(&self) -> f64;

    /// Rounds each weight of `w`, `[rows, cols]`, and packs it: with scales searched for the given importance
    /// per column where the format has scales. A format without a [`grid`](Self::grid) has a way of its own.
    ///
    /// # Panics
    /// Where `cols` is not a multiple of [`block_len`](Self::block_len); [`check`](Self::check) says so first.
    fn quantize(&self, w: ArrayView2<'_, f32>, importance: Option<&[f32]>) -> Vec<u8> {
        let encoding = self.grid().expect(NO_GRID);
        let Fit { grid, codes } = encoding.search(w, importance);
        encoding.pack(&grid, codes.view())
    }

    /// The `[rows, cols]` weights that packed bytes stand for.
    ///
    /// # Errors
    /// Where the shape does not fit the format or the number of bytes is not that of the shape.
    fn unpack(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Array2<f32>, Error> {
        Ok(self.grid().expect(NO_GRID).unpack_codes(bytes, rows, cols)?.decoded())
    }

    /// The part of the format a solver works with; `None` for plain floats.
    fn grid(&self) -> Option<&dyn GridEncoding>;

    /// Whether rows of `in_features` weights can be stored.
    ///
    /// # Errors
    /// Where the block length does not divide them.
    fn check(&self, in_features: usize) -> Result<(), Error> {
        if in_features.is_multiple_of(self.block_len()) {
            return Ok(());
        }
        Err(Error::BlockDoesNotDivide { in_features, block_len: self.block_len(), encoding: self.name() })
    }

    /// Whether `bytes` are as many as a `[rows, cols]` matrix takes.
    ///
    /// # Errors
    /// Where they are not, or `cols` is not a whole number of blocks.
    fn check_bytes(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<(), Error> {
        self.check(cols)?;
        let (expected, found) = (self.bytes_for(rows, cols), bytes.len());
        if expected == found {
            return Ok(());
        }
        Err(Error::Length { encoding: self.name(), rows, cols, expected, found })
    }
}

/// An [`Encoding`] with codes on a [`Grid`]: what a solver can choose in.
pub trait GridEncoding: Encoding {
    /// The importance-weighted search for scales, rounded to what the file stores, and with it the codes
    /// the reference implementation of the format writes.
    ///
    /// `w` is `[rows, cols]`, `importance` has one non-negative weight per column (the mean square of that
    /// input); without it each format falls back on the weights' own magnitudes as its reference does.
    ///
    /// # Panics
    /// Where `cols` is not a multiple of [`block_len`](Encoding::block_len) or `importance` is not `cols` long.
    fn search(&self, w: ArrayView2<'_, f32>, importance: Option<&[f32]>) -> Fit;

    /// Whether 0 is among the values of every grid, so that weights set to 0 stay 0.
    fn has_zero(&self) -> bool;

    /// Whether values are evenly spaced and each weight's code is free: what kernels on a device know.
    fn is_even(&self) -> bool {
        true
    }

    /// What codes of neighbouring weights may stand together; `None` where each is free.
    fn codebook(&self) -> Option<&'static dyn Codebook> {
        None
    }

    /// The same for a `[rows, cols]` matrix on a device, by way of the host unless the format has a search there.
    ///
    /// # Errors
    /// If the device fails or its memory is short.
    ///
    /// # Panics
    /// As [`search`](Self::search).
    fn search_there(
        &self,
        cuda: &Cuda,
        w: Rows<'_, f32>,
        importance: Option<&[f32]>,
    ) -> Result<DeviceFit, CudaError> {
        let fit = self.search(cuda.download(w)?.view(), importance);
        let codes = fit.codes.as_standard_layout();
        let codes = cuda.upload_items(codes.as_slice().expect("standard layout"), w.dim())?;
        Ok(DeviceFit { there: fit.grid.upload(cuda)?, grid: fit.grid, codes })
    }

    /// Consecutive columns whose scales can be multiplied by a number of their own, see [`rescaled`](Self::rescaled); `None` where scales are
    /// too coarse for that.
    fn unit(&self) -> Option<usize>;

    /// The grid with scales and minima multiplied by `scale` and `min`, `[rows, cols / unit]`, as far as the file can tell them.
    ///
    /// # Panics
    /// Where the shapes do not go together.
    fn rescaled(&self, grid: &Grid, scale: ArrayView2<'_, f32>, min: ArrayView2<'_, f32>) -> Grid;

    /// The bytes of `codes`, `[rows, cols]`, on `grid`.
    ///
    /// # Panics
    /// Where `codes` and `grid` are of different shapes.
    fn pack(&self, grid: &Grid, codes: ArrayView2<'_, u8>) -> Vec<u8>;

    /// The grid and codes that packed bytes hold: the reverse of [`pack`](Self::pack).
    ///
    /// # Errors
    /// As [`Encoding::unpack`].
    fn unpack_codes(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Fit, Error>;

    /// Grouped integers that hold whatever this format can; `None` where none do.
    fn integers(&self) -> Option<IntEncoding> {
        None
    }

    /// The very values of `fit`, of another format perhaps, in this one.
    ///
    /// # Errors
    /// Where it has not all of them.
    ///
    /// # Panics
    /// Where its columns are not a multiple of [`block_len`](Encoding::block_len).
    fn holding(&self, _fit: &Fit) -> Result<Fit, Error> {
        Err(held::refused(self, held::OTHERWISE))
    }
}

/// Formats whose weights are stored several at a time: only some runs of codes have bytes.
pub trait Codebook: Send + Sync + fmt::Debug {
    /// Weights in a run: 4 or 8. Blocks are whole runs.
    fn run(&self) -> usize;

    /// For each run of `x`, in units of its scale, the codes that cost least: `d' M d` for the distance `d` of their levels from
    /// the run, `metric` being M, `[run, run]`, symmetric and positive definite.
    ///
    /// `x` and `codes` are run after run.
    ///
    /// # Panics
    /// Where the lengths are not whole runs.
    fn nearest(&self, metric: &[f32], x: &[f32], codes: &mut [u8]);
}

/// A grid and a code on it for every weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The values to choose from.
    pub grid: Grid,
    /// The choice, `[rows, cols]`.
    pub codes: Array2<u8>,
}

/// A [`Fit`] to a matrix on a device.
#[derive(Debug)]
pub struct DeviceFit {
    /// The values to choose from.
    pub grid: Grid,
    /// The same on the device.
    pub there: cuda::Grid,
    /// The choice, `[rows, cols]`.
    pub codes: Matrix<u8>,
}

impl Fit {
    /// The `[rows, cols]` weights the codes stand for.
    #[must_use]
    pub fn decoded(&self) -> Array2<f32> {
        self.grid.decode_all(self.codes.view())
    }

    /// Some of its rows, in this order, for [`GridEncoding::holding`]: nothing can pack them as they are.
    ///
    /// # Panics
    /// Where there is no such row.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let Grid { scale, zero, min, group_size, max_code, levels, .. } = &self.grid;
        let [scale, zero, min] = [scale, zero, min].map(|of| of.select(Axis(0), rows));
        let (group_size, max_code, levels) = (*group_size, *max_code, *levels);
        let grid = Grid { scale, zero, min, group_size, max_code, levels, header: Vec::new() };
        Self { grid, codes: self.codes.select(Axis(0), rows) }
    }
}

/// Every format without parameters. Grouped integers are made from their name: see [`encoding`].
pub const ENCODINGS: &[&dyn Encoding] = &[
    &float::F32,
    &float::F16,
    &float::BF16,
    &q8_0::Q8_0,
    &q4_0::Q4_0,
    &q4_1::Q4_1,
    &q5_0::Q5_0,
    &q5_1::Q5_1,
    &q2_k::Q2K,
    &q3_k::Q3K,
    &q4_k::Q4K,
    &q5_k::Q5K,
    &q6_k::Q6K,
    &iq4_nl::Iq4Nl,
    &iq4_xs::Iq4Xs,
    &tq1_0::Tq1_0,
    &tq2_0::Tq2_0,
    &q1_0::Q1_0,
    &q2_0::Q2_0,
    &mxfp4::Mxfp4,
    &nvfp4::Nvfp4,
    &iq1_s::Iq1S,
    &iq1_m::Iq1M,
    &iq2_xxs::Iq2Xxs,
    &iq2_xs::Iq2Xs,
    &iq2_s::Iq2S,
    &iq3_xxs::Iq3Xxs,
    &iq3_s::Iq3S,
];

/// An encoding found by name.
#[derive(Debug, Clone)]
pub enum Named {
    /// One of [`ENCODINGS`].
    Listed(&'static dyn Encoding),
    /// One of a folder of safetensors, with parameters of its own.
    Folder(Arc<dyn FolderEncoding>),
}

impl Deref for Named {
    type Target = dyn Encoding;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Listed(listed) => *listed,
            Self::Folder(folder) => &**folder,
        }
    }
}

impl<T: FolderEncoding + 'static> From<T> for Named {
    fn from(encoding: T) -> Self {
        Self::Folder(Arc::new(encoding))
    }
}

/// The encoding called `name`: one of [`ENCODINGS`], or grouped integers `wB-gG` and `wB-gG-asym`.
#[must_use]
pub fn encoding(name: &str) -> Option<Named> {
    ENCODINGS
        .iter()
        .find(|encoding| encoding.name() == name)
        .map(|listed| Named::Listed(*listed))
        .or_else(|| IntEncoding::from_name(name).map(Named::from))
}

/// The encoding that a GGUF tensor type stores, `None` for types this crate does not know.
#[must_use]
pub fn encoding_of(ggml_type: GgmlType) -> Option<&'static dyn Encoding> {
    ENCODINGS.iter().copied().find(|encoding| encoding.ggml_type() == Some(ggml_type))
}
