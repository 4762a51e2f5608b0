//! The denoising objective of latent diffusion training: pretraining and DreamBooth share it.

use super::noise_schedule::NoiseSchedule;
use crate::base::{Rng, group};
use crate::models::stable_diffusion::UNet;
use crate::nn::mse;
use candle_core::{Result, Tensor};

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
    pub fn new(latents: &Tensor, train_timesteps: usize, seed: u64, step: u64) -> Result<Self> {
        let (batch, channels, height, width) = latents.dims4()?;
        let mut timesteps = Vec::with_capacity(batch);
        let mut noise = Vec::with_capacity(batch);
        for item in group::current().items(batch as u64) {
            let mut rng = Rng::stream(seed, "denoising", &[step, item]);
            timesteps.push(rng.below(train_timesteps));
            noise.push(rng.normal_tensor(&[1, channels, height, width], latents.device())?);
        }
        Ok(Self { noise: Tensor::cat(&noise, 0)?, timesteps })
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
