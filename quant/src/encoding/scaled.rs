//! Numbers of eight and four bits with scales, as compressed-tensors lays them out for programs that serve models:
//! `fp8`, `int8`, `mxfp8`, `mxfp4` and `nvfp4`.

mod element;
mod search;

use std::borrow::Cow;
use std::sync::Arc;

use attar_checkpoint::Dtype;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use self::element::{Element, e4m3, is_number};
use self::search::{Shared, candidates};
use super::block::Rows;
use super::folder::{self, FolderEncoding, Holds, Part};
use super::held::{Moved, NO_SCALE, Room, refused};
use super::{Encoding, Fit, GridEncoding, ScaleDtype, mxfp4, nvfp4};
use crate::{Error, Grid};

/// Rows and columns of a tile.
const TILE: usize = 128;

/// Weights that share a power of two.
const POWER_GROUP: usize = 32;

/// Weights that share an eight-bit float.
const LOCAL_GROUP: usize = 16;

/// The byte of an E8M0 scale that is no number.
const NO_POWER: u8 = 255;

/// `scale * number`, the number of eight or four bits, the scale shared by a row, a tile, the whole matrix or a run of a row.
///
/// The packed bytes are the tensors of the layout, one after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaledEncoding {
    element: Element,
    sharing: Sharing,
    names: Names,
}

/// How the tensors of scales are called, and what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// As the compressed-tensors package has them.
    Package,
    /// As `DeepSeek`'s checkpoints have them.
    DeepSeek,
    /// As `ModelOpt` has them: what the whole matrix shares is a scalar, and multiplies.
    ModelOpt,
}

/// Which weights share a scale, and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sharing {
    /// Each row, a float.
    Row(ScaleDtype),
    /// Each 128 x 128 weights, a float; the last ones of rows and columns may be smaller.
    Tile(ScaleDtype),
    /// All weights, a float: this one, or what fits the matrix best.
    Whole(ScaleDtype, Option<f32>),
    /// 32 of a row: a power of two, E8M0.
    Power,
    /// 16 of a row: an E4M3 number over a divisor that all weights share: this one, or what puts the largest scale on 448.
    Local(Option<f32>),
}

impl ScaledEncoding {
    /// `mxfp8`: eight-bit floats, 32 to a power of two.
    pub const MXFP8: Self = Self { element: Element::E4m3, sharing: Sharing::Power, names: Names::Package };
    /// `mxfp4`: four-bit floats, 32 to a power of two. The exponent is that of least error, not the floor of the largest magnitude's.
    pub const MXFP4: Self = Self { element: Element::E2m1, sharing: Sharing::Power, names: Names::Package };
    /// `nvfp4`: four-bit floats, 16 to an eight-bit float, which is in units of what the whole matrix shares.
    pub const NVFP4: Self =
        Self { element: Element::E2m1, sharing: Sharing::Local(None), names: Names::Package };

    /// `int8`: integers, one scale for each row.
    #[must_use]
    pub const fn int8(scale: ScaleDtype) -> Self {
        Self { element: Element::Int8, sharing: Sharing::Row(scale), names: Names::Package }
    }

    /// `fp8`: eight-bit floats, one scale for each row.
    #[must_use]
    pub const fn fp8(scale: ScaleDtype) -> Self {
        Self { element: Element::E4m3, sharing: Sharing::Row(scale), names: Names::Package }
    }

    /// `fp8-block`: eight-bit floats, one scale for each 128 x 128.
    #[must_use]
    pub const fn fp8_block(scale: ScaleDtype) -> Self {
        Self { element: Element::E4m3, sharing: Sharing::Tile(scale), names: Names::Package }
    }

    /// `fp8-tensor`: eight-bit floats, one scale for all.
    #[must_use]
    pub const fn fp8_tensor(scale: ScaleDtype) -> Self {
        Self { element: Element::E4m3, sharing: Sharing::Whole(scale, None), names: Names::Package }
    }

    /// `fp8-block` as `DeepSeek`'s checkpoints name its tensors.
    #[must_use]
    pub const fn fp8_block_inv(scale: ScaleDtype) -> Self {
        Self { names: Names::DeepSeek, ..Self::fp8_block(scale) }
    }

    /// The same as `ModelOpt` names and scales it.
    #[must_use]
    pub const fn of_model_opt(self) -> Self {
        Self { names: Names::ModelOpt, ..self }
    }

    /// Every encoding of this kind.
    #[must_use]
    pub fn all(scale: ScaleDtype) -> [Self; 7] {
        [
            Self::int8(scale),
            Self::fp8(scale),
            Self::fp8_block(scale),
            Self::fp8_tensor(scale),
            Self::MXFP8,
            Self::MXFP4,
            Self::NVFP4,
        ]
    }

    /// Rows that lie in the same tile, 1 where there are none.
    const fn tile_rows(self) -> usize {
        if let Sharing::Tile(_) = self.sharing { TILE } else { 1 }
    }

    /// Consecutive columns of a row of `cols` that share a scale.
    fn group_size(self, cols: usize) -> usize {
        match self.sharing {
            Sharing::Row(_) | Sharing::Whole(..) => cols.max(1),
            Sharing::Tile(_) => TILE,
            Sharing::Power => POWER_GROUP,
            Sharing::Local(_) => LOCAL_GROUP,
        }
    }

    /// Bytes of the header of one row, or of the rows of a tile: its scales, and before them the divisor all share.
    ///
    /// What all share stands in the header of each row, so that headers of rows make up those of a matrix.
    fn header_row(self, cols: usize) -> usize {
        let groups = cols.div_ceil(self.group_size(cols));
        match self.sharing {
            Sharing::Row(dtype) | Sharing::Tile(dtype) | Sharing::Whole(dtype, _) => {
                groups * dtype.width_bytes()
            }
            Sharing::Power => groups,
            Sharing::Local(_) => size_of::<f32>() + groups,
        }
    }

    fn header_len(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.tile_rows()) * self.header_row(cols)
    }

    fn code_bytes(self, rows: usize, cols: usize) -> usize {
        rows * cols * self.element.bits() / 8
    }

    /// The scales of one row's header, one per group.
    fn scales(self, header: &[u8]) -> Vec<f32> {
        match self.sharing {
            Sharing::Row(dtype) | Sharing::Tile(dtype) | Sharing::Whole(dtype, _) => {
                header.chunks_exact(dtype.width_bytes()).map(|bytes| dtype.read(bytes)).collect()
            }
            Sharing::Power => header.iter().map(|&byte| power(byte)).collect(),
            Sharing::Local(_) => {
                let (shared, scales) = header.split_at(size_of::<f32>());
                let shared = ScaleDtype::F32.read(shared);
                let scale = |&byte: &u8| match self.names {
                    Names::ModelOpt => e4m3(byte) * shared,
                    Names::Package | Names::DeepSeek => e4m3(byte) / shared,
                };
                scales.iter().map(scale).collect()
            }
        }
    }

    fn grid(self, header: Vec<u8>, rows: usize, cols: usize) -> Grid {
        let group_size = self.group_size(cols);
        let shape = (rows, cols.div_ceil(group_size));
        let mut scale = Vec::with_capacity(shape.0 * shape.1);
        for (i, header) in header.chunks_exact(self.header_row(cols).max(1)).enumerate() {
            let scales = self.scales(header);
            let tile = self.tile_rows();
            (i * tile..rows.min((i + 1) * tile)).for_each(|_| scale.extend_from_slice(&scales));
        }
        Grid {
            scale: Array2::from_shape_vec(shape, scale).expect("one scale per row and group"),
            zero: Array2::from_elem(shape, self.element.zero()),
            min: Array2::zeros(shape),
            group_size,
            max_code: self.element.max_code(),
            levels: self.element.levels(),
            header,
        }
    }

    /// The header that comes nearest to a scale for each row and group; with a divisor of 1, where there is one.
    fn header(self, scale: &Array2<f32>) -> Option<Vec<u8>> {
        match self.sharing {
            Sharing::Row(dtype) | Sharing::Tile(dtype) | Sharing::Whole(dtype, _) => {
                let lines = scale.axis_iter(Axis(0)).step_by(self.tile_rows());
                Some(lines.flat_map(|line| line.to_vec()).flat_map(|scale| dtype.bytes(scale)).collect())
            }
            Sharing::Power => Some(scale.iter().map(|&scale| floor_power(scale)).collect()),
            Sharing::Local(_) => {
                let byte = |scale: &f32| {
                    (0..0x80u8).find(|&byte| is_number(byte) && e4m3(byte).to_bits() == scale.to_bits())
                };
                let line = |line: ArrayView1<'_, f32>| {
                    let own: Option<Vec<u8>> = line.iter().map(byte).collect();
                    own.map(|own| [&1.0f32.to_le_bytes()[..], &own].concat())
                };
                Some(scale.axis_iter(Axis(0)).map(line).collect::<Option<Vec<_>>>()?.concat())
            }
        }
    }

    /// The header with the scales that lose least of `w`, `[rows, cols]` row after row; `costs` has one number per column.
    fn searched(self, x: &[f32], rows: usize, costs: &[f32]) -> Vec<u8> {
        let cols = costs.len();
        let row = |row: usize| &x[row * cols..][..cols];
        match self.sharing {
            Sharing::Row(dtype) => (0..rows)
                .into_par_iter()
                .flat_map_iter(|at| {
                    dtype.bytes(self.float_scale(dtype, &Shared { runs: vec![row(at)], costs }))
                })
                .collect(),
            Sharing::Tile(dtype) => {
                let across = cols.div_ceil(TILE);
                let tile = |at: usize| {
                    let columns = at % across * TILE..cols.min((at % across + 1) * TILE);
                    let down = at / across * TILE..rows.min((at / across + 1) * TILE);
                    let runs = down.map(|at| &row(at)[columns.clone()]).collect();
                    dtype.bytes(self.float_scale(dtype, &Shared { runs, costs: &costs[columns] }))
                };
                (0..rows.div_ceil(TILE) * across).into_par_iter().flat_map_iter(tile).collect()
            }
            Sharing::Whole(dtype, known) => {
                let all = || self.float_scale(dtype, &Shared { runs: (0..rows).map(row).collect(), costs });
                let bytes: Vec<u8> = dtype.bytes(known.unwrap_or_else(all)).collect();
                bytes.repeat(rows)
            }
            Sharing::Power => {
                (0..rows).into_par_iter().flat_map_iter(|at| self.powers(row(at), costs)).collect()
            }
            Sharing::Local(known) => {
                let divisor = known.unwrap_or_else(|| divisor(Shared { runs: vec![x], costs }.largest()));
                let stored = if self.names == Names::ModelOpt { 1.0 / divisor } else { divisor };
                let locals = |at| locals(row(at), costs, (divisor, stored));
                (0..rows).into_par_iter().flat_map_iter(locals).collect()
            }
        }
    }

    fn float_scale(self, dtype: ScaleDtype, shared: &Shared<'_>) -> f32 {
        shared.best(self.element, candidates(self.element, shared.largest(), |x| dtype.rounded(x)))
    }

    /// The E8M0 byte of each 32 weights of a row.
    fn powers(self, x: &[f32], costs: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; x.len() / POWER_GROUP];
        if self.element == Element::E2m1 {
            let rows = Rows { x, cols: x.len(), importance: Some(costs) };
            mxfp4::SCALES.choose::<POWER_GROUP>(&rows, &mut bytes);
            return bytes;
        }
        let groups = x.chunks_exact(POWER_GROUP).zip(costs.chunks_exact(POWER_GROUP));
        for (byte, (x, costs)) in bytes.iter_mut().zip(groups) {
            let shared = Shared { runs: vec![x], costs };
            let plain = floor_power(shared.largest() / 256.0); // 448 lies between 256 and 512
            let near = [0, 1, -1].map(|step| plain.saturating_add_signed(step).min(NO_POWER - 1));
            let best = shared.best(self.element, near.map(power));
            *byte = near.into_iter().find(|&byte| power(byte).to_bits() == best.to_bits()).unwrap_or(plain);
        }
        bytes
    }

    /// Refuses scales that are no numbers.
    fn check_scales(self, header: &[u8], rows: usize, cols: usize) -> Result<(), Error> {
        let width = self.header_row(cols).max(1);
        let is_bad = |header: &[u8]| match self.sharing {
            Sharing::Power => header.contains(&NO_POWER),
            Sharing::Local(_) => !header[size_of::<f32>()..].iter().all(|&byte| is_number(byte)),
            _ => false, // what a float may be is seen when it has been multiplied
        };
        match header.chunks_exact(width).position(is_bad) {
            Some(row) => {
                Err(Error::NoNumber { encoding: self.name(), rows, cols, row: row * self.tile_rows() })
            }
            None => Ok(()),
        }
    }
}

/// What E4M3 scales are divided by where the largest magnitude of all weights is `largest`; 1 where that says nothing.
///
/// # Source
/// `generate_gparam` of the `compressed-tensors` package 0.20: 448 * 6 over the largest magnitude.
fn divisor(largest: f32) -> f32 {
    let divisor = 448.0 * 6.0 / largest;
    if divisor.is_finite() && divisor > 0.0 { divisor } else { 1.0 }
}

/// `2^(byte - 127)`.
fn power(byte: u8) -> f32 {
    // The smallest is below the normal numbers.
    f32::from_bits(if byte == 0 { 1 << 22 } else { u32::from(byte) << 23 })
}

/// The byte of the largest power of two that is not above `x`, which is not negative.
fn floor_power(x: f32) -> u8 {
    (x.to_bits() >> 23).min(u32::from(NO_POWER - 1)) as u8
}

/// The header of a row with a divisor: what is stored of that, and an E4M3 number for each 16 weights, the one of least error.
///
/// Among those tried is the one that puts the largest magnitude on 4 in place of 6, between which nothing lies.
fn locals(x: &[f32], costs: &[f32], (divisor, stored): (f32, f32)) -> Vec<u8> {
    let in_units: Vec<f32> = x.iter().map(|x| x * divisor).collect();
    let mut header = stored.to_le_bytes().to_vec();
    header.resize(size_of::<f32>() + x.len() / LOCAL_GROUP, 0);
    let rows = Rows { x: &in_units, cols: x.len(), importance: Some(costs) };
    nvfp4::SCALES.choose::<LOCAL_GROUP>(&rows, &mut header[size_of::<f32>()..]);
    header
}

impl Encoding for ScaledEncoding {
    fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match (self.element, self.sharing) {
            (Element::Int8, _) => "int8",
            (Element::E4m3, Sharing::Tile(_)) => "fp8-block",
            (Element::E4m3, Sharing::Whole(..)) => "fp8-tensor",
            (Element::E4m3, Sharing::Power) => "mxfp8-g32",
            (Element::E4m3, _) => "fp8",
            (Element::E2m1, Sharing::Power) => "mxfp4-g32",
            (Element::E2m1, _) => "nvfp4-g16",
        })
    }

    fn block_len(&self) -> usize {
        match self.sharing {
            Sharing::Power => POWER_GROUP,
            Sharing::Local(_) => LOCAL_GROUP,
            _ => 1,
        }
    }

    fn bytes_for(&self, rows: usize, cols: usize) -> usize {
        folder::packed_bytes(&self.parts(rows, cols))
    }

    fn bits_per_weight(&self) -> f64 {
        let scale = match self.sharing {
            Sharing::Row(_) | Sharing::Whole(..) => 0.0, // next to nothing in long rows
            Sharing::Tile(dtype) => 8.0 * dtype.width_bytes() as f64 / (TILE * TILE) as f64,
            Sharing::Power => 8.0 / POWER_GROUP as f64,
            Sharing::Local(_) => 8.0 / LOCAL_GROUP as f64,
        };
        self.element.bits() as f64 + scale
    }

    fn grid(&self) -> Option<&dyn GridEncoding> {
        Some(self)
    }
}

impl GridEncoding for ScaledEncoding {
    fn search(&self, w: ArrayView2<'_, f32>, importance: Option<&[f32]>) -> Fit {
        let (rows, cols) = w.dim();
        assert!(cols.is_multiple_of(self.block_len()), "{cols} columns are not whole groups");
        let even = vec![1.0; if importance.is_none() { cols } else { 0 }];
        let costs = importance.unwrap_or(&even);
        assert_eq!(costs.len(), cols, "importance must have one weight per column");
        let contiguous = w.as_standard_layout();
        let x = contiguous.as_slice().expect("standard layout");
        let grid = Self::grid(*self, self.searched(x, rows, costs), rows, cols);
        let codes = grid.round(w);
        Fit { grid, codes }
    }

    fn has_zero(&self) -> bool {
        true
    }

    fn is_even(&self) -> bool {
        self.element.levels().is_none()
    }

    fn unit(&self) -> Option<usize> {
        None
    }

    fn rescaled(&self, grid: &Grid, _scale: ArrayView2<'_, f32>, _min: ArrayView2<'_, f32>) -> Grid {
        grid.clone()
    }

    fn pack(&self, grid: &Grid, codes: ArrayView2<'_, u8>) -> Vec<u8> {
        let (rows, cols) = codes.dim();
        assert_eq!(
            grid.header.len(),
            self.header_len(rows, cols),
            "the grid is for another shape than [{rows}, {cols}]"
        );
        let codes = codes.as_standard_layout();
        let codes = codes.as_slice().expect("standard layout");
        let mut bytes = vec![0; self.code_bytes(rows, cols)];
        bytes
            .par_chunks_exact_mut(self.code_bytes(1, cols).max(1))
            .zip(codes.par_chunks_exact(cols.max(1)))
            .for_each(|(bytes, codes)| self.element.write(codes, bytes));
        match self.sharing {
            Sharing::Whole(dtype, _) => bytes.extend_from_slice(&grid.header[..dtype.width_bytes()]),
            Sharing::Local(_) => {
                let headers = grid.header.chunks_exact(self.header_row(cols));
                headers.for_each(|header| bytes.extend_from_slice(&header[size_of::<f32>()..]));
                bytes.extend_from_slice(&grid.header[..size_of::<f32>()]);
            }
            _ => bytes.extend_from_slice(&grid.header),
        }
        bytes
    }

    fn unpack_codes(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Fit, Error> {
        self.check_bytes(bytes, rows, cols)?;
        let (packed, scales) = bytes.split_at(self.code_bytes(rows, cols));
        let header = match self.sharing {
            Sharing::Whole(..) => scales.repeat(rows),
            Sharing::Local(_) => {
                let (scales, divisor) = scales.split_at(scales.len() - size_of::<f32>());
                scales
                    .chunks_exact((cols / LOCAL_GROUP).max(1))
                    .flat_map(|scales| [divisor, scales].concat())
                    .collect()
            }
            _ => scales.to_vec(),
        };
        self.check_scales(&header, rows, cols)?;
        let mut codes = vec![0; rows * cols];
        let row = codes
            .par_chunks_exact_mut(cols.max(1))
            .zip(packed.par_chunks_exact(self.code_bytes(1, cols).max(1)))
            .position_first(|(codes, bytes)| !self.element.read(bytes, codes));
        if let Some(row) = row {
            return Err(Error::NoNumber { encoding: self.name(), rows, cols, row });
        }
        let codes = Array2::from_shape_vec((rows, cols), codes).expect("one code per weight");
        Ok(Fit { grid: Self::grid(*self, header, rows, cols), codes })
    }

    fn holding(&self, fit: &Fit) -> Result<Fit, Error> {
        let (rows, cols) = fit.codes.dim();
        let element = self.element;
        let room = Room {
            group_size: self.group_size(cols),
            zero: Some(element.zero()),
            max_code: element.max_code(),
            levels: element.levels(),
        };
        let Moved { scale, codes, .. } = room.take(fit).map_err(|reason| refused(self, reason))?;
        let grid = self.header(&scale).map(|header| Self::grid(*self, header, rows, cols));
        let is_same =
            |grid: &Grid| grid.scale.iter().zip(&scale).all(|(own, scale)| own.to_bits() == scale.to_bits());
        let grid = grid.filter(is_same).ok_or_else(|| refused(self, NO_SCALE))?;
        Ok(Fit { grid, codes })
    }
}

/// # Source
/// The `compressed-tensors` package 0.20: `compressors/naive_quantized`, `mxfp8`, `nvfp4` and `mxfp4`; vLLM, `modelopt.py`.
impl FolderEncoding for ScaledEncoding {
    fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        let groups = cols.div_ceil(self.group_size(cols));
        let codes = match self.element {
            Element::Int8 => Part::rows(".weight", Dtype::I8, [rows, cols]),
            Element::E4m3 => Part::rows(".weight", Dtype::F8E4m3, [rows, cols]),
            Element::E2m1 => Part::rows(".weight_packed", Dtype::U8, [rows, cols / 2]),
        };
        let (scale, shared, shape) = match self.names {
            Names::Package => (".weight_scale", ".weight_global_scale", vec![1]),
            Names::DeepSeek => (".weight_scale_inv", ".weight_global_scale", vec![1]),
            Names::ModelOpt => (".weight_scale", ".weight_scale_2", Vec::new()),
        };
        let codes = match (self.names, self.element) {
            (Names::ModelOpt, Element::E2m1) => Part { ending: ".weight", ..codes },
            _ => codes,
        };
        let whole = |ending, dtype| Part { ending, dtype, shape: shape.clone(), holds: Holds::Whole };
        let scales = |dtype, rows| Part::rows(scale, dtype, [rows, groups]);
        match self.sharing {
            Sharing::Row(dtype) => vec![codes, scales(dtype.dtype(), rows)],
            Sharing::Tile(dtype) => vec![codes, scales(dtype.dtype(), rows.div_ceil(TILE))],
            Sharing::Whole(dtype, _) => vec![codes, whole(scale, dtype.dtype())],
            Sharing::Power => vec![codes, scales(Dtype::U8, rows)],
            Sharing::Local(_) => {
                vec![codes, scales(Dtype::F8E4m3, rows), whole(shared, Dtype::F32)]
            }
        }
    }

    fn rows_together(&self, rows: usize) -> usize {
        match self.sharing {
            Sharing::Tile(_) => TILE,
            Sharing::Whole(_, None) | Sharing::Local(None) => rows,
            _ => 1,
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self.sharing, Sharing::Whole(..) | Sharing::Local(_))
    }

    /// # Source
    /// vLLM, `compressed_tensors_w4a16_nvfp4.py` and `w8a8_utils.py`: of matrices that are read as one, one scale is taken for all.
    fn for_largest(&self, largest: f32) -> Option<Arc<dyn FolderEncoding>> {
        let sharing = match self.sharing {
            Sharing::Whole(dtype, _) => {
                Sharing::Whole(dtype, Some(dtype.rounded(largest / self.element.reach())))
            }
            Sharing::Local(_) => Sharing::Local(Some(divisor(largest))),
            _ => return None,
        };
        Some(Arc::new(Self { sharing, ..*self }))
    }

    fn float_dtype(&self) -> Option<Dtype> {
        match self.sharing {
            Sharing::Row(dtype) | Sharing::Tile(dtype) | Sharing::Whole(dtype, _) => Some(dtype.dtype()),
            Sharing::Power | Sharing::Local(_) => None,
        }
    }
}
