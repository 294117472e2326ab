//! A student that is cut out of its teacher, in the same command, before it learns.
//!
//! It lies beside the output until the student has learned, so that a run that is taken up again finds it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::{Report, report};
use clap::{Args as _, FromArgMatches as _};
use serde::{Deserialize, Serialize};

use crate::cli::{CALIB_TOKENS, DistillArgs, Global, PruneArgs};
use crate::commands::CalibrationRequest;
use crate::commands::prune::Order;
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::prune::{PruneJob, PrunePlan};
use crate::pipeline::teacher::Original;
use crate::pipeline::{Calibration, Clock, refuse_quantized};
use crate::source::Source;

/// The schema of [`Facts`].
const SCHEMA: &str = "attar-cut/1";

/// Where they stand in the folder of the student.
const FACTS: &str = "cut.json";

/// What is kept of how a student was cut, beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Facts {
    schema: String,
    order: String,
    pruning: report::Pruning,
    calibration: Option<report::Calibration>,
}

impl Facts {
    fn read(folder: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(folder.join(FACTS))?)?)
    }

    /// Says in a report of the student that has learned what it was made of.
    pub fn tell(self, report: &mut Report) {
        (report.pruning, report.calibration) = (Some(self.pruning), self.calibration);
    }
}

impl DistillArgs {
    /// What `attar prune` would be told to cut the student, where it is not there yet.
    ///
    /// # Errors
    /// A teacher of which nothing can be cut.
    pub fn cut(&self, original: &Original) -> Result<Option<PruneArgs>> {
        if !self.init_from_teacher {
            return Ok(None);
        }
        let Original::Model(teacher) = original else {
            return Err(Failure::new("a teacher cache has no layers that a student could be cut out of")
                .hint("give the teacher itself in place of its cache"));
        };
        refuse_quantized(teacher)?;
        let [mut output, model] = [OsString::from("--output="), teacher.path.clone().into()];
        output.push(cut_of(&self.output));
        let command = PruneArgs::augment_args(clap::Command::new("prune").no_binary_name(true));
        let matches = command.try_get_matches_from([output, "--".into(), model])?;
        let mut args = PruneArgs::from_arg_matches(&matches)?;
        args.shape = self.shape.clone();
        args.calib = self.texts()?;
        Ok(Some(args))
    }

    /// The texts that the student is cut by.
    fn texts(&self) -> Result<Vec<PathBuf>> {
        let is_plain =
            |path: &&PathBuf| !path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl"));
        if !self.calib.is_empty() {
            return Ok(self.calib.clone());
        }
        let data = self.data.iter().map(|file| &file.path);
        match data.clone().find(|path| !is_plain(path)) {
            Some(path) => Err(Failure::new(format!(
                "a student is cut by plain text, and `{}` holds JSON lines",
                path.display()
            ))
            .hint("give plain text with --calib")),
            None => Ok(data.cloned().collect()),
        }
    }
}

/// The folder of the student on the way to `output`.
fn cut_of(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".student");
    output.with_file_name(name)
}

/// A student that is to be cut, or was when the run was begun that is taken up.
pub struct Cutting<'a> {
    order: Order<'a>,
    args: &'a PruneArgs,
    global: &'a Global,
    tokenizer: Tokenizer,
    calibration: Calibration,
    kept: bool, // from a run that is taken up
}

impl<'a> Cutting<'a> {
    /// Holds what is asked for to the teacher, reads the text it is cut by, and looks for what was cut before where that is to be
    /// taken up.
    ///
    /// # Errors
    /// A shape that the teacher cannot have, texts that cannot be read, a student that was cut otherwise.
    pub fn open(args: &'a PruneArgs, teacher: &'a Source, resume: bool, global: &'a Global) -> Result<Self> {
        let order = Order::new(args, teacher)?;
        let tokenizer = teacher.tokenizer()?;
        let request =
            CalibrationRequest { files: &args.calib, tokens: CALIB_TOKENS, ctx: args.ctx, seed: None };
        let calibration = request.read(teacher, &tokenizer)?;
        let kept = resume && args.output.exists();
        let cutting = Self { order, args, global, tokenizer, calibration, kept };
        if kept {
            cutting.check_kept()?;
        }
        Ok(cutting)
    }

    /// The teacher's, which is the student's.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether the student was cut before.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    fn job(&self) -> PruneJob<'_> {
        self.order.job(Some(&self.tokenizer), Some(&self.calibration), self.global)
    }

    /// What will happen.
    ///
    /// # Errors
    /// As [`PruneJob::plan`].
    pub fn plan(&self) -> Result<PrunePlan> {
        self.job().plan()
    }

    /// The student, which may have to be written first: of a search one of those that may come of it.
    ///
    /// # Errors
    /// As [`PruneJob::promises`].
    pub fn student(&self, plan: &PrunePlan) -> Result<Source> {
        if self.kept {
            return Source::open(&self.args.output);
        }
        let promised = self.job().promises(plan)?.into_iter().next();
        promised.ok_or_else(|| Failure::new("there is no shape that the student could have"))
    }

    /// What would keep the student from being cut.
    ///
    /// # Errors
    /// As [`PruneJob::check`]; one of a run that was not finished, where none is taken up.
    pub fn check(&self, plan: &PrunePlan) -> Result<()> {
        let folder = &self.args.output;
        if self.kept {
            return Ok(());
        }
        if folder.join(FACTS).is_file() && self.global.overwrite() == Overwrite::No {
            return Err(Failure::new(format!(
                "`{}` keeps the student of a run that was not finished",
                folder.display()
            ))
            .hint("--resume goes on with it, --force begins anew"));
        }
        self.job().check(plan)
    }

    /// Cuts the student, unless that was done before.
    ///
    /// # Errors
    /// As [`PruneJob::run`].
    pub fn run(&self, clock: &mut Clock) -> Result<(Source, Facts)> {
        let folder = &self.args.output;
        if self.kept {
            return Ok((Source::open(folder)?, Facts::read(folder)?));
        }
        let (written, report) = self.job().run(clock)?;
        let pruning = report.pruning.ok_or_else(|| Failure::new("nothing was cut"))?;
        let (schema, order) = (SCHEMA.to_owned(), self.fingerprint());
        let facts = Facts { schema, order, pruning, calibration: report.calibration };
        std::fs::write(folder.join(FACTS), serde_json::to_vec_pretty(&facts)?)
            .doing(|| format!("while writing how `{}` was cut", folder.display()))?;
        Ok((written, facts))
    }

    /// Holds what was cut before to how it would be cut now.
    fn check_kept(&self) -> Result<()> {
        let folder = &self.args.output;
        let at = || format!("while taking up the student kept in `{}`", folder.display());
        if !folder.join(FACTS).is_file() {
            return Err(Failure::new("it is none that attar distill cut, or not all of it")
                .hint("move it away, or give --force instead of --resume to begin anew"))
            .doing(at);
        }
        let facts = Facts::read(folder).doing(at)?;
        if facts.schema != SCHEMA || facts.order != self.fingerprint() {
            return Err(Failure::new("it was cut to another shape, out of another teacher or by other text")
                .hint("give the command it was begun with, or --force instead of --resume to begin anew"))
            .doing(at);
        }
        Ok(())
    }

    /// All that decides what is cut, in words.
    fn fingerprint(&self) -> String {
        let (PruneArgs { model, shape, .. }, facts) = (self.args, &self.calibration.facts);
        format!("{} {shape:?} {} {} {}", model.display(), facts.sha256, facts.tokens, facts.ctx)
    }

    /// Removes the student: what became of it is written and reported.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub fn close(&self) -> Result<()> {
        let folder = &self.args.output;
        std::fs::remove_dir_all(folder).doing(|| format!("while removing `{}`", folder.display()))
    }
}
