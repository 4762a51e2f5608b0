//! Learning-rate schedules.

use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};

/// The shape of a schedule, under the names recipes use. The first six are diffusers', `poly` is mmcv's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Always the base rate; warm-up is ignored.
    #[default]
    Constant,
    /// Rises linearly, then stays.
    ConstantWithWarmup,
    /// Rises linearly, then falls linearly to 0.
    Linear,
    /// Rises linearly, then falls to 0 along half a cosine.
    Cosine,
    /// Rises linearly, then falls along half a cosine [`Schedule::cycles`] times.
    CosineWithRestarts,
    /// Rises linearly, then falls as (1 − q)^[`Schedule::power`] to the absolute rate 1e-7.
    Polynomial,
    /// Falls as (1 − s/N)^[`Schedule::power`] to 0 from the start; meanwhile a factor rises linearly from 1e-6 to 1.
    Poly,
}

/// A learning rate for every step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// How the rate goes.
    pub shape: Shape,
    /// Length of the whole training, warm-up included: N.
    pub steps: u64,
    /// Length of the warm-up: w.
    pub warmup_steps: u64,
    /// Number of cosine cycles of `cosine_with_restarts`.
    pub cycles: u32,
    /// Exponent of `polynomial` and `poly`.
    pub power: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { shape: Shape::Constant, steps: 1000, warmup_steps: 0, cycles: 1, power: 1.0 }
    }
}

/// Where `polynomial` ends, as an absolute learning rate.
const POLYNOMIAL_END: f64 = 1e-7;
/// Where the warm-up of `poly` starts, as a share of the rate.
const POLY_WARMUP_RATIO: f64 = 1e-6;

impl Schedule {
    /// # Errors
    /// A length of zero, or values no shape can use.
    pub fn validate(&self) -> Result<()> {
        if self.steps == 0 || !(self.power > 0.0) || self.cycles == 0 {
            return Err(Error::Usage(format!(
                "schedule: `steps` ({}), `cycles` ({}) and `power` ({}) must be greater than 0",
                self.steps, self.cycles, self.power
            )));
        }
        Ok(())
    }

    /// The learning rate of the step with number `step` (from 0) when the base rate is `base`.
    ///
    /// # Source
    /// `diffusers.optimization` for its six shapes; mmcv's `poly` policy with linear warm-up, as DAFormer uses it, for
    /// [`Shape::Poly`]: base · (1 − s/N)^power · (1 − (1 − s/w)(1 − 1e-6) while s < w).
    pub fn learning_rate(&self, base: f64, step: u64) -> f64 {
        let (s, w, n) = (step as f64, self.warmup_steps as f64, self.steps as f64);
        if self.shape == Shape::Poly {
            let warmup = if step < self.warmup_steps { 1.0 - (1.0 - s / w) * (1.0 - POLY_WARMUP_RATIO) } else { 1.0 };
            return base * (1.0 - s / n).max(0.0).powf(self.power) * warmup;
        }
        if step < self.warmup_steps && self.shape != Shape::Constant {
            return base * s / w;
        }
        let done = (s - w) / (n - w).max(1.0);
        let cosine = |turns: f64| (0.5 * (1.0 + (std::f64::consts::PI * turns).cos())).max(0.0);
        base * match self.shape {
            Shape::Constant | Shape::ConstantWithWarmup | Shape::Poly => 1.0,
            Shape::Linear => ((n - s) / (n - w).max(1.0)).max(0.0),
            Shape::Cosine => cosine(done),
            Shape::CosineWithRestarts if done >= 1.0 => 0.0,
            Shape::CosineWithRestarts => cosine((f64::from(self.cycles) * done) % 1.0),
            Shape::Polynomial if step > self.steps => POLYNOMIAL_END / base,
            Shape::Polynomial => ((base - POLYNOMIAL_END) * (1.0 - done).powf(self.power) + POLYNOMIAL_END) / base,
        }
    }
}
