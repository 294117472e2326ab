//! What calibration learned of a model as it is, kept in a folder, so that several outputs are made from one pass of the text.
//!
//! A single output is fitted to the activations that its own quantized layers make ([`super::compress`]). These are of the layers as they
//! are, as an importance matrix is: the same for every output.

use std::collections::BTreeMap;
use std::path::Path;

use attar_checkpoint::atomic::{self, AtomicFolder, Overwrite};
use attar_checkpoint::safetensors::Writer;
use attar_checkpoint::{Container, Dtype, TensorInfo, decode_floats};
use attar_model::{Block, ModelConfig, Precision, Role, Tap, final_norm, while_reading_ahead};
use attar_quant::{Detail, Factor, Settings, Statistics, Sums};
use ndarray::Array2;

use super::Calibration;
use super::compress::{LOOKED_UP, Pass, STAGES};
use super::done::Done;
use super::passage::Passage;
use super::site::NewFolders;
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::{Plan, Treatment};
use crate::source::{Source, rows_and_cols};
use crate::talk::{Talk, human_bytes};

/// The Gram matrices of all taps, on the disk.
pub struct Learned {
    files: Box<dyn Container>,
    tokens: u64,
}

/// The name and the width of every matrix, in the order they are made.
fn grams(config: &ModelConfig) -> Vec<(String, usize)> {
    let layers = (0..config.num_hidden_layers).flat_map(|layer| {
        let sizes = config.of_layer(layer);
        STAGES.map(|tap| (name(layer, tap), sizes.tap_features(tap)))
    });
    layers.chain([(head(), config.tap_features(Tap::HeadIn))]).collect()
}

fn name(layer: usize, tap: Tap) -> String {
    format!("layers.{layer}.{}", tap.as_str())
}

fn head() -> String {
    Tap::HeadIn.as_str().to_owned()
}

impl Learned {
    /// Bytes that a model's matrices take on the disk.
    pub fn bytes(config: &ModelConfig) -> u64 {
        grams(config).iter().map(|(_, features)| 4 * (*features as u64).pow(2)).sum()
    }

    /// Runs the calibration text through the model as `plan` says, and keeps what is learned in a new `folder`; one that is there is taken as it is.
    ///
    /// # Errors
    /// A disk too full, weights that cannot be read.
    pub fn of(
        folder: &Path,
        (source, plan): (&Source, &Plan),
        calibration: &Calibration,
        precision: Precision,
        talk: Talk,
    ) -> Result<Self> {
        let at = || format!("while keeping what calibration learns in `{}`", folder.display());
        if !folder.exists() {
            Self::collect(folder, (source, plan), calibration, precision, talk).doing(at)?;
        }
        let files = attar_checkpoint::open(folder).doing(at)?;
        let sound = |(name, features): &(String, usize)| {
            files
                .info(name)
                .is_some_and(|info| info.shape == [*features, *features] && info.dtype == Dtype::F32)
        };
        if !grams(&source.config).iter().all(sound) {
            return Err(Failure::new("it is of another model").hint("delete it, it is made again")).doing(at);
        }
        Ok(Self { files, tokens: calibration.windows.tokens().len() as u64 })
    }

    fn collect(
        folder: &Path,
        (source, plan): (&Source, &Plan),
        calibration: &Calibration,
        precision: Precision,
        talk: Talk,
    ) -> Result<()> {
        let (config, windows) = (&source.config, &calibration.windows);
        let needed = Self::bytes(config);
        if let Some(free) = atomic::free_bytes(folder).filter(|free| *free < needed) {
            let (needed, free) = (human_bytes(needed), human_bytes(free));
            return Err(Failure::new(format!("it takes {needed}, the disk has {free} left"))
                .hint("make room, or let every output calibrate itself with --calibrate each"));
        }
        let _made = NewFolders::above(folder)?;
        let new = AtomicFolder::create(folder, Overwrite::No)?;
        let info =
            |(name, features): (String, usize)| TensorInfo::new(name, Dtype::F32, &[features, features]);
        let infos: Vec<_> = grams(config).into_iter().map(info).collect();
        let mut writer = Writer::create(new.temp_path(), Overwrite::No, &BTreeMap::new(), &infos, u64::MAX)?;
        let mut write = |name: &str, statistics: Option<Statistics>| -> Result<()> {
            let gram = statistics.as_ref().and_then(Statistics::gram);
            let gram = gram.ok_or_else(|| Failure::new("nothing was summed"))?;
            Ok(writer.write(name, &gram.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?)
        };

        let tokens = windows.tokens();
        let layers = config.num_hidden_layers;
        let stage = talk.stage("calibrating", (tokens.len() * layers) as u64, "tokens x blocks");
        let mut passage = Passage::unquantized(plan, source, windows, precision)?;
        for layer in 0..layers {
            let mut block = Block::load(config, layer, source)?;
            let here = (plan, layer, &mut block);
            passage.observe_all(here, Detail::Gram, |tap, seen| write(&name(layer, tap), seen))?;
            let next = plan.of_layer(layer + 1).map(|tensor| tensor.spec.name.clone()).collect();
            while_reading_ahead(next, source, || passage.finish(&block))?;
            stage.step(tokens.len() as u64, "blocks");
        }
        let wanted = Statistics::with(Detail::Gram, config.tap_features(Tap::HeadIn));
        write(&head(), Some(passage.head(&final_norm(config, source)?, wanted)?))?;
        writer.finish()?;
        new.finish()?;
        stage.done();
        Ok(())
    }

    /// One matrix, in as much detail as is wanted.
    fn read(&self, name: &str, detail: Detail) -> Result<Statistics> {
        let info = self.files.info(name).map(|info| (info.shape[0], info.dtype));
        let (features, dtype) = info.ok_or_else(|| Failure::new(format!("`{name}` is missing")))?;
        let gram = decode_floats(dtype, self.files.bytes(name)?)?;
        self.files.release(name);
        let gram = Array2::from_shape_vec((features, features), gram)?;
        let sums = match detail {
            Detail::Gram => Sums::Gram(gram),
            Detail::Squares => Sums::Squares(gram.diag().to_owned()),
        };
        Ok(Statistics { sums, tokens: self.tokens })
    }
}

impl Pass<'_> {
    /// Compresses every tensor of the plan by what was learned before; no text is run.
    pub(super) fn with_learned(&self, learned: &Learned, done: &mut Done) -> Result<()> {
        let config = &self.source.config;
        let reads_head_input = |role| role != Role::Embedding || config.tie_word_embeddings;
        for tensor in self.plan.outside_blocks() {
            match &tensor.treatment {
                Treatment::Codes(encoding) if reads_head_input(tensor.spec.role) => {
                    let statistics = learned.read(&head(), self.solver.reads())?;
                    let is_both = tensor.spec.role == Role::Embedding;
                    let factor =
                        Factor::new(&statistics, if is_both { LOOKED_UP } else { Settings::default() });
                    self.solve_rows(tensor, encoding, (&factor, None), done, |_, _| Ok(()))?;
                }
                _ => self.without_data(tensor, done, |_, _| Ok(()))?,
            }
        }
        for layer in 0..config.num_hidden_layers {
            for tensor in self.plan.of_layer(layer).filter(|tensor| tensor.spec.tap.is_none()) {
                self.without_data(tensor, done, |_, _| Ok(()))?;
            }
            for tap in STAGES {
                self.tap_learned(learned, layer, tap, done)
                    .doing(|| format!("while quantizing layer {layer}"))?;
            }
        }
        Ok(())
    }

    fn tap_learned(&self, learned: &Learned, layer: usize, tap: Tap, done: &mut Done) -> Result<()> {
        let tensors: Vec<_> = self.plan.of_layer(layer).filter(|t| t.spec.tap == Some(tap)).collect();
        let solver = self.solver_of(tensors.iter().any(|t| t.sparse));
        let solved = tensors.iter().any(|t| t.sparse || matches!(t.treatment, Treatment::Codes(_)));
        let statistics = solved.then(|| learned.read(&name(layer, tap), solver.reads())).transpose()?;
        let factor = statistics.as_ref().map(|statistics| Factor::new(statistics, solver.settings()));
        for tensor in tensors {
            let [rows, cols] = rows_and_cols(&tensor.spec);
            let mut weight = self.load(&tensor.spec)?.into_shape_with_order((rows, cols))?;
            self.matrix(tensor, weight.view_mut(), (factor.as_ref(), None), done)
                .doing(|| format!("while quantizing `{}`", tensor.spec.name))?;
        }
        Ok(())
    }
}
