//! A student that was taught.

use super::{model, quantized};
use crate::report::{CurvePoint, Distillation, Report};

/// A student's report, with its curve.
pub(crate) fn distilled() -> Report {
    let point = |step: u64| {
        let far = (-(step as f64) / 300.0).exp();
        CurvePoint {
            step,
            layer: None,
            tokens: 8192 * step,
            seconds: 0.5 * step as f64,
            loss: (step > 0).then_some(0.4 + 1.6 * far),
            rate: (step > 0).then_some(1e-4),
            held_out_loss: Some(0.45 + 1.8 * far),
            held_out_perplexity: Some(48.0 + 180.0 * far),
        }
    };
    let taught = Distillation {
        teacher: "models/books-7m".to_owned(),
        data: vec!["train.txt".to_owned()],
        data_sha256: "cc".repeat(32),
        loss: "forward-kl".to_owned(),
        temperature: 1.0,
        cross_entropy: 0.1,
        hidden_loss: Some(0.5),
        layer_map: vec![[0, 3], [1, 7]],
        steps: 1000,
        skipped_steps: 1,
        step_tokens: 8192,
        data_tokens: 4_000_000,
        held_out_tokens: 20_480,
        learning_rate: 3e-4,
        seed: 0,
        seconds: 500.0,
        curve: (0..=20).map(|index| point(50 * index)).collect(),
    };
    Report { distillation: Some(taught), evaluation: quantized().evaluation, ..Report::new(model()) }
}
