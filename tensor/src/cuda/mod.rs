//! The CUDA device: the operations of [`crate::op`], products, Gram matrices, error feedback and training on a GPU.
//!
//! Nothing of CUDA is needed to build, and nothing of it is looked for until [`Cuda::open`]: the driver, NVRTC, cuBLASLt and
//! cuSOLVER are opened at run time, from the loader's path, `ATTAR_CUDA_LIBS` or a pip environment. Kernels are the `.cu` texts
//! beside the operations, compiled for the device on first use and kept on disk.
//!
//! Storage is f32 or bf16, arithmetic f32. Orders of summation are fixed and there are no atomics: a result depends on the device's
//! kind, not on the run. Everything is asked for in one lane in order; only [`download`](Cuda::download) and its kin wait.
//!
//! # How a decoder's block runs over it
//!
//! With `hidden` `[tokens, hidden_size]` as [`Matrix`], some windows at a time as the [plan](plan::DevicePlan) says:
//!
//! | step of a block | calls |
//! |---|---|
//! | norm before attention | [`rms_norm`](Cuda::rms_norm)`(attn_in, hidden, weight)`; statistics: [`gram_add`](Cuda::gram_add)`(gram, attn_in)` |
//! | q, k, v | [`linear`](Cuda::linear)`(q, attn_in, w, Keep::Nothing)`, [`add_row`](Cuda::add_row) for a bias |
//! | norms of heads | [`rms_norm_in_place`](Cuda::rms_norm_in_place)`(q.reshaped(head_dim), weight)` |
//! | positions | [`rope`](Cuda::rope)`(q, turns, There)`, k likewise |
//! | attention | [`attention`](Cuda::attention)`(attn_out, [q, k, v], shape)`; statistics of `attn_out` |
//! | o and the residual | [`linear`](Cuda::linear)`(hidden, attn_out, w, Keep::Sum)` |
//! | MLP | the norm; gate and up by [`linear`](Cuda::linear); [`gate`](Cuda::gate)`(gate, up)`; statistics; down with [`Keep::Sum`] |
//! | head | [`linear`](Cuda::linear) to f32 logits of a chunk; [`token_losses`](Cuda::token_losses), [`token_divergences`](Cuda::token_divergences) |
//!
//! Weights come by a [`BlockStream`]: `load` the next block, compute on [`block`](BlockStream::block), `finish`.
//!
//! Backward goes the same way from the last row up, with what a step's forward read computed once more.

mod attend;
mod cache;
mod compile;
mod cublas;
mod cusolver;
mod descent;
mod error;
mod feedback;
mod gpu;
mod grid;
mod kernel;
mod launch;
mod layers;
mod libraries;
mod losses;
pub mod machine;
mod memory;
pub mod plan;
mod product;
mod reduce;
mod split;
mod staging;
mod stream;
mod training;

pub use cache::Cache;
pub use compile::Compiler;
pub use descent::Metric;
pub use error::CudaError;
pub use feedback::{Damping, Pass, Width};
pub use grid::{Grid, GroupSearch, Stored, Zero};
pub use half::bf16;
pub use kernel::{Module, SOURCES, Source};
pub use layers::{Direction, Gate, Norm, Tokens, Turns};
pub use losses::{Lesson, NO_TARGET, TokenFigures};
pub use memory::{Element, Item, Matrix, Rows, RowsMut, bytes};
pub use product::Keep;
pub use split::Split;
pub use stream::{BlockStream, Loaded, slot_bytes};
pub use training::Trained;

use machine::{Facts, Machine};
use memory::Budget;
use std::sync::Arc;

/// A device and the memory that may be used of it. Clones share both.
#[derive(Debug, Clone)]
pub struct Cuda {
    machine: Arc<dyn Machine>,
    budget: Arc<Budget>,
}

impl Cuda {
    /// Device number `ordinal`, using at most `max_bytes` of its memory; without a limit, what is free now less a tenth of a
    /// gigabyte for the libraries.
    ///
    /// # Errors
    /// [`CudaError`], each with its hint: no driver, one too old, no NVRTC, no such device, a device without bf16.
    pub fn open(ordinal: usize, max_bytes: Option<u64>) -> Result<Self, CudaError> {
        let gpu = gpu::Gpu::open(ordinal, Cache::of_user())?;
        Self::over(Arc::new(gpu), max_bytes)
    }

    /// Over any machine that does what a device must.
    ///
    /// # Errors
    /// If it does not say how much memory is free.
    pub fn over(machine: Arc<dyn Machine>, max_bytes: Option<u64>) -> Result<Self, CudaError> {
        const OF_THE_LIBRARIES: u64 = 100 << 20;
        let free = machine.free_bytes()?.saturating_sub(OF_THE_LIBRARIES);
        let limit = max_bytes.map_or(free, |limit| limit.min(free));
        Ok(Self { machine, budget: Arc::new(Budget::new(limit)) })
    }

    /// What does the work.
    pub fn machine(&self) -> Arc<dyn Machine> {
        Arc::clone(&self.machine)
    }

    /// What the device is.
    pub fn facts(&self) -> &Facts {
        self.machine.facts()
    }

    /// Bytes that may be used.
    pub fn limit_bytes(&self) -> u64 {
        self.budget.limit_bytes()
    }

    /// Bytes that are used.
    pub fn used_bytes(&self) -> u64 {
        self.budget.used_bytes()
    }

    /// Waits until all that was asked for is done.
    ///
    /// # Errors
    /// If something of it has failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.machine.wait()
    }
}
