//! A decoder's block made of the device's operations, as the module's page lays it out, against the same block on the CPU.

use crate::{assert_near, on_every_machine, random, wide};
use attar_tensor::cuda::{Cuda, CudaError, Direction, Element, Gate, Keep, Matrix, Norm, bf16};
use attar_tensor::op::{Attention, Rope, attention, rms_norm, rms_norm_heads, rope_frequencies, silu_mul};
use attar_tensor::{gram_add, linear};
use ndarray::Array2;

const SHAPE: Attention = Attention {
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    ctx: 24,
    sliding_window: None,
    scale: 0.176_776_7,
    soft_cap: None,
};
const HIDDEN: usize = 64;
const MIDDLE: usize = 96;
const EPS: f32 = 1e-6;

/// `[attn_norm, q, k, v, q_norm, o, mlp_norm, gate, up, down]`, rounded to bf16 so that both widths read the same.
fn weights() -> [Array2<f32>; 10] {
    let (queries, keys) = (SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
    let dims = [
        (1, HIDDEN),
        (queries, HIDDEN),
        (keys, HIDDEN),
        (keys, HIDDEN),
        (1, SHAPE.head_dim),
        (HIDDEN, queries),
        (1, HIDDEN),
        (MIDDLE, HIDDEN),
        (MIDDLE, HIDDEN),
        (HIDDEN, MIDDLE),
    ];
    let mut seed = 10;
    dims.map(|(rows, cols)| {
        seed += 1;
        let scale = if rows == 1 { 1.0 } else { 3.0 / (cols as f32).sqrt() };
        random((rows, cols), seed).mapv(|x| bf16::from_f32(x * scale).to_f32())
    })
}

/// The block on the CPU: hidden states and the Gram matrix of what q, k and v read.
fn on_the_cpu(hidden: &Array2<f32>, w: &[Array2<f32>; 10]) -> (Array2<f32>, Array2<f32>) {
    let rope = Rope::new(&rope_frequencies(10000.0, SHAPE.head_dim), SHAPE.ctx);
    let attn_in = rms_norm(hidden.view(), w[0].row(0), EPS);
    let mut gram = Array2::zeros((HIDDEN, HIDDEN));
    gram_add(attn_in.view(), &mut gram);
    let [mut q, mut k, v] = [1, 2, 3].map(|i| linear(attn_in.view(), w[i].view()));
    for x in [&mut q, &mut k] {
        rms_norm_heads(x.view_mut(), w[4].row(0), EPS);
        rope.apply(x.view_mut());
    }
    let attn_out = attention(SHAPE, q.view(), k.view(), v.view());
    let hidden = hidden + &linear(attn_out.view(), w[5].view());
    let mlp_in = rms_norm(hidden.view(), w[6].row(0), EPS);
    let up = linear(mlp_in.view(), w[8].view());
    let middle = silu_mul(linear(mlp_in.view(), w[7].view()), up.view());
    (&hidden + &linear(middle.view(), w[9].view()), gram)
}

/// The same on the device.
fn on_the_device<T: Element>(
    cuda: &Cuda,
    hidden: &mut Matrix<T>,
    w: &[Array2<f32>; 10],
) -> Result<Matrix<f32>, CudaError> {
    let norm = Norm { eps: EPS, offset: 0.0 };
    let vector = |i: usize| cuda.upload::<f32>(w[i].view());
    let matrix = |i: usize| cuda.upload::<T>(w[i].view());
    let tokens = hidden.dim().0;
    let through = |x: &Matrix<T>, i: usize| {
        let mut out = cuda.zeros::<T>((tokens, w[i].nrows()))?;
        cuda.linear(out.view_mut(), x.view(), matrix(i)?.view(), Keep::Nothing)?;
        Ok::<_, CudaError>(out)
    };
    let turns = cuda.turns(&Rope::new(&rope_frequencies(10000.0, SHAPE.head_dim), SHAPE.ctx))?;

    let mut attn_in = cuda.zeros::<T>(hidden.dim())?;
    cuda.rms_norm(attn_in.view_mut(), hidden.view(), vector(0)?.view(), norm)?;
    let mut gram = cuda.zeros::<f32>((HIDDEN, HIDDEN))?;
    cuda.gram_add(&mut gram, attn_in.view())?;
    cuda.mirror(&mut gram)?;
    let [mut q, mut k, v] = [through(&attn_in, 1)?, through(&attn_in, 2)?, through(&attn_in, 3)?];
    for x in [&mut q, &mut k] {
        cuda.rms_norm_in_place(x.view_mut().reshaped(SHAPE.head_dim), vector(4)?.view(), norm)?;
        cuda.rope(x.view_mut(), &turns, Direction::There)?;
    }
    let mut attn_out = cuda.zeros::<T>(q.dim())?;
    cuda.attention(attn_out.view_mut(), [q.view(), k.view(), v.view()], SHAPE)?;
    cuda.linear(hidden.view_mut(), attn_out.view(), matrix(5)?.view(), Keep::Sum)?;

    let mut mlp_in = cuda.zeros::<T>(hidden.dim())?;
    cuda.rms_norm(mlp_in.view_mut(), hidden.view(), vector(6)?.view(), norm)?;
    let (mut gate, up) = (through(&mlp_in, 7)?, through(&mlp_in, 8)?);
    cuda.gate(gate.view_mut(), up.view(), Gate::Silu)?;
    cuda.linear(hidden.view_mut(), gate.view(), matrix(9)?.view(), Keep::Sum)?;
    Ok(gram)
}

fn block<T: Element>(cuda: &Cuda, limit: f64) {
    let hidden = random((2 * SHAPE.ctx, HIDDEN), 1).mapv(|x| bf16::from_f32(x).to_f32());
    let (truth, gram) = on_the_cpu(&hidden, &weights());
    let mut found = cuda.upload::<T>(hidden.view()).unwrap();
    let found_gram = on_the_device(cuda, &mut found, &weights()).unwrap();
    assert_near(cuda.download(found.view()).unwrap().view(), wide(&truth).view(), limit, "a block");
    assert_near(
        cuda.download(found_gram.view()).unwrap().view(),
        wide(&gram).view(),
        limit,
        "its statistics",
    );
}

/// Errors of a dozen operations add up: twice what one alone may have.
#[test]
fn a_decoders_block_over_the_device_equals_the_cpus() {
    on_every_machine(|cuda| {
        block::<f32>(cuda, 2e-5);
        block::<bf16>(cuda, 2e-2);
    });
}
