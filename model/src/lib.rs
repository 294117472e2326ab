//! Language models as data, and the one forward pass that runs them all.
//!
//! A [`Family`] says how models of one kind read their configuration and which parts they have; a [`ModelConfig`] is
//! one such model's numbers, and lists its tensors with their [roles](Role), [taps](Tap) and names in both file
//! layouts. A [`Block`] runs one decoder layer, as a whole or stage by stage, so that weights can be changed between
//! stages; [`device`] runs the same steps on a CUDA device. Nothing here knows about compression.
//!
//! Weights are `[out_features, in_features]`, activations `[tokens, features]` in f32, and a batch of tokens is whole
//! windows of `ctx` tokens one after another. What is computed for a window depends on no other window, bit for bit.

#![expect(clippy::needless_pass_by_value, reason = "a view is a reference already")]

pub mod device;
pub mod family;
pub mod teacher;

mod block;
mod config;
mod error;
mod experts;
mod forward;
mod gradients;
mod hidden;
mod loss;
mod mlp;
mod norm;
mod products;
mod rounding;
mod tensors;
mod train;
mod weight;
mod weights;

pub use attar_tensor::op::{AdamW, Divergence, Moments, global_norm, relative_error_backward};
pub use attar_tensor::{NotPositiveDefinite, Precision, cholesky_of_inverse, gram_add, matmul};
pub use block::{Block, Kept, Learner, Linear};
pub use config::{
    AttentionScale, Experts as ExpertNumbers, LayerSizes, Llama3Scaling, LongRope, ModelConfig, RopeScaling,
};
pub use device::Device;
pub use error::Error;
pub use experts::{Experts, Router, Routing, Share};
pub use family::{FAMILIES, Family};
pub use forward::{
    Head, HeadRows, HeadSource, LogitShape, Streaming, Windows, check_tokens, embed, final_norm,
    hidden_states, scale_embeddings, streamed_embeddings, streamed_hidden_states, while_reading_ahead,
};
pub use gradients::Gradients;
pub use hidden::{HiddenStates, Keeping, KeptFloat, Place};
pub use loss::{Likeness, Loss, Mixture, NextToken, TowardsLikeliest, TowardsTeacher, next_token_weights};
pub use mlp::Gated;
pub use norm::Norm;
pub use rounding::{Number, Rounding};
pub use tensors::{ExpertIndex, FilePlace, GgufAdds, Role, RowOrder, Tap, TensorSpec};
pub use train::{Keep, Model, Step};
pub use weight::{Input, Weight};
pub use weights::{LoadError, Weights};
