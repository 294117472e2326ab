//! The way of the calibration windows through the blocks, on whatever computes it.

use attar_model::device::OnCuda;
use attar_model::{
    Block, Device, Error as ModelError, HiddenStates, Norm, Precision, Role, Streaming, Tap, Windows,
    streamed_embeddings,
};
use attar_quant::{Detail, DeviceStatistics, Statistics, Sums};
use attar_tensor::cuda::{Element, bf16};

use super::compress::STAGES;
use super::on_device::DeviceStream;
use super::stream::Stream;
use crate::diagnostic::{Failure, Result};
use crate::plan::{Memory, Plan};
use crate::source::Source;

/// All calibration windows, between two stages of a block.
pub enum Passage {
    /// On the processor, which multiplies in this precision.
    Here(Box<Stream>, Precision),
    /// On a device, in f32.
    F32(Box<DeviceStream<f32>>),
    /// On a device, in bf16.
    Bf16(Box<DeviceStream<bf16>>),
}

impl Passage {
    /// Starts with the embedded tokens, `[tokens, hidden_size]`, in whole windows of `ctx` tokens, where and as the plan says.
    ///
    /// # Errors
    /// If a device's memory is short.
    ///
    /// # Panics
    /// If the tokens are not whole windows.
    pub fn new(
        plan: &Plan,
        source: &Source,
        hidden: HiddenStates,
        ctx: usize,
        precision: Precision,
    ) -> Result<Self> {
        let Memory { keeping, carry, .. } = &plan.memory;
        Ok(match (&plan.device, precision) {
            (Device::Cpu, _) => {
                Self::Here(Box::new(Stream::new(hidden, ctx, keeping.clone(), *carry)), precision)
            }
            (Device::Cuda(on), Precision::F32) => {
                Self::F32(Box::new(DeviceStream::new(on, &source.config, hidden, ctx)?))
            }
            (Device::Cuda(on), Precision::Bf16) => {
                Self::Bf16(Box::new(DeviceStream::new(on, &source.config, hidden, ctx)?))
            }
        })
    }

    /// Starts with a text in the unquantized model, where and as the plan says.
    ///
    /// # Errors
    /// As [`new`](Self::new); an embedding that cannot be read, hidden states on a disk that fails.
    pub fn unquantized(
        plan: &Plan,
        source: &Source,
        windows: &Windows,
        precision: Precision,
    ) -> Result<Self> {
        let streaming = Streaming::kept(&plan.memory.keeping);
        let hidden = streamed_embeddings(&source.config, source, windows, &streaming)?;
        Self::new(plan, source, hidden, windows.ctx(), precision)
    }

    /// Runs the part of `block` that leads to `tap`; the statistics of the activations there, if they are `wanted`, which brings
    /// some of no tokens yet.
    ///
    /// The taps of a block must be visited in order, each once; weights that were [settled](Self::settle) between two visits
    /// take effect.
    ///
    /// # Errors
    /// Hidden states on a disk that fails, a device that fails.
    pub fn observe(
        &mut self,
        block: &Block,
        tap: Tap,
        wanted: Option<Statistics>,
    ) -> Result<Option<Statistics>> {
        match self {
            Self::Here(stream, precision) => {
                let mut statistics = wanted;
                stream.advance(block, tap, |x| {
                    if let Some(statistics) = &mut statistics {
                        statistics.observe_in(x, *precision);
                    }
                })?;
                Ok(statistics)
            }
            Self::F32(stream) => observe_there(stream, block, tap, wanted),
            Self::Bf16(stream) => observe_there(stream, block, tap, wanted),
        }
    }

    /// [`observe`](Self::observe) at every tap of a block without experts, whose matrices stay as they are: `see` is shown the statistics
    /// in as much `detail` as is wanted.
    ///
    /// # Errors
    /// As [`observe`](Self::observe), and what `see` says.
    pub fn observe_all(
        &mut self,
        (plan, layer, block): (&Plan, usize, &mut Block),
        detail: Detail,
        mut see: impl FnMut(Tap, Option<Statistics>) -> Result<()>,
    ) -> Result<()> {
        for tap in STAGES {
            let features = block.config().tap_features(tap);
            see(tap, self.observe(block, tap, Some(Statistics::with(detail, features)))?)?;
            for tensor in plan.of_layer(layer).filter(|t| t.spec.tap == Some(tap)) {
                self.settle(block, tensor.spec.role)?;
            }
        }
        Ok(())
    }

    /// A matrix of the block is as it will be: from here on it is only multiplied by.
    ///
    /// # Errors
    /// If a device's memory is short.
    pub fn settle(&mut self, block: &mut Block, role: Role) -> Result<()> {
        match self {
            Self::Here(_, precision) => block.pack_role(role, *precision),
            Self::F32(stream) => stream.settle(block, role)?,
            Self::Bf16(stream) => stream.settle(block, role)?,
        }
        Ok(())
    }

    /// Adds the block's last output; the passage is then at the next block's input.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    pub fn finish(&mut self, block: &Block) -> Result<()> {
        match self {
            Self::Here(stream, _) => stream.finish(block)?,
            Self::F32(stream) => stream.finish()?,
            Self::Bf16(stream) => stream.finish()?,
        }
        Ok(())
    }

    /// The statistics of what the head reads, as [`observe`](Self::observe) has them.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    pub fn head(&mut self, norm: &Norm, wanted: Statistics) -> Result<Statistics> {
        match self {
            Self::Here(stream, precision) => {
                let mut statistics = wanted;
                stream.each_chunk(|hidden| {
                    statistics.observe_in(norm.apply(hidden).view(), *precision);
                })?;
                Ok(statistics)
            }
            Self::F32(stream) => as_wanted(&stream.head(norm)?, stream.on(), &wanted),
            Self::Bf16(stream) => as_wanted(&stream.head(norm)?, stream.on(), &wanted),
        }
    }

    /// The way on the processor, for what is done there only.
    ///
    /// # Errors
    /// On a device.
    pub fn here(&mut self) -> Result<&mut Stream> {
        match self {
            Self::Here(stream, _) => Ok(stream),
            Self::F32(_) | Self::Bf16(_) => {
                Err(Failure::from(ModelError::NotOnDevice { what: "MLPs made of experts".to_owned() }))
            }
        }
    }
}

fn observe_there<T: Element>(
    stream: &mut DeviceStream<T>,
    block: &Block,
    tap: Tap,
    wanted: Option<Statistics>,
) -> Result<Option<Statistics>> {
    if tap == Tap::AttnIn {
        stream.enter(block)?;
    }
    let seen = stream.observe(tap, wanted.as_ref().map(Statistics::in_features))?;
    seen.zip(wanted).map(|(seen, wanted)| as_wanted(&seen, stream.on(), &wanted)).transpose()
}

/// What a device saw, in as much detail as was wanted.
fn as_wanted(seen: &DeviceStatistics, on: &OnCuda, wanted: &Statistics) -> Result<Statistics> {
    match wanted.sums {
        Sums::Squares(_) => Ok(seen.squares().clone()),
        Sums::Gram(_) => Ok(seen.download(&on.cuda)?),
    }
}
