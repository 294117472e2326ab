//! What is kept of every group of a model, and the configuration of what is left.

use crate::coupling::Group;
use crate::{Error, KeepList};
use attar_model::family::{QkNorm, Scales};
use attar_model::{LayerSizes, ModelConfig, Role, TensorSpec};
use std::collections::BTreeMap;

/// What is kept of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockCuts {
    /// Channels of the MLP; of the layer's own, where it has no experts.
    pub ffn: KeepList,
    /// Query heads.
    pub query_heads: KeepList,
    /// Key and value heads.
    pub kv_heads: KeepList,
    /// Experts, where the MLP is made of them.
    pub experts: Option<KeepList>,
}

impl BlockCuts {
    /// The sizes of what is left.
    pub fn sizes(&self) -> LayerSizes {
        LayerSizes {
            intermediate_size: self.ffn.len(),
            num_attention_heads: self.query_heads.len(),
            num_key_value_heads: self.kv_heads.len(),
        }
    }
}

/// What is kept of a model: one list for each group of features that are one thing in several tensors.
///
/// Layers have the numbers they had before anything was cut, everywhere but in the names of what is left.
#[derive(Debug, Clone, PartialEq)]
pub struct Cuts {
    /// Layers.
    pub layers: KeepList,
    /// Features of the residual stream.
    pub hidden: KeepList,
    /// What is kept of each layer, those that go among them.
    pub blocks: Vec<BlockCuts>,
    /// What norms' weights are multiplied by, because their mean is over other features than before.
    pub norms: BTreeMap<(Role, Option<usize>), f32>,
}

impl Cuts {
    /// Nothing goes of a model whose layers are alike.
    pub fn none(config: &ModelConfig) -> Self {
        let block = |layer| BlockCuts {
            ffn: KeepList::all(config.intermediate_size),
            query_heads: KeepList::all(config.num_attention_heads),
            kv_heads: KeepList::all(config.num_key_value_heads),
            experts: config.experts_of(layer).map(|experts| KeepList::all(experts.num_experts)),
        };
        Self {
            layers: KeepList::all(config.num_hidden_layers),
            hidden: KeepList::all(config.hidden_size),
            blocks: (0..config.num_hidden_layers).map(block).collect(),
            norms: BTreeMap::new(),
        }
    }

    /// The configuration of what is left, with the sizes of every layer where not all have the same.
    ///
    /// # Errors
    /// What no configuration of the family can say: see [`Error`].
    ///
    /// # Panics
    /// If these are not cuts of a model of this shape, whose layers are alike.
    pub fn config(&self, of: &ModelConfig) -> Result<ModelConfig, Error> {
        self.assert_of(of);
        let mut kept = self.layers.kept().iter();
        let first = kept.next().map(|&layer| &self.blocks[layer]).ok_or(Error::NothingLeft { of: 0 })?;
        if !self.hidden.is_all() && matches!(of.family.scales, Scales::RootOfHiddenSize { .. }) {
            return Err(Error::HiddenSize { family: of.family.name });
        }
        for &layer in self.layers.kept() {
            self.check_heads(of, layer)?;
            let here = &self.blocks[layer];
            let uniform = |what, found: usize, expected: usize| {
                if found == expected {
                    Ok(())
                } else {
                    Err(Error::NotUniform { what, layer, found, expected })
                }
            };
            let per_key_head = |block: &BlockCuts| block.query_heads.len() / block.kv_heads.len();
            uniform("query heads of every key head", per_key_head(here), per_key_head(first))?;
            if of.family.qk_norm == QkNorm::Whole {
                uniform("key heads", here.kv_heads.len(), first.kv_heads.len())?;
            }
        }
        let experts = self
            .layers
            .kept()
            .iter()
            .filter_map(|&layer| Some((layer, self.blocks[layer].experts.as_ref()?)));
        let experts: Vec<_> = experts.collect();
        if let (Some((_, first)), Some(numbers)) = (experts.first(), &of.experts) {
            let expected = first.len();
            if let Some((layer, other)) = experts.iter().find(|(_, list)| list.len() != expected) {
                let (layer, found) = (*layer, other.len());
                return Err(Error::NotUniform { what: "experts", layer, found, expected });
            }
            if expected < numbers.num_experts_per_tok {
                return Err(Error::FewExperts { kept: expected, per_token: numbers.num_experts_per_tok });
            }
        }
        let config = self.shape(of, first, experts.first().map(|(_, list)| list.len()));
        let sizes = self.of_kept_layers(&self.blocks).iter().map(BlockCuts::sizes).collect::<Vec<_>>();
        let all_equal = sizes.iter().all(|sizes| *sizes == first.sizes());
        Ok(if all_equal { config } else { config.with_layer_sizes(sizes) })
    }

    /// The configuration that one layer has on its own: its numbers, whatever those of other layers are.
    ///
    /// # Panics
    /// As [`config`](Self::config), or if there is no such layer.
    pub fn block_config(&self, of: &ModelConfig, layer: usize) -> ModelConfig {
        self.assert_of(of);
        let here = &self.blocks[layer];
        self.shape(of, here, here.experts.as_ref().map(KeepList::len))
    }

    fn shape(&self, of: &ModelConfig, block: &BlockCuts, experts: Option<usize>) -> ModelConfig {
        let mut config = of.clone();
        config.num_hidden_layers = self.layers.len();
        config.hidden_size = self.hidden.len();
        let LayerSizes { intermediate_size, num_attention_heads, num_key_value_heads } = block.sizes();
        config.intermediate_size = intermediate_size;
        config.num_attention_heads = num_attention_heads;
        config.num_key_value_heads = num_key_value_heads;
        config.rope_layers = self.of_kept_layers(&of.rope_layers);
        config.sliding_windows = self.of_kept_layers(&of.sliding_windows);
        if let Some(numbers) = &mut config.experts {
            numbers.layers = self.of_kept_layers(&numbers.layers);
            numbers.num_experts = experts.unwrap_or(numbers.num_experts);
        }
        config
    }

    /// Of one entry for each layer those of the layers that stay.
    pub fn of_kept_layers<T: Clone>(&self, list: &[T]) -> Vec<T> {
        self.layers.kept().iter().filter_map(|&layer| list.get(layer).cloned()).collect()
    }

    /// Every key head that stays serves equally many query heads, and no other is served.
    fn check_heads(&self, of: &ModelConfig, layer: usize) -> Result<(), Error> {
        let BlockCuts { query_heads, kv_heads, .. } = &self.blocks[layer];
        let size = of.num_attention_heads / of.num_key_value_heads;
        for kv_head in 0..of.num_key_value_heads {
            let stays = kv_heads.keeps(kv_head);
            let expected = if stays { query_heads.len() / kv_heads.len() } else { 0 };
            let found =
                (kv_head * size..(kv_head + 1) * size).filter(|&head| query_heads.keeps(head)).count();
            if found != expected || (stays && found == 0) {
                return Err(Error::Groups {
                    layer,
                    kv_head,
                    found,
                    expected: expected.max(usize::from(stays)),
                });
            }
        }
        Ok(())
    }

    /// What is kept of the features of a group in a tensor of the model before, `features` of them.
    pub(crate) fn kept_of(
        &self,
        group: Group,
        of: &ModelConfig,
        spec: &TensorSpec,
        features: usize,
    ) -> KeepList {
        let block = spec.layer.map(|layer| &self.blocks[layer]);
        match (group, block) {
            (Group::Hidden, _) => self.hidden.clone(),
            (Group::Ffn, Some(block)) if spec.expert.is_none() => block.ffn.clone(),
            (Group::QueryHeads, Some(block)) => block.query_heads.in_parts(of.head_dim),
            (Group::KvHeads, Some(block)) => block.kv_heads.in_parts(of.head_dim),
            (Group::Experts, Some(BlockCuts { experts: Some(experts), .. })) => experts.clone(),
            _ => KeepList::all(features),
        }
    }

    fn assert_of(&self, of: &ModelConfig) {
        assert_eq!(self.layers.of(), of.num_hidden_layers, "cuts of as many layers");
        assert_eq!(self.blocks.len(), of.num_hidden_layers, "cuts of every layer");
        assert_eq!(self.hidden.of(), of.hidden_size, "cuts of as many features");
        assert!(of.layer_sizes.is_empty(), "cuts of a model whose layers are alike");
        for block in &self.blocks {
            assert_eq!(block.ffn.of(), of.intermediate_size, "cuts of as many channels");
            assert_eq!(block.query_heads.of(), of.num_attention_heads, "cuts of as many query heads");
            assert_eq!(block.kv_heads.of(), of.num_key_value_heads, "cuts of as many key heads");
        }
    }
}
