//! What shape is asked for, and whether a model can have it.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use attar_model::{LayerSizes, ModelConfig, Role, TensorSpec};
use attar_prune::{Cuts, KeepList};

use crate::diagnostic::{Explain, Failure, Result};
use crate::talk::thousands;

/// How much stays: a share with a point in it, or a number without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Above 0, up to 1.
    Share(f64),
    /// So many.
    Count(usize),
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let share = |share: f64| (share > 0.0 && share <= 1.0).then_some(Self::Share(share));
        let amount = if text.contains('.') {
            text.parse().ok().and_then(share)
        } else {
            text.parse().ok().filter(|count| *count > 0).map(Self::Count)
        };
        amount.ok_or_else(|| "a share above 0.0 and up to 1.0, or a number without a point".to_owned())
    }
}

/// A number of parameters: a share of those there are with a point in it, or a number, perhaps in thousands, millions or billions.
///
/// # Errors
/// Anything else, in words.
pub fn parse_parameters(text: &str) -> std::result::Result<Amount, String> {
    let units = [('k', 1e3), ('m', 1e6), ('b', 1e9)];
    let unit = text.chars().next_back().map(|last| last.to_ascii_lowercase());
    let factor = units.iter().find(|(name, _)| Some(*name) == unit).map(|(_, factor)| factor);
    let count = factor.and_then(|factor| {
        let number: f64 = text[..text.len() - 1].parse().ok()?;
        (number > 0.0 && number.is_finite()).then(|| Amount::Count((number * factor) as usize))
    });
    let amount = if factor.is_some() { count } else { text.parse().ok() };
    amount.ok_or_else(|| "a share above 0.0 and up to 1.0, or a number such as 4M or 1.5B".to_owned())
}

/// What the user wants to keep; nothing goes where nothing is said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Layers that stay.
    pub layers: Option<usize>,
    /// Layers that go.
    pub drop: Vec<usize>,
    /// Channels of the MLP.
    pub ffn: Option<Amount>,
    /// Query heads.
    pub heads: Option<Amount>,
    /// Key heads.
    pub kv_heads: Option<Amount>,
    /// Features of the residual stream.
    pub hidden: Option<Amount>,
    /// Experts.
    pub experts: Option<usize>,
    /// What widths are multiples of.
    pub align: Option<usize>,
    /// Parameters of all that stays, where layers, channels and heads are to be found to that.
    pub target: Option<Amount>,
    /// Whether some layers keep more channels and key heads than others.
    pub across_layers: bool,
}

/// The numbers of a model that pruning changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Features of the residual stream.
    pub hidden: usize,
    /// Channels of the MLP.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Experts, where MLPs are made of them.
    pub experts: Option<usize>,
}

/// The largest multiple that widths are rounded to unless the user says otherwise: the blocks of the K-quants.
pub(super) const WIDEST_ALIGN: usize = 256;

/// How far from what was asked for a multiple may be, as a part of the present width, to be rounded to without being told.
const NEAR: f64 = 1.0 / 16.0;

impl Shape {
    /// Of a model.
    pub fn of(config: &ModelConfig) -> Self {
        Self {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            ffn: config.intermediate_size,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            experts: config.experts.as_ref().map(|experts| experts.num_experts),
        }
    }

    /// The sizes of its layers.
    pub fn sizes(&self) -> LayerSizes {
        LayerSizes {
            intermediate_size: self.ffn,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
        }
    }

    /// What is left of a model when what is wanted is kept.
    ///
    /// # Errors
    /// A shape that the model cannot have; nothing that goes.
    pub fn resolve(config: &ModelConfig, wanted: &Wanted) -> Result<Self> {
        let before = Self::of(config);
        let (heads, kv_heads) = before.resolve_heads(wanted)?;
        let after = Self {
            layers: before.resolve_layers(wanted)?,
            hidden: width("--hidden", wanted.hidden, before.hidden, wanted.align)?,
            ffn: width("--ffn", wanted.ffn, before.ffn, wanted.align)?,
            heads,
            kv_heads,
            experts: before.resolve_experts(config, wanted)?,
        };
        if wanted.ffn.is_some() && before.experts.is_some() {
            return Err(Failure::new(
                "--ffn cuts the channels of an MLP, and this model's are made of experts",
            )
            .hint("--experts N keeps N of them"));
        }
        if after == before {
            return Err(Failure::new("nothing would go: the model keeps its shape").hint(
                "say what stays: --layers, --ffn, --heads, --kv-heads, --hidden, --experts or --target-params; --drop says which layers go",
            ));
        }
        Ok(after)
    }

    fn resolve_layers(&self, wanted: &Wanted) -> Result<usize> {
        if !wanted.drop.is_empty() {
            let keep = KeepList::without(&wanted.drop, self.layers);
            let keep = keep
                .doing(|| "while reading --drop")
                .hint(|| "layers are counted from 0, and one at least must stay")?;
            return Ok(keep.len());
        }
        count("--layers", wanted.layers.unwrap_or(self.layers), self.layers, "layers")
    }

    fn resolve_experts(&self, config: &ModelConfig, wanted: &Wanted) -> Result<Option<usize>> {
        let Some(kept) = wanted.experts else { return Ok(self.experts) };
        let (Some(present), Some(numbers)) = (self.experts, &config.experts) else {
            return Err(Failure::new(
                "--experts is for models whose MLPs are made of experts, and this one's are not",
            )
            .hint("--ffn cuts the channels of its MLPs"));
        };
        let least = numbers.num_experts_per_tok;
        if kept < least {
            return Err(Failure::new(format!("--experts {kept} are too few: every token goes to {least}"))
                .hint(format!("keep {least} to {present}")));
        }
        count("--experts", kept, present, "experts").map(Some)
    }

    /// Query heads and key heads.
    fn resolve_heads(&self, wanted: &Wanted) -> Result<(usize, usize)> {
        let per_group = self.heads / self.kv_heads;
        // Where every key head serves one query head the two go together.
        let kv_wanted = wanted.kv_heads.or(wanted.heads.filter(|_| per_group == 1));
        let kv_heads = match kv_wanted {
            None => self.kv_heads,
            Some(Amount::Count(kept)) => count("--kv-heads", kept, self.kv_heads, "key heads")?,
            Some(Amount::Share(share)) => ((self.kv_heads as f64 * share).round() as usize).max(1),
        };
        let heads = match wanted.heads {
            None => kv_heads * per_group,
            Some(Amount::Count(kept)) => count("--heads", kept, self.heads, "query heads")?,
            Some(Amount::Share(share)) => {
                let each = (self.heads as f64 * share / kv_heads as f64).round() as usize;
                each.clamp(1, per_group) * kv_heads
            }
        };
        if !heads.is_multiple_of(kv_heads) || heads > kv_heads * per_group {
            let possible: Vec<_> = (1..=per_group).map(|each| (each * kv_heads).to_string()).collect();
            return Err(Failure::new(format!(
                "{heads} query heads cannot be shared out among {kv_heads} key heads of up to {per_group} each"
            ))
            .hint(format!("with {kv_heads} key heads --heads can be {}", possible.join(", "))));
        }
        Ok((heads, kv_heads))
    }

    /// Elements of all weight tensors of a model that is cut to this shape.
    ///
    /// # Errors
    /// As [`stand_in`](Self::stand_in).
    pub fn parameters(&self, config: &ModelConfig) -> Result<u64> {
        let config = self.stand_in(config, &[])?.config(config).hint(|| "prune along other axes")?;
        Ok(config.tensors().iter().map(|spec| spec.len() as u64).sum())
    }

    /// Cuts of this shape that keep what comes first: what can be known of the result before anything is measured.
    ///
    /// # Errors
    /// A shape that the family cannot have.
    pub fn stand_in(&self, config: &ModelConfig, drop: &[usize]) -> Result<Cuts> {
        self.stand_in_of(config, drop, &[])
    }

    /// [`stand_in`](Self::stand_in) whose layers have sizes of their own, one for each that stays; none where all have this shape's.
    ///
    /// # Errors
    /// As [`stand_in`](Self::stand_in).
    pub fn stand_in_of(&self, config: &ModelConfig, drop: &[usize], sizes: &[LayerSizes]) -> Result<Cuts> {
        let first = |kept: usize, of: usize| KeepList::new(0..kept, of);
        let mut cuts = Cuts::none(config);
        cuts.layers = if drop.is_empty() {
            first(self.layers, config.num_hidden_layers)?
        } else {
            KeepList::without(drop, config.num_hidden_layers)?
        };
        cuts.hidden = first(self.hidden, config.hidden_size)?;
        let size = config.num_attention_heads / config.num_key_value_heads;
        let each = self.heads / self.kv_heads;
        for (layer, block) in cuts.blocks.iter_mut().enumerate() {
            let new = cuts.layers.kept().binary_search(&layer).ok();
            let LayerSizes { intermediate_size, num_key_value_heads, .. } =
                new.and_then(|new| sizes.get(new).copied()).unwrap_or_else(|| self.sizes());
            block.ffn = first(intermediate_size, config.intermediate_size)?;
            block.kv_heads = first(num_key_value_heads, config.num_key_value_heads)?;
            let heads = (0..num_key_value_heads).flat_map(|group| group * size..group * size + each);
            block.query_heads = KeepList::new(heads, config.num_attention_heads)?;
            if let (Some(experts), Some(kept)) = (&mut block.experts, self.experts) {
                *experts = first(kept, experts.of())?;
            }
        }
        Ok(cuts)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, hidden, ffn, heads, kv_heads, .. } = self;
        write!(
            f,
            "{layers} layers, hidden size {hidden}, {ffn} channels, {heads} query heads, {kv_heads} key heads"
        )
    }
}

/// A number of things that are there.
fn count(option: &str, kept: usize, present: usize, what: &str) -> Result<usize> {
    if (1..=present).contains(&kept) {
        return Ok(kept);
    }
    Err(Failure::new(format!("{option} {kept}: the model has {present} {what}"))
        .hint(format!("keep 1 to {present} of them")))
}

/// A width that is wanted of a present one.
pub(super) fn width(
    option: &str,
    wanted: Option<Amount>,
    present: usize,
    align: Option<usize>,
) -> Result<usize> {
    match (wanted, align) {
        (None, _) => Ok(present),
        (Some(Amount::Count(kept)), Some(align)) if !kept.is_multiple_of(align) => {
            let near = (kept / align).max(1) * align;
            Err(Failure::new(format!("{option} {kept} is not a multiple of --align {align}"))
                .hint(format!("{near} is, or leave --align out")))
        }
        (Some(Amount::Count(kept)), _) => count(option, kept, present, "features there"),
        (Some(Amount::Share(share)), align) => {
            let asked = present as f64 * share;
            let align = align.unwrap_or_else(|| default_align(asked, present));
            let rounded = rounded(asked, align);
            if rounded > present {
                return Err(Failure::new(format!(
                    "{option} {share}: no multiple of --align {align} is below {present}"
                ))
                .hint("a smaller --align has some"));
            }
            Ok(rounded)
        }
    }
}

/// The nearest multiple but 0.
fn rounded(asked: f64, align: usize) -> usize {
    ((asked / align as f64).round() as usize).max(1) * align
}

/// The largest power of two that divides the present width and has a multiple near what is asked for.
fn default_align(asked: f64, present: usize) -> usize {
    let mut align = WIDEST_ALIGN;
    let fits = |align: usize| {
        let far = (rounded(asked, align) as f64 - asked).abs();
        present.is_multiple_of(align) && far <= NEAR * present as f64
    };
    while align > 1 && !fits(align) {
        align /= 2;
    }
    align
}

/// Lines of a plan: the shape before and after.
pub fn say_shapes(before: &ModelConfig, after: &ModelConfig) -> String {
    let (a, b) = (Shape::of(before), Shape::of(after));
    let parameters = |config: &ModelConfig| config.tensors().iter().map(TensorSpec::len).sum::<usize>();
    let experts = |shape: Shape| shape.experts.unwrap_or(0);
    let rows = [
        ("layers", a.layers, b.layers),
        ("hidden size", a.hidden, b.hidden),
        ("ffn channels", a.ffn, b.ffn),
        ("query heads", a.heads, b.heads),
        ("key heads", a.kv_heads, b.kv_heads),
        ("experts", experts(a), experts(b)),
        ("parameters", parameters(before), parameters(after)),
    ];
    let mut lines = String::new();
    for (what, before, after) in rows.into_iter().filter(|(_, before, _)| *before > 0) {
        let (left, right) = (thousands(before as u64), thousands(after as u64));
        let share = if before == after {
            String::new()
        } else {
            format!("  {:.1} %", 100.0 * after as f64 / before as f64)
        };
        let _ = writeln!(lines, "{what:<14}{left:>14} -> {right:>14}{share}"); // a String never fails
    }
    lines
}

/// Number formats, files and programs that the new shape rules out and the old one did not, in a sentence each.
pub fn ruled_out(before: &ModelConfig, after: &ModelConfig) -> Vec<String> {
    let mut found = Vec::new();
    for (block, types) in [(256, "K-quants"), (32, "q8_0, q5_0, q4_0 and their like")] {
        for (rows, roles) in row_lengths(after) {
            let was =
                row_lengths(before).iter().any(|(rows, of)| *of == roles && !rows.is_multiple_of(block));
            if !rows.is_multiple_of(block) && !was {
                found.push(format!(
                    "rows of {rows} ({roles}) are no blocks of {block}: {types} do not fit there"
                ));
            }
        }
    }
    let (hidden, heads) = (after.hidden_size, after.num_attention_heads);
    if loses_divisibility(before, hidden, heads) {
        found.push(format!(
            "a hidden size of {hidden} is no multiple of {heads} query heads: transformers 5 refuses that of Llama and others"
        ));
    }
    if let (Ok(_), Err(error)) = (before.gguf_metadata(), after.gguf_metadata()) {
        found.push(format!("no GGUF file can hold this shape: {error}"));
    }
    found
}

/// Whether query heads no longer divide the hidden size, which transformers asks of some families though each has its own head size.
pub fn loses_divisibility(before: &ModelConfig, hidden: usize, heads: usize) -> bool {
    before.hidden_size.is_multiple_of(before.num_attention_heads) && !hidden.is_multiple_of(heads)
}

/// The lengths of rows, and of which matrices.
fn row_lengths(config: &ModelConfig) -> Vec<(usize, &'static str)> {
    let first = |role| config.tensor(role, Some(0)).map(|spec| spec.shape[1]);
    let hidden = Some(config.hidden_size);
    [(hidden, "all but o and down"), (first(Role::O), "o"), (first(Role::Down), "down")]
        .into_iter()
        .filter_map(|(rows, roles)| Some((rows?, roles)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_a_point_and_a_number_has_none() {
        assert_eq!("0.5".parse(), Ok(Amount::Share(0.5)));
        assert_eq!("1.0".parse(), Ok(Amount::Share(1.0)));
        assert_eq!("512".parse(), Ok(Amount::Count(512)));
        for bad in ["0", "0.0", "1.5", "-3", "half", ""] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_are_a_share_or_a_number_with_a_unit() {
        for (text, amount) in [
            ("0.6", Amount::Share(0.6)),
            ("4M", Amount::Count(4_000_000)),
            ("1.5b", Amount::Count(1_500_000_000)),
            ("250k", Amount::Count(250_000)),
            ("123456", Amount::Count(123_456)),
        ] {
            assert_eq!(parse_parameters(text), Ok(amount));
        }
        for bad in ["", "M", "-1M", "1.5", "0.0", "0", "4MB", "much", "infk"] {
            assert!(parse_parameters(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn widths_are_multiples_of_the_largest_power_of_two_that_comes_close() {
        for (share, present, expected) in [
            (0.5, 11008, 5632),
            (0.75, 14336, 10752),
            (0.5, 768, 384),
            (0.5, 512, 256),
            (0.6, 100, 60),
            (0.01, 768, 32),
        ] {
            let found = width("--ffn", Some(Amount::Share(share)), present, None).map_err(|e| e.to_string());
            assert_eq!(found, Ok(expected), "{share} of {present}");
        }
        assert_eq!(width("--ffn", Some(Amount::Share(0.5)), 768, Some(256)).ok(), Some(512));
        assert!(width("--ffn", Some(Amount::Count(300)), 768, Some(256)).is_err());
        assert!(width("--ffn", Some(Amount::Count(769)), 768, None).is_err());
    }
}
