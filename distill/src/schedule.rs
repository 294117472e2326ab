//! How far each step goes.

/// How the learning rate falls after its peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decay {
    /// Not at all.
    Constant,
    /// As half a cosine, to the floor at the last step.
    Cosine,
    /// Not at all until the last share of the steps, in which it falls on a straight line to the floor: warm-up, stable, decay.
    ///
    /// # Source
    /// Hu et al., "`MiniCPM`", arXiv:2404.06395, section 4, with a straight line for the last part.
    Wsd {
        /// The share of all steps in which it falls, 0 to 1.
        share: f64,
    },
}

/// Learning rates by step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// The rate at the end as a share of the highest.
    pub floor: f64,
    /// Steps in which it rises on a straight line to the highest.
    pub warmup_steps: u64,
    /// All steps.
    pub steps: u64,
    /// How it falls.
    pub decay: Decay,
}

impl Schedule {
    /// The rate of a step, the first being 1. After the last it stays at the floor.
    pub fn rate(&self, step: u64) -> f32 {
        let step = step.min(self.steps);
        if step <= self.warmup_steps {
            return (self.peak * step as f64 / self.warmup_steps as f64) as f32;
        }
        let falling_from = match self.decay {
            Decay::Constant => self.steps,
            Decay::Cosine => self.warmup_steps,
            Decay::Wsd { share } => self.warmup_steps.max(((1.0 - share) * self.steps as f64).round() as u64),
        };
        let done = match (step - falling_from.min(step), self.steps - falling_from.min(self.steps)) {
            (0, _) | (_, 0) => 0.0,
            (fallen, all) => fallen as f64 / all as f64,
        };
        let above_floor = match self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine => f64::midpoint(1.0, (std::f64::consts::PI * done).cos()),
            Decay::Wsd { .. } => 1.0 - done,
        };
        (self.peak * (self.floor + (1.0 - self.floor) * above_floor)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { peak: 1e-3, floor: 0.1, warmup_steps: 10, steps: 110, decay }
    }

    #[test]
    fn a_schedule_rises_stays_and_falls() {
        let rates = |decay, steps: [u64; 5], expected: [f32; 5]| {
            for (step, expected) in steps.into_iter().zip(expected) {
                let found = schedule(decay).rate(step);
                assert!((found - expected).abs() < 1e-9, "{decay:?}, step {step}: {found}, not {expected}");
            }
        };
        rates(Decay::Constant, [1, 5, 10, 60, 110], [1e-4, 5e-4, 1e-3, 1e-3, 1e-3]);
        rates(Decay::Cosine, [1, 10, 60, 110, 500], [1e-4, 1e-3, 5.5e-4, 1e-4, 1e-4]);
        rates(Decay::Wsd { share: 0.5 }, [5, 10, 55, 110, 111], [5e-4, 1e-3, 1e-3, 1e-4, 1e-4]);
    }

    proptest! {
        #[test]
        fn rates_are_never_above_the_peak_nor_after_warm_up_below_the_floor_and_never_rise_again(
            warmup_steps in 0u64..20, more in 1u64..50, share in 0.0..=1.0f64, kind in 0usize..3,
        ) {
            let decay = [Decay::Constant, Decay::Cosine, Decay::Wsd { share }][kind];
            let schedule = Schedule { warmup_steps, steps: warmup_steps + more, ..schedule(decay) };
            let rates: Vec<f32> = (1..=schedule.steps + 3).map(|step| schedule.rate(step)).collect();
            prop_assert!(rates.iter().all(|rate| *rate > 0.0 && *rate <= 1e-3));
            let after = &rates[warmup_steps as usize..];
            prop_assert!(after.iter().all(|rate| *rate >= 0.999e-4));
            prop_assert!(after.windows(2).all(|pair| pair[1] <= pair[0]));
        }
    }
}
