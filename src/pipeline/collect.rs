//! The sums of squares of what every matrix reads while a text runs through the model as it is: llama.cpp's importance matrix.

use std::collections::BTreeMap;

use attar_checkpoint::imatrix::{Entry, ImportanceMatrix};
use attar_model::{Block, Gated, Precision, Role, Share, Tap, Windows, final_norm, while_reading_ahead};
use attar_quant::{Detail, Statistics};

use super::compress::STAGES;
use super::passage::Passage;
use super::stream::{CHUNK_TOKENS, Stream};
use crate::diagnostic::{Explain, Result};
use crate::plan::{Plan, PlannedTensor};
use crate::source::{Source, rows_and_cols};
use crate::talk::{Stage, Talk};

/// A text on its way through a model.
pub struct Collecting<'a> {
    /// The model.
    pub source: &'a Source,
    /// How it runs.
    pub plan: &'a Plan,
    /// How exactly matrices are multiplied.
    pub precision: Precision,
    /// Whether the head has an entry too, where it has a matrix of its own.
    pub with_head: bool,
    /// Where progress is told.
    pub talk: Talk,
}

/// Entries as they come.
type Entries = BTreeMap<String, Entry>;

/// Sums of one row each, and the tokens behind them, of a stack of experts.
#[derive(Default)]
struct Stack {
    sums: Vec<f32>,
    counts: Vec<u64>,
}

impl Collecting<'_> {
    /// Runs the windows through the model; of an entry for every matrix that multiplies something in a block, as llama-imatrix has it.
    ///
    /// # Errors
    /// Weights that cannot be read, activations that are not finite, hidden states on a disk that fails.
    pub fn run(&self, windows: &Windows) -> Result<ImportanceMatrix> {
        let (config, tokens) = (&self.source.config, windows.tokens().len());
        let layers = config.num_hidden_layers;
        let stage = self.talk.stage("collecting", (tokens * layers) as u64, "tokens x blocks");
        let mut passage = Passage::unquantized(self.plan, self.source, windows, self.precision)?;
        let mut entries = Entries::new();
        for layer in 0..layers {
            self.block(layer, &mut passage, &stage, &mut entries)
                .doing(|| format!("while running layer {layer}"))?;
        }
        let head = self.plan.outside_blocks().find(|tensor| tensor.spec.role == Role::Head);
        if let Some(head) = head.filter(|_| self.with_head) {
            let wanted = Statistics::with(Detail::Squares, config.tap_features(Tap::HeadIn));
            let statistics = passage.head(&final_norm(config, self.source)?, wanted)?;
            keep(&mut entries, &head.spec.gguf_name, &statistics)?;
        }
        stage.done();
        let (chunk_count, chunk_size) = (windows.count() as u32, Some(windows.ctx() as u32));
        Ok(ImportanceMatrix { entries, chunk_count, chunk_size, ..ImportanceMatrix::default() })
    }

    /// Stage by stage through one block.
    fn block(&self, layer: usize, passage: &mut Passage, stage: &Stage, entries: &mut Entries) -> Result<()> {
        let config = &self.source.config;
        let tokens = self.plan.calibration.map_or(0, |size| size.tokens as u64);
        let mut block = Block::load_without_experts(config, layer, self.source)?;
        for tap in STAGES {
            if tap == Tap::MlpIn && block.experts().is_some() {
                self.experts(layer, &block, passage.here()?, entries)?;
                stage.step(tokens, "experts");
                return Ok(());
            }
            let wanted = Statistics::with(Detail::Squares, config.of_layer(layer).tap_features(tap));
            let statistics = passage.observe(&block, tap, Some(wanted))?;
            for tensor in self.readers(layer, tap) {
                if let Some(statistics) = &statistics {
                    keep(entries, &tensor.spec.gguf_name, statistics)?;
                }
                passage.settle(&mut block, tensor.spec.role)?;
            }
        }
        while_reading_ahead(self.plan.first_of(layer + 1), self.source, || passage.finish(&block))?;
        stage.step(tokens, "blocks");
        Ok(())
    }

    /// The matrices that read what comes to a tap, experts aside.
    fn readers(&self, layer: usize, tap: Tap) -> impl Iterator<Item = &PlannedTensor> {
        self.plan.of_layer(layer).filter(move |t| t.spec.tap == Some(tap) && t.spec.expert.is_none())
    }

    /// From the attention's output to the next block's input, through a layer's experts, one at a time.
    fn experts(&self, layer: usize, block: &Block, stream: &mut Stream, entries: &mut Entries) -> Result<()> {
        let Some(experts) = block.experts() else { return Ok(()) };
        let mut routed = Statistics::with(Detail::Squares, self.source.config.hidden_size);
        let shares = stream.route(block, experts.router(), |x| routed.observe_in(x, self.precision))?;
        for tensor in self.readers(layer, Tap::MlpIn) {
            keep(entries, &tensor.spec.gguf_name, &routed)?;
        }
        let mut stacks = BTreeMap::<String, Stack>::new();
        for (index, share) in shares.iter().enumerate() {
            let expert =
                self.plan.of_layer(layer).filter(|t| t.spec.expert.is_some_and(|e| e.index == index));
            let [read, made] = self.expert((layer, index), share, stream)?;
            for tensor in expert {
                let seen = if tensor.spec.tap == Some(Tap::MlpMid) { &made } else { &read };
                let stack = stacks.entry(tensor.spec.gguf_name.clone()).or_default();
                stack.sums.extend(seen.sums.squares());
                stack.counts.push(seen.tokens);
                debug_assert_eq!(rows_and_cols(&tensor.spec)[1], seen.in_features());
            }
        }
        stream.leave_experts();
        for (name, Stack { sums, counts }) in stacks {
            let entry = Entry::new(&name, sums, counts)?;
            entries.insert(name, entry);
        }
        Ok(())
    }

    /// Runs the tokens that are sent to an expert: what its gate and up read, and what its down reads.
    fn expert(
        &self,
        (layer, index): (usize, usize),
        share: &Share,
        stream: &mut Stream,
    ) -> Result<[Statistics; 2]> {
        let config = &self.source.config;
        let width = config.experts.as_ref().map_or(0, |experts| experts.moe_intermediate_size);
        let mut read = Statistics::with(Detail::Squares, config.hidden_size);
        let mut made = Statistics::with(Detail::Squares, width);
        if share.is_empty() {
            return Ok([read, made]);
        }
        let mut expert = Gated::load_expert(config, layer, index, self.source)?;
        for role in [Role::Gate, Role::Up, Role::Down] {
            expert.pack_role(role, self.precision);
        }
        for (rows, weights) in share.rows.chunks(CHUNK_TOKENS).zip(share.weights.chunks(CHUNK_TOKENS)) {
            let x = stream.experts_in(rows)?;
            read.observe_in(x.view(), self.precision);
            let mid = expert.mid(x.view());
            made.observe_in(mid.view(), self.precision);
            stream.add_expert(rows, weights, &expert.out(mid.view()))?;
        }
        Ok([read, made])
    }
}

fn keep(entries: &mut Entries, name: &str, seen: &Statistics) -> Result<()> {
    let entry = Entry::new(name, seen.sums.squares().to_vec(), vec![seen.tokens]);
    let entry = entry.hint(|| "the model makes numbers that are not finite of this text; attar eval shows where its predictions fail")?;
    entries.insert(name.to_owned(), entry);
    Ok(())
}
