//! Layers that compete for what stays: how many channels and key heads each keeps, and what is written then.

use std::fmt::Write as _;

use attar_model::{Block, LayerSizes, ModelConfig, Tap, Windows};
use attar_prune::across::share_out;
use attar_prune::criterion::{Measure, Width};
use attar_prune::{Cuts, Statistics};

use super::pass::{Layer, Pass, Reader};
use super::shape::{Shape, WIDEST_ALIGN, Wanted, loses_divisibility};
use super::{Chooser, Outlook};
use crate::diagnostic::{Explain, Failure, Result};
use crate::talk::human_bytes;

/// A layer's width is at least so many steps, unless the user says what it is a multiple of.
const STEPS: usize = 16;

/// Some layers keep more than others, all together as many as if all kept as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Across {
    /// What the channels that a layer keeps are a multiple of.
    pub step: usize,
    /// What is written.
    pub layout: Layout,
}

/// What is written of layers that differ in size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Layers as large as the largest, filled up with zeros.
    FilledUp,
    /// A GGUF file that says every layer's sizes.
    Deci,
}

impl Layout {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::FilledUp => "filled-up",
            Self::Deci => "deci",
        }
    }
}

impl Across {
    /// How layers compete in a model that is to have `shape`, if they are to.
    ///
    /// # Errors
    /// Nothing to compete for; a criterion that compares no layers; a model with experts.
    pub fn resolve(
        config: &ModelConfig,
        shape: &Shape,
        wanted: &Wanted,
        layout: Layout,
        width: Chooser<dyn Width>,
    ) -> Result<Option<Self>> {
        if !wanted.across_layers {
            return Ok(None);
        }
        if config.experts.is_some() {
            return Err(Failure::new("--across-layers compares MLPs, and this model's are made of experts")
                .hint("leave --across-layers out: every layer keeps as many experts"));
        }
        let before = Shape::of(config);
        if shape.ffn == before.ffn && shape.kv_heads == before.kv_heads {
            return Err(Failure::new(
                "--across-layers: no channels and no key heads go that layers could compete for",
            )
            .hint("say how many stay on average: --ffn 0.5, --kv-heads 0.5"));
        }
        if width.by.measure() == Measure::OfItsOwn {
            let name = width.name;
            return Err(Failure::new(format!(
                "--across-layers: what {name} scores in one layer says nothing of another"
            ))
            .hint("second-order, fluctuation and taylor compare layers"));
        }
        Ok(Some(Self { step: wanted.align.unwrap_or_else(|| step(before.ffn, shape.ffn)), layout }))
    }

    /// The most that a layer can keep where all keep as many as `shape` says on average.
    pub(super) fn widest(self, before: &Shape, shape: Shape) -> Shape {
        let most = |present: usize, mean: usize, step: usize| {
            let left_by_others = mean * shape.layers - step * (shape.layers - 1);
            if mean == present { present } else { left_by_others.min(present / step * step) }
        };
        let kv_heads = most(before.kv_heads, shape.kv_heads, 1);
        let ffn = most(before.ffn, shape.ffn, self.step);
        Shape { ffn, kv_heads, heads: shape.heads / shape.kv_heads * kv_heads, ..shape }
    }

    /// Every shape that the largest layer may come to, heads filled up to what transformers loads among them.
    pub(super) fn shapes(self, before: &Shape, shape: Shape) -> Vec<Shape> {
        let widest = self.widest(before, shape);
        let most_heads = if shape.kv_heads == before.kv_heads { shape.kv_heads } else { before.kv_heads };
        let widths = (shape.ffn..=widest.ffn).step_by(self.step);
        let of_width = |ffn| (shape.kv_heads..=most_heads).map(move |kv_heads| (ffn, kv_heads));
        let each = shape.heads / shape.kv_heads;
        widths
            .flat_map(of_width)
            .map(|(ffn, kv_heads)| Shape { ffn, kv_heads, heads: each * kv_heads, ..shape })
            .collect()
    }

    /// What a model is written as, of which `left` with layers of their own sizes is left.
    ///
    /// # Errors
    /// A model that computes otherwise than `deci` does.
    pub(super) fn written(self, before: &ModelConfig, left: ModelConfig) -> Result<ModelConfig> {
        match self.layout {
            Layout::Deci => left.as_deci().hint(|| {
                "leave --arch out: layers are then filled up with zeros to the largest, which every program loads"
            }),
            Layout::FilledUp if left.layer_sizes.is_empty() => Ok(left),
            Layout::FilledUp => {
                let each = left.num_attention_heads / left.num_key_value_heads;
                let mut filled = left.filled_up();
                while filled.num_key_value_heads < before.num_key_value_heads
                    && loses_divisibility(before, filled.hidden_size, filled.num_attention_heads)
                {
                    filled.num_key_value_heads += 1;
                    filled.num_attention_heads += each;
                }
                Ok(filled)
            }
        }
    }

    /// Lines of a plan: how sizes are found, what is written, and what it takes.
    pub(super) fn say(self, outlooks: &[Outlook], old_bytes: u64, before: &Shape) -> String {
        let bytes = |outlook: Option<&Outlook>| outlook.map_or(0, |outlook| outlook.tensors.bytes());
        let [least, most] = [bytes(outlooks.first()), bytes(outlooks.last())].map(human_bytes);
        let old = human_bytes(old_bytes);
        let mut lines = match self.layout {
            Layout::Deci => format!(
                "{least} of weights in place of {old}\n\
                 layers compete, and these are means: each keeps what it needs, in a GGUF file of architecture deci\n"
            ),
            Layout::FilledUp => format!(
                "{least} to {most} of weights in place of {old}\n\
                 layers compete, and these are means: the others are filled up with zeros to the largest; --arch deci writes a \
                 GGUF file of {least} without\n"
            ),
        };
        if outlooks.iter().any(|outlook| outlook.shape.ffn != before.ffn) {
            for (block, types) in [(256, "K-quants"), (32, "q8_0, q5_0, q4_0 and their like")] {
                if !self.step.is_multiple_of(block) {
                    let step = self.step;
                    let _ = writeln!(
                        lines,
                        "channels stay in steps of {step}: {types} fit down in all layers with --align {block}"
                    ); // a String never fails
                }
            }
        }
        lines
    }
}

/// The largest power of two that divides the widths, present and mean, and is a small step of the present one.
fn step(present: usize, mean: usize) -> usize {
    let mut step = WIDEST_ALIGN;
    let fits =
        |step: usize| present.is_multiple_of(step) && mean.is_multiple_of(step) && step * STEPS <= present;
    while step > 1 && !fits(step) {
        step /= 2;
    }
    step
}

impl Pass<'_> {
    /// The sizes of every layer that stays, by what a text says of the model before any channel or head goes.
    ///
    /// # Errors
    /// A tensor that cannot be read, activations that are not finite.
    pub fn share_out(&self, cuts: &Cuts, windows: &Windows, step: usize) -> Result<Vec<LayerSizes>> {
        let config = &self.source.config;
        let (before, shape) = (Shape::of(config), self.shape);
        let layers = cuts.layers.kept().to_vec();
        let stage = self.talk.stage("weighing", layers.len() as u64, "layers");
        let mut cuts = cuts.clone();
        let mut flow = self.flow(&cuts, windows, windows.count())?;
        let ctx = windows.ctx();
        let (mut channels, mut kv_heads) = (Vec::new(), Vec::new());
        for (new, old) in layers.iter().copied().enumerate() {
            let layer = Layer::new(new, old, &mut cuts);
            let at = || format!("while weighing layer {old}");
            let block = self.load(&layer)?;
            if shape.kv_heads < before.kv_heads {
                let size = config.query_size() / config.num_key_value_heads;
                let mut seen = Statistics::new(config.num_key_value_heads, size);
                flow.observe(&block, Tap::AttnOut, |x| seen.observe(x, ctx))?;
                let energy = flow.energy()?;
                kv_heads.push(self.costs((&layer, &block), Reader::O, &seen, energy).doing(at)?);
            }
            flow.stream.advance(&block, Tap::MlpIn, |_| ())?;
            if shape.ffn < before.ffn {
                let mut seen = Statistics::new(config.intermediate_size, 1);
                flow.observe(&block, Tap::MlpMid, |x| seen.observe(x, ctx))?;
                let energy = flow.energy()?;
                channels.push(self.costs((&layer, &block), Reader::Down, &seen, energy).doing(at)?);
            }
            flow.stream.finish(&block)?;
            stage.step(1, "weighed");
        }
        let count = layers.len();
        let shared = |costs: &[Vec<f64>], units: usize, step: usize, mean: usize| {
            if costs.is_empty() { vec![mean; count] } else { share_out(costs, units, step, mean * count) }
        };
        let channels = shared(&channels, before.ffn, step, shape.ffn);
        let kv_heads = shared(&kv_heads, before.kv_heads, 1, shape.kv_heads);
        let each = shape.heads / shape.kv_heads;
        let sizes =
            channels.into_iter().zip(kv_heads).map(|(intermediate_size, num_key_value_heads)| LayerSizes {
                intermediate_size,
                num_attention_heads: each * num_key_value_heads,
                num_key_value_heads,
            });
        stage.done();
        Ok(sizes.collect())
    }

    /// What is lost with each unit in the order in which they go, energy as a share of that of the stream.
    fn costs(
        &self,
        (layer, block): (&Layer<'_>, &Block),
        reader: Reader,
        statistics: &Statistics,
        stream: f64,
    ) -> Result<Vec<f64>> {
        let mut costs = self.width.costs(&self.evidence(layer, block, reader, statistics)?);
        if self.width.measure() == Measure::Energy {
            costs = costs.into_iter().map(|cost| cost / stream).collect();
        }
        Ok(costs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_divide_both_widths_and_are_small() {
        for (present, mean, expected) in [
            (768, 384, 32),
            (11008, 5632, 256),
            (14336, 7168, 256),
            (512, 256, 32),
            (512, 200, 8),
            (100, 60, 4),
            (7, 3, 1),
        ] {
            assert_eq!(step(present, mean), expected, "{mean} of {present}");
        }
    }

    #[test]
    fn no_layer_keeps_more_than_the_others_leave_or_than_there_is() {
        let before = Shape { layers: 3, hidden: 64, ffn: 512, heads: 8, kv_heads: 4, experts: None };
        let across = Across { step: 64, layout: Layout::FilledUp };
        let widest = |ffn, kv_heads| {
            let widest = across.widest(&before, Shape { ffn, kv_heads, heads: 2 * kv_heads, ..before });
            (widest.ffn, widest.kv_heads, widest.heads)
        };
        assert_eq!(widest(128, 4), (256, 4, 8), "384 channels less 64 for each of the others");
        assert_eq!(widest(384, 2), (512, 4, 8));
        assert_eq!(widest(512, 1), (512, 1, 2));
    }
}
