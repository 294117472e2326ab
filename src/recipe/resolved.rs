//! A recipe as it is carried out: what it leaves unsaid filled in.

use std::fmt::Write as _;
use std::path::Path;

use attar_model::Precision;

use super::chain::Chain;
use crate::cli::{Method, PruneArgs};
use crate::pipeline::fit::Goal;
use crate::pipeline::score::Scoring;
use crate::talk::{human_bytes, thousands};

/// Labels and values in the order in which they matter; ends in a newline.
pub fn text(chain: &Chain<'_>, scoring: &Scoring, report: Option<&Path>) -> String {
    let precision = Precision::from(chain.recipe.precision).name();
    let mut facts = vec![("model", model(chain)), ("calibration", calibration(chain))];
    facts.push(("evaluation", evaluation(chain, scoring)));
    facts.push(("precision", precision.to_owned()));
    let stages = stages(chain);
    let count = stages.len();
    facts.extend(stages.into_iter().enumerate().map(|(at, stage)| {
        let label = if at == 0 { "stages" } else { "" };
        (label, if count > 1 { format!("{}. {stage}", at + 1) } else { stage })
    }));
    facts.push(("checks", checks(chain)));
    let report = report.map_or("on the terminal only".to_owned(), |folder| folder.display().to_string());
    facts.push(("report", report));
    facts.iter().fold(String::new(), |mut text, (label, value)| {
        let _ = writeln!(text, "{label:<12}  {value}"); // a String never fails
        text
    })
}

fn model(chain: &Chain<'_>) -> String {
    let source = chain.source;
    format!(
        "{} ({}, {} parameters, {})",
        source.path.display(),
        source.config.family.name,
        thousands(source.parameters()),
        human_bytes(source.bytes())
    )
}

fn calibration(chain: &Chain<'_>) -> String {
    match chain.calibration.map(|calibration| &calibration.facts) {
        Some(facts) => format!(
            "{}: {} tokens in windows of {}",
            facts.files.join(", "),
            thousands(facts.tokens),
            facts.ctx
        ),
        None => "none is needed".to_owned(),
    }
}

fn evaluation(chain: &Chain<'_>, scoring: &Scoring) -> String {
    let against = match &chain.recipe.evaluation.reference {
        Some(cache) => format!("the model as kept in {}", cache.display()),
        None => "the model".to_owned(),
    };
    format!(
        "{}: {} windows of {} tokens, convention {}, against {against}",
        scoring.text,
        thousands(scoring.windows.count() as u64),
        scoring.windows.ctx(),
        scoring.convention.name()
    )
}

/// What every output is held to.
fn checks(chain: &Chain<'_>) -> String {
    let limits = chain.recipe.check.iter().flatten();
    let limits: Vec<_> = limits.map(|(key, limit)| format!("{key} {limit}")).collect();
    if limits.is_empty() { "none".to_owned() } else { limits.join(", ") }
}

/// What is done, one after the other.
fn stages(chain: &Chain<'_>) -> Vec<String> {
    let to = |what: String, output: &Path| format!("{what} -> {}", output.display());
    let prune = chain.stages.prune.as_ref().map(|args| to(prune(args), &args.output));
    let distill = chain.stages.distill.as_ref().map(|args| {
        let what = format!("distill from {}, loss {}", args.teacher.display(), args.loss.name());
        to(what, &args.output)
    });
    let quantize = chain.orders.iter().map(|order| {
        let method = order.table.method.resolved(Some(order.scheme), !chain.computer.has_device());
        let method = match (order.zeros.as_deref(), method) {
            (Some(zeros), _) => zeros.name(),
            (None, _) if !order.scheme.has_codes() => "as floats",
            (None, Method::Auto) => "gptq",
            (None, method) => &method.name(),
        };
        let scheme = order.goal.as_ref().map_or_else(|| order.scheme.name(), Goal::name);
        to(format!("quantize {scheme}, {method}"), &order.table.output)
    });
    prune.into_iter().chain(distill).chain(quantize).collect()
}

fn prune(args: &PruneArgs) -> String {
    match &args.zeros.sparsity {
        Some(sparsity) => format!("prune, {sparsity} zeros"),
        None => format!("prune, by {} and {}", args.criterion, args.depth_criterion),
    }
}
