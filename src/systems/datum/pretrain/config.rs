//! Every value of `datum pretrain` with its default. Field names are the keys of recipes and of `--set`.

use crate::base::{Error, Result};
use crate::diffusion::denoising::{Timesteps, WeightingScheme};
use crate::diffusion::noise_schedule::{BetaSchedule, PredictionType};
use crate::systems::datum::config::positive;
use crate::systems::shared::Size;
use serde::{Deserialize, Serialize};

/// `datum pretrain`: a small text-to-image model from photos.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// Folder of photos.
    pub images: String,
    /// JSON lines `{"file_name": …, "text": …}`; empty: every photo gets `template`.
    pub captions: String,
    /// Caption of photos without one of their own.
    pub template: String,
    /// Folder of label maps of the photos (PNGs of train ids, of the photos' names), from which the U-Net learns more about things
    /// than their captions tell, see `unet.label_weight`; empty: none.
    pub labels: String,
    /// `scratch` (the architecture below) or a model to go on from: `nano`, a diffusers folder or a hub id (only its U-Net and
    /// text encoder learn). For another architecture behind a trained autoencoder see `vae.base`.
    pub base: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Photos are resized so that they cover this size, then cropped at random to it.
    pub size: Size,
    /// Chance that a training photo is mirrored.
    pub flip: f32,
    /// The autoencoder.
    pub vae: VaeTraining,
    /// The denoising network and text encoder.
    pub unet: UnetTraining,
    /// Full training state every so many steps.
    pub checkpointing_steps: u64,
}

impl PretrainConfig {
    /// # Errors
    /// Counts and sizes of 0.
    pub fn validate(&self) -> Result<()> {
        positive(&[
            ("size.height", self.size.height),
            ("size.width", self.size.width),
            ("vae.latent_channels", self.vae.latent_channels),
            ("vae.crop", self.vae.crop),
            ("vae.batch_size", self.vae.batch_size),
            ("unet.batch_size", self.unet.batch_size),
        ])?;
        let (classes, spread, share) = (self.unet.label_classes, self.unet.logit_std, self.vae.equivariance);
        if !(1..=255).contains(&classes) {
            return Err(Error::Usage(format!("unet.label_classes {classes} is not 1 to 255")));
        }
        if self.base != "scratch" && !self.vae.base.is_empty() {
            let found =
                format!("base = {} has an autoencoder of its own, and vae.base = {} names another", self.base, self.vae.base);
            return Err(Error::Usage(format!("{found}\n  next: leave one of them out")));
        }
        if spread.is_nan() || spread <= 0.0 {
            return Err(Error::Usage(format!("unet.logit_std {spread} is not above 0")));
        }
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::Usage(format!("vae.equivariance {share} is not 0 to 1")));
        }
        self.check_class_weights()
    }

    fn check_class_weights(&self) -> Result<()> {
        let (weights, classes) = (&self.unet.class_weights, self.unet.label_classes);
        let refused = |found: String, next: &str| Err(Error::Usage(format!("{found}\n  next: {next}")));
        match weights.iter().find(|weight| !weight.is_finite() || **weight < 0.0) {
            _ if weights.is_empty() => Ok(()),
            Some(weight) => refused(format!("unet.class_weights holds {weight}"), "give numbers from 0 on"),
            None if weights.len() != classes => refused(
                format!("unet.class_weights holds {} numbers, and unet.label_classes is {classes}", weights.len()),
                "give one for each train id",
            ),
            None if self.labels.is_empty() => refused("unet.class_weights without label maps".into(), "give `--labels` too"),
            None => Ok(()),
        }
    }
}

/// Architecture and training of the autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaeTraining {
    /// With `base` `scratch`: a model whose autoencoder is taken as it is (`nano`, a diffusers folder or a hub id), so that the other
    /// values here mean nothing; empty: it is trained.
    pub base: String,
    /// Channels per level; the latent grid is 2^(levels − 1) times smaller than the image.
    pub channels: Vec<usize>,
    /// Residual blocks per level.
    pub layers_per_block: usize,
    /// Groups of the group norms. With three groups or more, of four channels or more each, and three latent channels or more,
    /// training starts from an autoencoder that already gives back blurred photos.
    pub norm_groups: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Square crops of this side are used in training (the network is convolutional).
    pub crop: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Peak learning rate (cosine to 0 with 5 % warm-up).
    pub learning_rate: f64,
    /// Weight of the Kullback-Leibler term.
    pub kl_weight: f64,
    /// Weight of the loss on image gradients, which keeps edges.
    pub edge_weight: f64,
    /// Weight of the loss on colour differences, which grey photos would teach last.
    pub colour_weight: f64,
    /// Share of steps in which halved latents have to become halved photos: latents whose detail is like that of photos are easier to
    /// denoise (EQ-VAE, Kouzelis et al., 2025, for the factor 2).
    pub equivariance: f32,
    /// Share of crops whose light is changed, so that the autoencoder serves other light than that of the photos.
    pub relight: f32,
}

/// Architecture and training of the U-Net and text encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnetTraining {
    /// Channels per level.
    pub channels: Vec<usize>,
    /// Whether each level has cross-attention to the prompt.
    pub attention: Vec<bool>,
    /// Residual blocks per level.
    pub layers_per_block: usize,
    /// Attention heads.
    pub heads: usize,
    /// Groups of the group norms.
    pub norm_groups: usize,
    /// Width of the text encoder and of the cross-attention.
    pub text_width: usize,
    /// Layers of the text encoder.
    pub text_layers: usize,
    /// Tokens of a prompt, start and end included.
    pub text_length: usize,
    /// Largest vocabulary.
    pub vocabulary: usize,
    /// What the U-Net predicts: `epsilon` (the noise), `v_prediction` or `sample`. Not given: what `base` predicts, `epsilon` from
    /// scratch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_type: Option<PredictionType>,
    /// How the noise grows, as in `scheduler_config.json`. Not given: as that of `base`; from scratch as Stable Diffusion's, which leaves
    /// 7 % of the picture at the last timestep. Small pictures show their light and layout through that, so that nothing is learned
    /// about them from the words: `linear` from 1e-4 to 0.02 (DDPM) leaves 0.6 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_schedule: Option<BetaSchedule>,
    /// First β.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_start: Option<f64>,
    /// Last β.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_end: Option<f64>,
    /// How timesteps are drawn in training, as in diffusers' scripts: `none` (all alike) or `logit_normal`.
    pub weighting_scheme: WeightingScheme,
    /// `logit_normal`: mean of the logit of the timestep's share of all timesteps; below 0 there is less noise,
    /// above 0 timesteps of little noise are hardly ever drawn.
    pub logit_mean: f64,
    /// `logit_normal`: standard deviation of that logit.
    pub logit_std: f64,
    /// With `labels`: weight of the cross-entropy of what two 1×1 convolutions read off the features behind the lowest level of the way
    /// up, in each of their cells the class of most pixels. It makes the U-Net see things while it denoises (as REPA, Yu et al.,
    /// 2024, does with features of another network); the two convolutions are not kept.
    pub label_weight: f64,
    /// Train ids of `labels` are below it; 255 is no class.
    pub label_classes: usize,
    /// With `labels`: how much errors count in cells of the latents most of whose pixels are of a class, one number for each train id;
    /// those of no class count 1. Empty: all count alike. What is small and rare, as persons are, has hardly a share of the loss
    /// otherwise.
    pub class_weights: Vec<f32>,
    /// Optimiser steps.
    pub steps: u64,
    /// Images per step.
    pub batch_size: usize,
    /// Peak learning rate (cosine to 0 with 5 % warm-up).
    pub learning_rate: f64,
    /// Share of captions that are dropped, so that guidance has an unconditional branch.
    pub caption_dropout: f32,
    /// Decay of the averaged weights that are kept in the end; 0 keeps the last ones.
    pub ema_decay: f64,
}

impl UnetTraining {
    /// How timesteps are drawn.
    pub fn timesteps(&self) -> Timesteps {
        match self.weighting_scheme {
            WeightingScheme::None => Timesteps::Uniform,
            WeightingScheme::LogitNormal => Timesteps::LogitNormal { mean: self.logit_mean, std: self.logit_std },
        }
    }
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            images: String::new(),
            captions: String::new(),
            template: "a photo of an urban scene".into(),
            labels: String::new(),
            base: "scratch".into(),
            seed: 0,
            size: Size { height: 240, width: 320 },
            flip: 0.5,
            vae: VaeTraining::default(),
            unet: UnetTraining::default(),
            checkpointing_steps: 250,
        }
    }
}

impl Default for VaeTraining {
    fn default() -> Self {
        Self {
            base: String::new(),
            channels: vec![32, 64, 96],
            layers_per_block: 1,
            norm_groups: 8,
            latent_channels: 4,
            steps: 1000,
            crop: 64,
            batch_size: 8,
            learning_rate: 3e-4,
            kl_weight: 1e-6,
            edge_weight: 0.5,
            colour_weight: 2.0,
            equivariance: 0.0,
            relight: 0.6,
        }
    }
}

impl Default for UnetTraining {
    fn default() -> Self {
        Self {
            channels: vec![32, 64, 128, 192],
            attention: vec![false, false, true, true],
            layers_per_block: 1,
            heads: 4,
            norm_groups: 16,
            text_width: 64,
            text_layers: 2,
            text_length: 32,
            vocabulary: 1024,
            prediction_type: None,
            beta_schedule: None,
            beta_start: None,
            beta_end: None,
            weighting_scheme: WeightingScheme::None,
            logit_mean: 0.0,
            logit_std: 1.0,
            label_weight: 0.3,
            label_classes: 19,
            class_weights: Vec::new(),
            steps: 3000,
            batch_size: 8,
            learning_rate: 6e-4,
            caption_dropout: 0.1,
            ema_decay: 0.995,
        }
    }
}
