//! The splitting rules behind llama.cpp's names.
//!
//! # Source
//! llama.cpp `llama-vocab.cpp`, which names the rules and quotes the expressions of the models' own tokenizer.json.

/// One step of splitting; a later step splits what the earlier ones left.
#[derive(Debug, Clone, Copy)]
pub(in crate::tokenizer) enum Split<'a> {
    /// Every match of an expression is a part, and so is every gap.
    Regex(&'a str),
    /// Every digit is a part.
    Digits,
    /// GPT-2's expression, which tokenizer.json writes as `use_regex`.
    Gpt2,
}

impl PartialEq for Split<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Regex(a), Self::Regex(b)) => canonical(a) == canonical(b),
            (Self::Digits, Self::Digits) | (Self::Gpt2, Self::Gpt2) => true,
            _ => false,
        }
    }
}

/// One spelling for expressions that mean the same.
fn canonical(regex: &str) -> String {
    let escaped = regex.replace('\r', r"\r").replace('\n', r"\n");
    let known = SPELLINGS.iter().find(|(spelling, _)| *spelling == escaped);
    known.map_or(escaped, |(_, same)| (*same).to_owned())
}

/// A splitting rule with llama.cpp's names for it.
#[derive(Debug)]
pub(in crate::tokenizer) struct Rule {
    /// The name that is written.
    pub name: &'static str,
    /// Names that llama.cpp treats alike.
    pub aliases: &'static [&'static str],
    /// The steps, in order.
    pub splits: &'static [Split<'static>],
    /// Whether a part that is a token stays whole even where no merges lead to it.
    pub ignore_merges: bool,
    /// Whether every part ends where a letter is followed by a space and another letter.
    pub parts_end_at_spaces: bool,
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_3_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const CJK_KANA: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const CJK_HANGUL: &str = "[一-龥ࠀ-一가-퟿]+";
const CASED_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const WIDE_PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";

/// Expressions spelled differently that split alike, and the spelling used here.
const SPELLINGS: [(&str, &str); 2] = [
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        LLAMA_3,
    ),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        QWEN_2,
    ),
];

/// Most rules: without `ignore_merges`, and no part reaches over a space into the next word.
const PLAIN: Rule =
    Rule { name: "", aliases: &[], splits: &[], ignore_merges: false, parts_end_at_spaces: true };

/// Every rule attar can split by. Where two differ in `ignore_merges` alone, recognition chooses by that.
pub(in crate::tokenizer) const RULES: &[Rule] = &[
    Rule {
        name: "llama-bpe",
        aliases: &[
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
            "glm4",
            "glm5",
        ],
        splits: &[Split::Regex(LLAMA_3)],
        ignore_merges: true,
        ..PLAIN
    },
    Rule { name: "smaug-bpe", aliases: &["dbrx", "chatglm-bpe"], splits: &[Split::Regex(LLAMA_3)], ..PLAIN },
    Rule {
        name: "qwen2",
        aliases: &[
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
        ],
        splits: &[Split::Regex(QWEN_2)],
        ..PLAIN
    },
    Rule { name: "qwen35", splits: &[Split::Regex(QWEN_3_5)], ..PLAIN },
    Rule {
        name: "gpt-2",
        aliases: &[
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        splits: &[Split::Gpt2],
        ..PLAIN
    },
    Rule {
        name: "smollm",
        aliases: &["starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        splits: &[Split::Digits, Split::Gpt2],
        ..PLAIN
    },
    Rule { name: "tekken", splits: &[Split::Regex(TEKKEN)], ignore_merges: true, ..PLAIN },
    Rule {
        name: "gpt-4o",
        aliases: &["llama4", "kanana2", "talkie", "minimax-m2"],
        splits: &[Split::Regex(GPT_4O)],
        ..PLAIN
    },
    Rule {
        name: "deepseek-v3",
        aliases: &["hunyuan-dense", "joyai-llm", "hy_v4"],
        splits: &[Split::Regex(r"\p{N}{1,3}"), Split::Regex(CJK_KANA), Split::Regex(DEEPSEEK_3)],
        ..PLAIN
    },
    Rule {
        name: "deepseek-coder",
        splits: &[
            Split::Regex(r"[\r\n]"),
            Split::Regex(r"\s?\p{L}+"),
            Split::Regex(r"\s?\p{P}+"),
            Split::Regex(CJK_HANGUL),
            Split::Digits,
        ],
        ..PLAIN
    },
    Rule {
        name: "deepseek-llm",
        splits: &[
            Split::Regex(r"[\r\n]"),
            Split::Regex(CASED_LETTERS),
            Split::Regex(WIDE_PUNCTUATION),
            Split::Regex(r"\s+$"),
            Split::Regex(CJK_HANGUL),
            Split::Regex(r"\p{N}+"),
        ],
        ..PLAIN
    },
    Rule {
        name: "minicpm5",
        splits: &[Split::Regex(r"\p{N}{1,3}"), Split::Regex(MINICPM_5)],
        ignore_merges: true,
        ..PLAIN
    },
    Rule {
        name: "tiny_aya",
        aliases: &["cohere2moe"],
        splits: &[Split::Regex(r"\d{1,3}(?=(?:\d{3})*\b)"), Split::Regex(GPT_4O)],
        ..PLAIN
    },
    Rule { name: "seed-coder", splits: &[Split::Regex(SEED_CODER)], ..PLAIN },
    Rule { name: "ufakzeka", splits: &[Split::Regex(UFAKZEKA)], ..PLAIN },
    Rule { name: "exaone-moe", splits: &[Split::Regex(EXAONE_MOE)], parts_end_at_spaces: false, ..PLAIN },
];
