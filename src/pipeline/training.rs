//! A student on its way: taught step by step, kept on the disk now and then, taken up again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attar_checkpoint::atomic::{self, Overwrite};
use attar_checkpoint::{Container, Dtype, TensorInfo, decode_floats, encode_floats, hf, safetensors};
use attar_distill::{Done, Order, Progress};
use attar_eval::report::CurvePoint;
use attar_model::{Model, Moments, Precision, Windows};
use attar_quant::Rtn;
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::pupil::{HeldOut, Pupil};
use super::write::Target;
use crate::device::Computer;
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::{Correct, Equalize, NO_RULES, Plan, Request, Treatment};
use crate::source::Source;
use crate::talk::{Stage, Talk, human_bytes, thousands};

/// The schema of what is kept of a run.
const SCHEMA: &str = "attar-training/1";

/// What is kept of a run besides the student and its optimizer.
const FACTS: &str = "training.json";

/// The folder of the optimizer's memory, beside the student.
const OPTIMIZER: &str = "optimizer";

/// Set while a student learns.
static LEARNING: AtomicBool = AtomicBool::new(false);

/// Set by a signal meanwhile: the run ends after the step under way.
static STOP: AtomicBool = AtomicBool::new(false);

/// Lets SIGINT and SIGTERM end a run after the step under way; a second one, or one when nothing is learned, ends the program at
/// once.
///
/// # Errors
/// If the system refuses.
pub fn end_on_signal() -> Result<()> {
    ctrlc::set_handler(|| {
        if !LEARNING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .doing(|| "while preparing to be interrupted")
}

/// While it lives a run is one that a signal ends in good order.
struct Learning;

impl Learning {
    fn begin() -> Self {
        LEARNING.store(true, Ordering::SeqCst);
        Self
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        LEARNING.store(false, Ordering::SeqCst);
    }
}

/// The windows a student learns from and those it is held to.
#[derive(Debug)]
pub struct Data {
    /// All windows, text after text.
    pub windows: Windows,
    /// Of each text the number of the first window, how many are learned from, and what they count.
    pub texts: Vec<LearnedText>,
    /// The numbers of those that are never learned from.
    pub held_out: Vec<usize>,
}

/// A text among all windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearnedText {
    /// Its first window.
    pub first: usize,
    /// Windows that are learned from, from the first on.
    pub learned: usize,
    /// How often it is seen, against others.
    pub weight: f64,
}

impl Data {
    /// Some windows, one after the other.
    pub fn of(&self, which: &[usize]) -> Windows {
        self.windows.select(which.iter().copied())
    }

    /// How many windows are learned from.
    pub fn learned_windows(&self) -> usize {
        self.texts.iter().map(|text| text.learned).sum()
    }

    /// The windows of an [`Order`]'s numbers, which count those that are learned from only.
    fn learned(&self, numbers: Vec<usize>) -> Vec<usize> {
        let find = |mut number: usize| {
            for text in &self.texts {
                if number < text.learned {
                    return text.first + number;
                }
                number -= text.learned;
            }
            unreachable!("an order draws windows of its texts")
        };
        numbers.into_iter().map(find).collect()
    }

    /// The numbers of all windows that are seen in so many steps, those held out among them, rising.
    pub fn seen(&self, batch: usize, seed: u64, steps: u64) -> Vec<usize> {
        let mut order = self.order(batch, seed);
        let drawn = (0..steps).flat_map(|_| self.learned(order.next_step()));
        let all: BTreeSet<_> = drawn.chain(self.held_out.iter().copied()).collect();
        all.into_iter().collect()
    }

    fn order(&self, batch: usize, seed: u64) -> Order {
        let texts: Vec<_> = self.texts.iter().map(|text| (text.learned, text.weight)).collect();
        Order::new(&texts, batch, seed)
    }
}

/// A run from its first step to its last.
pub struct Run<'a> {
    /// The student as it was read: its configuration, names and tokenizer.
    pub source: &'a Source,
    /// What it is learned from.
    pub data: &'a Data,
    /// Windows of a step.
    pub batch: usize,
    /// All steps.
    pub steps: u64,
    /// Steps of a part of the run, after which the data begins anew: of one layer where layers learn one after another, else all.
    pub part_steps: u64,
    /// Decides the order of windows.
    pub seed: u64,
    /// Where it is kept on the way.
    pub state: &'a Path,
    /// How often.
    pub save_every: Duration,
    /// What a run must have in common with one it takes up again.
    pub fingerprint: String,
    /// Where each step is written down, if anywhere.
    pub log: Option<&'a Path>,
    /// Where progress is told.
    pub talk: Talk,
}

/// What is kept of a run besides weights and moments.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    schema: String,
    fingerprint: String,
    steps: u64,
    updates: u32,
    skipped_in_a_row: u32,
    skipped: u64,
    seconds: f64,
    curve: Vec<CurvePoint>,
}

impl Facts {
    fn read(state: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(state.join(FACTS))?)?)
    }
}

/// What a run has been like so far.
#[derive(Debug, Default)]
pub struct Record {
    /// Loss and held-out loss by step.
    pub curve: Vec<CurvePoint>,
    /// Steps that changed nothing, since loss or gradient was not finite.
    pub skipped: u64,
    /// Seconds spent, those before an interruption among them.
    pub seconds: f64,
}

/// A log of one JSON object a line.
struct Log(Option<(std::fs::File, PathBuf)>);

impl Log {
    /// The log of a run that has come to `step`; what an earlier one said of later steps goes.
    fn open(path: Option<&Path>, step: u64) -> Result<Self> {
        let open = |path: &Path| {
            let at = || format!("while opening the log `{}`", path.display());
            let goes_on = step > 0;
            if goes_on && path.is_file() {
                forget_after(step, path).doing(at)?;
            }
            let mut options = OpenOptions::new();
            options.create(true).write(true).append(goes_on).truncate(!goes_on);
            Ok((options.open(path).doing(at)?, path.to_owned()))
        };
        path.map(open).transpose().map(Self)
    }

    fn line(&mut self, line: &serde_json::Value) -> Result<()> {
        let Some((file, path)) = &mut self.0 else { return Ok(()) };
        writeln!(file, "{line}").doing(|| format!("while writing the log `{}`", path.display()))
    }
}

/// Cuts a log off before what it says of steps after `step`, or before a line that was never finished: a run that was killed has
/// said more than it has kept.
fn forget_after(step: u64, path: &Path) -> Result<()> {
    let log = std::fs::read_to_string(path)?;
    let is_later = |line: &str| {
        let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
        line.and_then(|line| line["step"].as_u64()).is_some_and(|of| of > step)
    };
    let lines = log.split_inclusive('\n').take_while(|line| line.ends_with('\n') && !is_later(line));
    let kept: usize = lines.map(str::len).sum();
    Ok(OpenOptions::new().write(true).open(path)?.set_len(kept as u64)?)
}

impl Run<'_> {
    /// Trains to the last step; the student is then in the state's folder.
    ///
    /// # Errors
    /// Data or teacher that cannot be read, ten steps in a row without a finite gradient, an interruption, a disk that refuses: what
    /// was kept last stays.
    pub fn train(&self, pupil: &mut dyn Pupil, mut record: Record) -> Result<(Record, Progress)> {
        let _learning = Learning::begin();
        let started = Instant::now();
        let before = record.seconds;
        let first = pupil.progress().steps;
        let mut log = Log::open(self.log, first)?;
        let order = || self.data.order(self.batch, self.seed);
        let mut windows = order().after(first % self.part_steps);
        let tokens = (self.batch * self.data.windows.ctx()) as u64;
        let stage = self.talk.stage("distilling", self.steps * tokens, "tokens");
        stage.step(first * tokens, "");
        let (mut saved, mut losses) = (Instant::now(), (0.0, 0u32));
        while pupil.progress().steps < self.steps {
            if pupil.progress().steps.is_multiple_of(self.part_steps) {
                pupil.turn()?;
                windows = order();
                self.measure(pupil, None, &mut record, &mut log, &stage)?;
            }
            let which = self.data.learned(windows.next_step());
            let done = pupil.step(self.data, &which).hint(|| {
                "a lower --learning-rate or a longer --warmup may help; --resume goes on from what was kept last"
            })?;
            record.seconds = before + started.elapsed().as_secs_f64();
            record.skipped += u64::from(done.skipped);
            if !done.skipped {
                losses = (losses.0 + done.loss, losses.1 + 1);
            }
            let mut line = json!({
                "step": done.step, "loss": done.loss, "gradient_norm": done.gradient_norm, "rate": done.rate,
                "skipped": done.skipped, "seconds": record.seconds,
            });
            if let Some(layer) = pupil.layer() {
                line["layer"] = layer.into();
            }
            log.line(&line)?;
            stage.step(tokens, &format!("loss {:.4}", done.loss));
            let of_part = done.step % self.part_steps;
            if of_part.is_multiple_of(self.measured_every()) {
                let mean = (losses.1 > 0).then(|| losses.0 / f64::from(losses.1));
                self.measure(pupil, mean.map(|mean| (mean, done)), &mut record, &mut log, &stage)?;
                losses = (0.0, 0);
            }
            if of_part == 0 && done.step < self.steps {
                // What comes next reads the layer that has learned from there.
                self.save(pupil, &record)?;
                saved = Instant::now();
            }
            if STOP.load(Ordering::SeqCst) {
                self.save(pupil, &record)?;
                return Err(Failure::new(format!("interrupted after step {} of {}", done.step, self.steps))
                    .hint(format!(
                        "nothing is lost: the same command with --resume goes on from `{}`",
                        self.state.display()
                    )));
            }
            if saved.elapsed() >= self.save_every && done.step < self.steps {
                self.save(pupil, &record)?;
                saved = Instant::now();
            }
        }
        stage.done();
        if pupil.progress().steps > first {
            self.save(pupil, &record)?;
        }
        Ok((record, pupil.progress()))
    }

    /// Steps from one point of the curve to the next.
    fn measured_every(&self) -> u64 {
        let points = (20 * self.part_steps / self.steps.max(1)).max(1);
        self.part_steps.div_ceil(points).max(1)
    }

    /// Adds a point to the curve.
    fn measure(
        &self,
        pupil: &mut dyn Pupil,
        learned: Option<(f64, Done)>,
        record: &mut Record,
        log: &mut Log,
        stage: &Stage,
    ) -> Result<()> {
        let measured = !self.data.held_out.is_empty();
        let HeldOut { loss, surprise } = pupil.held_out(self.data)?;
        let point = CurvePoint {
            step: pupil.progress().steps,
            layer: pupil.layer().map(|layer| layer as u64),
            tokens: pupil.progress().steps * (self.batch * self.data.windows.ctx()) as u64,
            seconds: record.seconds,
            loss: learned.map(|(loss, _)| loss),
            rate: learned.map(|(_, done)| f64::from(done.rate)),
            held_out_loss: measured.then_some(loss),
            held_out_perplexity: surprise.filter(|_| measured).map(f64::exp),
        };
        log.line(&serde_json::to_value(&point)?)?;
        stage.note(&in_one_line(&point));
        record.curve.push(point);
        Ok(())
    }

    /// Keeps the run as it stands; what was kept before is replaced once this is complete.
    fn save(&self, pupil: &dyn Pupil, record: &Record) -> Result<()> {
        let at = || {
            let (state, step) = (self.state.display(), pupil.progress().steps);
            let place = format!("while keeping the run in `{state}` after step {step}");
            match Facts::read(self.state) {
                Ok(kept) if kept.fingerprint == self.fingerprint => {
                    format!("{place}; it still keeps step {}, from which --resume goes on", kept.steps)
                }
                _ => place,
            }
        };
        self.save_inner(pupil, record).doing(at)
    }

    fn save_inner(&self, pupil: &dyn Pupil, record: &Record) -> Result<()> {
        let plan = Plan::new(&Request {
            source: self.source,
            scheme: Some("f32".parse()?),
            gguf: false,
            layout: None,
            keeps_codes: false,
            rules: &NO_RULES,
            calibration: None,
            imatrix: None,
            max_memory: None,
            precision: Precision::F32,
            computer: &Computer::cpu(),
            solver: &Rtn,
            zeros: None,
            correct: Correct::Off,
            equalize: Equalize::No,
            tunes: false,
        })?;
        let target = Target {
            plan: &plan,
            source: self.source,
            config: &self.source.config,
            tokenizer: None,
            path: self.state,
            overwrite: Overwrite::Yes,
            pre_tokenizer: None,
            max_part_bytes: None,
        };
        let mut sink = target.create()?;
        for tensor in &plan.tensors {
            let Treatment::Float(dtype) = tensor.treatment else { unreachable!("all are floats") };
            sink.floats(tensor, dtype, pupil.stored(&tensor.spec)?)?;
        }
        let here = sink.folder().ok_or_else(|| Failure::new("a run is kept in a folder"))?;
        let Progress { steps, updates, skipped_in_a_row } = pupil.progress();
        let facts = Facts {
            schema: SCHEMA.to_owned(),
            fingerprint: self.fingerprint.clone(),
            steps,
            updates,
            skipped_in_a_row,
            skipped: record.skipped,
            seconds: record.seconds,
            curve: record.curve.clone(),
        };
        std::fs::write(here.join(FACTS), serde_json::to_vec_pretty(&facts)?)?;
        save_moments(&here.join(OPTIMIZER), pupil)?;
        sink.finish()?;
        Ok(())
    }
}

/// Whether the disk has room for what is kept of a run of `student`, twice, since the old is there until the new is complete, and
/// for its output of so many bytes beside what was kept last.
///
/// # Errors
/// A disk too full.
pub fn check_room(state: &Path, student: &Source, output_bytes: u64) -> Result<()> {
    // Weights and two moments, in f32.
    let once = 12 * student.parameters();
    let there = if Kept::is_at(state) { once } else { 0 };
    let needed = once + once.max(output_bytes) - there;
    match atomic::free_bytes(state) {
        Some(free) if free < needed => Err(Failure::new(format!(
            "the run is kept there on the way, which takes {}, the disk has {} left",
            human_bytes(needed),
            human_bytes(free)
        ))
        .hint("make room, or write to another disk"))
        .doing(|| format!("while preparing `{}`", state.display())),
        _ => Ok(()),
    }
}

fn in_one_line(point: &CurvePoint) -> String {
    let part = |name: &str, x: Option<f64>| x.map_or(String::new(), |x| format!(", {name} {x:.4}"));
    format!(
        "{}step {}{}{}{}",
        point.layer.map_or(String::new(), |layer| format!("layer {layer}, ")),
        thousands(point.step),
        part("loss", point.loss),
        part("held-out loss", point.held_out_loss),
        part("perplexity", point.held_out_perplexity)
    )
}

/// The two tensors that are kept of a parameter's moments.
fn names_of(parameter: &str) -> [String; 2] {
    [format!("{parameter}.mean"), format!("{parameter}.mean_square")]
}

fn save_moments(folder: &Path, pupil: &dyn Pupil) -> Result<()> {
    std::fs::create_dir(folder)?;
    let infos = pupil
        .parameters()
        .into_iter()
        .flat_map(|(name, shape)| names_of(&name).map(|name| TensorInfo::new(&name, Dtype::F32, &shape)));
    let infos: Vec<_> = infos.collect();
    let mut writer = safetensors::Writer::create(folder, Overwrite::No, &BTreeMap::new(), &infos, u64::MAX)?;
    pupil.moments(&mut |name, moments| {
        for (name, values) in names_of(name).iter().zip([&moments.mean, &moments.mean_square]) {
            let values: Vec<f32> = values.iter().copied().collect();
            writer.write(name, &encode_floats(Dtype::F32, &values)?)?;
        }
        Ok(())
    })?;
    Ok(writer.finish()?)
}

/// What was kept of a run, opened.
pub struct Kept {
    /// The student as it was then.
    pub student: Source,
    facts: Facts,
    moments: safetensors::Folder,
}

impl Kept {
    /// Whether there is a folder of a run at `path`.
    pub fn is_at(path: &Path) -> bool {
        path.join(FACTS).is_file() && path.join(hf::CONFIG).is_file()
    }

    /// Opens what was kept at `path` of a run with this fingerprint.
    ///
    /// # Errors
    /// Files that are missing or damaged, a run with other settings.
    pub fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        let at = || format!("while taking up the run kept in `{}`", path.display());
        let facts = Facts::read(path).doing(at)?;
        if facts.schema != SCHEMA {
            return Err(Failure::new(format!("its schema is `{}`, only `{SCHEMA}` is known", facts.schema)))
                .doing(at);
        }
        if facts.fingerprint != fingerprint {
            return Err(Failure::new("it was begun with other settings, models or texts")
                .hint("give the command it was begun with, or --force instead of --resume to begin anew"))
            .doing(at);
        }
        let student = Source::open(path)?;
        let moments = safetensors::open(&path.join(OPTIMIZER)).doing(at)?;
        Ok(Self { student, facts, moments })
    }

    /// A training as it was then: what `after` makes of how far it had come and of what the optimizer remembered, by name.
    ///
    /// # Errors
    /// Those of `after`.
    pub fn resumed<P, E: Into<Failure>>(
        self,
        after: impl FnOnce(Progress, &mut Remembered<'_>) -> std::result::Result<P, E>,
    ) -> Result<(P, Record)> {
        let Facts { steps, updates, skipped_in_a_row, skipped, seconds, curve, .. } = self.facts;
        let progress = Progress { steps, updates, skipped_in_a_row };
        let read = |name: &str| -> Option<ArrayD<f32>> {
            let info = self.moments.info(name).filter(|info| info.dtype == Dtype::F32)?;
            let values = decode_floats(Dtype::F32, self.moments.bytes(name).ok()?).ok()?;
            ArrayD::from_shape_vec(info.shape.as_slice(), values).ok()
        };
        let training = after(progress, &mut |parameter| {
            let [mean, mean_square] = names_of(parameter).map(|name| read(&name));
            Some(Moments { mean: mean?, mean_square: mean_square? })
        });
        let training = training.map_err(Into::into)?;
        Ok((training, Record { curve, skipped, seconds }))
    }
}

/// What an optimizer remembered of a parameter, by its name.
pub type Remembered<'a> = dyn FnMut(&str) -> Option<Moments> + 'a;

/// The model at `source`, whole in memory.
///
/// # Errors
/// Experts; tensors that cannot be read.
pub fn load(source: &Source) -> Result<Model> {
    Model::load(&source.config, source).doing(|| format!("while loading `{}`", source.path.display()))
}
