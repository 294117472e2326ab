//! The operations between products: norms, turns, gates, sums, rows of a table. Shapes as in [`crate::op`].

use super::launch::{Layout, arguments, int};
use super::memory::{Element, Item, Matrix, Rows, RowsMut};
use super::product::Keep;
use super::{Cuda, CudaError};
use crate::op::Rope;
use half::bf16;
use ndarray::ArrayView2;

/// What the weights of a norm are stored as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to every weight: 1 where a file stores the distance from 1, as Gemma's do.
    pub offset: f32,
}

/// The curve of a gated activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x / (1 + e^-x)`.
    Silu,
    /// GELU by its tanh form.
    Gelu,
}

impl Gate {
    fn kind(self) -> i32 {
        match self {
            Self::Silu => 0,
            Self::Gelu => 1,
        }
    }
}

/// Which way a rotary embedding turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As in the forward pass.
    There,
    /// The other way: what gradients need.
    Back,
}

/// A window's turns on the device.
#[derive(Debug)]
pub struct Turns {
    cos: Matrix<f32>, // [ctx, turning / 2]
    sin: Matrix<f32>, // [ctx, turning / 2]
    head_dim: usize,
}

/// Tokens on the device, and where each of them stands.
#[derive(Debug)]
pub struct Tokens {
    ids: Matrix<u32>,      // [1, tokens]
    distinct: Matrix<u32>, // each once
    starts: Matrix<u32>,   // where its places begin; one more for the end
    places: Matrix<u32>,   // token after token, each token's in order
    vocab_size: usize,
}

impl Tokens {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.ids.dim().1
    }
}

/// Rows whose share of a gradient that is a sum over tokens is added up by itself, as on the CPU.
pub(super) const SUM_ROWS: usize = 64;

impl Cuda {
    /// `(weight + offset) * x / sqrt(mean(x²) + eps)` for each row of weight's length; norms of heads are those of reshaped rows.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm<T: Element>(
        &self,
        out: RowsMut<'_, T>,
        x: Rows<'_, T>,
        weight: Rows<'_, f32>,
        norm: Norm,
    ) -> Result<(), CudaError> {
        assert_eq!(out.dim(), x.dim(), "a norm keeps its shape");
        let (rows, features) = norm_shape(x, weight);
        let layout = Layout::rows(rows, features, 256);
        let arguments = arguments![&out, x, weight, int(features), norm.eps, norm.offset];
        self.run_for::<T>("rms_norm", "rms_norm", layout, arguments)
    }

    /// [`rms_norm`](Self::rms_norm) in place.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm_in_place<T: Element>(
        &self,
        x: RowsMut<'_, T>,
        weight: Rows<'_, f32>,
        norm: Norm,
    ) -> Result<(), CudaError> {
        let (rows, features) = norm_shape(x.view(), weight);
        let layout = Layout::rows(rows, features, 256);
        let arguments = arguments![&x, &x, weight, int(features), norm.eps, norm.offset];
        self.run_for::<T>("rms_norm", "rms_norm", layout, arguments)
    }

    /// Backward of [`rms_norm`](Self::rms_norm): adds to `d_x` the gradient of x, and to `d_weight` `[1, features]` the weight's.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm_backward<T: Element>(
        &self,
        (d_x, d_weight): (RowsMut<'_, T>, Option<RowsMut<'_, f32>>),
        x: Rows<'_, T>,
        weight: Rows<'_, f32>,
        norm: Norm,
        d_out: Rows<'_, T>,
    ) -> Result<(), CudaError> {
        self.norm_backward((d_x.view(), d_weight), (x, weight, norm), d_out, Keep::Sum)
    }

    /// [`rms_norm_backward`](Self::rms_norm_backward) in place: the gradient of what was normed becomes that of x.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm_backward_in_place<T: Element>(
        &self,
        (d, d_weight): (RowsMut<'_, T>, Option<RowsMut<'_, f32>>),
        x: Rows<'_, T>,
        weight: Rows<'_, f32>,
        norm: Norm,
    ) -> Result<(), CudaError> {
        self.norm_backward((d.view(), d_weight), (x, weight, norm), d.view(), Keep::Nothing)
    }

    fn norm_backward<T: Element>(
        &self,
        (d_x, d_weight): (Rows<'_, T>, Option<RowsMut<'_, f32>>),
        (x, weight, norm): (Rows<'_, T>, Rows<'_, f32>, Norm),
        d_out: Rows<'_, T>,
        keep: Keep,
    ) -> Result<(), CudaError> {
        assert!(d_x.dim() == x.dim() && d_out.dim() == x.dim(), "a norm keeps its shape");
        let (rows, features) = norm_shape(x, weight);
        let shares = self.room::<f32>((rows.div_ceil(SUM_ROWS), features))?;
        let layout = Layout::rows(rows.div_ceil(SUM_ROWS), features, 256);
        let arguments = arguments![
            d_x,
            &shares,
            x,
            weight,
            d_out,
            int(features),
            rows as i64,
            int(SUM_ROWS),
            norm.eps,
            norm.offset,
            i32::from(keep == Keep::Sum),
        ];
        self.run_for::<T>("rms_norm", "rms_norm_backward", layout, arguments)?;
        d_weight.map_or(Ok(()), |d_weight| self.add_shares(d_weight, shares.view()))
    }

    /// The turns of a window's positions.
    ///
    /// # Errors
    /// If memory is short.
    pub fn turns(&self, rope: &Rope) -> Result<Turns, CudaError> {
        let (cos, sin, head_dim) = rope.tables();
        Ok(Turns { cos: self.upload(cos)?, sin: self.upload(sin)?, head_dim })
    }

    /// Turns every head of x `[windows * ctx, heads * head_dim]` by its row's position in its window.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If x is not whole windows of whole heads.
    pub fn rope<T: Element>(
        &self,
        x: RowsMut<'_, T>,
        turns: &Turns,
        direction: Direction,
    ) -> Result<(), CudaError> {
        let ((tokens, features), (ctx, half), head_dim) = (x.dim(), turns.cos.dim(), turns.head_dim);
        assert!(tokens.is_multiple_of(ctx), "{tokens} tokens are not whole windows of {ctx}");
        assert!(features.is_multiple_of(head_dim), "{features} features are not whole heads of {head_dim}");
        let heads = features / head_dim;
        let pairs = tokens * heads * half;
        let back = i32::from(direction == Direction::Back);
        let arguments = arguments![
            &x,
            &turns.cos,
            &turns.sin,
            pairs as i64,
            int(ctx),
            int(heads),
            int(head_dim),
            int(half),
            back,
        ];
        self.run_for::<T>("rope", "rope", Layout::each(pairs), arguments)
    }

    /// `gate = activation(gate) * up`, element by element.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn gate<T: Element>(
        &self,
        gate: RowsMut<'_, T>,
        up: Rows<'_, T>,
        kind: Gate,
    ) -> Result<(), CudaError> {
        assert_eq!(gate.dim(), up.dim(), "gate and up have one shape");
        let count = up.count();
        let arguments = arguments![&gate, &gate, up, count as i64, kind.kind()];
        self.run_for::<T>("gate", "gate", Layout::each(count), arguments)
    }

    /// `activation(gate) * up`, gate and up staying as they are.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn gated<T: Element>(
        &self,
        gate: Rows<'_, T>,
        up: Rows<'_, T>,
        kind: Gate,
    ) -> Result<Matrix<T>, CudaError> {
        assert_eq!(gate.dim(), up.dim(), "gate and up have one shape");
        let (out, count) = (self.room(up.dim())?, up.count());
        let arguments = arguments![&out, gate, up, count as i64, kind.kind()];
        self.run_for::<T>("gate", "gate", Layout::each(count), arguments)?;
        Ok(out)
    }

    /// Backward of [`gate`](Self::gate): gate and up become their gradients.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn gate_backward<T: Element>(
        &self,
        gate: RowsMut<'_, T>,
        up: RowsMut<'_, T>,
        d_out: Rows<'_, T>,
        kind: Gate,
    ) -> Result<(), CudaError> {
        assert!(
            gate.dim() == up.dim() && gate.dim() == d_out.dim(),
            "gate, up and the gradient have one shape"
        );
        let count = d_out.count();
        let arguments = arguments![&gate, &up, &gate, &up, d_out, count as i64, kind.kind()];
        self.run_for::<T>("gate", "gate_backward", Layout::each(count), arguments)
    }

    /// `out += x`.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn add<T: Element>(&self, out: RowsMut<'_, T>, x: Rows<'_, T>) -> Result<(), CudaError> {
        assert_eq!(out.dim(), x.dim(), "both summands have one shape");
        self.run_for::<T>("add", "add", Layout::each(x.count()), arguments![&out, x, x.count() as i64])
    }

    /// `out += bias` in every row; bias is `[1, features]`.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn add_row<T: Element>(&self, out: RowsMut<'_, T>, bias: Rows<'_, f32>) -> Result<(), CudaError> {
        let (rows, cols) = out.dim();
        assert_eq!(bias.dim(), (1, cols), "a bias has one value per feature");
        let count = rows * cols;
        self.run_for::<T>(
            "add",
            "add_row",
            Layout::each(count),
            arguments![&out, bias, count as i64, int(cols)],
        )
    }

    /// `x *= factor`.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn scale<T: Element>(&self, x: RowsMut<'_, T>, factor: f32) -> Result<(), CudaError> {
        let count = x.view().count();
        self.run_for::<T>("scale", "scale", Layout::each(count), arguments![&x, count as i64, factor])
    }

    /// `x = cap * tanh(x / cap)`: what is small stays, nothing leaves `[-cap, cap]`.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn soft_cap<T: Element>(&self, x: RowsMut<'_, T>, cap: f32) -> Result<(), CudaError> {
        let count = x.view().count();
        self.run_for::<T>("scale", "soft_cap", Layout::each(count), arguments![&x, count as i64, cap])
    }

    /// Puts tokens on the device, for a table of `vocab_size` rows.
    ///
    /// # Errors
    /// If memory is short.
    ///
    /// # Panics
    /// If a token is not in the table.
    pub fn tokens(&self, tokens: &[u32], vocab_size: usize) -> Result<Tokens, CudaError> {
        let largest = tokens.iter().max().map_or(0, |&token| token as usize + 1);
        assert!(largest <= vocab_size, "token {} of a vocabulary of {vocab_size}", largest.saturating_sub(1));
        let vector = |items: &[u32]| self.upload_items(items, (1, items.len()));
        let Runs { tokens: distinct, starts, places } = runs(tokens);
        Ok(Tokens {
            ids: vector(tokens)?,
            distinct: vector(&distinct)?,
            starts: vector(&starts)?,
            places: vector(&places)?,
            vocab_size,
        })
    }

    /// `scale * table[token]` for each token, from a table `[vocab_size, features]`.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the tokens are those of another table.
    pub fn embedding<T: Element>(
        &self,
        table: Rows<'_, T>,
        tokens: &Tokens,
        scale: f32,
    ) -> Result<Matrix<T>, CudaError> {
        let (vocab_size, features) = table.dim();
        assert_eq!(vocab_size, tokens.vocab_size, "rows of the table");
        let out = self.room((tokens.count(), features))?;
        let layout = Layout::rows(tokens.count(), features, 256);
        let arguments = arguments![&out, table, &tokens.ids, int(features), scale];
        self.run_for::<T>("embedding", "embedding", layout, arguments)?;
        Ok(out)
    }

    /// Backward of [`embedding`](Self::embedding): adds to `d_table` `[vocab_size, features]` the gradients of each token's places,
    /// in their order.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit or the tokens are those of another table.
    pub fn embedding_backward<T: Element>(
        &self,
        d_table: RowsMut<'_, f32>,
        d_out: Rows<'_, T>,
        tokens: &Tokens,
        scale: f32,
    ) -> Result<(), CudaError> {
        let (vocab_size, features) = d_table.dim();
        assert_eq!(vocab_size, tokens.vocab_size, "rows of the table");
        assert_eq!(d_out.dim(), (tokens.count(), features), "a gradient for each token");
        let Tokens { distinct, starts, places, .. } = tokens;
        let arguments = arguments![&d_table, d_out, distinct, starts, places, int(features), scale];
        let layout = Layout::rows(distinct.dim().1, features, 256);
        self.run_for::<T>("embedding", "embedding_backward", layout, arguments)
    }

    /// f32 to bf16, to the nearest.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    pub fn narrow(&self, x: Rows<'_, f32>) -> Result<Matrix<bf16>, CudaError> {
        self.cast("narrow", x)
    }

    /// bf16 to f32.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    pub fn widen(&self, x: Rows<'_, bf16>) -> Result<Matrix<f32>, CudaError> {
        self.cast("widen", x)
    }

    fn cast<T: Item, O: Item>(&self, kernel: &'static str, x: Rows<'_, T>) -> Result<Matrix<O>, CudaError> {
        let out = self.room(x.dim())?;
        let arguments = arguments![&out, x, x.count() as i64];
        self.run(("cast", None), kernel, Layout::each(x.count()), arguments)?;
        Ok(out)
    }

    /// A weight as a vector on the device, `[1, features]`.
    ///
    /// # Errors
    /// If memory is short.
    pub fn vector(&self, x: &[f32]) -> Result<Matrix<f32>, CudaError> {
        self.upload(
            ArrayView2::from_shape((1, x.len()), x).unwrap_or_else(|_| unreachable!("one row of all")),
        )
    }
}

fn norm_shape<T: Element>(x: Rows<'_, T>, weight: Rows<'_, f32>) -> (usize, usize) {
    let features = x.dim().1;
    assert_eq!(weight.dim(), (1, features), "the norm's weight has one value per feature");
    x.dim()
}

/// Where each token stands.
struct Runs {
    tokens: Vec<u32>, // each once
    starts: Vec<u32>, // where its places begin; one more for the end
    places: Vec<u32>, // token after token, each token's in order
}

fn runs(tokens: &[u32]) -> Runs {
    let mut places: Vec<u32> = (0..tokens.len() as u32).collect();
    places.sort_by_key(|&place| tokens[place as usize]); // stable
    let mut found = Runs { tokens: Vec::new(), starts: Vec::new(), places: Vec::new() };
    for (at, &place) in places.iter().enumerate() {
        let token = tokens[place as usize];
        if found.tokens.last() != Some(&token) {
            found.tokens.push(token);
            found.starts.push(at as u32);
        }
    }
    found.starts.push(places.len() as u32);
    found.places = places;
    found
}
