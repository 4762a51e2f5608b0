//! Every value of the DATUM stages with its default. Field names are the keys of recipes and of `--set`.

use crate::base::{Error, Result};
use crate::diffusion::denoising::{Timesteps, WeightingScheme};
use crate::diffusion::noise_schedule::{BetaSchedule, PredictionType};
use crate::systems::shared::Size;
use serde::{Deserialize, Serialize};

/// Counts and sizes that nothing can be done with when they are 0.
fn positive(values: &[(&str, usize)]) -> Result<()> {
    match values.iter().find(|(_, value)| *value == 0) {
        Some((name, _)) => Err(Error::Usage(format!("`{name}` is 0\n  next: give a value of at least 1"))),
        None => Ok(()),
    }
}

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
    /// text encoder learn).
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
        if spread.is_nan() || spread <= 0.0 {
            return Err(Error::Usage(format!("unet.logit_std {spread} is not above 0")));
        }
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::Usage(format!("vae.equivariance {share} is not 0 to 1")));
        }
        Ok(())
    }
}

/// Architecture and training of the autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaeTraining {
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
    /// `logit_normal`: mean of the logit of the timestep's share of all timesteps; below 0 there is less noise.
    pub logit_mean: f64,
    /// `logit_normal`: standard deviation of that logit.
    pub logit_std: f64,
    /// With `labels`: weight of the cross-entropy of what two 1×1 convolutions read off the features behind the lowest level of the way
    /// up, in each of their cells the class of most pixels. It makes the U-Net see things while it denoises (as REPA, Yu et al.,
    /// 2024, does with features of another network); the two convolutions are not kept.
    pub label_weight: f64,
    /// Train ids of `labels` are below it; 255 is no class.
    pub label_classes: usize,
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
            steps: 3000,
            batch_size: 8,
            learning_rate: 6e-4,
            caption_dropout: 0.1,
            ema_decay: 0.995,
        }
    }
}

/// `datum personalize`: DreamBooth on one photo (or a few).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PersonalizeConfig {
    /// The photos of the target.
    pub images: Vec<String>,
    /// Diffusers folder or hub id.
    pub base: String,
    /// Prompt of the photos, with the identifier token.
    pub instance_prompt: String,
    /// `full` or `lora`.
    pub method: Method,
    /// Rank of the low-rank update (`lora`).
    pub rank: usize,
    /// Optimiser steps; 0 takes 1000 for `full` and 500 for `lora`.
    pub steps: u64,
    /// 0 takes 5e-6 for `full` and 1e-4 for `lora`.
    pub learning_rate: f64,
    /// Photos per step.
    pub train_batch_size: usize,
    /// Optimiser steps use the mean gradient of so many batches.
    pub gradient_accumulation_steps: usize,
    /// The shorter side is resized to this.
    pub resolution: usize,
    /// Side of the random square crop.
    pub crop_size: usize,
    /// The text encoder learns too.
    pub train_text_encoder: bool,
    /// Class images keep the model from forgetting.
    pub with_prior_preservation: bool,
    /// Prompt of the class images.
    pub class_prompt: String,
    /// Folder of class images; missing ones are generated by the base model.
    pub class_images: String,
    /// How many class images there should be.
    pub num_class_images: usize,
    /// Weight of the class images' loss.
    pub prior_loss_weight: f64,
    /// `constant`, `constant_with_warmup`, `linear`, `cosine`, `cosine_with_restarts`, `polynomial`.
    pub lr_scheduler: String,
    /// Warm-up steps of the schedule.
    pub lr_warmup_steps: u64,
    /// Cycles of `cosine_with_restarts`.
    pub lr_num_cycles: u32,
    /// Exponent of `polynomial`.
    pub lr_power: f64,
    /// Decay of AdamW's first moment.
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment.
    pub adam_beta2: f64,
    /// Added to the root of AdamW's second moment.
    pub adam_epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradients.
    pub max_grad_norm: f64,
    /// The activations inside the U-Net's blocks are computed again in the backward pass: less memory, more time.
    pub gradient_checkpointing: bool,
    /// Usable weights and full state every so many steps.
    pub checkpointing_steps: u64,
    /// Full states that are kept (older checkpoints keep their usable weights).
    pub keep_last: usize,
    /// Sample pictures every so many steps; 0 for none.
    pub validation_steps: u64,
    /// Prompt of the sample pictures; empty: the instance prompt.
    pub validation_prompt: String,
    /// Seed of everything random.
    pub seed: u64,
}

impl PersonalizeConfig {
    /// # Errors
    /// Counts and sizes of 0.
    pub fn validate(&self) -> Result<()> {
        positive(&[
            ("rank", self.rank),
            ("train_batch_size", self.train_batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("crop_size", self.crop_size),
        ])?;
        if self.with_prior_preservation { positive(&[("num_class_images", self.num_class_images)]) } else { Ok(()) }
    }
}

/// What `personalize` trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// All weights of the U-Net (and text encoder).
    Full,
    /// Low-rank updates of the attention projections.
    Lora,
}

impl Default for PersonalizeConfig {
    fn default() -> Self {
        Self {
            images: Vec::new(),
            base: "CompVis/stable-diffusion-v1-4".into(),
            instance_prompt: "a photo of a sks urban scene".into(),
            method: Method::Full,
            rank: 4,
            steps: 0,
            learning_rate: 0.0,
            train_batch_size: 1,
            gradient_accumulation_steps: 1,
            resolution: 1024,
            crop_size: 512,
            train_text_encoder: true,
            with_prior_preservation: false,
            class_prompt: String::new(),
            class_images: String::new(),
            num_class_images: 200,
            prior_loss_weight: 1.0,
            lr_scheduler: "constant".into(),
            lr_warmup_steps: 0,
            lr_num_cycles: 1,
            lr_power: 1.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 1e-2,
            max_grad_norm: 1.0,
            gradient_checkpointing: false,
            checkpointing_steps: 200,
            keep_last: 1,
            validation_steps: 500,
            validation_prompt: String::new(),
            seed: 0,
        }
    }
}

/// `datum generate`: the pseudo-target data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// Diffusers folder, run folder of `personalize` or hub id; empty: the newest personalised run.
    pub model: String,
    /// LoRA files, each `FILE` or `FILE:SCALE`.
    pub lora: Vec<String>,
    /// Prompt file.
    pub prompts: String,
    /// Identifier token put in the prompts' `{identifier}` holes.
    pub identifier: String,
    /// Number of images.
    pub count: u64,
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the prompt against the unconditional branch; 1 or less switches it off.
    pub guidance_scale: f64,
    /// `pndm`, `ddim`, `ddpm`, `euler`, `dpmpp-2m`.
    pub scheduler: String,
    /// Width in pixels; 0: what the model was trained for.
    pub width: usize,
    /// Height in pixels; 0: what the model was trained for.
    pub height: usize,
    /// What the unconditional branch reads.
    pub negative_prompt: String,
    /// Images per forward pass; never changes a result.
    pub batch_size: usize,
    /// Image j uses noise of `seed + j`.
    pub seed: u64,
    /// Part `I/N` of the images (I from 0); empty: all.
    pub shard: String,
    /// File with a tensor `latents` [N, 4, h, w] that replaces the noise.
    pub latents: String,
    /// Folder of photos whose layout is kept: image j starts from photo j mod n instead of from noise alone; empty: noise.
    pub init_images: String,
    /// Share of the way to noise that an initial photo goes (0 keeps it, 1 forgets it).
    pub strength: f64,
    /// Photo whose light and colours initial photos take over (FDA) before they are noised: what remains of an initial photo
    /// after noising is its light above all. Empty: they stay as they are.
    pub init_style: String,
    /// FDA's bandwidth for `init_style`.
    pub init_style_bandwidth: f64,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            lora: Vec::new(),
            prompts: String::new(),
            identifier: "sks".into(),
            count: 2975,
            steps: 50,
            guidance_scale: 7.5,
            scheduler: "pndm".into(),
            width: 0,
            height: 0,
            negative_prompt: String::new(),
            batch_size: 1,
            seed: 0,
            shard: String::new(),
            latents: String::new(),
            init_images: String::new(),
            strength: 0.6,
            init_style: String::new(),
            init_style_bandwidth: 0.01,
        }
    }
}

/// `datum adapt`: a segmenter trained on labelled source and unlabelled (pseudo-)target images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptConfig {
    /// Labelled data set.
    pub source: String,
    /// Split of the source; empty: `train` where there is one.
    pub source_split: String,
    /// Unlabelled data set or folder of images; not used by `source-only`.
    pub target: String,
    /// Split of the target; empty: all images.
    pub target_split: String,
    /// `source-only` or `daformer`.
    pub strategy: Strategy,
    /// `mit-b0` … `mit-b5`, `efficientnet-lite0`.
    pub encoder: String,
    /// ImageNet weights of the encoder; empty: random.
    pub encoder_weights: String,
    /// Trained segmenter to start from, a run folder or a file; empty: encoder weights and a random head. For example one
    /// source-only training as the common start of several adaptations.
    pub init: String,
    /// `daformer` or `segformer`.
    pub decoder: String,
    /// Width of the head.
    pub decoder_channels: usize,
    /// Optimiser steps.
    pub iterations: u64,
    /// Source images (and as many target images) per step.
    pub batch_size: usize,
    /// Source photos keep their aspect and fit this size.
    pub source_size: Size,
    /// Target photos likewise; 0×0: as they are.
    pub target_size: Size,
    /// Random crop for training.
    pub crop: Size,
    /// Learning rate of the encoder; the head learns `head_multiplier` times faster.
    pub learning_rate: f64,
    /// Factor of the head's learning rate.
    pub head_multiplier: f64,
    /// Decoupled weight decay (norms of the encoder: none).
    pub weight_decay: f64,
    /// Steps of linear warm-up, then polynomial decay to 0.
    pub warmup: u64,
    /// Rare class sampling temperature; 0 samples images uniformly.
    pub rare_class_temperature: f64,
    /// Class pixels per training image of full size that make it a candidate for that class.
    pub rare_class_min_pixels: u64,
    /// Distort brightness, contrast, saturation and hue of source photos; baselines without self-training use it.
    pub photometric_distortion: bool,
    /// Stylise source photos by swapping low Fourier amplitudes with random target images (FDA).
    pub fourier: f64,
    /// Self-training.
    pub self_training: SelfTrainingConfig,
    /// Size of photos in evaluation; 0×0: as they are.
    pub test_size: Size,
    /// Labelled data set that is scored during training, for the curve alone: the last weights are kept, whatever it says;
    /// empty: none.
    pub validation: String,
    /// Split of the validation; empty: `val` where there is one.
    pub validation_split: String,
    /// Steps between scores of `validation`.
    pub validation_steps: u64,
    /// Images that are scored, evenly taken; 0: all.
    pub validation_images: usize,
    /// Full training state every so many steps.
    pub checkpointing_steps: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads that prepare batches.
    pub workers: usize,
}

impl AdaptConfig {
    /// # Errors
    /// Counts and sizes of 0.
    pub fn validate(&self) -> Result<()> {
        positive(&[
            ("iterations", self.iterations as usize),
            ("batch_size", self.batch_size),
            ("crop.height", self.crop.height),
            ("crop.width", self.crop.width),
        ])?;
        if !self.validation.is_empty() && self.validation_steps == 0 {
            return Err(Error::Usage("validation_steps 0: expected 1 or more".into()));
        }
        Ok(())
    }
}

/// How a segmenter is adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Supervised training on the source.
    SourceOnly,
    /// Self-training with an averaged teacher, ClassMix, rare class sampling and feature distance.
    Daformer,
}

/// Constants of the self-training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelfTrainingConfig {
    /// Decay of the teacher's average.
    pub ema_decay: f64,
    /// Pixels as confident as this count for the weight of the pseudo-labels.
    pub confidence_threshold: f32,
    /// Chance of colour jitter on mixed images.
    pub color_jitter: f32,
    /// Chance of blur on mixed images.
    pub blur: f32,
    /// Weight of the ImageNet feature distance; needs `encoder_weights`.
    pub feature_distance: f64,
    /// Rows at the top of pseudo-labels that are not used.
    pub margin_top: usize,
    /// Rows at the bottom of pseudo-labels that are not used.
    pub margin_bottom: usize,
}

impl Default for AdaptConfig {
    fn default() -> Self {
        Self {
            source: String::new(),
            source_split: String::new(),
            target: String::new(),
            target_split: String::new(),
            strategy: Strategy::Daformer,
            encoder: "mit-b5".into(),
            encoder_weights: String::new(),
            init: String::new(),
            decoder: "daformer".into(),
            decoder_channels: 256,
            iterations: 40_000,
            batch_size: 2,
            source_size: Size { height: 720, width: 1280 },
            target_size: Size { height: 0, width: 0 },
            crop: Size { height: 512, width: 512 },
            learning_rate: 6e-5,
            head_multiplier: 10.0,
            weight_decay: 0.01,
            warmup: 1500,
            rare_class_temperature: 0.01,
            rare_class_min_pixels: 3000,
            photometric_distortion: false,
            fourier: 0.0,
            self_training: SelfTrainingConfig::default(),
            test_size: Size { height: 0, width: 0 },
            validation: String::new(),
            validation_split: String::new(),
            validation_steps: 500,
            validation_images: 0,
            checkpointing_steps: 2000,
            seed: 0,
            workers: 2,
        }
    }
}

impl Default for SelfTrainingConfig {
    fn default() -> Self {
        Self {
            ema_decay: 0.999,
            confidence_threshold: 0.968,
            color_jitter: 0.8,
            blur: 0.5,
            feature_distance: 0.005,
            margin_top: 15,
            margin_bottom: 120,
        }
    }
}
