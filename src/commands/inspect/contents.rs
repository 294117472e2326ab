//! The tensors of a checkpoint: by type, by name, the largest.

use std::collections::{BTreeSet, HashMap};

use attar_checkpoint::listing::Tensor;
use attar_eval::render::{Section, Table, left, right};

use super::subject::{Subject, is_number, layer_of};
use crate::talk::{human_bytes, human_count, thousands};

/// Rows of a table that is not asked for in full.
const MOST_ROWS: usize = 48;

/// All tensors with what they stand for.
pub struct Contents<'a> {
    tensors: Vec<(&'a Tensor, u64)>, // and the model's weights it holds
    groups: Vec<Group<'a>>,
}

/// Tensors whose names differ in numbers only.
struct Group<'a> {
    pattern: String,
    tensors: Vec<(&'a Tensor, u64)>,
}

/// Tensors of one type, added up.
#[derive(Clone, Copy, Default)]
struct Sum {
    tensors: u64,
    weights: u64,
    bytes: u64,
}

impl Sum {
    fn add(&mut self, (tensor, weights): (&Tensor, u64)) {
        self.tensors += 1;
        self.weights = self.weights.saturating_add(weights);
        self.bytes = self.bytes.saturating_add(tensor.bytes);
    }

    fn bits(self) -> Option<f64> {
        (self.weights > 0).then(|| 8.0 * self.bytes as f64 / self.weights as f64)
    }
}

impl<'a> Contents<'a> {
    /// Of all tensors of a checkpoint.
    pub fn of(subject: &'a Subject) -> Self {
        let tensors: Vec<_> = subject.listing.tensors.iter().zip(subject.weights()).collect();
        let (mut groups, mut places): (Vec<Group<'a>>, HashMap<String, usize>) = Default::default();
        for &(tensor, weights) in &tensors {
            let pattern = pattern(&tensor.name);
            let place = *places.entry(pattern.clone()).or_insert_with(|| {
                groups.push(Group { pattern, tensors: Vec::new() });
                groups.len() - 1
            });
            groups[place].tensors.push((tensor, weights));
        }
        Self { tensors, groups }
    }

    fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        self.tensors.iter().for_each(|tensor| sum.add(*tensor));
        sum
    }

    /// Weights of the model.
    pub fn parameters(&self) -> u64 {
        self.sum().weights
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.sum().bytes
    }

    /// Bits per weight, all that helps to read weights included.
    pub fn bits_per_weight(&self) -> Option<f64> {
        self.sum().bits()
    }

    /// Types in the order of the weights they hold.
    fn types(&self) -> Vec<(&'a str, Sum)> {
        Self::types_of(self.tensors.iter().copied())
    }

    fn types_of(tensors: impl Iterator<Item = (&'a Tensor, u64)>) -> Vec<(&'a str, Sum)> {
        let mut types: Vec<(&str, Sum)> = Vec::new();
        for (tensor, weights) in tensors {
            let place = types.iter().position(|(name, _)| *name == tensor.dtype).unwrap_or_else(|| {
                types.push((&tensor.dtype, Sum::default()));
                types.len() - 1
            });
            types[place].1.add((tensor, weights));
        }
        types.sort_by_key(|(_, sum)| std::cmp::Reverse((sum.weights, sum.bytes)));
        types
    }

    /// The type that most weights of the layers have, and its bits, where it is smaller than floats are.
    pub fn main_type(&self) -> Option<(&'a str, f64)> {
        let in_layers = self.tensors.iter().filter(|(tensor, _)| layer_of(&tensor.name).is_some());
        let of_layers = Self::types_of(in_layers.copied());
        let types = if of_layers.is_empty() { self.types() } else { of_layers };
        let (name, sum) = *types.first()?;
        sum.bits().filter(|bits| *bits < 15.5).map(|bits| (name, bits))
    }

    /// The matrices that have more bits than most, each with its type and, where not all layers have it, their numbers.
    pub fn kept(&self) -> Vec<String> {
        let Some((main, main_bits)) = self.main_type() else { return Vec::new() };
        let mut kept = Vec::new();
        for group in &self.groups {
            let larger = |(tensor, weights): &&(&Tensor, u64)| {
                let bits = 8.0 * tensor.bytes as f64 / (*weights).max(1) as f64;
                tensor.dtype != main && tensor.shape.len() > 1 && *weights > 0 && bits > main_bits + 0.01
            };
            let found: Vec<_> = group.tensors.iter().filter(larger).map(|(tensor, _)| *tensor).collect();
            for dtype in in_order(found.iter().map(|tensor| tensor.dtype.as_str())) {
                let of_type: Vec<_> = found.iter().filter(|tensor| tensor.dtype == dtype).collect();
                let layers: BTreeSet<u64> =
                    of_type.iter().filter_map(|tensor| Some(layer_of(&tensor.name)?.1)).collect();
                let place = if of_type.len() == group.tensors.len() {
                    String::new()
                } else {
                    format!(" in layer{} {}", if layers.len() == 1 { "" } else { "s" }, ranges(&layers))
                };
                kept.push(format!("{} {dtype}{place}", group.pattern));
            }
        }
        kept
    }

    /// A line per type.
    pub fn by_type(&self) -> Section<'static> {
        let columns =
            vec![left("type"), right("tensors"), right("weights"), right("size"), right("bits/weight")];
        let row = |(name, sum): (&str, Sum)| {
            let bits = sum.bits().map_or("-".to_owned(), |bits| format!("{bits:.3}"));
            let (weights, size) = (human_count(sum.weights), human_bytes(sum.bytes));
            vec![name.to_owned(), thousands(sum.tensors), weights, size, bits]
        };
        let rows = self.types().into_iter().map(row).collect();
        Section { heading: "Types", table: Some(Table { columns, rows }), ..Section::default() }
    }

    /// A line per name, numbers aside.
    pub fn by_name(&self) -> Section<'static> {
        let columns = vec![left("tensors"), right("count"), left("shape"), right("size"), left("types")];
        let row = |group: &Group<'_>| {
            let tensors = || group.tensors.iter().map(|(tensor, _)| *tensor);
            let shapes: BTreeSet<&[u64]> = tensors().map(|tensor| &tensor.shape[..]).collect();
            let first = shapes.first().map_or(String::new(), |shape| dims(shape));
            let shape = match shapes.len() {
                0 | 1 => first,
                more => format!("{first} and {} more", more - 1),
            };
            let types = in_order(tensors().map(|tensor| tensor.dtype.as_str()));
            let counted = types.iter().map(|dtype| {
                let count = tensors().filter(|tensor| tensor.dtype == *dtype).count();
                if types.len() > 1 { format!("{dtype} x {count}") } else { (*dtype).to_owned() }
            });
            let size = tensors().map(|tensor| tensor.bytes).fold(0, u64::saturating_add);
            let types = counted.collect::<Vec<_>>().join(", ");
            vec![
                group.pattern.clone(),
                thousands(group.tensors.len() as u64),
                shape,
                human_bytes(size),
                types,
            ]
        };
        let rows: Vec<_> = self.groups.iter().take(MOST_ROWS).map(row).collect();
        let rest = self.groups.len() - rows.len();
        let remarks =
            if rest == 0 { vec![] } else { vec![format!("and {rest} more names: -v lists every tensor")] };
        Section { heading: "Tensors", table: Some(Table { columns, rows }), remarks, ..Section::default() }
    }

    /// The largest tensors in one line.
    pub fn largest(&self) -> Option<String> {
        let mut tensors: Vec<&Tensor> = self.tensors.iter().map(|(tensor, _)| *tensor).collect();
        tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.bytes));
        let largest = tensors.iter().take(3);
        let named = largest.map(|tensor| format!("{} {}", tensor.name, human_bytes(tensor.bytes)));
        let named = named.collect::<Vec<_>>().join(", ");
        (!named.is_empty()).then_some(named)
    }
}

/// A name with `N` for its numbers.
fn pattern(name: &str) -> String {
    let part = |part| if is_number(part) { "N" } else { part };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// Each text once, in the order in which they first come.
fn in_order<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<&'t str> {
    texts.fold(Vec::new(), |mut known, text| {
        if !known.contains(&text) {
            known.push(text);
        }
        known
    })
}

/// `4096 x 1024`.
pub fn dims(shape: &[u64]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ")
}

/// `0-3, 6, 9`.
pub fn ranges(numbers: &BTreeSet<u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(number) => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let run =
        |&(start, end): &(u64, u64)| if start == end { start.to_string() } else { format!("{start}-{end}") };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_are_one_range() {
        assert_eq!(ranges(&BTreeSet::from([0, 1, 2, 5, 7, 8])), "0-2, 5, 7-8");
        assert_eq!(ranges(&BTreeSet::from([u64::MAX])), u64::MAX.to_string());
        assert_eq!(ranges(&BTreeSet::new()), "");
    }

    #[test]
    fn names_that_differ_in_numbers_are_one() {
        assert_eq!(
            pattern("model.layers.12.mlp.experts.7.w1.weight"),
            "model.layers.N.mlp.experts.N.w1.weight"
        );
        assert_eq!(pattern("v.blk1.w"), "v.blk1.w");
    }
}
