//! Norms, turns, gates, sums, rows of a table.

use crate::{assert_near, on_every_machine, random, rounded, tolerance, wide};
use attar_tensor::cuda::{Cuda, Direction, Element, Gate, Norm};
use attar_tensor::op::{Rope, rope_frequencies};
use half::bf16;
use ndarray::{Array2, Axis, s};

/// A row's norm and its gradients in f64: `(out, d_x, d_weight)`.
fn norm_by_definition(
    x: &Array2<f32>,
    weight: &Array2<f32>,
    norm: Norm,
    d_out: &Array2<f32>,
) -> (Array2<f64>, Array2<f64>, Array2<f64>) {
    let (x, d_out) = (wide(x), wide(d_out));
    let weight = weight.mapv(|w| f64::from(w) + f64::from(norm.offset));
    let features = x.ncols() as f64;
    let (mut out, mut d_x, mut d_weight) = (x.clone(), x.clone(), Array2::zeros(weight.dim()));
    for row in 0..x.nrows() {
        let (x, d) = (x.row(row), d_out.row(row));
        let scale = 1.0 / (x.dot(&x) / features + f64::from(norm.eps)).sqrt();
        let normal = x.mapv(|x| x * scale);
        let g = &d * &weight.row(0);
        let along = g.dot(&normal) / features;
        out.row_mut(row).assign(&(&normal * &weight.row(0)));
        d_x.row_mut(row).assign(&((&g - &(&normal * along)) * scale));
        let mut sum = d_weight.row_mut(0);
        sum += &(&d * &normal);
    }
    (out, d_x, d_weight)
}

fn norm<T: Element>(cuda: &Cuda) {
    for (rows, features, offset) in [(3, 77, 0.0), (1, 1, 1.0), (70, 32, 1.0), (2, 700, 0.0), (130, 8, 0.5)] {
        let norm = Norm { eps: 1e-5, offset };
        let [x, d_out, before] = [1, 2, 3].map(|seed| rounded::<T>(&random((rows, features), seed)));
        let weight = random((1, features), 4);
        let (out, d_x, d_weight) = norm_by_definition(&x, &weight, norm, &d_out);
        let what = format!("{} {rows}x{features}", T::DEFINITION);

        let on_device = cuda.upload::<T>(x.view()).unwrap();
        let w = cuda.upload::<f32>(weight.view()).unwrap();
        let mut found = cuda.zeros::<T>(x.dim()).unwrap();
        cuda.rms_norm(found.view_mut(), on_device.view(), w.view(), norm).unwrap();
        let found = cuda.download(found.view()).unwrap();
        assert_near(found.view(), out.view(), tolerance::<T>(), &what);
        let mut in_place = cuda.upload::<T>(x.view()).unwrap();
        cuda.rms_norm_in_place(in_place.view_mut(), w.view(), norm).unwrap();
        assert_eq!(cuda.download(in_place.view()).unwrap(), found, "{what} in place");

        let mut sum = cuda.upload::<T>(before.view()).unwrap();
        let mut of_weight = cuda.upload::<f32>(weight.view()).unwrap();
        let d = cuda.upload::<T>(d_out.view()).unwrap();
        let gradients = (sum.view_mut(), Some(of_weight.view_mut()));
        cuda.rms_norm_backward(gradients, on_device.view(), w.view(), norm, d.view()).unwrap();
        let found = cuda.download(sum.view()).unwrap();
        assert_near(found.view(), (d_x + wide(&before)).view(), tolerance::<T>(), &what);
        let (mut alone, mut in_place) = (cuda.zeros::<T>(x.dim()).unwrap(), cuda.copied(d.view()).unwrap());
        cuda.rms_norm_backward((alone.view_mut(), None), on_device.view(), w.view(), norm, d.view()).unwrap();
        cuda.rms_norm_backward_in_place((in_place.view_mut(), None), on_device.view(), w.view(), norm)
            .unwrap();
        let [alone, in_place] = [alone, in_place].map(|x| cuda.download(x.view()).unwrap());
        assert_eq!(alone, in_place, "gradient of {what} in place");
        let found = cuda.download(of_weight.view()).unwrap();
        assert_near(found.view(), (d_weight + wide(&weight)).view(), 1e-5, &format!("weight of {what}"));
    }
}

#[test]
fn a_norm_and_its_gradient_equal_their_definition() {
    on_every_machine(|cuda| {
        norm::<f32>(cuda);
        norm::<bf16>(cuda);
    });
}

fn turn<T: Element>(cuda: &Cuda) {
    for (turning, head_dim, heads, ctx, windows) in [(6, 6, 2, 4, 2), (64, 64, 3, 33, 2), (4, 10, 5, 7, 1)] {
        let rope = Rope::new(&rope_frequencies(10000.0, turning), ctx).within(head_dim);
        let x = rounded::<T>(&random((windows * ctx, heads * head_dim), 1));
        let mut truth = x.clone();
        rope.apply(truth.view_mut());
        let turns = cuda.turns(&rope).unwrap();
        let mut found = cuda.upload::<T>(x.view()).unwrap();
        cuda.rope(found.view_mut(), &turns, Direction::There).unwrap();
        let there = cuda.download(found.view()).unwrap();
        assert_near(there.view(), wide(&truth).view(), tolerance::<T>(), "a turn");
        cuda.rope(found.view_mut(), &turns, Direction::Back).unwrap();
        let back = cuda.download(found.view()).unwrap();
        assert_near(back.view(), wide(&x).view(), tolerance::<T>(), "a turn and back");
    }
}

#[test]
fn a_turn_equals_the_cpus_and_back_undoes_it() {
    on_every_machine(|cuda| {
        turn::<f32>(cuda);
        turn::<bf16>(cuda);
    });
}

fn activation(kind: Gate, x: f64) -> f64 {
    match kind {
        Gate::Silu => x / (1.0 + (-x).exp()),
        Gate::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

fn gate<T: Element>(cuda: &Cuda, kind: Gate) {
    let (gate, up) = (rounded::<T>(&(random((13, 50), 1) * 6.0)), rounded::<T>(&random((13, 50), 2)));
    let d_out = rounded::<T>(&random((13, 50), 3));
    let at = |i: (usize, usize)| (f64::from(gate[i]), f64::from(up[i]), f64::from(d_out[i]));
    let slope = |x: f64| (activation(kind, x + 1e-5) - activation(kind, x - 1e-5)) / 2e-5;
    let truth = Array2::from_shape_fn(gate.dim(), |i| activation(kind, at(i).0) * at(i).1);
    let d_gate = Array2::from_shape_fn(gate.dim(), |i| slope(at(i).0) * at(i).1 * at(i).2);
    let d_up = Array2::from_shape_fn(gate.dim(), |i| activation(kind, at(i).0) * at(i).2);

    let mut on_device = cuda.upload::<T>(gate.view()).unwrap();
    let mut other = cuda.upload::<T>(up.view()).unwrap();
    cuda.gate(on_device.view_mut(), other.view(), kind).unwrap();
    let limit = tolerance::<T>();
    let found = cuda.download(on_device.view()).unwrap();
    assert_near(found.view(), truth.view(), limit, "a gate");
    let mut on_device = cuda.upload::<T>(gate.view()).unwrap();
    let beside = cuda.gated(on_device.view(), other.view(), kind).unwrap();
    assert_eq!(cuda.download(beside.view()).unwrap(), found, "a gate beside its inputs");
    let d = cuda.upload::<T>(d_out.view()).unwrap();
    cuda.gate_backward(on_device.view_mut(), other.view_mut(), d.view(), kind).unwrap();
    assert_near(cuda.download(on_device.view()).unwrap().view(), d_gate.view(), limit, "a gate's gradient");
    assert_near(cuda.download(other.view()).unwrap().view(), d_up.view(), limit, "the other's gradient");
}

#[test]
fn gates_and_their_gradients_equal_their_definition() {
    on_every_machine(|cuda| {
        for kind in [Gate::Silu, Gate::Gelu] {
            gate::<f32>(cuda, kind);
            gate::<bf16>(cuda, kind);
        }
    });
}

#[test]
fn a_gate_far_from_zero_is_finite() {
    on_every_machine(|cuda| {
        let gate = Array2::from_shape_vec((1, 4), vec![-1e4, -100.0, 100.0, 1e4]).unwrap();
        let ones = cuda.upload::<f32>(Array2::ones((1, 4)).view()).unwrap();
        for kind in [Gate::Silu, Gate::Gelu] {
            let mut found = cuda.upload::<f32>(gate.view()).unwrap();
            cuda.gate(found.view_mut(), ones.view(), kind).unwrap();
            assert_eq!(cuda.download(found.view()).unwrap().as_slice(), Some(&[-0.0, -0.0, 100.0, 1e4][..]));
        }
    });
}

fn table<T: Element>(cuda: &Cuda) {
    let table = rounded::<T>(&random((9, 37), 1));
    let tokens = [3u32, 0, 8, 3, 3, 8];
    let on_device = cuda.upload::<T>(table.view()).unwrap();
    let there = cuda.tokens(&tokens, 9).unwrap();
    let found = cuda.embedding(on_device.view(), &there, 1.5).unwrap();
    let rows: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
    let truth = wide(&table).select(Axis(0), &rows) * 1.5;
    assert_near(
        cuda.download(found.view()).unwrap().view(),
        truth.view(),
        tolerance::<T>(),
        "rows of a table",
    );

    let (d_out, before) = (rounded::<T>(&random((6, 37), 2)), random((9, 37), 3));
    let mut truth = wide(&before);
    for (d, &row) in d_out.outer_iter().zip(&rows) {
        let mut to = truth.row_mut(row);
        to += &d.mapv(|d| 1.5 * f64::from(d));
    }
    let mut d_table = cuda.upload::<f32>(before.view()).unwrap();
    let d = cuda.upload::<T>(d_out.view()).unwrap();
    cuda.embedding_backward(d_table.view_mut(), d.view(), &there, 1.5).unwrap();
    assert_near(cuda.download(d_table.view()).unwrap().view(), truth.view(), 1e-5, "a table's gradient");
}

#[test]
fn rows_of_a_table_and_their_gradient_equal_their_definition() {
    on_every_machine(|cuda| {
        table::<f32>(cuda);
        table::<bf16>(cuda);
    });
}

fn sums<T: Element>(cuda: &Cuda) {
    let (x, y) = (rounded::<T>(&random((150, 300), 1)), rounded::<T>(&random((150, 300), 2)));
    let bias = random((1, 300), 3);
    let mut found = cuda.upload::<T>(x.view()).unwrap();
    let other = cuda.upload::<T>(y.view()).unwrap();
    let row = cuda.upload::<f32>(bias.view()).unwrap();
    cuda.add(found.view_mut(), other.view()).unwrap();
    let truth = wide(&x) + wide(&y);
    assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), tolerance::<T>(), "a sum");
    cuda.add_row(found.view_mut(), row.view()).unwrap();
    let truth = truth + wide(&bias);
    assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), tolerance::<T>(), "a row added");

    let mut total = cuda.upload::<f32>(bias.view()).unwrap();
    cuda.column_sum(total.view_mut(), other.view()).unwrap();
    let truth = wide(&y).sum_axis(Axis(0)).insert_axis(Axis(0)) + wide(&bias);
    assert_near(cuda.download(total.view()).unwrap().view(), truth.view(), 1e-5, "sums of columns");
}

#[test]
fn sums_equal_their_definition() {
    on_every_machine(|cuda| {
        sums::<f32>(cuda);
        sums::<bf16>(cuda);
    });
}

fn scaled<T: Element>(cuda: &Cuda) {
    let x = rounded::<T>(&(random((7, 50), 1) * 90.0));
    let mut found = cuda.zeros::<T>(x.dim()).unwrap();
    cuda.write(found.view_mut().rows(2, 7), x.slice(s![2.., ..])).unwrap();
    cuda.write(found.view_mut().rows(0, 2), x.slice(s![..2, ..])).unwrap();
    assert_eq!(cuda.download(found.view()).unwrap(), x, "what was written");
    cuda.soft_cap(found.view_mut(), 30.0).unwrap();
    let truth = wide(&x).mapv(|x| 30.0 * (x / 30.0).tanh());
    assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), tolerance::<T>(), "a soft cap");
    cuda.scale(found.view_mut(), 0.25).unwrap();
    let truth = truth * 0.25;
    assert_near(cuda.download(found.view()).unwrap().view(), truth.view(), tolerance::<T>(), "a quarter");
}

#[test]
fn products_with_one_number_and_soft_bounds_equal_their_definition() {
    on_every_machine(|cuda| {
        scaled::<f32>(cuda);
        scaled::<bf16>(cuda);
    });
}

#[test]
fn casts_round_to_the_nearest_with_ties_to_even() {
    on_every_machine(|cuda| {
        let x = Array2::from_shape_vec((1, 6), vec![1.0f32, 1.003_906_2, 1.011_718_8, -3.3, 1e-40, 3.4e38])
            .unwrap();
        let on_device = cuda.upload::<f32>(x.view()).unwrap();
        let narrow = cuda.narrow(on_device.view()).unwrap();
        let found = cuda.download_items(narrow.view()).unwrap();
        assert_eq!(found, x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        let back = cuda.widen(narrow.view()).unwrap();
        assert_eq!(cuda.download(back.view()).unwrap(), rounded::<bf16>(&x));
    });
}
