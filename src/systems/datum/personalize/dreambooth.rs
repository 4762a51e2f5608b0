//! The DreamBooth training.

use super::base::{BASE_FILE, LORA_FILE, MODEL_FOLDER};
use super::{Method, PersonalizeConfig};
use crate::base::metrics::Metrics;
use crate::base::{Error, Result, Rng, group};
use crate::diffusion::denoising::{Denoised, Draws, Timesteps};
use crate::diffusion::model::Model;
use crate::diffusion::noise_schedule::NoiseSchedule;
use crate::diffusion::sampler::SamplerKind;
use crate::diffusion::text_to_image::{Request, SamplingSettings, TextToImage, to_tensor, token_ids};
use crate::diffusion::{Component, Lora};
use crate::io::atomic;
use crate::io::images::{self, RgbImage};
use crate::models::stable_diffusion::{TextEncoder, UNet, Vae};
use crate::nn::{AdapterPlan, Builder, ParamStore, Recompute};
use crate::train::Gradients;
use crate::train::checkpoint::Checkpoint;
use crate::train::driver::{Snapshot, Training};
use crate::train::guard::Guard;
use crate::train::optim::{AdamW, AdamWConfig, Group};
use crate::train::schedule::Schedule;
use crate::train::stage::Resumable;
use candle_core::Tensor;
use std::path::{Path, PathBuf};

/// Fine-tunes U-Net and text encoder, or low-rank updates of them, on crops of the target photos.
pub struct DreamBooth<'a> {
    model: &'a Model,
    config: PersonalizeConfig,
    networks: Networks,
    vae: Vae,
    noise_levels: NoiseSchedule,
    /// Trained tensors, `unet.…` and `text_encoder.…`.
    parameters: ParamStore,
    /// With gradient checkpointing.
    recompute: Option<Recompute>,
    optimizer: AdamW,
    guard: Guard<'static>,
    schedule: Schedule,
    photos: Vec<RgbImage>,
    class_images: Vec<RgbImage>,
    run: PathBuf,
    /// Names the base model, which a LoRA file belongs to.
    base: PathBuf,
}

/// The networks in training: views on the model's parameters, with adapters for LoRA.
struct Networks {
    unet: UNet,
    text: TextEncoder,
}

impl<'a> DreamBooth<'a> {
    /// Trains `model` in place (full) or beside it (LoRA).
    pub fn new(
        model: &'a Model,
        config: &PersonalizeConfig,
        photos: Vec<RgbImage>,
        class_images: Vec<RgbImage>,
        run: &Path,
        base: &Path,
    ) -> Result<Self> {
        let (networks, parameters) = trainable(model, config)?;
        let settings = AdamWConfig {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            epsilon: config.adam_epsilon,
            max_gradient_norm: Some(config.max_grad_norm),
        };
        let shape = serde_json::from_value(config.lr_scheduler.clone().into())
            .map_err(|e| Error::Usage(format!("lr_scheduler `{}`: {e}", config.lr_scheduler)))?;
        let schedule = Schedule {
            shape,
            steps: config.steps,
            warmup_steps: config.lr_warmup_steps,
            cycles: config.lr_num_cycles,
            power: config.lr_power,
        };
        schedule.validate()?;
        // The first factor of an adapter has no gradient while the second is zero; most tokens are not in the prompt.
        let may_be_zero = |name: &str| name.ends_with("lora.down.weight") || name.contains("embeddings");
        Ok(Self {
            networks,
            vae: model.frozen_vae()?,
            noise_levels: model.schedule()?,
            optimizer: AdamW::new(vec![Group::all(&parameters, config.weight_decay)], settings)?,
            guard: Guard::new(parameters.weights(), may_be_zero)?,
            recompute: config.gradient_checkpointing.then(|| Recompute::new(parameters.weights().map(|(_, var)| var))),
            parameters,
            schedule,
            photos,
            class_images,
            run: run.into(),
            base: base.into(),
            config: config.clone(),
            model,
        })
    }

    /// Latents and prompts of micro-batch `micro` of `step`: instance items first, then as many class items.
    ///
    /// # Randomness
    /// Per item a stream of step and item: crop top, crop left, latent noise. Class photos are cycled through.
    fn batch(&self, step: u64, micro: u64) -> Result<(Tensor, Vec<&str>)> {
        let (own, group) = (self.config.train_batch_size as u64, group::current());
        let size = own * group.size() as u64;
        let mut crops = Vec::new();
        let mut prompts = Vec::new();
        let kinds =
            [(&self.photos, self.config.instance_prompt.as_str()), (&self.class_images, self.config.class_prompt.as_str())];
        for (kind, (pictures, prompt)) in kinds.into_iter().filter(|(pictures, _)| !pictures.is_empty()).enumerate() {
            for item in group.items(own) {
                let number = (step * self.config.gradient_accumulation_steps as u64 + micro) * size + item;
                let mut rng = Rng::stream(self.config.seed, "dreambooth crop", &[number, kind as u64]);
                crops.push(crop(&pictures[(number % pictures.len() as u64) as usize], self.config.crop_size, &mut rng));
                prompts.push(prompt);
            }
        }
        let moments = self.vae.encode(&to_tensor(&crops)?)?;
        let mut rng = Rng::stream(self.config.seed, "posterior", &[step, micro]);
        let noise = rng.normal_items(moments.mean.dims(), moments.mean.device())?;
        Ok(((moments.sample(&noise)? * self.vae.scaling_factor())?.detach(), prompts))
    }

    fn gradients(&self, step: u64, micro: u64) -> Result<(Gradients, f64)> {
        let (latents, prompts) = self.batch(step, micro)?;
        let context = self.networks.text.forward(&token_ids(&self.model.tokenizer, &prompts)?)?;
        let number = step * self.config.gradient_accumulation_steps as u64 + micro;
        let draws = Draws::new(&latents, Timesteps::Uniform, self.noise_levels.num_train_timesteps(), self.config.seed, number)?;
        let (unet, recompute) = (&self.networks.unet, self.recompute.as_ref());
        let denoised = Denoised::with(&self.noise_levels, &latents, &draws, |noisy, timesteps| match recompute {
            Some(recompute) => unet.forward_recomputed(noisy, timesteps, &context, recompute),
            None => unet.forward(noisy, timesteps, &context),
        })?;
        let loss = match self.class_images.is_empty() {
            true => denoised.loss()?,
            false => denoised.loss_with_prior(self.config.prior_loss_weight)?,
        };
        let value = f64::from(loss.to_scalar::<f32>()?);
        let scaled = (loss / self.config.gradient_accumulation_steps as f64)?;
        let store = recompute.map_or_else(|| scaled.backward(), |recompute| recompute.backward(&scaled))?;
        Ok((Gradients::from_store(store, self.optimizer.parameters()), value))
    }

    /// Writes what `generate` and other tools load: a diffusers folder, or a diffusers LoRA file.
    pub fn export(&self, folder: &Path) -> Result<()> {
        match self.config.method {
            Method::Full => self.model.save(&folder.join(MODEL_FOLDER)),
            Method::Lora => {
                let mut file = Lora::default();
                let alpha = self.config.rank as f64;
                file.add_store(Component::Unet, &self.parameters.stripped("unet"), alpha)?;
                file.add_store(Component::TextEncoder, &self.parameters.stripped("text_encoder"), alpha)?;
                file.write(&folder.join(LORA_FILE))?;
                atomic::write(&folder.join(BASE_FILE), format!("{}\n", self.base.display()).as_bytes())
            }
        }
    }

    /// A sample picture of the current weights.
    fn sample(&self, done: u64) -> Result<()> {
        let (unet, text_encoder) = frozen_view(self.model, &self.parameters, &self.config)?;
        let sampler = TextToImage {
            unet,
            text_encoder,
            vae: self.model.frozen_vae()?,
            tokenizer: self.model.tokenizer.clone(),
            schedule: self.model.schedule()?,
        };
        let prompt = match self.config.validation_prompt.as_str() {
            "" => self.config.instance_prompt.clone(),
            prompt => prompt.to_string(),
        };
        let settings = SamplingSettings {
            sampler: SamplerKind::Pndm,
            steps: 25,
            guidance_scale: 7.5,
            negative_prompt: String::new(),
            latent_size: self.model.latent_size(0, 0)?,
        };
        let pictures = sampler.sample(&[Request { prompt, seed: self.config.seed, latents: None, initial: None }], &settings)?;
        images::write_png(&self.run.join("samples").join(format!("step-{done:06}.png")), &pictures[0], &[])
    }
}

fn crop(image: &RgbImage, side: usize, rng: &mut Rng) -> RgbImage {
    let offset = (rng.below(image.height - side + 1), rng.below(image.width - side + 1));
    crate::data::Example { image: image.clone(), label: None }.crop(offset, (side, side)).image
}

/// The networks with gradients where the configuration wants them, and what they train.
fn trainable(model: &Model, config: &PersonalizeConfig) -> Result<(Networks, ParamStore)> {
    let views = (Builder::from_store(&model.unet), Builder::from_store(&model.text));
    let (unet, text) = match (config.method, config.train_text_encoder) {
        (Method::Full, true) => views,
        (Method::Full, false) => (views.0, views.1.frozen()),
        (Method::Lora, train_text) => {
            let text = views.1.frozen().seeded(config.seed);
            let text = if train_text { text.with_adapters(text_plan(config)) } else { text };
            (views.0.frozen().seeded(config.seed).with_adapters(unet_plan(config)), text)
        }
    };
    let networks = Networks { unet: UNet::new(&model.unet_config, &unet)?, text: TextEncoder::new(&model.text_config, &text)? };
    let mut parameters = unet.finish()?.prefixed("unet");
    let text = text.finish()?.prefixed("text_encoder");
    if config.train_text_encoder {
        parameters.merge(&text);
    }
    let parameters = match config.method {
        Method::Full => parameters,
        Method::Lora => parameters.select(|name| name.contains(".lora.")),
    };
    Ok((networks, parameters))
}

/// The same networks without gradients, adapters included.
fn frozen_view(model: &Model, parameters: &ParamStore, config: &PersonalizeConfig) -> Result<(UNet, TextEncoder)> {
    let with_adapters = |store: &ParamStore, prefix: &str| {
        let mut all = store.clone();
        all.merge(&parameters.stripped(prefix));
        Builder::from_store(&all).frozen()
    };
    let (unet, text) = (with_adapters(&model.unet, "unet"), with_adapters(&model.text, "text_encoder"));
    let (unet, text) = match config.method {
        Method::Full => (unet, text),
        Method::Lora if config.train_text_encoder => {
            (unet.with_adapters(unet_plan(config)), text.with_adapters(text_plan(config)))
        }
        Method::Lora => (unet.with_adapters(unet_plan(config)), text),
    };
    Ok((UNet::new(&model.unet_config, &unet)?, TextEncoder::new(&model.text_config, &text)?))
}

/// # Source
/// diffusers' LoRA targets: the projections of every attention.
pub(super) fn unet_plan(config: &PersonalizeConfig) -> AdapterPlan {
    plan(config, &["to_q", "to_k", "to_v", "to_out.0"])
}

pub(super) fn text_plan(config: &PersonalizeConfig) -> AdapterPlan {
    plan(config, &["q_proj", "k_proj", "v_proj", "out_proj"])
}

fn plan(config: &PersonalizeConfig, targets: &[&str]) -> AdapterPlan {
    AdapterPlan { rank: config.rank, alpha: config.rank as f32, targets: targets.iter().map(|t| t.to_string()).collect() }
}

impl Training for DreamBooth<'_> {
    fn step(&mut self, step: u64) -> Result<Metrics> {
        let (mut gradients, mut loss) = self.gradients(step, 0)?;
        for micro in 1..self.config.gradient_accumulation_steps as u64 {
            let (more, value) = self.gradients(step, micro)?;
            gradients.accumulate(more)?;
            loss += value;
        }
        let rate = self.schedule.learning_rate(self.config.learning_rate, step);
        let norm = self.optimizer.step(&gradients, rate)?;
        self.guard.after_step(&gradients, rate, self.optimizer.parameters())?;
        Ok(Metrics::from([
            ("loss".into(), loss / self.config.gradient_accumulation_steps as f64),
            ("gradient_norm".into(), norm),
            ("learning_rate".into(), rate),
        ]))
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let parts = vec![("weights", self.parameters.tensors()), ("optimizer", self.optimizer.state()?)];
        Ok(Snapshot { parts, ..Snapshot::default() })
    }

    fn after(&mut self, done: u64) -> Result<Metrics> {
        let due = |interval: u64| interval > 0 && done.is_multiple_of(interval);
        if due(self.config.validation_steps) {
            self.sample(done)?;
        }
        // Usable weights of every interval stay; full training states are thinned out.
        if due(self.config.checkpointing_steps) && done < self.config.steps {
            self.export(&self.run.join("checkpoints").join(format!("usable-{done:06}")))?;
        }
        Ok(Metrics::new())
    }
}

impl Resumable for DreamBooth<'_> {
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.parameters.load(&checkpoint.part("weights")?)?;
        self.optimizer.load_state(&checkpoint.part("optimizer")?)
    }
}
