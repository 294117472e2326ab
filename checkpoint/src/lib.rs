//! Bytes: safetensors, GGUF, Hugging Face folders, compressed-tensors names, atomic writing.
//!
//! Everything read here may lie. Headers are checked in checked arithmetic before a byte of data
//! is trusted, and nothing is allocated on the word of a count alone. What leaves this crate is
//! names, shapes, storage tags and slices of a memory map; what a tensor *means* is not known here.

pub mod atomic;
pub mod awq;
pub mod compressed_tensors;
pub mod container;
pub mod dtype;
pub mod error;
pub mod floats;
pub mod format;
pub mod fp8;
pub mod gguf;
pub mod gptq;
pub mod hf;
pub mod imatrix;
pub mod listing;
pub mod log_probs;
mod map;
pub mod modelopt;
pub mod quantization;
pub mod safetensors;
pub mod scratch;
mod slots;
pub mod tokenizer;
mod unwritten;

pub use container::{Container, TensorInfo};
pub use dtype::{Dtype, GgmlType};
pub use error::Error;
pub use floats::{decode_floats, encode_floats, round_floats};
pub use format::{FORMATS, Format, open};
pub use listing::Listing;
pub use scratch::Scratch;
pub use unwritten::Unwritten;
