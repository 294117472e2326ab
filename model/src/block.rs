//! One decoder block, whole or stage by stage.
//!
//! ```text
//! hidden ── attn_in ── attn_out ── add_attn ──> hidden ── mlp_in ── mlp_mid ── add_mlp ──> hidden
//!           norm       q k v,      += o                   norm      gate, up,  += down
//!                      attention                                    silu
//! ```

use crate::weights::{matrix, vector};
use crate::{Error, ModelConfig, Role, TensorSpec, Weights};
use attar_tensor::general_mat_mul;
use attar_tensor::op::{Attention, Rope, attention, rms_norm, rms_norm_heads, silu_mul};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};
use std::sync::OnceLock;

/// A matrix and its bias: `x @ weight.T + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out_features, in_features]`.
    pub weight: Array2<f32>,
    /// `[out_features]`.
    pub bias: Option<Array1<f32>>,
}

impl Linear {
    /// Activations `[tokens, in_features]` to `[tokens, out_features]`.
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut out = Array2::zeros((x.nrows(), self.weight.nrows()));
        let keep = match &self.bias {
            None => 0.0,
            Some(bias) => {
                out.assign(bias);
                1.0
            }
        };
        general_mat_mul(1.0, x, self.weight.t(), keep, out.view_mut());
        out
    }

    /// `out += x @ weight.T + bias`.
    pub fn add_to(&self, mut out: ArrayViewMut2<'_, f32>, x: ArrayView2<'_, f32>) {
        if let Some(bias) = &self.bias {
            out += bias;
        }
        general_mat_mul(1.0, x, self.weight.t(), 1.0, out);
    }
}

/// One decoder block. Activations are `[tokens, features]`, tokens in whole windows.
#[derive(Debug)]
pub struct Block {
    attn_norm: Array1<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    qk_norm: Option<[Array1<f32>; 2]>,
    o: Linear,
    mlp_norm: Array1<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
    eps: f32,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    sliding_window: Option<usize>,
    frequencies: Vec<f32>,
    rope: OnceLock<Rope>, // for the first ctx that was asked for
}

impl Block {
    /// Loads the block's weights.
    ///
    /// # Errors
    /// A tensor that cannot be loaded or has another shape than the configuration says.
    ///
    /// # Panics
    /// If the model has no such layer.
    pub fn load(config: &ModelConfig, layer: usize, weights: &dyn Weights) -> Result<Self, Error> {
        assert!(layer < config.num_hidden_layers, "layer {layer} of {}", config.num_hidden_layers);
        let spec = |role| config.tensor(role, Some(layer));
        let optional = |role| spec(role).map(|spec| vector(weights, &spec)).transpose();
        let needed = |role| spec(role).ok_or_else(|| Error::Missing { key: format!("{role:?}") });
        let norm = |role| needed(role).and_then(|spec: TensorSpec| vector(weights, &spec));
        let linear = |role, bias| -> Result<Linear, Error> {
            Ok(Linear { weight: matrix(weights, &needed(role)?)?, bias: optional(bias)? })
        };
        Ok(Self {
            attn_norm: norm(Role::AttnNorm)?,
            q: linear(Role::Q, Role::QBias)?,
            k: linear(Role::K, Role::KBias)?,
            v: linear(Role::V, Role::VBias)?,
            qk_norm: optional(Role::QNorm)?.zip(optional(Role::KNorm)?).map(|(q, k)| [q, k]),
            o: linear(Role::O, Role::OBias)?,
            mlp_norm: norm(Role::MlpNorm)?,
            gate: linear(Role::Gate, Role::GateBias)?,
            up: linear(Role::Up, Role::UpBias)?,
            down: linear(Role::Down, Role::DownBias)?,
            eps: config.rms_norm_eps,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            sliding_window: config.sliding_windows.get(layer).copied().flatten(),
            frequencies: config.rope_frequencies(),
            rope: OnceLock::new(),
        })
    }

    /// The matrix of one role and its bias.
    ///
    /// # Panics
    /// If the role is not one of a block's seven matrices.
    pub fn linear(&self, role: Role) -> &Linear {
        match role {
            Role::Q => &self.q,
            Role::K => &self.k,
            Role::V => &self.v,
            Role::O => &self.o,
            Role::Gate => &self.gate,
            Role::Up => &self.up,
            Role::Down => &self.down,
            other => panic!("{other:?} is not a matrix of a block"),
        }
    }

    /// The matrix of one role, `[out_features, in_features]`, to be changed in place; the bias stays.
    ///
    /// # Panics
    /// If the role is not one of a block's seven matrices.
    pub fn weight_mut(&mut self, role: Role) -> ArrayViewMut2<'_, f32> {
        let linear = match role {
            Role::Q => &mut self.q,
            Role::K => &mut self.k,
            Role::V => &mut self.v,
            Role::O => &mut self.o,
            Role::Gate => &mut self.gate,
            Role::Up => &mut self.up,
            Role::Down => &mut self.down,
            other => panic!("{other:?} is not a matrix of a block"),
        };
        linear.weight.view_mut()
    }

    /// The norm before the attention: what q, k and v read.
    pub fn attn_in(&self, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        rms_norm(hidden, self.attn_norm.view(), self.eps)
    }

    /// q, k, v and the attention within windows of `ctx` tokens: what o reads, `[tokens, heads * head_dim]`.
    ///
    /// # Panics
    /// If the rows are not whole windows.
    pub fn attn_out(&self, attn_in: ArrayView2<'_, f32>, ctx: usize) -> Array2<f32> {
        let (mut q, mut k, v) = (self.q.apply(attn_in), self.k.apply(attn_in), self.v.apply(attn_in));
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            rms_norm_heads(q.view_mut(), q_norm.view(), self.eps);
            rms_norm_heads(k.view_mut(), k_norm.view(), self.eps);
        }
        let first = self.rope.get_or_init(|| Rope::new(&self.frequencies, ctx));
        let other = (first.ctx() != ctx).then(|| Rope::new(&self.frequencies, ctx));
        let rope = other.as_ref().unwrap_or(first);
        rope.apply(q.view_mut());
        rope.apply(k.view_mut());
        let shape = Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ctx,
            sliding_window: self.sliding_window,
        };
        attention(shape, q.view(), k.view(), v.view())
    }

    /// `hidden += o(attn_out)`.
    pub fn add_attn(&self, hidden: ArrayViewMut2<'_, f32>, attn_out: ArrayView2<'_, f32>) {
        self.o.add_to(hidden, attn_out);
    }

    /// The norm before the MLP: what gate and up read.
    pub fn mlp_in(&self, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        rms_norm(hidden, self.mlp_norm.view(), self.eps)
    }

    /// `silu(gate) * up`: what down reads, `[tokens, intermediate_size]`.
    pub fn mlp_mid(&self, mlp_in: ArrayView2<'_, f32>) -> Array2<f32> {
        let up = self.up.apply(mlp_in);
        silu_mul(self.gate.apply(mlp_in), up.view())
    }

    /// `hidden += down(mlp_mid)`.
    pub fn add_mlp(&self, hidden: ArrayViewMut2<'_, f32>, mlp_mid: ArrayView2<'_, f32>) {
        self.down.add_to(hidden, mlp_mid);
    }

    /// The whole block, in place of `[tokens, hidden_size]`; a few windows at a time, so that what stands between the
    /// stages stays small.
    ///
    /// # Panics
    /// If the rows are not whole windows of `ctx` tokens.
    pub fn forward(&self, hidden: &mut Array2<f32>, ctx: usize) {
        assert!(
            ctx > 0 && hidden.nrows().is_multiple_of(ctx),
            "{} tokens are not windows of {ctx}",
            hidden.nrows()
        );
        for mut hidden in hidden.axis_chunks_iter_mut(Axis(0), tokens_at_once(ctx)) {
            let attn_out = self.attn_out(self.attn_in(hidden.view()).view(), ctx);
            self.add_attn(hidden.view_mut(), attn_out.view());
            let mlp_mid = self.mlp_mid(self.mlp_in(hidden.view()).view());
            self.add_mlp(hidden.view_mut(), mlp_mid.view());
        }
    }
}

/// Whole windows that give every thread about a thousand tokens: enough to multiply fast, few enough to stay in cache.
fn tokens_at_once(ctx: usize) -> usize {
    (1024 * rayon::current_num_threads()).div_ceil(ctx) * ctx
}
