//! Every value of `clouds pretrain` with its default. Field names are the keys of recipes (table `pretrain-clip`) and of `--set`.

use crate::base::{Error, Result};
use crate::models::clip::{ClipConfig, ConvNextConfig, TextTowerConfig, VisualConfig};
use crate::models::stable_diffusion::config::TextActivation;
use crate::systems::shared::Size;
use crate::train::schedule::{Schedule, Shape};
use serde::{Deserialize, Serialize};

/// The [`ClipPretrainConfig::base`] of new weights.
pub const SCRATCH: &str = "scratch";

/// `clouds pretrain`: a small CLIP of one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipPretrainConfig {
    /// Folder of photos.
    pub images: String,
    /// JSON lines `{"file_name": …, "text": …}`; several texts a photo are drawn from. Photos without one are left out.
    pub captions: String,
    /// What training begins with: `scratch`, `nano`, or a folder or packed file of an earlier run, whose sizes and words are kept;
    /// `model` then says the rate of stochastic depth alone.
    pub base: String,
    /// Size that photos are seen in, multiples of 32.
    pub size: Size,
    /// Smallest share of the sides of a photo that a step sees; 1: all of it.
    pub least_share: f32,
    /// Chance that a photo is mirrored.
    pub flip: f32,
    /// Largest relative change of brightness, contrast and saturation, each with probability ½; 0: none.
    pub color_jitter: f32,
    /// Sizes of the network.
    pub model: ClipModelConfig,
    /// Optimiser steps.
    pub steps: u64,
    /// Photos of a step, each with a caption; the captions of the others are what each is told apart from.
    pub batch_size: usize,
    /// Words of captions that tell photos into groups, as `["night", "fog", "day"]` tells lights and weathers: a photo belongs to the
    /// first of them that is at the beginning of a word of its captions (`rain`: also `rainy`, not `train`), or to the rest.
    pub group_words: Vec<String>,
    /// Share of the steps, 0…1, whose photos are all of one group, so that nothing but what differs within it tells them apart. Needs
    /// `group_words`.
    pub group_share: f32,
    /// Largest learning rate; it rises over `warmup_steps` and falls along half a cosine.
    pub learning_rate: f64,
    /// Steps in which the learning rate rises.
    pub warmup_steps: u64,
    /// Decoupled weight decay; biases, norms and scales have none.
    pub weight_decay: f64,
    /// Largest L2 norm of the gradient of all weights together; 0: any.
    pub clip_norm: f64,
    /// Photos, evenly taken, that are not learned from but scored: how often an image finds its caption among 32.
    pub validation_images: usize,
    /// Steps between scores.
    pub validation_steps: u64,
    /// Full training state every so many steps.
    pub checkpointing_steps: u64,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads that prepare batches.
    pub workers: usize,
}

/// Sizes of both towers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipModelConfig {
    /// Blocks of the ConvNeXt's stages.
    pub depths: [usize; 4],
    /// Channels of the stages.
    pub widths: [usize; 4],
    /// Rate of stochastic depth.
    pub drop_path: f32,
    /// First value of `gamma`, which scales what a block adds. ConvNeXt's own 1e-6 is for long trainings.
    pub layer_scale: f32,
    /// Width of the vectors of images and texts.
    pub embedding: usize,
    /// Width of the text tower.
    pub text_width: usize,
    /// Its layers.
    pub text_layers: usize,
    /// Its attention heads.
    pub text_heads: usize,
    /// Longest text in tokens, start and end included.
    pub text_length: usize,
    /// Entries of the vocabulary that is learned from the captions.
    pub vocabulary: usize,
}

impl Default for ClipPretrainConfig {
    fn default() -> Self {
        Self {
            images: String::new(),
            captions: String::new(),
            base: SCRATCH.into(),
            size: Size { height: 128, width: 256 },
            least_share: 0.8,
            flip: 0.5,
            color_jitter: 0.15,
            model: ClipModelConfig::default(),
            steps: 3000,
            batch_size: 32,
            group_words: Vec::new(),
            group_share: 0.0,
            learning_rate: 1e-3,
            warmup_steps: 100,
            weight_decay: 0.1,
            clip_norm: 1.0,
            validation_images: 256,
            validation_steps: 250,
            checkpointing_steps: 250,
            seed: 0,
            workers: 1,
        }
    }
}

impl Default for ClipModelConfig {
    /// 2.7 M parameters, 5.5 MB in 16 bit.
    fn default() -> Self {
        Self {
            depths: [2, 2, 4, 2],
            widths: [32, 64, 128, 256],
            drop_path: 0.0,
            layer_scale: 0.1,
            embedding: 128,
            text_width: 128,
            text_layers: 3,
            text_heads: 4,
            text_length: 64,
            vocabulary: 1024,
        }
    }
}

impl ClipPretrainConfig {
    /// Checks all that can be checked without looking at files.
    ///
    /// # Errors
    /// Values that nothing can be done with.
    pub fn validate(&self) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        if self.images.is_empty() || self.captions.is_empty() {
            return usage("pretrain needs photos with captions\n  next: add `--images FOLDER --captions FILE`".into());
        }
        let Size { height, width } = self.size;
        if [height, width].iter().any(|side| *side == 0 || side % 32 != 0) {
            return usage(format!("size {width}x{height}: expected multiples of 32\n  next: set size.width and size.height"));
        }
        let model = &self.model;
        let sizes = [model.embedding, model.text_width, model.text_layers, model.text_heads];
        if sizes.iter().chain(&model.depths).chain(&model.widths).any(|size| *size == 0) {
            return usage("a size of the model is 0\n  next: give values of at least 1".into());
        }
        if self.batch_size < 2 {
            return usage(format!(
                "batch_size {}: images are told apart from each other\n  next: give at least 2",
                self.batch_size
            ));
        }
        if self.steps == 0 || self.validation_steps == 0 {
            return usage("`steps` or `validation_steps` is 0\n  next: give a value of at least 1".into());
        }
        if self.group_share > 0.0 && self.group_words.is_empty() {
            return usage("group_share: no words tell photos into groups\n  next: set group_words".into());
        }
        let shares = [self.flip, self.color_jitter, self.least_share, self.group_share, model.drop_path];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share)) || self.least_share == 0.0 || model.drop_path == 1.0 {
            return usage(
                "flip, color_jitter and group_share: expected 0 to 1; model.drop_path: below 1; least_share: above 0".into(),
            );
        }
        if [self.learning_rate, self.weight_decay, self.clip_norm].iter().any(|rate| !(0.0..1e6).contains(rate)) {
            return usage("learning_rate, weight_decay and clip_norm: expected numbers of at least 0".into());
        }
        self.schedule().validate()
    }

    /// Steps of a round whose photos are all of the same group of so many.
    pub(super) fn group_steps(&self, photos: usize) -> usize {
        (self.group_share * photos as f32) as usize / self.batch_size
    }

    /// The learning rate's course.
    pub fn schedule(&self) -> Schedule {
        let warmup_steps = self.warmup_steps.min(self.steps / 2);
        Schedule { shape: Shape::Cosine, steps: self.steps, warmup_steps, ..Schedule::default() }
    }

    /// The network for a vocabulary of so many entries.
    pub fn network(&self, vocabulary: usize) -> ClipConfig {
        let ClipModelConfig { depths, widths, drop_path, embedding, text_width, text_layers, text_heads, text_length, .. } =
            self.model;
        ClipConfig {
            visual: VisualConfig::ConvNext(ConvNextConfig { depths, widths, drop_path }),
            text: TextTowerConfig {
                vocabulary,
                context: text_length,
                width: text_width,
                heads: text_heads,
                layers: text_layers,
                embedding,
                activation: TextActivation::Gelu,
            },
        }
    }
}
