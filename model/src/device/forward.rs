//! All blocks of a model over a device, one after another, the next one on its way while one computes.

use super::block::{AllTurns, DeviceBlock};
use super::weights::{Prepared, largest_slot, prepare, specs};
use super::{DeviceHidden, OnCuda};
use crate::{Error, HiddenStates, ModelConfig, Weights};
use attar_tensor::Precision;
use attar_tensor::cuda::{BlockStream, Element, bf16};

/// Bytes of each of the two buffers through which weights go to the device.
const BUFFER_BYTES: usize = 64 << 20;

/// From embeddings in windows of `ctx` tokens to the hidden states after the last block, kept as they were.
pub(crate) fn hidden_states(
    on: &OnCuda,
    config: &ModelConfig,
    weights: &dyn Weights,
    embedded: HiddenStates,
    (ctx, precision): (usize, Precision),
    progress: &mut dyn FnMut(usize),
) -> Result<HiddenStates, Error> {
    super::check(config)?;
    match precision {
        Precision::F32 => through_blocks::<f32>(on, config, weights, embedded, ctx, progress),
        Precision::Bf16 => through_blocks::<bf16>(on, config, weights, embedded, ctx, progress),
    }
}

fn through_blocks<T: Element>(
    on: &OnCuda,
    config: &ModelConfig,
    weights: &dyn Weights,
    embedded: HiddenStates,
    ctx: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<HiddenStates, Error> {
    let turns = AllTurns::new(&on.cuda, config, ctx)?;
    let mut hidden = DeviceHidden::<T>::new(on, embedded, ctx)?;
    let slot_bytes = largest_slot::<T>(config);
    let mut stream = BlockStream::new(&on.cuda, slot_bytes, BUFFER_BYTES.min(slot_bytes.max(1)))?;
    if config.num_hidden_layers > 0 {
        load(&mut stream, config, 0, (weights, prepare::<T>(config, 0, weights)?))?;
    }
    for layer in 0..config.num_hidden_layers {
        let next = std::thread::scope(|scope| {
            let next = (layer + 1 < config.num_hidden_layers)
                .then(|| scope.spawn(move || prepare::<T>(config, layer + 1, weights)));
            let specs = specs(config, layer);
            let at = (layer, &specs[..]);
            let block = DeviceBlock::arrived((&on.cuda, config), at, &turns, stream.block()?);
            for rows in hidden.chunks() {
                hidden.update(rows, |rows| block.forward(rows))?;
            }
            let next =
                next.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            next.transpose()
        })?;
        // Where hidden states stay on the device all of the block's work is asked for by now, and not yet done.
        if let Some(next) = next {
            load(&mut stream, config, layer + 1, (weights, next))?;
        }
        stream.finish()?;
        progress(layer);
    }
    drop(stream);
    hidden.into_host()
}

/// Sends a block on its way; what was mapped of it may go.
fn load<T: Element>(
    stream: &mut BlockStream,
    config: &ModelConfig,
    layer: usize,
    (weights, block): (&dyn Weights, Vec<Prepared<'_, T>>),
) -> Result<(), Error> {
    stream.load(&block.iter().map(Prepared::bytes).collect::<Vec<_>>())?;
    for (spec, part) in specs(config, layer).iter().zip(&block) {
        if let Prepared::InFile(_) = part {
            weights.let_go(&spec.name);
        }
    }
    Ok(())
}
