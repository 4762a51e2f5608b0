//! Second stage of the pretraining: the U-Net and the text encoder.

use super::MICRO_BATCH;
use super::autoencoder::cosine;
use super::config::PretrainConfig;
use super::label_head::LabelHead;
use crate::base::metrics::Metrics;
use crate::base::{Result, Rng, device, group};
use crate::diffusion::denoising::{Denoised, Draws};
use crate::diffusion::model::Model;
use crate::diffusion::noise_schedule::NoiseSchedule;
use crate::diffusion::text_to_image::{to_tensor, token_ids};
use crate::labels::{IGNORE, LabelMap};
use crate::models::stable_diffusion::{Moments, TextEncoder, UNet, Vae};
use crate::nn::{Builder, ParamStore};
use crate::systems::shared::photos::Photos;
use crate::train::checkpoint::Checkpoint;
use crate::train::driver::{Snapshot, Training};
use crate::train::guard::Guard;
use crate::train::optim::{AdamW, AdamWConfig, Group};
use crate::train::schedule::Schedule;
use crate::train::stage::Resumable;
use crate::train::{MicroBatches, Numbers, ema};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Trains U-Net and text encoder together on the latents of whole photos.
pub struct Denoiser<'a> {
    networks: Networks<'a>,
    vae: Vae,
    /// Trained parameters, `unet.…`, `text_encoder.…` and `label_head.…`.
    parameters: ParamStore,
    /// Their running average, which is kept in the end.
    average: ParamStore,
    optimizer: AdamW,
    guard: Guard<'static>,
    schedule: Schedule,
    config: PretrainConfig,
    photos: &'a Photos,
    /// Posterior moments by (photo, mirrored): the autoencoder is frozen now.
    encoded: BTreeMap<(usize, bool), Moments>,
    micro_batches: MicroBatches,
}

impl<'a> Denoiser<'a> {
    /// Trains the parameters of `model.unet` and `model.text` in place.
    pub fn new(model: &'a Model, photos: &'a Photos, config: &PretrainConfig) -> Result<Self> {
        let mut parameters = model.unet.prefixed("unet");
        parameters.merge(&model.text.prefixed("text_encoder"));
        let label_head = label_head(model, config, &mut parameters)?;
        let settings = AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() };
        // Words that no caption holds have no gradient in single steps; position and token tables are sparse by nature.
        let sparse = |name: &str| name.contains("embeddings");
        let networks = Networks {
            model,
            unet: UNet::new(&model.unet_config, &Builder::from_store(&model.unet))?,
            text: TextEncoder::new(&model.text_config, &Builder::from_store(&model.text))?,
            label_head,
            label_weight: config.unet.label_weight,
            class_weights: if config.labels.is_empty() { Vec::new() } else { config.unet.class_weights.clone() },
            noise_levels: model.schedule()?,
            photos,
        };
        Ok(Self {
            networks,
            vae: model.frozen_vae()?,
            average: parameters.copied()?,
            optimizer: AdamW::new(vec![Group::all(&parameters, 1e-2)], settings)?,
            guard: Guard::new(parameters.weights(), sparse)?,
            micro_batches: MicroBatches::new(config.unet.batch_size, MICRO_BATCH, parameters.weights())?,
            parameters,
            schedule: cosine(config.unet.steps),
            config: config.clone(),
            photos,
            encoded: BTreeMap::new(),
        })
    }

    /// Leaves the averaged weights in the model.
    pub fn finish(&self) -> Result<()> {
        if self.config.unet.ema_decay > 0.0 { self.parameters.copy_from(&self.average) } else { Ok(()) }
    }

    /// Encodes those of these photos that have not been yet, on all threads, each by itself.
    fn encode(&mut self, photos: &[(usize, bool)]) -> Result<()> {
        let new: BTreeSet<_> = photos.iter().copied().filter(|photo| !self.encoded.contains_key(photo)).collect();
        let encode = |(index, flip): (usize, bool)| {
            let moments = self.vae.encode(&to_tensor(&[self.photos.whole(index, flip)?])?)?;
            Ok(((index, flip), moments))
        };
        let moments: Vec<_> = match device::current().is_cpu() {
            true => new.into_par_iter().map(encode).collect::<Result<_>>()?,
            false => new.into_iter().map(encode).collect::<Result<_>>()?,
        };
        self.encoded.extend(moments);
        Ok(())
    }

    /// What one step sees.
    ///
    /// # Randomness
    /// Per item: photo, mirror, latent noise, caption, caption dropout.
    fn batch(&mut self, step: u64) -> Result<Batch> {
        let (mut latents, mut captions, mut photos, mut draws) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for item in group::current().items(self.config.unet.batch_size as u64) {
            let mut rng = Rng::stream(self.config.seed, "denoiser item", &[step, item]);
            photos.push((rng.below(self.photos.len()), self.photos.draw_flip(&mut rng)));
            draws.push(rng);
        }
        self.encode(&photos)?;
        for (photo, mut rng) in photos.iter().zip(draws) {
            let moments = &self.encoded[photo];
            let noise = rng.normal_tensor(moments.mean.dims(), moments.mean.device())?;
            latents.push((moments.sample(&noise)? * self.vae.scaling_factor())?);
            let caption = self.photos.caption(photo.0, &mut rng).to_string();
            captions.push(if rng.uniform() < self.config.unet.caption_dropout { String::new() } else { caption });
        }
        let latents = Tensor::cat(&latents, 0)?;
        let (kind, count) = (self.config.unet.timesteps(), self.networks.noise_levels.num_train_timesteps());
        let draws = Draws::new(&latents, kind, count, self.config.seed, step)?;
        Ok(Batch { latents, draws, captions, photos })
    }
}

struct Batch {
    latents: Tensor,
    draws: Draws,
    captions: Vec<String>,
    /// Number of each photo, and whether it is mirrored.
    photos: Vec<(usize, bool)>,
}

impl Batch {
    fn part(&self, items: Range<usize>) -> Result<Self> {
        Ok(Self {
            latents: self.latents.narrow(0, items.start, items.len())?,
            draws: self.draws.part(items.clone())?,
            captions: self.captions[items.clone()].to_vec(),
            photos: self.photos[items].to_vec(),
        })
    }
}

/// What computes the loss.
struct Networks<'a> {
    model: &'a Model,
    unet: UNet,
    text: TextEncoder,
    /// Where label maps are given.
    label_head: Option<LabelHead>,
    label_weight: f64,
    /// By train id; empty without label maps.
    class_weights: Vec<f32>,
    noise_levels: NoiseSchedule,
    photos: &'a Photos,
}

impl Networks<'_> {
    /// The loss, and its parts.
    fn losses(&self, batch: &Batch) -> Result<(Tensor, Numbers)> {
        let captions: Vec<&str> = batch.captions.iter().map(String::as_str).collect();
        let context = self.text.forward(&token_ids(&self.model.tokenizer, &captions)?)?;
        let mut features = None;
        let denoised = Denoised::with(&self.noise_levels, &batch.latents, &batch.draws, |noisy, timesteps| {
            let (prediction, lowest) = self.unet.forward_with_features(noisy, timesteps, &context)?;
            features = Some(lowest);
            Ok(prediction)
        })?;
        let loss = match self.class_weights.is_empty() {
            true => denoised.loss()?,
            false => denoised.loss_weighted(&self.weights(batch)?)?,
        };
        let mut numbers = vec![("loss".into(), loss.clone())];
        let (Some(head), Some(features)) = (&self.label_head, features) else { return Ok((loss, numbers)) };
        let label_loss = self.label_loss(head, &features, &batch.photos)?;
        numbers.push(("label_loss".into(), label_loss.clone()));
        Ok(((loss + (label_loss * self.label_weight)?)?, numbers))
    }

    /// How well the label head knows what the photos show.
    fn label_loss(&self, head: &LabelHead, features: &Tensor, photos: &[(usize, bool)]) -> Result<Tensor> {
        let (_, _, height, width) = features.dims4()?;
        let cells = |photo| Ok(self.cells(photo, (height, width))?.to_tensor(features.device())?);
        let labels = photos.iter().map(cells).collect::<Result<Vec<_>>>()?;
        Ok(head.loss(features, &Tensor::stack(&labels, 0)?)?)
    }

    /// How much every place of the latents counts, (B, 1, h, w).
    fn weights(&self, batch: &Batch) -> Result<Tensor> {
        let (count, _, height, width) = batch.latents.dims4()?;
        let mut weights = Vec::with_capacity(count * height * width);
        for photo in &batch.photos {
            let cells = self.cells(photo, (height, width))?;
            weights.extend(cells.ids.iter().map(|id| self.class_weights.get(usize::from(*id)).copied().unwrap_or(1.0)));
        }
        Ok(Tensor::from_vec(weights, (count, 1, height, width), batch.latents.device())?)
    }

    /// The class of most pixels of every cell of a photo; of none where it has no label map.
    fn cells(&self, &(index, flip): &(usize, bool), (height, width): (usize, usize)) -> Result<LabelMap> {
        match self.photos.whole_label(index, flip)? {
            Some(label) => label.majority((height, width)),
            None => Ok(LabelMap::filled(height, width, IGNORE)),
        }
    }
}

/// The label head, if label maps are given; its parameters join the others.
fn label_head(model: &Model, config: &PretrainConfig, parameters: &mut ParamStore) -> Result<Option<LabelHead>> {
    let wanted = !config.labels.is_empty() && config.unet.label_weight != 0.0;
    let channels = model.unet_config.block_out_channels.last().filter(|_| wanted);
    let Some(&channels) = channels else { return Ok(None) };
    let builder = Builder::random(config.seed);
    let head = LabelHead::new(channels, config.unet.label_classes, &builder.pp("label_head"))?;
    parameters.merge(&builder.finish()?);
    Ok(Some(head))
}

impl Training for Denoiser<'_> {
    fn step(&mut self, step: u64) -> Result<Metrics> {
        let batch = self.batch(step)?;
        let (networks, items) = (&self.networks, batch.photos.len());
        let (gradients, mut metrics) =
            self.micro_batches.gradients(items, self.optimizer.parameters(), |range| networks.losses(&batch.part(range)?))?;
        let rate = self.schedule.learning_rate(self.config.unet.learning_rate, step);
        let norm = self.optimizer.step(&gradients, rate)?;
        self.guard.after_step(&gradients, rate, self.optimizer.parameters())?;
        ema::update(&self.average, &self.parameters, ema::ramp(self.config.unet.ema_decay, step))?;
        metrics.extend([("gradient_norm".into(), norm), ("learning_rate".into(), rate)]);
        Ok(metrics)
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let parts = vec![
            ("weights", self.parameters.tensors()),
            ("average", self.average.tensors()),
            ("optimizer", self.optimizer.state()?),
        ];
        Ok(Snapshot { parts, ..Snapshot::default() })
    }
}

impl Resumable for Denoiser<'_> {
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.parameters.load(&checkpoint.part("weights")?)?;
        self.average.load(&checkpoint.part("average")?)?;
        self.optimizer.load_state(&checkpoint.part("optimizer")?)
    }
}
