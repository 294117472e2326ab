//! What the user asks for: a scheme by its name in the field.

use std::str::FromStr;

use attar_checkpoint::compressed_tensors::{Inputs, NUMBERS, Numbers};
use attar_quant::IntEncoding;

use crate::diagnostic::{Failure, nearest};
use crate::mix::{FILE_TYPES, FileType};

/// A number format for the whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A GGUF file type with llama-quantize's mix of tensor types.
    Gguf(FileType),
    /// Integers with one scale per group of inputs, activations left alone: `w4a16-g128`.
    Integer(IntegerScheme),
    /// Numbers of eight or four bits with scales, as programs that serve models multiply them: `fp8`, `w8a8`, `nvfp4`.
    Numbers(&'static Numbers),
}

/// `wNa16-gG[-asym]`, or `wNa16-channel[-asym]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntegerScheme {
    /// Bits per code, 2 to 8.
    pub bits: u8,
    /// Weights of one row that share a scale; `None` where all of them do.
    pub group_size: Option<usize>,
    /// No zero point is stored.
    pub symmetric: bool,
}

impl IntegerScheme {
    /// What an encoding of grouped integers is.
    #[must_use]
    pub fn of(encoding: IntEncoding) -> Self {
        let group_size = Some(encoding.group_size());
        Self { bits: encoding.bits(), group_size, symmetric: encoding.is_symmetric() }
    }

    /// The encoding of rows of `cols`.
    #[must_use]
    pub fn encoding(self, cols: usize) -> IntEncoding {
        let group_size = self.group_size.unwrap_or(cols).max(1);
        if self.symmetric {
            IntEncoding::symmetric(self.bits, group_size)
        } else {
            IntEncoding::asymmetric(self.bits, group_size)
        }
    }

    /// Whether rows of `cols` are whole groups.
    ///
    /// # Errors
    /// Where they are not; `role` is what the hint calls the matrix.
    pub fn check_groups(self, cols: usize, role: &str) -> Result<(), Failure> {
        let Some(group_size) = self.group_size.filter(|&group_size| !cols.is_multiple_of(group_size)) else {
            return Ok(());
        };
        let fitting = [128, 64, 32, 16, 8].into_iter().find(|g| cols.is_multiple_of(*g));
        let groups = fitting
            .map_or("one scale for each row (`channel` in the place of `gN`)".to_owned(), |g| {
                format!("groups of {g}")
            });
        let advice = format!("use {groups}, or leave it unquantized");
        Err(Failure::new(format!("groups of {group_size} do not divide its rows of {cols}"))
            .hint(format!("{advice}: --tensor '{role}=float'")))
    }
}

impl Scheme {
    /// Whether the matrices become codes, so that there is something to choose.
    pub fn has_codes(self) -> bool {
        match self {
            Self::Gguf(file_type) => file_type.has_codes(),
            Self::Integer(_) | Self::Numbers(_) => true,
        }
    }

    /// The integers it is.
    ///
    /// # Errors
    /// Another scheme; `layout` is what cannot hold it.
    pub fn integers(self, layout: &str) -> Result<IntegerScheme, Failure> {
        match self {
            Self::Integer(scheme) => Ok(scheme),
            Self::Gguf(_) | Self::Numbers(_) => {
                Err(Failure::new(format!("{layout} cannot hold `{}`", self.name()))
                    .hint("choose integers such as w4a16-g128"))
            }
        }
    }

    /// What it is in a folder: of GGUF types that a folder has numbers for, those.
    #[must_use]
    pub fn in_folder(self) -> Self {
        match self {
            Self::Gguf(file_type) => {
                Numbers::named(file_type.default_type.name()).map_or(self, Self::Numbers)
            }
            other => other,
        }
    }

    /// How what matrices multiply is rounded by programs that serve them, where it is.
    pub fn inputs(self) -> Option<Inputs> {
        match self {
            Self::Numbers(numbers) => numbers.inputs,
            Self::Gguf(_) | Self::Integer(_) => None,
        }
    }

    /// The scheme's name as typed.
    pub fn name(self) -> String {
        match self {
            Self::Gguf(file_type) => file_type.name.to_owned(),
            Self::Numbers(numbers) => numbers.name.to_owned(),
            Self::Integer(IntegerScheme { bits, group_size, symmetric }) => {
                let groups = group_size.map_or("channel".to_owned(), |group_size| format!("g{group_size}"));
                format!("w{bits}a16-{groups}{}", if symmetric { "" } else { "-asym" })
            }
        }
    }
}

impl FromStr for Scheme {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let name = text.to_ascii_lowercase();
        if let Some(file_type) = FileType::named(&name) {
            return Ok(Self::Gguf(file_type));
        }
        if let Some(numbers) = Numbers::named(&name) {
            return Ok(Self::Numbers(numbers));
        }
        integer_scheme(&name).map(Self::Integer).ok_or_else(|| {
            let known: Vec<_> = FILE_TYPES.iter().map(|t| t.name).collect();
            let numbers: Vec<_> = NUMBERS.iter().map(|numbers| numbers.name).collect();
            let meant = nearest(&name, known.iter().chain(&numbers).copied().chain(INTEGERS));
            let failure = Failure::new(format!("there is no scheme `{text}`")).hint(format!(
                "GGUF file types: {}; integers with N = 2 to 8 bits in groups of G: wNa16-gG or wNa16-gG-asym, for example w4a16-g128, or with one scale for each row: wNa16-channel; in a folder also {}",
                known.join(" "),
                numbers.join(" ")
            ));
            failure.did_you_mean(meant)
        })
    }
}

/// Integers that a slip may have been meant to name.
const INTEGERS: [&str; 5] = ["w4a16-g128", "w4a16-g128-asym", "w8a16-g128", "w4a16-g64", "w4a16-channel"];

fn integer_scheme(name: &str) -> Option<IntegerScheme> {
    let (bits, rest) = name.strip_prefix('w')?.split_once("a16-")?;
    let (groups, symmetric) = rest.strip_suffix("-asym").map_or((rest, true), |groups| (groups, false));
    let group_size = match groups {
        "channel" => None,
        groups => Some(groups.strip_prefix('g')?.parse().ok()?),
    };
    let scheme = IntegerScheme { bits: bits.parse().ok()?, group_size, symmetric };
    ((2..=8).contains(&scheme.bits) && group_size.is_none_or(|size| size >= 8)).then_some(scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_parsed_to_the_scheme_that_prints_it() {
        let integers = ["w4a16-g128", "w3a16-g64", "w8a16-g32-asym", "w4a16-channel", "w3a16-channel-asym"];
        let integers = integers.into_iter().chain(["fp8", "fp8-block", "w8a8", "mxfp8"]);
        for name in FILE_TYPES.iter().map(|t| t.name).chain(integers) {
            let scheme: Scheme = name.parse().expect(name);
            assert_eq!(scheme.name(), name);
        }
    }

    #[test]
    fn two_gguf_types_are_numbers_in_a_folder() {
        for (name, folder) in [("nvfp4", "nvfp4"), ("mxfp4", "mxfp4"), ("q4_k_m", "q4_k_m"), ("fp8", "fp8")] {
            let scheme: Scheme = name.parse().expect(name);
            assert_eq!(scheme.in_folder().name(), folder);
            assert_eq!(matches!(scheme.in_folder(), Scheme::Numbers(_)), name != "q4_k_m");
        }
    }

    #[test]
    fn an_unknown_scheme_is_told_what_there_is() {
        for name in ["q4", "w9a16-g64", "w4a16", "w4a16-g", "w4a16-g64-sym"] {
            let failure = name.parse::<Scheme>().expect_err(name).to_string();
            assert!(failure.contains("q4_k_m") && failure.contains("hint:"), "{failure}");
        }
    }
}
