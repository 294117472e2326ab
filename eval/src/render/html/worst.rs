//! Tokens whose predictions moved farthest, where they stand.

use maud::{Markup, html};

use crate::render::figures::{grouped, probability, small, visible};
use crate::render::markup::Text;
use crate::report::{Prediction, WorstToken};

pub(super) fn list(tokens: &[WorstToken]) -> Markup {
    html! {
        ol.worst {
            @for token in tokens {
                li {
                    p.context {
                        bdi { (Text(&visible(&token.before).replace('⏎', "⏎ "))) }
                        mark { bdi { (Text(&visible(&token.token))) } }
                    }
                    dl {
                        (part("KL divergence", &html! { (small(token.kl_divergence)) }))
                        (part("the reference says", &says(&token.reference, &token.token)))
                        (part("the model says", &says(&token.model, &token.token)))
                        (part("window, token", &html! { (grouped(token.window)) ", " (grouped(token.position)) }))
                    }
                }
            }
        }
    }
}

fn part(label: &str, content: &Markup) -> Markup {
    html! { div { dt { (label) } dd { (content) } } }
}

/// What it puts first, and what it gives the token that stands there.
fn says(prediction: &Prediction, there: &str) -> Markup {
    html! {
        bdi.token { (Text(&visible(&prediction.top))) }
        @if let Some(share) = prediction.probability {
            ", gives " bdi.token { (Text(&visible(there))) } " " (probability(share))
        }
    }
}
