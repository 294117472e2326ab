//! A GGUF file put together byte by byte, knowing nothing of the writer under test.

use crate::gguf::parse::{Header, parse};
use crate::gguf::{Flaw, value};

/// Every count and offset can be made to lie.
#[derive(Clone)]
pub(super) struct Forge {
    pub(super) magic: [u8; 4],
    pub(super) version: u32,
    pub(super) tensor_count: Option<u64>,
    pub(super) metadata_count: Option<u64>,
    pub(super) metadata: Vec<(Vec<u8>, u32, Vec<u8>)>, // key, value type, value
    pub(super) tensors: Vec<Entry>,
    pub(super) padding: bool,
    pub(super) data: Vec<u8>,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) dims: Vec<u64>, // innermost first
    pub(super) ggml_id: u32,
    pub(super) offset: u64,
}

pub(super) fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// An array's element type, length and elements.
pub(super) fn array(id: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

impl Forge {
    /// Two metadata values, two tensors: f32 `[2, 3]` at 0, `q8_0` `[1, 32]` at 32; 96 bytes of data.
    pub(super) fn sound() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            metadata_count: None,
            metadata: vec![
                (b"general.architecture".to_vec(), value::STRING, text(b"llama")),
                (b"ids".to_vec(), value::ARRAY, array(value::U16, 3, &[1, 0, 2, 0, 3, 1])),
            ],
            tensors: vec![
                Entry { name: b"a".to_vec(), dims: vec![3, 2], ggml_id: 0, offset: 0 },
                Entry { name: b"b".to_vec(), dims: vec![32], ggml_id: 8, offset: 32 },
            ],
            padding: true,
            data: (0..96).collect(),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.metadata_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, id, value) in &self.metadata {
            out.extend(text(key));
            out.extend(id.to_le_bytes());
            out.extend(value);
        }
        for entry in &self.tensors {
            out.extend(text(&entry.name));
            out.extend((entry.dims.len() as u32).to_le_bytes());
            entry.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(entry.ggml_id.to_le_bytes());
            out.extend(entry.offset.to_le_bytes());
        }
        if self.padding {
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out.extend(&self.data);
        out
    }

    pub(super) fn parse(&self) -> Result<Header, Flaw> {
        parse(&self.bytes())
    }
}
