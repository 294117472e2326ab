//! The table by which `SentencePiece` rewrites characters: longest match in a double-array trie.
//!
//! # Source
//! google/sentencepiece `normalizer.cc` for the layout, darts-clone for the trie's units.

use std::borrow::Cow;

/// A compiled character map.
#[derive(Debug, Clone)]
pub(super) struct CharsMap {
    units: Vec<u32>,
    replacements: Vec<u8>, // NUL-terminated strings
}

impl CharsMap {
    /// Reads a map; an empty one rewrites nothing.
    ///
    /// # Errors
    /// Says what is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let (len, rest) = bytes.split_first_chunk().ok_or("the character map has no length")?;
        let len = u32::from_le_bytes(*len) as usize;
        let (trie, replacements) = rest
            .split_at_checked(len)
            .ok_or_else(|| format!("the character map's trie of {len} bytes has only {}", rest.len()))?;
        let units = trie.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        if !len.is_multiple_of(4) || std::str::from_utf8(replacements).is_err() {
            return Err("the character map is not a trie and UTF-8 strings".to_owned());
        }
        Ok(Some(Self { units, replacements: replacements.to_vec() }))
    }

    /// `text` with every longest match replaced.
    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut out = String::new();
        let mut copied = 0;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            match self.longest_match(&text.as_bytes()[at..]) {
                Some((len, replacement)) if text.is_char_boundary(at + len) => {
                    out.push_str(&text[copied..at]);
                    out.push_str(replacement);
                    at += len;
                    copied = at;
                }
                _ => at += c.len_utf8(),
            }
        }
        if copied == 0 {
            return Cow::Borrowed(text);
        }
        out.push_str(&text[copied..]);
        Cow::Owned(out)
    }

    /// Length of the longest key that `text` starts with, and what stands for it.
    fn longest_match(&self, text: &[u8]) -> Option<(usize, &str)> {
        let mut node = offset(*self.units.first()?);
        let mut longest = None;
        for (i, &byte) in text.iter().enumerate() {
            node ^= u32::from(byte);
            let Some(&unit) = self.units.get(node as usize) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let Some(&leaf) = self.units.get(node as usize) else { break };
                longest = Some((i + 1, leaf & !(1 << 31)));
            }
        }
        let (len, start) = longest?;
        let tail = self.replacements.get(start as usize..)?;
        let end = tail.iter().position(|&byte| byte == 0).unwrap_or(tail.len());
        Some((len, std::str::from_utf8(&tail[..end]).ok()?))
    }
}

/// Distance from a unit to its children.
fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & 1 << 9) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), text in ".{0,20}") {
            let mut framed = (bytes.len() as u32 / 8 * 4).to_le_bytes().to_vec();
            framed.extend(bytes.iter().map(|byte| byte & 0x7f));
            if let Ok(Some(map)) = CharsMap::parse(&framed) {
                let _ = map.apply(&text);
            }
            let _ = CharsMap::parse(&bytes);
        }
    }
}
