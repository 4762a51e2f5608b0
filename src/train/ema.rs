//! Running averages of parameters.

use crate::base::Result;
use crate::nn::{Kind, ParamStore};

/// Decay of the update number `update` (from 0): min(1 − 1/(update + 1), decay), so that the first update copies.
///
/// # Source
/// Mean teacher, section 3, as DAFormer ramps it.
pub fn ramp(decay: f64, update: u64) -> f64 {
    (1.0 - 1.0 / (update as f64 + 1.0)).min(decay)
}

/// Moves the weights of `average` towards those of `latest`: `w ← decay·w + (1 − decay)·latest`. Buffers stay.
pub fn update(average: &ParamStore, latest: &ParamStore, decay: f64) -> Result<()> {
    for (name, param) in average.iter().filter(|(_, param)| param.kind == Kind::Weight) {
        let Some(latest) = latest.get(name) else { continue };
        let latest = latest.as_detached_tensor();
        match decay > 0.0 {
            true => param.var.set(&((param.var.as_detached_tensor() * decay)? + (latest * (1.0 - decay))?)?)?,
            false => param.var.set(&latest)?,
        }
    }
    Ok(())
}
