//! What is done to channels before codes are chosen.

/// Whether channels that matter are multiplied in the weights that read them, and divided in what gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Equalize {
    /// Not at all.
    #[default]
    No,
    /// By how large their inputs are: AWQ.
    Activations,
}
