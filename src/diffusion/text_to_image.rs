//! From prompts to pictures with the parts of a Stable Diffusion model.

use super::noise_schedule::NoiseSchedule;
use super::sampler::{Sampler, SamplerKind};
use crate::base::{Error, Result, Rng, device};
use crate::io::images::RgbImage;
use crate::io::tokenizer::Tokenizer;
use crate::models::stable_diffusion::{TextEncoder, UNet, Vae};
use candle_core::{DType, Tensor};
use std::time::{Duration, Instant};

/// The parts of a model, ready to sample. Build the networks frozen: sampling keeps no graph then.
pub struct TextToImage {
    /// Denoising network.
    pub unet: UNet,
    /// Autoencoder.
    pub vae: Vae,
    /// Text encoder.
    pub text_encoder: TextEncoder,
    /// Prompt → token ids.
    pub tokenizer: Tokenizer,
    /// Noise levels the model was trained with.
    pub schedule: NoiseSchedule,
}

/// How to sample. Equal for all images of a batch.
#[derive(Debug, Clone)]
pub struct SamplingSettings {
    /// Which solver.
    pub sampler: SamplerKind,
    /// Denoising steps.
    pub steps: usize,
    /// Weight w of `uncond + w·(cond − uncond)`; ≤ 1 runs the conditional branch alone.
    pub guidance_scale: f64,
    /// What the unconditional branch reads.
    pub negative_prompt: String,
    /// (height, width) of the latent grid.
    pub latent_size: (usize, usize),
}

/// One picture to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt.
    pub prompt: String,
    /// Everything random of this picture comes from this seed.
    pub seed: u64,
    /// Standard normal latents (1, C, h, w) instead of draws from `seed`.
    pub latents: Option<Tensor>,
    /// Clean latents of a photo (1, C, h, w) whose layout is kept, with the share of the way to noise it goes; at 0 nothing
    /// is denoised.
    pub initial: Option<(Tensor, f64)>,
}

impl TextToImage {
    /// Pictures for `requests`, sampled as one batch. Each picture depends on its own request alone.
    ///
    /// # Errors
    /// Latents of a wrong shape; a mixture of requests with and without initial photos; a model whose pictures are not numbers.
    pub fn sample(&self, requests: &[Request], settings: &SamplingSettings) -> Result<Vec<RgbImage>> {
        let latents = self.sample_latents(requests, settings)?;
        let images = self.vae.decode(&(latents / self.vae.scaling_factor())?)?;
        let image = |(i, request): (usize, &Request)| to_image(&images.get(i)?, request);
        requests.iter().enumerate().map(image).collect()
    }

    /// Like [`Self::sample`], but stops before the decoder: latents (B, C, h, w), scaled as in training.
    pub fn sample_latents(&self, requests: &[Request], settings: &SamplingSettings) -> Result<Tensor> {
        let mut sampler = Sampler::new(settings.sampler, self.schedule.config(), settings.steps)?;
        let guided = settings.guidance_scale > 1.0;
        let context = self.context(requests, settings, guided)?;
        let (start, mut latents) = self.start(requests, settings, &sampler)?;
        let timesteps = sampler.timesteps().to_vec();
        if start == timesteps.len() {
            return Ok(latents);
        }
        sampler.skip(start)?;
        for (index, &timestep) in timesteps.iter().enumerate().skip(start) {
            if crate::base::interrupt::requested() {
                return Err(Error::Interrupted { resume: "run the same command again; finished images are kept".into() });
            }
            let input = sampler.scale_input(&latents, index)?;
            let input = if guided { Tensor::cat(&[&input, &input], 0)? } else { input };
            let times = Tensor::full(timestep as f32, input.dim(0)?, input.device())?;
            let output = self.unet.forward(&input, &times, &context)?;
            let output = if guided { guide(&output, settings.guidance_scale)? } else { output };
            let noise = if sampler.needs_noise(index) { Some(step_noise(requests, &latents, index)?) } else { None };
            latents = sampler.step(&output, index, &latents, noise.as_ref())?;
        }
        Ok(latents)
    }

    /// How long a batch takes: two evaluations of the U-Net, of which the second counts, and the decoder.
    ///
    /// # Errors
    /// Those of [`Self::sample`].
    pub fn rehearse(&self, requests: &[Request], settings: &SamplingSettings) -> Result<Duration> {
        let sampler = Sampler::new(settings.sampler, self.schedule.config(), settings.steps)?;
        let guided = settings.guidance_scale > 1.0;
        let context = self.context(requests, settings, guided)?;
        let (start, latents) = self.start(requests, settings, &sampler)?;
        let evaluations = sampler.timesteps().len() - start;
        let input = if guided { Tensor::cat(&[&latents, &latents], 0)? } else { latents.clone() };
        let times = Tensor::full(1f32, input.dim(0)?, input.device())?;
        let mut evaluation = Duration::ZERO;
        for _ in 0..evaluations.min(2) {
            let started = Instant::now();
            self.unet.forward(&input, &times, &context)?;
            evaluation = started.elapsed();
        }
        let started = Instant::now();
        self.vae.decode(&latents)?;
        Ok(evaluation * evaluations as u32 + started.elapsed())
    }

    /// Text features: unconditional ones first when guided. (2B or B, T, D)
    fn context(&self, requests: &[Request], settings: &SamplingSettings, guided: bool) -> Result<Tensor> {
        let mut texts: Vec<&str> = Vec::new();
        if guided {
            texts.extend(std::iter::repeat_n(settings.negative_prompt.as_str(), requests.len()));
        }
        texts.extend(requests.iter().map(|r| r.prompt.as_str()));
        Ok(self.text_encoder.forward(&token_ids(&self.tokenizer, &texts)?)?)
    }

    /// Where the denoising starts: the index of the first step (the number of steps when there is nothing to denoise) and the
    /// noisy latents.
    fn start(&self, requests: &[Request], settings: &SamplingSettings, sampler: &Sampler) -> Result<(usize, Tensor)> {
        let channels = self.vae.latent_channels();
        let (height, width) = settings.latent_size;
        let shape = [1, channels, height, width];
        let mut noise = Vec::with_capacity(requests.len());
        for request in requests {
            noise.push(match &request.latents {
                Some(given) if given.dims() == shape => given.clone(),
                Some(given) => {
                    return Err(Error::Usage(format!(
                        "latents have shape {:?}, this model and size need {shape:?}",
                        given.dims()
                    )));
                }
                None => Rng::stream(request.seed, "latents", &[]).normal_tensor(&shape, &device::current())?,
            });
        }
        let noise = Tensor::cat(&noise, 0)?;
        let initial: Vec<&(Tensor, f64)> = requests.iter().filter_map(|r| r.initial.as_ref()).collect();
        let Some((_, strength)) = initial.first() else { return Ok((0, (noise * sampler.init_noise_sigma())?)) };
        if initial.len() != requests.len() {
            return Err(Error::Usage("a batch holds images with and without an initial photo".into()));
        }
        let steps = sampler.timesteps().len();
        let clean = Tensor::cat(&initial.iter().map(|(latents, _)| latents).collect::<Vec<_>>(), 0)?;
        if *strength == 0.0 {
            return Ok((steps, clean));
        }
        let start = steps - ((steps as f64 * strength).round() as usize).clamp(1, steps);
        Ok((start, sampler.noised(&clean, &noise, start)?))
    }

    /// Scaled latents of pictures: the mean of the encoder's posterior.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W) in −1…1 → (B, C, h, w)
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        Ok((self.vae.encode(images)?.mean * self.vae.scaling_factor())?)
    }
}

/// Token ids of texts as a (B, T) tensor.
pub fn token_ids(tokenizer: &Tokenizer, texts: &[&str]) -> Result<Tensor> {
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text)).collect::<Result<_>>()?;
    let length = ids.first().map_or(0, Vec::len);
    Ok(Tensor::from_vec(ids.concat(), (texts.len(), length), &device::current())?)
}

/// # Source
/// Classifier-free guidance, equation 6, in the form e_u + w (e_c − e_u).
fn guide(output: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    let halves = output.chunk(2, 0)?;
    &halves[0] + ((&halves[1] - &halves[0])? * scale)?
}

/// Fresh noise of one ancestral step, from each picture's own stream.
fn step_noise(requests: &[Request], like: &Tensor, index: usize) -> candle_core::Result<Tensor> {
    let (_, channels, height, width) = like.dims4()?;
    let draw = |r: &Request| {
        Rng::stream(r.seed, "step noise", &[index as u64]).normal_tensor(&[1, channels, height, width], like.device())
    };
    Tensor::cat(&requests.iter().map(draw).collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// (3, H, W) in −1…1 → 8 bit, rounded half to even as numpy does.
///
/// # Errors
/// Values that are not numbers, which other tools make black pictures of.
fn to_image(image: &Tensor, request: &Request) -> Result<RgbImage> {
    let (_, height, width) = image.dims3()?;
    let values = image.permute((1, 2, 0))?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if values.iter().any(|v| v.is_nan()) {
        return Err(Error::environment(
            format!("the picture of seed {} and prompt \"{}\" has values that are not numbers", request.seed, request.prompt),
            "the model's weights are broken or the training diverged: use an earlier checkpoint or a lower learning rate",
        ));
    }
    let pixels = values.into_iter().map(|v| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
    Ok(RgbImage { height, width, pixels })
}

/// Pictures in −1…1 for the autoencoder: (B, 3, H, W). All must have one size.
pub fn to_tensor(images: &[RgbImage]) -> Result<Tensor> {
    let tensors = images.iter().map(|image| {
        let values: Vec<f32> = image.pixels.iter().map(|&p| f32::from(p) / 127.5 - 1.0).collect();
        Tensor::from_vec(values, (1, image.height, image.width, 3), &device::current())?.permute((0, 3, 1, 2))?.contiguous()
    });
    Ok(Tensor::cat(&tensors.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}
