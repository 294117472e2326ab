//! A GGUF file out of a GGUF file: every tensor and all metadata as they are, in one file or in parts.

use std::path::{Path, PathBuf};

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::gguf::split::is_of_part;
use attar_checkpoint::gguf::{File, Value, Writer};
use attar_checkpoint::{Container, TensorInfo};
use attar_eval::report;

use crate::cli::ConvertArgs;
use crate::commands::deliver::Delivery;
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::site::{NewFolders, Site, part_paths, told_parts};
use crate::pipeline::{Clock, describe, describe_written};
use crate::source::Source;
use crate::talk::{Talk, human_bytes, say};

/// Bytes that are copied together.
const STEP: usize = 16 << 20;

const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";

/// A file to be copied.
pub struct Copy<'a> {
    /// The model.
    pub source: &'a Source,
    /// Its file.
    pub file: &'a File,
    /// What was asked for.
    pub args: &'a ConvertArgs,
    /// Whether an output that exists is replaced.
    pub overwrite: Overwrite,
    /// Where progress is told.
    pub talk: Talk,
}

impl Copy<'_> {
    /// Checks, copies, reopens, compares, reports.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub fn run(&self, delivery: &Delivery, dry_run: bool) -> Result<()> {
        let output = &self.args.output;
        let tensors = self.file.tensors();
        let parts = part_paths(output, tensors, self.args.split_max_size);
        let bytes = tensors.iter().map(|info| info.bytes).sum();
        if dry_run {
            let parts = told_parts(&parts).map_or_else(String::new, |told| format!(", {told}"));
            return say(&format!("{} tensors as they are, {}{parts}\n", tensors.len(), human_bytes(bytes)));
        }
        let (source, path, overwrite) = (self.source, output.as_path(), self.overwrite);
        Site { source, path, parts: &parts, is_gguf: true, overwrite }.check(bytes, || Ok(()))?;
        delivery.check(&[output])?;

        let mut clock = Clock::default();
        let first = parts.first().map_or(path, PathBuf::as_path);
        clock.time("write", || self.write(bytes)).doing(|| format!("while writing `{}`", first.display()))?;
        let written = clock.time("verify", || self.reopen(first))?;
        let what = (source.main_type(), None);
        let mut report = describe_written(&written, describe(source), what, self.talk)?;
        report.tensors = tensors_of(&written);
        report.run = Some(clock.run(None, []));
        delivery.one(&report)
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let kept = self.file.all_metadata().iter().filter(|(key, _)| !is_of_part(key));
        let mut metadata: Vec<_> = kept.cloned().collect();
        if let Some(name) = &self.args.pre_tokenizer {
            metadata.retain(|(key, _)| key != PRE_TOKENIZER);
            metadata.push((PRE_TOKENIZER.to_owned(), Value::from(name.as_str())));
        }
        metadata
    }

    fn write(&self, bytes: u64) -> Result<()> {
        let (path, tensors) = (self.args.output.as_path(), self.file.tensors());
        let _made = NewFolders::above(path)?;
        let most = self.args.split_max_size.unwrap_or(u64::MAX);
        let mut writer = Writer::create_parts(path, self.overwrite, &self.metadata(), tensors, most)?;
        let errand = self.talk.errand("copying", bytes, "bytes");
        for TensorInfo { name, .. } in tensors {
            for part in self.file.bytes(name)?.chunks(STEP) {
                writer.write(name, part)?;
                errand.step(part.len() as u64, "");
            }
            self.file.release(name);
        }
        errand.done();
        Ok(writer.finish()?)
    }

    /// Opens what was written and holds it to the original, byte by byte.
    fn reopen(&self, first: &Path) -> Result<Source> {
        let written = Source::open(first)?;
        let copy = File::open(first)?;
        for TensorInfo { name, .. } in self.file.tensors() {
            if self.file.bytes(name)? != copy.bytes(name)? {
                return Err(Failure::new(format!(
                    "`{}` reads back other bytes for `{name}`",
                    first.display()
                ))
                .hint("the disk may be failing; otherwise this is a bug in attar, please report it"));
            }
            self.file.release(name);
            copy.release(name);
        }
        Ok(written)
    }
}

fn tensors_of(written: &Source) -> Vec<report::Tensor> {
    let tensor = |spec: &attar_model::TensorSpec| report::Tensor {
        name: spec.name.clone(),
        stored_name: Some(written.stored_name(spec).to_owned()),
        role: spec.role.as_str().to_owned(),
        expert: spec.expert.map(|expert| expert.index as u64),
        encoding: written.stored_type(spec),
        bits_per_weight: 8.0 * written.stored_bytes(spec) as f64 / spec.len().max(1) as f64,
        decoded_sha256: written.decoded_sha256(spec).ok(),
        ..report::Tensor::default()
    };
    written.specs.iter().map(tensor).collect()
}
