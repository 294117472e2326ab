//! The lines of a printed plan: one for each tensor, one for all experts of a layer that are treated alike.

use std::collections::HashMap;

use attar_model::{ExpertIndex, Role};

use super::PlannedTensor;

/// One line.
pub struct Line<'a> {
    /// The tensor's name; `*` stands for the experts' numbers.
    pub name: String,
    /// Its shape; the experts' number comes first.
    pub shape: Vec<usize>,
    /// The type it gets.
    pub encoding: String,
    /// Bytes it takes.
    pub bytes: u64,
    /// Why it did not get the type the scheme says.
    pub fallback: Option<&'a str>,
}

/// The lines for `tensors`, in their order; experts stand where the first of them does.
pub fn of(tensors: &[PlannedTensor]) -> impl Iterator<Item = Line<'_>> {
    let mut stacks: HashMap<(Option<usize>, Role), Vec<&PlannedTensor>> = HashMap::new();
    for tensor in tensors.iter().filter(|t| t.spec.expert.is_some()) {
        stacks.entry((tensor.spec.layer, tensor.spec.role)).or_default().push(tensor);
    }
    stacks.retain(|_, stack| {
        let look = |t: &PlannedTensor| (t.encoding_name(), t.fallback.clone());
        stack.iter().all(|t| look(t) == look(stack[0]))
    });
    tensors.iter().filter_map(move |tensor| {
        let spec = &tensor.spec;
        let (name, shape, bytes) = match (spec.expert, stacks.get(&(spec.layer, spec.role))) {
            (Some(ExpertIndex { index: 1.., .. }), Some(_)) => return None,
            (Some(ExpertIndex { index, count }), Some(stack)) => (
                spec.name.replace(&format!(".experts.{index}."), ".experts.*."),
                [&[count], &spec.shape[..]].concat(),
                stack.iter().map(|t| t.bytes).sum(),
            ),
            _ => (spec.name.clone(), spec.shape.clone(), tensor.bytes),
        };
        Some(Line {
            name,
            shape,
            encoding: tensor.encoding_name(),
            bytes,
            fallback: tensor.fallback.as_deref(),
        })
    })
}
