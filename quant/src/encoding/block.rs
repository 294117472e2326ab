//! What all block formats of GGUF share: blocks of weights in a row, each a few scales and then codes.

use std::borrow::Cow;
use std::fmt;

use attar_checkpoint::GgmlType;
use half::f16;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::held::{Moved, NO_SCALE, OTHERWISE, Room, refused};
use super::{Codebook, Encoding, Fit, GridEncoding, IntEncoding};
use crate::lanes::{LANES, sums_of_squares};
use crate::{Error, Grid};

/// Weights a task works on at least, so that lanes are filled and tasks are not tiny.
const TASK: usize = 1 << 14;

/// One block format: its constants, its search, its bytes. [`Encoding`] and [`GridEncoding`] follow.
pub(super) trait BlockFormat: Send + Sync + fmt::Debug + 'static {
    const NAME: &'static str;
    const GGML_ID: u32;
    /// Weights per block.
    const BLOCK: usize;
    /// Weights per scale.
    const GROUP: usize;
    /// Bytes of scales per block.
    const HEADER: usize;
    /// Bytes per block.
    const BYTES: usize;
    const MAX_CODE: u8;
    /// What the codes stand for where they are not their own levels, rising.
    const LEVELS: Option<&'static [f32]> = None;
    /// Where in the header the half-precision unit of all scales of a block is; `None` where they have none.
    const SCALE_AT: Option<usize> = Some(0);
    /// Where that of its minima is.
    const MIN_AT: Option<usize> = None;
    /// Whether each group has a minimum besides its scale, so that 0 need not be among its values.
    const HAS_MIN: bool = false;
    /// Bits of the integers where a block is these and one half-precision scale, and nothing else.
    const INTEGER: Option<u8> = None;

    /// What runs of codes may stand together; `None` where each code is free.
    fn codebook() -> Option<&'static dyn Codebook> {
        None
    }

    /// Headers and codes for whole rows, block after block.
    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]);

    /// Multiplies all scales of a block, and all minima.
    fn rescale(header: &mut [u8], scale: f32, min: f32) {
        for (at, factor) in [(Self::SCALE_AT, scale), (Self::MIN_AT, min)] {
            if let Some(at) = at {
                let unit = half_bytes(half_at(header, at) * factor);
                header[at..at + 2].copy_from_slice(&unit);
            }
        }
    }

    /// The header of a block that has this one scale; `None` where it cannot say that exactly, or says more.
    fn header(scale: f32) -> Option<Vec<u8>> {
        Self::INTEGER?;
        let header = half_bytes(scale);
        (half_at(&header, 0).to_bits() == scale.to_bits()).then(|| header.to_vec())
    }

    /// What a header says of group `group` of its block.
    fn group(header: &[u8], group: usize) -> Group;

    /// Lays out one block: `codes` are `BLOCK` long, `block` is `BYTES` long and zeroed.
    fn write(header: &[u8], codes: &[u8], block: &mut [u8]);

    /// Takes one block apart again: `header` is `HEADER` long, `codes` `BLOCK`.
    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]);
}

/// Scale, zero and min of one group of a [`Grid`].
pub(super) struct Group {
    pub scale: f32,
    pub zero: f32,
    pub min: f32,
}

/// Whole rows of a weight matrix.
pub(super) struct Rows<'a> {
    /// `[rows, cols]`, row after row.
    pub x: &'a [f32],
    pub cols: usize,
    /// One per column.
    pub importance: Option<&'a [f32]>,
}

impl Rows<'_> {
    /// What an error on each weight costs where `importance` is known: `importance * sqrt(factor * mean + x^2)`, with the
    /// mean square of its run of `run` weights.
    #[inline(always)]
    pub fn costs(&self, importance: &[f32], run: usize, factor: f32) -> Vec<f32> {
        let mut costs = vec![0.0; self.x.len()];
        let sums = sums_of_squares(self.x, run);
        for (i, (costs, x)) in costs.chunks_exact_mut(run).zip(self.x.chunks_exact(run)).enumerate() {
            let spread = factor * sums[i] / run as f32;
            let importance = &importance[i * run % self.cols..][..run];
            for ((cost, x), importance) in costs.iter_mut().zip(x).zip(importance) {
                *cost = importance * (spread + x * x).sqrt();
            }
        }
        costs
    }

    /// The first of each sixteen runs of `len` weights.
    pub fn batches(&self, len: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.x.len() / len).step_by(LANES)
    }
}

/// A half-precision number from its two bytes.
pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Rounds to half precision, to nearest even, and gives the two bytes.
pub(super) fn half_bytes(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

fn rows_per_task(cols: usize) -> usize {
    TASK.div_ceil(cols.max(1))
}

/// The grid that headers, block after block, describe.
fn grid<F: BlockFormat>(header: Vec<u8>, rows: usize, cols: usize) -> Grid {
    let per_block = F::BLOCK / F::GROUP;
    let shape = (rows, cols / F::GROUP);
    let [mut scale, mut zero, mut min] = [(); 3].map(|()| Vec::with_capacity(shape.0 * shape.1));
    for header in header.chunks_exact(F::HEADER) {
        for group in 0..per_block {
            let group = F::group(header, group);
            scale.push(group.scale);
            zero.push(group.zero);
            min.push(group.min);
        }
    }
    let array = |values| Array2::from_shape_vec(shape, values).expect("one value per row and group");
    Grid {
        scale: array(scale),
        zero: array(zero),
        min: array(min),
        group_size: F::GROUP,
        max_code: F::MAX_CODE,
        levels: F::LEVELS,
        header,
    }
}

impl<F: BlockFormat> Encoding for F {
    fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(F::NAME)
    }

    fn ggml_type(&self) -> Option<GgmlType> {
        GgmlType::from_id(F::GGML_ID)
    }

    fn block_len(&self) -> usize {
        F::BLOCK
    }

    fn bytes_for(&self, rows: usize, cols: usize) -> usize {
        rows * (cols / F::BLOCK) * F::BYTES
    }

    fn bits_per_weight(&self) -> f64 {
        8.0 * F::BYTES as f64 / F::BLOCK as f64
    }

    fn grid(&self) -> Option<&dyn GridEncoding> {
        Some(self)
    }
}

impl<F: BlockFormat> GridEncoding for F {
    fn search(&self, w: ArrayView2<'_, f32>, importance: Option<&[f32]>) -> Fit {
        let (rows, cols) = w.dim();
        assert!(cols.is_multiple_of(F::BLOCK), "{cols} columns are not whole blocks of {}", F::BLOCK);
        if let Some(importance) = importance {
            assert_eq!(importance.len(), cols, "importance must have one weight per column");
        }
        let w = w.as_standard_layout();
        let x = w.as_slice().expect("standard layout");
        let mut header = vec![0; rows * (cols / F::BLOCK) * F::HEADER];
        let mut codes = vec![0; rows * cols];
        let task = rows_per_task(cols) * cols.max(1);
        x.par_chunks(task)
            .zip(header.par_chunks_mut(task / F::BLOCK * F::HEADER))
            .zip(codes.par_chunks_mut(task))
            .for_each(|((x, headers), codes)| F::search(&Rows { x, cols, importance }, headers, codes));
        let codes = Array2::from_shape_vec((rows, cols), codes).expect("one code per weight");
        Fit { grid: grid::<F>(header, rows, cols), codes }
    }

    fn has_zero(&self) -> bool {
        !F::HAS_MIN && F::codebook().is_none() && F::LEVELS.is_none_or(|levels| levels.contains(&0.0))
    }

    fn is_even(&self) -> bool {
        F::LEVELS.is_none() && F::codebook().is_none()
    }

    fn codebook(&self) -> Option<&'static dyn Codebook> {
        F::codebook()
    }

    fn unit(&self) -> Option<usize> {
        F::SCALE_AT.map(|_| F::BLOCK)
    }

    fn rescaled(&self, g: &Grid, scale: ArrayView2<'_, f32>, min: ArrayView2<'_, f32>) -> Grid {
        let (rows, cols) = (g.scale.nrows(), g.scale.ncols() * F::GROUP);
        assert_eq!(scale.dim(), (rows, cols / F::BLOCK), "a factor for each block");
        let mut header = g.header.clone();
        let blocks = header.chunks_exact_mut(F::HEADER).zip(scale.iter().zip(min));
        blocks.for_each(|(header, (&scale, &min))| F::rescale(header, scale, min));
        grid::<F>(header, rows, cols)
    }

    fn pack(&self, grid: &Grid, codes: ArrayView2<'_, u8>) -> Vec<u8> {
        let (rows, cols) = codes.dim();
        let blocks = rows * (cols / F::BLOCK);
        assert_eq!(
            grid.header.len(),
            blocks * F::HEADER,
            "the grid is for another shape than [{rows}, {cols}]"
        );
        let codes = codes.as_standard_layout();
        let codes = codes.as_slice().expect("standard layout");
        let mut bytes = vec![0; blocks * F::BYTES];
        bytes
            .par_chunks_exact_mut(F::BYTES)
            .zip(codes.par_chunks_exact(F::BLOCK))
            .zip(grid.header.par_chunks_exact(F::HEADER))
            .with_min_len(TASK / F::BLOCK)
            .for_each(|((block, codes), header)| F::write(header, codes, block));
        bytes
    }

    fn unpack_codes(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Fit, Error> {
        self.check_bytes(bytes, rows, cols)?;
        let mut header = vec![0; bytes.len() / F::BYTES * F::HEADER];
        let mut codes = vec![0; rows * cols];
        bytes
            .par_chunks_exact(F::BYTES)
            .zip(codes.par_chunks_exact_mut(F::BLOCK))
            .zip(header.par_chunks_exact_mut(F::HEADER))
            .with_min_len(TASK / F::BLOCK)
            .for_each(|((block, codes), header)| F::read(block, header, codes));
        let codes = Array2::from_shape_vec((rows, cols), codes).expect("one code per weight");
        Ok(Fit { grid: grid::<F>(header, rows, cols), codes })
    }

    fn integers(&self) -> Option<IntEncoding> {
        F::INTEGER.map(|bits| IntEncoding::symmetric(bits, F::GROUP))
    }

    fn holding(&self, fit: &Fit) -> Result<Fit, Error> {
        if F::GROUP != F::BLOCK || F::codebook().is_some() || F::HAS_MIN {
            return Err(refused(self, OTHERWISE));
        }
        let zero = F::group(&vec![0; F::HEADER], 0).zero;
        let room = Room { group_size: F::BLOCK, zero: Some(zero), max_code: F::MAX_CODE, levels: F::LEVELS };
        let Moved { scale, codes, .. } = room.take(fit).map_err(|reason| refused(self, reason))?;
        let header: Option<Vec<_>> = scale.iter().map(|&scale| F::header(scale)).collect();
        let header = header.ok_or_else(|| refused(self, NO_SCALE))?.concat();
        Ok(Fit { grid: grid::<F>(header, codes.nrows(), codes.ncols()), codes })
    }
}
