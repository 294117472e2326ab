//! Integers of 2 to 8 bits in groups along a row, each group with a scale and perhaps a zero point: the layout
//! `pack-quantized` of compressed-tensors.

pub(super) mod bits;
mod scale;
mod search;

use std::borrow::Cow;

use attar_checkpoint::Dtype;
use attar_tensor::cuda::{Cuda, CudaError, GroupSearch, Rows, Stored, Zero};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use self::search::REACHES;
use super::folder::{self, FolderEncoding, Holds, Part};
use super::held::{Moved, NO_SCALE, Room, refused};
use super::{DeviceFit, Encoding, Fit, GridEncoding};
use crate::lanes::widest;
use crate::{Error, Grid};

pub use self::scale::ScaleDtype;

/// What the name of the codes has in the place of `.weight`.
const PACKED: &str = ".weight_packed";
/// The same of the weight's own shape.
const SHAPE: &str = ".weight_shape";

/// Weights a task works on at least.
const TASK: usize = 1 << 14;

/// `scale * (code - zero)` with `code` in `0..2^bits`: `zero` is `2^(bits - 1)` where symmetric, else an integer stored per group.
///
/// The packed bytes are three tensors, one after the other: `weight_packed`, the codes as a dense stream of bits along each row, lowest
/// bits first; `weight_scale`; and, where asymmetric, `weight_zero_point`, the zeros as a dense stream of bits **down** each column. A
/// symmetric scale carries the sign that lets the group's largest magnitude use the longer side of the range.
///
/// The file's scales are 16 bits, and a reader that multiplies in 16 bits rounds the product once more; decoding here
/// is in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntEncoding {
    bits: u8,
    group_size: usize,
    symmetric: bool,
    scale: ScaleDtype,
}

impl IntEncoding {
    /// Codes `-2^(bits - 1)..2^(bits - 1)` times a half-precision scale.
    ///
    /// # Panics
    /// Where `bits` is not in `2..=8` or `group_size` is 0.
    #[must_use]
    pub const fn symmetric(bits: u8, group_size: usize) -> Self {
        assert!(matches!(bits, 2..=8), "grouped integers have 2 to 8 bits");
        assert!(group_size > 0, "a group has at least one weight");
        Self { bits, group_size, symmetric: true, scale: ScaleDtype::F16 }
    }

    /// As [`symmetric`](Self::symmetric), with an integer zero point per group.
    ///
    /// # Panics
    /// Where `bits` is not in `2..=8` or `group_size` is 0.
    #[must_use]
    pub const fn asymmetric(bits: u8, group_size: usize) -> Self {
        Self { symmetric: false, ..Self::symmetric(bits, group_size) }
    }

    /// The same with scales stored as `scale`.
    #[must_use]
    pub const fn with_scale(self, scale: ScaleDtype) -> Self {
        Self { scale, ..self }
    }

    /// The encoding a name such as `w4-g64` or `w3-g128-asym` stands for.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let (bits, rest) = name.strip_prefix('w')?.split_once("-g")?;
        let (group_size, symmetric) = match rest.strip_suffix("-asym") {
            Some(group_size) => (group_size, false),
            None => (rest, true),
        };
        let bits = bits.parse().ok().filter(|bits| matches!(bits, 2..=8))?;
        let group_size = group_size.parse().ok().filter(|&group_size| group_size > 0)?;
        Some(Self { symmetric, ..Self::symmetric(bits, group_size) })
    }

    /// Bits of a code.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// Weights per scale.
    #[must_use]
    pub const fn group_size(&self) -> usize {
        self.group_size
    }

    /// Whether all zeros are `2^(bits - 1)` and none is stored.
    #[must_use]
    pub const fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// How scales are stored.
    #[must_use]
    pub const fn scale_dtype(&self) -> ScaleDtype {
        self.scale
    }

    /// The grid of zeros and of scales as a file has them, row after row.
    pub(super) fn read_grid(&self, zero: Array2<f32>, header: Vec<u8>) -> Grid {
        let scale =
            header.chunks_exact(self.scale.width_bytes()).map(|bytes| self.scale.read(bytes)).collect();
        let scale = Array2::from_shape_vec(zero.dim(), scale).expect("one scale per row and group");
        self.grid(scale, zero, header)
    }

    fn max_code(&self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    fn middle(&self) -> f32 {
        f32::from(1u8 << (self.bits - 1))
    }

    fn grid(&self, scale: Array2<f32>, zero: Array2<f32>, header: Vec<u8>) -> Grid {
        let min = Array2::zeros(scale.dim());
        let (group_size, max_code) = (self.group_size, self.max_code());
        Grid { scale, zero, min, group_size, max_code, levels: None, header }
    }

    /// The grid of scales and zeros that a search has found.
    fn searched(&self, scale: Array2<f32>, zero: Array2<f32>) -> Grid {
        let header = scale.iter().flat_map(|&scale| self.scale.bytes(scale)).collect();
        Self::grid(self, scale, zero, header)
    }

    /// Zeros bit by bit down each column.
    fn pack_zeros(&self, zero: &Array2<f32>) -> Vec<u8> {
        let (rows, groups) = zero.dim();
        let words = bits::words(rows, self.bits);
        let mut bytes = vec![0; 4 * words * groups];
        let mut column = vec![0; 4 * words];
        for group in 0..groups {
            let zeros: Vec<u8> = zero.column(group).iter().map(|&zero| zero as u8).collect();
            column.fill(0);
            bits::pack(&zeros, self.bits, &mut column);
            for (word, from) in column.chunks_exact(4).enumerate() {
                bytes[4 * (word * groups + group)..][..4].copy_from_slice(from);
            }
        }
        bytes
    }

    fn unpack_zeros(&self, bytes: &[u8], rows: usize, groups: usize) -> Array2<f32> {
        let mut zero = Array2::from_elem((rows, groups), self.middle());
        if self.symmetric {
            return zero;
        }
        let mut zeros = vec![0; rows];
        for (group, mut zero) in zero.columns_mut().into_iter().enumerate() {
            let column: Vec<u8> =
                bytes.chunks_exact(4).skip(group).step_by(groups).flatten().copied().collect();
            bits::unpack(&column, self.bits, &mut zeros);
            zero.iter_mut().zip(&zeros).for_each(|(zero, &code)| *zero = f32::from(code));
        }
        zero
    }
}

impl Encoding for IntEncoding {
    fn name(&self) -> Cow<'static, str> {
        let suffix = if self.symmetric { "" } else { "-asym" };
        Cow::Owned(format!("w{}-g{}{suffix}", self.bits, self.group_size))
    }

    fn block_len(&self) -> usize {
        self.group_size
    }

    fn bytes_for(&self, rows: usize, cols: usize) -> usize {
        folder::packed_bytes(&self.parts(rows, cols))
    }

    fn bits_per_weight(&self) -> f64 {
        let zero = if self.symmetric { 0 } else { usize::from(self.bits) };
        f64::from(self.bits) + (8 * self.scale.width_bytes() + zero) as f64 / self.group_size as f64
    }

    fn grid(&self) -> Option<&dyn GridEncoding> {
        Some(self)
    }
}

impl GridEncoding for IntEncoding {
    fn search(&self, w: ArrayView2<'_, f32>, importance: Option<&[f32]>) -> Fit {
        let (rows, cols) = w.dim();
        let group_size = self.group_size;
        assert!(cols.is_multiple_of(group_size), "{cols} columns are not whole groups of {group_size}");
        if let Some(importance) = importance {
            assert_eq!(importance.len(), cols, "importance must have one weight per column");
        }
        let contiguous = w.as_standard_layout();
        let x = contiguous.as_slice().expect("standard layout");
        let shape = (rows, cols / group_size);
        let mut scale = vec![0.0; shape.0 * shape.1];
        let mut zero = vec![self.middle(); shape.0 * shape.1];
        let task = TASK.div_ceil(cols.max(1)) * cols.max(1);
        x.par_chunks(task)
            .zip(scale.par_chunks_mut(task / group_size))
            .zip(zero.par_chunks_mut(task / group_size))
            .for_each(|((x, scale), zero)| {
                widest(search::GroupSearch { x, cols, importance, encoding: self, scale, zero });
            });
        let array = |values| Array2::from_shape_vec(shape, values).expect("one value per row and group");
        let grid = self.searched(array(scale), array(zero));
        let codes = grid.round(w);
        Fit { grid, codes }
    }

    fn has_zero(&self) -> bool {
        true
    }

    fn search_there(
        &self,
        cuda: &Cuda,
        w: Rows<'_, f32>,
        importance: Option<&[f32]>,
    ) -> Result<DeviceFit, CudaError> {
        let search = GroupSearch {
            group_size: self.group_size,
            max_code: self.max_code(),
            zero: if self.symmetric { Zero::Middle } else { Zero::Free },
            stored: match self.scale {
                ScaleDtype::F16 => Stored::F16,
                ScaleDtype::Bf16 => Stored::Bf16,
                ScaleDtype::F32 => Stored::F32,
            },
            reaches: &REACHES,
        };
        let there = cuda.search_groups(w, importance, search)?;
        let grid = self.searched(cuda.download(there.scale.view())?, cuda.download(there.zero.view())?);
        let codes = cuda.nearest_codes(w, &there)?;
        Ok(DeviceFit { grid, there, codes })
    }

    fn unit(&self) -> Option<usize> {
        Some(self.group_size)
    }

    fn rescaled(&self, grid: &Grid, scale: ArrayView2<'_, f32>, _min: ArrayView2<'_, f32>) -> Grid {
        assert_eq!(scale.dim(), grid.scale.dim(), "a factor for each group");
        let scale = (&grid.scale * &scale).mapv(|scale| self.scale.rounded(scale));
        self.searched(scale, grid.zero.clone())
    }

    fn pack(&self, grid: &Grid, codes: ArrayView2<'_, u8>) -> Vec<u8> {
        let (rows, cols) = codes.dim();
        assert_eq!(
            grid.scale.dim(),
            (rows, cols / self.group_size),
            "the grid is for another shape than [{rows}, {cols}]"
        );
        let codes = codes.as_standard_layout();
        let codes = codes.as_slice().expect("standard layout");
        let row_bytes = 4 * bits::words(cols, self.bits);
        let mut packed = vec![0; rows * row_bytes];
        packed
            .par_chunks_exact_mut(row_bytes.max(1))
            .zip(codes.par_chunks_exact(cols.max(1)))
            .for_each(|(bytes, codes)| bits::pack(codes, self.bits, bytes));
        let zeros = if self.symmetric { Vec::new() } else { self.pack_zeros(&grid.zero) };
        [packed, grid.header.clone(), zeros].concat()
    }

    fn unpack_codes(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Fit, Error> {
        let parts = self.split(bytes, rows, cols)?;
        let (packed, header, zeros) = (parts[0].1, parts[1].1, parts[2].1);
        let mut codes = vec![0; rows * cols];
        codes
            .par_chunks_exact_mut(cols.max(1))
            .zip(packed.par_chunks_exact((4 * bits::words(cols, self.bits)).max(1)))
            .for_each(|(codes, bytes)| bits::unpack(bytes, self.bits, codes));
        let zero = self.unpack_zeros(zeros, rows, cols / self.group_size);
        let grid = self.read_grid(zero, header.to_vec());
        let codes = Array2::from_shape_vec((rows, cols), codes).expect("one code per weight");
        Ok(Fit { grid, codes })
    }

    fn integers(&self) -> Option<IntEncoding> {
        Some(*self)
    }

    fn holding(&self, fit: &Fit) -> Result<Fit, Error> {
        let zero = self.symmetric.then(|| self.middle());
        let room = Room { group_size: self.group_size, zero, max_code: self.max_code(), levels: None };
        let Moved { scale, zero, codes } = room.take(fit).map_err(|reason| refused(self, reason))?;
        if scale.iter().any(|&scale| self.scale.rounded(scale).to_bits() != scale.to_bits()) {
            return Err(refused(self, NO_SCALE));
        }
        Ok(Fit { grid: self.searched(scale, zero), codes })
    }
}

/// # Source
/// The `compressed-tensors` package 0.20: `compressors/pack_quantized`.
impl FolderEncoding for IntEncoding {
    fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        let groups = cols / self.group_size;
        let packed = [rows, bits::words(cols, self.bits)];
        let zeros = [bits::words(rows, self.bits), groups];
        let shape = [rows, cols].map(|dim| (dim as i64).to_le_bytes()).concat();
        let shape = Part { ending: SHAPE, dtype: Dtype::I64, shape: vec![2], holds: Holds::Said(shape) };
        let mut parts = vec![
            Part::rows(PACKED, Dtype::I32, packed),
            Part::rows(".weight_scale", self.scale.dtype(), [rows, groups]),
        ];
        if !self.symmetric {
            parts.push(Part::rows(".weight_zero_point", Dtype::I32, zeros));
        }
        parts.push(shape);
        parts
    }

    fn float_dtype(&self) -> Option<Dtype> {
        Some(self.scale.dtype())
    }
}
