//! Number formats and the solvers that choose codes in them.
//!
//! The crate knows matrices, not models: a weight is `[out_features, in_features]`, an activation
//! `[tokens, in_features]`, everything in f32. Three ideas meet here:
//!
//! - an [`Encoding`] says which numbers a format can hold and how they lie in bytes;
//! - a [`Grid`] is what an encoding offers one matrix once its scales are chosen, already rounded
//!   to what the file stores;
//! - a [`Solver`] picks a code for every weight on that grid, from the [`Statistics`] of the inputs.
//!
//! ```
//! use attar_quant::{Factor, Statistics, encoding, solver};
//! use ndarray::Array2;
//!
//! let w = Array2::from_shape_fn((8, 64), |(r, c)| ((r * 7 + c * 13) % 17) as f32 / 8.0 - 1.0);
//! let x = Array2::from_shape_fn((256, 64), |(t, c)| ((t * 31 + c * 11) % 23) as f32 / 11.0 - 1.0);
//! let mut statistics = Statistics::new(64);
//! statistics.observe(x.view());
//!
//! let q4_0 = encoding("q4_0").expect("a listed encoding");
//! let grid_encoding = q4_0.grid().expect("q4_0 has codes");
//! let factor = Factor::new(&statistics, Default::default());
//! let solution = solver("gptq").expect("a listed solver").solve(w.view(), Some(&factor), grid_encoding)?;
//!
//! let bytes = grid_encoding.pack(&solution.grid, solution.codes.view());
//! assert_eq!(q4_0.unpack(&bytes, 8, 64)?, solution.decoded);
//! # Ok::<(), attar_quant::Error>(())
//! ```

#![expect(
    clippy::inline_always,
    reason = "what runs in lanes must be compiled into the wide-vector functions"
)]
#![expect(clippy::needless_bitwise_bool, reason = "lanes have no branches")]
#![expect(clippy::needless_pass_by_value, reason = "a view is a reference already")]
#![expect(clippy::needless_range_loop, reason = "loops over lanes index several arrays alike")]

mod allocation;
mod drift;
pub mod encoding;
mod equalize;
mod error;
mod factor;
mod grid;
mod lanes;
mod loss;
pub mod solver;
mod sparsity;
mod statistics;
mod vectors;

pub use allocation::{Allocation, Choice, allocate};
pub use drift::{Correction, Drift, ridge_for};
pub use encoding::{
    Codebook, DeviceFit, ENCODINGS, Encoding, Fit, FolderEncoding, GridEncoding, Holds, IntEncoding, Named,
    Part, ScaleDtype, ScaledEncoding, Transposed, Words, encoding, encoding_of,
};
pub use equalize::{Reader, Rounded, equalizing_scales};
pub use error::Error;
pub use factor::{Factor, Feedback, Refusal, Settings, shrinkage_for};
pub use grid::Grid;
pub use loss::{energy, energy_by_column, weighted_energy};
pub use solver::{
    DeviceFactor, DeviceGptq, DeviceSolution, DeviceStatistics, Facts, FloatSolution, Gptq, Rtn, SOLVERS,
    Solution, Solver, SparseGpt, Step, Wanda, solver,
};
pub use sparsity::{NoSparsity, Sparsity};
pub use statistics::{Detail, Statistics, Sums};
