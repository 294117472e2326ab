//! Codes by an importance matrix that came in a file: no text is run, so every tensor stands for itself.

use attar_quant::{Factor, Statistics};

use super::compress::Pass;
use super::done::Done;
use crate::diagnostic::Result;
use crate::imatrix::{Imatrix, Told};
use crate::plan::{PlannedTensor, Treatment};

impl Pass<'_> {
    /// Compresses every tensor of the plan by what `imatrix` tells of its inputs.
    pub(super) fn with_imatrix(&self, imatrix: &Imatrix, done: &mut Done) -> Result<()> {
        for tensor in &self.plan.tensors {
            if !matches!(tensor.treatment, Treatment::Codes(_)) {
                self.without_data(tensor, done, |_, _| Ok(()))?;
                continue;
            }
            match imatrix.of(&tensor.spec, &self.source.config) {
                Told::Inputs(statistics) => self.by_importance(tensor, &statistics, done)?,
                Told::NoToken(statistics) => {
                    let why = "the importance matrix saw no token of this expert: its columns count alike";
                    self.by_importance(&with_fallback(tensor, why), &statistics, done)?;
                    if let Some(report) = done.last() {
                        report.tokens_per_column = Some(0.0);
                    }
                }
                // Embedding and head have none unless they were asked for.
                Told::Nothing if tensor.spec.layer.is_none() => {
                    self.without_data(tensor, done, |_, _| Ok(()))?;
                }
                Told::Nothing => {
                    let why = "the importance matrix has no entry of it: rounded without one";
                    self.without_data(&with_fallback(tensor, why), done, |_, _| Ok(()))?;
                }
            }
        }
        Ok(())
    }

    fn by_importance(&self, tensor: &PlannedTensor, statistics: &Statistics, done: &mut Done) -> Result<()> {
        let Treatment::Codes(encoding) = &tensor.treatment else { return Ok(()) };
        let factor = Factor::new(statistics, self.solver.settings());
        self.solve_rows(tensor, encoding, (&factor, None), done, |_, _| Ok(()))
    }
}

/// The tensor with one reason more for what becomes of it.
fn with_fallback(tensor: &PlannedTensor, why: &str) -> PlannedTensor {
    let fallback = tensor.fallback.as_ref().map_or_else(|| why.to_owned(), |first| format!("{first}; {why}"));
    PlannedTensor { fallback: Some(fallback), ..tensor.clone() }
}
