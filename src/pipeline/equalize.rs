//! Equalization of a block: what its norms, v and up give is divided channel by channel, what reads it is multiplied.

use attar_checkpoint::round_floats;
use attar_model::{Block, Precision, Role, Tap};
use attar_quant::{GridEncoding, Reader, Rounded, Statistics, equalizing_scales};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Ix1, s};

use super::compress::{STAGES, grid_of};
use super::stream::Stream;
use crate::diagnostic::Result;
use crate::layout::rounding;
use crate::plan::{Plan, PlannedTensor, Treatment};

/// Tokens that what rounded inputs lose is measured on, and those of them from tokens that come together.
const SAMPLE_TOKENS: usize = 512;
const TOKENS_OF_A_CALL: usize = 16;

/// What gives an input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Giver {
    /// A norm, by its weight.
    Norm(Role),
    /// A matrix, by its rows, and its bias.
    Rows { matrix: Role, bias: Role },
}

/// What gives the input at a tap, and what reads it.
fn around(tap: Tap) -> Option<(Giver, &'static [Role])> {
    match tap {
        Tap::AttnIn => Some((Giver::Norm(Role::AttnNorm), &[Role::Q, Role::K, Role::V])),
        Tap::AttnOut => Some((Giver::Rows { matrix: Role::V, bias: Role::VBias }, &[Role::O])),
        Tap::MlpIn => Some((Giver::Norm(Role::MlpNorm), &[Role::Gate, Role::Up])),
        Tap::MlpMid => Some((Giver::Rows { matrix: Role::Up, bias: Role::UpBias }, &[Role::Down])),
        Tap::HeadIn => None,
    }
}

/// What changes at one tap.
struct Change {
    giver: Giver,
    readers: &'static [Role],
    channel_of: Vec<usize>, // that each column reads
    scale: Array1<f32>,     // of the readers' columns, by channel
    norm: Array1<f32>,      // what is stored of the norm then; empty where the giver is none
}

/// What changes in one block.
#[derive(Default)]
pub(super) struct Equalized(Vec<Change>);

/// A block before it becomes codes.
pub(super) struct Equalizing<'a> {
    /// What becomes of its tensors.
    pub plan: &'a Plan,
    /// Its weights as they are.
    pub block: &'a Block,
    /// How products are computed.
    pub precision: Precision,
}

impl Equalizing<'_> {
    /// Runs a copy of the stream through the block as it is, and finds what its columns are best multiplied by.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn run(&self, stream: &Stream) -> Result<Equalized> {
        let mut scout = stream.copy()?;
        let mut changes = Vec::new();
        for tap in STAGES {
            if tap == Tap::MlpIn && self.block.experts().is_some() {
                break;
            }
            let features = self.block.config().tap_features(tap);
            let (mut statistics, mut sample) = (Statistics::new(features), Array2::zeros((0, features)));
            let rounding = self.plan.inputs().map(rounding);
            scout.advance(self.block, tap, |x| {
                statistics.observe_in(x, self.precision);
                if rounding.is_some() && sample.nrows() < SAMPLE_TOKENS {
                    // From another place each time: the first tokens of windows are like no others.
                    let step = x.nrows().div_ceil(TOKENS_OF_A_CALL).max(1);
                    let first = (7 * sample.nrows() + step / 2) % step;
                    sample.append(Axis(0), x.slice(s![first..;step, ..])).expect("as many features");
                }
            })?;
            let round = |x: ArrayView2<'_, f32>| rounding.map_or_else(|| x.to_owned(), |by| by.apply(x));
            let rounded = Rounded { sample: sample.view(), round: &round };
            changes.extend(self.change(tap, &statistics, rounding.map(|_| &rounded))?);
        }
        Ok(Equalized(changes))
    }

    /// What is to change at a tap, if anything.
    fn change(
        &self,
        tap: Tap,
        statistics: &Statistics,
        rounded: Option<&Rounded<'_>>,
    ) -> Result<Option<Change>> {
        let Some((giver, readers)) = around(tap) else { return Ok(None) };
        let Some(encodings) = self.encodings(giver, readers)? else { return Ok(None) };
        let channel_of = self.channels(tap, statistics.in_features());
        let weights = readers.iter().zip(encodings);
        let weights: Vec<_> = weights
            .map(|(&role, encoding)| Reader { weight: self.block.linear(role).weight.view(), encoding })
            .collect();
        let Some(scale) = equalizing_scales(&weights, statistics, &channel_of, rounded) else {
            return Ok(None);
        };
        let (scale, norm) = match giver {
            Giver::Norm(role) => self.folded(role, &scale)?,
            Giver::Rows { .. } => (scale, Array1::default(0)),
        };
        Ok(Some(Change { giver, readers, channel_of, scale, norm }))
    }

    /// The formats of the readers; `None` where one of them, or what gives their input, stays as it is.
    fn encodings(&self, giver: Giver, readers: &[Role]) -> Result<Option<Vec<&dyn GridEncoding>>> {
        let coded = |role: Role| match self.tensor(role).map(|tensor| &tensor.treatment) {
            Some(Treatment::Codes(encoding)) => grid_of(encoding).map(Some),
            _ => Ok(None),
        };
        let gives = match giver {
            Giver::Norm(role) => self.tensor(role).is_some(),
            Giver::Rows { matrix, .. } => coded(matrix)?.is_some(),
        };
        let all: Option<Vec<_>> =
            readers.iter().map(|&role| coded(role)).collect::<Result<Vec<_>>>()?.into_iter().collect();
        Ok(all.filter(|_| gives))
    }

    /// The tensor of the plan that holds a role.
    fn tensor(&self, role: Role) -> Option<&PlannedTensor> {
        let mut tensors = self.plan.of_layer(self.block.layer());
        tensors.find(|tensor| tensor.spec.role == role || tensor.spec.role.parts().contains(&role))
    }

    /// Which channel of what gives it each input at a tap is: heads that share a value head share its channels.
    fn channels(&self, tap: Tap, features: usize) -> Vec<usize> {
        let config = self.block.config();
        let (width, groups) = (config.head_dim, config.num_attention_heads / config.num_key_value_heads);
        match tap {
            Tap::AttnOut => (0..features).map(|col| col / width / groups * width + col % width).collect(),
            _ => (0..features).collect(),
        }
    }

    /// What readers are to be multiplied by so that a norm's weight, divided and rounded to what is stored, leaves outputs alone; and
    /// what is stored of it.
    fn folded(&self, role: Role, scale: &Array1<f32>) -> Result<(Array1<f32>, Array1<f32>)> {
        let added = if self.block.config().family.norms_add_one { 1.0 } else { 0.0 };
        let was = vector(self.block, role) + added;
        let wanted = (&was / scale - added).to_vec();
        let stored = match self.tensor(role).map(|tensor| &tensor.treatment) {
            Some(Treatment::Float(dtype)) => round_floats(*dtype, &wanted)?,
            _ => wanted,
        };
        let mut stored = Array1::from_vec(stored);
        let by = |(&was, now): (&f32, &mut f32)| {
            let by = was / (*now + added);
            if by.is_normal() {
                return by;
            }
            *now = was - added;
            1.0
        };
        let scale = was.iter().zip(&mut stored).map(by).collect();
        Ok((scale, stored))
    }
}

/// A norm or bias of a block.
fn vector(block: &Block, role: Role) -> Array1<f32> {
    let vector = block.parameter(role).and_then(|vector| vector.into_dimensionality::<Ix1>().ok());
    vector.map_or_else(|| Array1::default(0), |vector: ArrayView1<'_, f32>| vector.to_owned())
}

impl Equalized {
    /// Changes a block so; it gives what it gave.
    ///
    /// # Panics
    /// If a matrix of the block is packed.
    pub fn apply(&self, block: &mut Block) {
        for Change { giver, readers, channel_of, scale, norm } in &self.0 {
            for &role in *readers {
                let mut weight = block.weight_mut(role);
                for (mut column, &channel) in weight.columns_mut().into_iter().zip(channel_of) {
                    column.mapv_inplace(|w| w * scale[channel]);
                }
            }
            match *giver {
                Giver::Norm(role) => {
                    if let Some(mut stored) = block.parameter_mut(role) {
                        stored.assign(&norm.view().into_dyn());
                    }
                }
                Giver::Rows { matrix, bias } => {
                    for (mut row, &scale) in block.weight_mut(matrix).rows_mut().into_iter().zip(scale) {
                        row.mapv_inplace(|w| w / scale);
                    }
                    if let Some(mut bias) = block.parameter_mut(bias) {
                        bias.iter_mut().zip(scale).for_each(|(bias, scale)| *bias /= scale);
                    }
                }
            }
        }
    }
}
