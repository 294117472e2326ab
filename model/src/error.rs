//! Why a model cannot be described or run.

use crate::LoadError;

/// Why a model cannot be described or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration names no architecture that is known.
    #[error("unknown architecture `{found}`; known are {known}")]
    UnknownArchitecture {
        /// What the configuration says.
        found: String,
        /// All that would have been understood.
        known: String,
    },
    /// The configuration lacks a value that has no default.
    #[error("the configuration has no `{key}`")]
    Missing {
        /// The key that was looked for.
        key: String,
    },
    /// The configuration has a value of the wrong kind or size.
    #[error("`{key}` is {found}, where {expected} is needed")]
    Value {
        /// The key.
        key: String,
        /// Its value, as it stands in the file.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The configuration asks for something that this runtime does not compute.
    #[error("`{key}` is {found}, which is not supported; known are {known}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is supported.
        known: String,
    },
    /// A tensor could not be had.
    #[error("cannot load tensor `{name}`")]
    Load {
        /// The tensor's Hugging Face name.
        name: String,
        /// The loader's reason.
        source: LoadError,
    },
    /// A tensor does not have the shape that the configuration says.
    #[error("tensor `{name}` has shape {found:?}, the configuration says {expected:?}")]
    Shape {
        /// The tensor's Hugging Face name.
        name: String,
        /// The shape that was loaded.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// Activations could not be kept.
    #[error("cannot keep the hidden states")]
    Keep(#[from] attar_checkpoint::Error),
    /// A teacher cache cannot be written, read, or used here.
    #[error("the teacher cache cannot be used")]
    Teacher(#[from] crate::teacher::Error),
    /// The device cannot do it, or has too little memory.
    #[error("the device could not do it")]
    Device(#[from] attar_tensor::cuda::CudaError),
    /// A model that only the processor runs.
    #[error("{what} are not computed on a CUDA device")]
    NotOnDevice {
        /// What of it the device lacks.
        what: String,
    },
    /// A layer that runs forward only.
    #[error(
        "layer {layer} is made of experts, which have no backward pass: the model runs, but cannot be trained"
    )]
    NoBackward {
        /// The layer.
        layer: usize,
    },
    /// A token that the embedding has no row for.
    #[error("token {token} at position {position} is not below {vocab_size}, the vocabulary size")]
    Token {
        /// The token.
        token: u32,
        /// Where it stands in the list that was to be embedded.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
}
