//! Attention forward and backward.

use super::kernel::Module;
use super::launch::{Layout, arguments, int};
use super::machine::Argument;
use super::memory::{Element, Matrix, Rows, RowsMut};
use super::{Cuda, CudaError};
use crate::op::Attention;
use half::bf16;

/// Warps of a block, each with a query or a key.
const WARPS: usize = 4;

impl Attention {
    /// Windows there are, where the shapes fit.
    fn windows<T: Element>(self, q: Rows<'_, T>, k: Rows<'_, T>, v: Rows<'_, T>) -> usize {
        let Self { heads, kv_heads, head_dim, ctx, .. } = self;
        let tokens = q.dim().0;
        assert!(ctx > 0 && tokens.is_multiple_of(ctx), "{tokens} tokens are not whole windows of {ctx}");
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads cannot share {kv_heads} keys");
        assert!((1..=256).contains(&head_dim), "heads of {head_dim}");
        assert_eq!(q.dim(), (tokens, heads * head_dim), "queries");
        assert_eq!(k.dim(), (tokens, kv_heads * head_dim), "keys");
        assert_eq!(v.dim(), (tokens, kv_heads * head_dim), "values");
        tokens / ctx
    }

    /// Tokens a query sees at most.
    fn width(self) -> usize {
        self.sliding_window.map_or(self.ctx, |width| width.clamp(1, self.ctx))
    }

    /// Whether the tensor-core kernel of the text has this shape in this storage.
    fn is_fast<T: Element>(self, source: &str) -> bool {
        T::DEFINITION == bf16::DEFINITION
            && self.scale > 0.0
            && Module::find(source, Some(&self.definition())).is_some()
    }

    fn definition(self) -> String {
        format!("HEAD_DIM={}", self.head_dim)
    }

    /// A block of a tensor-core kernel for each `each` tokens of each head, with `rows` rows of a head in shared memory.
    fn tiled(self, windows: usize, heads: usize, each: usize, rows: usize) -> Layout {
        Layout {
            grid: [heads, self.ctx.div_ceil(each), windows],
            block: [128, 1, 1],
            shared_bytes: (rows * (self.head_dim + 8) * 2) as u32,
        }
    }

    fn layout(self, windows: usize, heads: usize, each: usize, threads: u32) -> Layout {
        Layout { grid: [self.ctx.div_ceil(each), heads, windows], block: [threads, 1, 1], shared_bytes: 0 }
    }

    /// What the kernels of a gradient read: figures of each query, the operands, sizes, and how scores are made.
    fn read_by_gradients<T: Element>(
        self,
        [log_sum, mean_slope]: [&Matrix<f32>; 2],
        [q, k, v, d_out]: [Rows<'_, T>; 4],
        sizes: &[usize],
    ) -> Vec<Argument> {
        let mut read = arguments![log_sum, mean_slope, q, k, v, d_out].to_vec();
        read.extend(sizes.iter().map(|&size| Argument::from(int(size))));
        read.extend(arguments![self.scale, self.soft_cap.unwrap_or(0.0)]);
        read
    }
}

/// A kernel's arguments: what it writes, then what it reads.
fn written_first<T: Element>(written: &[Matrix<T>], read: &[Argument]) -> Vec<Argument> {
    written.iter().map(Argument::from).chain(read.iter().copied()).collect()
}

impl Cuda {
    /// `softmax(cap(scale q kᵀ)) v` for each head of each window, a token seeing none after it.
    ///
    /// q and out are `[windows * ctx, heads * head_dim]`, k and v `[windows * ctx, kv_heads * head_dim]`. bf16 in head sizes that
    /// have a tensor-core kernel uses it where the scale is above 0; all else goes by [`attention_plain`](Self::attention_plain).
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn attention<T: Element>(
        &self,
        out: RowsMut<'_, T>,
        [q, k, v]: [Rows<'_, T>; 3],
        shape: Attention,
    ) -> Result<(), CudaError> {
        if !shape.is_fast::<T>("attention") {
            return self.attention_plain(out, [q, k, v], shape);
        }
        assert_eq!(out.dim(), q.dim(), "the result is shaped as the queries");
        let none = Argument::Address(0);
        self.attention_forward([Argument::from(&out), none, none], [q, k, v], none, shape)
    }

    /// The tensor-core kernel: `out` without `d_out`, and with it the two figures of each query that the gradient needs.
    fn attention_forward<T: Element>(
        &self,
        [out, log_sum, mean_slope]: [Argument; 3],
        [q, k, v]: [Rows<'_, T>; 3],
        d_out: Argument,
        shape: Attention,
    ) -> Result<(), CudaError> {
        let queries = if shape.head_dim > 128 { 64 } else { 128 };
        let layout = shape.tiled(shape.windows(q, k, v), shape.heads, queries, queries + 2 * 64);
        let arguments = arguments![
            out,
            log_sum,
            mean_slope,
            q,
            k,
            v,
            d_out,
            int(shape.ctx),
            int(shape.heads),
            int(shape.kv_heads),
            int(shape.width()),
            shape.scale,
            shape.soft_cap.unwrap_or(0.0),
        ];
        self.run(("attention", Some(&shape.definition())), "attention", layout, arguments)
    }

    /// [`attention`](Self::attention) in f32 arithmetic throughout: the truth on the device, in any head size up to 256.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn attention_plain<T: Element>(
        &self,
        out: RowsMut<'_, T>,
        [q, k, v]: [Rows<'_, T>; 3],
        shape: Attention,
    ) -> Result<(), CudaError> {
        let windows = shape.windows(q, k, v);
        assert_eq!(out.dim(), q.dim(), "the result is shaped as the queries");
        let layout = shape.layout(windows, shape.heads, WARPS, 32 * WARPS as u32);
        let arguments = arguments![
            &out,
            q,
            k,
            v,
            int(shape.ctx),
            int(shape.heads),
            int(shape.kv_heads),
            int(shape.head_dim),
            int(shape.width()),
            shape.scale,
            shape.soft_cap.unwrap_or(0.0),
        ];
        self.run_for::<T>("attention_plain", "attention_plain", layout, arguments)
    }

    /// Backward of [`attention`](Self::attention): the gradients of q, k and v from theirs and `d_out`. Nothing is kept from the
    /// forward pass.
    ///
    /// bf16 in head sizes that have tensor-core kernels uses them where the scale is above 0; all else goes by
    /// [`attention_backward_plain`](Self::attention_backward_plain).
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn attention_backward<T: Element>(
        &self,
        [q, k, v]: [Rows<'_, T>; 3],
        d_out: Rows<'_, T>,
        shape: Attention,
    ) -> Result<[Matrix<T>; 3], CudaError> {
        const SOURCE: &str = "attention_backward";
        if !shape.is_fast::<T>(SOURCE) {
            return self.attention_backward_plain([q, k, v], d_out, shape);
        }
        let windows = shape.windows(q, k, v);
        assert_eq!(d_out.dim(), q.dim(), "the gradient is shaped as the queries");
        let of_queries = (shape.heads, q.dim().0);
        let (log_sum, mean_slope) = (self.room::<f32>(of_queries)?, self.room::<f32>(of_queries)?);
        let figures = [Argument::Address(0), Argument::from(&log_sum), Argument::from(&mean_slope)];
        self.attention_forward(figures, [q, k, v], d_out.into(), shape)?;

        let gradients = [self.room(q.dim())?, self.room(k.dim())?, self.room(v.dim())?];
        let definition = shape.definition();
        let sizes = [shape.ctx, shape.heads, shape.kv_heads, shape.width()];
        let read = shape.read_by_gradients([&log_sum, &mean_slope], [q, k, v, d_out], &sizes);
        // Large heads come in smaller steps, and two blocks share the features of their keys' gradients.
        let (queries, step, parts) = if shape.head_dim > 128 { (64, 16, 2) } else { (128, 32, 1) };
        let layout = shape.tiled(windows, shape.heads, queries, 2 * queries + 3 * step);
        let arguments = written_first(&gradients[..1], &read);
        self.run((SOURCE, Some(&definition)), "attention_backward_queries", layout, &arguments)?;
        let layout = shape.tiled(windows, shape.kv_heads * parts, 64, 2 * 64 + 4 * step);
        let arguments = written_first(&gradients[1..], &read);
        self.run((SOURCE, Some(&definition)), "attention_backward_keys", layout, &arguments)?;
        Ok(gradients)
    }

    /// [`attention_backward`](Self::attention_backward) in f32 arithmetic throughout: the truth on the device, in any head size up
    /// to 256.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn attention_backward_plain<T: Element>(
        &self,
        [q, k, v]: [Rows<'_, T>; 3],
        d_out: Rows<'_, T>,
        shape: Attention,
    ) -> Result<[Matrix<T>; 3], CudaError> {
        let windows = shape.windows(q, k, v);
        assert_eq!(d_out.dim(), q.dim(), "the gradient is shaped as the queries");
        let gradients = [self.room(q.dim())?, self.room(k.dim())?, self.room(v.dim())?];
        let of_rows = (q.dim().0, shape.heads);
        let (log_sum, mean_slope) = (self.room::<f32>(of_rows)?, self.room::<f32>(of_rows)?);
        let sizes = [shape.ctx, shape.heads, shape.kv_heads, shape.head_dim, shape.width()];
        let read = shape.read_by_gradients([&log_sum, &mean_slope], [q, k, v, d_out], &sizes);
        let threads = 32 * WARPS as u32;
        let layout = shape.layout(windows, shape.heads, WARPS, threads);
        let arguments = written_first(&gradients[..1], &read);
        self.run_for::<T>("attention_plain", "attention_backward_queries", layout, &arguments)?;
        let layout = shape.layout(windows, shape.kv_heads, WARPS, threads);
        let arguments = written_first(&gradients[1..], &read);
        self.run_for::<T>("attention_plain", "attention_backward_keys", layout, &arguments)?;
        Ok(gradients)
    }
}
