//! Models split over several files.

use std::path::Path;

use crate::atomic::Overwrite;
use crate::gguf::split::{part_path, part_sizes, stem_of};
use crate::gguf::{File, Flaw, Value, Writer};
use crate::{Container, Dtype, Error, TensorInfo};

fn write_part(folder: &Path, name: &str, no: u16, count: u16, tensor: &str) {
    let metadata = [
        ("split.no".to_owned(), Value::U16(no)),
        ("split.count".to_owned(), Value::U16(count)),
        ("whose".to_owned(), Value::U16(no)),
    ];
    let plan = [TensorInfo::new(tensor, Dtype::I8, &[1])];
    let mut writer = Writer::create(&folder.join(name), Overwrite::Yes, &metadata, &plan).unwrap();
    writer.write(tensor, &[no as u8]).unwrap();
    writer.finish().unwrap();
}

fn flaw_of(path: &Path) -> Flaw {
    match File::open(path) {
        Err(Error::Gguf { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_part_opens_the_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    for no in 0..3u16 {
        write_part(folder.path(), &format!("m-0000{}-of-00003.gguf", no + 1), no, 3, &format!("t{no}"));
    }
    for no in 1..=3 {
        let file = File::open(&folder.path().join(format!("m-0000{no}-of-00003.gguf"))).unwrap();
        assert_eq!(file.tensors().len(), 3);
        assert_eq!(file.bytes("t2").unwrap(), [2]);
        assert_eq!(file.metadata("whose"), Some(&Value::U16(0)));
    }
}

#[test]
fn parts_that_are_missing_misnamed_or_of_another_model_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("m-00001-of-00002.gguf");
    write_part(folder.path(), "m-00001-of-00002.gguf", 0, 2, "t0");
    let missing = Flaw::MissingPart { no: 2, count: 2, name: "m-00002-of-00002.gguf".to_owned() };
    assert_eq!(flaw_of(&first), missing);
    write_part(folder.path(), "m-00002-of-00002.gguf", 1, 3, "t1");
    assert!(matches!(flaw_of(&first), Flaw::Split { key: "split.count", value: 3, .. }));
    write_part(folder.path(), "m-00002-of-00002.gguf", 0, 2, "t1");
    assert!(matches!(flaw_of(&first), Flaw::Split { key: "split.no", value: 0, .. }));
    write_part(folder.path(), "m-00002-of-00002.gguf", 1, 2, "t0");
    assert!(matches!(flaw_of(&first), Flaw::DuplicateTensor { .. }));
    write_part(folder.path(), "renamed.gguf", 0, 2, "t0");
    assert!(matches!(flaw_of(&folder.path().join("renamed.gguf")), Flaw::Split { key: "split.count", .. }));
}

/// As llama-gguf-split cuts them: by the bytes of tensors, padded, without the header's; what is too large stands alone.
#[test]
fn tensors_fill_parts_in_their_order() {
    let tensor = |name: &str, bytes: usize| TensorInfo::new(name, Dtype::I8, &[bytes]);
    let tensors = [tensor("a", 30), tensor("b", 64), tensor("c", 500), tensor("d", 1), tensor("e", 96)];
    for (most, sizes) in [(1, vec![1; 5]), (96, vec![2, 1, 1, 1]), (128, vec![2, 1, 2]), (10_000, vec![5])] {
        assert_eq!(part_sizes(&tensors, most), sizes, "{most}");
    }
    assert_eq!(part_sizes(&[], 1), [0]);
}

#[test]
fn parts_are_written_as_they_are_read_and_only_the_first_describes_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.GGUF");
    let metadata = [("about".to_owned(), Value::U16(1)), ("general.alignment".to_owned(), Value::U32(64))];
    let tensors: Vec<_> = (0..4).map(|no| TensorInfo::new(format!("t{no}"), Dtype::I8, &[40])).collect();
    let mut writer = Writer::create_parts(&path, Overwrite::No, &metadata, &tensors, 128).unwrap();
    for (no, info) in tensors.iter().enumerate().rev() {
        writer.write(&info.name, &[no as u8; 40]).unwrap();
    }
    assert!(!part_path(&path, 1, 2).exists());
    writer.finish().unwrap();
    let parts = [1, 2].map(|no| folder.path().join(format!("m-0000{no}-of-00002.gguf")));
    let file = File::open(&parts[1]).unwrap();
    assert_eq!((file.parts(), file.tensors()), (&parts[..], &tensors[..]));
    assert!((0..4).all(|no| file.bytes(&format!("t{no}")).unwrap() == [no as u8; 40]));
    let keys = |file: &File| file.all_metadata().iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    let split = ["split.no", "split.tensors.count", "split.count"];
    assert_eq!(keys(&file), [&["about", "general.alignment"][..], &split].concat());
    assert_eq!(file.metadata("split.tensors.count"), Some(&Value::I32(4)));
    assert_eq!(names_in(folder.path()), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
}

#[test]
fn parts_whose_names_are_taken_are_not_written_and_what_stays_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let tensors: Vec<_> = (0..2).map(|no| TensorInfo::new(format!("t{no}"), Dtype::I8, &[32])).collect();
    let write = |overwrite| {
        let mut writer = Writer::create_parts(&path, overwrite, &[], &tensors, 32)?;
        writer.write("t0", &[0; 32])?;
        writer.write("t1", &[1; 32])?;
        std::fs::write(part_path(&path, 2, 2), "taken").unwrap();
        writer.finish()
    };
    assert!(matches!(write(Overwrite::No), Err(Error::Exists { .. })));
    assert_eq!(names_in(folder.path()), ["m-00002-of-00002.gguf"]);
    write(Overwrite::Yes).unwrap();
    assert_eq!(File::open(&part_path(&path, 1, 2)).unwrap().tensors(), tensors);
}

#[test]
fn a_model_is_called_as_its_parts_without_their_numbers() {
    for (path, stem) in [
        ("a/m-00001-of-00003.gguf", "m"),
        ("m.gguf", "m"),
        ("m-of-00003.gguf", "m-of-00003"),
        ("m-1-of-3.gguf", "m-1-of-3"),
        ("x-of-y-00002-of-00002.gguf", "x-of-y"),
    ] {
        assert_eq!(stem_of(Path::new(path)), stem, "{path}");
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
