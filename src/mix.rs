//! llama-quantize's file types: which tensor type each of them gives to each tensor.
//!
//! The rules are llama.cpp's own, tensor for tensor, so that a file of attar's has the same types and
//! the same bytes as the file type of that name has everywhere else.

use attar_checkpoint::GgmlType;
use attar_model::Role;
use clap::ValueEnum;
use serde::Deserialize;

/// A GGUF file type: the name people ask for, the number in `general.file_type`, and its main tensor type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType {
    /// Lower-case name as typed: `q4_k_m`.
    pub name: &'static str,
    /// `general.file_type` in the file.
    pub id: u32,
    /// The type of every tensor that no rule changes.
    pub default_type: GgmlType,
}

/// The file types attar writes, best first.
///
/// # Source
/// `enum llama_ftype` of llama.cpp at commit 0c1e57098.
pub const FILE_TYPES: &[FileType] = &[
    file_type("f32", 0, GgmlType::F32),
    file_type("bf16", 32, GgmlType::Bf16),
    file_type("f16", 1, GgmlType::F16),
    file_type("q8_0", 7, GgmlType::Q8_0),
    file_type("q6_k", 18, GgmlType::Q6K),
    file_type("q5_k_m", 17, GgmlType::Q5K),
    file_type("q5_k_s", 16, GgmlType::Q5K),
    file_type("q5_1", 9, GgmlType::Q5_1),
    file_type("q5_0", 8, GgmlType::Q5_0),
    file_type("q4_k_m", 15, GgmlType::Q4K),
    file_type("q4_k_s", 14, GgmlType::Q4K),
    file_type("q4_1", 3, GgmlType::Q4_1),
    file_type("q4_0", 2, GgmlType::Q4_0),
    file_type("iq4_nl", 25, GgmlType::Iq4Nl),
    file_type("iq4_xs", 30, GgmlType::Iq4Xs),
    file_type("nvfp4", 39, GgmlType::Nvfp4),
    file_type("mxfp4_moe", 38, GgmlType::Mxfp4),
    file_type("q3_k_l", 13, GgmlType::Q3K),
    file_type("q3_k_m", 12, GgmlType::Q3K),
    file_type("q3_k_s", 11, GgmlType::Q3K),
    file_type("iq3_m", 27, GgmlType::Iq3S),
    file_type("iq3_s", 26, GgmlType::Iq3S),
    file_type("iq3_xs", 22, GgmlType::Iq3S),
    file_type("iq3_xxs", 23, GgmlType::Iq3Xxs),
    file_type("q2_k", 10, GgmlType::Q2K),
    file_type("q2_k_s", 21, GgmlType::Q2K),
    file_type("iq2_m", 29, GgmlType::Iq2S),
    file_type("iq2_s", 28, GgmlType::Iq2Xs),
    file_type("iq2_xs", 20, GgmlType::Iq2Xs),
    file_type("iq2_xxs", 19, GgmlType::Iq2Xxs),
    file_type("iq1_m", 31, GgmlType::Iq1M),
    file_type("iq1_s", 24, GgmlType::Iq1S),
    file_type("q2_0", 41, GgmlType::Q2_0),
    file_type("tq2_0", 37, GgmlType::Tq2_0),
    file_type("tq1_0", 36, GgmlType::Tq1_0),
    file_type("q1_0", 40, GgmlType::Q1_0),
];

/// Other names that people type for file types.
pub const ALIASES: &[(&str, &str)] =
    &[("q3_k", "q3_k_m"), ("q4_k", "q4_k_m"), ("q5_k", "q5_k_m"), ("mxfp4", "mxfp4_moe")];

const fn file_type(name: &'static str, id: u32, default_type: GgmlType) -> FileType {
    FileType { name, id, default_type }
}

/// What the rules look at besides the tensor itself.
#[derive(Clone, Copy, Debug)]
pub struct MixContext {
    /// Number of layers.
    pub layers: usize,
    /// Whether the embedding serves as the head too.
    pub tied: bool,
    /// Whether activations of real text guide the quantization (llama-quantize: an imatrix is given).
    pub with_data: bool,
    /// Llama with 80 layers and grouped queries, which llama.cpp calls 70B.
    pub is_llama_70b: bool,
    /// Experts of a layer, 0 where there are none.
    pub experts: usize,
    /// Query heads that share a key head.
    pub queries_per_key: usize,
}

/// A matrix as the rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// What it is for.
    pub role: Role,
    /// The index of its layer, 0 outside layers.
    pub layer: usize,
    /// Weights in a row.
    pub row_length: usize,
    /// Whether it is one expert's.
    pub is_expert: bool,
}

impl FileType {
    /// The file type of a name as typed in lower case.
    pub fn named(name: &str) -> Option<Self> {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
        FILE_TYPES.iter().find(|file_type| file_type.name == name).copied()
    }

    /// Whether its matrices become codes.
    pub fn has_codes(self) -> bool {
        !matches!(self.default_type, GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16)
    }

    /// The tensor type for a matrix, before any fallback for its shape.
    ///
    /// # Source
    /// llama.cpp, `llama_tensor_get_type_impl`.
    pub fn tensor_type(self, matrix: Matrix, context: MixContext) -> GgmlType {
        let default = self.default_type;
        if !self.has_codes() {
            return default;
        }
        let is_low = matches!(self.name, "iq1_s" | "iq1_m" | "iq2_xxs" | "iq2_xs" | "iq2_s" | "iq2_m");
        match matrix.role {
            Role::Head => self.head_type(matrix.row_length, is_low),
            Role::Embedding if context.tied => self.head_type(matrix.row_length, is_low),
            _ if self.name == "mxfp4_moe" => {
                if matrix.is_expert {
                    GgmlType::Mxfp4
                } else {
                    GgmlType::Q8_0
                }
            }
            Role::Embedding => self.embedding_type(),
            role if is_low => self.low_type(role, matrix.layer, context),
            Role::V | Role::Qkv => self.value_type(matrix.layer, context),
            Role::K if context.experts == 8 => GgmlType::Q8_0,
            Role::K | Role::Q => match self.name {
                "iq3_xs" => GgmlType::Iq3Xxs,
                "iq3_xxs" => GgmlType::Iq2S,
                _ => default,
            },
            Role::Down => self.down_type(matrix.layer, context),
            Role::O => self.output_type(context),
            Role::Gate | Role::Up | Role::GateUp => {
                let middle = context.layers / 8..7 * context.layers / 8;
                let is_less = self.name == "iq3_xs" && middle.contains(&matrix.layer);
                if is_less { GgmlType::Iq3Xxs } else { default }
            }
            _ => default,
        }
    }

    fn head_type(self, row_length: usize, is_low: bool) -> GgmlType {
        let fits = row_length.is_multiple_of(self.default_type.block_len());
        match self.name {
            "mxfp4_moe" | "q8_0" => GgmlType::Q8_0,
            _ if !fits => GgmlType::Q8_0,
            "iq3_xxs" => GgmlType::Q5K,
            _ if is_low => GgmlType::Q5K,
            _ => GgmlType::Q6K,
        }
    }

    fn embedding_type(self) -> GgmlType {
        match self.name {
            "iq2_xxs" | "iq2_xs" | "iq1_s" | "iq1_m" => GgmlType::Q2K,
            "iq2_s" | "iq2_m" | "iq3_xxs" => GgmlType::Iq3S,
            "tq1_0" | "tq2_0" | "q2_0" => GgmlType::Q4K,
            _ => self.default_type,
        }
    }

    /// Matrices of the layers in the types of one and two bits.
    fn low_type(self, role: Role, layer: usize, context: MixContext) -> GgmlType {
        let default = self.default_type;
        let more = if matches!(self.name, "iq2_s" | "iq2_m") { GgmlType::Iq3S } else { GgmlType::Q2K };
        match role {
            Role::V | Role::Qkv if context.queries_per_key >= 4 || context.experts >= 4 => GgmlType::Q4K,
            Role::V | Role::Qkv => more,
            Role::K if context.experts == 8 => GgmlType::Q4K,
            Role::Down if layer < context.layers / 8 => more,
            Role::O if context.experts == 8 => GgmlType::Q5K,
            Role::O => match self.name {
                "iq1_s" | "iq1_m" => GgmlType::Iq2Xxs,
                "iq2_s" | "iq2_m" => GgmlType::Iq3S,
                _ => default,
            },
            _ => default,
        }
    }

    fn value_type(self, layer: usize, context: MixContext) -> GgmlType {
        let default = self.default_type;
        let is_shared = context.queries_per_key >= 4;
        let chosen = match self.name {
            "q2_k" => {
                if is_shared {
                    GgmlType::Q4K
                } else {
                    GgmlType::Q3K
                }
            }
            "q2_k_s" | "iq3_xs" | "iq3_s" | "iq3_xxs" if is_shared => GgmlType::Q4K,
            "iq3_xxs" if !context.with_data => GgmlType::Iq3S,
            "iq3_m" => GgmlType::Q4K,
            "q3_k_m" => {
                if layer < 2 {
                    GgmlType::Q5K
                } else {
                    GgmlType::Q4K
                }
            }
            "q3_k_l" => GgmlType::Q5K,
            "iq4_nl" | "iq4_xs" if is_shared => GgmlType::Q5K,
            "q4_k_m" | "q5_k_m" if gets_more_bits(layer, context.layers) => GgmlType::Q6K,
            "q4_k_s" if layer < 4 => GgmlType::Q5K,
            _ => default,
        };
        match chosen {
            _ if context.experts == 8 => GgmlType::Q8_0,
            GgmlType::Q3K | GgmlType::Q4K if context.is_llama_70b => GgmlType::Q5K,
            chosen => chosen,
        }
    }

    fn down_type(self, layer: usize, context: MixContext) -> GgmlType {
        let is_first = layer < context.layers / 8;
        let gets_more = gets_more_bits(layer, context.layers);
        match self.name {
            "q2_k" => GgmlType::Q3K,
            "q2_k_s" if is_first => GgmlType::Q4K,
            "iq3_xxs" if !context.with_data => {
                if is_first {
                    GgmlType::Q4K
                } else {
                    GgmlType::Q3K
                }
            }
            "q3_k_m" => {
                if layer < context.layers / 16 {
                    GgmlType::Q5K
                } else {
                    GgmlType::Q4K
                }
            }
            "iq3_m" if is_first || (context.experts == 8 && gets_more) => GgmlType::Q4K,
            "q3_k_l" => GgmlType::Q5K,
            "q4_k_m" | "q5_k_m" if gets_more => GgmlType::Q6K,
            "iq4_nl" | "iq4_xs" if is_first && !context.with_data => GgmlType::Q5K,
            "q4_k_s" if is_first => GgmlType::Q5K,
            "q4_0" if is_first && context.with_data => GgmlType::Q4_1,
            "q5_0" if is_first && context.with_data => GgmlType::Q5_1,
            _ => self.default_type,
        }
    }

    fn output_type(self, context: MixContext) -> GgmlType {
        match self.name {
            "q2_k" | "iq3_xs" | "iq3_xxs" | "q3_k_s" | "q3_k_m" | "iq4_nl" | "q4_k_s" | "q4_k_m"
            | "iq3_s" | "iq3_m" | "iq4_xs"
                if context.experts == 8 =>
            {
                GgmlType::Q5K
            }
            _ if context.experts == 8 => self.default_type,
            "q2_k" => GgmlType::Q3K,
            "iq3_xxs" => GgmlType::Iq3S,
            "q3_k_m" | "iq3_m" => GgmlType::Q4K,
            "q3_k_l" => GgmlType::Q5K,
            _ => self.default_type,
        }
    }

    /// Whether llama-quantize refuses to make a matrix of this type without an importance matrix.
    ///
    /// # Source
    /// llama.cpp, `tensor_requires_imatrix`.
    pub fn needs_data(self, role: Role, tensor_type: GgmlType) -> bool {
        let is_low = matches!(
            tensor_type,
            GgmlType::Iq3Xxs
                | GgmlType::Iq2Xxs
                | GgmlType::Iq2Xs
                | GgmlType::Iq2S
                | GgmlType::Iq1M
                | GgmlType::Iq1S
        );
        let is_outside = matches!(role, Role::Embedding | Role::Head);
        !is_outside && (is_low || (tensor_type == GgmlType::Q2K && self.name == "q2_k_s"))
    }
}

/// The layers where a medium mix spends more: the first and last eighth, and every third between.
fn gets_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// Which type a row gets that is no whole number of blocks of the type it should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum Fallback {
    /// The one that llama-quantize takes.
    #[default]
    #[value(name = "llama.cpp")]
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// The one of most quality at no more bits than that.
    #[serde(rename = "fitting")]
    Fitting,
}

/// The type that a row of this length can have where `wanted` does not fit, or `wanted` itself; floats where no block fits.
///
/// # Source
/// llama.cpp, `tensor_type_fallback`, which gives up where it has none: there the fitting one is taken.
pub fn shape_fallback(wanted: GgmlType, row_length: usize, fallback: Fallback) -> GgmlType {
    let fits = |t: GgmlType| row_length.is_multiple_of(t.block_len());
    if fits(wanted) {
        return wanted;
    }
    let official = match wanted {
        GgmlType::Iq1S
        | GgmlType::Iq1M
        | GgmlType::Iq2Xxs
        | GgmlType::Iq2Xs
        | GgmlType::Iq2S
        | GgmlType::Iq3Xxs
        | GgmlType::Iq3S
        | GgmlType::Iq4Xs => GgmlType::Iq4Nl,
        GgmlType::Q2_0 | GgmlType::Q2K | GgmlType::Q3K | GgmlType::Tq1_0 | GgmlType::Tq2_0 => GgmlType::Q4_0,
        GgmlType::Q4K => GgmlType::Q5_0,
        GgmlType::Q5K => GgmlType::Q5_1,
        GgmlType::Q6K => GgmlType::Q8_0,
        GgmlType::Q1_0 => GgmlType::Q2_0,
        GgmlType::Nvfp4 => GgmlType::Mxfp4,
        other => other,
    };
    let smaller = match (fallback, official) {
        (Fallback::Fitting, GgmlType::Q4_0 | GgmlType::Q5_0) => GgmlType::Iq4Nl,
        (Fallback::Fitting, GgmlType::Q5_1) => GgmlType::Q5_0,
        (_, GgmlType::Q2_0) if !fits(GgmlType::Q2_0) => GgmlType::Q4_0,
        (_, official) => official,
    };
    if fits(smaller) { smaller } else { GgmlType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> FileType {
        FileType::named(name).expect("a file type of the table")
    }

    fn matrix(role: Role, layer: usize, row_length: usize) -> Matrix {
        Matrix { role, layer, row_length, is_expert: false }
    }

    const BOOKS_7M: MixContext = MixContext {
        layers: 8,
        tied: true,
        with_data: true,
        is_llama_70b: false,
        experts: 0,
        queries_per_key: 2,
    };

    #[test]
    fn q4_k_m_gives_q6_k_to_the_layers_llama_quantize_gives_it_to() {
        let types: Vec<_> =
            (0..8).map(|i| named("q4_k_m").tensor_type(matrix(Role::Down, i, 768), BOOKS_7M)).collect();
        let more = [true, false, false, true, false, false, true, true];
        assert_eq!(types, more.map(|m| if m { GgmlType::Q6K } else { GgmlType::Q4K }));
    }

    #[test]
    fn q_k_and_v_in_one_matrix_are_treated_as_v() {
        for name in ["q4_k_m", "q4_k_s", "q5_k_m", "q4_0"] {
            let of = |role| (0..8).map(move |i| named(name).tensor_type(matrix(role, i, 768), BOOKS_7M));
            assert!(of(Role::Qkv).eq(of(Role::V)), "{name}");
            assert!(of(Role::GateUp).eq(of(Role::Up)), "{name}");
        }
    }

    #[test]
    fn a_tied_embedding_is_treated_as_the_head() {
        assert_eq!(named("q4_0").tensor_type(matrix(Role::Embedding, 0, 256), BOOKS_7M), GgmlType::Q6K);
        assert_eq!(named("q8_0").tensor_type(matrix(Role::Embedding, 0, 256), BOOKS_7M), GgmlType::Q8_0);
        let untied = MixContext { tied: false, ..BOOKS_7M };
        assert_eq!(named("q4_0").tensor_type(matrix(Role::Embedding, 0, 256), untied), GgmlType::Q4_0);
    }

    #[test]
    fn eight_experts_make_keys_values_and_outputs_cheap_enough_for_more_bits() {
        let eight = MixContext { experts: 8, ..BOOKS_7M };
        let types = |name: &str, context| {
            [Role::Q, Role::K, Role::V, Role::O]
                .map(|role| named(name).tensor_type(matrix(role, 1, 256), context))
        };
        let more = [GgmlType::Q8_0, GgmlType::Q8_0];
        for (name, rest) in [("q4_k_m", GgmlType::Q4K), ("q5_k_s", GgmlType::Q5K), ("q4_0", GgmlType::Q4_0)] {
            assert_eq!(types(name, eight)[1..3], more, "{name}");
            assert_eq!(types(name, eight)[0], rest, "{name}");
        }
        assert_eq!(types("q4_k_m", eight)[3], GgmlType::Q5K);
        assert_eq!(types("q4_k_s", eight)[3], GgmlType::Q5K);
        assert_eq!(types("q4_0", eight)[3], GgmlType::Q4_0);
        let sixteen = MixContext { experts: 16, ..BOOKS_7M };
        assert_eq!(types("q4_k_m", sixteen), types("q4_k_m", BOOKS_7M));
    }

    #[test]
    fn q4_0_spends_a_minimum_on_the_first_down_projections_only_with_data() {
        assert_eq!(named("q4_0").tensor_type(matrix(Role::Down, 0, 768), BOOKS_7M), GgmlType::Q4_1);
        let blind = MixContext { with_data: false, ..BOOKS_7M };
        assert_eq!(named("q4_0").tensor_type(matrix(Role::Down, 0, 768), blind), GgmlType::Q4_0);
    }

    #[test]
    fn a_row_that_fits_no_block_falls_back_to_f16_at_last() {
        assert_eq!(shape_fallback(GgmlType::Q4K, 768, Fallback::LlamaCpp), GgmlType::Q4K);
        assert_eq!(shape_fallback(GgmlType::Q4K, 64, Fallback::LlamaCpp), GgmlType::Q5_0);
        assert_eq!(shape_fallback(GgmlType::Q6K, 896, Fallback::LlamaCpp), GgmlType::Q8_0);
        assert_eq!(shape_fallback(GgmlType::Q4K, 172, Fallback::LlamaCpp), GgmlType::F16);
        assert_eq!(shape_fallback(GgmlType::Q4_0, 172, Fallback::LlamaCpp), GgmlType::F16);
    }

    #[test]
    fn the_fitting_type_is_never_larger_than_the_official_one() {
        for wanted in GgmlType::all().filter(|t| t.block_len() > 1) {
            for row_length in [32, 64, 96, 128, 172, 320, 352] {
                let [official, fitting] = [Fallback::LlamaCpp, Fallback::Fitting]
                    .map(|fallback| shape_fallback(wanted, row_length, fallback).bits_per_weight());
                assert!(fitting <= official, "{wanted} in rows of {row_length}: {fitting} beside {official}");
            }
        }
    }
}
