//! safetensors, read from headers put together by hand and written for other readers.
#![expect(clippy::unwrap_used, reason = "a test may")]

mod hostile;
mod index;
mod round_trip;

/// A file with this header and `data_len` bytes of data.
fn file(header: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data_len).map(|i| i as u8));
    bytes
}
