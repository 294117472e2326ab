//! What a configuration says of rotary embedding and sliding windows, which may differ from layer to layer.

use super::{Keys, unsupported};
use crate::Error;
use crate::config::{Llama3Scaling, LongRope, MOST_LAYERS, RopeScaling, listed, value};
use crate::family::{Family, Sliding};
use serde_json::Value;

/// Kinds of rotary scaling that are computed.
const ROPE_TYPES: [&str; 4] = ["default", "linear", "llama3", "longrope"];

/// Names under which Phi-3 files have had `longrope`.
const LONGROPE_ONCE: [&str; 2] = ["su", "yarn"];

/// What a configuration says of the rotary embedding.
pub struct Rotary {
    pub dim: usize,
    pub theta: f64,
    pub scaling: Option<RopeScaling>,
    pub local_theta: Option<f64>,
}

/// Reads `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling`.
pub fn rope(keys: Keys<'_>, family: &Family, head_dim: usize) -> Result<Rotary, Error> {
    let parameters =
        ["rope_parameters", "rope_scaling"].map(|key| &keys.0[key]).into_iter().find(|x| !x.is_null());
    let parameters = parameters.unwrap_or(&Value::Null);
    let (all, sliding) = (&parameters["full_attention"], &parameters["sliding_attention"]);
    let by_layer = all.is_object() || sliding.is_object();
    if by_layer && family.local_rope_theta.is_none() {
        return Err(unsupported(
            "rope_parameters",
            "one set for each type of layer",
            "one set for all".into(),
        ));
    }
    let rope = Keys(if by_layer { all } else { parameters });
    let local_theta = match family.local_rope_theta {
        None => None,
        Some(default) => {
            Keys(sliding).one_of("rope_type", "default", &["default"])?;
            let theta = Keys(sliding).number("rope_theta")?.or(keys.number("rope_local_base_freq")?);
            Some(theta.unwrap_or(default))
        }
    };
    Ok(Rotary {
        dim: rotary_dim(keys, rope, family, head_dim)?,
        theta: rope
            .number("rope_theta")?
            .or(keys.number("rope_theta")?)
            .unwrap_or(family.defaults.rope_theta),
        scaling: scaling(keys, rope, family)?,
        local_theta,
    })
}

fn rotary_dim(keys: Keys<'_>, rope: Keys<'_>, family: &Family, head_dim: usize) -> Result<usize, Error> {
    let key = "partial_rotary_factor";
    let share = rope.number(key)?.or(keys.number(key)?).unwrap_or(1.0);
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    if share == 1.0 {
        return Ok(head_dim);
    }
    if !family.partial_rotary {
        return Err(unsupported(key, share, "1".into()));
    }
    if !(share > 0.0 && share < 1.0) {
        return Err(value(key, share, "a number above 0 and up to 1".into()));
    }
    Ok((head_dim as f64 * share) as usize)
}

fn scaling(keys: Keys<'_>, rope: Keys<'_>, family: &Family) -> Result<Option<RopeScaling>, Error> {
    let key = if rope.0["rope_type"].is_null() { "type" } else { "rope_type" };
    let has_factors = rope.0["short_factor"].is_array();
    let once = rope.0[key].as_str().is_some_and(|name| has_factors && LONGROPE_ONCE.contains(&name));
    let kind = if once { "longrope" } else { rope.one_of(key, "default", &ROPE_TYPES)? };
    let original = "original_max_position_embeddings";
    Ok(match kind {
        "linear" => Some(RopeScaling::Linear(rope.needed_number("factor")?)),
        "llama3" => Some(RopeScaling::Llama3(Llama3Scaling {
            factor: rope.needed_number("factor")?,
            low_freq_factor: rope.needed_number("low_freq_factor")?,
            high_freq_factor: rope.needed_number("high_freq_factor")?,
            original_max_position_embeddings: match rope.number(original)? {
                Some(tokens) => tokens,
                None => keys.needed_number("max_position_embeddings")?,
            },
        })),
        "longrope" => {
            let longest = keys.size("max_position_embeddings")?;
            let longest = longest.unwrap_or(family.defaults.max_position_embeddings);
            let original = keys.size(original)?.or(rope.size(original)?).unwrap_or(longest);
            let factor = rope.number("factor")?.unwrap_or(longest as f64 / original as f64);
            Some(RopeScaling::LongRope(LongRope {
                short_factor: rope.needed_numbers("short_factor")?,
                long_factor: rope.needed_numbers("long_factor")?,
                original_max_position_embeddings: original,
                attention_factor: rope
                    .number("attention_factor")?
                    .map_or_else(|| LongRope::attention_factor(factor, original), |factor| factor as f32),
            }))
        }
        _ => None,
    })
}

/// For each layer whether it has rotary embedding.
pub fn rope_layers(keys: Keys<'_>, family: &Family, layers: usize) -> Result<Vec<bool>, Error> {
    let layers = layers.min(MOST_LAYERS);
    let Some(default) = family.no_rope_layer_interval else { return Ok(vec![true; layers]) };
    if let Some(list) = keys.per_layer("no_rope_layers", layers)? {
        // Despite its name, ones are layers that have it.
        let entry = |x: &Value| match x.as_u64() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(value("no_rope_layers", x, "a list of ones and zeros".into())),
        };
        return list.iter().map(entry).collect();
    }
    let interval = keys.size("no_rope_layer_interval")?.unwrap_or(default);
    if interval == 0 {
        return Err(value("no_rope_layer_interval", 0, "a positive number".into()));
    }
    Ok((1..=layers).map(|nth| !nth.is_multiple_of(interval)).collect())
}

/// For each layer how many tokens a token sees, if not all; `rope_layers` as [`rope_layers`] has them.
pub fn sliding_windows(
    keys: Keys<'_>,
    family: &Family,
    rope_layers: &[bool],
) -> Result<Vec<Option<usize>>, Error> {
    let default = match family.sliding {
        Sliding::All(width) => width,
        Sliding::AllButEvery { width, .. } => Some(width),
        Sliding::Never | Sliding::Configured | Sliding::AllIfUsed | Sliding::WithoutRope => None,
    };
    let width = match (family.sliding, keys.0.get("sliding_window")) {
        (Sliding::All(_) | Sliding::AllButEvery { .. }, None) => default,
        (Sliding::All(_) | Sliding::AllButEvery { .. }, Some(_)) => keys.size("sliding_window")?,
        (Sliding::Configured | Sliding::AllIfUsed | Sliding::WithoutRope, _)
            if keys.flag("use_sliding_window")? =>
        {
            Some(keys.needed("sliding_window")?)
        }
        (Sliding::Never | Sliding::Configured | Sliding::AllIfUsed | Sliding::WithoutRope, _) => None,
    };
    if width == Some(0) {
        return Err(value("sliding_window", 0, "a positive number or null".into()));
    }
    let layers = rope_layers.len();
    if width.is_none() || matches!(family.sliding, Sliding::Never | Sliding::All(_) | Sliding::AllIfUsed) {
        return Ok(vec![width; layers]);
    }
    if let Some(types) = keys.per_layer("layer_types", layers)? {
        let window = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(width),
            Some("full_attention") => Ok(None),
            _ => Err(unsupported("layer_types", kind, listed(["full_attention", "sliding_attention"]))),
        };
        return types.iter().map(window).collect();
    }
    let slides: Box<dyn Fn(usize) -> bool> = match family.sliding {
        Sliding::AllButEvery { period, .. } => {
            let period = keys.size("sliding_window_pattern")?.unwrap_or(period);
            Box::new(move |layer| period > 0 && !(layer + 1).is_multiple_of(period))
        }
        Sliding::WithoutRope => Box::new(|layer| !rope_layers[layer]),
        _ => {
            let full = keys.size("max_window_layers")?.unwrap_or(28);
            Box::new(move |layer| layer >= full)
        }
    };
    Ok((0..layers).map(|layer| width.filter(|_| slides(layer))).collect())
}
