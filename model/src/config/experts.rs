//! The numbers of MLPs that are made of experts.

use super::hf::Keys;
use super::{MOST, MOST_LAYERS, value};
use crate::Error;
use crate::family::{ExpertFamily, ExpertWeights};
use serde_json::{Value, json};

/// Most experts of a layer that are believed; the largest models have a few hundred.
const MOST_EXPERTS: usize = 1 << 14;

/// The key for the number of experts that transformers 5 writes whatever the family's own is.
const COMMON_COUNT_KEY: &str = "num_local_experts";

/// The numbers of MLPs that are made of experts. Names are those of Hugging Face configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts a token goes to.
    pub num_experts_per_tok: usize,
    /// Features inside an expert.
    pub moe_intermediate_size: usize,
    /// Whether what a token's experts count for adds up to 1.
    pub norm_topk_prob: bool,
    /// For each layer whether its MLP is made of experts.
    pub layers: Vec<bool>,
}

impl Experts {
    pub(super) fn from_hf(keys: Keys<'_>, family: &ExpertFamily, layers: usize) -> Result<Self, Error> {
        let count = keys.size(family.count_key)?.or(keys.size(COMMON_COUNT_KEY)?);
        let num_experts = count.ok_or_else(|| Error::Missing { key: family.count_key.into() })?;
        let norm_topk_prob = match family.weights {
            ExpertWeights::Normalised => true,
            ExpertWeights::Configured => keys.flag("norm_topk_prob")?,
        };
        Ok(Self {
            num_experts,
            num_experts_per_tok: keys.size("num_experts_per_tok")?.unwrap_or(family.experts_per_token),
            moe_intermediate_size: keys.needed(family.width_key)?,
            norm_topk_prob,
            layers: sparse_layers(keys, family, layers.min(MOST_LAYERS))?,
        })
    }

    /// The keys of a Hugging Face configuration that say so.
    pub(super) fn write_hf(&self, family: &ExpertFamily, config: &mut Value) {
        config[family.count_key] = json!(self.num_experts);
        config["num_experts_per_tok"] = json!(self.num_experts_per_tok);
        config[family.width_key] = json!(self.moe_intermediate_size);
        if family.weights == ExpertWeights::Configured {
            config["norm_topk_prob"] = json!(self.norm_topk_prob);
        }
        if family.mixes_dense {
            let dense = self.layers.iter().enumerate().filter(|(_, sparse)| !**sparse);
            config["decoder_sparse_step"] = json!(1);
            config["mlp_only_layers"] = dense.map(|(layer, _)| layer).collect();
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let sizes = [
            ("num_experts", self.num_experts, MOST_EXPERTS),
            ("num_experts_per_tok", self.num_experts_per_tok, self.num_experts),
            ("moe_intermediate_size", self.moe_intermediate_size, MOST),
        ];
        for (key, found, most) in sizes {
            if found == 0 || found > most {
                return Err(value(key, found, format!("a number from 1 to {most}")));
            }
        }
        Ok(())
    }
}

/// Which layers have experts: all, or where dense ones may stand between them every `decoder_sparse_step`-th that is
/// not among `mlp_only_layers`.
fn sparse_layers(keys: Keys<'_>, family: &ExpertFamily, layers: usize) -> Result<Vec<bool>, Error> {
    if !family.mixes_dense {
        return Ok(vec![true; layers]);
    }
    let step = keys.size("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(value("decoder_sparse_step", 0, "a positive number".into()));
    }
    let dense = keys.read("mlp_only_layers", "a list of layers", |found| {
        found.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<_>>>()
    })?;
    let dense = dense.unwrap_or_default();
    Ok((0..layers)
        .map(|layer| !dense.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step))
        .collect())
}
