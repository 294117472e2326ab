//! Models split over several files.

use std::path::Path;

use crate::atomic::Overwrite;
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
    match File::open(&first) {
        Err(Error::Io { path, .. }) => assert!(path.ends_with("m-00002-of-00002.gguf")),
        other => panic!("{other:?}"),
    }
    write_part(folder.path(), "m-00002-of-00002.gguf", 1, 3, "t1");
    assert!(matches!(flaw_of(&first), Flaw::Split { key: "split.count", value: 3, .. }));
    write_part(folder.path(), "m-00002-of-00002.gguf", 0, 2, "t1");
    assert!(matches!(flaw_of(&first), Flaw::Split { key: "split.no", value: 0, .. }));
    write_part(folder.path(), "m-00002-of-00002.gguf", 1, 2, "t0");
    assert!(matches!(flaw_of(&first), Flaw::DuplicateTensor { .. }));
    write_part(folder.path(), "renamed.gguf", 0, 2, "t0");
    assert!(matches!(flaw_of(&folder.path().join("renamed.gguf")), Flaw::Split { key: "split.count", .. }));
}
