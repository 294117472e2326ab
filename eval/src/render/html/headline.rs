//! The figures that come first.

use maud::{Markup, html};

use super::verdict::has_original;
use crate::render::figures::{bytes, compact, grouped, measured, percent, small};
use crate::render::page::lower_bound;
use crate::report::{Evaluation, Report};

/// A figure, and what it is to be held against.
struct Card {
    label: &'static str,
    figure: String,
    error: Option<String>,
    note: Option<String>,
}

impl Card {
    fn new(label: &'static str, figure: String) -> Self {
        Self { label, figure, error: None, note: None }
    }

    /// The card of a figure as `measured` writes it.
    fn measured(label: &'static str, text: &str) -> Self {
        let (figure, error) = text.split_once(" ± ").unwrap_or((text, ""));
        let error = (!error.is_empty()).then(|| format!("± {error}"));
        Self { error, ..Self::new(label, figure.to_owned()) }
    }

    fn note(self, note: Option<String>) -> Self {
        Self { note, ..self }
    }
}

pub(super) fn cards(report: &Report) -> Markup {
    let mut cards = size(report);
    cards.extend(report.evaluation.iter().flat_map(scores));
    html! {
        dl.cards {
            @for Card { label, figure, error, note } in &cards {
                div {
                    dt { (label) }
                    dd.figure { (figure) @if let Some(error) = error { " " small { (error) } } }
                    @if let Some(note) = note { dd.note { (note) } }
                }
            }
        }
    }
}

fn size(report: &Report) -> Vec<Card> {
    let model = report.beginning();
    let (before, weights) = (has_original(report).then_some(model.bytes), report.weight_bytes());
    let share = before.map(|all| format!("{:.1} % of {}", 100.0 * weights as f64 / all as f64, bytes(all)));
    let parameters = Some(format!("{} parameters", compact(report.parameters())));
    let mut cards = vec![Card::new("weights", bytes(weights)).note(share)];
    let bits = report.bits_per_weight();
    cards.extend(bits.map(|bits| Card::new("bits per weight", format!("{bits:.2}")).note(parameters)));
    cards
}

fn scores(evaluation: &Evaluation) -> Vec<Card> {
    let perplexity = evaluation.perplexity;
    let ratio = evaluation.perplexity_ratio;
    let ratio = ratio.map(|ratio| format!("{} times the original's", measured(ratio.value, ratio.stderr)));
    let tokens = Some(format!("on {} tokens", grouped(evaluation.tokens)));
    let text = format!("{:.4} ± {:.2}", perplexity.value, perplexity.stderr);
    let mut cards = vec![Card::measured("perplexity", &text).note(ratio.or(tokens))];
    cards.extend(evaluation.kl_divergence.map(|kl| {
        let tail = format!("99 % of tokens below {}", small(kl.p99));
        let note = if lower_bound(evaluation).is_some() { format!("a lower bound; {tail}") } else { tail };
        Card::measured("KL divergence", &measured(kl.mean, kl.stderr)).note(Some(note))
    }));
    cards.extend(evaluation.top1_agreement.map(|share| {
        Card::new("top-1 agreement", percent(share)).note(Some("same token put first".to_owned()))
    }));
    cards
}
