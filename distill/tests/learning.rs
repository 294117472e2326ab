//! A tiny student under a tiny teacher: what a run promises whatever the numbers are.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use attar_distill::{
    Aim, BlockLesson, BlockTraining, Decay, Disguise, Done, Error, LayerMap, Optimizer, Order, Schedule,
    Streams, Teacher, Training,
};
use attar_model::{
    AdamW, Block, Divergence, Keep, Likeness, LoadError, Loss, Model, ModelConfig, Moments, Precision, Role,
    Step, Weights, Windows,
};
use ndarray::{Array, Array2, ArrayD, ArrayView2, IxDyn, s};
use serde_json::json;
use std::collections::HashMap;
use std::ops::Range;

const VOCAB: usize = 64;
const CTX: usize = 16;

fn config(layers: usize, hidden: usize) -> ModelConfig {
    ModelConfig::from_hf(&json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": hidden / 4, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true,
    }))
    .unwrap()
}

/// Reproducible numbers in [-1, 1), by a 64-bit mix.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Random weights, norms of 1.
struct Random(ModelConfig, u64);

impl Weights for Random {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let specs = self.0.tensors();
        let (at, spec) =
            specs.iter().enumerate().find(|(_, spec)| spec.name == name).ok_or("no such tensor")?;
        let mut noise = noise(self.1 + at as u64 * 1000);
        Ok(match *spec.shape.as_slice() {
            [_, cols] => {
                Array::from_shape_simple_fn(IxDyn(&spec.shape), || noise() * (3.0 / cols as f32).sqrt())
            }
            _ => ArrayD::ones(IxDyn(&spec.shape)),
        })
    }

    fn has(&self, name: &str) -> bool {
        self.0.tensors().iter().any(|spec| spec.name == name)
    }
}

fn model(layers: usize, hidden: usize, seed: u64) -> Model {
    let config = config(layers, hidden);
    Model::load(&config, &Random(config.clone(), seed)).unwrap()
}

fn text(windows: usize) -> Windows {
    let mut noise = noise(99);
    Windows::new(CTX, (0..windows * CTX).map(|_| ((noise() + 1.0) * 0.5 * VOCAB as f32) as u32).collect())
}

fn optimizer(steps: u64) -> Optimizer {
    let schedule = Schedule { peak: 1e-2, floor: 0.1, warmup_steps: 3, steps, decay: Decay::Cosine };
    Optimizer { adamw: AdamW { weight_decay: 0.01, ..AdamW::default() }, schedule, clip: Some(1.0) }
}

const F32: Step = Step { keep: Keep::Activations, precision: Precision::F32 };

const AIM: Aim = Aim {
    likeness: Likeness { divergence: Divergence::ForwardKl, temperature: 1.0 },
    cross_entropy: 0.0,
    streams: None,
};

/// A teacher, a student on its way, and the text between them.
struct School<'a> {
    teacher: Teacher<'a>,
    training: Training<'a>,
    windows: Windows,
    order: Order,
    aim: Aim,
    at_once: usize,
}

impl<'a> School<'a> {
    fn new(teacher: &'a Model, student: Model) -> Self {
        let windows = text(12);
        let order = Order::new(&[(windows.count(), 1.0)], 4, 1);
        let training = Training::new(student, optimizer(40), F32);
        Self { teacher: Teacher::Online(teacher), training, windows, order, aim: AIM, at_once: 4 }
    }

    fn step(&mut self) -> Result<Done, Error> {
        let which = self.order.next_step();
        let (windows, teacher, aim) = (&self.windows, &self.teacher, &self.aim);
        let mut parts = which.chunks(self.at_once).map(|part| {
            let tokens = part.iter().flat_map(|&window| &windows.tokens()[window * CTX..][..CTX]);
            let windows = Windows::new(CTX, tokens.copied().collect());
            let signal = teacher.of(&windows, part, aim, which.len())?;
            Ok((windows, signal))
        });
        self.training.step(&mut parts)
    }

    fn steps(&mut self, count: usize) -> Vec<Done> {
        (0..count).map(|_| self.step().unwrap()).collect()
    }

    fn weights(&self) -> Vec<u32> {
        let student = self.training.student();
        let all = student.config().tensors();
        all.iter().flat_map(|spec| student.load(&spec.name).unwrap()).map(f32::to_bits).collect()
    }
}

#[test]
fn a_student_comes_nearer_its_teacher_whatever_is_minimised() {
    let teacher = model(2, 32, 1);
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::JensenShannon { beta: 0.5 }]
    {
        let mut school = School::new(&teacher, model(1, 16, 2));
        school.aim.likeness = Likeness { divergence, temperature: 2.0 };
        let losses: Vec<f64> = school.steps(40).iter().map(|done| done.loss).collect();
        assert!(losses[39] < 0.7 * losses[0], "{divergence:?}: {losses:?}");
    }
}

/// A half of the error of all layers, or of some.
fn streams(map: LayerMap) -> Streams {
    Streams { map, weight: 0.5 }
}

/// What is asked of the stream is one mean over tokens and layers, however a step is cut into parts.
#[test]
fn the_error_of_the_stream_is_added_to_that_of_predictions_and_falls() {
    let teacher = model(4, 16, 1);
    let at = |at_once: usize, streams: Option<Streams>| {
        let mut school = School::new(&teacher, model(2, 16, 2));
        (school.aim.streams, school.at_once) = (streams, at_once);
        school.steps(40).iter().map(|done| done.loss).collect::<Vec<_>>()
    };
    let all = at(4, Some(streams(LayerMap::even(2, 4))));
    let predictions = at(4, None);
    assert!(all[0] > predictions[0] + 0.1 && all[39] < 0.7 * all[0], "{all:?}, {predictions:?}");
    let [first, last] = [(0, 1), (1, 3)].map(|pair| at(4, Some(streams(LayerMap::new([pair]).unwrap())))[0]);
    let mean = f64::midpoint(first, last);
    assert!((all[0] - mean).abs() < 1e-5, "{} is not the mean {mean} of each layer's", all[0]);
    let in_parts = at(1, Some(streams(LayerMap::even(2, 4))));
    assert!(all[..5].iter().zip(in_parts).all(|(all, parts)| (all - parts).abs() < 1e-4));
}

#[test]
fn a_layer_map_that_does_not_fit_is_refused() {
    let map = LayerMap::new([(0, 1), (1, 3)]).unwrap();
    assert!(map.check(&config(2, 16), &config(4, 16)).is_ok());
    for (student, teacher, expected) in [
        (config(1, 16), config(4, 16), "the student has no layer 1: its 1 are numbered from 0"),
        (config(2, 16), config(3, 16), "the teacher has no layer 3: its 3 are numbered from 0"),
        (config(2, 32), config(4, 16), "the student's residual stream has 32 features, the teacher's 16"),
    ] {
        assert_eq!(map.check(&student, &teacher).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_share_of_cross_entropy_learns_the_text() {
    let teacher = model(2, 32, 1);
    let mut school = School::new(&teacher, model(1, 16, 2));
    school.aim.cross_entropy = 1.0;
    let losses: Vec<f64> = school.steps(40).iter().map(|done| done.loss).collect();
    assert!(losses[0] > 4.0 && losses[39] < 0.8 * losses[0], "{losses:?}");
}

/// The teacher's whole weight is learned from, so that a student that is the teacher has nothing to learn.
#[test]
fn a_teacher_has_nothing_to_teach_itself() {
    let teacher = model(2, 32, 1);
    let mut school = School::new(&teacher, model(2, 32, 1));
    let before = school.weights();
    school.aim.streams = Some(streams(LayerMap::even(2, 2)));
    let done = school.step().unwrap();
    assert!(done.loss.abs() < 1e-9 && done.gradient_norm < 1e-6, "{done:?}");
    assert_eq!(before.len(), school.weights().len());
}

#[test]
fn a_run_taken_up_again_is_the_run_never_interrupted() {
    let teacher = model(2, 32, 1);
    let mut whole = School::new(&teacher, model(1, 16, 2));
    let all = whole.steps(20);

    let mut first = School::new(&teacher, model(1, 16, 2));
    first.steps(8);
    let moments: HashMap<String, Moments> =
        first.training.moments().map(|(name, moments)| (name, moments.clone())).collect();
    let student = Model::load(&config(1, 16), first.training.student()).unwrap();
    let mut second = School::new(&teacher, student);
    second.order = second.order.after(8);
    second.training =
        second.training.after(first.training.progress(), &mut |name| moments.get(name).cloned()).unwrap();
    assert_eq!(second.steps(12), all[8..]);
    assert!(second.weights() == whole.weights());
}

#[test]
fn moments_of_another_student_are_refused() {
    let student = Training::new(model(1, 16, 2), optimizer(1), F32);
    let progress = student.progress();
    let error = student.after(progress, &mut |_| Some(Moments::zeros(&[3]))).err().unwrap();
    assert!(matches!(error, Error::State { .. }), "{error}");
}

#[test]
fn threads_never_change_a_bit_and_parts_only_round() {
    let teacher = model(2, 32, 1);
    let at = |threads: usize, at_once: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut school = School::new(&teacher, model(1, 16, 2));
            school.at_once = at_once;
            let done = school.steps(5);
            (done, school.weights())
        })
    };
    let one = at(1, 4);
    assert!(one == at(3, 4));
    let (parts, _) = at(2, 1);
    for (whole, parts) in one.0.iter().zip(parts) {
        assert!(
            (whole.loss - parts.loss).abs() < 1e-5
                && (whole.gradient_norm - parts.gradient_norm).abs() < 1e-4
        );
    }
}

/// A loss that is not a number once in a while.
#[test]
fn a_step_without_a_finite_gradient_changes_nothing_and_ten_in_a_row_end_the_run() {
    let teacher = model(1, 16, 3);
    let mut broken = teacher_of_nan();
    let mut school = School::new(&teacher, model(1, 16, 2));
    let before = school.weights();
    std::mem::swap(&mut school.teacher, &mut broken);
    for step in 1..10 {
        let done = school.step().unwrap();
        assert!(done.skipped && done.step == step && school.weights() == before);
    }
    std::mem::swap(&mut school.teacher, &mut broken);
    assert!(!school.step().unwrap().skipped && school.weights() != before);
    std::mem::swap(&mut school.teacher, &mut broken);
    let error = (0..10).find_map(|_| school.step().err()).unwrap();
    assert!(matches!(error, Error::Diverged { steps: 10, step: 20, .. }), "{error}");
}

fn teacher_of_nan() -> Teacher<'static> {
    let mut model = model(1, 16, 3);
    model.parameter_mut(Role::FinalNorm, None).unwrap().fill(f32::NAN);
    Teacher::Online(Box::leak(Box::new(model)))
}

/// What is stored of a matrix: its numbers, rounded to quarters.
struct Quarters;

impl Disguise for Quarters {
    fn stored(&self, _: Option<usize>, role: Role, weight: ArrayView2<'_, f32>) -> Option<Array2<f32>> {
        (role != Role::Embedding).then(|| weight.mapv(|x| (4.0 * x).round() / 4.0))
    }
}

#[test]
fn a_student_in_disguise_sees_what_is_stored_and_keeps_what_it_learns() {
    let teacher = model(2, 32, 1);
    let mut plain = School::new(&teacher, model(1, 16, 2));
    let mut disguised = School::new(&teacher, model(1, 16, 2));
    disguised.training = disguised.training.disguised(&Quarters);

    let mut rounded = School::new(&teacher, model(1, 16, 2));
    let mut student = model(1, 16, 2);
    for spec in student.config().tensors().iter().filter(|spec| spec.is_matrix() && spec.layer.is_some()) {
        let mut weight = student.parameter_mut(spec.role, spec.layer).unwrap();
        weight.mapv_inplace(|x| (4.0 * x).round() / 4.0);
    }
    rounded.training = Training::new(student, optimizer(40), F32);

    let [plain_loss, seen, stored] =
        [&mut plain, &mut disguised, &mut rounded].map(|s| s.step().unwrap().loss);
    assert!(seen.to_bits() == stored.to_bits() && seen.to_bits() != plain_loss.to_bits());
    let quarters = |student: &Model| {
        let q = student.parameter(Role::Q, Some(0)).unwrap();
        q.iter().all(|x| (4.0 * x).fract() == 0.0)
    };
    assert!(
        !quarters(disguised.training.student()),
        "the student's own weights are finer than what is stored"
    );
    let losses: Vec<f64> = disguised.steps(39).iter().map(|done| done.loss).collect();
    assert!(losses[38] < 0.8 * seen, "{losses:?}");
}

#[test]
fn measuring_a_loss_changes_nothing() {
    let teacher = model(2, 32, 1);
    let mut school = School::new(&teacher, model(1, 16, 2));
    let before = school.weights();
    let windows = text(2);
    let signal = school.teacher.of(&windows, &[0, 1], &AIM, 2).unwrap();
    let loss: &dyn Loss = &signal;
    let found = school.training.loss(&windows, loss).unwrap();
    assert!(found > 0.0 && school.weights() == before && school.training.progress().steps == 0);
}

#[test]
fn another_vocabulary_is_refused() {
    let teacher = model(1, 16, 1);
    let mut other = config(1, 16);
    other.vocab_size += 1;
    let error = Teacher::Online(&teacher).check(&other).unwrap_err();
    assert_eq!(error.to_string(), "the teacher knows 64 tokens, the student 65");
}

/// A block that learns, the stream it reads and the one its teacher's block makes of it.
struct Bench {
    training: BlockTraining,
    input: Array2<f32>,
    target: Array2<f32>,
}

impl Bench {
    fn new(precision: Precision) -> Self {
        let config = config(1, 32);
        let block = |seed| Block::load(&config, 0, &Random(config.clone(), seed)).unwrap();
        let mut noise = noise(5);
        let input = Array2::from_shape_simple_fn((4 * CTX, 32), || 3.0 * noise());
        let mut target = input.clone();
        block(1).forward(&mut target, CTX);
        Self { training: BlockTraining::new(block(2), optimizer(40), precision).unwrap(), input, target }
    }

    fn lesson(&self, windows: Range<usize>) -> BlockLesson {
        let rows = s![windows.start * CTX..windows.end * CTX, ..];
        let [input, target] = [&self.input, &self.target].map(|stream| stream.slice(rows).to_owned());
        BlockLesson { input, target, ctx: CTX, share: 1.0 / (4 * CTX) as f32 }
    }

    fn step(&mut self, at_once: usize) -> Done {
        let parts: Vec<_> =
            (0..4).step_by(at_once).map(|first| Ok(self.lesson(first..first + at_once))).collect();
        self.training.step(&mut parts.into_iter()).unwrap()
    }
}

#[test]
fn a_block_learns_alone_what_its_teachers_makes_of_the_stream() {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut bench = Bench::new(precision);
        let before = bench.training.loss(bench.lesson(0..4));
        let losses: Vec<f64> = (0..40).map(|_| bench.step(4).loss).collect();
        assert!((losses[0] - before).abs() < 1e-9, "{before}, then {losses:?}");
        assert!(losses[39] < 0.5 * losses[0], "{precision:?}: {losses:?}");
    }
}

#[test]
fn a_block_learns_the_same_in_parts_and_after_an_interruption() {
    let (mut whole, mut parts) = (Bench::new(Precision::F32), Bench::new(Precision::F32));
    let all: Vec<Done> = (0..8).map(|_| whole.step(4)).collect();
    for whole in &all {
        assert!((whole.loss - parts.step(1).loss).abs() < 1e-5);
    }

    let mut first = Bench::new(Precision::F32);
    for _ in 0..3 {
        first.step(4);
    }
    let moments: HashMap<String, Moments> =
        first.training.moments().map(|(name, moments)| (name, moments.clone())).collect();
    let progress = first.training.progress();
    let mut again = Bench::new(Precision::F32);
    let mut block = Block::load(&config(1, 32), 0, &Random(config(1, 32), 3)).unwrap();
    for spec in config(1, 32).tensors().iter().filter(|spec| spec.layer == Some(0)) {
        let learned = first.training.block().parameter(spec.role).unwrap();
        block.parameter_mut(spec.role).unwrap().assign(&learned);
    }
    let training = BlockTraining::new(block, optimizer(40), Precision::F32).unwrap();
    again.training = training.after(progress, &mut |name| moments.get(name).cloned()).unwrap();
    assert_eq!((0..5).map(|_| again.step(4)).collect::<Vec<_>>(), all[3..]);
}
