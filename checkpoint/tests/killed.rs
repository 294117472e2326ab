//! A process that dies while writing leaves nothing under the names it was asked for.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use attar_checkpoint::atomic::{AtomicFolder, Overwrite};
use attar_checkpoint::{Dtype, TensorInfo, gguf, safetensors};

/// Tells the second run of this program to die, and where.
const WRITE_INTO: &str = "ATTAR_TEST_DIE_WRITING_INTO";

#[test]
fn a_killed_run_leaves_nothing_under_the_final_names() {
    if let Some(folder) = std::env::var_os(WRITE_INTO) {
        die_writing_into(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_run_leaves_nothing_under_the_final_names"])
        .env(WRITE_INTO, folder.path())
        .output()
        .unwrap()
        .status;
    assert!(!status.success());
    let left: Vec<String> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left.len(), 2, "the other process did write: {left:?}");
    assert!(left.iter().all(|name| name.starts_with('.') && name.contains(".partial-")), "{left:?}");
}

/// Begins a GGUF file and a safetensors folder, writes half of each, and ends as a kill would: no destructor runs.
fn die_writing_into(folder: &Path) -> ! {
    let plan = [TensorInfo::new("t", Dtype::F32, &[1024])];
    let half = vec![1; 2048];
    let mut gguf = gguf::Writer::create(&folder.join("model.gguf"), Overwrite::No, &[], &plan).unwrap();
    gguf.write("t", &half).unwrap();
    let out = AtomicFolder::create(&folder.join("model"), Overwrite::No).unwrap();
    let mut tensors =
        safetensors::Writer::create(out.temp_path(), Overwrite::No, &BTreeMap::new(), &plan, u64::MAX)
            .unwrap();
    tensors.write("t", &half).unwrap();
    std::process::abort();
}
