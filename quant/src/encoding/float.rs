//! The plain floats `f32`, `f16`, `bf16`: one number after the other, no scales, nothing to choose.

use std::borrow::Cow;

use attar_checkpoint::GgmlType;
use half::{bf16, f16};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::{Encoding, GridEncoding};
use crate::Error;

/// Weights per task.
const TASK: usize = 1 << 14;

/// A float format: each weight rounded to nearest even by itself.
#[derive(Debug)]
pub struct Float {
    name: &'static str,
    ggml_id: u32,
    width_bytes: usize,
    pack: fn(&[f32], &mut [u8]),
    unpack: fn(&[u8], &mut [f32]),
}

/// 32 bits per weight, nothing lost.
pub static F32: Float = Float {
    name: "f32",
    ggml_id: 0,
    width_bytes: 4,
    pack: |x, bytes| each(x, bytes.as_chunks_mut().0, |x| x.to_le_bytes()),
    unpack: |bytes, x| each(bytes.as_chunks().0, x, |&bytes| f32::from_le_bytes(bytes)),
};

/// IEEE half precision, 16 bits per weight.
pub static F16: Float = Float {
    name: "f16",
    ggml_id: 1,
    width_bytes: 2,
    pack: |x, bytes| each(x, bytes.as_chunks_mut().0, |&x| f16::from_f32(x).to_le_bytes()),
    unpack: |bytes, x| each(bytes.as_chunks().0, x, |&bytes| f16::from_le_bytes(bytes).to_f32()),
};

/// The upper half of a 32-bit float, 16 bits per weight.
pub static BF16: Float = Float {
    name: "bf16",
    ggml_id: 30,
    width_bytes: 2,
    pack: |x, bytes| each(x, bytes.as_chunks_mut().0, |&x| bf16::from_f32(x).to_le_bytes()),
    unpack: |bytes, x| each(bytes.as_chunks().0, x, |&bytes| bf16::from_le_bytes(bytes).to_f32()),
};

fn each<A, B>(from: &[A], to: &mut [B], f: impl Fn(&A) -> B) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f(from);
    }
}

impl Encoding for Float {
    fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(self.name)
    }

    fn ggml_type(&self) -> Option<GgmlType> {
        GgmlType::from_id(self.ggml_id)
    }

    fn block_len(&self) -> usize {
        1
    }

    fn bytes_for(&self, rows: usize, cols: usize) -> usize {
        rows * cols * self.width_bytes
    }

    fn bits_per_weight(&self) -> f64 {
        8.0 * self.width_bytes as f64
    }

    fn quantize(&self, w: ArrayView2<'_, f32>, _importance: Option<&[f32]>) -> Vec<u8> {
        let w = w.as_standard_layout();
        let w = w.as_slice().expect("standard layout");
        let mut bytes = vec![0; w.len() * self.width_bytes];
        w.par_chunks(TASK)
            .zip(bytes.par_chunks_mut(TASK * self.width_bytes))
            .for_each(|(w, bytes)| (self.pack)(w, bytes));
        bytes
    }

    fn unpack(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Array2<f32>, Error> {
        self.check_bytes(bytes, rows, cols)?;
        let mut w = vec![0.0; rows * cols];
        w.par_chunks_mut(TASK)
            .zip(bytes.par_chunks(TASK * self.width_bytes))
            .for_each(|(w, bytes)| (self.unpack)(bytes, w));
        Ok(Array2::from_shape_vec((rows, cols), w).expect("one value per weight"))
    }

    fn grid(&self) -> Option<&dyn GridEncoding> {
        None
    }
}
