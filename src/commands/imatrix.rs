//! `attar imatrix`: what every matrix of a model reads, as llama.cpp writes it down.

use std::fmt::Write as _;
use std::path::Path;

use attar_checkpoint::atomic;
use attar_checkpoint::imatrix::{self, CHUNK_SIZE, ImportanceMatrix, Layout};
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::{Convention, Report, report};
use attar_model::Windows;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::cli::{Global, ImatrixArgs};
use crate::data;
use crate::device;
use crate::diagnostic::{Explain, Failure, Result};
use crate::imatrix::check_belongs;
use crate::pipeline::collect::Collecting;
use crate::pipeline::site::NewFolders;
use crate::pipeline::verify::Facts;
use crate::pipeline::{Clock, describe};
use crate::plan::{CalibrationSize, Plan};
use crate::source::Source;
use crate::talk::{human_bytes, say, thousands};
use crate::text::{self, Text, hex};

/// Texts that count alike and run together.
struct Run {
    weight: f64,
    names: Vec<String>,
    windows: Windows,
}

/// A model, its texts, and how they run.
struct Work {
    source: Source,
    runs: Vec<(Run, Plan)>,
    sha256: String, // of the texts
}

/// Runs the texts, adds what there is already, writes, reads back, reports.
///
/// # Errors
/// Whatever kept it from being done; what can be found out early is.
pub fn run(args: &ImatrixArgs, global: &Global) -> Result<()> {
    let delivery = global.delivery();
    let mut matrix = args.earlier(global)?;
    let work = args.model.as_deref().map(|model| args.work(model, global)).transpose()?;
    if let Some(work) = work.as_ref().filter(|_| !args.merge.is_empty()) {
        check_belongs(&matrix, &work.source).doing(|| "while matching what is merged with the model")?;
    }
    if global.dry_run {
        return say(&plan(work.as_ref(), &matrix));
    }
    args.check_output(global)?;
    delivery.check(&[&args.output])?;

    let mut clock = Clock::default();
    for (run, plan) in work.iter().flat_map(|work| &work.runs) {
        let collected = clock.time("collect", || args.collect(run, plan, work.as_ref(), global))?;
        matrix.merge(collected)?;
    }
    clock.time("write", || args.write(&matrix, global))?;
    let facts = Facts::of(&args.output, global.talk())?;
    let report = args.report(work.as_ref(), &matrix, &clock);
    delivery.in_files_with(&report, "imatrix", &args.in_json(&matrix, &facts))?;
    say(&args.summary(&matrix, &facts))
}

impl ImatrixArgs {
    /// The matrices to be added to, as one.
    fn earlier(&self, global: &Global) -> Result<ImportanceMatrix> {
        let mut all = ImportanceMatrix { chunk_size: self.ctx, ..ImportanceMatrix::default() };
        for path in &self.merge {
            let at = || format!("while merging `{}`", path.display());
            let next = ImportanceMatrix::read(path).doing(at)?;
            if let (Some(own), Some(other)) = (all.chunk_size, next.chunk_size)
                && own != other
            {
                let path = path.display();
                global
                    .talk()
                    .note(&format!("`{path}` was collected on chunks of {other} tokens, others of {own}"));
            }
            all.merge(next).doing(at).hint(|| "only matrices of one model can be merged")?;
        }
        Ok(all)
    }

    /// Opens the model, cuts the texts, plans their way.
    fn work(&self, model: &Path, global: &Global) -> Result<Work> {
        let talk = global.talk();
        let source = Source::open(model)?;
        if source.is_quantized() {
            talk.warn("the weights are quantized: collected is what they make of the text, not what the full-precision model does");
        }
        if self.process_output && source.config.tie_word_embeddings {
            talk.warn("the head is the embedding: as in llama.cpp it has no entry");
        }
        let tokenizer = source.tokenizer()?;
        let computer = global.computer(&[&source.config])?;
        let (runs, sha256) = self.runs(&source, &tokenizer, global)?;
        let planned = |run: Run| {
            let size = CalibrationSize { tokens: run.windows.tokens().len(), ctx: run.windows.ctx() };
            let plan =
                Plan::of_collecting(&source, size, self.precision.into(), &computer, global.max_memory)?;
            Ok((run, plan))
        };
        let runs = runs.into_iter().map(planned).collect::<Result<_>>()?;
        Ok(Work { source, runs, sha256 })
    }

    /// The texts in chunks, those of one weight together, and the SHA-256 of their files.
    fn runs(&self, source: &Source, tokenizer: &Tokenizer, global: &Global) -> Result<(Vec<Run>, String)> {
        let most = source.config.max_position_embeddings.max(1);
        let ctx = self.ctx.map_or((CHUNK_SIZE as usize).min(most), |ctx| ctx as usize);
        let end = source.config.eos_token_ids.first().copied();
        let mut hash = Sha256::new();
        let mut runs = Vec::<Run>::new();
        let mut add = |weight: f64, name: String, tokens: &[u32]| -> Result<()> {
            let windows = text::cut(tokens, &name, tokenizer, (ctx, Convention::LlamaCpp, self.chunks))?;
            match runs.iter_mut().find(|run| run.weight.total_cmp(&weight).is_eq()) {
                Some(run) => {
                    let together = [run.windows.tokens(), windows.tokens()].concat();
                    run.windows = Windows::new(ctx, together);
                    run.names.push(name);
                }
                None => runs.push(Run { weight, names: vec![name], windows }),
            }
            Ok(())
        };
        if self.text.is_empty() {
            for built_in in Text::to_calibrate(&[])? {
                hash.update(built_in.content.as_bytes());
                let trimmed = Convention::LlamaCpp.trim(&built_in.content);
                add(1.0, built_in.name, &tokenizer.encode(trimmed)?)?;
            }
        }
        for file in &self.text {
            hash.update(Text::read(&file.path)?.content.as_bytes());
            let tokens = data::tokens(&file.path, tokenizer, end, self.parse_special, global.talk())?;
            add(file.weight, file.path.display().to_string(), &tokens)?;
        }
        Ok((runs, hex(&hash.finalize())))
    }

    /// What one run tells, weighed.
    fn collect(
        &self,
        run: &Run,
        plan: &Plan,
        work: Option<&Work>,
        global: &Global,
    ) -> Result<ImportanceMatrix> {
        let Some(work) = work else { return Ok(ImportanceMatrix::default()) };
        let collecting = Collecting {
            source: &work.source,
            plan,
            precision: self.precision.into(),
            with_head: self.process_output,
            talk: global.talk(),
        };
        let mut matrix = collecting.run(&run.windows)?;
        matrix.weigh(run.weight);
        matrix.datasets.clone_from(&run.names);
        let tokens = run.windows.tokens().iter().flat_map(|token| token.to_le_bytes());
        matrix.sha256 = vec![hex(&Sha256::digest(tokens.collect::<Vec<_>>()))];
        Ok(matrix)
    }

    /// What would keep the output from being written.
    fn check_output(&self, global: &Global) -> Result<()> {
        let at = || format!("while preparing `{}`", self.output.display());
        if self.output.is_dir() {
            return Err(Failure::new("a folder is in the way").hint("name a file")).doing(at);
        }
        if self.output.exists() && !global.force {
            return Err(Failure::new(format!("`{}` exists already", self.output.display()))
                .hint("--force replaces it, or name another output"));
        }
        if self.output.exists() && imatrix::layout_at(&self.output).is_none() {
            return Err(Failure::new(
                "what is there is no importance matrix, and --force replaces no other file",
            )
            .hint("name another output"))
            .doing(at);
        }
        let _tried = NewFolders::above(&self.output).doing(at)?;
        Ok(atomic::check_writable(&self.output)?)
    }

    /// Writes, and reads back.
    fn write(&self, matrix: &ImportanceMatrix, global: &Global) -> Result<()> {
        let at = || format!("while writing `{}`", self.output.display());
        let layout = Layout::of_name(&self.output);
        let _made = NewFolders::above(&self.output).doing(at)?;
        matrix.write(&self.output, global.overwrite(), layout).doing(at)?;
        let read = ImportanceMatrix::read(&self.output).doing(at)?;
        let same = match layout {
            Layout::Gguf => {
                let sums = |matrix: &ImportanceMatrix| -> Vec<_> {
                    matrix.entries.iter().map(|(name, entry)| (name.clone(), entry.sums().to_vec())).collect()
                };
                sums(&read) == sums(matrix)
            }
            // It keeps means, and not of entries that no token reached.
            Layout::Dat => read.entries.keys().all(|name| matrix.entries.contains_key(name)),
        };
        if !same {
            return Err(Failure::new("it reads back otherwise than it was written")
                .hint("the disk may be failing; otherwise this is a bug in attar, please report it"))
            .doing(at);
        }
        Ok(())
    }

    fn report(&self, work: Option<&Work>, matrix: &ImportanceMatrix, clock: &Clock) -> Report {
        let output = self.output.display().to_string();
        let of_files = || report::Model {
            source: output,
            family: "imatrix".to_owned(),
            parameters: 0,
            bytes: 0,
            quantized_as: None,
        };
        let mut report = Report::new(work.map_or_else(of_files, |work| describe(&work.source)));
        report.calibration = work.map(|work| report::Calibration {
            files: work.runs.iter().flat_map(|(run, _)| run.names.clone()).collect(),
            sha256: work.sha256.clone(),
            tokens: work.runs.iter().map(|(run, _)| run.windows.tokens().len() as u64).sum(),
            ctx: matrix.chunk_size.unwrap_or(CHUNK_SIZE).into(),
            ..report::Calibration::default()
        });
        let devices = work.iter().flat_map(|work| &work.runs).map(|(_, plan)| &plan.device);
        report.run = Some(clock.run(work.map(|_| self.precision.into()), devices));
        report
    }

    fn in_json(&self, matrix: &ImportanceMatrix, facts: &Facts) -> serde_json::Value {
        json!({
            "path": self.output,
            "layout": Layout::of_name(&self.output).name(),
            "bytes": facts.bytes,
            "sha256": facts.sha256,
            "entries": matrix.entries.len(),
            "chunk_count": matrix.chunk_count,
            "chunk_size": matrix.chunk_size,
            "datasets": matrix.datasets,
            "tokens_sha256": matrix.sha256,
        })
    }

    /// What was written, and which experts no token reached.
    fn summary(&self, matrix: &ImportanceMatrix, facts: &Facts) -> String {
        let (entries, bytes) = (matrix.entries.len(), human_bytes(facts.bytes));
        let mut text = format!("{}: {entries} entries, {}, {bytes}\n", self.output.display(), chunks(matrix));
        for (name, entry) in &matrix.entries {
            let missed = entry.counts().iter().filter(|count| **count == 0).count();
            if missed > 0 {
                let of = entry.counts().len();
                let _ = writeln!(text, "{name}: no token reached {missed} of its {of} experts"); // a String never fails
            }
        }
        text
    }
}

fn chunks(matrix: &ImportanceMatrix) -> String {
    let (count, size) = (matrix.chunk_count, matrix.chunk_size.unwrap_or(CHUNK_SIZE));
    format!("{} chunks of {size} tokens", thousands(count.into()))
}

/// What would be done.
fn plan(work: Option<&Work>, matrix: &ImportanceMatrix) -> String {
    let mut text = String::new();
    if !matrix.entries.is_empty() {
        let _ = writeln!(text, "merged: {} entries, {}", matrix.entries.len(), chunks(matrix)); // a String never fails
    }
    for (run, plan) in work.iter().flat_map(|work| &work.runs) {
        let (tokens, ctx, count) = (run.windows.tokens().len(), run.windows.ctx(), run.windows.count());
        let tokens = thousands(tokens as u64);
        let weight = if run.weight.total_cmp(&1.0).is_eq() {
            String::new()
        } else {
            format!(", counted {} times", run.weight)
        };
        let names = run.names.join(", ");
        let _ = writeln!(text, "{names}: {tokens} tokens in {count} chunks of {ctx}{weight}");
        let _ = writeln!(text, "{}{}", device::Lines(&plan.device), plan.memory);
    }
    text
}
