#![expect(clippy::unwrap_used, reason = "a test may")]

use attar_checkpoint::TensorInfo;
use attar_checkpoint::compressed_tensors::{NUMBERS, Numbers};
use attar_quant::{Encoding as _, IntEncoding};

use super::*;
use crate::layout::forge::{Forged, infos};

const W3: GroupScheme = GroupScheme { num_bits: 3, group_size: Some(64), symmetric: false };
const W4: GroupScheme = GroupScheme { num_bits: 4, group_size: Some(32), symmetric: true };
const SHAPE: [usize; 2] = [16, 192];

fn config(schemes: &[GroupScheme]) -> Packed {
    let groups = schemes.iter().map(|&scheme| Group::of_linear(Weights::Integers(scheme)));
    Packed { groups: groups.collect(), ignore: vec!["lm_head".to_owned()] }
}

fn encoding(scheme: GroupScheme) -> IntEncoding {
    let GroupScheme { num_bits, group_size, symmetric } = scheme;
    IntegerScheme { bits: num_bits, group_size, symmetric }.encoding(SHAPE[1])
}

/// A model whose one weight is stored by `scheme`, after `change`.
fn model(scheme: GroupScheme, change: fn(&mut Vec<TensorInfo>)) -> Forged {
    let mut tensors = infos(&encoding(scheme), "l.weight", SHAPE);
    change(&mut tensors);
    Forged::new(&tensors, |name| {
        name.ends_with("_shape").then(|| SHAPE.map(|dim| (dim as i64).to_le_bytes()).concat())
    })
}

#[test]
fn the_tensors_tell_which_group_a_weight_belongs_to() {
    let whole_rows = GroupScheme { group_size: None, ..W4 };
    for scheme in [W3, W4, whole_rows, GroupScheme { num_bits: 8, ..W3 }] {
        let model = model(scheme, |_| ());
        let config = config(&[W4, W3, whole_rows, GroupScheme { num_bits: 8, ..W3 }]);
        let (found, shape) = config.find(&model.files, "l.weight").unwrap().unwrap();
        assert_eq!((found.name(), shape), (encoding(scheme).name(), SHAPE));
        assert!(config.find(&model.files, "other.weight").unwrap().is_none());
    }
}

#[test]
fn tensors_that_contradict_the_config_or_each_other_are_refused() {
    let find = |change, schemes: &[GroupScheme]| {
        config(schemes).find(&model(W3, change).files, "l.weight").unwrap_err()
    };
    let no_group = |error| matches!(error, StorageError::FitsNoGroup { weight } if weight == "l.weight");
    assert!(no_group(find(|_| (), &[W4])));
    assert!(no_group(find(|_| (), &[])));
    assert!(no_group(find(|_| (), &[GroupScheme { symmetric: true, ..W3 }])), "zero points nobody asked for");
    assert!(
        no_group(find(|_| (), &[GroupScheme { group_size: Some(65), ..W3 }])),
        "groups that do not divide"
    );
    assert!(no_group(find(|tensors| drop(tensors.remove(2)), &[W3])), "zero points missing");
    assert!(matches!(
        find(|tensors| drop(tensors.remove(1)), &[W3]),
        StorageError::NoPart { name, .. } if name == "l.weight_scale"
    ));
    assert!(no_group(find(
        |tensors| tensors[0] = TensorInfo::new("l.weight_packed", Dtype::I32, &[16, 17]),
        &[W3]
    )));
    assert!(no_group(find(
        |tensors| tensors[0] = TensorInfo::new("l.weight_packed", Dtype::I64, &[16, 18]),
        &[W3]
    )));
    assert!(matches!(
        find(|tensors| tensors[1] = TensorInfo::new("l.weight_scale", Dtype::I16, &[16, 3]), &[W3]),
        StorageError::Type { .. }
    ));
    assert!(matches!(
        find(|tensors| drop(tensors.pop()), &[W3]),
        StorageError::File(attar_checkpoint::Error::NoTensor { name, .. }) if name == "l.weight_shape"
    ));
}

#[test]
fn a_weight_shape_that_lies_is_refused() {
    let bytes = |shape: [i64; 2]| shape.map(i64::to_le_bytes).concat();
    for bytes in [vec![], bytes([1, 2])[..8].to_vec(), bytes([-1, 2]), bytes([1 << 40, 2]), bytes([3, 0])] {
        assert_eq!(read_shape(&bytes), None, "{bytes:?}");
    }
    assert_eq!(read_shape(&bytes([3, 4])), Some([3, 4]));
}

/// A folder whose one weight is stored as numbers of a kind, after `change`; and what is found there by all kinds.
fn numbers_found(
    kind: &'static Numbers,
    change: impl Fn(&mut Vec<TensorInfo>),
) -> std::result::Result<Option<Found>, StorageError> {
    let spec = spec(SHAPE_OF_NUMBERS);
    let named = CompressedTensors.encoding(Scheme::Numbers(kind), &spec, Dtype::Bf16).unwrap();
    let Named::Folder(encoding) = &named else { panic!("{named:?} is no folder's") };
    let mut tensors = infos(&**encoding, "l.weight", SHAPE_OF_NUMBERS);
    change(&mut tensors);
    let weights = NUMBERS.iter().map(Weights::Numbers);
    let groups = weights.map(Group::of_linear).collect();
    Packed { groups, ignore: Vec::new() }.find(&Forged::new(&tensors, |_| None).files, "l.weight")
}

const SHAPE_OF_NUMBERS: [usize; 2] = [128, 192];

fn spec(shape: [usize; 2]) -> TensorSpec {
    let config = crate::source::Source::open(std::path::Path::new("fixtures/books-2m")).unwrap().config;
    let spec = config.tensors().into_iter().find(|spec| spec.name.ends_with("q_proj.weight")).unwrap();
    TensorSpec { shape: shape.to_vec(), ..spec }
}

#[test]
fn numbers_of_every_kind_are_told_apart_by_their_tensors() {
    for kind in &NUMBERS {
        let (found, shape) = numbers_found(kind, |_| ()).unwrap().unwrap();
        let wanted = CompressedTensors.encoding(Scheme::Numbers(kind), &spec(shape), Dtype::Bf16).unwrap();
        assert_eq!((found.name(), shape), (wanted.name(), SHAPE_OF_NUMBERS), "{}", kind.name);
        assert_eq!(found.rows_together(shape[0]).min(2), if kind.name == "fp8-block" { 2 } else { 1 });
    }
}

#[test]
fn numbers_without_their_scales_or_with_others_are_refused() {
    for kind in &NUMBERS {
        let refused = |at: usize, dtype: Dtype, more: usize| {
            let found = numbers_found(kind, |tensors| {
                let mut shape = tensors[at].shape.clone();
                shape[0] += more;
                tensors[at] = TensorInfo::new(tensors[at].name.clone(), dtype, &shape);
            });
            found.is_err()
        };
        let scales = numbers_found(kind, |_| ()).unwrap().unwrap().0.parts(128, 192)[1].dtype;
        assert!(refused(1, scales, 1), "{}: one scale too many", kind.name);
        assert!(refused(1, Dtype::I64, 0), "{}: scales that are none", kind.name);
        assert!(refused(0, Dtype::I16, 0), "{}: numbers of another type", kind.name);
        // Without any scale a weight is taken for floats; packed numbers never are.
        let bare = numbers_found(kind, |tensors| drop(tensors.remove(1)));
        let is_packed = ["mxfp4", "nvfp4"].contains(&kind.name);
        assert_eq!(bare.is_err(), is_packed, "{}", kind.name);
    }
    let whole = numbers_found(Numbers::named("nvfp4").unwrap(), |tensors| drop(tensors.pop()));
    assert!(matches!(whole, Err(StorageError::FitsNoGroup { .. })), "the divisor is missing");
}

#[test]
fn shapes_that_no_reader_of_numbers_accepts_are_refused_with_a_hint() {
    for (name, shape, told) in [
        ("nvfp4", [128, 200], "groups of 16 do not divide its rows of 200"),
        ("mxfp8", [128, 48], "groups of 32 do not divide its rows of 48"),
        ("fp8-block", [200, 128], "its 200 rows are no whole blocks of 128"),
    ] {
        let scheme = Scheme::Numbers(Numbers::named(name).unwrap());
        let refused = CompressedTensors.encoding(scheme, &spec(shape), Dtype::Bf16).unwrap_err().to_string();
        assert!(refused.contains(told) && refused.contains("hint:"), "{refused}");
    }
}
