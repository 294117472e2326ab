//! One named case per lie a GGUF file can tell.

use proptest::prelude::*;

use super::forge::{Entry, Forge, array, text};
use crate::gguf::parse::{list, parse};
use crate::gguf::{Array, Flaw, Value, value};
use crate::{Dtype, GgmlType};

const MANY: u64 = u64::MAX / 2;

struct Lie {
    name: &'static str,
    tell: fn(&mut Forge),
    caught: fn(&Flaw) -> bool,
}

/// `lie!("name", |forge| change, pattern)`.
macro_rules! lie {
    ($name:literal, |$forge:ident| $tell:expr, $caught:pat) => {
        Lie { name: $name, tell: |$forge| $tell, caught: |flaw| matches!(flaw, $caught) }
    };
}

const LIES: &[Lie] = &[
    lie!("another magic", |f| f.magic = *b"GGML", Flaw::Magic { .. }),
    lie!("version 1", |f| f.version = 1, Flaw::Version { version: 1 }),
    lie!("version 4", |f| f.version = 4, Flaw::Version { version: 4 }),
    lie!("big-endian", |f| f.version = 3u32.swap_bytes(), Flaw::BigEndian),
    lie!("a huge tensor count", |f| f.tensor_count = Some(MANY), Flaw::Count { what: "tensors", .. }),
    lie!("the hugest tensor count", |f| f.tensor_count = Some(u64::MAX), Flaw::Count { .. }),
    lie!("one tensor too many", |f| f.tensor_count = Some(3), Flaw::OutsideData { .. }),
    lie!("a huge metadata count", |f| f.metadata_count = Some(MANY), Flaw::Count { .. }),
    lie!(
        "one metadata value too many",
        |f| f.metadata_count = Some(3),
        Flaw::ValueType { .. } | Flaw::Ends { .. }
    ),
    lie!("a key that is not UTF-8", |f| f.metadata[0].0 = vec![0xff], Flaw::NotUtf8 { .. }),
    lie!("a text that is not UTF-8", |f| f.metadata[0].2 = text(&[0xc0]), Flaw::NotUtf8 { .. }),
    lie!("a text longer than the file", |f| f.metadata[0].2 = MANY.to_le_bytes().to_vec(), Flaw::Ends { .. }),
    lie!("the longest text", |f| f.metadata[0].2 = u64::MAX.to_le_bytes().to_vec(), Flaw::Ends { .. }),
    lie!("a key twice", |f| f.metadata[1] = f.metadata[0].clone(), Flaw::DuplicateKey { .. }),
    lie!("an unknown value type", |f| f.metadata[0].1 = 13, Flaw::ValueType { id: 13, .. }),
    lie!("an unknown element type", |f| f.metadata[1].2 = array(99, 0, &[]), Flaw::ValueType { id: 99, .. }),
    lie!("an array of arrays", |f| f.metadata[1].2 = array(value::ARRAY, 1, &[]), Flaw::NestedArray { .. }),
    lie!("a huge array", |f| f.metadata[1].2 = array(value::F64, MANY, &[]), Flaw::Count { .. }),
    lie!("a huge array of texts", |f| f.metadata[1].2 = array(value::STRING, MANY, &[]), Flaw::Count { .. }),
    lie!(
        "an array whose bytes overflow",
        |f| f.metadata[1].2 = array(value::U64, u64::MAX / 8 + 1, &[]),
        Flaw::Count { .. }
    ),
    lie!(
        "a truth value of 2",
        |f| {
            f.metadata[0].1 = value::BOOL;
            f.metadata[0].2 = vec![2];
        },
        Flaw::Bool { byte: 2, .. }
    ),
    lie!(
        "a truth value of 7 in an array",
        |f| f.metadata[1].2 = array(value::BOOL, 1, &[7]),
        Flaw::Bool { byte: 7, .. }
    ),
    lie!("alignment 0", |f| f.metadata[0] = alignment(0), Flaw::Alignment { .. }),
    lie!("alignment 48", |f| f.metadata[0] = alignment(48), Flaw::Alignment { .. }),
    lie!("alignment 2^31", |f| f.metadata[0] = alignment(1 << 31), Flaw::Alignment { .. }),
    lie!("alignment as text", |f| f.metadata[0].0 = b"general.alignment".to_vec(), Flaw::Alignment { .. }),
    lie!("a tensor name that is not UTF-8", |f| f.tensors[0].name = vec![0xfe], Flaw::NotUtf8 { .. }),
    lie!("two tensors of one name", |f| f.tensors[1].name = b"a".to_vec(), Flaw::DuplicateTensor { .. }),
    lie!("five dimensions", |f| f.tensors[0].dims = vec![1; 5], Flaw::Dims { dims: 5, .. }),
    lie!("dimensions that overflow", |f| f.tensors[0].dims = vec![1 << 32, 1 << 32], Flaw::Overflow { .. }),
    lie!("bytes that overflow", |f| f.tensors[0].dims = vec![1 << 62], Flaw::Overflow { .. }),
    lie!(
        "dimensions that overflow before a zero",
        |f| f.tensors[0].dims = vec![0, MANY, MANY],
        Flaw::Overflow { .. }
    ),
    lie!("an unknown tensor type", |f| f.tensors[0].ggml_id = 1000, Flaw::TensorType { removed: false, .. }),
    lie!("a removed tensor type", |f| f.tensors[0].ggml_id = 31, Flaw::TensorType { removed: true, .. }),
    lie!(
        "rows of half a block",
        |f| f.tensors[1].dims = vec![16],
        Flaw::BlockDoesNotDivide { row_len: 16, .. }
    ),
    lie!("a crooked offset", |f| f.tensors[1].offset = 33, Flaw::Misaligned { offset: 33, .. }),
    lie!("an offset past the end", |f| f.tensors[1].offset = 96, Flaw::OutsideData { .. }),
    lie!("an offset that overflows", |f| f.tensors[1].offset = !31, Flaw::OutsideData { .. }),
    lie!("more rows than bytes", |f| f.tensors[0].dims = vec![3, 200], Flaw::OutsideData { .. }),
    lie!("two tensors in one place", |f| f.tensors[1].offset = 0, Flaw::Overlap { .. }),
    lie!("two tensors half in one place", |f| f.tensors[0].dims = vec![12], Flaw::Overlap { .. }),
    lie!("data cut short", |f| f.data.truncate(64), Flaw::OutsideData { .. }),
    lie!(
        "no data",
        |f| {
            f.data.clear();
            f.padding = false;
        },
        Flaw::OutsideData { data_len: 0, .. }
    ),
];

fn alignment(to: u32) -> (Vec<u8>, u32, Vec<u8>) {
    (b"general.alignment".to_vec(), value::U32, to.to_le_bytes().to_vec())
}

/// What is listed is checked like what is computed with, but for types.
#[test]
fn a_listing_catches_every_lie_but_a_foreign_type() {
    for lie in LIES {
        let mut forge = Forge::sound();
        (lie.tell)(&mut forge);
        match (list(&forge.bytes()), parse(&forge.bytes())) {
            (Ok(_), Err(Flaw::TensorType { .. })) => {}
            (Err(listed), Err(parsed)) => assert_eq!(listed, parsed, "{}", lie.name),
            other => panic!("{}: {other:?}", lie.name),
        }
    }
}

#[test]
fn tensors_of_foreign_types_have_a_name_and_bytes_in_a_listing() {
    for (id, name) in [(1000, "type 1000"), (31, "q4_0_4_4")] {
        let mut forge = Forge::sound();
        forge.tensors[0].ggml_id = id;
        let listed = list(&forge.bytes()).unwrap().tensors;
        // As far as the next one.
        assert_eq!(
            (listed[0].dtype.as_str(), listed[0].bytes, &listed[0].shape[..]),
            (name, 32, &[2, 3][..])
        );
        assert_eq!((listed[1].dtype.as_str(), listed[1].bytes), ("q8_0", 34));
        forge.tensors[0].offset = 4096;
        assert!(matches!(list(&forge.bytes()), Err(Flaw::OutsideData { .. })), "{name}");
        forge.tensors[0] = Entry { dims: vec![u64::MAX; 4], offset: 0, ..forge.tensors[0].clone() };
        assert_eq!(list(&forge.bytes()).unwrap().tensors[0].elements(), u64::MAX);
    }
}

#[test]
fn every_lie_is_caught_for_what_it_is() {
    for lie in LIES {
        let mut forge = Forge::sound();
        (lie.tell)(&mut forge);
        match forge.parse() {
            Ok(_) => panic!("{} was believed", lie.name),
            Err(flaw) => assert!((lie.caught)(&flaw), "{} was taken for: {flaw}", lie.name),
        }
    }
}

#[test]
fn the_sound_file_the_lies_depart_from_is_read() {
    for version in [2, 3] {
        let forge = Forge { version, ..Forge::sound() };
        let header = forge.parse().unwrap();
        assert_eq!(header.version, version);
        assert_eq!(header.metadata[0], ("general.architecture".to_owned(), Value::from("llama")));
        assert_eq!(header.metadata[1].1, Value::Array(Array::U16(vec![1, 2, 259])));
        let (a, place) = &header.tensors[0];
        assert_eq!((a.name.as_str(), a.dtype, &a.shape[..], a.bytes), ("a", Dtype::F32, &[2, 3][..], 24));
        let file = forge.bytes();
        assert_eq!(&file[place.clone()], &forge.data[..24]);
        let (b, place) = &header.tensors[1];
        assert_eq!((b.dtype, b.bytes), (Dtype::Ggml(GgmlType::Q8_0), 34));
        assert_eq!(&file[place.clone()], &forge.data[32..66]);
    }
}

#[test]
fn scalars_and_empty_tensors_take_one_value_and_none() {
    let mut forge = Forge::sound();
    forge.tensors[0].dims = vec![];
    forge.tensors[1] = Entry { name: b"none".to_vec(), dims: vec![0, 5], ggml_id: 0, offset: 0 };
    let header = forge.parse().unwrap();
    assert_eq!((header.tensors[0].0.bytes, header.tensors[1].0.bytes), (4, 0));
}

#[test]
fn a_file_cut_anywhere_is_refused_and_never_read_past() {
    let bytes = Forge { data: (0..66).collect(), ..Forge::sound() }.bytes();
    assert!(parse(&bytes).is_ok());
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{len} of {} bytes were enough", bytes.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_change_of_bytes_makes_the_reader_panic_or_leave_the_file(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let mut bytes = Forge::sound().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(header) = parse(&bytes) {
            for (info, place) in header.tensors {
                prop_assert_eq!(bytes[place].len() as u64, info.bytes);
            }
        }
    }
}
