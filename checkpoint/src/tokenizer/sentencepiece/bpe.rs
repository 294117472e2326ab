//! Merges neighbours in the order of their piece's score.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::Pieces;

/// Encodes `text`, whose spaces are already escaped, appending to `ids`.
///
/// # Source
/// google/sentencepiece `bpe_model.cc`, `SampleEncode` without sampling: the best scored pair first, of equal ones the
/// leftmost; a piece marked unused serves as a step on the way and is taken apart again at the end.
pub(super) fn encode(text: &str, pieces: &Pieces, ids: &mut Vec<u32>) {
    let mut symbols: Vec<Symbol> =
        text.char_indices().map(|(start, c)| Symbol::new(start, c.len_utf8())).collect();
    for i in 0..symbols.len() {
        symbols[i].prev = i.checked_sub(1);
        symbols[i].next = (i + 1 < symbols.len()).then_some(i + 1);
    }
    let mut merges = Merges { text, pieces, queue: BinaryHeap::new(), unused: HashMap::new() };
    for right in 1..symbols.len() {
        merges.offer(&symbols, Some(right - 1), Some(right));
    }

    while let Some(merge) = merges.queue.pop() {
        let (left, right) = (symbols[merge.left], symbols[merge.right]);
        if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
            continue; // one of the two has been merged meanwhile
        }
        symbols[merge.left].len = merge.len;
        symbols[merge.left].next = right.next;
        symbols[merge.right].len = 0;
        if let Some(next) = right.next {
            symbols[next].prev = Some(merge.left);
        }
        merges.offer(&symbols, left.prev, Some(merge.left));
        merges.offer(&symbols, Some(merge.left), right.next);
    }

    let mut at = (!symbols.is_empty()).then_some(0);
    while let Some(i) = at {
        merges.emit(symbols[i].start, symbols[i].len, ids);
        at = symbols[i].next;
    }
}

/// A run of characters that is one piece so far; `len` 0 once its left neighbour has taken it.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

impl Symbol {
    fn new(start: usize, len: usize) -> Self {
        Self { start, len, prev: None, next: None }
    }
}

/// Two neighbours that together are a piece.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

struct Merges<'a> {
    text: &'a str,
    pieces: &'a Pieces,
    queue: BinaryHeap<Merge>,
    unused: HashMap<&'a str, usize>, // length of the left part
}

impl<'a> Merges<'a> {
    fn offer(&mut self, symbols: &[Symbol], left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let len = symbols[left].len + symbols[right].len;
        let merged: &'a str = &self.text[symbols[left].start..][..len];
        if let Some(id) = self.pieces.id(merged) {
            // -0.0 and 0.0 are one score.
            self.queue.push(Merge { score: self.pieces.score(id) + 0.0, left, right, len });
            if self.pieces.is_unused(id) {
                self.unused.insert(merged, symbols[left].len);
            }
        }
    }

    fn emit(&self, start: usize, len: usize, ids: &mut Vec<u32>) {
        let text = &self.text[start..start + len];
        match self.unused.get(text) {
            Some(&left) => {
                self.emit(start, left, ids);
                self.emit(start + left, len - left, ids);
            }
            None => self.pieces.push(text, ids),
        }
    }
}
