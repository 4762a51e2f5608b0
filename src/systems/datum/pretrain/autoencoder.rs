//! First stage of the pretraining: the autoencoder.

use super::MICRO_BATCH;
use super::config::PretrainConfig;
use crate::base::metrics::Metrics;
use crate::base::{Result, Rng, group};
use crate::data::loader::Loader;
use crate::diffusion::model::Model;
use crate::diffusion::text_to_image::to_tensor;
use crate::models::stable_diffusion::Vae;
use crate::nn::{Builder, resize_bilinear};
use crate::systems::shared::photos::Photos;
use crate::train::checkpoint::Checkpoint;
use crate::train::driver::{Snapshot, Training};
use crate::train::guard::Guard;
use crate::train::optim::{AdamW, AdamWConfig, Group};
use crate::train::schedule::{Schedule, Shape};
use crate::train::stage::Resumable;
use crate::train::{MicroBatches, Numbers};
use candle_core::{Result as TensorResult, Tensor};

/// Trains the autoencoder on random crops.
pub struct Autoencoder<'a> {
    vae: Vae,
    model: &'a Model,
    optimizer: AdamW,
    guard: Guard<'static>,
    schedule: Schedule,
    config: PretrainConfig,
    photos: Photos,
    batches: Option<Loader<Tensor>>,
    micro_batches: MicroBatches,
}

impl<'a> Autoencoder<'a> {
    /// Trains the parameters of `model.vae` in place.
    pub fn new(model: &'a Model, photos: &Photos, config: &PretrainConfig) -> Result<Self> {
        let vae = Vae::new(&model.vae_config, &Builder::from_store(&model.vae))?;
        let settings = AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() };
        Ok(Self {
            vae,
            model,
            optimizer: AdamW::new(vec![Group::all(&model.vae, 1e-4)], settings)?,
            guard: Guard::new(model.vae.weights(), |_| false)?,
            schedule: cosine(config.vae.steps),
            config: config.clone(),
            photos: photos.clone(),
            batches: None,
            micro_batches: MicroBatches::new(config.vae.batch_size, MICRO_BATCH, model.vae.weights())?,
        })
    }

    fn batch(&mut self, step: u64) -> Result<Tensor> {
        let batches = match &mut self.batches {
            Some(batches) => batches,
            None => {
                let (photos, config) = (self.photos.clone(), self.config.clone());
                let make = move |step| crops(&photos, &config, step);
                self.batches.insert(Loader::new(step..self.config.vae.steps, 1, 2, make)?)
            }
        };
        batches.next().unwrap_or_else(|| crops(&self.photos, &self.config, step))
    }
}

/// A cosine from the peak to 0 after 5 % warm-up.
pub fn cosine(steps: u64) -> Schedule {
    Schedule { shape: Shape::Cosine, steps, warmup_steps: steps / 20, ..Schedule::default() }
}

/// The photos of one step: (B, 3, side, side) in −1…1.
fn crops(photos: &Photos, config: &PretrainConfig, step: u64) -> Result<Tensor> {
    let crop = |item: u64| {
        let mut rng = Rng::stream(config.seed, "autoencoder crop", &[step, item]);
        let mut image = photos.random_crop(config.vae.crop, &mut rng)?;
        relight(&mut image.pixels, config.vae.relight, &mut rng);
        Ok(image)
    };
    to_tensor(&group::current().items(config.vae.batch_size as u64).map(crop).collect::<Result<Vec<_>>>()?)
}

/// Changes brightness, contrast, tint and saturation of a share of the crops: the frozen autoencoder has to serve light that
/// the photos do not show, such as dusk, and colours of nearly grey photos would be learned last.
///
/// # Randomness
/// One draw for the choice; then gamma, gain, saturation and three channel gains.
fn relight(pixels: &mut [u8], probability: f32, rng: &mut Rng) {
    if rng.uniform() >= probability {
        return;
    }
    let (gamma, gain, saturation) = (rng.uniform_in(0.7, 1.6), rng.uniform_in(0.2, 1.1), rng.uniform_in(0.5, 2.0));
    let tint = [0; 3].map(|_| rng.uniform_in(0.7, 1.3));
    let curve: [f32; 256] = std::array::from_fn(|level| (level as f32 / 255.0).powf(gamma) * gain);
    for pixel in pixels.chunks_exact_mut(3) {
        let lit = [0, 1, 2].map(|c| curve[usize::from(pixel[c])] * tint[c]);
        let grey = (lit[0] + lit[1] + lit[2]) / 3.0;
        for (value, lit) in pixel.iter_mut().zip(lit) {
            *value = ((grey + saturation * (lit - grey)).clamp(0.0, 1.0) * 255.0).round() as u8;
        }
    }
}

/// The loss of photos (B, 3, H, W) with the noise of their latents (B, C, h, w), and its parts; `halved`: at half the size.
fn losses(vae: &Vae, config: &PretrainConfig, images: &Tensor, noise: &Tensor, halved: bool) -> Result<(Tensor, Numbers)> {
    let moments = vae.encode(images)?;
    let latents = moments.sample(noise)?;
    let (images, latents) = if halved { (half(images)?, half(&latents)?) } else { (images.clone(), latents) };
    let terms = Terms::new(&images, &vae.decode(&latents)?, &moments.mean, &moments.logvar)?;
    let loss = terms.total(config)?;
    let numbers = [("loss", loss.clone()), ("pixel", terms.pixel), ("colour", terms.colour), ("kl", terms.kl)];
    Ok((loss, numbers.map(|(name, number)| (name.into(), number)).into()))
}

impl Training for Autoencoder<'_> {
    fn step(&mut self, step: u64) -> Result<Metrics> {
        let images = self.batch(step)?;
        let (items, _, height, width) = images.dims4()?;
        let (height, width) = self.model.latent_size(height, width)?;
        let mut rng = Rng::stream(self.config.seed, "autoencoder noise", &[step]);
        let noise = rng.normal_items(&[items, self.vae.latent_channels(), height, width], images.device())?;
        let halved = Rng::stream(self.config.seed, "autoencoder scale", &[step]).uniform() < self.config.vae.equivariance;
        let (vae, config) = (&self.vae, &self.config);
        let (gradients, mut metrics) = self.micro_batches.gradients(items, self.optimizer.parameters(), |range| {
            let part = |all: &Tensor| all.narrow(0, range.start, range.len());
            losses(vae, config, &part(&images)?, &part(&noise)?, halved)
        })?;
        let rate = self.schedule.learning_rate(self.config.vae.learning_rate, step);
        let norm = self.optimizer.step(&gradients, rate)?;
        self.guard.after_step(&gradients, rate, self.optimizer.parameters())?;
        metrics.extend([("gradient_norm".into(), norm), ("learning_rate".into(), rate)]);
        Ok(metrics)
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let parts = vec![("weights", self.model.vae.tensors()), ("optimizer", self.optimizer.state()?)];
        Ok(Snapshot { parts, ..Snapshot::default() })
    }
}

impl Resumable for Autoencoder<'_> {
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.model.vae.load(&checkpoint.part("weights")?)?;
        self.optimizer.load_state(&checkpoint.part("optimizer")?)
    }
}

/// The parts of the autoencoder's loss.
struct Terms {
    pixel: Tensor,
    edge: Tensor,
    colour: Tensor,
    kl: Tensor,
}

impl Terms {
    fn new(images: &Tensor, decoded: &Tensor, mean: &Tensor, logvar: &Tensor) -> Result<Self> {
        let error = (decoded - images)?;
        let edge = (slope(&error, 2)?.abs()?.mean_all()? + slope(&error, 3)?.abs()?.mean_all()?)?;
        // Street photos are nearly grey: without a term of their own, colours would be learned last.
        let green = error.narrow(1, 1, 1)?;
        let colour = (error.narrow(1, 0, 1)? - &green)?.abs()?.mean_all()?;
        let colour = (colour + (error.narrow(1, 2, 1)? - &green)?.abs()?.mean_all()?)?;
        let kl = (((mean.sqr()? + logvar.exp()?)? - logvar)? - 1.0)?.mean_all()?.affine(0.5, 0.0)?;
        Ok(Self { pixel: error.abs()?.mean_all()?, edge, colour, kl })
    }

    fn total(&self, config: &PretrainConfig) -> TensorResult<Tensor> {
        let vae = &config.vae;
        let weighted = ((&self.edge * vae.edge_weight)? + (&self.colour * vae.colour_weight)?)?;
        (&self.pixel + weighted)? + (&self.kl * vae.kl_weight)?
    }
}

/// Means of 2×2 pixels: (B, C, H, W) → (B, C, H/2, W/2).
fn half(xs: &Tensor) -> TensorResult<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    resize_bilinear(xs, (height / 2, width / 2), false)
}

/// Differences of neighbours along `dim`.
fn slope(xs: &Tensor, dim: usize) -> TensorResult<Tensor> {
    let length = xs.dim(dim)? - 1;
    xs.narrow(dim, 1, length)? - xs.narrow(dim, 0, length)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn half_takes_means_of_four() {
        let values: Vec<f32> = (0..48).map(|i| ((i * 37) % 23) as f32).collect();
        let xs = Tensor::from_vec(values, (1, 2, 4, 6), &Device::Cpu).unwrap();
        let means = xs.reshape((1, 2, 2, 2, 3, 2)).unwrap().mean((3, 5)).unwrap();
        let error = (half(&xs).unwrap() - means).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(error.to_scalar::<f32>().unwrap() < 1e-5);
    }
}
