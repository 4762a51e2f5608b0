//! Running averages of parameters.

use super::gradients::{CHUNK, contiguous, values_mut};
use crate::base::Result;
use crate::nn::{Kind, ParamStore, vectorised};
use candle_core::{CpuStorage, InplaceOp2, Layout, Result as TensorResult};
use rayon::prelude::*;

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
            true => param.var.inplace_op2(&latest.contiguous()?, &Towards { keep: decay as f32, take: (1.0 - decay) as f32 })?,
            false => param.var.set(&latest)?,
        }
    }
    Ok(())
}

/// One pass over both: the same bits as products and sum of tensors, without a tensor for each.
struct Towards {
    keep: f32,
    take: f32,
}

vectorised! {
    fn mix(average: &mut [f32], latest: &[f32], keep: f32, take: f32) {
        for (average, latest) in average.iter_mut().zip(latest) {
            *average = *average * keep + *latest * take;
        }
    }
}

impl InplaceOp2 for Towards {
    fn name(&self) -> &'static str {
        "running average"
    }

    fn cpu_fwd(&self, average: &mut CpuStorage, layout: &Layout, latest: &CpuStorage, of_latest: &Layout) -> TensorResult<()> {
        let (start, end) = contiguous(of_latest)?;
        let average = values_mut(average, layout)?.par_chunks_mut(CHUNK);
        let latest = latest.as_slice::<f32>()?[start..end].par_chunks(CHUNK);
        average.zip(latest).for_each(|(average, latest)| mix(average, latest, self.keep, self.take));
        Ok(())
    }
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

    #[test]
    fn one_pass_has_the_bits_of_products_and_a_sum() {
        let draw = |seed| {
            let builder = Builder::random(seed);
            builder.get(&[3, 20_001], "w", Init::Normal { std: 1.0 }).unwrap();
            builder.finish().unwrap()
        };
        let (average, latest) = (draw(1), draw(2));
        let before = average.get("w").unwrap().copy().unwrap();
        let after = latest.get("w").unwrap().as_detached_tensor();
        let expected = ((before * 0.99).unwrap() + (after * (1.0 - 0.99)).unwrap()).unwrap();
        update(&average, &latest, 0.99).unwrap();
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(average.get("w").unwrap()), values(&expected));
    }
}
