#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::error::Error as StdError;

use attar_checkpoint::Dtype;
use attar_checkpoint::atomic::Overwrite;
use attar_model::teacher::{Cache, Facts, LogProbs, LogProbsWriter, Signal, Teacher, Writer};
use attar_model::{Head, ModelConfig, Precision, Streaming, Weights, Windows};
use ndarray::ArrayD;
use serde_json::json;

use super::*;
use crate::report::Group;
use crate::{Convention, windows};
use crate::{keep, keep_log_probs};

/// A Llama of two blocks with seeded random weights.
struct Tiny {
    config: ModelConfig,
    seed: u64,
    spoil: Option<(&'static str, f32)>,
}

impl Tiny {
    fn new(vocab_size: usize, seed: u64) -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocab_size,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 64,
            "tie_word_embeddings": true,
        });
        Self { config: ModelConfig::from_hf(&config).unwrap(), seed, spoil: None }
    }

    /// All elements of the tensor `name` become `value`.
    fn spoiled(self, name: &'static str, value: f32) -> Self {
        Self { spoil: Some((name, value)), ..self }
    }

    fn scored(&self) -> Scored<'_> {
        Scored { config: &self.config, weights: self, streaming: Streaming::default() }
    }
}

impl Weights for Tiny {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, Box<dyn StdError + Send + Sync>> {
        let tensors = self.config.tensors();
        let spec = tensors.iter().find(|spec| spec.name == name).ok_or("no such tensor")?;
        if let Some((_, value)) = self.spoil.filter(|(spoiled, _)| *spoiled == name) {
            return Ok(ArrayD::from_elem(spec.shape.clone(), value));
        }
        let mut state = name.bytes().fold(self.seed, |state, byte| splitmix(state ^ u64::from(byte)));
        Ok(ArrayD::from_shape_simple_fn(spec.shape.clone(), || {
            state = splitmix(state);
            (state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
        }))
    }

    fn has(&self, name: &str) -> bool {
        self.config.tensors().iter().any(|spec| spec.name == name)
    }
}

fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn text(vocab_size: u64, tokens: u64) -> Vec<u32> {
    (0..tokens).map(|place| (splitmix(place) % vocab_size) as u32).collect()
}

fn passage(windows: &Windows, convention: Convention) -> Passage<'_> {
    Passage { text: "a text", windows, convention, decode: None }
}

fn silent(_: Progress) {}

/// Holds heads whole.
const ROOMY: Budget = Budget::of(1 << 30);
/// Reads every head 256 rows at a time, for 16 tokens at a time.
const TIGHT: Budget = Budget::of(0);

#[test]
fn a_model_does_not_diverge_from_itself() {
    let model = Tiny::new(50, 1);
    for convention in Convention::ALL {
        let windows = windows(&text(50, 100), 16, convention, Some(0), None).unwrap();
        let passage = passage(&windows, convention);
        let reference = Reference::run(model.scored(), passage, &mut silent).unwrap();
        let evaluation = evaluate(model.scored(), Some(&reference), passage, ROOMY, &mut silent).unwrap();
        assert_eq!(evaluation.kl_divergence, Some(Divergence::of(&[0.0])));
        assert_eq!(evaluation.top1_agreement, Some(1.0));
        assert_eq!(evaluation.reference_perplexity, Some(evaluation.perplexity));
        assert_eq!(evaluation.perplexity_ratio, Some(Perplexity { value: 1.0, stderr: 0.0 }));
    }
}

#[test]
fn in_bf16_a_model_scores_nearly_as_in_f32() {
    let model = Tiny::new(50, 1);
    let windows = windows(&text(50, 200), 16, Convention::Hf, Some(0), None).unwrap();
    let passage = passage(&windows, Convention::Hf);
    let reference = Reference::run(model.scored(), passage, &mut silent).unwrap();
    let streaming = Streaming { precision: Precision::Bf16, ..Streaming::default() };
    let rounded = Scored { streaming, ..model.scored() };
    let evaluation = evaluate(rounded, Some(&reference), passage, ROOMY, &mut silent).unwrap();
    let divergence = evaluation.kl_divergence.unwrap();
    assert!(divergence.mean > 0.0 && divergence.mean < 1e-4, "{divergence:?}");
    assert!((evaluation.perplexity_ratio.unwrap().value - 1.0).abs() < 1e-3);
}

#[test]
fn every_scored_token_counts_once() {
    let model = Tiny::new(50, 1);
    let cases = [(Convention::LlamaCpp, 6, 6 * 7), (Convention::Hf, 6, 6 * 15)];
    for (convention, chunks, tokens) in cases {
        let windows = windows(&text(50, 100), 16, convention, Some(0), None).unwrap();
        let evaluation =
            evaluate(model.scored(), None, passage(&windows, convention), ROOMY, &mut silent).unwrap();
        assert_eq!((evaluation.chunks, evaluation.tokens), (chunks, tokens), "{convention}");
        assert_eq!((evaluation.ctx, evaluation.text.as_str()), (16, "a text"));
        assert!(evaluation.kl_divergence.is_none() && evaluation.top1_agreement.is_none());
    }
}

#[test]
fn a_model_whose_logits_are_all_equal_guesses_among_the_vocabulary() {
    let model = Tiny::new(50, 1).spoiled("model.norm.weight", 0.0);
    let windows = windows(&text(50, 100), 16, Convention::Hf, None, None).unwrap();
    let evaluation =
        evaluate(model.scored(), None, passage(&windows, Convention::Hf), ROOMY, &mut silent).unwrap();
    assert!((evaluation.perplexity.value - 50.0).abs() < 1e-9, "{:?}", evaluation.perplexity);
}

/// The head whole or in slices, tokens by the thousand or by sixteen: every row is summed as it stands.
#[test]
fn slices_of_the_head_and_of_the_tokens_never_change_a_bit() {
    let (model, other) = (Tiny::new(700, 1), Tiny::new(700, 2));
    for (convention, tokens) in [(Convention::Hf, 1500), (Convention::LlamaCpp, 500)] {
        let windows = windows(&text(700, tokens), 16, convention, None, None).unwrap();
        let passage = passage(&windows, convention);
        let reference = Reference::run(other.scored(), passage, &mut silent).unwrap();
        let within = |budget| {
            let alone = evaluate(model.scored(), None, passage, budget, &mut silent).unwrap();
            let pair = evaluate(model.scored(), Some(&reference), passage, budget, &mut silent).unwrap();
            assert_eq!(alone.perplexity, pair.perplexity);
            pair
        };
        let whole = within(ROOMY);
        assert!(!TIGHT.portion(700, 16, 2).holds_heads() && ROOMY.portion(700, 16, 2).holds_heads());
        assert_eq!(within(TIGHT), whole, "{convention}");
        assert_eq!(within(Budget::of(300_000)), whole, "{convention}");
    }
}

#[test]
fn the_head_taken_in_slices_scores_as_the_rows_taken_one_by_one() {
    let (model, other) = (Tiny::new(700, 1), Tiny::new(700, 2));
    let windows = windows(&text(700, 200), 16, Convention::Hf, None, None).unwrap();
    let passage = passage(&windows, Convention::Hf);
    let reference = Reference::run(other.scored(), passage, &mut silent).unwrap();
    let candidate = Predictions::run(model.scored(), passage, &mut silent).unwrap();
    let scores = score_tokens(&candidate, Some(&reference), passage, TIGHT, &mut silent).unwrap();

    let Reference::Model(reference) = &reference else { panic!("it was run") };
    let whole = |predictions: &Predictions, model: &Tiny| {
        let head = Head::load(&model.config, model).unwrap();
        head.logits(predictions.states().normed(0..passage.targets().len()).unwrap().view())
    };
    let (q, p) = (whole(&candidate, &model), whole(reference, &other));
    assert_eq!(scores.len(), passage.targets().len());
    for (token, (score, target)) in scores.iter().zip(passage.targets()).enumerate() {
        let alone = score_pair(row(q.view(), token), row(p.view(), token), target).ok().unwrap();
        let (alone_against, against) = (alone.against.unwrap(), score.against.as_ref().unwrap());
        assert_eq!(alone_against.kl_divergence.to_bits(), against.kl_divergence.to_bits(), "token {token}");
        let bits = |against: &Against| against.nll.map(f64::to_bits);
        assert_eq!(bits(&alone_against), bits(against), "token {token}");
        assert_eq!(alone.nll.to_bits(), score.nll.to_bits(), "token {token}");
    }
}

#[test]
fn a_reference_changes_no_perplexity() {
    let (model, other) = (Tiny::new(50, 1), Tiny::new(50, 2));
    let windows = windows(&text(50, 100), 16, Convention::Hf, None, None).unwrap();
    let passage = passage(&windows, Convention::Hf);
    let reference = Reference::run(other.scored(), passage, &mut silent).unwrap();
    let compared = evaluate(model.scored(), Some(&reference), passage, ROOMY, &mut silent).unwrap();
    let alone =
        |model: &Tiny| evaluate(model.scored(), None, passage, ROOMY, &mut silent).unwrap().perplexity;
    assert_eq!(compared.perplexity, alone(&model));
    assert_eq!(compared.reference_perplexity, Some(alone(&other)));
    let quotient = compared.perplexity.value / alone(&other).value;
    assert!((compared.perplexity_ratio.unwrap().value - quotient).abs() < 1e-12 * quotient);
}

#[test]
fn threads_never_change_a_bit() {
    let (model, other) = (Tiny::new(300, 1), Tiny::new(300, 2));
    let windows = windows(&text(300, 2000), 32, Convention::LlamaCpp, Some(0), None).unwrap();
    let passage = passage(&windows, Convention::LlamaCpp);
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let reference = Reference::run(other.scored(), passage, &mut silent).unwrap();
            evaluate(model.scored(), Some(&reference), passage, ROOMY, &mut silent).unwrap()
        })
    };
    let one = with_threads(1);
    for threads in [2, 3, 7] {
        assert_eq!(with_threads(threads), one, "{threads} threads");
    }
}

#[test]
fn one_reference_serves_several_candidates() {
    let reference_model = Tiny::new(50, 1);
    let windows = windows(&text(50, 100), 16, Convention::Hf, None, None).unwrap();
    let passage = passage(&windows, Convention::Hf);
    let reference = Reference::run(reference_model.scored(), passage, &mut silent).unwrap();
    for seed in [2, 3] {
        let candidate = Tiny::new(50, seed);
        let shared = evaluate(candidate.scored(), Some(&reference), passage, ROOMY, &mut silent).unwrap();
        let fresh = Reference::run(reference_model.scored(), passage, &mut silent).unwrap();
        assert_eq!(shared, evaluate(candidate.scored(), Some(&fresh), passage, ROOMY, &mut silent).unwrap());
        assert!(shared.kl_divergence.unwrap().mean > 0.0);
    }
}

#[test]
fn progress_reaches_its_total_in_both_stages() {
    let model = Tiny::new(50, 1);
    let windows = windows(&text(50, 100), 16, Convention::Hf, None, None).unwrap();
    let mut seen = Vec::new();
    evaluate(model.scored(), None, passage(&windows, Convention::Hf), ROOMY, &mut |p| seen.push(p)).unwrap();
    let blocks: Vec<_> = seen.iter().filter(|p| p.stage == Stage::Blocks).collect();
    assert_eq!(blocks.len(), 2);
    assert_eq!((blocks[1].done, blocks[1].total), (2, 2));
    let last = seen.last().unwrap();
    assert_eq!((last.stage, last.done, last.total), (Stage::Head, 96 - 6, 96 - 6));
}

#[test]
fn a_logit_that_is_not_a_number_is_reported_with_its_place() {
    let windows = windows(&text(50, 100), 16, Convention::LlamaCpp, None, None).unwrap();
    let passage = passage(&windows, Convention::LlamaCpp);
    for value in [f32::NAN, f32::INFINITY] {
        let broken = Tiny::new(50, 1).spoiled("model.norm.weight", value);
        let error = evaluate(broken.scored(), None, passage, ROOMY, &mut silent).unwrap_err();
        assert_eq!(error.to_string(), "the model gives a NaN or infinite logit at position 8 of window 0");
        let reference = Reference::run(broken.scored(), passage, &mut silent).unwrap();
        let sound = Tiny::new(50, 1);
        let error = evaluate(sound.scored(), Some(&reference), passage, ROOMY, &mut silent).unwrap_err();
        assert!(error.to_string().starts_with("the reference gives"), "{error}");
    }
}

#[test]
fn a_loss_beyond_every_perplexity_is_an_error_and_not_an_infinity() {
    let model = Tiny::new(50, 1).spoiled("model.norm.weight", 1e6);
    let windows = windows(&text(50, 100), 16, Convention::Hf, None, None).unwrap();
    let error =
        evaluate(model.scored(), None, passage(&windows, Convention::Hf), ROOMY, &mut silent).unwrap_err();
    assert!(matches!(error, Error::PerplexityOverflows { mean_nll } if mean_nll > 709.0), "{error}");
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_before_anything_runs() {
    let model = Tiny::new(50, 1);
    let mut tokens = text(50, 100);
    tokens[33] = 50;
    let windows = windows(&tokens, 16, Convention::Hf, None, None).unwrap();
    let mut ran = false;
    let error = evaluate(model.scored(), None, passage(&windows, Convention::Hf), ROOMY, &mut |_| ran = true)
        .unwrap_err();
    assert_eq!(error.to_string(), "the text holds token 50, but the model's vocabulary has 50 tokens");
    assert!(!ran);
}

#[test]
fn models_of_different_vocabularies_are_not_compared() {
    let (model, other) = (Tiny::new(50, 1), Tiny::new(60, 1));
    let windows = windows(&text(50, 100), 16, Convention::Hf, None, None).unwrap();
    let passage = passage(&windows, Convention::Hf);
    let reference = Reference::run(other.scored(), passage, &mut silent).unwrap();
    let error = evaluate(model.scored(), Some(&reference), passage, ROOMY, &mut silent).unwrap_err();
    assert!(matches!(error, Error::VocabularyDiffers { reference: 60, model: 50 }), "{error}");
}

#[test]
#[should_panic(expected = "the reference was run over another passage")]
fn a_reference_over_another_passage_is_a_broken_contract() {
    let model = Tiny::new(50, 1);
    let one = windows(&text(50, 100), 16, Convention::Hf, None, None).unwrap();
    let two = windows(&text(50, 100), 16, Convention::Hf, None, Some(2)).unwrap();
    let reference = Reference::run(model.scored(), passage(&one, Convention::Hf), &mut silent).unwrap();
    let _ = evaluate(model.scored(), Some(&reference), passage(&two, Convention::Hf), ROOMY, &mut silent);
}

/// Runs `teacher` over `passage` and keeps what it predicts.
fn kept(teacher: &Tiny, passage: Passage, signal: Signal) -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let positions = passage.positions();
    let facts = Facts {
        schema: String::new(),
        version: "0".to_owned(),
        model: Teacher { source: "tiny".to_owned(), family: "llama".to_owned(), sha256: "0".to_owned() },
        text: passage.text.to_owned(),
        tokens_sha256: String::new(),
        convention: passage.convention.name().to_owned(),
        ctx: 0,
        windows: 0,
        scored: [positions.start, positions.end],
        vocab_size: teacher.config.vocab_size,
        vocabulary_sha256: None,
        hidden_size: teacher.config.hidden_size,
        logits_scaling: teacher.config.logits_scaling,
        logit_cap: teacher.config.logit_cap,
        precision: Precision::F32.name().to_owned(),
        signal,
        windows_per_part: 0,
    };
    let mut writer = Writer::create(&path, Overwrite::No, facts, passage.windows, Dtype::F32).unwrap();
    let predictions = Predictions::run(teacher.scored(), passage, &mut silent).unwrap();
    keep(&predictions, passage, signal, TIGHT, &mut writer, &mut silent).unwrap();
    writer.finish().unwrap();
    let cache = Cache::open(&path).unwrap();
    (folder, cache)
}

#[test]
fn hidden_states_kept_in_f32_are_the_model_to_the_bit() {
    let (model, teacher) = (Tiny::new(300, 1), Tiny::new(300, 2));
    for convention in Convention::ALL {
        let windows = windows(&text(300, 400), 16, convention, Some(0), None).unwrap();
        let passage = passage(&windows, convention);
        let (_folder, cache) = kept(&teacher, passage, Signal::HiddenF32);
        let (run, kept) =
            (Reference::run(teacher.scored(), passage, &mut silent).unwrap(), Reference::kept(cache));
        for budget in [ROOMY, TIGHT] {
            let by_run = evaluate(model.scored(), Some(&run), passage, budget, &mut silent).unwrap();
            let mut by_cache = evaluate(model.scored(), Some(&kept), passage, budget, &mut silent).unwrap();
            let said = by_cache.reference.take().unwrap();
            assert_eq!((said.signal.as_str(), said.model.as_str()), ("hidden-f32", "tiny"));
            assert_eq!(said.kl_buckets, None);
            assert_eq!(by_cache, by_run, "{convention}");
        }
        let itself = evaluate(teacher.scored(), Some(&kept), passage, ROOMY, &mut silent).unwrap();
        assert_eq!(itself.kl_divergence, Some(Divergence::of(&[0.0])));
    }
}

#[test]
fn hidden_states_kept_in_bf16_are_the_model_but_for_rounding() {
    let (model, teacher) = (Tiny::new(300, 1), Tiny::new(300, 2));
    let windows = windows(&text(300, 400), 16, Convention::Hf, None, None).unwrap();
    let passage = passage(&windows, Convention::Hf);
    let (_folder, cache) = kept(&teacher, passage, Signal::HiddenBf16);
    let (run, kept) =
        (Reference::run(teacher.scored(), passage, &mut silent).unwrap(), Reference::kept(cache));
    let against = |reference| evaluate(model.scored(), Some(reference), passage, ROOMY, &mut silent).unwrap();
    let (by_run, by_cache) = (against(&run), against(&kept));
    let mean = |evaluation: &Evaluation| evaluation.kl_divergence.unwrap().mean;
    assert!((mean(&by_run) - mean(&by_cache)).abs() < 1e-3 * mean(&by_run));
    assert_eq!(by_run.perplexity, by_cache.perplexity);
    let itself = evaluate(teacher.scored(), Some(&kept), passage, ROOMY, &mut silent).unwrap();
    assert!((1e-12..1e-4).contains(&mean(&itself)), "{}", mean(&itself));
}

#[test]
fn the_likeliest_tokens_bound_the_divergence_from_below_and_keep_the_perplexity() {
    let (model, teacher) = (Tiny::new(300, 1), Tiny::new(300, 2));
    let windows = windows(&text(300, 400), 16, Convention::LlamaCpp, Some(0), None).unwrap();
    let passage = passage(&windows, Convention::LlamaCpp);
    let run = Reference::run(teacher.scored(), passage, &mut silent).unwrap();
    let exact = evaluate(model.scored(), Some(&run), passage, ROOMY, &mut silent).unwrap();
    let mut last = 0.0;
    for k in [1, 8, 64, 299] {
        let (_folder, cache) = kept(&teacher, passage, Signal::TopK(k));
        let kept = Reference::kept(cache);
        let found = evaluate(model.scored(), Some(&kept), passage, ROOMY, &mut silent).unwrap();
        let said = found.reference.as_ref().unwrap();
        assert_eq!((said.signal.clone(), said.kl_buckets), (format!("top-k={k}"), Some(k as u64 + 1)));
        let mean = found.kl_divergence.unwrap().mean;
        assert!(last <= mean && mean <= exact.kl_divergence.unwrap().mean + 1e-6, "{mean} at {k}");
        last = mean;
        assert_eq!((found.perplexity, found.top1_agreement), (exact.perplexity, exact.top1_agreement));
        let (kept_ppl, run_ppl) = (found.reference_perplexity.unwrap(), exact.reference_perplexity.unwrap());
        assert!((kept_ppl.value - run_ppl.value).abs() < 1e-5 * run_ppl.value);
        let itself = evaluate(teacher.scored(), Some(&kept), passage, ROOMY, &mut silent).unwrap();
        assert_eq!(itself.kl_divergence, Some(Divergence::of(&[0.0])));
    }
    assert!((last - exact.kl_divergence.unwrap().mean).abs() < 1e-6, "all tokens but one are all but exact");
}

/// A file of llama-perplexity's kind in a folder of its own.
fn rounded(teacher: &Tiny, passage: Passage) -> (tempfile::TempDir, LogProbs) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base");
    let windows = passage.windows;
    let (tokens, vocab_size) = (windows.tokens(), teacher.config.vocab_size);
    let mut writer = LogProbsWriter::create(&path, Overwrite::No, tokens, windows.ctx(), vocab_size).unwrap();
    let predictions = Predictions::run(teacher.scored(), passage, &mut silent).unwrap();
    keep_log_probs(&predictions, passage, TIGHT, &mut writer, &mut silent).unwrap();
    writer.finish().unwrap();
    (folder, LogProbs::open(&path).unwrap())
}

/// Logits of the Tiny models reach far beyond 16 nats, so that rows are cut.
#[test]
fn rounded_log_probabilities_are_the_model_but_for_rounding() {
    let (model, other) = (Tiny::new(51, 1), Tiny::new(51, 2));
    let windows = windows(&text(51, 96), 16, Convention::LlamaCpp, None, None).unwrap();
    let passage = passage(&windows, Convention::LlamaCpp);
    let exact = Reference::run(other.scored(), passage, &mut silent).unwrap();
    let exact = evaluate(model.scored(), Some(&exact), passage, TIGHT, &mut silent).unwrap();
    let (_folder, file) = rounded(&other, passage);
    let reference = Reference::LogProbs(Box::new(file));
    let found = evaluate(model.scored(), Some(&reference), passage, TIGHT, &mut silent).unwrap();

    assert_eq!(found.perplexity, exact.perplexity);
    assert_eq!(found.top1_agreement, exact.top1_agreement);
    let kl = |evaluation: &Evaluation| evaluation.kl_divergence.unwrap().mean;
    assert!((kl(&found) / kl(&exact) - 1.0).abs() < 1e-4, "{} is not {}", kl(&found), kl(&exact));
    let perplexity = |evaluation: &Evaluation| evaluation.reference_perplexity.unwrap().value;
    assert!((perplexity(&found) / perplexity(&exact) - 1.0).abs() < 1e-3);
    assert_eq!(found.reference.as_ref().unwrap().unknown_targets, None);

    let itself = evaluate(other.scored(), Some(&reference), passage, TIGHT, &mut silent).unwrap();
    let divergence = itself.kl_divergence.unwrap();
    assert!(divergence.max < 1e-6, "{divergence:?}");
    assert_eq!(itself.top1_agreement, Some(1.0));
}

#[test]
fn rounded_log_probabilities_of_another_text_are_refused() {
    let model = Tiny::new(50, 1);
    let cut = |first: u32| {
        let mut tokens = text(50, 64);
        tokens[20] = first;
        windows(&tokens, 16, Convention::LlamaCpp, None, None).unwrap()
    };
    let (windows, others) = (cut(3), cut(4));
    let (_folder, file) = rounded(&model, passage(&windows, Convention::LlamaCpp));
    let reference = Reference::LogProbs(Box::new(file));
    let passage = passage(&others, Convention::LlamaCpp);
    let error = evaluate(model.scored(), Some(&reference), passage, TIGHT, &mut silent).unwrap_err();
    assert!(matches!(error, Error::OtherText { ctx: 16 }), "{error}");
}

/// Every part adds up to the whole, and the worst tokens are the farthest there are.
#[test]
fn an_evaluation_taken_apart_is_the_whole() {
    let (model, other) = (Tiny::new(50, 1), Tiny::new(50, 2));
    let windows = windows(&text(50, 96), 16, Convention::Hf, None, None).unwrap();
    let decode =
        |tokens: &[u32]| tokens.iter().flat_map(|token| [" ".to_owned(), token.to_string()]).collect();
    let passage = Passage { decode: Some(&decode), ..passage(&windows, Convention::Hf) };
    let reference = Reference::run(other.scored(), passage, &mut silent).unwrap();
    let found = evaluate(model.scored(), Some(&reference), passage, TIGHT, &mut silent).unwrap();

    let breakdown = found.breakdown.as_ref().unwrap();
    for groups in [&breakdown.position, &breakdown.kind, &breakdown.frequency] {
        assert_eq!(groups.iter().map(|group| group.tokens).sum::<u64>(), found.tokens);
        let mean = |of: &dyn Fn(&Group) -> f64| {
            groups.iter().map(|group| group.tokens as f64 * of(group)).sum::<f64>() / found.tokens as f64
        };
        let kl = mean(&|group| group.kl_divergence.unwrap().mean);
        assert!((kl - found.kl_divergence.unwrap().mean).abs() < 1e-12);
        assert!((mean(&|group| group.perplexity.value.ln()).exp() - found.perplexity.value).abs() < 1e-9);
    }
    assert_eq!(breakdown.kind.len(), 1, "numbers only: {:?}", breakdown.kind);
    let by_window = found.by_window.as_ref().unwrap();
    assert_eq!(by_window.nll.len() as u64, found.chunks);
    let nll = by_window.nll.iter().sum::<f64>() / found.chunks as f64;
    assert!((nll.exp() - found.perplexity.value).abs() < 1e-9);
    assert_eq!(found.kl_histogram.as_ref().unwrap().tokens.iter().sum::<u64>(), found.tokens);

    let worst = &found.worst_tokens;
    assert_eq!(worst[0].kl_divergence.to_bits(), found.kl_divergence.unwrap().max.to_bits());
    assert!(worst.is_sorted_by(|a, b| a.kl_divergence >= b.kl_divergence));
    let token = &worst[0];
    let at = token.window as usize * 16 + token.position as usize;
    assert_eq!(token.token, format!(" {}", windows.tokens()[at]));
    assert!(token.before.ends_with(&format!(" {}", windows.tokens()[at - 1])));
    assert_ne!(token.reference.top, "");
}

#[test]
fn a_cache_of_another_text_cut_or_vocabulary_is_refused_with_what_it_was_made_on() {
    let (model, teacher) = (Tiny::new(300, 1), Tiny::new(300, 2));
    let one = windows(&text(300, 400), 16, Convention::Hf, None, None).unwrap();
    let (_folder, cache) = kept(&teacher, passage(&one, Convention::Hf), Signal::HiddenF32);
    let kept = Reference::kept(cache);
    let mut other_text = text(300, 400);
    other_text[37] ^= 1;
    let cases = [
        (
            windows(&other_text, 16, Convention::Hf, None, None).unwrap(),
            Convention::Hf,
            "its tokens are others",
        ),
        (windows(&text(300, 400), 8, Convention::Hf, None, None).unwrap(), Convention::Hf, "windows of 8"),
        (
            windows(&text(300, 400), 16, Convention::Hf, None, Some(2)).unwrap(),
            Convention::Hf,
            "this is 2 windows",
        ),
        (one.clone(), Convention::LlamaCpp, "convention llama.cpp"),
    ];
    for (windows, convention, part) in &cases {
        let mut ran = false;
        let passage = passage(windows, *convention);
        let error = evaluate(model.scored(), Some(&kept), passage, ROOMY, &mut |_| ran = true).unwrap_err();
        let cause = error.source().unwrap().to_string();
        assert!(
            cause.contains(part) && cause.contains("`a text`, 25 windows of 16 in convention hf"),
            "{cause}"
        );
        assert!(!ran);
    }
    let larger = Tiny::new(310, 1);
    let passage = passage(&one, Convention::Hf);
    let error = evaluate(larger.scored(), Some(&kept), passage, ROOMY, &mut silent).unwrap_err();
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("has 300 tokens in its vocabulary, the model 310"), "{cause}");
}

/// What fills up shorter texts, which texts are run together and how heads are cut shows in no answer; and answers are those of
/// an evaluation that scores every token of the same text.
#[test]
fn a_text_is_answered_as_if_it_stood_alone_and_as_it_is_scored() {
    use crate::tasks::{Item, Task, answer};
    let model = Tiny::new(50, 7);
    let letters =
        |text: &str| -> Result<Vec<u32>, Error> { Ok(text.bytes().map(|b| u32::from(b) % 50).collect()) };
    let item = |context: &str, continuation: &str| Item::LastWord {
        context: context.to_owned(),
        continuation: continuation.to_owned(),
    };
    let items = vec![
        item("ab", "c"),
        item("a longer one", "of some words"),
        item("abcdefghij", "kl"),
        item("x", "y"),
    ];
    let task = Task { name: "t".to_owned(), sha256: String::new(), items };
    let requests = task.requests(letters, Some(0), 64).unwrap();
    let together = answer(&model.scored(), &requests, ROOMY, &mut silent).unwrap();
    for (request, together) in requests.chunks(1).zip(&together) {
        assert_eq!(answer(&model.scored(), request, TIGHT, &mut silent).unwrap(), [*together]);
    }

    // The first begins with BOS and a letter, and all after that is what it is asked for.
    let all = task.requests(letters, Some(0), 64).unwrap();
    let said: f64 = answer(&model.scored(), &all[3..], ROOMY, &mut silent).unwrap()[0].log_likelihood;
    let tokens = letters("x y").unwrap();
    let windows = windows(&tokens, 4, Convention::Hf, Some(0), None).unwrap();
    let whole =
        evaluate(model.scored(), None, passage(&windows, Convention::Hf), ROOMY, &mut silent).unwrap();
    let first = windows_of(&[0, tokens[0]]);
    let begins = evaluate(model.scored(), None, passage(&first, Convention::Hf), ROOMY, &mut silent).unwrap();
    let expected = begins.perplexity.value.ln() - 3.0 * whole.perplexity.value.ln();
    assert!((said - expected).abs() < 1e-5, "{said} beside {expected}");
}

/// The last token of a text is only predicted: no window holds it.
#[test]
fn a_task_with_a_token_outside_the_vocabulary_is_refused() {
    use crate::tasks::{Item, Task, answer};
    let model = Tiny::new(50, 7);
    let item = Item::LastWord { context: "ab".to_owned(), continuation: "c".to_owned() };
    let task = Task { name: "t".to_owned(), sha256: String::new(), items: vec![item] };
    let encode = |text: &str| -> Result<Vec<u32>, Error> {
        Ok((0..text.len()).map(|at| if at == 3 { 50 } else { 1 }).collect())
    };
    let requests = task.requests(encode, None, 64).unwrap();
    let error = answer(&model.scored(), &requests, ROOMY, &mut silent).unwrap_err();
    assert!(matches!(error, Error::TokenOutsideVocabulary { token: 50, vocab_size: 50 }), "{error}");
}

fn windows_of(tokens: &[u32]) -> Windows {
    Windows::new(tokens.len(), tokens.to_vec())
}

#[test]
fn an_answer_from_logits_that_are_not_finite_is_refused() {
    use crate::tasks::{Item, Task, answer};
    let model = Tiny::new(50, 7).spoiled("model.norm.weight", f32::NAN);
    let item = Item::LastWord { context: "ab".to_owned(), continuation: "c".to_owned() };
    let task = Task { name: "t".to_owned(), sha256: String::new(), items: vec![item] };
    let encode = |text: &str| -> Result<Vec<u32>, Error> { Ok(vec![1; text.len()]) };
    let requests = task.requests(encode, None, 64).unwrap();
    let error = answer(&model.scored(), &requests, ROOMY, &mut silent).unwrap_err();
    assert!(matches!(error, Error::AnswerNotFinite), "{error}");
}
