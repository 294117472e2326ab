//! Shapes that come to a number of parameters: what a search chooses among.
//!
//! Layers and heads are gone through; of the channels of the MLP as many stay then as the number allows.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use attar_model::ModelConfig;
use attar_model::family::QkNorm;

use super::shape::{Amount, Shape, WIDEST_ALIGN, Wanted, loses_divisibility, width};
use crate::diagnostic::{Failure, Result};
use crate::talk::thousands;

/// How far below the target a shape may be, as a share of it.
const NEAR: f64 = 0.05;

/// How much of the target one step of the MLP's width may be unless the user says what it is a multiple of.
const STEP: f64 = 0.05;

/// Numbers of layers that are tried, at most.
const DEPTHS: usize = 8;

/// The share of layers, and of channels, that stays at least.
const LEAST: f64 = 0.25;

/// Shares of the query heads of a key head, and of the key heads, that are tried.
const HEADS: [f64; 3] = [0.75, 0.5, 0.25];

/// What is to be left of a model.
#[derive(Clone, Debug)]
pub enum Goal {
    /// This shape.
    Shape(Shape),
    /// The best of some.
    Search(Grid),
}

/// Shapes of about as many parameters.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Parameters that are not to be passed.
    pub target: u64,
    /// The shapes, the deepest first; of each the parameters.
    pub shapes: Vec<(Shape, u64)>,
}

impl Goal {
    /// What of a model is to be left when what is wanted is kept.
    ///
    /// # Errors
    /// A shape that the model cannot have; nothing that goes; a target that no shape comes to.
    pub fn resolve(config: &ModelConfig, wanted: &Wanted) -> Result<Self> {
        match wanted.target {
            None => Ok(Self::Shape(Shape::resolve(config, wanted)?)),
            Some(target) => Ok(Self::Search(Grid::new(config, target, wanted)?)),
        }
    }
}

impl Grid {
    fn new(config: &ModelConfig, target: Amount, wanted: &Wanted) -> Result<Self> {
        let before = Shape::of(config);
        let present = before.parameters(config)?;
        let target = match target {
            Amount::Share(share) => (present as f64 * share) as u64,
            Amount::Count(count) => count as u64,
        };
        if config.experts.is_some() {
            return Err(Failure::new(
                "--target-params searches among shapes of MLPs, and this model's are made of experts",
            )
            .hint("--experts N keeps N of them, --layers N so many layers"));
        }
        if target >= present {
            let (target, present) = (thousands(target), thousands(present));
            return Err(Failure::new(format!(
                "--target-params: the model has {present} parameters, which is not above {target}"
            ))
            .hint("aim for less, or for a share such as 0.6"));
        }
        let hidden = width("--hidden", wanted.hidden, before.hidden, wanted.align)?;
        let whole = Shape { hidden, ..before };
        let mut shapes = Vec::new();
        let mut smallest = u64::MAX;
        for layers in depths(before.layers) {
            for (heads, kv_heads) in heads(config) {
                if loses_divisibility(config, hidden, heads) {
                    continue;
                }
                let row = Shape { layers, heads, kv_heads, ..whole };
                let (found, least) = widest(config, row, target, wanted.align)?;
                smallest = smallest.min(least);
                shapes.extend(found);
            }
        }
        if shapes.is_empty() {
            let (target, smallest) = (thousands(target), thousands(smallest));
            return Err(Failure::new(format!(
                "--target-params: no shape comes to {target} parameters or a little less; the smallest that is tried has {smallest}"
            ))
            .hint("aim for more, let --hidden cut the residual stream and with it the embeddings, or give a smaller --align"));
        }
        Ok(Self { target, shapes })
    }

    /// Lines of a plan: what is tried.
    pub fn say(&self, before: &ModelConfig) -> String {
        let mut lines = format!(
            "{} shapes of up to {} parameters are measured, and that nearest to the model is made:\n\
             {:>8}{:>14}{:>14}{:>14}{:>12}{:>16}\n",
            self.shapes.len(),
            thousands(self.target),
            "layers",
            "hidden size",
            "ffn channels",
            "query heads",
            "key heads",
            "parameters"
        );
        let present: usize = before.tensors().iter().map(attar_model::TensorSpec::len).sum();
        for (shape, parameters) in &self.shapes {
            let share = 100.0 * *parameters as f64 / present.max(1) as f64;
            let Shape { layers, hidden, ffn, heads, kv_heads, .. } = shape;
            let count = thousands(*parameters);
            let _ = writeln!(
                lines,
                "{layers:>8}{hidden:>14}{ffn:>14}{heads:>14}{kv_heads:>12}{count:>16}  {share:.1} %"
            ); // a String never fails
        }
        lines
    }
}

/// The shape of a row of the grid that keeps as many channels as the target allows, if that is near enough to it; and the
/// parameters of the smallest of the row.
fn widest(
    config: &ModelConfig,
    row: Shape,
    target: u64,
    align: Option<usize>,
) -> Result<(Option<(Shape, u64)>, u64)> {
    let present = row.ffn;
    let of = |ffn: usize| Shape { ffn, ..row }.parameters(config);
    let (one, two) = (of(1)?, of(2)?);
    let per_channel = (two - one).max(1);
    let without = one - per_channel;
    let align = align.unwrap_or_else(|| fine_align(present, target, per_channel));
    let least = ((present as f64 * LEAST) as usize).max(1).next_multiple_of(align).min(present);
    let room = (target.saturating_sub(without) / per_channel) as usize;
    // All of them stay where all fit in, whatever they are a multiple of.
    let ffn = if room >= present { present } else { room / align * align };
    let smallest = of(least)?;
    if ffn < least {
        return Ok((None, smallest));
    }
    let shape = Shape { ffn, ..row };
    let parameters = of(ffn)?;
    let is_near = parameters as f64 >= (1.0 - NEAR) * target as f64;
    Ok((is_near.then_some((shape, parameters)), smallest))
}

/// The largest power of two that divides the present width and is a small step on the way to the target.
fn fine_align(present: usize, target: u64, per_channel: u64) -> usize {
    let mut align = WIDEST_ALIGN;
    let fits = |align: usize| {
        present.is_multiple_of(align) && (align as u64 * per_channel) as f64 <= STEP * target as f64
    };
    while align > 1 && !fits(align) {
        align /= 2;
    }
    align
}

/// Numbers of layers, falling from all to the least share, evenly spread.
fn depths(layers: usize) -> Vec<usize> {
    let least = ((layers as f64 * LEAST).ceil() as usize).max(1);
    let tried = (layers - least + 1).min(DEPTHS);
    let spread = |at: usize| layers - (layers - least) * at / (tried - 1).max(1);
    (0..tried).map(spread).collect()
}

/// Query heads and key heads: all, fewer of every key head, or fewer key heads with all that they serve.
fn heads(config: &ModelConfig) -> Vec<(usize, usize)> {
    let (heads, groups) = (config.num_attention_heads, config.num_key_value_heads);
    let size = heads / groups;
    let mut pairs = BTreeSet::from([(heads, groups)]);
    if config.family.qk_norm != QkNorm::Whole {
        for share in HEADS {
            let part = |of: usize| ((of as f64 * share).round() as usize).clamp(1, of);
            pairs.insert((part(size) * groups, groups));
            pairs.insert((size * part(groups), part(groups)));
        }
    }
    pairs.into_iter().rev().collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use serde_json::json;

    fn llama(layers: usize) -> ModelConfig {
        ModelConfig::from_hf(&json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "head_dim": 32,
            "intermediate_size": 768, "num_hidden_layers": layers, "num_attention_heads": 8,
            "num_key_value_heads": 4, "vocab_size": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "max_position_embeddings": 512, "tie_word_embeddings": true, "hidden_act": "silu",
        }))
        .unwrap()
    }

    #[test]
    fn every_shape_is_a_little_smaller_than_the_target_and_no_two_are_the_same() {
        let config = llama(8);
        let present = Shape::of(&config).parameters(&config).unwrap();
        for share in [0.3, 0.5, 0.6, 0.8, 0.95] {
            let wanted = Wanted { target: Some(Amount::Share(share)), ..Wanted::default() };
            let Goal::Search(Grid { target, shapes }) = Goal::resolve(&config, &wanted).unwrap() else {
                panic!()
            };
            assert_eq!(target, (present as f64 * share) as u64);
            assert!(shapes.len() > 1 && shapes.len() < 40, "{share}: {}", shapes.len());
            for (at, (shape, parameters)) in shapes.iter().enumerate() {
                assert!(
                    *parameters <= target && *parameters as f64 >= 0.95 * target as f64,
                    "{share}: {shape:?}"
                );
                assert_eq!(shape.parameters(&config).unwrap(), *parameters);
                assert!(shape.ffn.is_multiple_of(16) && shape.ffn >= 192 && shape.layers >= 2, "{shape:?}");
                assert!(shapes[..at].iter().all(|(other, _)| other != shape));
                assert!(
                    shape.hidden.is_multiple_of(shape.heads),
                    "transformers loads no such Llama: {shape:?}"
                );
            }
        }
    }

    #[test]
    fn widths_are_the_multiples_that_are_asked_for_and_the_hidden_size_is_as_it_is_told() {
        let wanted = Wanted {
            target: Some(Amount::Count(3_000_000)),
            align: Some(64),
            hidden: Some(Amount::Count(192)),
            ..Wanted::default()
        };
        let Goal::Search(grid) = Goal::resolve(&llama(8), &wanted).unwrap() else { panic!() };
        assert!(grid.shapes.iter().all(|(shape, _)| shape.ffn.is_multiple_of(64) && shape.hidden == 192));
    }

    #[test]
    fn depths_are_spread_over_those_that_are_left() {
        assert_eq!(depths(1), [1]);
        assert_eq!(depths(2), [2, 1]);
        assert_eq!(depths(8), [8, 7, 6, 5, 4, 3, 2]);
        assert_eq!(depths(32), [32, 29, 26, 22, 19, 15, 12, 8]);
    }

    #[test]
    fn heads_go_from_every_group_or_with_it() {
        assert_eq!(heads(&llama(1)), [(8, 4), (6, 3), (4, 4), (4, 2), (2, 1)]);
    }

    #[test]
    fn what_no_shape_comes_to_is_refused_with_what_could_be() {
        for (target, part) in [
            (Amount::Count(1_000_000), "the smallest that is tried has"),
            (Amount::Count(100_000_000), "the model has"),
            (Amount::Share(1.0), "the model has"),
        ] {
            let wanted = Wanted { target: Some(target), ..Wanted::default() };
            let error = Goal::resolve(&llama(4), &wanted).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("hint:"), "{error}");
        }
    }
}
