//! Between the two stages: the latents get mean 0 and variance 1, channel by channel.
//!
//! A diffusion model adds the same noise to every channel. Latents of this autoencoder differ tenfold in size (brightness
//! against colour and detail), so that one factor for all, as in Latent Diffusion, would leave the small ones below the noise
//! at most timesteps. The change of scale goes into the convolutions next to the latents: the file stays an
//! `AutoencoderKL` with a scaling factor of 1.

use crate::base::{Error, Result, Rng};
use crate::diffusion::model::Model;
use crate::diffusion::text_to_image::to_tensor;
use crate::nn::ParamStore;
use crate::systems::shared::photos::Photos;
use candle_core::{Tensor, Var};

/// Photos that the latents are measured on.
const MEASURED: usize = 128;

/// Measures the latents of the photos and rewrites the autoencoder so that they have mean 0 and variance 1.
///
/// # Source
/// Latent Diffusion, section D.1, for each channel.
pub fn standardise(model: &mut Model, photos: &Photos, seed: u64) -> Result<()> {
    let moments = measure(model, photos, seed)?;
    rescale(&model.vae, &moments)?;
    model.vae_config.scaling_factor = 1.0;
    Ok(())
}

/// Mean and standard deviation of a channel.
type Spread = (f64, f64);

fn measure(model: &Model, photos: &Photos, seed: u64) -> Result<Vec<Spread>> {
    let vae = model.frozen_vae()?;
    let mut sums = vec![(0f64, 0f64, 0f64); vae.latent_channels()];
    for index in 0..photos.len().min(MEASURED) {
        let moments = vae.encode(&to_tensor(&[photos.whole(index, false)?])?)?;
        let mut rng = Rng::stream(seed, "latent scale", &[index as u64]);
        let sample = moments.sample(&rng.normal_tensor(moments.mean.dims(), moments.mean.device())?)?;
        for (values, (sum, squares, count)) in sample.squeeze(0)?.flatten_from(1)?.to_vec2::<f32>()?.iter().zip(&mut sums) {
            *sum += values.iter().map(|v| f64::from(*v)).sum::<f64>();
            *squares += values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            *count += values.len() as f64;
        }
    }
    let spread = |&(sum, squares, count): &(f64, f64, f64)| {
        let mean = sum / count;
        (mean, (squares / count - mean * mean).max(1e-12).sqrt())
    };
    Ok(sums.iter().map(spread).collect())
}

/// Encoder: mean − m over s, and log s² off the logarithm of the variance. Decoder: the inverse.
fn rescale(vae: &ParamStore, moments: &[Spread]) -> Result<()> {
    let channels = moments.len();
    let (weight, bias) = (tensor(vae, "quant_conv.weight")?, tensor(vae, "quant_conv.bias")?);
    let row = |values: Vec<f64>| Tensor::from_iter(values.into_iter().map(|v| v as f32), weight.device());
    let ones = std::iter::repeat_n(1.0, channels);
    let factors = row(moments.iter().map(|(_, std)| 1.0 / std).chain(ones).collect())?;
    let shift = moments.iter().map(|(mean, std)| -mean / std).chain(moments.iter().map(|(_, std)| -2.0 * std.ln()));
    let shift = row(shift.collect())?;
    weight.set(&weight.broadcast_mul(&factors.reshape((2 * channels, 1, 1, 1))?)?)?;
    bias.set(&((bias.as_tensor() * factors)? + shift)?)?;

    let (weight, bias) = (tensor(vae, "post_quant_conv.weight")?, tensor(vae, "post_quant_conv.bias")?);
    let means = row(moments.iter().map(|(mean, _)| *mean).collect())?.reshape((channels, 1))?;
    let stds = row(moments.iter().map(|(_, std)| *std).collect())?.reshape((1, channels, 1, 1))?;
    let offset = weight.reshape((channels, channels))?.matmul(&means)?.squeeze(1)?;
    bias.set(&(bias.as_tensor() + offset)?)?;
    weight.set(&weight.broadcast_mul(&stds)?)?;
    Ok(())
}

fn tensor<'a>(vae: &'a ParamStore, name: &str) -> Result<&'a Var> {
    vae.get(name).ok_or_else(|| Error::Usage(format!("the autoencoder has no tensor {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::stable_diffusion::{Vae, VaeConfig};
    use crate::nn::Builder;
    use candle_core::Device;

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn new_scales_change_the_latents_and_not_the_pictures() {
        let config = VaeConfig {
            block_out_channels: vec![16, 16],
            down_block_types: vec!["DownEncoderBlock2D".into(); 2],
            up_block_types: vec!["UpDecoderBlock2D".into(); 2],
            norm_num_groups: 4,
            ..VaeConfig::default()
        };
        let builder = Builder::random(1);
        let vae = Vae::new(&config, &builder).unwrap();
        let store = builder.finish().unwrap();
        let mut rng = Rng::stream(0, "test", &[]);
        let images = rng.normal_tensor(&[1, 3, 16, 24], &Device::Cpu).unwrap();
        let noise = rng.normal_tensor(&[1, 4, 8, 12], &Device::Cpu).unwrap();
        let before = vae.encode(&images).unwrap().sample(&noise).unwrap().detach();
        let picture = vae.decode(&before).unwrap().detach();
        let moments = [(0.5, 2.0), (-0.1, 0.25), (0.0, 1.0), (3.0, 0.5)];
        rescale(&store, &moments).unwrap();
        let after = vae.encode(&images).unwrap().sample(&noise).unwrap();
        for (channel, (mean, std)) in moments.into_iter().enumerate() {
            let expected = ((before.narrow(1, channel, 1).unwrap() - mean).unwrap() / std).unwrap();
            assert!(worst(&after.narrow(1, channel, 1).unwrap(), &expected) < 1e-5);
        }
        assert!(worst(&vae.decode(&after).unwrap(), &picture) < 1e-4);
    }
}
