//! From a plan to a file that has been reopened and scored.

pub mod allocate;
mod coded_there;
pub mod collect;
pub mod compress;
mod done;
mod equalize;
mod experts;
pub mod fit;
mod importance;
pub mod learned;
pub mod local;
mod machine;
pub mod on_device;
mod outlet;
pub mod passage;
pub mod prune;
pub mod pupil;
pub mod score;
pub mod site;
pub mod stream;
pub mod tasks;
pub mod teacher;
pub mod training;
pub mod tune;
mod twin;
pub mod verify;
pub mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::scratch;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::Report;
use attar_eval::report::{self, RunStage};
use attar_model::{Device, Place, Precision, Windows};
use attar_quant::{Rtn, Solver};

use crate::cli::Method;
use crate::device::{self, Computer};
use crate::diagnostic::{Explain, Failure, Result};
use crate::imatrix::Imatrix;
use crate::layout::FolderLayout;
use crate::plan::{CalibrationSize, Correct, Equalize, Output, Plan, Request, Treatment, TypeRules};
use crate::scheme::Scheme;
use crate::source::Source;
use crate::talk::Talk;
use compress::{Outcome, Pass};
use learned::Learned;
use site::told_parts;
use verify::Facts;
use write::Target;

/// Text that statistics are collected on.
#[derive(Debug)]
pub struct Calibration {
    /// Its tokens.
    pub windows: Windows,
    /// What the report says of it.
    pub facts: report::Calibration,
}

/// One model to be made into one output.
pub struct Job<'a> {
    /// The model.
    pub source: &'a Source,
    /// Its tokenizer, where it has one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The number format; none changes the container only.
    pub scheme: Option<Scheme>,
    /// How a folder holds what is quantized; none takes the first layout that can.
    pub layout: Option<&'static dyn FolderLayout>,
    /// Whether codes that there are stay what they are; the container alone changes.
    pub keeps_codes: bool,
    /// How codes are chosen.
    pub method: Method,
    /// What sets weights of the blocks' matrices to 0, where that is asked for.
    pub zeros: Option<&'a dyn Solver>,
    /// What is said of tensor types besides the scheme.
    pub rules: &'a TypeRules,
    /// Text to learn from, if there is any.
    pub calibration: Option<&'a Calibration>,
    /// What stands in for a text, if anything does.
    pub imatrix: Option<&'a Imatrix>,
    /// What was learned of it before, for several outputs.
    pub learned: Option<&'a Learned>,
    /// The file or folder to be written.
    pub output: &'a Path,
    /// Whether one that exists is replaced.
    pub overwrite: Overwrite,
    /// The user's word for `tokenizer.ggml.pre`.
    pub pre_tokenizer: Option<&'a str>,
    /// Bytes of tensors that a GGUF is cut into parts of, where it is.
    pub max_part_bytes: Option<u64>,
    /// Tokens to tune the whole on afterwards, if any.
    pub tuning: Option<usize>,
    /// Whether each matrix makes up for what those before it have lost.
    pub correct: Correct,
    /// How exactly matrices are multiplied.
    pub precision: Precision,
    /// Memory the pass may use, if bounded.
    pub max_memory: Option<u64>,
    /// What computes.
    pub computer: &'a Computer,
    /// Where progress is told.
    pub talk: Talk,
}

/// Whether a path names a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

impl Job<'_> {
    /// Decides what will happen.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self) -> Result<Plan> {
        if self.tuning.is_some() {
            tune::check_windows(self.calibration.map(|calibration| &calibration.windows))?;
        }
        let size = |calibration: &Calibration| CalibrationSize {
            tokens: calibration.windows.tokens().len(),
            ctx: calibration.windows.ctx(),
        };
        Plan::new(&Request {
            source: self.source,
            scheme: self.scheme,
            gguf: is_gguf(self.output),
            layout: self.layout,
            keeps_codes: self.keeps_codes,
            rules: self.rules,
            calibration: self.calibration.map(size),
            imatrix: self.imatrix,
            max_memory: self.max_memory,
            precision: self.precision,
            computer: self.computer,
            solver: self.solver(),
            zeros: self.zeros,
            correct: self.correct,
            equalize: self.method().equalize(),
            tunes: self.tuning.is_some(),
        })
    }

    fn target<'a>(&'a self, plan: &'a Plan) -> Target<'a> {
        Target {
            plan,
            source: self.source,
            config: &self.source.config,
            tokenizer: self.tokenizer,
            path: self.output,
            overwrite: self.overwrite,
            pre_tokenizer: self.pre_tokenizer,
            max_part_bytes: self.max_part_bytes,
        }
    }

    /// What is said of a plan besides itself: the files it makes, and what the model has lost before.
    pub fn notes(&self, plan: &Plan) -> Vec<String> {
        let parts = told_parts(&self.target(plan).parts());
        let rounded = |inputs| {
            format!("programs that serve this read the inputs of matrices {inputs}; so do the figures")
        };
        parts
            .into_iter()
            .chain(plan.inputs().map(rounded))
            .chain(self.quantized_before().map(|main_type| twice_quantized(&main_type)))
            .collect()
    }

    /// The type of most weights of a model that has been quantized and is to be again.
    fn quantized_before(&self) -> Option<String> {
        let again = self.scheme.is_some_and(Scheme::has_codes) && self.source.is_quantized();
        again.then(|| self.source.main_type())
    }

    /// What would keep the output from being written, as far as can be told without writing.
    ///
    /// # Errors
    /// As [`Target::check`]; a disk too full for a temporary file.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        if let Place::Folder(folder) = &plan.memory.keeping.place {
            scratch::check_room(folder, plan.memory.hidden_bytes)
                .doing(|| "while preparing the temporary file for hidden states")?;
        }
        self.target(plan).check()
    }

    /// What will be found once the output is written: all but its numbers.
    ///
    /// # Errors
    /// As [`Target::promise`].
    pub fn promise(&self, plan: &Plan) -> Result<Source> {
        self.target(plan).promise()
    }

    fn method(&self) -> Method {
        let can_equalize = self.calibration.is_some() && self.zeros.is_none() && !self.computer.has_device();
        self.method.resolved(self.scheme, can_equalize)
    }

    fn solver(&self) -> &'static dyn Solver {
        match self.method() {
            Method::Auto if self.imatrix.is_some() => &Rtn, // which reads no more than there is
            method => method.solver(),
        }
    }

    /// Compresses, writes, reopens what was written and compares it, number by number, with what was meant.
    ///
    /// The report still lacks the evaluation.
    ///
    /// # Errors
    /// What kept the output from being written, or the first tensor that reads back otherwise.
    pub fn run(&self, plan: &Plan, clock: &mut Clock) -> Result<(Source, Report)> {
        let shared = (!plan.keeps_codes).then(|| plan.with_shared_scales(self.source)).transpose()?;
        let plan = shared.as_deref().unwrap_or(plan);
        let mut sink = self.target(plan).create()?;
        let pass = Pass {
            plan,
            source: self.source,
            solver: self.solver(),
            zeros: self.zeros,
            windows: self.calibration.filter(|_| plan.calibration.is_some()).map(|c| &c.windows),
            learned: self.learned.filter(|_| plan.calibration.is_some()),
            imatrix: self.imatrix,
            tuning: self.tuning.zip(plan.tuning.as_ref().map(|memory| memory.keep)),
            precision: self.precision,
            talk: self.talk,
        };
        let Outcome { mut tensors, routing, tuned, .. } = clock.time_within(
            "quantize",
            || pass.run(&mut sink),
            |outcome| ("calibrate", outcome.calibrating),
        )?;
        let hashes = clock.time("write", || sink.finish())?;
        let parts = self.target(plan).parts();
        let output = parts.first().map_or(self.output, PathBuf::as_path);
        let (written, facts) = clock.time("verify", || verify::reopen(output, plan, &hashes, self.talk))?;
        let specs: HashMap<_, _> = plan.tensors.iter().map(|t| (t.spec.name.as_str(), &t.spec)).collect();
        for tensor in &mut tensors {
            tensor.decoded_sha256 = hashes.get(&tensor.name).cloned();
            let spec = specs.get(tensor.name.as_str());
            tensor.stored_name =
                spec.filter(|spec| written.stored_name(spec) != spec.name).map(|spec| spec.gguf_name.clone());
        }
        let quantized_as = self.quantized_before();
        let mut report = Report::new(report::Model { quantized_as, ..describe(self.source) });
        report.output = Some(report::Output {
            path: output.display().to_string(),
            format: plan.output.format().to_owned(),
            scheme: self.scheme_name(plan),
            method: self.method_name(plan),
            parameters: Some(plan.weights()),
            bytes: facts.bytes,
            bits_per_weight: plan.bits_per_weight(),
            sha256: Some(facts.sha256),
        });
        report.tensors = tensors;
        report.calibration = self.calibration.filter(|_| plan.calibration.is_some()).map(|calibration| {
            let tuned = tuned.map(|tuned| report::Tuned {
                tokens: tuned.tokens,
                held_out_before: tuned.before,
                held_out_after: tuned.after,
            });
            let (shared, corrected) = (self.learned.is_some(), plan.corrects);
            report::Calibration { routing, shared, corrected, tuned, ..calibration.facts.clone() }
        });
        report.calibration = report.calibration.or_else(|| self.imatrix.map(Imatrix::facts));
        Ok((written, report))
    }

    /// The number format, and how many weights are 0.
    pub fn scheme_name(&self, plan: &Plan) -> String {
        let fitted = self.rules.exact.as_ref().map(|exact| exact.name.clone());
        let scheme = match plan.output {
            Output::Folder { scheme, .. } => Some(scheme),
            _ => self.scheme,
        };
        let scheme = fitted.unwrap_or_else(|| scheme.map_or_else(|| plan.main_type(), Scheme::name));
        match self.zeros.and_then(Solver::sparsity) {
            Some(sparsity) => format!("{scheme}-{sparsity}"),
            None => scheme,
        }
    }

    /// How codes are chosen or weights set to 0, where that is done.
    pub fn method_name(&self, plan: &Plan) -> Option<String> {
        let has_codes = plan.tensors.iter().any(|t| matches!(t.treatment, Treatment::Codes(_)));
        match self.zeros {
            Some(zeros) => Some(zeros.name().to_owned()),
            None => (has_codes && !plan.keeps_codes).then(|| match plan.equalize {
                Equalize::No => self.solver().name().to_owned(),
                Equalize::Activations => self.method().name(),
            }),
        }
    }
}

/// What a report says of a model.
pub fn describe(source: &Source) -> report::Model {
    report::Model {
        source: source.path.display().to_string(),
        family: source.config.family.name.to_owned(),
        parameters: source.parameters(),
        bytes: source.bytes(),
        quantized_as: None,
    }
}

/// What a report says of a file or folder that was written before, whoever wrote it, for a model of which `model` is known.
///
/// # Errors
/// Files that cannot be read.
pub fn describe_written(
    written: &Source,
    model: report::Model,
    (scheme, method): (String, Option<String>),
    talk: Talk,
) -> Result<Report> {
    let path = &written.path;
    let facts = Facts::of(path, talk)?;
    let format = if is_gguf(path) { "gguf" } else { written.layout().unwrap_or("plain") };
    let mut report = Report::new(model);
    report.output = Some(report::Output {
        path: path.display().to_string(),
        format: format.to_owned(),
        scheme,
        method,
        parameters: Some(written.parameters()),
        bytes: facts.bytes,
        bits_per_weight: 8.0 * written.bytes() as f64 / written.parameters() as f64,
        sha256: Some(facts.sha256),
    });
    Ok(report)
}

/// Refuses to quantize what has been quantized: its errors would add up unseen.
///
/// # Errors
/// A model with quantized weights.
pub fn refuse_quantized(source: &Source) -> Result<()> {
    if !source.is_quantized() {
        return Ok(());
    }
    Err(Failure::new(format!("`{}` is quantized already", source.path.display())).hint(
        "start from the full-precision model; if there is no other, attar convert decodes this one to floats, and attar quantize \
         --allow-requantize quantizes it again",
    ))
}

/// What is said of a model of this type that is quantized again.
pub fn twice_quantized(main_type: &str) -> String {
    format!(
        "the model is quantized already, most of it as {main_type}: what that cost stays in it, and the figures are of what is \
         lost besides"
    )
}

impl Output {
    /// The container's name in reports.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Gguf { .. } => "gguf",
            Self::Plain => "plain",
            Self::Folder { layout, .. } => layout.name(),
        }
    }
}

/// Where the time goes.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    stages: Vec<RunStage>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { started: Instant::now(), stages: Vec::new() }
    }
}

impl Clock {
    /// Does something and remembers how long it took; the same name again adds up.
    pub fn time<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.add(name, started.elapsed());
        result
    }

    /// [`time`](Self::time) of work that can tell how long a part of it took, which counts under a name of its own.
    fn time_within<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<T>,
        part: impl FnOnce(&T) -> (&'static str, Duration),
    ) -> Result<T> {
        let started = Instant::now();
        let result = work()?;
        let (part, took) = part(&result);
        if !took.is_zero() {
            self.add(part, took);
        }
        self.add(name, started.elapsed().saturating_sub(took));
        Ok(result)
    }

    fn add(&mut self, name: &str, took: Duration) {
        let seconds = took.as_secs_f64();
        match self.stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => stage.seconds += seconds,
            None => self.stages.push(RunStage { name: name.to_owned(), seconds }),
        }
    }

    /// What the report says of the run so far, which multiplied matrices in `precision` on `devices`, if it multiplied any.
    pub fn run<'a>(
        &self,
        precision: Option<Precision>,
        devices: impl IntoIterator<Item = &'a Device>,
    ) -> report::Run {
        report::Run {
            command: std::env::args_os()
                .map(|word| quoted(&word.to_string_lossy()))
                .collect::<Vec<_>>()
                .join(" "),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: device::name(devices),
            threads: rayon::current_num_threads() as u64,
            cpu: machine::cpu(),
            cores: std::thread::available_parallelism().ok().map(|cores| cores.get() as u64),
            memory_bytes: machine::memory_bytes(),
            os: Some(machine::os()),
            precision: precision.map(|precision| precision.name().to_owned()),
            seconds: self.started.elapsed().as_secs_f64(),
            peak_rss_bytes: machine::peak_rss_bytes(),
            stages: self.stages.clone(),
        }
    }
}

/// A word of a command line so that a shell reads it as one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted_back_into_a_shell() {
        assert_eq!(quoted("--scheme=q4_k_m"), "--scheme=q4_k_m");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn stages_of_one_name_add_up() {
        let mut clock = Clock::default();
        clock.add("write", Duration::from_secs(1));
        clock.add("verify", Duration::from_secs(5));
        clock.add("write", Duration::from_secs(2));
        let stages: Vec<_> =
            clock.run(None, []).stages.into_iter().map(|stage| (stage.name, stage.seconds)).collect();
        assert_eq!(stages, [("write".to_owned(), 3.0), ("verify".to_owned(), 5.0)]);
    }
}
