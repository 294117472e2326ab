//! Grouped integers as GPTQ and AWQ checkpoints hold them: input features outermost, each row of a tensor something of all outputs.

mod words;

use std::borrow::Cow;

use attar_checkpoint::Dtype;
use attar_tensor::cuda::{Cuda, CudaError, Rows};
use ndarray::{Array2, ArrayView2, Axis};

use super::folder::{self, FolderEncoding, Holds, Part};
use super::{DeviceFit, Encoding, Fit, GridEncoding, IntEncoding};
use crate::{Error, Grid};

/// The numbers of an [`IntEncoding`], in tensors whose rows belong to inputs or groups of them. Zeros are stored of symmetric ones too.
///
/// # Source
/// `GPTQModel`, `gptqmodel/nn_modules/qlinear/__init__.py` (`PackableQuantLinear`) and `utils/model.py` (`convert_gptq_v1_to_v2_format_module`);
/// `AutoAWQ`, `awq/modules/linear/gemm.py` and `awq/utils/packing_utils.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transposed {
    integers: IntEncoding,
    words: Words,
}

/// How codes and zeros lie in 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// Codes of consecutive inputs, zeros of consecutive outputs, each zero less 1.
    GptqV1,
    /// The same with zeros as they are.
    GptqV2,
    /// Of eight consecutive outputs, the even ones first.
    AwqGemm,
}

const QWEIGHT: &str = ".qweight";
const QZEROS: &str = ".qzeros";
const SCALES: &str = ".scales";
const G_IDX: &str = ".g_idx";

impl Transposed {
    /// The numbers of `integers` in `words`.
    ///
    /// # Panics
    /// Where `words` has no room for codes of so many bits: AWQ has 4, GPTQ 2, 3, 4 or 8.
    #[must_use]
    pub const fn new(integers: IntEncoding, words: Words) -> Self {
        match words {
            Words::AwqGemm => assert!(integers.bits() == 4, "AWQ has codes of 4 bits"),
            Words::GptqV1 | Words::GptqV2 => {
                assert!(matches!(integers.bits(), 2 | 3 | 4 | 8), "GPTQ has codes of 2, 3, 4 or 8 bits");
            }
        }
        Self { integers, words }
    }

    /// How codes lie in words.
    #[must_use]
    pub const fn words(&self) -> Words {
        self.words
    }

    /// The same numbers with zeros that are stored.
    fn stored(&self) -> IntEncoding {
        let (bits, group_size) = (self.integers.bits(), self.integers.group_size());
        IntEncoding::asymmetric(bits, group_size).with_scale(self.integers.scale_dtype())
    }

    fn pack_gptq(&self, grid: &Grid, codes: ArrayView2<'_, u8>, less_one: bool) -> Vec<u8> {
        let (rows, cols) = codes.dim();
        let (stored, width) = (self.stored(), self.integers.scale_dtype().width_bytes());
        let packed = stored.pack(grid, codes);
        let parts = stored.split(&packed, rows, cols).expect("bytes of this shape");
        let over = |at: usize, width| words::transposed(parts[at].1, parts[at].0.count(), width);
        let (qweight, scales, mut zeros) = (over(0, 4), over(1, width), over(2, 4));
        if less_one {
            words::subtract_one(&mut zeros, self.integers.bits(), 4 * parts[2].0.count());
        }
        let groups = (0..cols).map(|col| (col / self.integers.group_size()) as u32);
        let g_idx = groups.flat_map(u32::to_le_bytes).collect();
        [qweight, zeros, scales, g_idx].concat()
    }

    fn pack_awq(&self, grid: &Grid, codes: ArrayView2<'_, u8>) -> Vec<u8> {
        let rows = codes.nrows();
        let codes: Vec<u8> = codes.iter().copied().collect();
        let zeros: Vec<u8> = grid.zero.iter().map(|&zero| zero as u8).collect();
        let [codes, zeros] =
            [codes, zeros].map(|all| words::pack_awq(&words::transposed(&all, rows, 1), rows));
        let scales = words::transposed(&grid.header, rows, self.integers.scale_dtype().width_bytes());
        [codes, zeros, scales].concat()
    }

    /// The grid of groups as they lie in the file, and the codes.
    fn unpack_parts(&self, parts: &[(Part, &[u8])], rows: usize, cols: usize) -> Result<Fit, Error> {
        let (stored, width) = (self.stored(), self.integers.scale_dtype().width_bytes());
        let groups = cols / self.integers.group_size();
        let [qweight, qzeros, scales] = [0, 1, 2].map(|at| parts[at].1);
        let scales = words::transposed(scales, groups, width);
        if self.words == Words::AwqGemm {
            let [codes, zeros] = [(qweight, cols), (qzeros, groups)]
                .map(|(words, lines)| words::transposed(&words::unpack_awq(words, rows), lines, 1));
            let zero = zeros.into_iter().map(f32::from).collect();
            let zero = Array2::from_shape_vec((rows, groups), zero).expect("one zero per row and group");
            let codes = Array2::from_shape_vec((rows, cols), codes).expect("one code per weight");
            return Ok(Fit { grid: stored.read_grid(zero, scales), codes });
        }
        let mut qzeros = qzeros.to_vec();
        if self.words == Words::GptqV1 {
            words::add_one(&mut qzeros, self.integers.bits(), 4 * parts[1].0.count());
        }
        let qweight = words::transposed(qweight, parts[0].0.shape[0], 4);
        let qzeros = words::transposed(&qzeros, groups, 4);
        stored.unpack_codes(&[qweight, scales, qzeros].concat(), rows, cols)
    }

    /// The groups of the columns; `None` where each follows the one before it.
    fn order(&self, g_idx: &[u8], groups: usize) -> Result<Option<Vec<usize>>, Error> {
        let (indices, _) = g_idx.as_chunks();
        let indices: Vec<i32> = indices.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect();
        let in_range = |index: i32| usize::try_from(index).ok().filter(|&group| group < groups);
        if let Some(column) = indices.iter().position(|&index| in_range(index).is_none()) {
            return Err(Error::GroupIndex { column, index: indices[column], groups });
        }
        let order: Vec<usize> = indices.into_iter().filter_map(in_range).collect();
        let is_plain =
            order.iter().enumerate().all(|(col, &group)| group == col / self.integers.group_size());
        Ok((!is_plain).then_some(order))
    }
}

impl Encoding for Transposed {
    fn name(&self) -> Cow<'static, str> {
        self.integers.name()
    }

    fn block_len(&self) -> usize {
        self.integers.block_len()
    }

    fn bytes_for(&self, rows: usize, cols: usize) -> usize {
        folder::packed_bytes(&self.parts(rows, cols))
    }

    fn bits_per_weight(&self) -> f64 {
        self.stored().bits_per_weight()
    }

    fn grid(&self) -> Option<&dyn GridEncoding> {
        Some(self)
    }
}

impl GridEncoding for Transposed {
    fn search(&self, w: ArrayView2<'_, f32>, importance: Option<&[f32]>) -> Fit {
        self.integers.search(w, importance)
    }

    fn has_zero(&self) -> bool {
        self.integers.has_zero()
    }

    fn search_there(
        &self,
        cuda: &Cuda,
        w: Rows<'_, f32>,
        importance: Option<&[f32]>,
    ) -> Result<DeviceFit, CudaError> {
        self.integers.search_there(cuda, w, importance)
    }

    fn unit(&self) -> Option<usize> {
        self.integers.unit()
    }

    fn rescaled(&self, grid: &Grid, scale: ArrayView2<'_, f32>, min: ArrayView2<'_, f32>) -> Grid {
        self.integers.rescaled(grid, scale, min)
    }

    fn pack(&self, grid: &Grid, codes: ArrayView2<'_, u8>) -> Vec<u8> {
        match self.words {
            Words::GptqV1 => self.pack_gptq(grid, codes, true),
            Words::GptqV2 => self.pack_gptq(grid, codes, false),
            Words::AwqGemm => self.pack_awq(grid, codes),
        }
    }

    /// Where columns belong to groups in another order, each column has a scale of its own on the grid.
    fn unpack_codes(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Fit, Error> {
        let parts = self.split(bytes, rows, cols)?;
        let Fit { grid, codes } = self.unpack_parts(&parts, rows, cols)?;
        let order = match parts.get(3) {
            Some((_, g_idx)) => self.order(g_idx, grid.scale.ncols())?,
            None => None,
        };
        let Some(order) = order else { return Ok(Fit { grid, codes }) };
        let [scale, zero, min] = [&grid.scale, &grid.zero, &grid.min].map(|of| of.select(Axis(1), &order));
        Ok(Fit { grid: Grid { scale, zero, min, group_size: 1, header: Vec::new(), ..grid }, codes })
    }

    fn integers(&self) -> Option<IntEncoding> {
        Some(self.integers)
    }

    fn holding(&self, fit: &Fit) -> Result<Fit, Error> {
        self.integers.holding(fit)
    }
}

impl FolderEncoding for Transposed {
    fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        let bits = usize::from(self.integers.bits());
        let groups = cols / self.integers.group_size();
        let [cols_words, rows_words] = [cols, rows].map(|count| (count * bits).div_ceil(32));
        let qweight = match self.words {
            Words::AwqGemm => [cols, rows_words],
            Words::GptqV1 | Words::GptqV2 => [cols_words, rows],
        };
        let columns = |ending, dtype, shape: [usize; 2]| Part {
            holds: Holds::Columns,
            ..Part::rows(ending, dtype, shape)
        };
        let mut parts = vec![
            columns(QWEIGHT, Dtype::I32, qweight),
            columns(QZEROS, Dtype::I32, [groups, rows_words]),
            columns(SCALES, self.integers.scale_dtype().dtype(), [groups, rows]),
        ];
        if self.words != Words::AwqGemm {
            parts.push(Part { ending: G_IDX, dtype: Dtype::I32, shape: vec![cols], holds: Holds::Whole });
        }
        parts
    }

    fn float_dtype(&self) -> Option<Dtype> {
        self.integers.float_dtype()
    }
}
