//! Distillation: a student learns from what its teacher says of a text.
//!
//! ```text
//! Order ── windows of step n ──> Lesson (what is to be learned of them) ──> Training::step ──> student changed
//!                                  teacher, online or kept                  gradients, clipping, AdamW
//! ```
//!
//! Which windows a step sees, and all that becomes of them, follows from the seed and the number of the step alone: a run that
//! is taken up again from its weights, its [`Progress`] and its [moments](Training::moments) is, bit for bit, the run that was never interrupted. Files are not known here.

mod device;
mod error;
mod layers;
mod lesson;
mod local;
mod optimizer;
mod order;
mod schedule;
mod training;

pub use device::{DeviceTraining, TeacherThere};
pub use error::Error;
pub use layers::LayerMap;
pub use lesson::{Aim, Signal, Streams, Teacher, token_weights};
pub use local::{BlockLesson, BlockTraining};
pub use optimizer::{ByLayer, Done, Optimizer, Progress};
pub use order::{Order, shuffled};
pub use schedule::{Decay, Schedule};
pub use training::{Disguise, Training, gradients};
