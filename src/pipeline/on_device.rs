//! The activations of all calibration windows on their way through blocks on a CUDA device.
//!
//! The same stages as [`Stream`](super::stream::Stream)'s, with the sums of squares and products taken there too, where they stay.

use std::collections::VecDeque;
use std::ops::Range;

use attar_model::device::{AllTurns, Cuda, DeviceBlock, DeviceHidden, OnCuda, OwnParts};
use attar_model::{Block, Error, HiddenStates, ModelConfig, Norm, Role, Tap, Weights};
use attar_quant::DeviceStatistics;
use attar_tensor::cuda::{Element, Matrix, Norm as DeviceNorm, Rows, RowsMut};

/// Hidden states of every calibration token, the weights of the block at work, and what a stage leaves to the next one.
pub struct DeviceStream<T> {
    on: OnCuda,
    config: ModelConfig,
    turns: AllTurns,
    layer: usize,
    hidden: DeviceHidden<T>,
    own: Option<OwnParts<T>>,
    carried: VecDeque<Matrix<T>>, // the input of o or of down, chunk by chunk
}

/// The Gram matrix of a tap on the device, where it is wanted.
struct Seen<'a> {
    cuda: &'a Cuda,
    gram: Option<Matrix<f32>>, // [features, features]
}

impl<'a> Seen<'a> {
    fn new(cuda: &'a Cuda, features: Option<usize>) -> Result<Self, Error> {
        let gram = features.map(|features| cuda.zeros((features, features))).transpose()?;
        Ok(Self { cuda, gram })
    }

    fn add<T: Element>(&mut self, x: Rows<'_, T>) -> Result<(), Error> {
        self.gram.as_mut().map_or(Ok(()), |gram| Ok(self.cuda.gram_add(gram, x)?))
    }

    fn into_statistics(self, tokens: usize) -> Result<Option<DeviceStatistics>, Error> {
        let Self { cuda, gram } = self;
        Ok(gram.map(|gram| DeviceStatistics::new(cuda, gram, tokens as u64)).transpose()?)
    }
}

impl<T: Element> DeviceStream<T> {
    /// Starts with the embedded tokens, `[tokens, hidden_size]`, in whole windows of `ctx` tokens.
    ///
    /// # Errors
    /// If the device's memory is short, or a disk fails.
    pub fn new(on: &OnCuda, config: &ModelConfig, hidden: HiddenStates, ctx: usize) -> Result<Self, Error> {
        Ok(Self {
            turns: AllTurns::new(&on.cuda, config, ctx)?,
            hidden: DeviceHidden::new(on, hidden, ctx)?,
            on: on.clone(),
            config: config.clone(),
            layer: 0,
            own: None,
            carried: VecDeque::new(),
        })
    }

    /// The device, and how much of the work is there at a time.
    pub fn on(&self) -> &OnCuda {
        &self.on
    }

    /// Begins a block: its norms and biases go to the device.
    ///
    /// # Errors
    /// If the device's memory is short.
    pub fn enter(&mut self, block: &Block) -> Result<(), Error> {
        self.own = Some(OwnParts::vectors_of(&self.on.cuda, block)?);
        Ok(())
    }

    /// Begins the next block of a model that is not loaded.
    ///
    /// # Errors
    /// If the device's memory is short; a tensor that cannot be loaded.
    pub fn enter_next(&mut self, weights: &dyn Weights) -> Result<(), Error> {
        self.own = Some(OwnParts::vectors_from(&self.on.cuda, &self.config, self.layer, weights)?);
        Ok(())
    }

    /// Runs the part of the block that leads to `tap`; the statistics of the activations there, if they are `wanted`, of so many
    /// features.
    ///
    /// The taps of a block must be visited in order, each once.
    ///
    /// # Errors
    /// If the device's memory is short or it fails; hidden states on a disk that fails.
    ///
    /// # Panics
    /// If no block was [begun](Self::enter).
    pub fn observe(&mut self, tap: Tap, wanted: Option<usize>) -> Result<Option<DeviceStatistics>, Error> {
        let cuda = self.on.cuda.clone();
        let mut seen = Seen::new(&cuda, wanted)?;
        for rows in self.hidden.chunks() {
            self.chunk(rows, tap, &mut seen)?;
        }
        seen.into_statistics(self.hidden.tokens())
    }

    fn chunk(&mut self, rows: Range<usize>, tap: Tap, seen: &mut Seen<'_>) -> Result<(), Error> {
        let Self { on, config, turns, layer, hidden, own, carried } = self;
        let Some(own) = own else { panic!("no block was begun") };
        let carries = on.plan.carried_bytes > 0;
        if seen.gram.is_none() && !carries && tap != Tap::MlpIn {
            return Ok(());
        }
        let block = DeviceBlock::of(&on.cuda, config, *layer, turns, own);
        let attn_out = |h: Rows<'_, T>| block.attn_out(block.attn_in(h)?.view());
        let made = match tap {
            Tap::AttnIn => return hidden.read(rows, |h| seen.add(block.attn_in(h)?.view())),
            Tap::AttnOut => hidden.read(rows, attn_out)?,
            Tap::MlpIn => {
                let from = carried.pop_front();
                return hidden.update(rows, |mut h| {
                    let from = from.map_or_else(|| attn_out(h.view()), Ok)?;
                    block.add_attn(h.reborrow(), from.view())?;
                    seen.add(block.mlp_in(h.view())?.view())
                });
            }
            Tap::MlpMid => hidden.read(rows, |h| block.mlp_mid(block.mlp_in(h)?.view()))?,
            Tap::HeadIn => unreachable!("the head belongs to no block"),
        };
        seen.add(made.view())?;
        if carries {
            carried.push_back(made);
        }
        Ok(())
    }

    /// Takes over a matrix of the block as it is now: what is computed from here on reads it.
    ///
    /// # Errors
    /// If the device's memory is short.
    ///
    /// # Panics
    /// If no block was begun.
    pub fn settle(&mut self, block: &Block, role: Role) -> Result<(), Error> {
        let Some(own) = &mut self.own else { panic!("no block was begun") };
        own.put(&self.on.cuda, block, role)
    }

    /// Takes over a stored matrix of the block that is on the device already.
    ///
    /// # Panics
    /// If no block was begun.
    pub fn take(&mut self, role: Role, matrix: Matrix<T>) {
        let Some(own) = &mut self.own else { panic!("no block was begun") };
        own.take(role, matrix);
    }

    /// Adds the block's last output; the stream is then at the next block's input.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    ///
    /// # Panics
    /// If no block was begun.
    pub fn finish(&mut self) -> Result<(), Error> {
        let Self { on, config, turns, layer, hidden, own, carried } = self;
        let Some(own) = own.take() else { panic!("no block was begun") };
        let block = DeviceBlock::of(&on.cuda, config, *layer, turns, &own);
        for rows in hidden.chunks() {
            let mid = carried.pop_front();
            hidden.update(rows, |h: RowsMut<'_, T>| {
                let mid = match mid {
                    Some(mid) => mid,
                    None => block.mlp_mid(block.mlp_in(h.view())?.view())?,
                };
                block.add_mlp(h, mid.view())
            })?;
        }
        *layer += 1;
        Ok(())
    }

    /// The statistics of what the head reads.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    pub fn head(&mut self, norm: &Norm) -> Result<DeviceStatistics, Error> {
        let cuda = &self.on.cuda;
        let weight = cuda.vector(&norm.weight().to_vec())?;
        let norm = DeviceNorm { eps: self.config.rms_norm_eps, offset: 0.0 };
        let mut seen = Seen::new(cuda, Some(self.config.hidden_size))?;
        for rows in self.hidden.chunks() {
            self.hidden.read(rows, |h| {
                let mut normed = cuda.room::<T>(h.dim())?;
                cuda.rms_norm(normed.view_mut(), h, weight.view(), norm)?;
                seen.add(normed.view())
            })?;
        }
        let statistics = seen.into_statistics(self.hidden.tokens())?;
        Ok(statistics.unwrap_or_else(|| unreachable!("they were wanted")))
    }
}
