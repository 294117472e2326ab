//! Sharded folders, and folders that are no model at all.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::file;
use crate::error::Found;
use crate::safetensors::{Flaw, Folder, INDEX, SINGLE};
use crate::{Container, Error};

const SHARD_1: &str = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"extra":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
const SHARD_2: &str = r#"{"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;

/// A folder with two shards and this `weight_map`.
fn sharded(weight_map: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("s1.safetensors"), file(SHARD_1, 3)).unwrap();
    fs::write(folder.path().join("s2.safetensors"), file(SHARD_2, 3)).unwrap();
    fs::write(folder.path().join(INDEX), format!(r#"{{"metadata":{{}},"weight_map":{weight_map}}}"#))
        .unwrap();
    folder
}

fn flaw_of(path: &Path) -> Flaw {
    match Folder::open(path) {
        Err(Error::Safetensors { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sharded_folder_is_one_model_of_the_tensors_its_index_names() {
    let folder = sharded(r#"{"b":"s2.safetensors","a":"s1.safetensors"}"#);
    let model = Folder::open(folder.path()).unwrap();
    let names: Vec<&str> = model.tensors().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(model.bytes("b").unwrap(), [0, 1, 2]);
    assert_eq!(model.files().count(), 2);
}

#[test]
fn a_missing_shard_is_named_with_the_tensors_it_would_hold() {
    let folder = sharded(r#"{"a":"s1.safetensors","c":"s3.safetensors","d":"s3.safetensors"}"#);
    let error = Folder::open(folder.path()).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("missing shard")));
    match flaw_of(folder.path()) {
        Flaw::MissingShard { path, tensors } => assert!(path.ends_with("s3.safetensors") && tensors == 2),
        other => panic!("{other}"),
    }
}

#[test]
fn a_tensor_its_shard_does_not_have_is_named() {
    let folder = sharded(r#"{"a":"s1.safetensors","b":"s1.safetensors"}"#);
    assert!(
        matches!(flaw_of(folder.path()), Flaw::NotInShard { name, shard } if name == "b" && shard == "s1.safetensors")
    );
}

#[test]
fn an_index_that_names_a_tensor_twice_is_refused() {
    let folder = sharded(r#"{"a":"s1.safetensors","a":"s2.safetensors"}"#);
    assert!(matches!(flaw_of(folder.path()), Flaw::DuplicateTensor { name } if name == "a"));
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    for shard in ["../s1.safetensors", "/etc/passwd", "sub/s1.safetensors", "..", ".", ""] {
        let folder = sharded(&format!(r#"{{"a":"{shard}"}}"#));
        assert!(matches!(flaw_of(folder.path()), Flaw::ShardName { .. }), "{shard}");
    }
}

#[test]
fn an_index_that_is_no_index_is_refused() {
    for weight_map in ["[]", "3", r#"{"a":1}"#, "{"] {
        let folder = sharded(weight_map);
        assert!(matches!(Folder::open(folder.path()), Err(Error::Json { .. })), "{weight_map}");
    }
}

#[test]
fn a_truncated_shard_is_named() {
    let folder = sharded(r#"{"a":"s1.safetensors","b":"s2.safetensors"}"#);
    fs::write(folder.path().join("s2.safetensors"), file(SHARD_2, 2)).unwrap();
    match Folder::open(folder.path()) {
        Err(Error::Safetensors { path, source: Flaw::OutsideData { end: 3, data_len: 2, .. } }) => {
            assert!(path.ends_with("s2.safetensors"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_single_file_comes_before_the_index() {
    let folder = sharded("{}");
    fs::write(folder.path().join(SINGLE), file(SHARD_2, 3)).unwrap();
    assert_eq!(Folder::open(folder.path()).unwrap().tensors()[0].name, "b");
    assert_eq!(Folder::open(&folder.path().join("s1.safetensors")).unwrap().tensors().len(), 2);
}

#[test]
fn folders_without_safetensors_say_what_they_hold() {
    for (name, expected) in [
        ("pytorch_model.bin", Found::Pickle),
        ("consolidated.00.pth", Found::Pickle),
        ("model.GGUF", Found::GgufInside),
        ("notes.txt", Found::Other),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), b"x").unwrap();
        let error = crate::open(folder.path()).unwrap_err();
        assert!(matches!(error, Error::NotACheckpoint { found, .. } if found == expected), "{name}");
        assert_eq!(error.hint().is_some(), expected != Found::Other, "{name}");
    }
}

#[test]
fn a_path_that_leads_nowhere_and_a_text_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(crate::open(&folder.path().join("absent")), Err(Error::Io { .. })));
    assert!(matches!(Folder::open(&folder.path().join("absent")), Err(Error::Io { .. })));
    let text = folder.path().join("notes.txt");
    fs::write(&text, "hello").unwrap();
    assert!(matches!(crate::open(&text), Err(Error::NotACheckpoint { found: Found::Other, .. })));
}

#[test]
fn an_empty_file_and_a_git_lfs_pointer_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SINGLE);
    fs::write(&path, b"").unwrap();
    assert!(matches!(flaw_of(folder.path()), Flaw::NoHeader { len: 0 }));
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n").unwrap();
    let error = Folder::open(folder.path()).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("LFS")));
}
