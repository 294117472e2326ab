//! The most probable way to spell a text.

use super::Pieces;

/// What an unknown character costs below the least probable piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// Encodes `text`, whose spaces are already escaped, appending to `ids`.
///
/// # Source
/// google/sentencepiece `unigram_model.cc`, `EncodeOptimized`: Viterbi over pieces, the first of equal paths kept. User
/// defined pieces are found before and never met here.
pub(super) fn encode(text: &str, pieces: &Pieces, ids: &mut Vec<u32>) {
    let unknown_score = pieces.min_score() - UNKNOWN_PENALTY;
    let mut best: Vec<Option<Step>> = vec![None; text.len() + 1];
    for (start, c) in text.char_indices() {
        let so_far = best[start].map_or(0.0, |step| step.score);
        let mut offer = |end: usize, score: f32| {
            if best[end].is_none_or(|step| so_far + score > step.score) {
                best[end] = Some(Step { start, score: so_far + score });
            }
        };
        let mut spelled = false;
        for len in 1..=pieces.longest().min(text.len() - start) {
            let Some(id) = text.get(start..start + len).and_then(|piece| pieces.id(piece)) else { continue };
            if !pieces.is_unused(id) {
                spelled |= len == c.len_utf8();
                offer(start + len, pieces.score(id));
            }
        }
        if !spelled {
            offer(start + c.len_utf8(), unknown_score);
        }
    }

    let mut spans = Vec::new();
    let mut end = text.len();
    while let Some(step) = best[end] {
        spans.push((step.start, end));
        end = step.start;
    }
    for (start, end) in spans.into_iter().rev() {
        pieces.push(&text[start..end], ids);
    }
}

/// The best path to a place: its score and where its last piece starts.
#[derive(Clone, Copy)]
struct Step {
    start: usize,
    score: f32,
}
