//! What is written is read back, by us and by a reader that shares no code with us.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use crate::atomic::Overwrite;
use crate::error::Misfit;
use crate::gguf::{Array, File, Value, Writer};
use crate::{Container, Dtype, Error, GgmlType, TensorInfo};

fn one_of_each() -> Vec<(String, Value)> {
    let values = [
        Value::U8(200),
        Value::I8(-100),
        Value::U16(60000),
        Value::I16(-30000),
        Value::U32(4_000_000_000),
        Value::I32(-2_000_000_000),
        Value::F32(0.1),
        Value::Bool(true),
        Value::from("naïve ▁token\0"),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(1e-300),
        Value::Array(Array::U8(vec![1, 2])),
        Value::Array(Array::I8(vec![-1])),
        Value::Array(Array::U16(vec![65535])),
        Value::Array(Array::I16(vec![-2, 2])),
        Value::Array(Array::U32(vec![7; 9])),
        Value::Array(Array::I32(vec![-7, 0])),
        Value::Array(Array::F32(vec![1.5, -0.0])),
        Value::Array(Array::Bool(vec![true, false, true])),
        Value::from(vec![String::new(), "b".to_owned(), "ü".to_owned()]),
        Value::Array(Array::U64(vec![])),
        Value::Array(Array::I64(vec![-1])),
        Value::Array(Array::F64(vec![2.5])),
    ];
    values.into_iter().enumerate().map(|(no, value)| (format!("test.value_{no}"), value)).collect()
}

fn data_of(info: &TensorInfo) -> Vec<u8> {
    let seed = info.name.bytes().map(u32::from).sum::<u32>();
    (0..info.bytes as u32).map(|i| (i.wrapping_mul(31).wrapping_add(seed) % 251) as u8).collect()
}

/// Writes `tensors`, last first, each in two pieces.
fn write(path: &Path, metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Result<(), Error> {
    let mut writer = Writer::create(path, Overwrite::No, metadata, tensors)?;
    for info in tensors.iter().rev() {
        let data = data_of(info);
        let (first, second) = data.split_at(data.len() / 3);
        writer.write(&info.name, first)?;
        writer.write(&info.name, second)?;
    }
    writer.finish()
}

fn folder_and_file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    (folder, path)
}

fn assert_reads_back(path: &Path, metadata: &[(String, Value)], tensors: &[TensorInfo]) {
    let file = File::open(path).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.all_metadata(), metadata);
    assert_eq!(file.tensors(), tensors);
    for info in tensors {
        assert_eq!(file.bytes(&info.name).unwrap(), data_of(info), "{}", info.name);
        assert_eq!(file.info(&info.name), Some(info));
    }
}

#[test]
fn every_value_type_and_every_tensor_type_comes_back_as_written() {
    let metadata = one_of_each();
    let tensors: Vec<TensorInfo> = GgmlType::all()
        .map(|ggml| TensorInfo::new(format!("t.{ggml}"), Dtype::from(ggml), &[3, 2, ggml.block_len() * 2]))
        .collect();
    let (_folder, path) = folder_and_file();
    write(&path, &metadata, &tensors).unwrap();
    assert_reads_back(&path, &metadata, &tensors);
    for (key, value) in &metadata {
        assert_eq!(File::open(&path).unwrap().metadata(key), Some(value));
    }
}

#[test]
fn tensors_lie_back_to_back_at_multiples_of_the_alignment_as_llama_cpp_demands() {
    let tensors = [5, 8, 1].map(|len| TensorInfo::new(format!("t{len}"), Dtype::F32, &[len]));
    for (metadata, alignment) in
        [(vec![], 32), (vec![("general.alignment".to_owned(), Value::U32(256))], 256)]
    {
        let (_folder, path) = folder_and_file();
        write(&path, &metadata, &tensors).unwrap();
        assert_reads_back(&path, &metadata, &tensors);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() % alignment, 0, "the last tensor is padded too");
        let data = &bytes[bytes.len() - 3 * alignment..];
        for (no, info) in tensors.iter().enumerate() {
            assert!(data[no * alignment..].starts_with(&data_of(info)), "alignment {alignment}");
        }
    }
}

#[test]
fn the_gguf_crate_reads_the_same_header() {
    let old_types = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14].map(|id| GgmlType::from_id(id).unwrap());
    let tensors =
        old_types.map(|ggml| TensorInfo::new(format!("t.{ggml}"), ggml.into(), &[4, 3, ggml.block_len()]));
    let metadata = one_of_each();
    let (_folder, path) = folder_and_file();
    write(&path, &metadata, &tensors).unwrap();

    let theirs = gguf::GGUFFile::read(&fs::read(&path).unwrap()).unwrap().unwrap();
    assert_eq!(theirs.header.version, 3);
    assert_eq!(theirs.header.metadata.len(), metadata.len());
    for (their, (key, value)) in theirs.header.metadata.iter().zip(&metadata) {
        assert_eq!(&their.key, key);
        assert_eq!(format!("{:?}", their.value), in_their_words(value), "{key}");
    }
    assert_eq!(theirs.tensors.len(), tensors.len());
    let mut offset = 0;
    for (their, info) in theirs.tensors.iter().zip(&tensors) {
        let dims: Vec<u64> = info.shape.iter().rev().map(|&dim| dim as u64).collect();
        assert_eq!((&their.name, &their.dimensions), (&info.name, &dims));
        assert_eq!(Some(their.tensor_type as u32), info.dtype.ggml_type().map(GgmlType::id));
        assert_eq!(their.offset, offset);
        offset += info.bytes.next_multiple_of(32);
    }
}

/// As the crate's `Debug` prints it: bare values, of arrays at most three.
fn in_their_words(value: &Value) -> String {
    match value {
        Value::Array(array) => {
            let mut words: Vec<String> =
                (0..array.len().min(3)).map(|i| in_their_words(&array.get(i).unwrap())).collect();
            if array.len() > 3 {
                words.push("...".to_owned());
            }
            words.join(", ")
        }
        Value::String(text) => text.clone(),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        Value::Bool(x) => x.to_string(),
        Value::I8(x) => x.to_string(),
        Value::I16(x) => x.to_string(),
        Value::I32(x) => x.to_string(),
        Value::I64(x) => x.to_string(),
        unsigned => unsigned.as_u64().unwrap().to_string(),
    }
}

#[test]
fn plans_the_format_cannot_hold_are_refused_before_a_byte_is_written() {
    let good = TensorInfo::new("t", Dtype::F32, &[4]);
    let plan = |metadata: &[(&str, Value)], tensors: &[TensorInfo]| {
        let (folder, path) = folder_and_file();
        let metadata: Vec<_> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let refused = Writer::create(&path, Overwrite::No, &metadata, tensors).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        match refused {
            Error::Unwritable { source, .. } => source,
            other => panic!("{other}"),
        }
    };
    let named = |name: &str| TensorInfo { name: name.to_owned(), ..good.clone() };
    assert!(matches!(plan(&[], &[named("t"), named("t")]), Misfit::DuplicateTensor { .. }));
    assert!(matches!(plan(&[], &[named(&"x".repeat(64))]), Misfit::NameTooLong { bytes: 64, most: 63, .. }));
    let fp8 = TensorInfo::new("t", Dtype::F8E4m3, &[4]);
    assert!(matches!(plan(&[], &[fp8]), Misfit::NoSuchType { .. }));
    let deep = TensorInfo::new("t", Dtype::F32, &[1; 5]);
    assert!(matches!(plan(&[], &[deep]), Misfit::TooManyDims { dims: 5, .. }));
    let short = TensorInfo { bytes: 15, ..good.clone() };
    assert!(matches!(plan(&[], &[short]), Misfit::WrongSize { planned: 15, .. }));
    let twice = [("k", Value::U8(1)), ("k", Value::U8(2))];
    assert!(matches!(plan(&twice, &[]), Misfit::DuplicateKey { .. }));
    for value in [Value::U32(0), Value::U32(33), Value::U64(32)] {
        assert!(matches!(plan(&[("general.alignment", value)], &[]), Misfit::Alignment));
    }
}

#[test]
fn bytes_beside_the_plan_are_refused_and_an_unfinished_file_never_appears() {
    let (folder, path) = folder_and_file();
    let plan = [TensorInfo::new("t", Dtype::F32, &[4])];
    let mut writer = Writer::create(&path, Overwrite::No, &[], &plan).unwrap();
    let misfit = |result: Result<(), Error>| match result {
        Err(Error::Unwritable { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert!(matches!(misfit(writer.write("u", &[0])), Misfit::NotPlanned { .. }));
    writer.write("t", &[0; 12]).unwrap();
    assert!(matches!(
        misfit(writer.write("t", &[0; 5])),
        Misfit::TooManyBytes { planned: 16, given: 17, .. }
    ));
    assert!(matches!(misfit(writer.finish()), Misfit::Unfinished { planned: 16, written: 12, .. }));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_unknown_tensor_is_answered_with_its_name() {
    let (_folder, path) = folder_and_file();
    write(&path, &[], &[]).unwrap();
    let file = File::open(&path).unwrap();
    assert!(file.info("x").is_none());
    assert!(matches!(file.bytes("x"), Err(Error::NoTensor { name, count: 0, .. }) if name == "x"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_plan_reads_back(
        keys in prop::collection::btree_map("[a-z.]{1,12}", "\\PC{0,20}", 0..6),
        shapes in prop::collection::vec((prop::collection::vec(0usize..5, 0..4), 0usize..3), 0..8),
    ) {
        let metadata: Vec<_> =
            keys.into_iter().map(|(key, text)| (format!("x.{key}"), Value::from(text))).collect();
        let types = [Dtype::F32, Dtype::I8, Dtype::Ggml(GgmlType::Q4K)];
        let tensors: Vec<_> = shapes
            .into_iter()
            .enumerate()
            .map(|(no, (mut shape, pick))| {
                shape.push(types[pick].block_len());
                TensorInfo::new(format!("t{no}"), types[pick], &shape)
            })
            .collect();
        let (_folder, path) = folder_and_file();
        write(&path, &metadata, &tensors).unwrap();
        assert_reads_back(&path, &metadata, &tensors);
    }
}
