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
    /// A map of no layers.
    #[error("no layers are named")]
    NoLayers,
    /// Two layers of the teacher for one of the student.
    #[error("layer {layer} of the student has two of the teacher's")]
    LayerTwice {
        /// Of the student.
        layer: usize,
    },
    /// A layer that is not there.
    #[error("the {whose} has no layer {layer}: its {layers} are numbered from 0")]
    NoSuchLayer {
        /// The `student` or the `teacher`.
        whose: &'static str,
        /// The layer.
        layer: usize,
        /// How many there are.
        layers: usize,
    },
    /// Streams that cannot be compared.
    #[error("the student's residual stream has {student} features, the teacher's {teacher}")]
    Width {
        /// Of the student.
        student: usize,
        /// Of the teacher.
        teacher: usize,
    },
    /// A teacher that was kept without its blocks.
    #[error("what was kept of the teacher says nothing of its layers")]
    KeptWithoutStreams,
    /// Layers are compared on the processor only.
    #[error("a student on a CUDA device is not compared layer by layer")]
    StreamsOnDevice,
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
