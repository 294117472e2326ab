//! The experts of one layer, one at a time: its tokens' Gram matrix, gate and up, the Gram matrix of what the quantized
//! gate and up make of them, down, and its share of the block's output.
//!
//! At no time does more than one expert stand in memory, nor the statistics of more than one matrix, however many
//! experts a layer has. Routing is natural: an expert is fitted to the tokens the router sends to it.

use std::borrow::Cow;

use attar_eval::report;
use attar_model::{Block, Gated, Role, Share, while_reading_ahead};
use attar_quant::{Factor, Statistics};

use super::compress::Pass;
use super::done::Done;
use super::stream::{CHUNK_TOKENS, Stream};
use crate::diagnostic::{Explain, Result};
use crate::plan::{PlannedTensor, Treatment};

/// Tokens per column that an expert without any is shown instead of its own.
const STAND_INS_PER_COLUMN: usize = 8;

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

/// `count` of all rows, evenly spaced, for an expert that is sent none.
fn stand_ins(rows: usize, count: usize) -> Vec<usize> {
    let step = rows.div_ceil(count.clamp(1, rows.max(1))).max(1);
    (0..rows).step_by(step).collect()
}

/// One expert while it is quantized.
struct Running<'a> {
    pass: &'a Pass<'a>,
    expert: Gated,
    planned: &'a [&'a PlannedTensor],
    share: &'a Share,
}

impl Running<'_> {
    fn run(mut self, stream: &mut Stream, done: &mut Done) -> Result<()> {
        let sparse = self.planned.iter().any(|t| t.sparse);
        let solved = sparse || self.planned.iter().any(|t| matches!(t.treatment, Treatment::Codes(_)));
        let Share { rows, weights } = self.share;
        let config = &self.pass.source.config;
        let width = config.experts.as_ref().map_or(0, |experts| experts.moe_intermediate_size);
        let shown = if rows.is_empty() && solved {
            Cow::Owned(stand_ins(stream.tokens(), STAND_INS_PER_COLUMN * config.hidden_size.max(width)))
        } else {
            Cow::Borrowed(rows)
        };

        let detail = self.pass.solver_of(sparse).reads();
        let mut statistics = solved.then(|| Statistics::with(detail, config.hidden_size));
        if let Some(statistics) = &mut statistics {
            done.calibrating(|| {
                shown.chunks(CHUNK_TOKENS).try_for_each(|batch| -> Result<()> {
                    statistics.observe_in(stream.experts_in(batch)?.view(), self.pass.precision);
                    Ok(())
                })
            })?;
        }
        self.matrices(&[Role::Gate, Role::Up], statistics.as_ref(), shown.len(), done)?;
        drop(statistics);

        let mut statistics = solved.then(|| Statistics::with(detail, width));
        let mut mids = Vec::new();
        let keep = !rows.is_empty() && self.pass.plan.memory.carry.mlp_mid;
        if let Some(statistics) = &mut statistics {
            done.calibrating(|| {
                shown.chunks(CHUNK_TOKENS).try_for_each(|batch| -> Result<()> {
                    let mid = self.expert.mid(stream.experts_in(batch)?.view());
                    statistics.observe_in(mid.view(), self.pass.precision);
                    if keep {
                        mids.push(mid);
                    }
                    Ok(())
                })
            })?;
        }
        self.matrices(&[Role::Down], statistics.as_ref(), shown.len(), done)?;

        let mut mids = mids.into_iter();
        let mut batches = rows.chunks(CHUNK_TOKENS).zip(weights.chunks(CHUNK_TOKENS));
        done.calibrating(|| {
            batches.try_for_each(|(rows, weights)| {
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
        shown: usize,
        done: &mut Done,
    ) -> Result<()> {
        let solver = self.pass.solver_of(self.planned.iter().any(|t| t.sparse));
        let factor = statistics.map(|statistics| Factor::new(statistics, solver.settings()));
        let is_starved = self.share.is_empty();
        for tensor in self.planned.iter().filter(|t| roles.contains(&t.spec.role)) {
            let mut tensor = (*tensor).clone();
            let solved = tensor.sparse || matches!(tensor.treatment, Treatment::Codes(_));
            if is_starved && solved {
                let why = format!("no token was sent to this expert: fitted to {shown} of all tokens");
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
