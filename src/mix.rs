//! llama-quantize's file types: which tensor type each of them gives to each tensor.
//!
//! The rules are llama.cpp's own, tensor for tensor, so that a file of attar's has the same types and
//! the same bytes as the file type of that name has everywhere else.

use attar_checkpoint::GgmlType;
use attar_model::Role;

/// A GGUF file type: the name people ask for, the number in `general.file_type`, and its main tensor type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType {
    /// Lower-case name as typed: `q4_k_m`.
    pub name: &'static str,
    /// `general.file_type` in the file.
    pub id: u32,
    /// The type of every tensor that no rule changes.
    pub default_type: GgmlType,
    /// How rules depart from `default_type`.
    rules: Rules,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// Unquantized, or nothing but the head's rule.
    Plain,
    /// `*_M`: value and down projections of the outer and every third layer get `q6_K`.
    Medium,
    /// `q4_k_s`: the first value and down projections get `q5_K`.
    SmallQ4,
    /// `q4_0`, `q5_0`: with data, the first down projections get the type with a minimum.
    Legacy { with_minimum: GgmlType },
}

/// The file types attar writes, best first.
pub const FILE_TYPES: &[FileType] = &[
    file_type("f32", 0, GgmlType::F32, Rules::Plain),
    file_type("bf16", 32, GgmlType::Bf16, Rules::Plain),
    file_type("f16", 1, GgmlType::F16, Rules::Plain),
    file_type("q8_0", 7, GgmlType::Q8_0, Rules::Plain),
    file_type("q6_k", 18, GgmlType::Q6K, Rules::Plain),
    file_type("q5_k_m", 17, GgmlType::Q5K, Rules::Medium),
    file_type("q5_k_s", 16, GgmlType::Q5K, Rules::Plain),
    file_type("q5_1", 9, GgmlType::Q5_1, Rules::Plain),
    file_type("q5_0", 8, GgmlType::Q5_0, Rules::Legacy { with_minimum: GgmlType::Q5_1 }),
    file_type("q4_k_m", 15, GgmlType::Q4K, Rules::Medium),
    file_type("q4_k_s", 14, GgmlType::Q4K, Rules::SmallQ4),
    file_type("q4_1", 3, GgmlType::Q4_1, Rules::Plain),
    file_type("q4_0", 2, GgmlType::Q4_0, Rules::Legacy { with_minimum: GgmlType::Q4_1 }),
];

const fn file_type(name: &'static str, id: u32, default_type: GgmlType, rules: Rules) -> FileType {
    FileType { name, id, default_type, rules }
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
}

impl FileType {
    /// Whether its matrices become codes.
    pub fn has_codes(self) -> bool {
        !matches!(self.default_type, GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16)
    }

    /// The tensor type for a matrix of this role, before any fallback for its shape.
    ///
    /// `row_length` is the number of columns; `layer` the index of its layer, if it belongs to one.
    ///
    /// # Source
    /// llama.cpp, `llama_tensor_get_type_impl`.
    pub fn tensor_type(self, role: Role, layer: usize, row_length: usize, context: MixContext) -> GgmlType {
        let default = self.default_type;
        if !self.has_codes() {
            return default;
        }
        let is_head = role == Role::Head || (role == Role::Embedding && context.tied);
        if is_head {
            let fits = row_length.is_multiple_of(default.block_len());
            return if fits && default != GgmlType::Q8_0 { GgmlType::Q6K } else { GgmlType::Q8_0 };
        }
        if context.experts == 8 {
            match role {
                Role::V | Role::K => return GgmlType::Q8_0,
                Role::O if default == GgmlType::Q4K => return GgmlType::Q5K,
                _ => {}
            }
        }
        let eighth = context.layers / 8;
        let chosen = match (self.rules, role) {
            (Rules::Medium, Role::V | Role::Qkv | Role::Down) if gets_more_bits(layer, context.layers) => {
                GgmlType::Q6K
            }
            (Rules::SmallQ4, Role::V | Role::Qkv) if layer < 4 => GgmlType::Q5K,
            (Rules::SmallQ4, Role::Down) if layer < eighth => GgmlType::Q5K,
            (Rules::Legacy { with_minimum }, Role::Down) if context.with_data && layer < eighth => {
                with_minimum
            }
            _ => default,
        };
        if matches!(role, Role::V | Role::Qkv) && context.is_llama_70b && chosen == GgmlType::Q4K {
            GgmlType::Q5K
        } else {
            chosen
        }
    }
}

/// The layers where a medium mix spends more: the first and last eighth, and every third between.
fn gets_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type that a row of this length can have where `wanted` does not fit, or `wanted` itself.
///
/// # Source
/// llama.cpp, `tensor_type_fallback`.
pub fn shape_fallback(wanted: GgmlType, row_length: usize) -> GgmlType {
    let fits = |t: GgmlType| row_length.is_multiple_of(t.block_len());
    if fits(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        GgmlType::Q4K => GgmlType::Q5_0,
        GgmlType::Q5K => GgmlType::Q5_1,
        GgmlType::Q6K => GgmlType::Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { GgmlType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> FileType {
        *FILE_TYPES.iter().find(|t| t.name == name).expect("a file type of the table")
    }

    const BOOKS_7M: MixContext =
        MixContext { layers: 8, tied: true, with_data: true, is_llama_70b: false, experts: 0 };

    #[test]
    fn q4_k_m_gives_q6_k_to_the_layers_llama_quantize_gives_it_to() {
        let types: Vec<_> =
            (0..8).map(|i| named("q4_k_m").tensor_type(Role::Down, i, 768, BOOKS_7M)).collect();
        let more = [true, false, false, true, false, false, true, true];
        assert_eq!(types, more.map(|m| if m { GgmlType::Q6K } else { GgmlType::Q4K }));
    }

    #[test]
    fn q_k_and_v_in_one_matrix_are_treated_as_v() {
        for name in ["q4_k_m", "q4_k_s", "q5_k_m", "q4_0"] {
            let of = |role| (0..8).map(move |i| named(name).tensor_type(role, i, 768, BOOKS_7M));
            assert!(of(Role::Qkv).eq(of(Role::V)), "{name}");
            assert!(of(Role::GateUp).eq(of(Role::Up)), "{name}");
        }
    }

    #[test]
    fn a_tied_embedding_is_treated_as_the_head() {
        assert_eq!(named("q4_0").tensor_type(Role::Embedding, 0, 256, BOOKS_7M), GgmlType::Q6K);
        assert_eq!(named("q8_0").tensor_type(Role::Embedding, 0, 256, BOOKS_7M), GgmlType::Q8_0);
        let untied = MixContext { tied: false, ..BOOKS_7M };
        assert_eq!(named("q4_0").tensor_type(Role::Embedding, 0, 256, untied), GgmlType::Q4_0);
    }

    #[test]
    fn eight_experts_make_keys_values_and_outputs_cheap_enough_for_more_bits() {
        let eight = MixContext { experts: 8, ..BOOKS_7M };
        let types = |name: &str, context| {
            [Role::Q, Role::K, Role::V, Role::O].map(|role| named(name).tensor_type(role, 1, 256, context))
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
        assert_eq!(named("q4_0").tensor_type(Role::Down, 0, 768, BOOKS_7M), GgmlType::Q4_1);
        let blind = MixContext { with_data: false, ..BOOKS_7M };
        assert_eq!(named("q4_0").tensor_type(Role::Down, 0, 768, blind), GgmlType::Q4_0);
    }

    #[test]
    fn a_row_that_fits_no_block_falls_back_to_f16_at_last() {
        assert_eq!(shape_fallback(GgmlType::Q4K, 768), GgmlType::Q4K);
        assert_eq!(shape_fallback(GgmlType::Q4K, 64), GgmlType::Q5_0);
        assert_eq!(shape_fallback(GgmlType::Q6K, 896), GgmlType::Q8_0);
        assert_eq!(shape_fallback(GgmlType::Q4K, 172), GgmlType::F16);
        assert_eq!(shape_fallback(GgmlType::Q4_0, 172), GgmlType::F16);
    }
}
