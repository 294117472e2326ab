//! One named case per lie a safetensors file can tell.

use proptest::prelude::*;

use super::file;
use crate::Dtype;
use crate::safetensors::Flaw;
use crate::safetensors::header::{list, parse};

/// Two tensors in 40 bytes of data, and a text.
const SOUND: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,4],"data_offsets":[24,40]},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;

type Caught = fn(&Flaw) -> bool;

/// What is said, as a header over 40 bytes of data, and what it must be taken for.
const LIES: &[(&str, &str, Caught)] = &[
    ("no JSON", "hello", |f| matches!(f, Flaw::Json(_))),
    ("an empty header", "", |f| matches!(f, Flaw::Json(_))),
    ("a list", "[]", |f| matches!(f, Flaw::Json(_))),
    ("JSON that ends early", r#"{"a":{"dtype":"F32""#, |f| matches!(f, Flaw::Json(_))),
    ("two headers", r"{}{}", |f| matches!(f, Flaw::Json(_))),
    ("no shape", r#"{"a":{"dtype":"U8","data_offsets":[0,40]}}"#, |f| matches!(f, Flaw::Json(_))),
    ("a shape below zero", r#"{"a":{"dtype":"U8","shape":[-40],"data_offsets":[0,40]}}"#, |f| {
        matches!(f, Flaw::Json(_))
    }),
    ("half a dimension", r#"{"a":{"dtype":"U8","shape":[0.5],"data_offsets":[0,40]}}"#, |f| {
        matches!(f, Flaw::Json(_))
    }),
    ("three offsets", r#"{"a":{"dtype":"U8","shape":[40],"data_offsets":[0,20,40]}}"#, |f| {
        matches!(f, Flaw::Json(_))
    }),
    (
        "an offset past u64",
        r#"{"a":{"dtype":"U8","shape":[40],"data_offsets":[0,18446744073709551616]}}"#,
        |f| matches!(f, Flaw::Json(_)),
    ),
    ("an unknown type", r#"{"a":{"dtype":"F31","shape":[40],"data_offsets":[0,40]}}"#, |f| {
        matches!(f, Flaw::Dtype { .. })
    }),
    (
        "one name twice",
        r#"{"a":{"dtype":"U8","shape":[20],"data_offsets":[0,20]},"a":{"dtype":"U8","shape":[20],"data_offsets":[20,40]}}"#,
        |f| matches!(f, Flaw::DuplicateTensor { name } if name == "a"),
    ),
    (
        "one name twice for the same bytes",
        r#"{"a":{"dtype":"U8","shape":[40],"data_offsets":[0,40]},"\u0061":{"dtype":"U8","shape":[40],"data_offsets":[0,40]}}"#,
        |f| matches!(f, Flaw::DuplicateTensor { name } if name == "a"),
    ),
    (
        "a shape whose product overflows",
        r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
        |f| matches!(f, Flaw::Overflow { .. }),
    ),
    (
        "a size in bytes that overflows",
        r#"{"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}}"#,
        |f| matches!(f, Flaw::Overflow { .. }),
    ),
    (
        "a shape that overflows before a zero",
        r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}}"#,
        |f| matches!(f, Flaw::Overflow { .. }),
    ),
    ("an end before the start", r#"{"a":{"dtype":"U8","shape":[40],"data_offsets":[40,0]}}"#, |f| {
        matches!(f, Flaw::Backwards { start: 40, end: 0, .. })
    }),
    (
        "fewer bytes than the shape takes",
        r#"{"a":{"dtype":"F32","shape":[40],"data_offsets":[0,40]}}"#,
        |f| matches!(f, Flaw::WrongSize { given: 40, needs: 160, .. }),
    ),
    ("more bytes than the shape takes", r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,40]}}"#, |f| {
        matches!(f, Flaw::WrongSize { given: 40, needs: 1, .. })
    }),
    ("an end past the file", r#"{"a":{"dtype":"U8","shape":[41],"data_offsets":[0,41]}}"#, |f| {
        matches!(f, Flaw::OutsideData { end: 41, data_len: 40, .. })
    }),
    (
        "offsets at the end of u64",
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#,
        |f| matches!(f, Flaw::OutsideData { .. }),
    ),
    (
        "two tensors in one place",
        r#"{"a":{"dtype":"U8","shape":[40],"data_offsets":[0,40]},"b":{"dtype":"I8","shape":[40],"data_offsets":[0,40]}}"#,
        |f| matches!(f, Flaw::Overlap { .. }),
    ),
    (
        "two tensors half in one place",
        r#"{"a":{"dtype":"U8","shape":[21],"data_offsets":[0,21]},"b":{"dtype":"U8","shape":[20],"data_offsets":[20,40]}}"#,
        |f| matches!(f, Flaw::Overlap { start: 20, before: 21, .. }),
    ),
    (
        "a gap between tensors",
        r#"{"a":{"dtype":"U8","shape":[19],"data_offsets":[0,19]},"b":{"dtype":"U8","shape":[20],"data_offsets":[20,40]}}"#,
        |f| matches!(f, Flaw::Gap { start: 19, end: 20 }),
    ),
    ("a gap before the first", r#"{"a":{"dtype":"U8","shape":[39],"data_offsets":[1,40]}}"#, |f| {
        matches!(f, Flaw::Gap { start: 0, end: 1 })
    }),
    ("bytes nobody claims at the end", r#"{"a":{"dtype":"U8","shape":[39],"data_offsets":[0,39]}}"#, |f| {
        matches!(f, Flaw::Gap { start: 39, end: 40 })
    }),
    ("no tensor for the data", "{}", |f| matches!(f, Flaw::Gap { start: 0, end: 40 })),
];

/// What is listed is checked like what is computed with, but for types, which have a name and bytes all the same.
#[test]
fn a_listing_catches_every_lie_but_a_foreign_type() {
    for (name, header, caught) in LIES {
        match list(&file(header, 40)) {
            Ok((tensors, _)) => {
                assert!(
                    caught(&Flaw::Dtype { name: String::new(), dtype: String::new() }),
                    "{name} was believed"
                );
                assert_eq!((tensors[0].dtype.as_str(), tensors[0].bytes), ("f31", 40));
            }
            Err(flaw) => assert!(caught(&flaw), "{name} was taken for: {flaw}"),
        }
    }
    let (tensors, texts) = list(&file(SOUND, 40)).unwrap();
    assert_eq!((tensors.len(), texts["format"].as_str()), (2, "pt"));
}

#[test]
fn every_lie_is_caught_for_what_it_is() {
    for (name, header, caught) in LIES {
        match parse(&file(header, 40)) {
            Ok(_) => panic!("{name} was believed"),
            Err(flaw) => assert!(caught(&flaw), "{name} was taken for: {flaw}"),
        }
    }
}

#[test]
fn the_sound_file_the_lies_depart_from_is_read_in_the_order_of_its_bytes() {
    let bytes = file(SOUND, 40);
    let tensors = parse(&bytes).unwrap();
    let (a, place) = &tensors[0];
    assert_eq!((a.name.as_str(), a.dtype, &a.shape[..], a.bytes), ("a", Dtype::F32, &[2, 3][..], 24));
    assert_eq!(&bytes[place.clone()], &bytes[8 + SOUND.len()..][..24]);
    assert_eq!((tensors[1].0.name.as_str(), tensors[1].0.dtype), ("b", Dtype::F16));
    assert_eq!(tensors.len(), 2);
}

#[test]
fn a_header_longer_than_the_file_or_than_any_is_refused_before_it_is_read() {
    let with_len = |len: u64| [&len.to_le_bytes()[..], b"{}"].concat();
    assert!(parse(&with_len(2)).is_ok());
    assert!(matches!(parse(&with_len(3)), Err(Flaw::HeaderPastEnd { header_len: 3, left: 2 })));
    assert!(matches!(parse(&with_len(100_000_000)), Err(Flaw::HeaderPastEnd { .. })));
    assert!(matches!(parse(&with_len(100_000_001)), Err(Flaw::HeaderTooLong { .. })));
    assert!(matches!(parse(&with_len(u64::MAX)), Err(Flaw::HeaderTooLong { .. })));
    assert!(matches!(parse(&[]), Err(Flaw::NoHeader { len: 0 })));
    assert!(matches!(parse(&[0; 7]), Err(Flaw::NoHeader { len: 7 })));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = file(SOUND, 40);
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{len} of {} bytes were enough", bytes.len());
    }
}

#[test]
fn empty_tensors_and_deep_nesting_do_no_harm() {
    let empty = r#"{"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
    assert_eq!(parse(&file(empty, 0)).unwrap().len(), 2);
    let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
    assert!(matches!(parse(&file(&deep, 0)), Err(Flaw::Json(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// The format's own library is the judge of what may be believed.
    #[test]
    fn no_change_of_bytes_makes_the_reader_panic_or_believe_what_the_safetensors_crate_refuses(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        digits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 0..3),
    ) {
        let mut bytes = file(SOUND, 40);
        for (at, byte) in changes.into_iter().take(if digits.is_empty() { 6 } else { 0 }).chain(digits) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(tensors) = parse(&bytes) {
            let theirs = safetensors::SafeTensors::deserialize(&bytes);
            prop_assert!(theirs.is_ok(), "{theirs:?}");
            prop_assert_eq!(theirs.unwrap().len(), tensors.len());
            for (info, place) in tensors {
                prop_assert_eq!(bytes[place].len() as u64, info.bytes);
            }
        }
    }
}
