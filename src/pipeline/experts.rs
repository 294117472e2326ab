//! The experts of one layer, one at a time: its tokens' Gram matrix, gate and up, the Gram matrix of what the quantized
//! gate and up make of them, down, and its share of the block's output.
//!
//! At no time does more than one expert stand in memory, nor the statistics of more than one matrix, however many
//! experts a layer has. Routing is natural: an expert is fitted to the tokens the router sends to it, each by what the expert counts for
//! there, and where these are few to some of all tokens besides.

use attar_eval::report;
use attar_model::{Block, Gated, Precision, Role, Share, while_reading_ahead};
use attar_quant::{Detail, Factor, Statistics};
use ndarray::Array2;

use super::compress::Pass;
use super::done::Done;
use super::stream::{CHUNK_TOKENS, Stream};
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::{PlannedTensor, Treatment};

/// Tokens per column that an expert is shown besides its own where these are too few.
const STAND_INS_PER_COLUMN: usize = 8;

/// Tokens per column from which on an expert is shown its own only.
const ENOUGH_PER_COLUMN: usize = 8;

/// Own tokens per column that those count for. Divergence of fixtures/books-2m made into a Mixtral of 8 experts, w3a16-g64 on 2,048 tokens:
/// 0.0245 with none, 0.0232 so, 0.0237 with 1; into a Qwen3-MoE of 16 0.0339, 0.0325, 0.0330.
const OTHERS_PER_COLUMN: f32 = 0.25;

impl Pass<'_> {
    /// From the attention's output to the next block's input, through a layer's experts.
    pub(super) fn experts(
        &self,
        layer: usize,
        block: &Block,
        stream: &mut Stream,
        done: &mut Done,
    ) -> Result<()> {
        let Some(experts) = block.experts() else { return Ok(()) };
        let shares = done.calibrating(|| stream.route(block, experts.router(), |_| ()))?;
        let expert_tokens = shares.iter().map(|share| share.rows.len() as u64).collect();
        done.routing.push(report::Routing { layer: layer as u64, expert_tokens });

        let mut planned: Vec<Vec<&PlannedTensor>> = vec![Vec::new(); shares.len()];
        for tensor in self.plan.of_layer(layer) {
            if let Some(expert) = tensor.spec.expert {
                planned[expert.index].push(tensor);
            }
        }
        for (index, share) in shares.into_iter().enumerate() {
            let expert = Gated::load_expert(&self.source.config, layer, index, self.source)?;
            let next = match planned.get(index + 1) {
                Some(next) => next.iter().map(|t| t.spec.name.clone()).collect(),
                None => self.plan.first_of(layer + 1),
            };
            let running = Running { pass: self, expert, planned: &planned[index], share: &share };
            while_reading_ahead(next, self.source, || running.run(stream, done))?;
        }
        stream.leave_experts();
        Ok(())
    }
}

/// Tokens that go together, with what the expert's output counts for in each.
fn batches<'a>(rows: &'a [usize], weights: &'a [f32]) -> impl Iterator<Item = (&'a [usize], &'a [f32])> {
    rows.chunks(CHUNK_TOKENS).zip(weights.chunks(CHUNK_TOKENS))
}

/// What an input of an expert is like: on the tokens sent to it, each as much as its output counts there, and on some of all.
struct Observed {
    own: Statistics,
    others: Statistics,
    precision: Precision,
}

impl Observed {
    fn new(detail: Detail, features: usize, precision: Precision) -> Self {
        let [own, others] = [(); 2].map(|()| Statistics::with(detail, features));
        Self { own, others, precision }
    }

    fn own(&mut self, mut x: Array2<f32>, weights: &[f32]) {
        x.rows_mut().into_iter().zip(weights).for_each(|(mut row, &weight)| row *= weight);
        self.own.observe_in(x.view(), self.precision);
    }

    fn of_others(&mut self, x: &Array2<f32>) {
        self.others.observe_in(x.view(), self.precision);
    }

    /// Both, the second as if it were of [`OTHERS_PER_COLUMN`] tokens per column, as large as the own ones are.
    fn together(mut self) -> Statistics {
        if self.others.tokens == 0 {
            return self.own;
        }
        if self.own.tokens == 0 {
            return self.others;
        }
        let mean = |of: &Statistics| of.sums.squares().sum() / of.tokens as f32;
        let counted = OTHERS_PER_COLUMN * self.own.in_features() as f32 / self.others.tokens as f32;
        self.others.scale(counted * mean(&self.own) / mean(&self.others).max(f32::MIN_POSITIVE));
        let tokens = self.own.tokens;
        self.own.merge(&self.others);
        self.own.tokens = tokens;
        self.own
    }
}

/// One expert while it is quantized.
struct Running<'a> {
    pass: &'a Pass<'a>,
    expert: Gated,
    planned: &'a [&'a PlannedTensor],
    share: &'a Share,
}

impl Running<'_> {
    /// Some of all tokens, evenly spaced, for an expert that is sent too few to tell what its inputs of up to `columns` are like.
    fn stand_ins(&self, tokens: usize, columns: usize) -> Vec<usize> {
        if self.share.rows.len() >= ENOUGH_PER_COLUMN * columns {
            return Vec::new();
        }
        let count = STAND_INS_PER_COLUMN * columns;
        (0..tokens).step_by(tokens.div_ceil(count.clamp(1, tokens.max(1))).max(1)).collect()
    }

    fn run(mut self, stream: &mut Stream, done: &mut Done) -> Result<()> {
        let sparse = self.planned.iter().any(|t| t.sparse);
        let solved = sparse || self.planned.iter().any(|t| matches!(t.treatment, Treatment::Codes(_)));
        let Share { rows, weights } = self.share;
        let config = &self.pass.source.config;
        let width = config.experts.as_ref().map_or(0, |experts| experts.moe_intermediate_size);
        let others =
            if solved { self.stand_ins(stream.tokens(), config.hidden_size.max(width)) } else { Vec::new() };

        let pass = self.pass;
        let observed = |features, stream: &Stream, read: &mut dyn FnMut(Array2<f32>) -> Array2<f32>| {
            let mut observed = Observed::new(pass.solver_of(sparse).reads(), features, pass.precision);
            for (rows, weights) in batches(rows, weights) {
                observed.own(read(stream.experts_in(rows)?), weights);
            }
            for rows in others.chunks(CHUNK_TOKENS) {
                observed.of_others(&read(stream.experts_in(rows)?));
            }
            Ok::<_, Failure>(observed.together())
        };

        let mut as_it_is = |x| x;
        let observe = || observed(config.hidden_size, stream, &mut as_it_is);
        let statistics = solved.then(|| done.calibrating(observe)).transpose()?;
        self.matrices(&[Role::Gate, Role::Up], statistics.as_ref(), others.len(), done)?;
        drop(statistics);

        // Those of its own tokens come first.
        let (mut mids, keep) = (Vec::new(), rows.len().div_ceil(CHUNK_TOKENS));
        let keep = if pass.plan.memory.carry.mlp_mid { keep } else { 0 };
        let mut through = |x: Array2<f32>| {
            let mid = self.expert.mid(x.view());
            if mids.len() < keep {
                mids.push(mid.clone());
            }
            mid
        };
        let observe = || observed(width, stream, &mut through);
        let statistics = solved.then(|| done.calibrating(observe)).transpose()?;
        self.matrices(&[Role::Down], statistics.as_ref(), others.len(), done)?;
        drop(statistics);

        let mut mids = mids.into_iter();
        done.calibrating(|| {
            batches(rows, weights).try_for_each(|(rows, weights)| {
                let mid = match mids.next() {
                    Some(mid) => mid,
                    None => self.expert.mid(stream.experts_in(rows)?.view()),
                };
                Ok(stream.add_expert(rows, weights, &self.expert.out(mid.view()))?)
            })
        })
    }

    /// Quantizes the matrices that read one input.
    fn matrices(
        &mut self,
        roles: &[Role],
        statistics: Option<&Statistics>,
        others: usize,
        done: &mut Done,
    ) -> Result<()> {
        let solver = self.pass.solver_of(self.planned.iter().any(|t| t.sparse));
        let factor = statistics.map(|statistics| Factor::new(statistics, solver.settings()));
        let is_starved = self.share.is_empty();
        for tensor in self.planned.iter().filter(|t| roles.contains(&t.spec.role)) {
            let mut tensor = (*tensor).clone();
            let solved = tensor.sparse || matches!(tensor.treatment, Treatment::Codes(_));
            if others > 0 && solved {
                let why = match self.share.rows.len() {
                    0 => format!("no token was sent to this expert: fitted to {others} of all tokens"),
                    own => {
                        format!("{own} tokens were sent to this expert: fitted to {others} of all besides")
                    }
                };
                tensor.fallback =
                    Some(tensor.fallback.map_or(why.clone(), |shape| format!("{shape}; {why}")));
            }
            let weight = self.expert.weight_mut(tensor.spec.role);
            self.pass
                .matrix(&tensor, weight, (factor.as_ref(), None), done)
                .doing(|| format!("while quantizing `{}`", tensor.spec.name))?;
            // From here on it is only multiplied by.
            self.expert.pack_role(tensor.spec.role, self.pass.precision);
            if let Some(report) = done.last().filter(|_| is_starved && solved) {
                report.tokens_per_column = Some(0.0);
            }
        }
        Ok(())
    }
}
