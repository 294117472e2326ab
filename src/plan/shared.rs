//! Scales that several matrices share, because programs read those matrices as one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use attar_quant::{FolderEncoding, Named};

use super::{Plan, PlannedTensor, Treatment};
use crate::diagnostic::{Explain, Result};
use crate::source::Source;

impl Plan {
    /// The same with such scales fixed for the largest magnitude of all that share one: q, k and v, or gate and up.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn with_shared_scales(&self, source: &Source) -> Result<Cow<'_, Self>> {
        let mut sets = BTreeMap::<_, Vec<usize>>::new();
        for (at, tensor) in self.tensors.iter().enumerate() {
            let spec = &tensor.spec;
            if shared(tensor).is_some()
                && let Some(tap) = spec.tap
            {
                let expert = spec.expert.map(|expert| expert.index);
                sets.entry((spec.layer, format!("{tap:?}"), expert)).or_default().push(at);
            }
        }
        let mut plan = Cow::Borrowed(self);
        for set in sets.into_values().filter(|set| set.len() > 1) {
            let mut largest = 0.0f32;
            for &at in &set {
                let spec = &self.tensors[at].spec;
                let own = source.largest(spec).doing(|| format!("while looking through `{}`", spec.name))?;
                largest = largest.max(own);
            }
            for at in set {
                let fixed = shared(&self.tensors[at]).and_then(|encoding| encoding.for_largest(largest));
                if let Some(fixed) = fixed {
                    plan.to_mut().tensors[at].treatment = Treatment::Codes(Named::Folder(fixed));
                }
            }
        }
        Ok(plan)
    }
}

/// The encoding of a tensor whose weights all share a scale.
fn shared(tensor: &PlannedTensor) -> Option<&dyn FolderEncoding> {
    match &tensor.treatment {
        Treatment::Codes(Named::Folder(encoding)) if encoding.is_shared() => Some(&**encoding),
        _ => None,
    }
}
