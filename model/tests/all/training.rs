//! Backward passes and training against `PyTorch`, and what they promise whatever the numbers are.

use crate::checkpoint::{Folder, config, floats, golden, read};
use attar_model::{
    Block, Divergence, Gradients, Head, Keep, Likeness, Loss, Model, ModelConfig, NextToken, Precision, Role,
    Step, TensorSpec, TowardsTeacher, Weights, Windows, embed, hidden_states, relative_error_backward,
};
use attar_tensor::op::{AdamW, Moments, global_norm};
use ndarray::{Array1, Array2, ArrayD, ArrayView2, ArrayViewMut2, Axis, Ix2, concatenate};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How far a gradient may be from `PyTorch`'s, both in f32, as a share of the tensor's largest.
const ALLOWED: f32 = 1e-4;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn tokens_in(path: &Path) -> Windows {
    let bytes = read(path);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let ids = tokens.data().as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
    Windows::new(tokens.shape()[1], ids)
}

/// What the script stored under one name, tokens left out.
fn expected(name: &str) -> HashMap<String, ArrayD<f32>> {
    let bytes = read(&fixtures().join(format!("golden/gradients/{name}.safetensors")));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file.tensors().into_iter().filter(|(name, _)| name != "tokens");
    all.map(|(name, view)| (name, floats(&view))).collect()
}

/// A golden model with the tokens it was run on.
struct Case {
    name: &'static str,
    config: ModelConfig,
    weights: Folder,
    windows: Windows,
}

impl Case {
    fn new(name: &'static str) -> Self {
        let folder = golden().join(name);
        let windows = tokens_in(&folder.join("expected.safetensors"));
        Self { name, config: config(&folder), weights: Folder::open(&folder), windows }
    }

    fn model(&self) -> Model {
        Model::load(&self.config, &self.weights).unwrap()
    }
}

/// Models that between them have every option, and gradients by the script.
fn cases() -> [Case; 8] {
    let plain = ["llama-biased", "llama-3.1", "qwen2-sliding", "qwen3-biased-sliding"];
    let [a, b, c, d] = plain.map(Case::new);
    // Norms after, one added, caps and gelu; norms of all heads together; multipliers; matrices of several.
    let [e, f, g, h] = ["gemma2", "olmo2", "granite", "phi3"].map(Case::new);
    [a, b, c, d, e, f, g, h]
}

/// The gradient of a stored tensor: those of the parts it is made of, one below the other.
fn stored<'a>(spec: &TensorSpec, gradient: impl Fn(Role) -> &'a ArrayD<f32>) -> ArrayD<f32> {
    let parts: Vec<_> = spec.role.parts().iter().map(|&role| gradient(role).view()).collect();
    concatenate(Axis(0), &parts).unwrap()
}

type All = BTreeMap<(Option<usize>, Role), ArrayD<f32>>;

fn run(model: &Model, windows: &Windows, loss: &dyn Loss, keep: Keep) -> (f64, All) {
    run_for(model, windows, loss, keep, &|_| true)
}

fn run_for(
    model: &Model,
    windows: &Windows,
    loss: &dyn Loss,
    keep: Keep,
    trained: &dyn Fn(&TensorSpec) -> bool,
) -> (f64, All) {
    let step = Step { keep, precision: Precision::F32 };
    run_step(model, windows, loss, step, trained)
}

fn run_step(
    model: &Model,
    windows: &Windows,
    loss: &dyn Loss,
    step: Step,
    trained: &dyn Fn(&TensorSpec) -> bool,
) -> (f64, All) {
    let mut all = All::new();
    let loss = model.backward(windows, loss, step, trained, &mut |layer, gradients| {
        all.extend(gradients.iter().map(|(role, gradient)| ((layer, role), gradient.clone())));
    });
    (loss.unwrap(), all)
}

fn assert_near(found: &ArrayD<f32>, expected: &ArrayD<f32>, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= ALLOWED * largest, "{what}: {worst:e} apart where the largest is {largest:e}");
}

#[test]
fn a_models_gradients_agree_with_pytorchs() {
    for case in cases() {
        let expected = expected(case.name);
        for keep in [Keep::Inputs, Keep::Activations] {
            let (loss, found) = run(&case.model(), &case.windows, &NextToken::mean(&case.windows), keep);
            assert!((loss - f64::from(expected["loss"][0])).abs() < 1e-5, "{}: loss {loss}", case.name);
            let parts = case.config.tensors().iter().map(|spec| spec.role.parts().len()).sum::<usize>();
            assert_eq!(found.len(), parts);
            for spec in case.config.tensors() {
                let what = format!("{}, {}, {keep:?}", case.name, spec.name);
                let found = stored(&spec, |role| &found[&(spec.layer, role)]);
                assert_near(&found, &expected[&spec.name], &what);
            }
        }
    }
}

#[test]
fn a_block_alone_goes_backward_as_pytorchs_does() {
    for case in cases() {
        let expected = expected(case.name);
        let mut hidden = embed(&case.config, &case.weights, case.windows.tokens()).unwrap();
        let specs = case.config.tensors();
        for layer in 0..case.config.num_hidden_layers {
            let block = Block::load(&case.config, layer, &case.weights).unwrap();
            let mut d =
                expected[&format!("hidden.{}", layer + 1)].clone().into_dimensionality::<Ix2>().unwrap();
            let mut gradients = block.gradients(&|_| true).unwrap();
            let learner = block.learner(Precision::F32);
            learner.backward_from_input(hidden.view(), case.windows.ctx(), d.view_mut(), &mut gradients);
            let what = format!("{}, input of block {layer}", case.name);
            assert_near(&d.into_dyn(), &expected[&format!("hidden.{layer}")], &what);
            for spec in specs.iter().filter(|spec| spec.layer == Some(layer)) {
                let found = stored(spec, |role| gradients.get(role).unwrap());
                assert_near(&found, &expected[&spec.name], &spec.name);
            }
            block.forward(&mut hidden, case.windows.ctx());
        }
    }
}

#[test]
fn distillation_by_another_model_agrees_with_pytorch() {
    let (teacher, student) = (Case::new("qwen3"), Case::new("llama-3.1"));
    let (windows, expected) = (&student.windows, expected("kl"));
    let hidden =
        hidden_states(&teacher.config, &teacher.weights, windows, Precision::F32, &mut |_| ()).unwrap();
    let count = windows.tokens().len();
    let head = Head::load(&teacher.config, &teacher.weights).unwrap();
    let normed = head.norm(hidden.view());
    let loss = TowardsTeacher {
        teacher: head.rows(),
        normed: normed.view(),
        weights: Array1::from_elem(count, 1.0 / count as f32),
        likeness: Likeness { divergence: Divergence::ForwardKl, temperature: 2.0 },
    };
    let (found, gradients) = run(&student.model(), windows, &loss, Keep::Inputs);
    assert!((found - f64::from(expected["loss"][0])).abs() < 1e-4, "{found}");
    assert_near(&gradients[&(None, Role::FinalNorm)], &expected["model.norm.weight"], "norm");
    assert_near(&gradients[&(None, Role::Head)], &expected["lm_head.weight"], "head");
}

/// Nothing is asked of logits, and of the stream after some blocks that it be waves.
struct Waves(&'static [usize]);

impl Waves {
    const WEIGHT: f32 = 0.02;

    fn target([tokens, features]: [usize; 2]) -> Array2<f32> {
        Array2::from_shape_fn((tokens, features), |(row, col)| ((3 * row + 7 * col) as f32).sin())
    }
}

impl Loss for Waves {
    fn backward(&self, _: Range<usize>, mut logits: ArrayViewMut2<'_, f32>) -> f64 {
        logits.fill(0.0);
        0.0
    }

    fn stream_backward(&self, layer: usize, stream: ArrayView2<'_, f32>) -> Option<(f64, Array2<f32>)> {
        let mut gradient = self.0.contains(&layer).then(|| stream.to_owned())?;
        let target = Self::target([stream.nrows(), stream.ncols()]);
        let loss = relative_error_backward(gradient.view_mut(), target.view(), Self::WEIGHT);
        Some((loss, gradient))
    }
}

/// Moved along its gradient a model's loss changes by the square of the gradient's norm.
#[test]
fn the_gradient_of_what_is_asked_of_streams_equals_a_finite_difference() {
    for case in cases() {
        let loss = Waves(&[0, 1]);
        let (_, gradients) = run(&case.model(), &case.windows, &loss, Keep::Activations);
        let norm = global_norm(gradients.values().map(|gradient| gradient.view()));
        let at = |distance: f64| {
            let mut model = case.model();
            for ((layer, role), gradient) in &gradients {
                let mut weight = model.parameter_mut(*role, *layer).unwrap();
                weight.scaled_add((distance / norm) as f32, gradient);
            }
            run_for(&model, &case.windows, &loss, Keep::Inputs, &|_| false).0
        };
        let slope = (at(5e-3) - at(-5e-3)) / 1e-2;
        assert!((slope - norm).abs() < 1e-2 * norm, "{}: {slope} instead of {norm}", case.name);
    }
}

#[test]
fn what_is_asked_of_the_last_stream_is_asked_of_the_last_block_alone() {
    for case in cases() {
        let (ctx, last) = (case.windows.ctx(), case.config.num_hidden_layers - 1);
        let mut hidden = embed(&case.config, &case.weights, case.windows.tokens()).unwrap();
        let block = |layer| Block::load(&case.config, layer, &case.weights).unwrap();
        (0..last).for_each(|layer| block(layer).forward(&mut hidden, ctx));
        let (block, input) = (block(last), hidden.clone());
        block.forward(&mut hidden, ctx);
        let (mut d, target) = (hidden.clone(), Waves::target([hidden.nrows(), hidden.ncols()]));
        let expected = relative_error_backward(d.view_mut(), target.view(), Waves::WEIGHT);
        let mut gradients = block.gradients(&|_| true).unwrap();
        block.learner(Precision::F32).backward_from_input(input.view(), ctx, d.view_mut(), &mut gradients);
        let asked: &'static [usize] = Box::leak(Box::new([last]));
        for keep in [Keep::Inputs, Keep::Activations] {
            let (found, all) = run(&case.model(), &case.windows, &Waves(asked), keep);
            assert!(found.to_bits() == expected.to_bits(), "{}: {found}, not {expected}", case.name);
            for (role, gradient) in gradients.iter() {
                assert_eq!(all[&(Some(last), role)], gradient, "{}, {role:?}", case.name);
            }
            assert!(all[&(None, Role::FinalNorm)].iter().all(|&x| x == 0.0));
        }
    }
}

#[test]
fn a_teacher_has_nothing_to_teach_itself() {
    let case = Case::new("qwen3");
    let model = case.model();
    let hidden =
        hidden_states(&case.config, &case.weights, &case.windows, Precision::F32, &mut |_| ()).unwrap();
    let weights = Array1::ones(case.windows.tokens().len());
    let likeness = Likeness { divergence: Divergence::ForwardKl, temperature: 1.0 };
    let (teacher, normed) = (model.head().rows(), model.head().norm(hidden.view()));
    let loss = TowardsTeacher { teacher, normed: normed.view(), weights, likeness };
    let (loss, gradients) = run(&model, &case.windows, &loss, Keep::Activations);
    assert!(loss == 0.0 && gradients.values().flatten().all(|&x| x == 0.0));
}

#[test]
fn what_is_kept_and_how_many_threads_there_are_never_changes_a_bit() {
    for case in cases() {
        let model = case.model();
        let tokens = case.windows.tokens().iter().copied().cycle().take(120 * case.windows.ctx());
        let windows = Windows::new(case.windows.ctx(), tokens.collect()); // of which not all go through a block at once
        let loss = NextToken::mean(&windows);
        let at = |threads: usize, keep| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (loss, all) = pool.install(|| run(&model, &windows, &loss, keep));
            let bits: Vec<u32> = all.values().flatten().map(|x| x.to_bits()).collect();
            (loss.to_bits(), bits)
        };
        let one = at(1, Keep::Inputs);
        for (threads, keep) in [(1, Keep::Activations), (2, Keep::Inputs), (3, Keep::Activations)] {
            assert!(at(threads, keep) == one, "{}, {threads} threads, {keep:?}", case.name);
        }
    }
}

#[test]
fn a_forward_pass_that_keeps_is_the_forward_pass() {
    for case in cases() {
        let mut hidden = embed(&case.config, &case.weights, case.windows.tokens()).unwrap();
        for layer in 0..case.config.num_hidden_layers {
            let block = Block::load(&case.config, layer, &case.weights).unwrap();
            let mut kept = hidden.clone();
            block.learner(Precision::F32).forward_keeping(kept.view_mut(), case.windows.ctx());
            block.forward(&mut hidden, case.windows.ctx());
            assert_eq!(kept, hidden, "{}, layer {layer}", case.name);
        }
    }
}

#[test]
fn gradients_of_two_windows_are_the_sum_of_each_ones() {
    for case in cases() {
        let (model, ctx) = (case.model(), case.windows.ctx());
        let of = |rows: Range<usize>| {
            let windows = Windows::new(ctx, case.windows.tokens()[rows].to_vec());
            let weights =
                Array1::from_shape_fn(windows.tokens().len(), |i| if (i + 1) % ctx == 0 { 0.0 } else { 0.1 });
            run(&model, &windows, &NextToken::weighted(&windows, weights), Keep::Inputs)
        };
        let (both, first, second) = (of(0..2 * ctx), of(0..ctx), of(ctx..2 * ctx));
        assert!((both.0 - first.0 - second.0).abs() < 1e-9);
        for (key, both) in &both.1 {
            assert_near(&(&first.1[key] + &second.1[key]), both, &format!("{}, {key:?}", case.name));
        }
    }
}

#[test]
fn a_frozen_weight_is_left_out_and_changes_nothing_for_the_others() {
    let case = Case::new("qwen3-biased-sliding");
    let (model, loss) = (case.model(), NextToken::mean(&case.windows));
    let (_, all) = run(&model, &case.windows, &loss, Keep::Inputs);
    let choices: [&dyn Fn(&TensorSpec) -> bool; 4] = [
        &|spec| spec.role == Role::Up,
        &|spec| spec.layer == Some(1),
        &|spec| spec.role == Role::Head,
        &|spec| matches!(spec.role, Role::KBias | Role::QNorm | Role::Embedding),
    ];
    for trained in choices {
        let (_, some) = run_for(&model, &case.windows, &loss, Keep::Activations, trained);
        let wanted: Vec<_> = case.config.tensors().into_iter().filter(|spec| trained(spec)).collect();
        assert!(!wanted.is_empty() && some.len() == wanted.len());
        for (key, gradient) in some {
            assert_eq!(gradient, all[&key], "{key:?}");
        }
    }
}

#[test]
fn without_weights_to_train_a_block_still_hands_the_gradient_down() {
    let case = Case::new("llama-biased");
    let block = Block::load(&case.config, 0, &case.weights).unwrap();
    let hidden = embed(&case.config, &case.weights, case.windows.tokens()).unwrap();
    let with = |mut gradients: Gradients| {
        let mut d = hidden.mapv(f32::sin);
        let learner = block.learner(Precision::F32);
        learner.backward_from_input(hidden.view(), case.windows.ctx(), d.view_mut(), &mut gradients);
        (d, gradients)
    };
    let (alone, none) = with(Gradients::none());
    let (together, all) = with(block.gradients(&|_| true).unwrap());
    assert_eq!(alone, together);
    assert!(none.is_empty() && !all.is_empty());
}

/// A model, what its optimizer remembers, and the text it learns.
struct Training {
    model: Model,
    moments: BTreeMap<(Option<usize>, Role), Moments>,
    windows: Windows,
    steps: u32,
    precision: Precision,
}

impl Training {
    fn new() -> Self {
        let folder = fixtures().join("books-2m");
        let config = config(&folder);
        let moments = config.tensors().into_iter();
        Self {
            model: Model::load(&config, &Folder::open(&folder)).unwrap(),
            moments: moments.map(|spec| ((spec.layer, spec.role), Moments::zeros(&spec.shape))).collect(),
            windows: tokens_in(&fixtures().join("golden/gradients/training.safetensors")),
            steps: 0,
            precision: Precision::F32,
        }
    }

    /// One step of the script's optimizer; returns the loss before it.
    fn step(&mut self, largest_norm: f64) -> f64 {
        let loss = NextToken::mean(&self.windows);
        let step = Step { precision: self.precision, ..IN_BF16 };
        let (loss, gradients) = run_step(&self.model, &self.windows, &loss, step, &|_| true);
        let scale = largest_norm / global_norm(gradients.values().map(|gradient| gradient.view()));
        self.steps += 1;
        let adamw = AdamW { learning_rate: 5e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        for ((layer, role), gradient) in &gradients {
            let weight = self.model.parameter_mut(*role, *layer).unwrap();
            let moments = self.moments.get_mut(&(*layer, *role)).unwrap();
            adamw.step(self.steps, weight, gradient.view(), scale.min(1.0) as f32, moments);
        }
        loss
    }
}

#[test]
fn five_steps_of_training_lose_what_pytorch_loses() {
    for (name, largest_norm) in [("losses", f64::INFINITY), ("losses_clipped", 0.5)] {
        let mut training = Training::new();
        let expected = &expected("training")[name];
        let found: Vec<f64> = (0..expected.len()).map(|_| training.step(largest_norm)).collect();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - f64::from(*expected)).abs() < 1e-4, "{name}: {found} instead of {expected}");
        }
        assert!(found[5] < 0.8 * found[0], "nothing was learned: {found:?}");
    }
}

#[test]
fn a_trained_model_is_a_source_of_its_weights() {
    let mut training = Training::new();
    training.step(f64::INFINITY);
    let config = training.model.config().clone();
    let again = Model::load(&config, &training.model).unwrap();
    let loss = NextToken::mean(&training.windows);
    let of = |model: &Model| run(model, &training.windows, &loss, Keep::Inputs).0.to_bits();
    assert_eq!(of(&again), of(&training.model));
    for spec in config.tensors() {
        assert!(training.model.has(&spec.name) && again.load(&spec.name).unwrap().shape() == spec.shape);
    }
}

#[test]
fn a_model_in_memory_stores_what_it_was_loaded_from() {
    for case in cases() {
        let model = case.model();
        for spec in case.config.tensors() {
            assert_eq!(
                model.load(&spec.name).unwrap(),
                case.weights.load(&spec.name).unwrap(),
                "{}",
                spec.name
            );
        }
        assert!(model.load("model.layers.9.mlp.up_proj.weight").is_err());
    }
}

#[test]
fn a_loss_is_asked_for_every_token_once_and_in_order() {
    let case = Case::new("llama-3.1");
    let windows = Windows::new(20, (0..60 * 20).map(|i| i % 64).collect());
    let asked = std::sync::Mutex::new(Vec::new());
    let nothing = |rows: Range<usize>, mut logits: ArrayViewMut2<'_, f32>| {
        assert_eq!(logits.nrows(), rows.len());
        logits.fill(0.0);
        asked.lock().unwrap().extend(rows);
        0.0
    };
    let (_, gradients) = run(&case.model(), &windows, &nothing, Keep::Inputs);
    assert!(gradients.values().flatten().all(|&x| x == 0.0));
    assert_eq!(*asked.lock().unwrap(), (0..60 * 20).collect::<Vec<_>>());
}

#[test]
#[should_panic(expected = "nothing comes after a window")]
fn the_last_token_of_a_window_has_no_target() {
    let windows = Windows::new(4, vec![1; 8]);
    NextToken::weighted(&windows, Array1::ones(8));
}

const IN_BF16: Step = Step { keep: Keep::Activations, precision: Precision::Bf16 };

/// How far apart two lists of numbers are, relative to the size of the second.
fn apart(found: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    let sum = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    sum(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / sum(&mut expected.iter().copied()).max(1e-9)
}

/// A factor of bf16 is off by 2^-9 at most; through two layers and back that adds up to some hundredths of a gradient where models
/// are tiny and random, and to less than a hundredth of the loss.
#[test]
fn a_step_in_bf16_has_the_loss_and_gradients_of_f32_within_stated_bounds() {
    for case in cases() {
        let (model, loss) = (case.model(), NextToken::mean(&case.windows));
        let (exact, expected) = run(&model, &case.windows, &loss, Keep::Activations);
        let (near, found) = run_step(&model, &case.windows, &loss, IN_BF16, &|_| true);
        assert!((near - exact).abs() <= 1e-2 * exact, "{}: {near} instead of {exact}", case.name);
        assert!(found.keys().eq(expected.keys()));
        for (key, found) in &found {
            let apart = apart(found, &expected[key]);
            assert!(apart <= 5e-2, "{}, {key:?}: {apart:e}", case.name);
        }
    }
}

#[test]
fn neither_what_is_kept_nor_threads_change_a_bit_of_a_step_in_bf16() {
    for case in cases() {
        let model = case.model();
        let tokens = case.windows.tokens().iter().copied().cycle().take(120 * case.windows.ctx());
        let windows = Windows::new(case.windows.ctx(), tokens.collect());
        let loss = NextToken::mean(&windows);
        let at = |threads: usize, keep| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let step = Step { keep, ..IN_BF16 };
            let (loss, all) = pool.install(|| run_step(&model, &windows, &loss, step, &|_| true));
            let bits: Vec<u32> = all.values().flatten().map(|x| x.to_bits()).collect();
            (loss.to_bits(), bits)
        };
        let one = at(1, Keep::Inputs);
        for (threads, keep) in [(1, Keep::Activations), (2, Keep::Inputs), (3, Keep::Activations)] {
            assert!(at(threads, keep) == one, "{}, {threads} threads, {keep:?}", case.name);
        }
    }
}

#[test]
fn a_block_alone_learns_in_bf16_as_in_the_model() {
    let case = Case::new("qwen3-biased-sliding");
    let (ctx, last) = (case.windows.ctx(), case.config.num_hidden_layers - 1);
    let block = Block::load(&case.config, last, &case.weights).unwrap();
    let input = embed(&case.config, &case.weights, case.windows.tokens()).unwrap();
    let in_precision = |precision| {
        let (learner, mut out) = (block.learner(precision), input.clone());
        let kept = learner.forward_keeping(out.view_mut(), ctx);
        let mut again = input.clone();
        learner.forward(&mut again, ctx);
        assert_eq!(out, again, "{precision:?}");
        let (mut d, mut gradients) = (out.mapv(f32::sin), block.gradients(&|_| true).unwrap());
        learner.backward(kept, d.view_mut(), &mut gradients);
        (d.into_dyn(), gradients)
    };
    let ((exact, expected), (near, found)) = (in_precision(Precision::F32), in_precision(Precision::Bf16));
    assert!(near != exact && apart(&near, &exact) <= 5e-2, "input: {:e}", apart(&near, &exact));
    for (role, found) in found.iter() {
        let apart = apart(found, expected.get(role).unwrap());
        assert!(apart <= 8e-2, "{role:?}: {apart:e}");
    }
}

/// Over twenty steps the losses of both stay within a hundredth of each other and fall alike.
#[test]
fn training_in_bf16_falls_to_the_loss_of_f32() {
    let losses = |precision| {
        let mut training = Training { precision, ..Training::new() };
        (0..20).map(|_| training.step(1.0)).collect::<Vec<f64>>()
    };
    let (exact, near) = (losses(Precision::F32), losses(Precision::Bf16));
    for (near, exact) in near.iter().zip(&exact) {
        assert!((near - exact).abs() <= 1e-2 * exact.max(0.5), "{near} instead of {exact}");
    }
    assert!(near[19] < 0.6 * near[0], "nothing was learned: {near:?}");
}
