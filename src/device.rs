//! Which device computes: found before any work, and told.

use std::fmt;
use std::str::FromStr;

use attar_model::device::{self, Course, Cuda, DevicePlace, OnCuda, TrainingPlan, Work};
use attar_model::{Device, ModelConfig};

use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::pupil::Desk;
use crate::talk::{Talk, human_bytes};

/// What was asked for with `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceArg {
    /// The first CUDA device that can do it, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// This CUDA device.
    Cuda(usize),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some("0"),
            other => other.strip_prefix("cuda:"),
        };
        let number = number.and_then(|number| number.parse::<u16>().ok());
        number.map(|number| Self::Cuda(number.into())).ok_or_else(|| {
            "devices are auto, cpu and cuda, or cuda:N for the N-th from 0\n  hint: --device auto takes a GPU where it can"
                .to_owned()
        })
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Whether the processor may do what a CUDA device cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Otherwise {
    Processor,
    Refuse,
}

/// What computes: the processor, or a CUDA device beside it.
#[derive(Clone, Debug)]
pub struct Computer {
    cuda: Option<Cuda>,
    otherwise: Otherwise,
    talk: Option<Talk>,
}

impl Computer {
    /// The processor alone.
    pub fn cpu() -> Self {
        Self { cuda: None, otherwise: Otherwise::Processor, talk: None }
    }

    /// Whether there is a device beside the processor.
    pub fn has_device(&self) -> bool {
        self.cuda.is_some()
    }

    /// A device that must do it.
    pub fn over(cuda: Cuda) -> Self {
        Self { cuda: Some(cuda), otherwise: Otherwise::Refuse, talk: None }
    }

    /// Opens what was asked for, with at most `max_bytes` of its memory, for models of these shapes. Those who asked for more talk
    /// hear what `auto` has chosen, and why.
    ///
    /// # Errors
    /// A CUDA device that was named and is not there, cannot be used, or does not run one of the models.
    pub fn find(
        asked: DeviceArg,
        max_bytes: Option<u64>,
        models: &[&ModelConfig],
        talk: Talk,
    ) -> Result<Self> {
        let open = |number| -> Result<Cuda> {
            models.iter().try_for_each(|config| device::check(config))?;
            Ok(Cuda::open(number, max_bytes)?)
        };
        match asked {
            DeviceArg::Cpu => Ok(Self::cpu()),
            DeviceArg::Cuda(number) => {
                let cuda = open(number).doing(|| format!("while preparing --device {asked}"))?;
                Ok(Self::over(cuda))
            }
            DeviceArg::Auto => {
                let cuda = match open(0) {
                    Ok(cuda) => Some(cuda),
                    Err(why) => {
                        talk.detail(&format!("device: cpu, since {}", why.cause()));
                        None
                    }
                };
                if let Some(cuda) = &cuda {
                    talk.detail(&format!("device: {}", cuda.facts().name));
                }
                Ok(Self { cuda, otherwise: Otherwise::Processor, talk: Some(talk) })
            }
        }
    }

    /// The processor, for a reason that speaks against a device.
    ///
    /// # Errors
    /// The reason, where a device was named.
    pub fn without_device(self, reason: Failure) -> Result<Self> {
        if self.cuda.is_none() {
            return Ok(self);
        }
        Ok(Self { cuda: self.refused(reason)?, ..self })
    }

    /// No device, which is told; where one was named, the reason is an error.
    fn refused<T>(&self, reason: Failure) -> Result<Option<T>> {
        if self.otherwise == Otherwise::Refuse {
            return Err(reason);
        }
        if let Some(talk) = self.talk {
            talk.detail(&format!("device: cpu, since {}", reason.cause()));
        }
        Ok(None)
    }

    /// Where a student learns: on the device if it fits there, or none.
    ///
    /// # Errors
    /// A device that was named and has too little memory.
    pub fn desk(&self, course: Course) -> Result<Option<Desk>> {
        let Some(cuda) = &self.cuda else { return Ok(None) };
        match TrainingPlan::within(cuda.limit_bytes(), course) {
            Ok(plan) => Ok(Some(Desk { cuda: cuda.clone(), plan })),
            Err(error) => {
                let reason = Err(error).doing(|| format!("while planning for {}", cuda.facts().name));
                reason.or_else(|reason| self.refused(reason))
            }
        }
    }

    /// Where the work of one model is done.
    ///
    /// # Errors
    /// A device that was named and has too little memory.
    pub fn plan(&self, config: &ModelConfig, work: Work) -> Result<Device> {
        let Some(cuda) = &self.cuda else { return Ok(Device::Cpu) };
        match (OnCuda::plan(cuda, config, work), self.otherwise) {
            (Ok(on), _) => Ok(Device::Cuda(on)),
            (Err(error), Otherwise::Refuse) => {
                Err(error).doing(|| format!("while planning for {}", cuda.facts().name))
            }
            (Err(error), Otherwise::Processor) => {
                self.refused::<Device>(error.into()).map(|device| device.unwrap_or(Device::Cpu))
            }
        }
    }
}

/// What a report calls a CUDA device.
pub fn name_of(cuda: &Cuda) -> String {
    format!("cuda, {}", cuda.facts().name)
}

/// What a report says computed.
pub fn name<'a>(devices: impl IntoIterator<Item = &'a Device>) -> String {
    let cuda = devices.into_iter().find_map(|device| match device {
        Device::Cpu => None,
        Device::Cuda(on) => Some(name_of(&on.cuda)),
    });
    cuda.unwrap_or_else(|| "cpu".to_owned())
}

/// The lines of a plan that say what computes.
pub struct Lines<'a>(pub &'a Device);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Device::Cuda(OnCuda { cuda, plan }) = self.0 else { return writeln!(f, "device: cpu") };
        let facts = cuda.facts();
        writeln!(
            f,
            "device: {}, {} of its {} to be used, {} expected",
            facts.name,
            human_bytes(cuda.limit_bytes()),
            human_bytes(facts.memory_bytes),
            human_bytes(plan.peak_bytes())
        )?;
        let hidden = match plan.hidden {
            DevicePlace::Device => "stay there",
            DevicePlace::Host => "come and go",
        };
        let windows = match plan.windows_at_once {
            1 => "one window".to_owned(),
            many => format!("{many} windows"),
        };
        writeln!(f, "on the device: {windows} at once; hidden states {hidden}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_as_the_help_says_and_nothing_else_is_one() {
        for (text, asked) in [
            ("auto", DeviceArg::Auto),
            ("cpu", DeviceArg::Cpu),
            ("cuda", DeviceArg::Cuda(0)),
            ("cuda:3", DeviceArg::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(asked));
        }
        for text in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cuda:99999999999999999999", ""] {
            assert!(text.parse::<DeviceArg>().is_err(), "{text}");
        }
    }
}
