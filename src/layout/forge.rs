//! Small files of packed weights for tests.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;

use attar_checkpoint::TensorInfo;
use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::safetensors::{Folder, Writer};
use attar_quant::FolderEncoding;
use tempfile::TempDir;

/// A folder with tensors.
pub struct Forged {
    _folder: TempDir,
    /// It, opened.
    pub files: Folder,
}

impl Forged {
    /// With the bytes that `content` has for a name; zeros where it has none.
    pub fn new(tensors: &[TensorInfo], content: impl Fn(&str) -> Option<Vec<u8>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut writer =
            Writer::create(folder.path(), Overwrite::No, &BTreeMap::new(), tensors, u64::MAX).unwrap();
        for info in tensors {
            let bytes = content(&info.name).unwrap_or_else(|| vec![0; info.bytes as usize]);
            writer.write(&info.name, &bytes).unwrap();
        }
        writer.finish().unwrap();
        let files = Folder::open(folder.path()).unwrap();
        Self { _folder: folder, files }
    }
}

/// The tensors that stand for `weight`.
pub fn infos(encoding: &dyn FolderEncoding, weight: &str, [rows, cols]: [usize; 2]) -> Vec<TensorInfo> {
    let parts = encoding.parts(rows, cols);
    parts.iter().map(|part| TensorInfo::new(part.name(weight).unwrap(), part.dtype, &part.shape)).collect()
}
