//! Which training timesteps a sampler visits.

use super::SamplerKind;
use crate::diffusion::noise_schedule::{NoiseConfig, TimestepSpacing};

/// The spacing of the config, else the habit of the method.
pub(super) fn of(kind: SamplerKind, config: &NoiseConfig) -> TimestepSpacing {
    config.timestep_spacing.unwrap_or(match kind {
        SamplerKind::Pndm | SamplerKind::Ddim | SamplerKind::Ddpm => TimestepSpacing::Leading,
        SamplerKind::Euler | SamplerKind::DpmSolver2M => TimestepSpacing::Linspace,
    })
}

/// The timesteps of `steps` steps out of `total`, highest first. Rounding follows numpy (half to even).
pub(super) fn timesteps(kind: SamplerKind, config: &NoiseConfig, total: usize, steps: usize) -> Vec<f64> {
    // DPM++ leaves out the lowest of n + 1 timesteps.
    let count = if kind == SamplerKind::DpmSolver2M { steps + 1 } else { steps };
    let mut timesteps: Vec<f64> = match of(kind, config) {
        TimestepSpacing::Leading => (0..count).rev().map(|i| (i * (total / count) + config.steps_offset) as f64).collect(),
        TimestepSpacing::Linspace => {
            let last = (total - 1) as f64;
            let even = (0..count).rev().map(|i| if count == 1 { 0.0 } else { last * i as f64 / (count - 1) as f64 });
            even.map(|t| if kind == SamplerKind::Euler { f64::from(t as f32) } else { t.round_ties_even() }).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = total as f64 / steps as f64;
            (0..steps).map(|i| (total as f64 - i as f64 * stride).round_ties_even() - 1.0).collect()
        }
    };
    timesteps.truncate(steps);
    if kind == SamplerKind::Pndm && steps > 1 {
        timesteps.insert(1, timesteps[1]);
    }
    timesteps
}

/// Linear interpolation of `values` at a fractional index within its range.
pub(super) fn interpolate(values: &[f64], at: f64) -> f64 {
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    values[below] + (values[above] - values[below]) * (at - at.floor())
}
