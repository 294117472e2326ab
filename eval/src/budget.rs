//! How much memory scoring may take, and what that makes of it.

/// Enough tokens to keep a matrix product busy, however large the vocabulary.
const LEAST_TOKENS: usize = 16;
/// So many pay for reading the head again for them, or for holding it.
const GOOD_TOKENS: usize = 256;
/// More tokens than this gain nothing, however small the vocabulary.
const MOST_TOKENS: usize = 1024;
/// Rows of the head that are worth a product.
const LEAST_SLICE: usize = 256;

const F32: u64 = 4;

/// Memory that logits and heads may take together; the hidden states are not counted here.
///
/// Logits are whole rows, for a few tokens at a time, so that every sum over the vocabulary is taken in one order and no
/// figure depends on the budget. A head is held whole where it fits; otherwise it is read anew, slice by slice, for
/// every few tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    bytes: u64,
}

/// What scoring holds at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portion {
    /// Tokens whose logits stand in memory together.
    pub tokens: usize,
    /// Rows of a head that stand in memory together.
    pub slice: usize,
    vocab_size: usize,
    hidden_size: usize,
    heads: u64,
}

impl Default for Budget {
    /// 1 GiB: below it memory is no matter, and speed counts.
    fn default() -> Self {
        Self { bytes: 1 << 30 }
    }
}

impl Budget {
    /// At most `bytes`, or as little as can be done with.
    pub const fn of(bytes: u64) -> Self {
        Self { bytes }
    }

    /// The work cut to size for `heads` models, 1 or 2, of this vocabulary and these features.
    ///
    /// # Panics
    /// If any of them is 0.
    pub fn portion(self, vocab_size: usize, hidden_size: usize, heads: usize) -> Portion {
        assert!(vocab_size > 0 && hidden_size > 0 && heads > 0, "a head has rows and columns");
        let of = |tokens, slice| Portion { tokens, slice, vocab_size, hidden_size, heads: heads as u64 };
        let fitting = |slice| {
            let held = of(0, slice).bytes();
            let one_more = of(1, slice).bytes() - held;
            (self.bytes.saturating_sub(held) / one_more).clamp(0, MOST_TOKENS as u64) as usize
        };
        let held = fitting(vocab_size);
        if held >= GOOD_TOKENS {
            return of(held, vocab_size);
        }
        let row_bytes = F32 * hidden_size as u64;
        let slice = (self.bytes / 8 / row_bytes).max(LEAST_SLICE as u64).min(vocab_size as u64) as usize;
        of(fitting(slice).max(LEAST_TOKENS), slice)
    }
}

impl Portion {
    /// Whether the heads are held from the first token to the last.
    pub fn holds_heads(&self) -> bool {
        self.slice == self.vocab_size
    }

    /// Bytes that stand in memory at once.
    pub fn bytes(&self) -> u64 {
        let (vocab_size, hidden_size) = (self.vocab_size as u64, self.hidden_size as u64);
        let tokens = self.heads * self.tokens as u64 * (vocab_size + hidden_size);
        let heads = if self.holds_heads() { self.heads } else { 1 };
        F32 * (tokens + heads * self.slice as u64 * hidden_size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_portion_keeps_to_its_budget_or_is_the_least_there_is(
            bytes in 0_u64..1 << 34,
            vocab_size in 1_usize..300_000,
            hidden_size in 1_usize..16_384,
            heads in 1_usize..=2,
        ) {
            let portion = Budget::of(bytes).portion(vocab_size, hidden_size, heads);
            let least = portion.tokens == LEAST_TOKENS && portion.slice <= LEAST_SLICE.max((bytes / 32) as usize);
            prop_assert!(portion.bytes() <= bytes || least, "{:?} takes {}", portion, portion.bytes());
            prop_assert!((1..=vocab_size).contains(&portion.slice));
            prop_assert!((LEAST_TOKENS..=MOST_TOKENS).contains(&portion.tokens));
        }

        #[test]
        fn a_larger_budget_never_holds_fewer_tokens_of_a_head_that_is_held(
            bytes in 0_u64..1 << 32, more in 0_u64..1 << 32, vocab_size in 1_usize..100_000,
        ) {
            let (small, large) = (Budget::of(bytes), Budget::of(bytes + more));
            let (small, large) = (small.portion(vocab_size, 512, 2), large.portion(vocab_size, 512, 2));
            prop_assert!(!small.holds_heads() || large.holds_heads());
            prop_assert!(!small.holds_heads() || small.tokens <= large.tokens);
        }
    }

    #[test]
    fn small_heads_are_held_and_large_ones_are_not() {
        assert!(Budget::default().portion(4096, 256, 2).holds_heads());
        let large = Budget::default().portion(128_256, 8192, 2);
        assert!(!large.holds_heads() && large.tokens > 256, "{large:?}");
    }
}
