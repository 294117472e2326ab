//! What keeps a student from learning.

use attar_model::Error as ModelError;

/// What keeps a student from learning.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What was kept of the teacher.
    #[error(transparent)]
    Cache(#[from] attar_model::teacher::Error),
    /// Step after step without a finite loss and gradient.
    #[error("{steps} steps in a row gave no finite {what}, the last of them step {step}")]
    Diverged {
        /// Steps that changed nothing.
        steps: u32,
        /// The last.
        step: u64,
        /// What was not finite: the loss or the gradient.
        what: &'static str,
    },
    /// Another number of tokens than the student knows.
    #[error("the teacher knows {teacher} tokens, the student {student}")]
    Vocabulary {
        /// Of the teacher.
        teacher: usize,
        /// Of the student.
        student: usize,
    },
    /// A teacher that a device does not learn from.
    #[error("from a cache of the likeliest tokens a student does not learn on a CUDA device")]
    LikeliestOnDevice,
    /// What was kept of the optimizer does not fit the student.
    #[error("the state has no moments of shape {shape:?} for `{name}`")]
    State {
        /// The parameter.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
}
