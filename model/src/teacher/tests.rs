#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::{Dtype, safetensors::SINGLE};
use ndarray::{Array1, Array2, Axis, s};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{HeadSource, LoadError, LogitShape, Weights, Windows};

const VOCAB: usize = 6;
const SIZE: usize = 4;
const WINDOWS: usize = 3;
/// Scored positions of every window of 5.
const SCORED: [usize; 2] = [1, 4];
const ROWS: usize = 9;

const SHAPE: LogitShape = LogitShape { scaling: 2.0, cap: Some(30.0) };

/// A head and nothing else.
struct OnlyHead(Array2<f32>);

impl Weights for OnlyHead {
    fn load(&self, _name: &str) -> Result<ndarray::ArrayD<f32>, LoadError> {
        Ok(self.0.clone().into_dyn())
    }

    fn has(&self, _name: &str) -> bool {
        true
    }
}

fn windows() -> Windows {
    Windows::new(5, (0..15).map(|token| token % VOCAB as u32).collect())
}

fn facts(signal: Signal) -> Facts {
    Facts {
        schema: String::new(),
        version: "0.1.0".to_owned(),
        model: Teacher { source: "a model".to_owned(), family: "llama".to_owned(), sha256: "ab".to_owned() },
        text: "a text".to_owned(),
        tokens_sha256: String::new(),
        convention: "hf".to_owned(),
        ctx: 0,
        windows: 0,
        scored: SCORED,
        vocab_size: VOCAB,
        vocabulary_sha256: None,
        hidden_size: SIZE,
        logits_scaling: 2.0,
        logit_cap: Some(30.0),
        precision: "f32".to_owned(),
        signal,
        windows_per_part: 0,
    }
}

/// Values that bf16 holds.
fn hidden() -> Array2<f32> {
    Array2::from_shape_fn((ROWS, SIZE), |(row, col)| (row * SIZE + col) as f32 / 4.0 - 3.0)
}

fn head() -> Array2<f32> {
    Array2::from_shape_fn((VOCAB, SIZE), |(row, col)| row as f32 - col as f32 / 8.0)
}

/// Of every row the tokens 3 and 1 at a half and a quarter, the rest at another quarter.
fn top_k() -> TopK {
    let of = |value: f32| Array1::from_elem(ROWS, value.ln());
    TopK {
        ids: Array2::from_shape_fn((ROWS, 2), |(_, rank)| [3, 1][rank]),
        log_probs: ndarray::stack![Axis(1), of(0.5), of(0.25)],
        rest: of(0.25),
        targets: of(0.125),
    }
}

/// A cache on the disk, to be opened, and to be made to lie.
struct Kept {
    folder: TempDir,
}

impl Kept {
    fn new(signal: Signal) -> Self {
        let kept = Self { folder: tempfile::tempdir().unwrap() };
        let mut writer =
            Writer::create(&kept.path(), Overwrite::No, facts(signal), &windows(), Dtype::Bf16).unwrap();
        let weights = OnlyHead(head());
        writer.head(&HeadSource::named(&weights, "any", [VOCAB, SIZE], SHAPE)).unwrap();
        // In pieces that are neither windows nor parts.
        for rows in [0..2, 2..7, 7..ROWS] {
            match signal {
                Signal::TopK(_) => {
                    let all = top_k();
                    let piece = TopK {
                        ids: all.ids.slice(s![rows.clone(), ..]).to_owned(),
                        log_probs: all.log_probs.slice(s![rows.clone(), ..]).to_owned(),
                        rest: all.rest.slice(s![rows.clone()]).to_owned(),
                        targets: all.targets.slice(s![rows]).to_owned(),
                    };
                    writer.top_k(&piece).unwrap();
                }
                _ => writer.hidden(hidden().slice(s![rows, ..])).unwrap(),
            }
        }
        assert!(!Cache::is_at(&kept.path()), "it is not there before it is whole");
        writer.finish().unwrap();
        kept
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn open(&self) -> Result<Cache, Error> {
        Cache::open(&self.path())
    }

    fn edit_facts(self, edit: impl FnOnce(&mut Value)) -> Self {
        let path = self.path().join(FACTS);
        let mut facts = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut facts);
        fs::write(path, facts.to_string()).unwrap();
        self
    }

    /// Writes the tensors anew after `edit`: dtype, shape and bytes by name.
    fn edit_tensors(self, edit: impl FnOnce(&mut BTreeMap<String, Stored>)) -> Self {
        let path = self.path().join(SINGLE);
        let file = fs::read(&path).unwrap();
        let mut tensors: BTreeMap<String, Stored> = SafeTensors::deserialize(&file)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect();
        edit(&mut tensors);
        let views: BTreeMap<&String, TensorView<'_>> = tensors
            .iter()
            .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
            .collect();
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        self
    }

    /// Overwrites 32 bits of a tensor.
    fn poke(self, name: &str, index: usize, value: [u8; 4]) -> Self {
        self.edit_tensors(|tensors| {
            tensors.get_mut(name).unwrap().2[4 * index..4 * index + 4].copy_from_slice(&value);
        })
    }
}

type Stored = (safetensors::Dtype, Vec<usize>, Vec<u8>);

#[test]
fn a_signal_is_known_by_its_name_alone() {
    for signal in [Signal::HiddenF32, Signal::HiddenBf16, Signal::TopK(64)] {
        assert_eq!(signal.to_string().parse::<Signal>().unwrap(), signal);
    }
    for name in ["", "hidden", "top-k", "top-k=", "top-k=0", "top-k=-1", "top-k=many", "HIDDEN-F32"] {
        let error = name.parse::<Signal>().unwrap_err();
        assert!(error.to_string().contains("hidden-f32, hidden-bf16 and top-k=N"), "{error}");
    }
}

#[test]
fn what_was_kept_comes_back() {
    for signal in [Signal::HiddenF32, Signal::HiddenBf16] {
        let cache = Kept::new(signal).open().unwrap();
        assert_eq!(cache.hidden(0..ROWS).unwrap(), hidden());
        assert_eq!(cache.hidden(2..8).unwrap(), hidden().slice(s![2..8, ..]));
        assert_eq!(cache.windows(), &windows());
        let values = cache.head().unwrap().values(1..5).unwrap();
        assert_eq!(values, head().slice(s![1..5, ..]), "{signal}");
    }
    let cache = Kept::new(Signal::TopK(2)).open().unwrap();
    assert_eq!(cache.top_k(0..ROWS).unwrap(), top_k());
    assert!(cache.head().is_none() && !cache.has("head"));
    assert_eq!(cache.facts().model, facts(Signal::TopK(2)).model);
}

/// Parts are an arrangement of the file and of nothing else.
#[test]
fn parts_never_show_in_what_comes_back() {
    let mut facts = facts(Signal::HiddenF32);
    (facts.ctx, facts.windows) = (5, WINDOWS);
    for windows_per_part in 1..=4 {
        facts.windows_per_part = windows_per_part;
        for (start, end) in [(0, ROWS), (1, 2), (2, 8), (3, 6), (4, 4)] {
            let parts: Vec<_> = facts.parts(start..end).collect();
            let rows = parts.iter().flat_map(|(part, within)| within.clone().map(move |row| (part, row)));
            let rows: Vec<usize> = rows.map(|(part, row)| part * windows_per_part * 3 + row).collect();
            assert_eq!(rows, (start..end).collect::<Vec<_>>());
        }
        let rows: usize = facts
            .tensors(Dtype::F32)
            .unwrap()
            .iter()
            .filter(|tensor| tensor.name.starts_with("hidden."))
            .map(|tensor| tensor.shape[0])
            .sum();
        assert_eq!(rows, ROWS);
    }
}

/// Scaling and cap are the teacher's, and a slice of its head makes the logits the whole makes.
#[test]
fn a_kept_head_makes_the_teachers_logits() {
    let weights = OnlyHead(head());
    let teacher = HeadSource::named(&weights, "any", [VOCAB, SIZE], SHAPE).rows(0..VOCAB).unwrap();
    let mut truth = Array2::zeros((ROWS, VOCAB));
    teacher.logits_into(hidden().view(), truth.view_mut());
    let product = hidden().dot(&head().t());
    let by_hand = product.mapv(|x| 30.0 * (x / 2.0 / 30.0).tanh());
    assert!((&truth - &by_hand).iter().all(|x| x.abs() < 1e-4), "{truth} instead of {by_hand}");
    let cache = Kept::new(Signal::HiddenF32).open().unwrap();
    for step in [1, 2, 4, VOCAB] {
        let mut found = Array2::zeros((ROWS, VOCAB));
        for first in (0..VOCAB).step_by(step) {
            let slice = first..VOCAB.min(first + step);
            let rows = cache.head().unwrap().rows(slice.clone()).unwrap();
            rows.logits_into(cache.hidden(0..ROWS).unwrap().view(), found.slice_mut(s![.., slice]));
        }
        assert_eq!(found, truth, "{step} rows at a time");
    }
}

#[test]
fn lessons_are_the_windows_with_what_was_said_of_them() {
    let cache = Kept::new(Signal::HiddenBf16).open().unwrap();
    let lessons: Vec<_> = cache.lessons().map(Result::unwrap).collect();
    assert_eq!(lessons.len(), WINDOWS);
    for (window, lesson) in lessons.iter().enumerate() {
        assert_eq!(lesson.tokens, &windows().tokens()[5 * window..5 * window + 5]);
        assert_eq!(lesson.positions, 1..4);
        let said = hidden().slice(s![3 * window..3 * window + 3, ..]).to_owned();
        assert_eq!(lesson.said, Said::Hidden(said));
    }
    let cache = Kept::new(Signal::TopK(2)).open().unwrap();
    let Said::TopK(said) = cache.lessons().nth(1).unwrap().unwrap().said else { panic!("it keeps tokens") };
    assert_eq!((said.ids.dim(), said.ids.row(0).to_vec()), ((3, 2), vec![3, 1]));
}

#[test]
fn a_cache_replaces_a_cache_where_it_may_and_never_anything_else() {
    let kept = Kept::new(Signal::HiddenF32);
    let again = |path: &std::path::Path, overwrite| {
        Writer::create(path, overwrite, facts(Signal::HiddenF32), &windows(), Dtype::F32)
    };
    assert!(again(&kept.path(), Overwrite::No).is_err());
    assert!(again(&kept.path(), Overwrite::Yes).is_ok());
    let model = tempfile::tempdir().unwrap();
    fs::write(model.path().join("config.json"), "{}").unwrap();
    assert!(again(model.path(), Overwrite::Yes).is_err());
    assert!(kept.open().is_ok(), "a writer that was dropped has changed nothing");
}

#[test]
fn a_writer_that_was_not_given_every_row_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let mut writer =
        Writer::create(&path, Overwrite::No, facts(Signal::HiddenF32), &windows(), Dtype::F32).unwrap();
    writer.hidden(hidden().slice(s![..4, ..])).unwrap();
    assert!(writer.finish().is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn as_many_tokens_as_the_vocabulary_has_cannot_be_kept() {
    let folder = tempfile::tempdir().unwrap();
    for k in [VOCAB, VOCAB + 1, usize::MAX] {
        let facts = facts(Signal::TopK(k));
        let error =
            Writer::create(&folder.path().join("cache"), Overwrite::No, facts, &windows(), Dtype::F32);
        assert!(matches!(error, Err(Error::TooManyKept { vocab_size: VOCAB, .. })), "{k}");
    }
}

/// One lie in the facts each, and a part of what is said of it.
#[test]
fn facts_that_lie_are_refused() {
    let cases: &[(&str, Value, &str)] = &[
        ("schema", json!("attar-teacher-cache/2"), "`attar-teacher-cache/2`, only `attar-teacher-cache/1`"),
        ("schema", json!(1), "is not the facts"),
        ("unheard_of", json!(1), "is not the facts"),
        ("signal", json!("top-k=0"), "is not the facts"),
        ("tokens_sha256", json!("00"), "its facts say 00"),
        ("ctx", json!(15), "tensor `tokens`"),
        ("ctx", json!(-5), "is not the facts"),
        ("windows", json!(u64::MAX), "tensor `tokens`"),
        ("windows", json!(2), "tensor `tokens`"),
        ("scored", json!([1, 3]), "tensor `hidden.0`"),
        ("scored", json!([2, 2]), "`scored` is 2 to 2"),
        ("scored", json!([3, 9]), "`scored` is 3 to 9"),
        ("scored", json!([4, 1]), "`scored` is 4 to 1"),
        ("vocab_size", json!(7), "tensor `head`"),
        ("vocab_size", json!(0), "`vocab_size` is 0"),
        ("hidden_size", json!(u64::MAX), "more than can be addressed"),
        ("hidden_size", json!(8), "tensor `head`"),
        ("signal", json!("hidden-bf16"), "tensor `hidden.0`"),
        ("signal", json!("top-k=2"), "no tensor `ids.0`"),
        ("signal", json!("top-k=6"), "keeps as many tokens"),
        ("logits_scaling", json!(0.0), "`logits_scaling` is 0"),
        ("logit_cap", json!(-1.0), "`logit_cap` is -1"),
        ("windows_per_part", json!(0), "in parts of 0"),
        ("windows_per_part", json!(1), "tensor `hidden.0`"),
        ("windows_per_part", json!(u64::MAX), "more than can be addressed"),
    ];
    for (key, lie, part) in cases {
        let kept = Kept::new(Signal::HiddenF32).edit_facts(|facts| facts[*key] = lie.clone());
        let error = kept.open().expect_err(key);
        assert!(error.to_string().contains(part), "{key} {lie}: {error}");
    }
}

#[test]
fn facts_that_are_no_facts_are_refused() {
    for text in ["", "{", "[]", "null", r#"{"schema": "attar-teacher-cache/1"}"#] {
        let kept = Kept::new(Signal::HiddenF32);
        fs::write(kept.path().join(FACTS), text).unwrap();
        assert!(matches!(kept.open(), Err(Error::Json { .. })), "{text}");
    }
    let kept = Kept::new(Signal::HiddenF32);
    fs::write(kept.path().join(FACTS), vec![b' '; 3 << 20]).unwrap();
    assert!(matches!(kept.open(), Err(Error::Json { .. })), "no end of blanks");
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    for name in ["tokens", "head", "hidden.0"] {
        let kept =
            Kept::new(Signal::HiddenF32).edit_tensors(|tensors| assert!(tensors.remove(name).is_some()));
        assert!(matches!(kept.open(), Err(Error::Missing { name: found }) if found == name), "{name}");
    }
    for name in ["ids.0", "log_probs.0", "rest.0", "targets.0"] {
        let kept = Kept::new(Signal::TopK(2)).edit_tensors(|tensors| assert!(tensors.remove(name).is_some()));
        assert!(matches!(kept.open(), Err(Error::Missing { name: found }) if found == name), "{name}");
    }
}

#[test]
fn a_tensor_of_another_type_or_shape_is_named() {
    let kept = Kept::new(Signal::HiddenF32).edit_tensors(|tensors| {
        tensors.get_mut("hidden.0").unwrap().0 = safetensors::Dtype::I32;
    });
    let error = kept.open().unwrap_err();
    assert!(error.to_string().contains("is i32 [9, 4], its facts call for f32 [9, 4]"), "{error}");
    let kept = Kept::new(Signal::HiddenF32).edit_tensors(|tensors| {
        tensors.get_mut("head").unwrap().1 = vec![SIZE, VOCAB];
    });
    assert!(matches!(kept.open(), Err(Error::Tensor { name, .. }) if name == "head"));
    let kept = Kept::new(Signal::HiddenF32).edit_tensors(|tensors| {
        tensors.get_mut("head").unwrap().0 = safetensors::Dtype::I16;
    });
    assert!(matches!(kept.open(), Err(Error::Tensor { name, .. }) if name == "head"));
}

#[test]
fn a_file_cut_short_is_refused() {
    let kept = Kept::new(Signal::HiddenF32);
    let path = kept.path().join(SINGLE);
    let file = fs::read(&path).unwrap();
    for len in [0, 7, 100, file.len() / 2, file.len() - 1] {
        fs::write(&path, &file[..len]).unwrap();
        let error = kept.open().unwrap_err();
        assert!(matches!(error, Error::Files(_)) && error.hint().is_some(), "{len}: {error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(kept.open(), Err(Error::Files(_))));
}

#[test]
fn tokens_that_were_changed_are_found_by_their_hash() {
    let kept = Kept::new(Signal::HiddenF32).poke("tokens", 3, 5_u32.to_le_bytes());
    assert!(matches!(kept.open(), Err(Error::Tokens { .. })));
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let mut tokens: Vec<u32> = windows().tokens().to_vec();
    tokens[7] = VOCAB as u32;
    let honest = super::facts::tokens_sha256(&tokens);
    let kept = Kept::new(Signal::HiddenF32)
        .poke("tokens", 7, (VOCAB as u32).to_le_bytes())
        .edit_facts(|facts| facts["tokens_sha256"] = json!(honest));
    assert!(matches!(kept.open(), Err(Error::Token { token: 6, .. })));
    let kept = Kept::new(Signal::TopK(2)).poke("ids.0", 5, 77_u32.to_le_bytes());
    assert!(matches!(kept.open().unwrap().top_k(0..ROWS), Err(Error::Token { token: 77, .. })));
}

#[test]
fn a_number_that_is_none_is_refused_with_its_row() {
    for value in [f32::NAN, f32::INFINITY] {
        let kept = Kept::new(Signal::HiddenF32).poke("hidden.0", 4 * SIZE, value.to_le_bytes());
        let cache = kept.open().unwrap();
        assert!(cache.hidden(0..4).is_ok());
        assert!(matches!(cache.hidden(4..5), Err(Error::Number { row: 4, .. })));
        assert!(cache.lessons().nth(1).unwrap().is_err());
    }
    let kept = Kept::new(Signal::HiddenBf16).edit_tensors(|tensors| {
        tensors.get_mut("head").unwrap().2[2 * SIZE..2 * SIZE + 2].copy_from_slice(&[0xc0, 0x7f]);
    });
    let cache = kept.open().unwrap();
    let error = cache.head().unwrap().values(0..VOCAB).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("`head`") && cause.contains("NaN in row 1"), "{cause}");
}

/// One lie in a row of likeliest tokens each.
#[test]
fn what_is_no_distribution_is_refused() {
    let cases = [
        ("log_probs.0", 0, f32::NAN.to_le_bytes(), "NaN"),
        ("rest.0", 0, f32::NEG_INFINITY.to_le_bytes(), "inf"),
        ("targets.0", 0, f32::NAN.to_le_bytes(), "NaN"),
        ("targets.0", 0, 0.5_f32.to_le_bytes(), "above one"),
        ("rest.0", 0, 0.0_f32.to_le_bytes(), "add up"),
        ("log_probs.0", 1, (-0.1_f32).to_le_bytes(), "likelier"),
        ("ids.0", 1, 3_u32.to_le_bytes(), "twice"),
    ];
    for (name, index, value, part) in cases {
        let cache = Kept::new(Signal::TopK(2)).poke(name, index, value);
        let cache = cache.open().unwrap();
        let error = cache.top_k(0..ROWS).unwrap_err();
        assert!(error.to_string().contains(part), "{name}: {error}");
        assert!(cache.top_k(1..ROWS).is_ok(), "{name}: the other rows are sound");
    }
}

#[test]
fn the_hash_of_tokens_is_that_of_their_bytes() {
    // sha256sum of the bytes 01 00 00 00 02 00 00 00.
    let truth = "34fb5c825de7ca4aea6e712f19d439c1da0c92c37b423936c5f618545ca4fa1f";
    assert_eq!(super::facts::tokens_sha256(&[1, 2]), truth);
}
