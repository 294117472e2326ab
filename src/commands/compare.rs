//! `attar compare`: many outputs of one model in one table and one plot.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::report::Evaluation;
use attar_eval::{Reference, Report, report};
use attar_model::teacher::tokens_sha256;
use attar_model::{Device, Precision};
use sha2::{Digest, Sha256};

use crate::cli::{Calibrate, CompareArgs, Contender, Global};
use crate::commands::deliver::{self, Delivery};
use crate::commands::inspect::{Subject, file_type_name};
use crate::commands::quantize::{check_weights, devices};
use crate::commands::{CalibrationRequest, ScoringRequest};
use crate::device::Computer;
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::learned::Learned;
use crate::pipeline::score::Scoring;
use crate::pipeline::verify::Facts;
use crate::pipeline::{Calibration, Clock, Job, describe, describe_written, refuse_quantized};
use crate::plan::{Correct, Equalize, NO_RULES, Plan};
use crate::scheme::Scheme;
use crate::source::Source;
use crate::talk::{Talk, human_bytes, say};
use crate::text::hex;

/// Where the report of each output lies, in the folder of the comparison.
const REPORTS: &str = "reports";
/// Where what calibration learned lies meanwhile.
const LEARNED: &str = ".learned";

/// Makes what is not there yet, measures all, tells.
///
/// # Errors
/// Whatever kept it from being done; what can be found out early is.
pub fn run(args: &CompareArgs, global: &Global) -> Result<()> {
    let talk = global.talk();
    let source = Source::open(&args.model)?;
    refuse_quantized(&source)?;
    let tokenizer = source.tokenizer()?;
    let computer = global.computer(&[&source.config])?;
    let scoring = args.scoring(global, &computer).read(&source, &tokenizer)?;
    let calibration = args.calibration(&source, &tokenizer)?;
    let contest = Contest {
        args,
        global,
        source: &source,
        tokenizer: &tokenizer,
        computer: &computer,
        calibration: calibration.as_ref(),
        scoring: &scoring,
    };
    let entries = contest.entries()?;
    contest.check_files(&entries)?;
    if global.dry_run {
        return say(&contest.plan(&entries)?);
    }
    let delivery = contest.prepare(&entries)?;
    let mut reports = Vec::new();
    let missing = entries.iter().any(|entry| entry.found.is_none());
    if missing {
        check_weights(&source, talk)?;
    }
    let learned = contest.learn(&entries)?;
    let unscored = |entry: &Entry<'_>| entry.found.as_ref().is_none_or(|found| found.evaluation.is_none());
    let reference = if entries.iter().any(unscored) { Some(scoring.reference(&source, talk)?) } else { None };
    for entry in &entries {
        reports.push(contest.enter(entry, learned.as_ref(), reference.as_ref())?);
    }
    drop(learned);
    contest.forget()?;
    talk.note("");
    delivery.compared(&reports)
}

impl CompareArgs {
    fn scoring<'a>(&'a self, global: &Global, computer: &'a Computer) -> ScoringRequest<'a> {
        ScoringRequest {
            file: self.text.as_ref(),
            ctx: self.ctx,
            chunks: self.chunks,
            convention: self.convention.into(),
            precision: self.precision.into(),
            as_in: None,
            models: 2,
            max_memory: global.max_memory,
            computer,
        }
    }

    fn learns(&self, contender: &Contender) -> bool {
        contender.method.unwrap_or_default().learns(contender.scheme, &self.calib)
    }

    fn calibration(&self, source: &Source, tokenizer: &Tokenizer) -> Result<Option<Calibration>> {
        let request = CalibrationRequest {
            files: &self.calib,
            tokens: self.calib_tokens,
            ctx: self.ctx,
            seed: self.seed,
        };
        let learns = self.schemes.iter().any(|contender| self.learns(contender));
        learns.then(|| request.read(source, tokenizer)).transpose()
    }
}

/// Everything that all outputs share.
struct Contest<'a> {
    args: &'a CompareArgs,
    global: &'a Global,
    source: &'a Source,
    tokenizer: &'a Tokenizer,
    computer: &'a Computer,
    calibration: Option<&'a Calibration>,
    scoring: &'a Scoring<'a>,
}

/// One output.
struct Entry<'a> {
    /// How it is made; a file that is there already is not.
    contender: Option<&'a Contender>,
    /// Where it lies or is going to.
    path: PathBuf,
    /// Where its report is kept.
    kept: PathBuf,
    /// What is known of it from a comparison before.
    found: Option<Report>,
}

impl Entry<'_> {
    /// Refuses to take the place of what is not known to be the same.
    fn is_free(&self, overwrite: Overwrite) -> Result<()> {
        if overwrite == Overwrite::Yes || !self.path.exists() {
            return Ok(());
        }
        let why = if self.kept.exists() {
            "it was made otherwise: of other calibration, another model or a model that has changed, or it has changed itself"
        } else {
            "nothing tells how it was made"
        };
        Err(Failure::new(format!("`{}` exists already, and {why}", self.path.display()))
            .hint("delete it, or give --force to make every output anew; another -o keeps both"))
    }

    /// Writes down what is known of it.
    fn keep(&self, report: &Report) -> Result<()> {
        deliver::put_as("json", &self.kept, report)
    }
}

impl<'a> Contest<'a> {
    /// The outputs, in the order they were named, with what is known of them.
    fn entries(&self) -> Result<Vec<Entry<'a>>> {
        let stem = name_of(&self.source.path);
        let folder = &self.args.output;
        let mut entries = Vec::new();
        for contender in &self.args.schemes {
            let name = format!("{stem}-{}", contender.name());
            let file = if matches!(contender.scheme, Scheme::Gguf(_)) {
                format!("{name}.gguf")
            } else {
                name.clone()
            };
            entries.push((Some(contender), folder.join(file), name));
        }
        for file in &self.args.files {
            let name = hex(&Sha256::digest(file.to_string_lossy().as_bytes()))[..16].to_owned();
            entries.push((None, file.clone(), name));
        }
        let mut seen = HashSet::new();
        if let Some((_, twice, _)) = entries
            .iter()
            .find(|(_, path, _)| !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())))
        {
            return Err(Failure::new(format!("`{}` is compared with itself", twice.display()))
                .hint("name every scheme and file once"));
        }
        let entry = |(contender, path, name): (Option<&'a Contender>, PathBuf, String)| {
            let kept = folder.join(REPORTS).join(format!("{name}.json"));
            let found = if self.global.force && contender.is_some() {
                None
            } else {
                self.found(contender, &path, &kept)?
            };
            Ok(Entry { contender, path, kept, found })
        };
        entries.into_iter().map(entry).collect()
    }

    /// What a comparison before this one knew of an output, as far as it still holds: nothing where the output is not what it was or would be
    /// made otherwise now, no evaluation where that would be another.
    fn found(&self, contender: Option<&Contender>, path: &Path, kept: &Path) -> Result<Option<Report>> {
        if !path.exists() || !kept.exists() {
            return Ok(None);
        }
        // A report that cannot be read is as good as none.
        let Ok(mut report) = deliver::read_report(kept) else { return Ok(None) };
        let Some(output) = &report.output else { return Ok(None) };
        let job = contender.map(|contender| self.job(contender, path, None));
        let same_making = match &job {
            None => true,
            Some(job) => {
                let plan = job.plan()?;
                let calibration = job.calibration.map(|calibration| {
                    let shared = self.shares(&plan);
                    report::Calibration { shared, ..calibration.facts.clone() }
                });
                // The hash says more than the names of the files do.
                let key = |facts: report::Calibration| report::Calibration {
                    files: Vec::new(),
                    routing: Vec::new(),
                    ..facts
                };
                output.scheme == job.scheme_name(&plan)
                    && output.method == job.method_name(&plan)
                    && report.calibration.clone().map(key) == calibration.map(key)
                    && self.as_precise(&report)
            }
        };
        let same_model = same_model(report.beginning(), &describe(self.source)) && !self.changed_since(kept);
        // Last, for it reads the file from end to end.
        let same_file =
            || -> Result<bool> { Ok(output.sha256.as_ref() == Some(&Facts::of(path, self.talk())?.sha256)) };
        if !(same_making && same_model && same_file()?) {
            return Ok(None);
        }
        let tokens = tokens_sha256(self.scoring.windows.tokens());
        let as_precise = self.as_precise(&report);
        let same_text = |e: &Evaluation| {
            e.convention == self.scoring.convention
                && e.ctx == self.scoring.windows.ctx() as u64
                && e.kl_divergence.is_some()
                && as_precise
                && e.by_window.as_ref().is_some_and(|windows| windows.tokens_sha256 == tokens)
        };
        report.evaluation = report.evaluation.filter(same_text);
        Ok(Some(report))
    }

    /// Whether it was computed as exactly as is asked for now.
    fn as_precise(&self, report: &Report) -> bool {
        let then = report.run.as_ref().and_then(|run| run.precision.as_deref());
        then == Some(Precision::from(self.args.precision).name())
    }

    /// Whether a file of the model is younger than what lies at `path`. What else lies beside them says nothing.
    fn changed_since(&self, path: &Path) -> bool {
        let time = |metadata: Metadata| metadata.modified().ok();
        let folder =
            fs::read_dir(&self.source.path).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_read = |path: &PathBuf| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| ["safetensors", "json", "model", "gguf"].contains(&ending))
        };
        let files = folder.chain([self.source.path.clone()]).filter(is_read);
        let files = files.filter_map(|path| fs::metadata(path).ok());
        let youngest = files.filter(Metadata::is_file).filter_map(time).max();
        youngest > fs::metadata(path).ok().and_then(time)
    }

    fn job<'j>(&'j self, contender: &'j Contender, path: &'j Path, learned: Option<&'j Learned>) -> Job<'j> {
        Job {
            source: self.source,
            tokenizer: Some(self.tokenizer),
            scheme: Some(contender.scheme),
            layout: None,
            keeps_codes: false,
            method: contender.method.unwrap_or_default(),
            zeros: None,
            rules: &NO_RULES,
            calibration: self.calibration.filter(|_| self.args.learns(contender)),
            imatrix: None,
            learned,
            tuning: None,
            // What is learned of the model as it is knows of no drift.
            correct: match self.args.calibrate {
                Calibrate::Once => Correct::Off,
                Calibrate::Each => Correct::Auto,
            },
            output: path,
            overwrite: self.global.overwrite(),
            pre_tokenizer: None,
            max_part_bytes: None,
            precision: self.args.precision.into(),
            max_memory: self.global.max_memory,
            computer: self.computer,
            talk: self.global.talk(),
        }
    }

    /// Whether what calibration learns serves all outputs: experts need their own tokens, a device its own sums.
    fn shares(&self, plan: &Plan) -> bool {
        self.args.calibrate == Calibrate::Once
            && plan.calibration.is_some()
            && plan.equalize == Equalize::No
            && matches!(plan.device, Device::Cpu)
            && self.source.config.experts.is_none()
    }

    /// Those that are made by what calibration learns.
    fn learners<'e>(&self, entries: &'e [Entry<'a>]) -> Result<Vec<(&'e Entry<'a>, Plan)>> {
        let mut learners = Vec::new();
        for entry in entries.iter().filter(|entry| entry.found.is_none()) {
            let Some(contender) = entry.contender else { continue };
            let plan = self.job(contender, &entry.path, None).plan()?;
            if self.shares(&plan) {
                learners.push((entry, plan));
            }
        }
        Ok(learners)
    }

    fn plan(&self, entries: &[Entry<'_>]) -> Result<String> {
        let mut text = String::new();
        for entry in entries {
            let what = match (&entry.found, entry.contender) {
                (Some(found), _) if found.evaluation.is_some() => "is there and measured".to_owned(),
                (Some(_), _) => "is there, to be measured".to_owned(),
                (None, None) => "to be measured".to_owned(),
                (None, Some(contender)) => {
                    let plan = self.job(contender, &entry.path, None).plan();
                    let plan = plan.doing(|| format!("while planning `{}`", entry.path.display()))?;
                    format!("{}, {:.3} bits per weight", human_bytes(plan.bytes()), plan.bits_per_weight())
                }
            };
            let _ = writeln!(text, "{}: {what}", entry.path.display()); // a String never fails
        }
        let learners = self.learners(entries)?;
        if learners.len() > 1 {
            let bytes = human_bytes(Learned::bytes(&self.source.config));
            let _ = writeln!(
                text,
                "calibration: once for {} outputs, {bytes} on the disk meanwhile",
                learners.len()
            );
        }
        let _ = writeln!(text, "{}", self.scoring.memory);
        Ok(text)
    }

    /// Refuses files that are not there, no models, or have other tokens than the model.
    fn check_files(&self, entries: &[Entry<'_>]) -> Result<()> {
        let is_measured = |entry: &&Entry<'_>| entry.found.as_ref().is_none_or(|f| f.evaluation.is_none());
        for entry in entries.iter().filter(|entry| entry.contender.is_none()).filter(is_measured) {
            let request = self.args.scoring(self.global, self.computer);
            request.check_other(self.scoring, self.source, &Source::open(&entry.path)?)?;
        }
        Ok(())
    }

    /// What would keep outputs and reports from being written.
    fn prepare(&self, entries: &[Entry<'_>]) -> Result<Delivery> {
        let model = self.source.path.canonicalize()?;
        let output = self.args.output.ancestors().find_map(|path| path.canonicalize().ok());
        if output.is_some_and(|output| output.starts_with(&model)) {
            return Err(Failure::new(format!("`{}` lies in the model's folder", self.args.output.display()))
                .hint("name a folder beside it with -o"));
        }
        for entry in entries.iter().filter(|entry| entry.found.is_none()) {
            if let Some(contender) = entry.contender {
                entry.is_free(self.global.overwrite())?;
                let job = self.job(contender, &entry.path, None);
                let check = || job.check(&job.plan()?);
                check().doing(|| format!("while planning `{}`", entry.path.display()))?;
            }
            deliver::check_file(&entry.kept)?;
        }
        let delivery = self.global.delivery();
        let folder = delivery.folder.or_else(|| Some(self.args.output.clone()));
        let delivery = Delivery { folder, ..delivery };
        delivery.check(&entries.iter().map(|entry| entry.path.as_path()).collect::<Vec<_>>())?;
        Ok(delivery)
    }

    /// Runs the calibration text, where more than one output is made by it or one was.
    fn learn(&self, entries: &[Entry<'a>]) -> Result<Option<Learned>> {
        let learners = self.learners(entries)?;
        let (Some((_, plan)), Some(calibration)) = (learners.first(), self.calibration) else {
            return Ok(None);
        };
        let precision = self.args.precision.into();
        let folder = self.learned_at(calibration)?;
        Learned::of(&folder, (self.source, plan), calibration, precision, self.talk()).map(Some)
    }

    fn talk(&self) -> Talk {
        self.global.talk()
    }

    /// Named after all that what is learned depends on.
    fn learned_at(&self, calibration: &Calibration) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        hash.update(tokens_sha256(calibration.windows.tokens()));
        hash.update(self.source.sha256(self.talk())?);
        hash.update(format!("{:?} {}", self.args.precision, calibration.windows.ctx()));
        Ok(self.args.output.join(format!("{LEARNED}-{}", &hex(&hash.finalize())[..16])))
    }

    /// Deletes what calibration learned, now and in comparisons that were given up: all outputs are made.
    fn forget(&self) -> Result<()> {
        for entry in fs::read_dir(&self.args.output).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(LEARNED) {
                let path = entry.path();
                fs::remove_dir_all(&path).doing(|| format!("while deleting `{}`", path.display()))?;
            }
        }
        Ok(())
    }

    /// Makes and measures one output, as far as that is not done; what is known of it is kept at once.
    fn enter(
        &self,
        entry: &Entry<'_>,
        learned: Option<&Learned>,
        reference: Option<&Reference<'_>>,
    ) -> Result<Report> {
        self.talk().note(&format!("\n{}", entry.path.display()));
        if let Some(found) = entry.found.as_ref().filter(|found| found.evaluation.is_some()) {
            self.talk().note("kept as it is");
            return Ok(found.clone());
        }
        let mut clock = Clock::default();
        let (written, mut report, devices_of) = match (&entry.found, entry.contender) {
            (None, Some(contender)) => {
                let job = self.job(contender, &entry.path, learned);
                let plan = job.plan()?;
                let job = Job { learned: learned.filter(|_| self.shares(&plan)), ..job };
                let (written, mut report) = job.run(&plan, &mut clock)?;
                report.run = Some(clock.run(Some(self.args.precision.into()), devices(&plan, None)));
                entry.keep(&report)?;
                (written, report, Some(plan))
            }
            (Some(found), _) => (Source::open(&entry.path)?, found.clone(), None),
            (None, None) => {
                let written = Source::open(&entry.path)?;
                let report = self.foreign(&written)?;
                (written, report, None)
            }
        };
        let score = || self.scoring.score(&written, reference, self.talk());
        report.evaluation = Some(clock.time("evaluate", score)?);
        let devices: Vec<_> = match &devices_of {
            Some(plan) => devices(plan, Some(self.scoring)).collect(),
            None => vec![&self.scoring.memory.streaming.device],
        };
        report.run = Some(clock.run(Some(self.args.precision.into()), devices));
        entry.keep(&report)?;
        Ok(report)
    }

    /// What can be told of another program's file.
    fn foreign(&self, written: &Source) -> Result<Report> {
        let mut types = HashMap::<String, u64>::new();
        for spec in &written.specs {
            *types.entry(written.stored_type(spec)).or_default() += written.stored_bytes(spec);
        }
        let most = types.into_iter().max_by_key(|(name, bytes)| (*bytes, name.clone()));
        let file_type = Subject::open(&written.path).ok().and_then(|subject| file_type_name(&subject));
        let scheme = file_type.map(str::to_owned).or(most.map(|(name, _)| name));
        describe_written(written, describe(self.source), (scheme.unwrap_or_default(), None), self.talk())
    }
}

/// What a model's outputs are called after: its folder, or its file without the ending.
fn name_of(path: &Path) -> String {
    let whole = || path.canonicalize().ok()?.file_name().map(ToOwned::to_owned);
    let name = path.file_name().map(ToOwned::to_owned).or_else(whole).unwrap_or_else(|| "model".into());
    let name = name.to_string_lossy();
    match name.strip_suffix(".gguf") {
        Some(stem) if path.is_file() => stem.to_owned(),
        _ => name.into_owned(),
    }
}

/// Whether both are of one model, though its path may be spelled otherwise.
fn same_model(then: &report::Model, now: &report::Model) -> bool {
    let key = |model: &report::Model| (model.family.clone(), model.parameters, model.bytes);
    let place = |model: &report::Model| Path::new(&model.source).canonicalize().ok();
    key(then) == key(now) && (then.source == now.source || place(then) == place(now))
}
