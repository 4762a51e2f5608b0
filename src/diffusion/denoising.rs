//! The denoising objective of latent diffusion training: pretraining and DreamBooth share it.

use super::noise_schedule::NoiseSchedule;
use crate::base::Rng;
use crate::base::group::{self, Share};
use crate::models::stable_diffusion::UNet;
use crate::nn::mse;
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How timesteps are drawn, in the words of diffusers' training scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightingScheme {
    /// All alike.
    #[default]
    None,
    /// The logit of their share of all timesteps is normal.
    LogitNormal,
}

/// Which of T timesteps an item of a step gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Timesteps {
    /// Any.
    Uniform,
    /// ⌊T·sigmoid(x)⌋ with normal x.
    ///
    /// # Source
    /// Stable Diffusion 3, section 3.1.
    LogitNormal {
        /// Of x.
        mean: f64,
        /// Of x.
        std: f64,
    },
}

impl Timesteps {
    fn draw(self, count: usize, rng: &mut Rng) -> usize {
        match self {
            Self::Uniform => rng.below(count),
            Self::LogitNormal { mean, std } => {
                let share = 1.0 / (1.0 + (-(mean + std * f64::from(rng.normal()))).exp());
                ((share * count as f64) as usize).min(count - 1)
            }
        }
    }
}

/// Draws of one training step, one item of the batch each, so that they do not depend on the batch size.
#[derive(Debug, Clone)]
pub struct Draws {
    /// Noise (B, 4, h, w).
    pub noise: Tensor,
    /// Timesteps 0 … T−1, one per item.
    pub timesteps: Vec<usize>,
}

impl Draws {
    /// Noise and timesteps for `latents`; item `i` of step `step`, counted over all processes, always gets the same draws.
    ///
    /// # Randomness
    /// Per item: one timestep, then the noise in row-major order.
    pub fn new(latents: &Tensor, kind: Timesteps, train_timesteps: usize, seed: u64, step: u64) -> Result<Self> {
        let (batch, channels, height, width) = latents.dims4()?;
        let mut timesteps = Vec::with_capacity(batch);
        let mut noise = Vec::with_capacity(batch);
        for item in group::current().items(batch as u64) {
            let mut rng = Rng::stream(seed, "denoising", &[step, item]);
            timesteps.push(kind.draw(train_timesteps, &mut rng));
            noise.push(rng.normal_tensor(&[1, channels, height, width], latents.device())?);
        }
        Ok(Self { noise: Tensor::cat(&noise, 0)?, timesteps })
    }

    /// Those of the items of a share.
    pub fn rows(&self, share: &Share) -> Result<Self> {
        Ok(Self { noise: share.rows(&self.noise)?, timesteps: share.items(&self.timesteps) })
    }

    /// Those of some of the items.
    pub fn part(&self, items: Range<usize>) -> Result<Self> {
        Ok(Self { noise: self.noise.narrow(0, items.start, items.len())?, timesteps: self.timesteps[items].to_vec() })
    }
}

/// What the U-Net made of noisy latents, and what it should have made of them.
pub struct Denoised {
    prediction: Tensor,
    target: Tensor,
}

impl Denoised {
    /// Adds the noise, runs the U-Net, and forms the target of the model's prediction type.
    ///
    /// # Shapes
    /// `latents` (B, 4, h, w), `context` (B, T, D)
    ///
    /// # Source
    /// DDPM, equation 14; v-prediction: progressive distillation, section 4.
    pub fn new(unet: &UNet, schedule: &NoiseSchedule, latents: &Tensor, context: &Tensor, draws: &Draws) -> Result<Self> {
        Self::with(schedule, latents, draws, |noisy, timesteps| unet.forward(noisy, timesteps, context))
    }

    /// As [`Self::new`] with the U-Net's part left to `predict(noisy latents, timesteps)`.
    pub fn with(
        schedule: &NoiseSchedule,
        latents: &Tensor,
        draws: &Draws,
        predict: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let noisy = schedule.add_noise(latents, &draws.noise, &draws.timesteps)?;
        let timesteps: Vec<f32> = draws.timesteps.iter().map(|&t| t as f32).collect();
        let timesteps = Tensor::from_vec(timesteps, draws.timesteps.len(), latents.device())?;
        let prediction = predict(&noisy, &timesteps)?;
        let target = schedule.target(latents, &draws.noise, &draws.timesteps)?;
        Ok(Self { prediction, target })
    }

    /// Mean squared error over everything.
    pub fn loss(&self) -> Result<Tensor> {
        mse(&self.prediction, &self.target)
    }

    /// Mean squared error with a weight for every place.
    ///
    /// # Shapes
    /// `weights` (B, 1, h, w)
    pub fn loss_weighted(&self, weights: &Tensor) -> Result<Tensor> {
        let roots = weights.sqrt()?;
        mse(&self.prediction.broadcast_mul(&roots)?, &self.target.broadcast_mul(&roots)?)
    }

    /// DreamBooth with prior preservation: the first half of the batch holds instance items, the second class items.
    ///
    /// # Source
    /// DreamBooth, equation 2: mse(instance) + weight · mse(class).
    pub fn loss_with_prior(&self, weight: f64) -> Result<Tensor> {
        let half = self.prediction.dim(0)? / 2;
        let part = |start| mse(&self.prediction.narrow(0, start, half)?, &self.target.narrow(0, start, half)?);
        part(0)? + (part(half)? * weight)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_count_by_their_weights() {
        let mut rng = Rng::stream(0, "weights", &[]);
        let mut normal = || rng.normal_tensor(&[2, 3, 2, 2], &candle_core::Device::Cpu).unwrap();
        let denoised = Denoised { prediction: normal(), target: normal() };
        let weights: Vec<f32> = vec![1.0, 0.0, 4.0, 1.0, 2.0, 1.0, 1.0, 0.5];
        let value = |loss: Tensor| loss.to_scalar::<f32>().unwrap();
        let weighted = |weights: Vec<f32>| {
            value(denoised.loss_weighted(&Tensor::from_vec(weights, (2, 1, 2, 2), &candle_core::Device::Cpu).unwrap()).unwrap())
        };
        let errors = (&denoised.prediction - &denoised.target).unwrap().sqr().unwrap();
        let errors: Vec<f32> = errors.sum(1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let expected = errors.iter().zip(&weights).map(|(error, weight)| error * weight).sum::<f32>() / 24.0;
        assert!((weighted(weights) - expected).abs() < 1e-5 * expected);
        assert!((weighted(vec![1.0; 8]) - value(denoised.loss().unwrap())).abs() < 1e-6);
    }

    #[test]
    fn timesteps_are_spread_as_asked() {
        let drawn = |kind: Timesteps| -> Vec<usize> {
            let mut rng = Rng::stream(0, "timesteps", &[]);
            (0..4000).map(|_| kind.draw(1000, &mut rng)).collect()
        };
        let below = |drawn: &[usize], bound: usize| drawn.iter().filter(|t| **t < bound).count() as f64 / drawn.len() as f64;
        let uniform = drawn(Timesteps::Uniform);
        assert!((below(&uniform, 300) - 0.3).abs() < 0.03 && uniform.iter().all(|t| *t < 1000));
        // Half lies below sigmoid(mean), 84 % below sigmoid(mean + std).
        let normal = drawn(Timesteps::LogitNormal { mean: -0.5, std: 0.8 });
        assert!((below(&normal, 378) - 0.5).abs() < 0.03, "{}", below(&normal, 378));
        assert!((below(&normal, 574) - 0.841).abs() < 0.03, "{}", below(&normal, 574));
        assert!(drawn(Timesteps::LogitNormal { mean: 60.0, std: 1.0 }).iter().all(|t| *t == 999));
    }
}
