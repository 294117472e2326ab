//! What is known of each token, whichever file the tokenizer came from.

use std::collections::HashMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::TokenizerError;

/// What a token is for; the numbers are those of both GGUF and `SentencePiece`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Ordinary text.
    Normal = 1,
    /// Stands for what the vocabulary cannot express.
    Unknown = 2,
    /// Steers the model and never comes from text: `<s>`, `<|im_end|>`.
    Control = 3,
    /// Ordinary text that is found before anything else is looked for.
    UserDefined = 4,
    /// A row of the embedding without a meaning.
    Unused = 5,
    /// One byte of a character that has no token: `<0x0A>`.
    Byte = 6,
}

impl TokenKind {
    /// The kind with this number, if there is one.
    pub fn from_number(number: i64) -> Option<Self> {
        use TokenKind::{Byte, Control, Normal, Unknown, Unused, UserDefined};
        [Normal, Unknown, Control, UserDefined, Unused, Byte].into_iter().find(|&kind| kind as i64 == number)
    }
}

/// One entry of a vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// As the file spells it, escapes included: `▁the`, `Ġthe`, `<0x0A>`.
    pub text: String,
    /// `SentencePiece`: the higher, the sooner it is merged (BPE), or its log probability (unigram).
    pub score: f32,
    /// What it is for.
    pub kind: TokenKind,
}

/// Score of tokens that no merge leads to, as llama.cpp writes it.
pub(super) const ADDED_SCORE: f32 = -1000.0;
/// Score of rows without a token, as llama.cpp writes it.
pub(super) const PADDING_SCORE: f32 = -10000.0;

impl Token {
    /// The entry for an embedding row that no token uses.
    pub(super) fn padding(id: usize) -> Self {
        Self { text: format!("[PAD{id}]"), score: PADDING_SCORE, kind: TokenKind::Unused }
    }
}

/// Puts tokens in the order of their ids, with padding where an id is not used; a later token replaces an earlier one.
///
/// # Errors
/// An id so high that most of the embedding's rows would be padding.
pub(super) fn by_id(tokens: Vec<(u32, Token)>) -> Result<Vec<Token>, String> {
    let most = 2 * tokens.len() + (1 << 16);
    let mut slots: Vec<Option<Token>> = Vec::new();
    for (id, token) in tokens {
        let index = id as usize;
        if index >= most {
            return Err(format!("token `{}` has id {id} in a vocabulary of less than {most}", token.text));
        }
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        slots[index] = Some(token);
    }
    Ok(slots.into_iter().enumerate().map(|(id, slot)| slot.unwrap_or_else(|| Token::padding(id))).collect())
}

/// The id of every text; where two tokens share one, the lower.
pub(super) fn ids_by_text(tokens: &[Token]) -> HashMap<&str, u32> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in (0..).zip(tokens) {
        ids.entry(token.text.as_str()).or_insert(id);
    }
    ids
}

/// The ids that stand for other text in one vocabulary than in the other. Tokens that never come from text count for nothing:
/// siblings rename what steers them, and fill their rows up differently.
pub(super) fn differing(one: &[Token], other: &[Token]) -> Vec<u32> {
    let differ = |(one, other): (&Token, &Token)| is_text(one) && is_text(other) && one.text != other.text;
    (0..).zip(one.iter().zip(other)).filter(|&(_, pair)| differ(pair)).map(|(id, _)| id).collect()
}

/// Whether a token comes from text.
fn is_text(token: &Token) -> bool {
    matches!(token.kind, TokenKind::Normal | TokenKind::Byte)
}

/// SHA-256 of what [`differing`] compares: of each token that comes from text its id, the length of its text in bytes, both as
/// little-endian u32, and its text; lower-case hex.
pub(super) fn sha256(tokens: &[Token]) -> String {
    let mut hash = Sha256::new();
    for (id, token) in (0u32..).zip(tokens).filter(|(_, token)| is_text(token)) {
        hash.update(id.to_le_bytes());
        hash.update((token.text.len() as u32).to_le_bytes());
        hash.update(token.text.as_bytes());
    }
    hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // a String never fails
        hex
    })
}

/// # Errors
/// Two tokens have the same text.
pub(super) fn check_unique(tokens: &[Token]) -> Result<(), TokenizerError> {
    let ids = ids_by_text(tokens);
    let twice = (0..).zip(tokens).find(|(id, token)| ids[token.text.as_str()] != *id);
    twice.map_or(Ok(()), |(second, token)| {
        let text = token.text.clone();
        Err(TokenizerError::Duplicate { first: ids[text.as_str()], second, text })
    })
}

/// Whether an added token is for control although its file does not say so.
///
/// Several models list such tokens as plain ones; llama.cpp's converter decides by these same looks.
pub(super) fn looks_like_control(text: &str) -> bool {
    const NAMES: [&str; 4] = ["<pad>", "<mask>", "<2mass>", "[@BOS@]"];
    const BRACKETS: [(&str, &str); 3] = [("<|", "|>"), ("<｜", "｜>"), ("<unused", ">")];
    NAMES.contains(&text)
        || BRACKETS.iter().any(|(open, close)| text.starts_with(open) && text.ends_with(close))
}

/// An added token's text as it stands in texts, which are looked through for it before spaces are escaped.
pub(super) fn unescaped(text: &str, kind: TokenKind) -> String {
    if kind == TokenKind::UserDefined { text.replace('▁', " ") } else { text.to_owned() }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_byte { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The tokens with a role of their own, and which of them surround every text.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Specials {
    /// Pairs of GGUF's word for the role and the token's id: `("bos", 1)`.
    pub ids: Vec<(&'static str, u32)>,
    /// Ids put before a text, usually BOS.
    pub prefix: Vec<u32>,
    /// Ids put after a text, usually none.
    pub suffix: Vec<u32>,
}

impl Specials {
    pub fn id(&self, role: &str) -> Option<u32> {
        self.ids.iter().find(|(name, _)| *name == role).map(|&(_, id)| id)
    }

    /// Puts BOS before texts and EOS behind them, or not; `None` leaves it as it is.
    pub fn surround(&mut self, add_bos: Option<bool>, add_eos: Option<bool>) {
        if let (Some(add), Some(bos)) = (add_bos, self.id("bos")) {
            self.prefix.retain(|&id| id != bos);
            self.prefix.splice(0..0, add.then_some(bos));
        }
        if let (Some(add), Some(eos)) = (add_eos, self.id("eos")) {
            self.suffix.retain(|&id| id != eos);
            self.suffix.extend(add.then_some(eos));
        }
    }

    pub fn adds_bos(&self) -> bool {
        self.prefix.first().is_some_and(|&id| self.id("bos") == Some(id))
    }

    pub fn adds_eos(&self) -> bool {
        self.suffix.last().is_some_and(|&id| self.id("eos") == Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_kinds_are_those_of_gguf() {
        for number in 1..=6 {
            assert_eq!(TokenKind::from_number(number).map(|kind| kind as i64), Some(number));
        }
        assert_eq!(TokenKind::from_number(0), None);
        assert_eq!(TokenKind::from_number(7), None);
    }

    #[test]
    fn a_gap_between_ids_becomes_a_padding_token() {
        let token = |text: &str| Token { text: text.to_owned(), score: 0.0, kind: TokenKind::Normal };
        let tokens = by_id(vec![(2, token("b")), (0, token("a"))]).expect("ids without great gaps");
        assert_eq!(tokens.iter().map(|t| t.text.as_str()).collect::<Vec<_>>(), ["a", "[PAD1]", "b"]);
        assert_eq!(tokens[1].kind, TokenKind::Unused);
        assert!(by_id(vec![(u32::MAX, token("far"))]).is_err());
    }

    #[test]
    fn vocabularies_differ_where_an_id_stands_for_other_text() {
        use TokenKind::{Control, Normal, Unused, UserDefined};
        let tokens = |texts: &[(&str, TokenKind)]| -> Vec<Token> {
            texts.iter().map(|&(text, kind)| Token { text: text.to_owned(), score: 0.0, kind }).collect()
        };
        let one = tokens(&[("<s>", Control), ("a", Normal), ("b", Normal), ("c", Normal), ("d", Normal)]);
        let renamed = tokens(&[("<|begin|>", Control), ("a", Normal), ("b", Normal), ("[PAD3]", Unused)]);
        assert!(differing(&one, &one).is_empty());
        assert!(differing(&one, &renamed).is_empty() && differing(&renamed, &one).is_empty());
        let swapped = tokens(&[("<s>", Control), ("b", Normal), ("a", Normal), ("<tool>", UserDefined)]);
        assert_eq!(differing(&one, &swapped), [1, 2]);
    }

    #[test]
    fn byte_tokens_are_exactly_two_hex_digits() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xff>"), Some(255));
        for text in ["<0x>", "<0x0>", "<0x00A>", "0x0A", "<0xGG>", "<0x+1>"] {
            assert_eq!(byte_of(text), None, "{text}");
        }
    }
}
