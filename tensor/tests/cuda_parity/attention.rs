//! Attention forward and backward, against softmax by its definition in f64.

use crate::{assert_near, on_every_machine, random, rounded, wide};
use attar_tensor::cuda::{Cuda, Element, Matrix, SOURCES, Source};
use attar_tensor::op::Attention;
use half::bf16;
use ndarray::Array2;

const PLAIN: Attention = Attention {
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    ctx: 20,
    sliding_window: None,
    scale: 0.3,
    soft_cap: None,
};

/// Shapes for the kernels that take any head: windows, shape.
const ANY: [(usize, Attention); 5] = [
    (2, PLAIN),
    (1, Attention { heads: 3, kv_heads: 3, head_dim: 5, ctx: 1, ..PLAIN }),
    (1, Attention { heads: 2, kv_heads: 1, head_dim: 70, ctx: 75, ..PLAIN }),
    (2, Attention { ctx: 50, sliding_window: Some(7), soft_cap: Some(1.5), ..PLAIN }),
    (1, Attention { heads: 6, ctx: 90, sliding_window: Some(37), ..PLAIN }),
];

/// Shapes for tensor cores, one for each head size that is compiled, and for every path through a tile.
const FAST: [(usize, Attention); 15] = [
    (2, Attention { head_dim: 32, ctx: 70, ..PLAIN }),
    (1, Attention { head_dim: 64, ctx: 130, sliding_window: Some(40), ..PLAIN }),
    (1, Attention { head_dim: 64, ctx: 200, sliding_window: Some(5), soft_cap: Some(1.5), ..PLAIN }),
    (1, Attention { heads: 2, kv_heads: 1, head_dim: 80, ctx: 65, ..PLAIN }),
    (1, Attention { heads: 1, kv_heads: 1, head_dim: 96, ctx: 64, ..PLAIN }),
    (1, Attention { heads: 1, kv_heads: 1, head_dim: 112, ctx: 50, ..PLAIN }),
    (1, Attention { heads: 2, kv_heads: 1, head_dim: 128, ctx: 129, ..PLAIN }),
    (1, Attention { heads: 1, kv_heads: 1, head_dim: 192, ctx: 100, sliding_window: Some(33), ..PLAIN }),
    (1, Attention { heads: 2, kv_heads: 2, head_dim: 256, ctx: 90, soft_cap: Some(30.0), ..PLAIN }),
    (3, Attention { heads: 2, kv_heads: 1, head_dim: 32, ctx: 1, ..PLAIN }),
    (1, Attention { heads: 8, kv_heads: 1, head_dim: 32, ctx: 131, ..PLAIN }),
    (2, Attention { heads: 8, kv_heads: 2, head_dim: 32, ctx: 97, sliding_window: Some(50), ..PLAIN }),
    (1, Attention { heads: 1, kv_heads: 1, head_dim: 64, ctx: 190, sliding_window: Some(100), ..PLAIN }),
    (1, Attention { heads: 2, kv_heads: 1, head_dim: 128, ctx: 150, soft_cap: Some(5.0), ..PLAIN }),
    (1, Attention { heads: 1, kv_heads: 1, head_dim: 64, ctx: 140, sliding_window: Some(1), ..PLAIN }),
];

/// `(out, [d_q, d_k, d_v])` in f64.
fn by_definition(shape: Attention, [q, k, v, d_out]: [&Array2<f32>; 4]) -> (Array2<f64>, [Array2<f64>; 3]) {
    let [q, k, v, d_out] = [q, k, v, d_out].map(wide);
    let (dim, shared) = (shape.head_dim, shape.heads / shape.kv_heads);
    let mut out = Array2::zeros(q.dim());
    let mut gradients = [q.dim(), k.dim(), v.dim()].map(Array2::<f64>::zeros);
    for (token, head) in (0..q.nrows()).flat_map(|token| (0..shape.heads).map(move |head| (token, head))) {
        let first = (token + 1)
            .saturating_sub(shape.sliding_window.unwrap_or(shape.ctx))
            .max(token / shape.ctx * shape.ctx);
        let (at, kv) = (head * dim, head / shared * dim);
        let dot = |a: &Array2<f64>, b: &Array2<f64>, other: usize| -> f64 {
            (0..dim).map(|i| a[[token, at + i]] * b[[other, kv + i]]).sum()
        };
        let scale = f64::from(shape.scale);
        let cap = |x: f64| shape.soft_cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
        let slope =
            |x: f64| shape.soft_cap.map_or(1.0, |cap| 1.0 - (cap_of(x, cap) / f64::from(cap)).powi(2));
        let raw: Vec<f64> = (first..=token).map(|other| dot(&q, &k, other) * scale).collect();
        let exps: Vec<f64> = raw.iter().map(|&x| cap(x).exp()).collect();
        let total: f64 = exps.iter().sum();
        let d_weights: Vec<f64> = (first..=token).map(|other| dot(&d_out, &v, other)).collect();
        let mean: f64 = exps.iter().zip(&d_weights).map(|(e, d)| e / total * d).sum();
        for (j, other) in (first..=token).enumerate() {
            let weight = exps[j] / total;
            let d_score = weight * (d_weights[j] - mean) * slope(raw[j]) * scale;
            for i in 0..dim {
                out[[token, at + i]] += weight * v[[other, kv + i]];
                gradients[0][[token, at + i]] += d_score * k[[other, kv + i]];
                gradients[1][[other, kv + i]] += d_score * q[[token, at + i]];
                gradients[2][[other, kv + i]] += weight * d_out[[token, at + i]];
            }
        }
    }
    (out, gradients)
}

fn cap_of(x: f64, cap: f32) -> f64 {
    f64::from(cap) * (x / f64::from(cap)).tanh()
}

fn inputs<T: Element>(shape: Attention, windows: usize) -> [Array2<f32>; 4] {
    let tokens = windows * shape.ctx;
    let (q, kv) = ((tokens, shape.heads * shape.head_dim), (tokens, shape.kv_heads * shape.head_dim));
    [(q, 1), (kv, 2), (kv, 3), (q, 4)].map(|(dim, seed)| rounded::<T>(&(random(dim, seed) * 2.0)))
}

fn attend<T: Element>(cuda: &Cuda, windows: usize, shape: Attention, limit: f64) {
    let [q, k, v, d_out] = inputs::<T>(shape, windows);
    let (truth, gradients) = by_definition(shape, [&q, &k, &v, &d_out]);
    let on_device = [&q, &k, &v].map(|x| cuda.upload::<T>(x.view()).unwrap());
    let on_device = on_device.each_ref().map(|x| x.view());
    let mut found = cuda.zeros::<T>(q.dim()).unwrap();
    cuda.attention_plain(found.view_mut(), on_device, shape).unwrap();
    assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), limit, &format!("{shape:?}"));
    let d = cuda.upload::<T>(d_out.view()).unwrap();
    let found = cuda.attention_backward_plain(on_device, d.view(), shape).unwrap();
    assert_gradients(cuda, &found, &gradients, shape, limit);
}

fn assert_gradients<T: Element>(
    cuda: &Cuda,
    found: &[Matrix<T>; 3],
    truth: &[Array2<f64>; 3],
    shape: Attention,
    limit: f64,
) {
    for ((found, truth), name) in found.iter().zip(truth).zip(["q", "k", "v"]) {
        let found = cuda.download(found.view()).unwrap();
        let what = format!("gradient of {name} in {shape:?}");
        // One token alone has no choice: its gradients of q and k are exactly 0, but for how its weight is rounded.
        if shape.sliding_window.unwrap_or(shape.ctx).min(shape.ctx) > 1 || name == "v" {
            assert_near(found.view(), truth.view(), limit, &what);
        } else {
            assert!(found.iter().all(|&x| x.abs() < 1e-5), "{what}");
        }
    }
}

#[test]
fn attention_and_its_gradient_equal_their_definition() {
    on_every_machine(|cuda| {
        for (windows, shape) in ANY {
            attend::<f32>(cuda, windows, shape, 1e-5);
            attend::<bf16>(cuda, windows, shape, 1e-2);
        }
    });
}

#[test]
fn attention_on_tensor_cores_equals_its_definition() {
    on_every_machine(|cuda| {
        for (windows, shape) in FAST {
            let [q, k, v, d_out] = inputs::<bf16>(shape, windows);
            let (truth, gradients) = by_definition(shape, [&q, &k, &v, &d_out]);
            let on_device = [&q, &k, &v].map(|x| cuda.upload::<bf16>(x.view()).unwrap());
            let on_device = on_device.each_ref().map(|x| x.view());
            let mut found = cuda.zeros::<bf16>(q.dim()).unwrap();
            cuda.attention(found.view_mut(), on_device, shape).unwrap();
            let found = cuda.download(found.view()).unwrap();
            assert_near(found.view(), truth.view(), 1e-2, &format!("{shape:?}"));
            let d_out = cuda.upload::<bf16>(d_out.view()).unwrap();
            let found = cuda.attention_backward(on_device, d_out.view(), shape).unwrap();
            assert_gradients(cuda, &found, &gradients, shape, 1e-2);
        }
    });
}

/// The rows of `FAST` are those the registry compiles.
#[test]
fn every_head_size_of_the_tensor_core_kernels_is_tested() {
    let named = |source: &&Source| ["attention", "attention_backward"].contains(&source.name);
    let sources: Vec<_> = SOURCES.iter().filter(named).collect();
    assert_eq!(sources.len(), 2);
    for variant in sources.iter().flat_map(|source| source.variants) {
        let tested = FAST.iter().any(|(_, shape)| variant[0] == format!("HEAD_DIM={}", shape.head_dim));
        assert!(tested, "{variant:?}");
    }
}
