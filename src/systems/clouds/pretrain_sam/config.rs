//! Every value of `clouds pretrain-sam` with its default. Field names are the keys of recipes (table `pretrain-sam`) and of `--set`.

use crate::base::{Error, Result};
use crate::models::sam::{DecoderConfig, EncoderConfig, SamConfig, VitConfig};
use crate::systems::shared::Size;
use crate::train::schedule::{Schedule, Shape};
use serde::{Deserialize, Serialize};

/// The [`SamPretrainConfig::base`] of new weights.
pub const SCRATCH: &str = "scratch";

/// Heads of the mask decoder: no tensor of a checkpoint tells them, so they are the published ones.
const DECODER_HEADS: usize = 8;
/// Side of a patch in pixels, and of the smallest image.
const PATCH: usize = 16;

/// `clouds pretrain-sam`: a small Segment Anything of one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamPretrainConfig {
    /// Folder of photos.
    pub images: String,
    /// Folder of label maps, PNGs of train ids named and sized as the photos. Connected pieces of a class are what masks are of.
    pub labels: String,
    /// Train ids are below it; 255 is no class.
    pub label_classes: usize,
    /// What training begins with: `scratch`, or a file of an earlier run, whose sizes are kept.
    pub base: String,
    /// Size that photos are seen in before they become the encoder's images.
    pub size: Size,
    /// Chance that a photo is mirrored.
    pub flip: f32,
    /// Chance of each change to a photo: random colours, blur, noise.
    pub degrade: f32,
    /// Sizes of the network.
    pub model: SamModelConfig,
    /// Pieces must have more pixels than this.
    pub min_area: usize,
    /// Pieces of a photo that a step asks for.
    pub prompts: usize,
    /// Most points of a prompt; 1, 3, … up to it are drawn, half of the time all.
    pub points: usize,
    /// Chance that a point is anywhere near its piece instead of on it, as those of wrong pseudo-labels are.
    pub stray: f32,
    /// Weight of a loss that asks the encoder's tokens for the classes below them, through a layer that is not kept: what a thing is tells
    /// where it ends. 0 learns from outlines alone, as published.
    pub class_loss: f64,
    /// Optimiser steps.
    pub steps: u64,
    /// Photos of a step.
    pub batch_size: usize,
    /// Largest learning rate; it rises over `warmup_steps` and falls along half a cosine.
    pub learning_rate: f64,
    /// Steps in which the learning rate rises.
    pub warmup_steps: u64,
    /// Decoupled weight decay of matrices and kernels.
    pub weight_decay: f64,
    /// Photos, evenly taken, that are not learned from but scored.
    pub validation_images: usize,
    /// Steps between scores.
    pub validation_steps: u64,
    /// Full training state every so many steps.
    pub checkpointing_steps: u64,
    /// Seed of everything random.
    pub seed: u64,
}

/// Sizes of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamModelConfig {
    /// Side of the encoder's image in pixels, a multiple of 16; masks have a quarter of it.
    pub image_size: usize,
    /// Features of the encoder's tokens.
    pub dim: usize,
    /// Its blocks.
    pub depth: usize,
    /// Its attention heads.
    pub heads: usize,
    /// Blocks that attend to the whole image; the others to windows.
    pub global: Vec<usize>,
    /// Side of the windows in tokens.
    pub window: usize,
    /// Features of the embedding and of all prompts.
    pub embedding: usize,
    /// Width of the decoder's feed-forward layers.
    pub mlp: usize,
}

impl Default for SamPretrainConfig {
    fn default() -> Self {
        Self {
            images: String::new(),
            labels: String::new(),
            label_classes: 19,
            base: SCRATCH.into(),
            size: Size { height: 128, width: 256 },
            flip: 0.5,
            degrade: 0.5,
            model: SamModelConfig::default(),
            min_area: 40,
            prompts: 6,
            points: 5,
            stray: 0.1,
            class_loss: 1.0,
            steps: 3000,
            batch_size: 8,
            learning_rate: 8e-4,
            warmup_steps: 100,
            weight_decay: 0.05,
            validation_images: 64,
            validation_steps: 250,
            checkpointing_steps: 250,
            seed: 0,
        }
    }
}

impl Default for SamModelConfig {
    /// 1.3 M parameters, 2.6 MB in 16 bit.
    fn default() -> Self {
        Self { image_size: 384, dim: 96, depth: 6, heads: 4, global: vec![2, 5], window: 8, embedding: 96, mlp: 192 }
    }
}

impl SamPretrainConfig {
    /// Checks all that can be checked without looking at files.
    ///
    /// # Errors
    /// Values that nothing can be done with.
    pub fn validate(&self) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        if self.images.is_empty() || self.labels.is_empty() {
            return usage("pretrain-sam needs photos with label maps\n  next: add `--images FOLDER --labels FOLDER`".into());
        }
        let SamModelConfig { image_size, dim, depth, heads, window, embedding, mlp, .. } = self.model;
        let counts = [self.size.height, self.size.width, dim, depth, heads, window, embedding, mlp, self.prompts, self.points];
        if counts.contains(&0) || self.batch_size < 2 || self.steps == 0 || self.validation_steps == 0 {
            return usage("sizes, steps, prompts and points: expected at least 1; batch_size: at least 2".into());
        }
        if !(1..=255).contains(&self.label_classes) {
            return usage(format!("label_classes {} is not 1 to 255", self.label_classes));
        }
        if image_size == 0 || image_size % PATCH != 0 || image_size > 4096 {
            return usage(format!("model.image_size {image_size}: expected a multiple of {PATCH} up to 4096"));
        }
        if dim % heads != 0 || embedding % (2 * DECODER_HEADS) != 0 {
            return usage(format!("model.dim: expected a multiple of heads; model.embedding: of {}", 2 * DECODER_HEADS));
        }
        if self.model.global.iter().any(|block| *block >= depth) {
            return usage(format!("model.global {:?} names blocks beyond depth {depth}", self.model.global));
        }
        if [self.flip, self.degrade, self.stray].iter().any(|share| !(0.0..=1.0).contains(share)) {
            return usage("flip, degrade and stray: expected 0 to 1".into());
        }
        if [self.learning_rate, self.weight_decay, self.class_loss].iter().any(|rate| !(0.0..1e6).contains(rate)) {
            return usage("learning_rate, weight_decay and class_loss: expected numbers of at least 0".into());
        }
        self.schedule().validate()
    }

    /// The learning rate's course.
    pub fn schedule(&self) -> Schedule {
        let warmup_steps = self.warmup_steps.min(self.steps / 2);
        Schedule { shape: Shape::Cosine, steps: self.steps, warmup_steps, ..Schedule::default() }
    }

    /// The network of `model`.
    pub fn network(&self) -> SamConfig {
        let SamModelConfig { image_size, dim, depth, heads, ref global, window, embedding, mlp } = self.model;
        SamConfig {
            image_size,
            encoder: EncoderConfig::Vit(VitConfig { dim, depth, heads, global: global.clone(), window }),
            dim: embedding,
            mask_channels: 16,
            decoder: DecoderConfig { layers: 2, heads: DECODER_HEADS, mlp, quality: embedding },
        }
    }
}
