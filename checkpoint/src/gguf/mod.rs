//! GGUF, llama.cpp's single-file format.

mod value;

pub use value::{Array, Value};
