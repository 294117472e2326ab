#![expect(clippy::unwrap_used, reason = "a test may")]

use attar_checkpoint::TensorInfo;
use attar_quant::{Encoding as _, IntEncoding};

use super::*;
use crate::layout::forge::{Forged, infos};

const W3: GroupScheme = GroupScheme { num_bits: 3, group_size: Some(64), symmetric: false };
const W4: GroupScheme = GroupScheme { num_bits: 4, group_size: Some(32), symmetric: true };
const SHAPE: [usize; 2] = [16, 192];

fn config(schemes: &[GroupScheme]) -> Packed {
    let groups = schemes.iter().map(|&scheme| Group { targets: vec!["Linear".to_owned()], scheme });
    Packed { groups: groups.collect(), ignore: vec!["lm_head".to_owned()] }
}

fn encoding(scheme: GroupScheme) -> IntEncoding {
    let GroupScheme { num_bits, group_size, symmetric } = scheme;
    int_encoding(IntegerScheme { bits: num_bits, group_size: group_size.unwrap_or(SHAPE[1]), symmetric })
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
