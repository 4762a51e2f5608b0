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
        #[cfg(feature = "cuda")]
        if param.var.device().is_cuda() {
            crate::nn::cuda::running_average(&param.var, &latest, decay)?;
            continue;
        }
        match decay > 0.0 {
            true => param.var.set(&((param.var.as_detached_tensor() * decay)? + (latest * (1.0 - decay))?)?)?,
            false => param.var.set(&latest)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Init};

    #[test]
    fn the_decay_ramps_up() {
        let ramp_up = [(0, 0.0), (1, 0.5), (2, 2.0 / 3.0), (9, 0.9), (99, 0.99), (999, 0.999), (40_000, 0.999)];
        for (update, expected) in ramp_up {
            assert!((ramp(0.999, update) - expected).abs() < 1e-12, "update {update}");
        }
    }

    #[test]
    fn weights_move_and_buffers_stay() {
        let build = |init| {
            let builder = Builder::random(0);
            builder.get(&[2], "w", init).unwrap();
            builder.buffer(&[2], "b", init).unwrap();
            builder.finish().unwrap()
        };
        let (average, latest) = (build(Init::Zeros), build(Init::Ones));
        update(&average, &latest, 0.75).unwrap();
        assert_eq!(average.get("w").unwrap().to_vec1::<f32>().unwrap(), [0.25, 0.25]);
        assert_eq!(average.get("b").unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0]);
    }
}
