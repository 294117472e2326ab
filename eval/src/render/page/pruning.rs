//! What was cut away.

use super::{Section, Table, left, none, right};
use crate::render::figures::{bytes, grouped, small};
use crate::report::{Candidate, Lost, PrunedLayer, Pruning, Search, Shape};

/// Only what has changed of the shape, then what each layer lost.
pub(super) fn pruning(pruning: &Pruning) -> Section<'static> {
    let (before, after) = (&pruning.before, &pruning.after);
    let numbers = |shape: &Shape| {
        let experts = shape.experts.unwrap_or(0);
        [shape.layers, shape.hidden_size, shape.intermediate_size, shape.query_heads, shape.kv_heads, experts]
    };
    let names = ["layers", "hidden size", "ffn channels", "query heads", "key heads", "experts"];
    let changes = names.into_iter().zip(numbers(before).into_iter().zip(numbers(after)));
    let changed = changes.filter(|(_, (before, after))| before != after);
    let mut facts: Vec<_> = changed
        .map(|(name, (before, after))| (name, format!("{} of {}", grouped(after), grouped(before))))
        .collect();
    let share = 100.0 * after.parameters as f64 / before.parameters.max(1) as f64;
    facts.push(("parameters", format!("{}, {share:.1} % of the model", grouped(after.parameters))));
    facts.extend(pruning.criterion.clone().map(|criterion| ("criterion", criterion)));
    facts.extend(pruning.depth_criterion.clone().map(|criterion| ("layers chosen by", criterion)));
    facts.push(("compensation", pruning.compensation.clone()));
    if let Some(across) = &pruning.across_layers {
        let channels: Vec<_> = pruning.layers.iter().map(|layer| grouped(layer.channels)).collect();
        let heads: Vec<_> = pruning.layers.iter().map(|layer| layer.kv_heads.len().to_string()).collect();
        facts.push(("channels by layer", channels.join(", ")));
        facts.push(("key heads by layer", heads.join(", ")));
        facts.push(("filled up with", format!("{} of zeros", bytes(across.zero_bytes))));
    }
    let dropped: Vec<_> = pruning.dropped_layers.iter().map(|dropped| dropped.layer.to_string()).collect();
    if !dropped.is_empty() {
        facts.push(("dropped layers", dropped.join(", ")));
    }
    let columns =
        vec![right("layer"), right("o dropped"), right("repaired"), right("down dropped"), right("repaired")];
    let is_lossy = |layer: &&PrunedLayer| layer.o_proj.is_some() || layer.down_proj.is_some();
    let rows: Vec<_> = pruning.layers.iter().filter(is_lossy).map(lost_row).collect();
    let table = (!rows.is_empty()).then_some(Table { columns, rows });
    let lost = pruning.layers.iter().flat_map(|l| [(l, "o_proj", &l.o_proj), (l, "down_proj", &l.down_proj)]);
    let fell_back =
        lost.filter_map(|(layer, name, lost)| Some((layer, name, lost.as_ref()?.fallback.as_ref()?)));
    let remarks =
        fell_back.map(|(layer, name, why)| format!("layer {}, {name} not repaired: {why}", layer.layer));
    let remarks = remarks.chain(pruning.ruled_out.iter().cloned()).collect();
    Section { heading: "Pruning", facts, table, remarks, ..Section::default() }
}

/// Every shape that was measured, in the order of the search.
pub(super) fn search(search: &Search) -> Section<'static> {
    let columns = vec![
        left(""),
        right("layers"),
        right("hidden size"),
        right("ffn channels"),
        right("query heads"),
        right("key heads"),
        right("parameters"),
        right("KL divergence"),
    ];
    let row = |candidate: &Candidate| {
        let Shape { layers, hidden_size, intermediate_size, query_heads, kv_heads, parameters, .. } =
            candidate.shape;
        let mark = if candidate.chosen { "chosen" } else { "" };
        let numbers =
            [layers, hidden_size, intermediate_size, query_heads, kv_heads, parameters].map(grouped);
        [mark.to_owned()].into_iter().chain(numbers).chain([small(candidate.kl_divergence)]).collect()
    };
    let facts = vec![
        ("target", format!("{} parameters", grouped(search.target_parameters))),
        ("measured on", format!("{} tokens of the calibration text", grouped(search.tokens))),
    ];
    let rows = search.candidates.iter().map(row).collect();
    Section { heading: "Search", facts, table: Some(Table { columns, rows }), ..Section::default() }
}

fn lost_row(layer: &PrunedLayer) -> Vec<String> {
    let both = |lost: &Option<Lost>| {
        lost.as_ref().map_or_else(|| [none(), none()], |lost| [small(lost.error_dropped), small(lost.error)])
    };
    let mut row = vec![layer.layer.to_string()];
    row.extend(both(&layer.o_proj));
    row.extend(both(&layer.down_proj));
    row
}
