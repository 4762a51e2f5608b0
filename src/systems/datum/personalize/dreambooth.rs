//! The DreamBooth training.

use super::base::{BASE_FILE, LORA_FILE, MODEL_FOLDER};
use super::{Method, PersonalizeConfig};
use crate::base::group::{self, Shares};
use crate::base::metrics::Metrics;
use crate::base::{Error, Result, Rng};
use crate::diffusion::denoising::{Denoised, Draws, Timesteps};
use crate::diffusion::model::Model;
use crate::diffusion::noise_schedule::NoiseSchedule;
use crate::diffusion::text_to_image::{Request, SamplingSettings, TextToImage, to_tensor, token_ids};
use crate::diffusion::{Component, Lora};
use crate::io::atomic;
use crate::io::images::{self, RgbImage};
use crate::models::stable_diffusion::{TextEncoder, UNet, Vae};
use crate::nn::{AdapterPlan, Builder, ParamStore, Recompute, recording};
use crate::train::Gradients;
use crate::train::checkpoint::Checkpoint;
use crate::train::driver::{Snapshot, Training};
use crate::train::guard::Guard;
use crate::train::optim::{AdamW, AdamWConfig, Group};
use crate::train::schedule::Schedule;
use crate::train::stage::Resumable;
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Fine-tunes U-Net and text encoder, or low-rank updates of them, on crops of the target photos.
pub struct DreamBooth<'a> {
    model: &'a Model,
    config: PersonalizeConfig,
    networks: Networks,
    vae: Vae,
    /// Trained tensors, `unet.…` and `text_encoder.…`.
    parameters: ParamStore,
    /// With gradient checkpointing.
    recompute: Option<Recompute>,
    shares: Shares,
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
    noise_levels: NoiseSchedule,
    /// Weight of the class items' loss; none without class items.
    prior_loss_weight: Option<f64>,
}

impl Networks {
    /// # Shapes
    /// `latents` (B, 4, h, w), `ids` (B, T)
    fn loss(&self, latents: &Tensor, ids: &Tensor, draws: &Draws, recompute: Option<&Recompute>) -> Result<Tensor> {
        let context = self.text.forward(ids)?;
        let denoised = Denoised::with(&self.noise_levels, latents, draws, |noisy, timesteps| match recompute {
            Some(recompute) => self.unet.forward_recomputed(noisy, timesteps, &context, recompute),
            None => self.unet.forward(noisy, timesteps, &context),
        })?;
        Ok(self.prior_loss_weight.map_or_else(|| denoised.loss(), |weight| denoised.loss_with_prior(weight))?)
    }
}

/// Bytes of gradients from which on a batch is not divided: every share has gradients of its own.
const LARGE: usize = 1 << 30;

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
        let (unet, text, parameters) = trainable(model, config)?;
        let prior_loss_weight = (!class_images.is_empty()).then_some(config.prior_loss_weight);
        let bytes: usize = parameters.weights().map(|(_, var)| var.elem_count() * 4).sum();
        let divided = !config.gradient_checkpointing && bytes < LARGE;
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
            networks: Networks { unet, text, noise_levels: model.schedule()?, prior_loss_weight },
            vae: model.frozen_vae()?,
            shares: if divided { Shares::of(config.train_batch_size)? } else { Shares::whole() },
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

    /// The gradients of a micro-batch as its part in the mean over all, and its loss; halves of it side by side.
    fn gradients(&self, step: u64, micro: u64) -> Result<(Gradients, f64)> {
        let (latents, prompts) = self.batch(step, micro)?;
        let ids = token_ids(&self.model.tokenizer, &prompts)?;
        let number = step * self.config.gradient_accumulation_steps as u64 + micro;
        let timesteps = self.networks.noise_levels.num_train_timesteps();
        let draws = Draws::new(&latents, Timesteps::Uniform, timesteps, self.config.seed, number)?;
        let parts = (self.config.gradient_accumulation_steps * self.shares.count()) as f64;
        let parameters: Vec<_> = self.optimizer.parameters().collect();
        if let Some(recompute) = &self.recompute {
            let loss = recording(|| self.networks.loss(&latents, &ids, &draws, Some(recompute)))?;
            let store = recompute.backward(&(&loss / parts)?)?;
            return Ok((Gradients::from_store(store, parameters), f64::from(loss.to_scalar::<f32>()?)));
        }
        let networks = &self.networks;
        let shares = self.shares.each(|share| {
            let loss = || networks.loss(&share.rows(&latents)?, &share.rows(&ids)?, &draws.rows(share)?, None);
            let loss = recording(loss)?;
            let gradients = Gradients::of(&(&loss / parts)?, parameters.iter().copied())?;
            Ok((gradients, f64::from(loss.to_scalar::<f32>()?)))
        })?;
        let (mut sum, mut mean) = (Gradients::default(), 0.0);
        for (gradients, loss) in shares {
            sum.accumulate(gradients)?;
            mean += loss / self.shares.count() as f64;
        }
        Ok((sum, mean))
    }

    /// Writes what `generate` and other tools load: a diffusers folder, or a diffusers LoRA file.
    pub fn export(&self, folder: &Path) -> Result<()> {
        match self.config.method {
            Method::Full => self.model.save(&folder.join(MODEL_FOLDER)),
            Method::Lora => {
                let mut file = Lora { metadata: self.facts(), ..Lora::default() };
                let alpha = self.config.rank as f64;
                file.add_store(Component::Unet, &self.parameters.stripped("unet"), alpha)?;
                file.add_store(Component::TextEncoder, &self.parameters.stripped("text_encoder"), alpha)?;
                file.write(&folder.join(LORA_FILE))?;
                atomic::write(&folder.join(BASE_FILE), format!("{}\n", self.base.display()).as_bytes())
            }
        }
    }

    /// What an adapter's file says of its training, in the words that managers of adapters look for.
    fn facts(&self) -> BTreeMap<String, String> {
        let config = &self.config;
        let facts = [
            ("modelspec.trigger_phrase", config.instance_prompt.clone()),
            ("ss_sd_model_name", config.base.clone()),
            ("ss_max_train_steps", config.steps.to_string()),
            ("ss_learning_rate", config.learning_rate.to_string()),
            ("ss_seed", config.seed.to_string()),
        ];
        facts.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
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
            sampler: self.model.usual_sampler()?,
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
fn trainable(model: &Model, config: &PersonalizeConfig) -> Result<(UNet, TextEncoder, ParamStore)> {
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
    let networks = (UNet::new(&model.unet_config, &unet)?, TextEncoder::new(&model.text_config, &text)?);
    let mut parameters = unet.finish()?.prefixed("unet");
    let text = text.finish()?.prefixed("text_encoder");
    if config.train_text_encoder {
        parameters.merge(&text);
    }
    let parameters = match config.method {
        Method::Full => parameters,
        Method::Lora => parameters.select(|name| name.contains(".lora.")),
    };
    Ok((networks.0, networks.1, parameters))
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
        // Usable weights of every interval stay; full training states are thinned out.
        if due(self.config.checkpointing_steps) && done < self.config.steps {
            self.export(&self.run.join("checkpoints").join(format!("usable-{done:06}")))?;
        }
        if due(self.config.validation_steps) {
            self.sample(done)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::nano;
    use rayon::ThreadPoolBuilder;

    /// The loss and some of the gradients of a step with nano, with so many threads; whole batches without.
    fn step(method: Method, class_items: bool, threads: Option<usize>) -> (f64, Vec<f32>) {
        let model = Model::of(nano::open().unwrap()).unwrap();
        let picture = |shade: usize| {
            let pixels = (0..48 * 40 * 3).map(|i| (i * (7 + shade) % 256) as u8).collect();
            RgbImage { height: 40, width: 48, pixels }
        };
        let class_images = if class_items { vec![picture(1), picture(2), picture(3)] } else { Vec::new() };
        let config = PersonalizeConfig { method, train_batch_size: 4, crop_size: 32, steps: 2, ..PersonalizeConfig::default() };
        let photos = vec![picture(0)];
        let step = || {
            let mut training = DreamBooth::new(&model, &config, photos, class_images, Path::new(""), Path::new("")).unwrap();
            assert_eq!(training.shares.count(), 2);
            if threads.is_none() {
                training.shares = Shares::whole();
            }
            training.gradients(1, 0).unwrap()
        };
        let pool = ThreadPoolBuilder::new().num_threads(threads.unwrap_or(2)).build().unwrap();
        let (gradients, loss) = pool.install(step);
        let first = |(_, gradient): (_, &Tensor)| gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().take(50);
        (loss, gradients.iter().flat_map(first).collect())
    }

    #[test]
    fn halves_of_a_batch_have_its_gradient() {
        for (method, class_items) in [(Method::Full, false), (Method::Full, true), (Method::Lora, true)] {
            let (loss, gradients) = step(method, class_items, None);
            let halves = step(method, class_items, Some(1));
            assert!((loss - halves.0).abs() < 1e-6 * loss, "{loss} {}", halves.0);
            let largest = gradients.iter().fold(0f32, |largest, g| largest.max(g.abs()));
            assert!(largest > 0.0 && gradients.len() == halves.1.len());
            for (whole, half) in gradients.iter().zip(&halves.1) {
                assert!((whole - half).abs() < 1e-5 * largest, "{whole} {half}");
            }
            for threads in [2, 3] {
                assert_eq!(step(method, class_items, Some(threads)), halves, "{threads} threads");
            }
        }
    }
}
