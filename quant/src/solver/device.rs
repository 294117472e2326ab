//! The solvers' work on a CUDA device: the same steps on the same numbers. Only codes, scales and facts come back.

use std::sync::OnceLock;

use attar_tensor::cuda::{self, Cuda, CudaError, Damping, Element, Matrix, Rows, Split, Width};
use ndarray::{Array1, Array2};

use super::{Facts, check, share};
use crate::factor::{Damped, Feedback, Refusal};
use crate::{DeviceFit, Error, Factor, Grid, GridEncoding, Settings, Statistics, Sums};

/// [`Statistics`] whose Gram matrix stays on the device.
#[derive(Debug)]
pub struct DeviceStatistics {
    gram: Matrix<f32>, // [in_features, in_features], both triangles
    here: Statistics,  // its diagonal
}

impl DeviceStatistics {
    /// Of a Gram matrix summed over `tokens` on and above its diagonal, `[in_features, in_features]`.
    ///
    /// # Errors
    /// If something asked of the device before has failed.
    pub fn new(cuda: &Cuda, mut gram: Matrix<f32>, tokens: u64) -> Result<Self, CudaError> {
        cuda.mirror(&mut gram)?;
        let squares = Array1::from_vec(cuda.diagonal(gram.view())?);
        Ok(Self { gram, here: Statistics { sums: Sums::Squares(squares), tokens } })
    }

    /// The diagonal alone.
    #[must_use]
    pub fn squares(&self) -> &Statistics {
        &self.here
    }

    /// All of it, on the host.
    ///
    /// # Errors
    /// If something asked of the device before has failed.
    pub fn download(&self, cuda: &Cuda) -> Result<Statistics, CudaError> {
        let sums = Sums::Gram(cuda.download(self.gram.view())?);
        Ok(Statistics { sums, tokens: self.here.tokens })
    }
}

/// A [`Factor`] on the device.
#[derive(Debug)]
pub struct DeviceFactor<'a> {
    cuda: &'a Cuda,
    gram: Rows<'a, f32>,
    split: Split,     // of the Gram matrix
    here: Factor<'a>, // of the diagonal
    width: Width,
    feedback: OnceLock<Result<Feedback<Matrix<f32>>, Refusal>>,
}

impl<'a> DeviceFactor<'a> {
    /// Prepares the statistics of one input; their Hessian will be factored in `width`.
    ///
    /// # Errors
    /// If the device's memory is short.
    pub fn new(
        cuda: &'a Cuda,
        statistics: &'a DeviceStatistics,
        settings: Settings,
        width: Width,
    ) -> Result<Self, CudaError> {
        let (gram, here) = (statistics.gram.view(), Factor::new(&statistics.here, settings));
        Ok(Self { cuda, gram, split: cuda.split(gram)?, here, width, feedback: OnceLock::new() })
    }

    /// Order and triangle, made on the first call.
    ///
    /// # Errors
    /// If the device fails or its memory is short; within, as [`Factor::feedback`].
    fn feedback(&self) -> Result<Result<&Feedback<Matrix<f32>>, &Refusal>, CudaError> {
        if self.feedback.get().is_none() {
            let cuda = self.cuda;
            let made = self.here.factorise_by(
                self.here.together(),
                || cuda.is_finite(self.gram),
                |order, Damped { mean, shrinkage, damping }| {
                    let damping = Damping { mean, shrinkage, damping };
                    match cuda.cholesky_of_inverse(self.gram, &narrow(order), damping, self.width) {
                        Ok(upper) => Ok(cuda.is_finite(upper.view())?.then_some(upper)),
                        Err(CudaError::NotPositiveDefinite { .. }) => Ok(None),
                        Err(error) => Err(error),
                    }
                },
            )?;
            let _ = self.feedback.set(made);
        }
        let made = self.feedback.get().unwrap_or_else(|| unreachable!("it was just set"));
        Ok(made.as_ref())
    }

    /// `tr(X H Xᵀ)` with the Gram matrix for H, the identity where nothing was seen.
    fn energy(&self, x: Rows<'_, f32>) -> Result<f64, CudaError> {
        match self.here.importance() {
            Some(_) => self.cuda.energy(x, &self.split),
            None => self.cuda.sum_of_squares(x),
        }
    }
}

fn narrow(order: &[usize]) -> Vec<u32> {
    order.iter().map(|&col| col as u32).collect()
}

/// The parts of a solver's work, each told when it has been asked of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The factor of the Hessian, for the first weight that needs it.
    Factor,
    /// The search for scales.
    Search,
    /// The pass of error feedback.
    Pass,
    /// Coordinate descent.
    Descent,
    /// What it cost.
    Facts,
    /// Codes on their way to the host.
    Codes,
}

/// A weight matrix solved on the device.
#[derive(Debug)]
pub struct DeviceSolution<T> {
    /// The values that could be chosen.
    pub grid: Grid,
    /// The choice, `[out_features, in_features]`.
    pub codes: Array2<u8>,
    /// What the reader of the file will get, rounded to its elements, on the device: `[out_features, in_features]`.
    pub decoded: Matrix<T>,
    /// What it cost.
    pub facts: Facts,
}

/// [`Gptq`](super::Gptq) on a device, without refits: its codes but for ties, where sums of another order decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceGptq {
    /// As [`Gptq::sweeps`](super::Gptq::sweeps).
    pub sweeps: u32,
}

/// Codes on a grid, and what they lose.
struct Candidate {
    fit: DeviceFit,
    relative_error: f64,
}

impl DeviceGptq {
    /// Codes for w, `[out_features, in_features]` on the device, on the grid `encoding` offers it; `done` hears of every step.
    ///
    /// # Errors
    /// As [`Solver::solve`](super::Solver::solve); if the device fails or its memory is short, and those of `done`.
    pub fn solve<T: Element>(
        self,
        w: Rows<'_, f32>,
        factor: &DeviceFactor<'_>,
        encoding: &dyn GridEncoding,
        done: &mut dyn FnMut(Step) -> Result<(), CudaError>,
    ) -> Result<DeviceSolution<T>, Error> {
        let cuda = factor.cuda;
        check_there(w, factor, encoding)?;
        let energy = factor.energy(w)?;
        let judge = |fit: DeviceFit| -> Result<Candidate, CudaError> {
            let errors = cuda.rounding_errors(w, fit.codes.view(), &fit.there)?;
            Ok(Candidate { fit, relative_error: share(factor.energy(errors.view())?, energy) })
        };
        done(Step::Facts)?;
        let rtn = encoding.search_there(cuda, w, factor.here.importance())?;
        done(Step::Search)?;
        let rtn = judge(rtn)?;
        done(Step::Facts)?;
        let facts = Facts::plain(Some(&factor.here), energy, rtn.relative_error);
        let feedback = factor.feedback()?;
        done(Step::Factor)?;
        let (chosen, facts) = match feedback {
            Err(refusal) => (rtn, facts.without(refusal)),
            Ok(feedback) => {
                let facts = facts.after(feedback);
                let fit = self.fed_back(w, (factor, feedback), (encoding, &rtn.fit), done)?;
                let found = judge(fit)?;
                done(Step::Facts)?;
                let relative_error = found.relative_error;
                if relative_error > rtn.relative_error {
                    (rtn, facts.in_vain(relative_error))
                } else {
                    (found, Facts { relative_error, ..facts })
                }
            }
        };
        let DeviceFit { grid, there, codes } = chosen.fit;
        let decoded = cuda.decode(codes.view(), &there)?;
        let codes = cuda.download_items(codes.view())?;
        done(Step::Codes)?;
        let codes =
            Array2::from_shape_vec(w.dim(), codes).unwrap_or_else(|_| unreachable!("one code per weight"));
        Ok(DeviceSolution { grid, codes, decoded, facts })
    }

    /// The pass and the descent, on a grid of their own where some input is next to nothing.
    fn fed_back(
        self,
        w: Rows<'_, f32>,
        (factor, feedback): (&DeviceFactor<'_>, &Feedback<Matrix<f32>>),
        (encoding, rtn): (&dyn GridEncoding, &DeviceFit),
        done: &mut dyn FnMut(Step) -> Result<(), CudaError>,
    ) -> Result<DeviceFit, CudaError> {
        let cuda = factor.cuda;
        let (grid, there) = match factor.here.floored_importance() {
            Some(importance) => {
                let fit = encoding.search_there(cuda, w, Some(&importance))?;
                (fit.grid, fit.there)
            }
            None => (rtn.grid.clone(), rtn.grid.upload(cuda)?),
        };
        done(Step::Search)?;
        let pass = cuda.round_with_feedback(w, &narrow(&feedback.order), feedback.upper.view(), &there)?;
        done(Step::Pass)?;
        let mut codes = pass.codes;
        let (scale, diagonal) = factor.here.scale_and_diagonal(feedback);
        let diagonal = cuda.vector(&diagonal.to_vec())?;
        let metric =
            cuda::Metric { gram: factor.gram, split: &factor.split, scale, diagonal: diagonal.view() };
        cuda.descend(w, &mut codes, metric, &there, self.sweeps)?;
        done(Step::Descent)?;
        Ok(DeviceFit { grid, there, codes })
    }
}

/// [`check`] of a matrix on the device, which comes back only to be complained of.
fn check_there(
    w: Rows<'_, f32>,
    factor: &DeviceFactor<'_>,
    encoding: &dyn GridEncoding,
) -> Result<(), Error> {
    let (cuda, here) = (factor.cuda, &factor.here);
    let nothing = Array2::zeros((0, w.dim().1));
    check(nothing.view(), Some(here), encoding)?;
    if cuda.is_finite(w)? {
        return Ok(());
    }
    check(cuda.download(w)?.view(), Some(here), encoding)
}
