//! Why a model cannot be pruned so.

/// Why a model cannot be pruned so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A list keeps something that is not there.
    #[error("{index} is not one of {of}: they are numbered from 0 to {}", of.saturating_sub(1))]
    NotThere {
        /// What was to be kept or dropped.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// Nothing would be left.
    #[error("none of {of} would be left")]
    NothingLeft {
        /// How many there were.
        of: usize,
    },
    /// Query heads of a key head that goes, or groups of different sizes: no configuration says that.
    #[error(
        "layer {layer} keeps {found} query heads of key head {kv_head}, where {expected} are needed: every key head that stays \
         serves equally many"
    )]
    Groups {
        /// The layer.
        layer: usize,
        /// The key head.
        kv_head: usize,
        /// Its query heads that are kept.
        found: usize,
        /// As many as that would fit.
        expected: usize,
    },
    /// Two layers that keep different numbers, which one configuration cannot say.
    #[error(
        "layer {layer} keeps {found} {what}, the first that stays keeps {expected}: they must be equally many"
    )]
    NotUniform {
        /// What is kept.
        what: &'static str,
        /// The layer.
        layer: usize,
        /// How many it keeps.
        found: usize,
        /// How many the first layer keeps.
        expected: usize,
    },
    /// Fewer experts than a token goes to.
    #[error("{kept} experts are too few: every token goes to {per_token}")]
    FewExperts {
        /// Experts that would be left.
        kept: usize,
        /// Experts of a token.
        per_token: usize,
    },
    /// A family that computes with the hidden size.
    #[error(
        "the hidden size of a {family} model cannot be cut: its embeddings are multiplied by the root of it"
    )]
    HiddenSize {
        /// The family.
        family: &'static str,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] attar_model::Error),
}
