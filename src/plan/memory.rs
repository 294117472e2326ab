//! What a pass will hold in memory at its peak: one block, its statistics, the hidden states. Never the model.
//!
//! Where that is more than it may be, what grows with the text leaves memory first: activations between two stages are
//! computed twice, then the hidden states go to a temporary file. What is left is one block and its statistics.

use std::fmt;

use attar_model::{Keeping, KeptFloat, ModelConfig, Place};

use super::machine::available_bytes;
use super::scoring::scratch_folder;
use super::{CalibrationSize, PlannedTensor};
use crate::diagnostic::{Failure, Result};
use crate::pipeline::stream::{CHUNK_TOKENS, Carry};
use crate::source::CHUNK_WEIGHTS;
use crate::talk::human_bytes;

pub(super) const F32: u64 = 4;

/// Matrices of the size of the rows being solved that a solver holds at once: the weights and what is left of them, errors,
/// their product with the Hessian, what two sets of codes decode to, and the codes.
const SOLVER_COPIES: u64 = 8;

/// The program itself, its tokenizer, and what the allocator keeps back.
pub(super) const PROGRAM_BYTES: u64 = 64 << 20;

/// The part of what a pass holds, one in so many bytes, that comes on top of it: buffers of products, and freed memory that
/// the allocator has not given back. Of a pass that was counted at 530 MB without it, 580 MB stood in memory.
pub(super) const ALLOCATOR_PART: u64 = 8;

/// Without a limit from the user, the part of the available memory that is used before anything is computed twice or goes
/// to the disk. The rest serves others, and the system as the cache through which the model is read.
pub(super) const SHARE: u64 = 2;

/// What a pass will need, and how it keeps within that.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Expected peak, in bytes.
    pub peak_bytes: u64,
    /// How the hidden states of the calibration text are kept.
    pub keeping: Keeping,
    /// What stands in memory between two stages.
    pub carry: Carry,
    /// Bytes of the hidden states and, kept like them, of what a layer's experts read; 0 where there is no calibration.
    pub hidden_bytes: u64,
}

/// The ways to run, the fastest first. What is computed twice costs less than what is written and read.
const WAYS: [Way; 4] = [
    Way { spilled: false, carry: Carry { attn_out: true, mlp_mid: true } },
    Way { spilled: false, carry: Carry { attn_out: true, mlp_mid: false } },
    Way { spilled: false, carry: Carry { attn_out: false, mlp_mid: false } },
    Way { spilled: true, carry: Carry { attn_out: false, mlp_mid: false } },
];

#[derive(Clone, Copy)]
struct Way {
    spilled: bool,
    carry: Carry,
}

/// What stands in memory besides one block, its statistics and the hidden states.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Bytes of something else.
    pub bytes: u64,
    /// Whether the unquantized model runs beside.
    pub twin: bool,
    /// Whether a copy of the hidden states is run through each block before.
    pub scout: bool,
}

/// Chooses the fastest way that fits into `max_memory`, or into what the machine can well spare, with so many bytes of something else
/// `beside`.
///
/// # Errors
/// More memory than allowed even at the leanest; no disk for a temporary file that is needed.
pub fn estimate(
    config: &ModelConfig,
    tensors: &[PlannedTensor],
    calibration: Option<CalibrationSize>,
    beside: Beside,
    max_memory: Option<u64>,
) -> Result<Memory> {
    let work = Work { beside, ..Work::new(config, tensors, calibration) };
    let limit = max_memory.or_else(|| available_bytes().map(|bytes| bytes / SHARE)).unwrap_or(u64::MAX);
    let [.., leanest] = WAYS;
    let way = WAYS.into_iter().find(|way| work.peak(*way) <= limit);
    let way = match (way, max_memory) {
        (Some(way), _) => way,
        (None, None) => leanest,
        (None, Some(limit)) => return Err(work.too_large(work.peak(leanest), limit)),
    };
    let place = if way.spilled { Place::Folder(scratch_folder()?) } else { Place::Memory };
    let keeping = Keeping { float: KeptFloat::F32, place };
    Ok(Memory { peak_bytes: work.peak(way), keeping, carry: way.carry, hidden_bytes: work.kept_bytes() })
}

/// The sizes that memory depends on, in numbers and tokens.
struct Work {
    tokens: u64, // 0 without calibration
    chunk: u64,
    hidden: u64,
    query: u64,
    key_value: u64,
    mlps: Vec<Mlp>, // the kinds there are
    block: u64,     // the largest, of experts one, with the largest matrix of several parts once more
    part: u64,
    beside: Beside,
}

/// What a layer's MLP is made of.
#[derive(Clone, Copy)]
enum Mlp {
    Dense(u64), // intermediate_size
    Experts { width: u64, per_token: u64 },
}

impl Mlp {
    fn kinds(config: &ModelConfig) -> Vec<Self> {
        let dense = (0..config.num_hidden_layers).any(|layer| config.experts_of(layer).is_none());
        let dense = dense.then_some(Self::Dense(config.intermediate_size as u64));
        let experts = config.experts.as_ref().map(|experts| Self::Experts {
            width: experts.moe_intermediate_size as u64,
            per_token: experts.num_experts_per_tok as u64,
        });
        dense.into_iter().chain(experts).collect()
    }
}

/// Weights of the largest block, of experts one.
fn largest_block(config: &ModelConfig, tensors: &[PlannedTensor]) -> u64 {
    let mut blocks = vec![0; config.num_hidden_layers];
    for tensor in tensors.iter().filter(|t| t.spec.expert.is_none_or(|expert| expert.index == 0)) {
        if let Some(block) = tensor.spec.layer.and_then(|layer| blocks.get_mut(layer)) {
            *block += tensor.weights() as u64;
        }
    }
    blocks.into_iter().max().unwrap_or(0)
}

/// Numbers that a token takes in the share of each expert it goes to: its row, two numbers long, and what the expert counts for,
/// in lists that grow to twice their length.
const SENT: u64 = 6;

impl Work {
    fn new(config: &ModelConfig, tensors: &[PlannedTensor], calibration: Option<CalibrationSize>) -> Self {
        let weights = |t: &PlannedTensor| t.weights() as u64;
        // A matrix of several parts is put together while it is solved, and taken apart while it is loaded.
        let fused = tensors.iter().filter(|t| t.spec.role.parts().len() > 1).map(weights).max().unwrap_or(0);
        let (tokens, ctx) = calibration.map_or((0, 1), |c| (c.tokens as u64, c.ctx as u64));
        Self {
            tokens,
            chunk: (CHUNK_TOKENS as u64).max(ctx).min(tokens),
            hidden: config.hidden_size as u64,
            query: config.query_size() as u64,
            key_value: config.key_value_size() as u64,
            mlps: Mlp::kinds(config),
            block: largest_block(config, tensors) + fused,
            part: (CHUNK_WEIGHTS as u64).min(tensors.iter().map(weights).max().unwrap_or(0)),
            beside: Beside::default(),
        }
    }

    fn hidden_bytes(&self) -> u64 {
        self.tokens * self.hidden * F32
    }

    /// Bytes of all that is kept as the hidden states are.
    fn kept_bytes(&self) -> u64 {
        let experts = self.mlps.iter().any(|mlp| matches!(mlp, Mlp::Experts { .. }));
        let Beside { twin, scout, .. } = self.beside;
        self.hidden_bytes() * (1 + u64::from(experts || twin) + u64::from(scout))
    }

    fn peak(&self, way: Way) -> u64 {
        let &Self { tokens, chunk, hidden, query, key_value, block, part, .. } = self;
        let solving = SOLVER_COPIES * part * F32;
        if tokens == 0 {
            return PROGRAM_BYTES + solving + self.beside.bytes;
        }
        let attention = 2 * (hidden + query + key_value);
        let (carried_out, made_out) = if way.carry.attn_out { (query, 0) } else { (0, attention) };
        let keep_mid = u64::from(way.carry.mlp_mid);
        // Each stage: the features whose statistics it takes, what it carries per token, what it computes per token.
        let attention = [(hidden, 0, hidden), (query, carried_out, attention)];
        let mlps = self.mlps.iter().flat_map(|mlp| match *mlp {
            Mlp::Dense(ffn) => {
                [(hidden, carried_out, made_out + hidden), (ffn, keep_mid * ffn, hidden + 2 * ffn)]
            }
            // One expert at a time, which may get every token. What all experts read is kept as the hidden states are, and
            // takes the place of the input of o.
            Mlp::Experts { width, per_token } => {
                let experts_in = if way.spilled { 0 } else { hidden };
                let shares = SENT * per_token;
                [
                    (hidden, carried_out.max(experts_in) + shares, made_out + 2 * hidden),
                    (width, experts_in + shares + keep_mid * width, 2 * hidden + 2 * width),
                ]
            }
        });
        // A chunk of hidden states that do not stand in memory does, on its way.
        let moving = if way.spilled { hidden } else { 0 };
        // The memory of what a dense block carries is used again by the next.
        let dense = self.mlps.iter().map(|mlp| if let Mlp::Dense(ffn) = *mlp { ffn } else { 0 });
        let reused = keep_mid * dense.max().unwrap_or(0);
        // The unquantized model has a stream and a block of its own; what one stream has lost of the other takes a matrix, and so do its
        // regression on the inputs and the factor that makes it.
        let (streams, drift) = if self.beside.twin { (2, 3) } else { (1, 0) };
        let stage = |(features, carried, computed): (u64, u64, u64)| {
            let carried = carried.max(reused);
            let square = features * features * F32;
            // Beside the Gram matrix stand activations, then the triangle of its factor in f64, then that in f32 and a
            // solver's work.
            let beside = (chunk * (computed + moving) * F32).max(square).max(square / 2 + solving);
            streams * tokens * carried * F32 + (1 + drift) * square + beside
        };
        let copies = streams + u64::from(self.beside.scout);
        let kept = if way.spilled { 0 } else { copies * self.hidden_bytes() };
        let held =
            kept + streams * block * F32 + attention.into_iter().chain(mlps).map(stage).max().unwrap_or(0);
        PROGRAM_BYTES + held + held / ALLOCATOR_PART + self.beside.bytes
    }

    fn too_large(&self, needed: u64, limit: u64) -> Failure {
        let (needed, limit) = (human_bytes(needed), human_bytes(limit));
        Failure::new(format!("this needs about {needed} of memory, and --max-memory is {limit}")).hint(
            if self.beside.bytes > 0 {
                "a block, the Gram matrix of its widest input and what is made of that alone need this much"
            } else if self.tokens == 0 {
                "the largest matrix alone needs this much"
            } else if self.beside.twin {
                "a block, the same block unquantized, and what tells them apart need this much; --correct-drift off needs about half, --method rtn only the largest matrix"
            } else {
                "a block and its statistics alone need this much; --method rtn needs neither"
            },
        )
    }
}

/// The line of a plan that says where hidden states are kept.
pub(super) fn say_hidden_states(f: &mut fmt::Formatter<'_>, bytes: u64, place: &Place) -> fmt::Result {
    write!(f, "hidden states: {}, ", human_bytes(bytes))?;
    match place {
        Place::Memory => writeln!(f, "in memory"),
        Place::Folder(folder) => writeln!(f, "in a temporary file in {}", folder.display()),
    }
}

/// The last lines of a plan.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hidden_bytes > 0 {
            say_hidden_states(f, self.hidden_bytes, &self.keeping.place)?;
            match self.carry {
                Carry { mlp_mid: true, .. } => {}
                Carry { attn_out: true, .. } => {
                    writeln!(f, "the input of down is computed twice to save memory")?;
                }
                Carry { .. } => writeln!(f, "the inputs of o and of down are computed twice to save memory")?,
            }
        }
        write!(f, "expected peak memory: {}", human_bytes(self.peak_bytes))
    }
}
