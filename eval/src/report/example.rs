//! Reports with made-up figures, for tests of what becomes of a report.

mod detail;
mod training;

pub(crate) use detail::{deep, detailed};
pub(crate) use training::distilled;

use super::{
    Calibration, Candidate, Evaluation, Model, Output, Pruning, Reference, Report, Run, RunStage, Search,
    Shape, Tensor,
};
use crate::{Convention, Divergence, Perplexity};

pub(crate) fn model() -> Model {
    Model {
        quantized_as: None,
        source: "models/books-7m".to_owned(),
        family: "llama".to_owned(),
        parameters: 7_344_384,
        bytes: 14_688_768,
    }
}

pub(crate) fn evaluation() -> Evaluation {
    Evaluation {
        text: "fixtures/heldout.txt".to_owned(),
        tokens: 5100,
        chunks: 20,
        ctx: 512,
        convention: Convention::LlamaCpp,
        inputs: None,
        perplexity: Perplexity { value: 42.123_456, stderr: 0.512_34 },
        reference: None,
        reference_perplexity: Some(Perplexity { value: 41.741_2, stderr: 0.505_1 }),
        perplexity_ratio: Some(Perplexity { value: 1.009_158, stderr: 0.000_812 }),
        kl_divergence: Some(Divergence {
            mean: 0.008_812_3,
            stderr: 0.000_211_9,
            median: 0.005_1,
            p90: 0.019_6,
            p99: 0.061_3,
            p99_9: 0.182,
            max: 0.874,
        }),
        top1_agreement: Some(0.953_137),
        kl_histogram: None,
        breakdown: None,
        worst_tokens: Vec::new(),
        by_window: None,
    }
}

fn tensor(layer: usize, role: &str, encoding: &str, relative_error: f64) -> Tensor {
    Tensor {
        name: format!("model.layers.{layer}.{role}.weight"),
        stored_name: None,
        role: role.to_owned(),
        expert: None,
        encoding: encoding.to_owned(),
        bits_per_weight: if encoding == "q6_k" { 6.5625 } else { 4.5 },
        relative_error: Some(relative_error),
        rtn_relative_error: Some(2.0 * relative_error),
        tokens_per_column: Some(64.0),
        damping: Some(0.001),
        shrinkage: None,
        fallback: None,
        decoded_sha256: None,
    }
}

/// A report with every part.
pub(crate) fn quantized() -> Report {
    let mut starved = tensor(1, "down_proj", "q8_0", 0.000_03);
    starved.fallback = Some("rows of 172 fit no block of 256: q8_0 for q6_k".to_owned());
    Report {
        output: Some(Output {
            path: "out/books-7m-q4_k_m.gguf".to_owned(),
            format: "gguf".to_owned(),
            scheme: "q4_k_m".to_owned(),
            method: Some("gptq".to_owned()),
            parameters: None,
            bytes: 4_812_345,
            bits_per_weight: 5.2417,
            sha256: Some("5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef".to_owned()),
        }),
        evaluation: Some(evaluation()),
        tensors: vec![
            tensor(0, "q_proj", "q4_k", 0.002_1),
            tensor(0, "down_proj", "q6_k", 0.000_19),
            tensor(1, "q_proj", "q4_k", 0.003_4),
            starved,
        ],
        calibration: Some(Calibration {
            files: vec!["fixtures/calibration.txt".to_owned()],
            sha256: "0263829989b6fd954f72baaf2fc64bc2e2f01d692d4de72986ea808f6e99813f".to_owned(),
            tokens: 16_384,
            ctx: 512,
            ..Calibration::default()
        }),
        run: Some(Run {
            command: "attar quantize models/books-7m -o out/books-7m-q4_k_m.gguf --scheme q4_k_m".to_owned(),
            version: "0.1.0".to_owned(),
            device: "cpu".to_owned(),
            threads: 2,
            cpu: Some("AMD EPYC 9R45".to_owned()),
            cores: Some(2),
            memory_bytes: Some(25_183_989_760),
            os: Some("Debian GNU/Linux 12 (bookworm), kernel 6.1.0".to_owned()),
            precision: Some("f32".to_owned()),
            seconds: 12.345,
            peak_rss_bytes: Some(123_456_789),
            stages: vec![
                RunStage { name: "quantize".to_owned(), seconds: 8.1 },
                RunStage { name: "verify".to_owned(), seconds: 4.2 },
            ],
        }),
        ..Report::new(model())
    }
}

/// A model alone, held against the likeliest tokens of another that were kept.
pub(crate) fn against_a_cache() -> Report {
    let reference = Reference {
        kind: "teacher cache".to_owned(),
        path: "ci/books-7m-top64".to_owned(),
        model: "models/books-7m".to_owned(),
        model_sha256: "2bc1c912bb9ae18cf6df9d08f846529b3d42303bc13b38f36245d88807cdcd98".to_owned(),
        signal: "top-k=64".to_owned(),
        kl_buckets: Some(65),
        unknown_targets: None,
    };
    let evaluation = Evaluation { reference: Some(reference), ..evaluation() };
    Report { evaluation: Some(evaluation), ..Report::new(model()) }
}

/// The best of two shapes of about as many parameters.
pub(crate) fn pruned() -> Report {
    let before = Shape {
        layers: 8,
        hidden_size: 256,
        intermediate_size: 768,
        query_heads: 8,
        kv_heads: 4,
        experts: None,
        parameters: 7_344_384,
    };
    let deep = Shape { intermediate_size: 320, parameters: 4_591_872, ..before };
    let shallow = Shape { layers: 4, parameters: 4_197_632, ..before };
    let candidates = vec![
        Candidate { shape: deep, kl_divergence: 0.312_3, chosen: true },
        Candidate { shape: shallow, kl_divergence: 0.871_2, chosen: false },
    ];
    let pruning = Pruning {
        before,
        after: deep,
        search: Some(Search { target_parameters: 4_600_000, tokens: 4096, candidates }),
        across_layers: None,
        criterion: Some("second-order".to_owned()),
        depth_criterion: None,
        compensation: "least-squares".to_owned(),
        ruled_out: vec!["rows of 320 (down) are no blocks of 256: K-quants do not fit there".to_owned()],
        dropped_layers: Vec::new(),
        layers: Vec::new(),
    };
    let output = Output {
        path: "out/cut".to_owned(),
        format: "plain".to_owned(),
        scheme: "bf16".to_owned(),
        method: Some("prune".to_owned()),
        parameters: Some(deep.parameters),
        bytes: 9_183_744,
        bits_per_weight: 16.0,
        sha256: None,
    };
    Report {
        output: Some(output),
        pruning: Some(pruning),
        evaluation: Some(evaluation()),
        ..Report::new(model())
    }
}

/// A model that was cut, and an output of what was left.
pub(crate) fn chained() -> Vec<Report> {
    let cut = pruned();
    let left = Model { source: "out/cut".to_owned(), parameters: 4_591_872, bytes: 9_183_744, ..model() };
    let quantized = Report { original: Some(model()), model: left, ..quantized() };
    vec![cut, quantized]
}

/// Three outputs of one model.
pub(crate) fn compared() -> Vec<Report> {
    let variant = |path: &str, scheme: &str, method: &str, bytes, bits_per_weight, loss: f64| {
        let mut report = quantized();
        let kl =
            Divergence { mean: loss, stderr: loss / 40.0, ..evaluation().kl_divergence.expect("set above") };
        report.output = report.output.map(|output| Output {
            path: path.to_owned(),
            scheme: scheme.to_owned(),
            method: Some(method.to_owned()),
            bytes,
            bits_per_weight,
            ..output
        });
        report.evaluation = Some(Evaluation {
            perplexity: Perplexity { value: 41.7412 + 50.0 * loss, stderr: 0.51 },
            kl_divergence: Some(kl),
            top1_agreement: Some(1.0 - 5.0 * loss),
            ..evaluation()
        });
        report
    };
    vec![
        variant("out/books-7m-q4_k_m.gguf", "q4_k_m", "gptq", 4_812_345, 5.2417, 0.008_81),
        variant("out/books-7m-w4a16-g64", "w4a16-g64", "gptq", 9_123_456, 9.87, 0.012_3),
        variant("out/books-7m-q8_0.gguf", "q8_0", "rtn", 7_801_234, 8.5, 0.000_031),
    ]
}
