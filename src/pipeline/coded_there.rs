//! Codes chosen where the activations are: the stages of [`compress`](super::compress) with weights, statistics and solver on a CUDA
//! device. What comes back is what is written.

use attar_model::device::{Cuda, OnCuda, stored_matrix};
use attar_model::{Norm, while_reading_ahead};
use attar_quant::{DeviceFactor, DeviceGptq, DeviceSolution, Named, Settings};
use attar_tensor::cuda::{Element, Matrix};

use super::compress::{Pass, STAGES, grid_of};
use super::done::{Done, Merged};
use super::on_device::DeviceStream;
use crate::diagnostic::{Explain, Result};
use crate::plan::{PlannedTensor, Treatment};
use crate::source::rows_and_cols;

impl Pass<'_> {
    /// Stage by stage through one block; what is observed nowhere has been written.
    pub(super) fn block_there<T: Element>(
        &self,
        layer: usize,
        (stream, solver): (&mut DeviceStream<T>, DeviceGptq),
        done: &mut Done,
    ) -> Result<()> {
        let OnCuda { cuda, plan } = stream.on().clone();
        stream.enter_next(self.source)?;
        for tap in STAGES {
            let tensors: Vec<_> = self.plan.of_layer(layer).filter(|t| t.spec.tap == Some(tap)).collect();
            let coded = tensors.iter().any(|t| matches!(t.treatment, Treatment::Codes(_)));
            let wanted = coded.then(|| self.source.config.of_layer(layer).tap_features(tap));
            let seen = done.calibrating(|| stream.observe(tap, wanted))?;
            let factor = seen
                .as_ref()
                .map(|seen| DeviceFactor::new(&cuda, seen, Settings::default(), plan.width))
                .transpose()?;
            for tensor in tensors {
                let matrix = match (&tensor.treatment, &factor) {
                    (Treatment::Codes(encoding), Some(factor)) => {
                        self.codes_there(tensor, encoding, (factor, solver), &cuda, done)
                    }
                    (Treatment::Codes(_), None) => unreachable!("what is coded was observed"),
                    (Treatment::Float(_), _) => self.floats_there(tensor, &cuda, done),
                };
                let matrix = matrix.doing(|| format!("while quantizing `{}`", tensor.spec.name))?;
                stream.take(tensor.spec.role, matrix);
            }
        }
        let next = self.plan.first_of(layer + 1);
        done.calibrating(|| while_reading_ahead(next, self.source, || stream.finish()))?;
        Ok(())
    }

    /// A matrix of the running block; what a reader will get stays on the device.
    fn codes_there<T: Element>(
        &self,
        tensor: &PlannedTensor,
        encoding: &Named,
        (factor, solver): (&DeviceFactor<'_>, DeviceGptq),
        cuda: &Cuda,
        done: &mut Done,
    ) -> Result<Matrix<T>> {
        let w = stored_matrix(cuda, &tensor.spec, self.source)?;
        let solution = solver.solve(w.view(), factor, grid_of(encoding)?, &mut |_| Ok(()))?;
        drop(w);
        let DeviceSolution { grid, codes, decoded, facts } = solution;
        done.sink.grid_and_codes(tensor, encoding, (grid, codes), facts.clone())?;
        done.note(tensor, Some(&Merged::from(facts)));
        Ok(decoded)
    }

    /// A matrix of the running block that is kept in floats.
    fn floats_there<T: Element>(
        &self,
        tensor: &PlannedTensor,
        cuda: &Cuda,
        done: &mut Done,
    ) -> Result<Matrix<T>> {
        let Treatment::Float(dtype) = tensor.treatment else { unreachable!("it has no codes") };
        let [rows, cols] = rows_and_cols(&tensor.spec);
        let w = self.load(&tensor.spec)?.into_shape_with_order((rows, cols))?;
        let kept = self.rounded(&tensor.spec, w, dtype)?;
        let there = cuda.upload(kept.view())?;
        done.sink.floats(tensor, dtype, kept.into_raw_vec_and_offset().0)?;
        done.note(tensor, None);
        Ok(there)
    }

    /// A matrix whose input is the normed end of the stream.
    pub(super) fn head_there<T: Element>(
        &self,
        tensor: &PlannedTensor,
        (encoding, norm): (&Named, &Norm),
        (stream, solver): (&mut DeviceStream<T>, DeviceGptq),
        done: &mut Done,
    ) -> Result<()> {
        let OnCuda { cuda, plan } = stream.on().clone();
        let seen = done.calibrating(|| stream.head(norm))?;
        let factor = DeviceFactor::new(&cuda, &seen, Settings::default(), plan.width)?;
        let mut facts = Merged::default();
        self.each_rows(tensor, done, |_, w, done| {
            let there = cuda.upload(w.view())?;
            let solution = solver.solve::<T>(there.view(), &factor, grid_of(encoding)?, &mut |_| Ok(()))?;
            let codes = (solution.grid, solution.codes);
            done.sink.grid_and_codes(tensor, encoding, codes, solution.facts.clone())?;
            facts.add(solution.facts);
            Ok(())
        })?;
        done.note(tensor, Some(&facts));
        Ok(())
    }
}
