//! Blocks and heads on a CUDA device: the same steps as [`Block`](crate::Block)'s and [`HeadRows`](crate::HeadRows)'s.
//!
//! A [`DeviceBlock`] is a block's weights on the device and its steps over them, named as the CPU's are; tests hold every family's
//! to the CPU's. Activations and matrices are f32 or bf16 as [`Precision`](crate::Precision) says (in bf16 the residual stream too),
//! arithmetic and sums f32, norms and biases f32. What one device cannot hold comes and goes: blocks by a
//! [`BlockStream`](attar_tensor::cuda::BlockStream), hidden states some windows at a time where a [plan](DevicePlan) says so.
//!
//! Token embeddings are looked up on the host: of a large table a text needs few rows.
//!
//! A [`DeviceModel`] is the twin of [`Model`](crate::Model): all weights there, with gradients and what an optimizer remembers of them.
//! A [`DeviceLesson`] is what it is to learn of some windows, from their own tokens, a [`DeviceTeacher`] or a [`KeptHead`]. Nothing is
//! waited for between the upload of a lesson and the two numbers that a step reads.

mod backward;
mod block;
mod forward;
mod head;
mod hidden;
mod teacher;
mod train;
mod weights;

pub use attar_tensor::cuda::plan::{
    Aim, Course, DevicePlan, Place as DevicePlace, Teaching, TrainingPlan, WholeModel, Work,
};
pub use attar_tensor::cuda::{Cuda, CudaError, Element, TokenFigures, bf16};
pub use block::{AllTurns, DeviceBlock, Input};
pub(crate) use forward::hidden_states;
pub use head::{DeviceHead, DeviceLogits};
pub use hidden::DeviceHidden;
pub use teacher::DeviceTeacher;
pub use train::{AtOnce, DeviceLesson, DeviceModel, FillParameters, KeptHead, Phase};
pub use weights::{Blank, Fill, OwnParts, stored_matrix};

use crate::{Error, ModelConfig};
use attar_tensor::cuda::plan::ModelShape;

/// Where blocks and heads are computed.
#[derive(Debug, Clone, Default)]
pub enum Device {
    /// On the processor.
    #[default]
    Cpu,
    /// On a CUDA device.
    Cuda(OnCuda),
}

/// A CUDA device, and how much of the work is there at a time.
#[derive(Debug, Clone)]
pub struct OnCuda {
    /// The device.
    pub cuda: Cuda,
    /// The sizes.
    pub plan: DevicePlan,
}

impl OnCuda {
    /// Plans the work of a model on a device.
    ///
    /// # Errors
    /// A model that the device cannot run, see [`check`]; too little memory.
    pub fn plan(cuda: &Cuda, config: &ModelConfig, work: Work) -> Result<Self, Error> {
        check(config)?;
        let plan = DevicePlan::within(cuda.limit_bytes(), shape(config), work)?;
        Ok(Self { cuda: cuda.clone(), plan })
    }
}

/// Features of a head that the device's attention takes at most.
const MOST_HEAD_DIM: usize = 256;

/// Holds a model to what the device computes.
///
/// # Errors
/// MLPs made of experts, heads of more features than its attention takes.
pub fn check(config: &ModelConfig) -> Result<(), Error> {
    let refuse = |what: String| Err(Error::NotOnDevice { what });
    if config.experts.is_some() {
        return refuse("MLPs made of experts".into());
    }
    if config.head_dim > MOST_HEAD_DIM {
        return refuse(format!("heads of {} features, more than {MOST_HEAD_DIM},", config.head_dim));
    }
    Ok(())
}

/// The sizes that memory on a device depends on.
pub fn shape(config: &ModelConfig) -> ModelShape {
    ModelShape {
        hidden_size: config.hidden_size as u64,
        intermediate_size: config.intermediate_size as u64,
        heads: config.num_attention_heads as u64,
        kv_heads: config.num_key_value_heads as u64,
        head_dim: config.head_dim as u64,
        vocab_size: config.vocab_size as u64,
    }
}
