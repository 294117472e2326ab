//! A student on the CUDA device against the CPU's: gradients of every dense family, steps, and a run taken up again.

use crate::checkpoint::{Folder, config, golden};
use crate::device::{CTX, NAMES, distance, windows};
use crate::machines::on_every_machine;
use attar_model::device::{AtOnce, Cuda, DeviceLesson, DeviceModel, DeviceTeacher, KeptHead, Phase};
use attar_model::{
    Divergence, HeadSource, Keep, Likeness, Loss, Mixture, Model, NextToken, Role, Step, TowardsTeacher,
    Windows, global_norm, next_token_weights,
};
use attar_tensor::Precision;
use attar_tensor::cuda::{Element, bf16};
use attar_tensor::op::{AdamW, Moments};
use ndarray::{Array1, Array2, ArrayD, Axis, Ix2};
use std::collections::BTreeMap;

type Place = (Option<usize>, Role);

fn model(name: &str) -> Model {
    let folder = golden().join(name);
    Model::load(&config(&folder), &Folder::open(&folder)).unwrap()
}

fn in_rows(x: &ArrayD<f32>) -> Array2<f32> {
    let x = if x.ndim() == 1 { x.clone().insert_axis(Axis(0)) } else { x.clone() };
    x.into_dimensionality::<Ix2>().unwrap()
}

/// The CPU's loss and gradients.
fn on_the_cpu(
    model: &Model,
    windows: &Windows,
    loss: &dyn Loss,
    precision: Precision,
) -> (f64, BTreeMap<Place, ArrayD<f32>>) {
    let mut all = BTreeMap::new();
    let step = Step { keep: Keep::Activations, precision };
    let loss = model.backward(windows, loss, step, &|_| true, &mut |layer, gradients| {
        all.extend(gradients.iter().map(|(role, gradient)| ((layer, role), gradient.clone())));
    });
    (loss.unwrap(), all)
}

const EVERYTHING: AtOnce = AtOnce { keep: Keep::Activations, logits: 7 };

/// All gradients together within `limit` of the CPU's, each alone within twice that: in bf16 the device rounds the residual stream and
/// its gradient too, and the last of them have gone through every block.
fn gradients<T: Element>(cuda: &Cuda, name: &str, precision: Precision, limit: f64) {
    let (model, windows) = (model(name), windows(2));
    let (truth_loss, truth) = on_the_cpu(&model, &windows, &NextToken::mean(&windows), precision);
    let mut there = DeviceModel::<T>::of(cuda, &model, CTX, EVERYTHING).unwrap();
    let weights = next_token_weights(&windows);
    let lesson = DeviceLesson::next_token(cuda, model.config(), &windows, weights.view()).unwrap();
    let mut phases = Vec::new();
    there
        .backward(&lesson, &mut |phase| {
            phases.push(phase);
            Ok(())
        })
        .unwrap();
    assert_eq!(phases, [Phase::Forward, Phase::Head, Phase::Backward]);
    let (loss, norm) = there.finish().unwrap();
    let what = format!("{name} {}", T::DEFINITION);
    assert!((loss - truth_loss).abs() <= limit * truth_loss, "{what}: loss {loss} for {truth_loss}");
    let truth_norm = global_norm(truth.values().map(|gradient| gradient.view()));
    assert!((norm - truth_norm).abs() <= limit * truth_norm, "{what}: norm {norm} for {truth_norm}");
    assert!(there.places().eq(truth.keys().copied()), "{what}: other parameters");
    let mut all_off = 0.0;
    for ((layer, role), truth) in truth {
        let (found, truth) = (there.gradient(layer, role).unwrap(), in_rows(&truth));
        let norm = |x: &Array2<f32>| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let (off, size) = (norm(&(&found - &truth)), norm(&truth));
        // Of a gradient that vanishes but for rounding nothing more is asked than that it stays small beside all others.
        all_off += off * off;
        assert!(
            off <= 2.0 * limit * (size + 1e-2 * truth_norm),
            "{what}, {role:?} of {layer:?}: {off:e} of {size:e}"
        );
    }
    assert!(all_off.sqrt() <= limit * truth_norm, "{what}: {:e} of {truth_norm:e}", all_off.sqrt());
    let again = there.loss(&lesson).unwrap();
    assert!((again - loss).abs() <= 1e-12 * loss, "{what}: the loss alone");
}

#[test]
fn gradients_of_every_dense_family_over_the_device_equal_the_cpus() {
    on_every_machine(|cuda| {
        for name in NAMES {
            gradients::<f32>(cuda, name, Precision::F32, 1e-4);
            gradients::<bf16>(cuda, name, Precision::Bf16, 5e-2);
        }
    });
}

#[test]
fn with_inputs_kept_alone_and_in_parts_gradients_are_the_same() {
    on_every_machine(|cuda| {
        let (model, all) = (model("gemma2"), windows(2));
        let weights = next_token_weights(&all);
        let run = |keep, parts: usize| {
            let mut there = DeviceModel::<f32>::of(cuda, &model, CTX, AtOnce { keep, logits: 64 }).unwrap();
            let tokens = all.tokens().len() / parts;
            for (part, weights) in all.tokens().chunks(tokens).zip(weights.axis_chunks_iter(Axis(0), tokens))
            {
                let part = Windows::new(CTX, part.to_vec());
                let lesson = DeviceLesson::next_token(cuda, model.config(), &part, weights).unwrap();
                there.backward(&lesson, &mut |_| Ok(())).unwrap();
            }
            (there.finish().unwrap(), there.gradient(Some(0), Role::Q).unwrap())
        };
        let whole = run(Keep::Activations, 1);
        assert_eq!(run(Keep::Inputs, 1), whole, "to the bit");
        let parts = run(Keep::Activations, 2);
        assert!((parts.0.0 - whole.0.0).abs() < 1e-6 && distance(&parts.1, &whole.1) < 1e-5);
    });
}

const ADAMW: AdamW = AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
const LIKENESS: Likeness = Likeness { divergence: Divergence::JensenShannon { beta: 0.4 }, temperature: 2.0 };
const CROSS_ENTROPY: f32 = 0.25;

fn lesson<'a>(
    cuda: &Cuda,
    model: &Model,
    teacher: &'a DeviceTeacher<f32>,
    windows: &Windows,
) -> DeviceLesson<'a, f32> {
    let weights = next_token_weights(windows);
    let lesson = DeviceLesson::next_token(cuda, model.config(), windows, weights.view()).unwrap();
    lesson.taught_by(teacher, LIKENESS, CROSS_ENTROPY).unwrap()
}

#[test]
fn a_student_taught_on_the_device_goes_the_cpus_way_and_taken_up_again_its_own_to_the_bit() {
    on_every_machine(|cuda| {
        let (student, teacher, all) = ("granite", "gemma2", windows(4));
        let windows: Vec<_> =
            all.tokens().chunks(2 * CTX).map(|part| Windows::new(CTX, part.to_vec())).collect();
        let (folder, mut on_cpu, teacher_there) = (golden().join(teacher), model(student), model(teacher));
        let there = DeviceTeacher::<f32>::load(cuda, &config(&folder), &Folder::open(&folder), CTX).unwrap();
        let mut learning = DeviceModel::<f32>::of(cuda, &on_cpu, CTX, EVERYTHING).unwrap();
        let mut moments: BTreeMap<Place, Moments> = BTreeMap::new();
        let mut kept = None;
        for number in 1..=3u32 {
            let windows = &windows[number as usize % 2];
            let weights = next_token_weights(windows);
            let normed = teacher_there.head().norm(teacher_there.hidden_states(windows).unwrap().view());
            let towards = TowardsTeacher {
                teacher: teacher_there.head().rows(),
                normed: normed.view(),
                weights: weights.clone(),
                likeness: LIKENESS,
            };
            let text = NextToken::weighted(windows, weights);
            let loss = Mixture(vec![(1.0 - CROSS_ENTROPY, &towards), (CROSS_ENTROPY, &text)]);
            let (truth, gradients) = on_the_cpu(&on_cpu, windows, &loss, Precision::F32);
            let scale = (0.5 / global_norm(gradients.values().map(|gradient| gradient.view()))) as f32;
            for (&(layer, role), gradient) in &gradients {
                let moments =
                    moments.entry((layer, role)).or_insert_with(|| Moments::zeros(gradient.shape()));
                let decay = if gradient.ndim() < 2 { 0.0 } else { ADAMW.weight_decay };
                let adamw = AdamW { weight_decay: decay, ..ADAMW };
                let weight = on_cpu.parameter_mut(role, layer).unwrap();
                adamw.step(number, weight, gradient.view(), scale, moments);
            }

            learning.backward(&lesson(cuda, &on_cpu, &there, windows), &mut |_| Ok(())).unwrap();
            let (loss, norm) = learning.finish().unwrap();
            assert!((loss - truth).abs() <= 1e-5 * truth, "step {number}: {loss} for {truth}");
            learning.step(ADAMW, number, (0.5 / norm) as f32).unwrap();
            if number == 2 {
                kept = Some(copy_of(cuda, &learning));
            }
        }
        let mut again = kept.unwrap();
        again.backward(&lesson(cuda, &on_cpu, &there, &windows[1]), &mut |_| Ok(())).unwrap();
        let (_, norm) = again.finish().unwrap();
        again.step(ADAMW, 3, (0.5 / norm) as f32).unwrap();
        for (layer, role) in learning.places() {
            let found = again.parameter(layer, role).unwrap();
            assert_eq!(found, learning.parameter(layer, role).unwrap(), "{role:?} of {layer:?}");
        }
    });
}

/// Another model, from what is downloaded of one.
fn copy_of(cuda: &Cuda, of: &DeviceModel<f32>) -> DeviceModel<f32> {
    let mut copy = DeviceModel::new(cuda, of.config(), CTX, EVERYTHING, &mut |layer, role, to| {
        Ok(cuda.write(to, of.parameter(layer, role)?.view())?)
    })
    .unwrap();
    for (layer, role) in of.places() {
        copy.set_moments(layer, role, &of.moments(layer, role).unwrap()).unwrap();
    }
    copy
}

#[test]
fn a_teacher_that_was_run_before_teaches_what_one_on_the_device_does() {
    on_every_machine(|cuda| {
        let (student, windows, folder) = (model("llama-1"), windows(2), golden().join("gemma2"));
        let (numbers, weights) = (config(&folder), Folder::open(&folder));
        let there = DeviceTeacher::<f32>::load(cuda, &numbers, &weights, CTX).unwrap();
        let teacher = model("gemma2");
        let normed = teacher.head().norm(teacher.hidden_states(&windows).unwrap().view());
        let head = KeptHead::load(cuda, &HeadSource::of(&numbers, &weights).unwrap()).unwrap();
        let learning = DeviceModel::<f32>::of(cuda, &student, CTX, EVERYTHING).unwrap();
        let online = learning.loss(&lesson(cuda, &student, &there, &windows)).unwrap();
        let each = Array1::clone(&next_token_weights(&windows));
        let kept = DeviceLesson::next_token(cuda, student.config(), &windows, each.view()).unwrap();
        let kept = kept.towards(cuda, &head, normed.view(), (LIKENESS, CROSS_ENTROPY)).unwrap();
        let kept = learning.loss(&kept).unwrap();
        assert!((online - kept).abs() <= 1e-6 * kept, "{online} for {kept}");
    });
}
