//! What is written is read back, by us and by the format's own library.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::atomic::Overwrite;
use crate::error::Misfit;
use crate::safetensors::{Folder, INDEX, SINGLE, Writer};
use crate::{Container, Dtype, Error, GgmlType, TensorInfo};

const DTYPES: [Dtype; 16] = [
    Dtype::U8,
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::Bf16,
    Dtype::F8E4m3,
    Dtype::F8E5m2,
    Dtype::F8E8m0,
    Dtype::I64,
    Dtype::I32,
    Dtype::I16,
    Dtype::I8,
    Dtype::U64,
    Dtype::U32,
    Dtype::U16,
    Dtype::Bool,
];

fn one_of_each() -> Vec<TensorInfo> {
    let infos = DTYPES.iter().enumerate();
    infos.map(|(no, &dtype)| TensorInfo::new(format!("t{no}.{dtype}"), dtype, &[no % 3 + 1, 3])).collect()
}

fn data_of(info: &TensorInfo) -> Vec<u8> {
    let seed = info.name.bytes().map(u32::from).sum::<u32>();
    (0..info.bytes as u32).map(|i| (i.wrapping_mul(31).wrapping_add(seed) % 2) as u8).collect()
}

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

/// Writes `tensors`, last first, each in two pieces.
fn write(folder: &Path, tensors: &[TensorInfo], max_shard_bytes: u64) -> Result<(), Error> {
    let mut writer = Writer::create(folder, Overwrite::No, &metadata(), tensors, max_shard_bytes)?;
    for info in tensors.iter().rev() {
        let data = data_of(info);
        let (first, second) = data.split_at(data.len() / 3);
        writer.write(&info.name, first)?;
        writer.write(&info.name, second)?;
    }
    writer.finish()
}

fn assert_reads_back(folder: &Path, tensors: &[TensorInfo]) {
    let model = Folder::open(folder).unwrap();
    assert_eq!(model.tensors().len(), tensors.len());
    for info in tensors {
        assert_eq!(model.info(&info.name), Some(info));
        assert_eq!(model.bytes(&info.name).unwrap(), data_of(info), "{}", info.name);
    }
}

#[test]
fn every_type_comes_back_as_written_and_the_safetensors_crate_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = one_of_each();
    write(folder.path(), &tensors, u64::MAX).unwrap();
    assert_reads_back(folder.path(), &tensors);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "one shard needs no index");

    let bytes = fs::read(folder.path().join(SINGLE)).unwrap();
    let (header_len, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header_len % 8, header.metadata()), (0, &Some(metadata().into_iter().collect())));
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    for info in &tensors {
        let their = theirs.tensor(&info.name).unwrap();
        assert_eq!((their.shape(), their.data()), (&info.shape[..], &data_of(info)[..]), "{}", info.name);
        assert_eq!(Some(their.dtype().to_string().as_str()), info.dtype.safetensors_name());
        let start = header.info(&info.name).unwrap().data_offsets.0;
        assert_eq!(start % info.dtype.block_bytes(), 0, "{} is aligned", info.name);
    }
}

#[test]
fn past_a_shard_s_size_the_model_is_cut_and_the_index_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = [3, 3, 9, 1, 1]
        .iter()
        .enumerate()
        .map(|(no, &len)| TensorInfo::new(format!("t{no}"), Dtype::U8, &[len]))
        .collect();
    write(folder.path(), &tensors, 6).unwrap();
    assert_reads_back(folder.path(), &tensors);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join(INDEX)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 17);
    let shard = |tensor: &str| index["weight_map"][tensor].as_str().unwrap().to_owned();
    assert_eq!((shard("t0"), shard("t0")), (shard("t1"), "model-00001-of-00003.safetensors".to_owned()));
    assert_eq!(shard("t2"), "model-00002-of-00003.safetensors");
    assert_eq!((shard("t3"), shard("t3")), (shard("t4"), "model-00003-of-00003.safetensors".to_owned()));
    for file in Folder::open(folder.path()).unwrap().files() {
        SafeTensors::deserialize(&fs::read(file).unwrap()).unwrap();
    }
}

#[test]
fn plans_the_format_cannot_hold_leave_an_empty_folder() {
    let plan = |tensors: &[TensorInfo]| {
        let folder = tempfile::tempdir().unwrap();
        let refused = Writer::create(folder.path(), Overwrite::No, &metadata(), tensors, 4).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        match refused {
            Error::Unwritable { source, .. } => source,
            other => panic!("{other}"),
        }
    };
    let info = |name: &str| TensorInfo::new(name, Dtype::F32, &[1]);
    assert!(matches!(plan(&[info("t"), info("t")]), Misfit::DuplicateTensor { name } if name == "t"));
    assert!(matches!(plan(&[info("__metadata__")]), Misfit::DuplicateTensor { .. }));
    let block = TensorInfo::new("t", Dtype::Ggml(GgmlType::Q8_0), &[32]);
    assert!(matches!(plan(&[block]), Misfit::NoSuchType { .. }));
    let short = TensorInfo { bytes: 3, ..info("t") };
    assert!(matches!(plan(&[short]), Misfit::WrongSize { planned: 3, .. }));
}

#[test]
fn an_unfinished_model_never_appears() {
    let folder = tempfile::tempdir().unwrap();
    let plan = [TensorInfo::new("t", Dtype::F32, &[4]), TensorInfo::new("u", Dtype::F32, &[4])];
    let mut writer = Writer::create(folder.path(), Overwrite::No, &metadata(), &plan, 16).unwrap();
    let misfit = |result: Result<(), Error>| match result {
        Err(Error::Unwritable { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert!(matches!(misfit(writer.write("v", &[0])), Misfit::NotPlanned { .. }));
    assert!(matches!(misfit(writer.write("u", &[0; 17])), Misfit::TooManyBytes { .. }));
    writer.write("t", &[0; 16]).unwrap();
    assert!(matches!(misfit(writer.finish()), Misfit::Unfinished { name, written: 0, .. } if name == "u"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_plan_reads_back_however_it_is_cut(
        tensors in prop::collection::vec((0..DTYPES.len(), prop::collection::vec(0usize..5, 0..4)), 0..12),
        max_shard_bytes in 0u64..200,
    ) {
        let tensors: Vec<_> = tensors
            .into_iter()
            .enumerate()
            .map(|(no, (dtype, shape))| TensorInfo::new(format!("t{no}\""), DTYPES[dtype], &shape))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &tensors, max_shard_bytes).unwrap();
        assert_reads_back(folder.path(), &tensors);
    }
}
