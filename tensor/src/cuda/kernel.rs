//! The kernels there are: texts, and what each is compiled for.

/// A `.cu` text, compiled once for each variant.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The file's name without `.cu`.
    pub name: &'static str,
    /// Its text, without intrinsics and prelude.
    pub text: &'static str,
    /// Its kernels.
    pub kernels: &'static [&'static str],
    /// The macros each variant defines, as `NAME=VALUE`.
    pub variants: &'static [&'static [&'static str]],
}

/// Storage of activations.
const ELEMENTS: &[&[&str]] = &[&["ELEMENT=float"], &["ELEMENT=bf16"]];

/// Features of a head on tensor cores.
const HEADS: &[&[&str]] = &[
    &["HEAD_DIM=32"],
    &["HEAD_DIM=64"],
    &["HEAD_DIM=80"],
    &["HEAD_DIM=96"],
    &["HEAD_DIM=112"],
    &["HEAD_DIM=128"],
    &["HEAD_DIM=192"],
    &["HEAD_DIM=256"],
];

/// A text that is compiled one way.
const PLAIN: &[&[&str]] = &[&[]];

/// Every source. A new kernel needs a line here and is then compiled for every architecture by a test.
pub const SOURCES: &[Source] = &[
    ADAMW,
    ADD,
    ATTENTION,
    ATTENTION_BACKWARD,
    ATTENTION_PLAIN,
    CAST,
    DESCENT,
    EMBEDDING,
    FEEDBACK,
    GATE,
    GRAM,
    GRID,
    LOG_LOSS,
    RMS_NORM,
    ROPE,
    SCALE,
];

pub(crate) const ADAMW: Source =
    Source { name: "adamw", text: include_str!("../op/adamw.cu"), kernels: &["adamw"], variants: PLAIN };
pub(crate) const ADD: Source = Source {
    name: "add",
    text: include_str!("../op/add.cu"),
    kernels: &["add", "add_row", "column_sum", "sum_of_squares", "total"],
    variants: ELEMENTS,
};
pub(crate) const ATTENTION: Source = Source {
    name: "attention",
    text: concat!(include_str!("tiles.cu"), include_str!("../op/attention.cu")),
    kernels: &["attention"],
    variants: HEADS,
};
pub(crate) const ATTENTION_BACKWARD: Source = Source {
    name: "attention_backward",
    text: concat!(include_str!("tiles.cu"), include_str!("../op/attention_backward.cu")),
    kernels: &["attention_backward_queries", "attention_backward_keys"],
    variants: HEADS,
};
pub(crate) const ATTENTION_PLAIN: Source = Source {
    name: "attention_plain",
    text: include_str!("../op/attention_plain.cu"),
    kernels: &["attention_plain", "attention_backward_queries", "attention_backward_keys"],
    variants: ELEMENTS,
};
pub(crate) const CAST: Source = Source {
    name: "cast",
    text: include_str!("../op/cast.cu"),
    kernels: &["narrow", "widen", "split"],
    variants: PLAIN,
};
pub(crate) const DESCENT: Source = Source {
    name: "descent",
    text: include_str!("../op/descent.cu"),
    kernels: &["times_diagonal", "row_products", "descend_block"],
    variants: PLAIN,
};
pub(crate) const EMBEDDING: Source = Source {
    name: "embedding",
    text: include_str!("../op/embedding.cu"),
    kernels: &["embedding", "embedding_backward"],
    variants: ELEMENTS,
};
pub(crate) const FEEDBACK: Source = Source {
    name: "feedback",
    text: include_str!("../op/feedback.cu"),
    kernels: &["reversed_hessian", "reversed_inverse", "gather_columns", "round_block"],
    variants: &[&["WIDE=float"], &["WIDE=double"]],
};
pub(crate) const GATE: Source = Source {
    name: "gate",
    text: include_str!("../op/gate.cu"),
    kernels: &["gate", "gate_backward"],
    variants: ELEMENTS,
};
pub(crate) const GRAM: Source = Source {
    name: "gram",
    text: include_str!("../op/gram.cu"),
    kernels: &["mirror", "diagonal"],
    variants: PLAIN,
};
pub(crate) const GRID: Source = Source {
    name: "grid",
    text: include_str!("../op/grid.cu"),
    kernels: &["search_groups", "nearest_codes", "decode", "rounding_errors"],
    variants: ELEMENTS,
};
pub(crate) const LOG_LOSS: Source = Source {
    name: "log_loss",
    text: include_str!("../op/log_loss.cu"),
    kernels: &["token_losses", "token_divergences", "lesson_backward"],
    variants: ELEMENTS,
};
pub(crate) const RMS_NORM: Source = Source {
    name: "rms_norm",
    text: include_str!("../op/rms_norm.cu"),
    kernels: &["rms_norm", "rms_norm_backward"],
    variants: ELEMENTS,
};
pub(crate) const ROPE: Source =
    Source { name: "rope", text: include_str!("../op/rope.cu"), kernels: &["rope"], variants: ELEMENTS };
pub(crate) const SCALE: Source = Source {
    name: "scale",
    text: include_str!("../op/scale.cu"),
    kernels: &["scale", "soft_cap"],
    variants: ELEMENTS,
};

/// One variant of one source: what a module on the device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// The source.
    pub source: &'static Source,
    /// Which of its variants.
    pub variant: usize,
}

impl Module {
    /// Every module there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let of =
            |source: &'static Source| (0..source.variants.len()).map(move |variant| Self { source, variant });
        SOURCES.iter().flat_map(of)
    }

    /// The variant of a source that defines `definition`.
    pub(crate) fn find(source: &str, definition: Option<&str>) -> Option<Self> {
        Self::all().find(|module| {
            module.source.name == source && module.definitions().first().copied() == definition
        })
    }

    /// The macros it is compiled with, as `NAME=VALUE`.
    pub fn definitions(&self) -> &'static [&'static str] {
        self.source.variants[self.variant]
    }

    /// The whole text for the device: intrinsics, prelude and source.
    pub fn text(&self) -> String {
        [include_str!("intrinsics.cu"), self.text_above_intrinsics().as_str()].concat()
    }

    /// The text without the intrinsics, for those who bring their own.
    pub fn text_above_intrinsics(&self) -> String {
        [include_str!("prelude.cu"), self.source.text].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_a_text_is_listed_and_no_other() {
        for source in SOURCES {
            let after = source.text.split("KERNEL ").skip(1);
            let named: Vec<&str> = after
                .filter_map(|text| text.split_once('('))
                .map(|(name, rest)| match name {
                    "__launch_bounds__" => rest
                        .split_once(") ")
                        .and_then(|(_, rest)| rest.split_once('('))
                        .map_or("", |(name, _)| name),
                    name => name,
                })
                .collect();
            assert_eq!(named, source.kernels, "{}", source.name);
        }
    }

    #[test]
    fn every_text_beside_the_operations_is_a_source() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/op");
        let Ok(entries) = std::fs::read_dir(folder) else { panic!("{folder} is not there") };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut found: Vec<String> =
            names.filter_map(|name| name.strip_suffix(".cu").map(str::to_owned)).collect();
        found.sort();
        assert_eq!(found, SOURCES.iter().map(|source| source.name).collect::<Vec<_>>());
    }
}
