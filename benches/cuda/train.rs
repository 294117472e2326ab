//! A step of distillation on the device: a student of 1B's shape learns from a teacher of 8B's, random weights made on the device.
//!
//! Rates are beside 790 TFLOP/s, what an H100's best bf16 products reach. Counted are six operations a token for each weight of the
//! student that multiplies it and its attention, and two for each weight of the teacher.

use super::line;
use attar_model::device::{AtOnce, Blank, Cuda, CudaError, DeviceLesson, DeviceModel, DeviceTeacher, Phase};
use attar_model::{AdamW, Divergence, Error, Keep, Likeness, ModelConfig, Role, Windows, next_token_weights};
use attar_tensor::cuda::{Element, Item, Matrix, Rows, RowsMut, bf16};
use serde_json::json;
use std::time::Instant;

const CTX: usize = 2048;
const WINDOWS: usize = 8;
const VOCABULARY: usize = 128_256;
/// TFLOP/s.
const BEST: f64 = 790.0;
/// A step that takes longer than this is not repeated.
const LONGEST_SECS: f64 = 3.0;

fn config([hidden, intermediate, layers, head_dim]: [usize; 4], tied: bool) -> Option<ModelConfig> {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": intermediate,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": head_dim, "num_hidden_layers": layers,
        "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
    });
    ModelConfig::from_hf(&json).ok()
}

/// Some random numbers in about [-0.03, 0.03), `[count, 1]`.
fn some<T: Element>(cuda: &Cuda) -> Result<Matrix<T>, CudaError> {
    let mut state = 1u64;
    let values: Vec<T> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::of(((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.03)
    })
    .take(65_521)
    .collect();
    cuda.upload_items(&values, (values.len(), 1))
}

/// The same numbers over and over, copied on the device: twice as many each time.
fn repeat<T: Item>(cuda: &Cuda, to: RowsMut<'_, T>, numbers: Rows<'_, T>) -> Result<(), CudaError> {
    let mut to = to.reshaped(1);
    let count = to.dim().0;
    let mut done = numbers.dim().0.min(count);
    cuda.copy(to.reborrow().rows(0, done), numbers.rows(0, done))?;
    while done < count {
        let more = done.min(count - done);
        let (from, rest) = to.reborrow().split_at(done);
        cuda.copy(rest.rows(0, more), from.view().rows(0, more))?;
        done += more;
    }
    Ok(())
}

fn ones(cuda: &Cuda, to: RowsMut<'_, f32>) -> Result<(), CudaError> {
    let ones = cuda.vector(&vec![1.0; to.dim().1])?;
    cuda.copy(to, ones.view())
}

fn teacher(cuda: &Cuda, config: &ModelConfig) -> Result<DeviceTeacher<bf16>, Error> {
    let numbers = some::<bf16>(cuda)?;
    DeviceTeacher::new(cuda, config, CTX, &mut |_, blank| {
        match blank {
            Blank::Matrix(to) => repeat(cuda, to, numbers.view())?,
            Blank::Vector(to) => ones(cuda, to)?,
        }
        Ok(())
    })
}

fn student(cuda: &Cuda, config: &ModelConfig) -> Result<DeviceModel<bf16>, Error> {
    let numbers = some::<f32>(cuda)?;
    let at_once = AtOnce { keep: Keep::Activations, logits: 4096 };
    DeviceModel::new(cuda, config, CTX, at_once, &mut |_, _, to| match to.dim() {
        (1, _) => Ok(ones(cuda, to)?),
        _ => Ok(repeat(cuda, to, numbers.view())?),
    })
}

/// Tera operations for each token: of every weight that multiplies it, so many, and of attention so many products over the half of a
/// window that is seen.
fn teraflops_per_token(config: &ModelConfig, of_weights: usize, of_attention: usize) -> f64 {
    let matrices = config.tensors().into_iter().filter(attar_model::TensorSpec::is_matrix);
    // A table of which rows are looked up multiplies nothing, unless it is the head too.
    let multiplying = matrices.filter(|spec| spec.role != Role::Embedding || config.tie_word_embeddings);
    let weights: usize = multiplying.map(|spec| spec.len()).sum();
    let attention = config.num_hidden_layers * CTX * config.query_size();
    1e-12 * (of_weights * weights + of_attention * attention) as f64
}

/// Seconds of the parts of a step, each waited for.
#[derive(Default)]
struct Parts {
    teacher: f64,
    forward: f64,
    head: f64,
    backward: f64,
    optimizer: f64,
}

struct School<'a> {
    teacher: &'a DeviceTeacher<bf16>,
    student: DeviceModel<bf16>,
    windows: Windows,
    steps: u32,
}

impl School<'_> {
    /// One step; `mark` is told when a part has been asked for.
    fn step(
        &mut self,
        mark: &mut dyn FnMut(Option<Phase>) -> Result<(), Error>,
    ) -> Result<(f64, f64), Error> {
        let (cuda, config) = (self.student.cuda().clone(), self.student.config().clone());
        let weights = next_token_weights(&self.windows);
        let lesson = DeviceLesson::next_token(&cuda, &config, &self.windows, weights.view())?;
        let likeness = Likeness { divergence: Divergence::ForwardKl, temperature: 1.0 };
        let lesson = lesson.taught_by(self.teacher, likeness, 0.0)?;
        mark(None)?;
        self.student.backward(&lesson, &mut |phase| mark(Some(phase)))?;
        let (loss, norm) = self.student.finish()?;
        self.steps += 1;
        let adamw = AdamW { learning_rate: 1e-5, ..AdamW::default() };
        self.student.step(adamw, self.steps, (1.0 / norm.max(1.0)) as f32)?;
        Ok((loss, norm))
    }

    /// One step, every part waited for.
    fn parts(&mut self) -> Result<(Parts, f64), Error> {
        let cuda = self.student.cuda().clone();
        cuda.wait()?;
        let start = Instant::now();
        let (mut parts, mut last) = (Parts::default(), start);
        self.step(&mut |phase| {
            cuda.wait()?;
            let taken = last.elapsed().as_secs_f64();
            last = Instant::now();
            match phase {
                None => parts.teacher = taken,
                Some(Phase::Forward) => parts.forward = taken,
                Some(Phase::Head) => parts.head = taken,
                Some(Phase::Backward) => parts.backward = taken,
            }
            Ok(())
        })?;
        cuda.wait()?;
        parts.optimizer = last.elapsed().as_secs_f64();
        Ok((parts, start.elapsed().as_secs_f64()))
    }
}

/// The step, and where its time goes.
///
/// # Errors
/// A device that fails or has too little memory.
#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn measured(cuda: &Cuda) -> Result<(), Error> {
    let shapes = config([2048, 8192, 16, 64], true).zip(config([4096, 14_336, 32, 128], false));
    let Some((of_student, of_teacher)) = shapes else { return Ok(()) };
    let start = Instant::now();
    let teacher = teacher(cuda, &of_teacher)?;
    let tokens = WINDOWS * CTX;
    let windows = Windows::new(CTX, (0..tokens as u32).map(|i| i * 7919 % VOCABULARY as u32).collect());
    let mut school = School { teacher: &teacher, student: student(cuda, &of_student)?, windows, steps: 0 };
    cuda.wait()?;
    println!(
        "distillation, 8B to 1B: {:.1} GB of weights and moments made in {:.1} s",
        1e-9 * cuda.used_bytes() as f64,
        start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let (loss, norm) = school.step(&mut |_| Ok(()))?;
    cuda.wait()?;
    let mut best = start.elapsed().as_secs_f64();
    println!(
        "first step, kernels compiled or read: {best:.2} s, loss {loss:.4}, norm of gradients {norm:.4}"
    );
    let student_flops = tokens as f64 * teraflops_per_token(&of_student, 6, 7);
    let teacher_flops = tokens as f64 * teraflops_per_token(&of_teacher, 2, 0);
    if best < 4.0 * LONGEST_SECS {
        let (parts, whole) = school.parts()?;
        best = best.min(whole);
        let forward = tokens as f64 * teraflops_per_token(&of_teacher, 2, 2);
        let head = 2e-12 * (tokens * VOCABULARY) as f64;
        line("  teacher's blocks", parts.teacher, forward - head * 4096.0, "TFLOP/s", BEST);
        let student = tokens as f64 * teraflops_per_token(&of_student, 2, 2) - head * 2048.0;
        line("  student's blocks forward", parts.forward, student, "TFLOP/s", BEST);
        line("  both heads and the loss", parts.head, head * (4096.0 + 3.0 * 2048.0), "TFLOP/s", BEST);
        let back = tokens as f64 * teraflops_per_token(&of_student, 4, 5) - 2.0 * head * 2048.0;
        line("  student's blocks backward", parts.backward, back, "TFLOP/s", BEST);
        // Gradients read for their norm; weights, moments and gradients read, all but these and the narrow weight written, one cleared.
        let numbers = of_student.tensors().iter().map(attar_model::TensorSpec::len).sum::<usize>() as f64;
        line("  norm and optimizer, of 3420 GB/s", parts.optimizer, 38e-9 * numbers, "GB/s", 3420.0);
        for _ in 0..3 {
            if whole > LONGEST_SECS {
                break;
            }
            let start = Instant::now();
            school.step(&mut |_| Ok(()))?;
            cuda.wait()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let name = format!("step of {WINDOWS} windows of {CTX}, aim 40 %");
    line(&name, best, student_flops + teacher_flops, "TFLOP/s", BEST);
    println!("{:.0} tokens/s", tokens as f64 / best);
    Ok(())
}

/// All of it; what a device has too little memory for is said.
///
/// # Errors
/// A device that fails.
pub fn run(cuda: &Cuda) -> Result<(), CudaError> {
    super::model::said("distillation, 8B to 1B", &measured(cuda))
}
