//! What a pass has done: where finished tensors go, and what the report says of each.

use std::time::{Duration, Instant};

use attar_eval::report;
use attar_quant::Facts;

use super::outlet::Outlet;
use crate::plan::PlannedTensor;
use crate::talk::Stage;

/// What was done to the parts of one matrix.
#[derive(Default)]
pub(super) struct Merged {
    error: f64,
    rtn_error: f64,
    energy: f64,
    last: Option<Facts>,
    fallbacks: Vec<String>,
}

impl From<Facts> for Merged {
    fn from(facts: Facts) -> Self {
        let mut merged = Self::default();
        merged.add(facts);
        merged
    }
}

impl Merged {
    pub(super) fn add(&mut self, facts: Facts) {
        self.error += facts.relative_error * facts.energy;
        self.rtn_error += facts.rtn_relative_error * facts.energy;
        self.energy += facts.energy;
        self.fallbacks.extend(facts.fallback.clone().filter(|fallback| !self.fallbacks.contains(fallback)));
        self.last = Some(facts);
    }

    /// Of an all-zero matrix nothing can be lost.
    fn relative(&self, error: f64) -> f64 {
        if error == 0.0 { 0.0 } else { error / self.energy }
    }
}

/// Where finished tensors go.
pub(super) struct Done<'a> {
    pub(super) sink: Outlet<'a>,
    stage: &'a Stage,
    pub(super) reports: Vec<report::Tensor>,
    pub(super) routing: Vec<report::Routing>,
    pub(super) calibrating: Duration,
}

impl<'a> Done<'a> {
    /// Nothing yet.
    pub(super) fn new(sink: Outlet<'a>, stage: &'a Stage) -> Self {
        Self { sink, stage, reports: Vec::new(), routing: Vec::new(), calibrating: Duration::ZERO }
    }

    /// Does something that counts as calibration.
    pub(super) fn calibrating<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.calibrating += started.elapsed();
        result
    }

    /// Where the report of the tensor done last can be added to.
    pub(super) fn last(&mut self) -> Option<&mut report::Tensor> {
        self.reports.last_mut()
    }

    pub(super) fn note(&mut self, tensor: &PlannedTensor, facts: Option<&Merged>) {
        let spec = &tensor.spec;
        let fallback = facts.iter().flat_map(|facts| &facts.fallbacks).chain(&tensor.fallback);
        let fallback: Vec<_> = fallback.map(String::as_str).collect();
        let last = facts.and_then(|facts| facts.last.as_ref());
        let report = report::Tensor {
            name: spec.name.clone(),
            stored_name: None,
            role: spec.role.as_str().to_owned(),
            expert: spec.expert.map(|expert| expert.index as u64),
            encoding: tensor.encoding_name(),
            bits_per_weight: 8.0 * tensor.bytes as f64 / tensor.weights() as f64,
            relative_error: facts.map(|facts| facts.relative(facts.error)),
            rtn_relative_error: facts.map(|facts| facts.relative(facts.rtn_error)),
            tokens_per_column: last.and_then(|facts| facts.tokens_per_column),
            damping: last.and_then(|facts| facts.damping),
            shrinkage: last.and_then(|facts| facts.shrinkage),
            fallback: (!fallback.is_empty()).then(|| fallback.join("; ")),
            decoded_sha256: None,
        };
        let error = report.relative_error.map_or(String::new(), |e| format!(", relative error {e:.2e}"));
        self.stage.detail(&format!("{}: {}{error}", report.name, report.encoding));
        self.stage.step(tensor.weights() as u64, spec.role.as_str());
        self.reports.push(report);
    }
}
