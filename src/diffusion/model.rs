//! A whole text-to-image model in memory: its settings, its parameters, and views on them for sampling and training.

use super::folder::{self, PipelineFolder, PipelineSettings, PipelineWeights};
use super::noise_schedule::{NoiseSchedule, PredictionType};
use super::sampler::SamplerKind;
use super::text_to_image::TextToImage;
use crate::base::{Error, Result};
use crate::io::tokenizer::Tokenizer;
use crate::models::stable_diffusion::{SchedulerConfig, TextConfig, TextEncoder, UNet, UNetConfig, Vae, VaeConfig};
use crate::nn::{Builder, ParamStore};
use std::path::Path;

/// Longest side of a picture in pixels.
pub const LONGEST_SIDE: usize = 1 << 14;
/// Most pixels of a picture.
pub const MOST_PIXELS: usize = 1 << 24;

/// Settings and parameters of a model. Networks are views on the parameters (see [`Builder::from_store`]).
pub struct Model {
    /// Of the U-Net.
    pub unet_config: UNetConfig,
    /// Of the autoencoder.
    pub vae_config: VaeConfig,
    /// Of the text encoder.
    pub text_config: TextConfig,
    /// Of the noise schedule.
    pub scheduler_config: SchedulerConfig,
    /// Of the prompts.
    pub tokenizer: Tokenizer,
    /// Parameters of the U-Net.
    pub unet: ParamStore,
    /// Parameters of the autoencoder.
    pub vae: ParamStore,
    /// Parameters of the text encoder.
    pub text: ParamStore,
}

impl Model {
    /// A model of new parameters.
    pub fn random(
        (unet_config, vae_config, text_config): (UNetConfig, VaeConfig, TextConfig),
        scheduler_config: SchedulerConfig,
        tokenizer: Tokenizer,
        seed: u64,
    ) -> Result<Self> {
        let (unet, vae, text) = (Builder::random(seed), Builder::random(seed), Builder::random(seed));
        UNet::new(&unet_config, &unet)?;
        Vae::new(&vae_config, &vae)?;
        TextEncoder::new(&text_config, &text)?;
        let (unet, vae, text) = (unet.finish()?, vae.finish()?, text.finish()?);
        Ok(Self { unet_config, vae_config, text_config, scheduler_config, tokenizer, unet, vae, text })
    }

    /// Reads a diffusers folder, strictly.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(PipelineFolder::open(path)?)
    }

    /// Reads the weights of an open folder, strictly.
    pub fn of(folder: PipelineFolder) -> Result<Self> {
        let unet = Builder::from_source(folder.unet()?, 0);
        UNet::new(&folder.unet_config, &unet)?;
        let vae = Builder::from_source(folder.vae()?, 0);
        Vae::new(&folder.vae_config, &vae)?;
        let text = Builder::from_source(folder.text()?, 0);
        TextEncoder::new(&folder.text_config, &text)?;
        Ok(Self {
            unet: unet.finish()?,
            vae: vae.finish()?,
            text: text.finish()?,
            unet_config: folder.unet_config,
            vae_config: folder.vae_config,
            text_config: folder.text_config,
            scheduler_config: folder.scheduler_config,
            tokenizer: folder.tokenizer,
        })
    }

    /// Writes a diffusers folder.
    pub fn save(&self, path: &Path) -> Result<()> {
        let weights = PipelineWeights { unet: &self.unet.tensors(), vae: &self.vae.tensors(), text: &self.text.tensors() };
        folder::save_pipeline(path, self.settings(), weights)
    }

    /// The settings, as a folder holds them.
    pub fn settings(&self) -> PipelineSettings<'_> {
        PipelineSettings {
            unet: &self.unet_config,
            vae: &self.vae_config,
            text: &self.text_config,
            scheduler: &self.scheduler_config,
            tokenizer: &self.tokenizer,
        }
    }

    /// The noise levels of training and sampling.
    pub fn schedule(&self) -> Result<NoiseSchedule> {
        NoiseSchedule::new(&folder::noise_config(&self.scheduler_config)?)
    }

    /// Networks that sample with the current parameters and record no graph.
    pub fn sampler(&self) -> Result<TextToImage> {
        Ok(TextToImage {
            unet: UNet::new(&self.unet_config, &Builder::from_store(&self.unet).frozen())?,
            vae: self.frozen_vae()?,
            text_encoder: TextEncoder::new(&self.text_config, &Builder::from_store(&self.text).frozen())?,
            tokenizer: self.tokenizer.clone(),
            schedule: self.schedule()?,
        })
    }

    /// The autoencoder without gradients.
    pub fn frozen_vae(&self) -> Result<Vae> {
        Vae::new(&self.vae_config, &Builder::from_store(&self.vae).frozen())
    }

    /// (height, width) of the latent grid for an image size in pixels; 0 takes the size the model was trained for.
    ///
    /// # Errors
    /// Sizes the autoencoder cannot divide, or as in [`check_size`].
    pub fn latent_size(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let factor = self.vae_config.downsampling();
        let cells = |pixels: usize, name: &str| match pixels {
            0 => Ok(self.unet_config.sample_size),
            p if p % factor == 0 => Ok(p / factor),
            p => Err(Error::Usage(format!("--{name} {p}: this model needs a multiple of {factor}"))),
        };
        let (height, width) = (cells(height, "height")?, cells(width, "width")?);
        check_size(height.saturating_mul(factor), width.saturating_mul(factor))?;
        Ok((height, width))
    }

    /// PNDM; DDIM for networks that predict clean latents, which PNDM cannot use.
    ///
    /// # Errors
    /// Scheduler settings that nothing can follow.
    pub fn usual_sampler(&self) -> Result<SamplerKind> {
        Ok(match self.schedule()?.config().prediction_type {
            PredictionType::Sample => SamplerKind::Ddim,
            _ => SamplerKind::Pndm,
        })
    }

    /// Digest of all parameters, for manifests: equal models have equal digests.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for store in [&self.unet, &self.vae, &self.text] {
            for (name, param) in store.iter() {
                hasher.update(name.as_bytes());
                for value in param.var.as_tensor().flatten_all()?.to_vec1::<f32>()? {
                    hasher.update(&value.to_le_bytes());
                }
            }
        }
        Ok(hasher.finalize().to_hex()[..16].to_string())
    }
}

/// Refuses pictures too large for any machine: an allocation that fails ends the process without a word. A side of 0 pixels is
/// one that is not known yet.
///
/// # Errors
/// More than [`LONGEST_SIDE`] or [`MOST_PIXELS`].
pub fn check_size(height: usize, width: usize) -> Result<()> {
    for (name, side) in [("height", height), ("width", width)] {
        if side > LONGEST_SIDE {
            let next = "give a smaller size";
            return Err(Error::Usage(format!("--{name} {side}: expected at most {LONGEST_SIDE} pixels\n  next: {next}")));
        }
    }
    if height * width > MOST_PIXELS {
        let found = format!("--width {width} --height {height}: expected at most {MOST_PIXELS} pixels in all");
        return Err(Error::Usage(format!("{found}\n  next: give a smaller size")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_too_large_for_any_machine_are_refused() {
        for (height, width) in [(0, 0), (512, 512), (LONGEST_SIDE, 0), (LONGEST_SIDE, 1024), (4096, 4096)] {
            check_size(height, width).unwrap();
        }
        let parts = [(0, usize::MAX, "--width"), (LONGEST_SIDE + 1, 8, "--height 16385"), (4096, 4104, "16777216 pixels in all")];
        for (height, width, part) in parts {
            let error = check_size(height, width).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(part), "{error}");
        }
    }
}
