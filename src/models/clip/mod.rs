//! CLIP: image towers as encoders of several levels, and the text tower that names classes.
//!
//! Names are those of open_clip (`visual.trunk.…`, `transformer.resblocks.…`), so that its files and checkpoints built on
//! it (FC-CLIP, CLOUDS: `backbone.clip_model.…`) load as they are. Segmentation uses the maps of an image tower, and its
//! [`ImageHead`] where CLIP itself is asked; a whole [`Clip`] with one vector an image is for training small ones (ConvNeXt only).
//! Read [`ClipConfig`] first.

mod class_tokens;
mod classes;
mod contrast;
mod convnext;
mod image_head;
mod resnet;
mod text;

pub use class_tokens::class_token_ids;
pub use classes::{STREET_CLASSES, TEMPLATES, class_prompts, class_vectors};
pub use contrast::{Clip, LOGIT_SCALE, MAX_LOGIT_SCALE, contrastive_loss, unit};
pub use convnext::{ConvNext, ConvNextConfig};
pub use image_head::{ImageHead, ImageHeadConfig, mask_means};
pub use resnet::{ModifiedResNet, ModifiedResNetConfig};
pub use text::{TextTower, TextTowerConfig};

use super::segmenter::{Encoder, Normalization};
use super::stable_diffusion::config::TextActivation;
use crate::base::{Error, Result, suggest};
use crate::nn::Builder;
use serde::{Deserialize, Serialize};

/// CLIP's own mean and standard deviation.
pub const NORMALIZATION: Normalization =
    Normalization { mean: [122.770_935, 116.746_01, 104.093_735], std: [68.500_534, 66.632_16, 70.323_166] };

/// Names that [`ClipConfig::named`] knows.
pub const CLIP_NAMES: [&str; 8] = [
    "convnext-nano",
    "convnext-tiny",
    "convnext-small",
    "convnext-base",
    "convnext-base-w",
    "convnext-large-d-320",
    "rn50",
    "rn101",
];

/// The image tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisualConfig {
    /// ConvNeXt, trained by OpenCLIP.
    ConvNext(ConvNextConfig),
    /// The ResNet of the original CLIP.
    ResNet(ModifiedResNetConfig),
}

/// Both towers of one CLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// The image tower.
    pub visual: VisualConfig,
    /// The text tower; its output width is the width D of the common space.
    pub text: TextTowerConfig,
}

impl ClipConfig {
    /// A published size, one of [`CLIP_NAMES`].
    ///
    /// # Errors
    /// Another name, with the closest known one.
    pub fn named(name: &str) -> Result<Self> {
        let convnext = |depths, widths, text: [usize; 4]| {
            let [width, heads, layers, embedding] = text;
            let visual = VisualConfig::ConvNext(ConvNextConfig { depths, widths, drop_path: 0.1 });
            Self { visual, text: TextTowerConfig { width, heads, layers, embedding, ..Default::default() } }
        };
        // The weights of the original CLIP were trained with QuickGELU, whatever the name says.
        let resnet = |depths, embedding| Self {
            visual: VisualConfig::ResNet(ModifiedResNetConfig { depths, width: 64 }),
            text: TextTowerConfig {
                width: 512,
                heads: 8,
                layers: 12,
                embedding,
                activation: TextActivation::QuickGelu,
                ..Default::default()
            },
        };
        Ok(match name {
            "convnext-nano" => convnext([2, 2, 8, 2], [80, 160, 320, 640], [512, 8, 12, 512]),
            "convnext-tiny" => convnext([3, 3, 9, 3], [96, 192, 384, 768], [512, 8, 12, 1024]),
            "convnext-small" => convnext([3, 3, 27, 3], [96, 192, 384, 768], [512, 8, 12, 512]),
            "convnext-base" => convnext([3, 3, 27, 3], [128, 256, 512, 1024], [512, 8, 12, 512]),
            "convnext-base-w" => convnext([3, 3, 27, 3], [128, 256, 512, 1024], [640, 10, 12, 640]),
            "convnext-large-d-320" => convnext([3, 3, 27, 3], [192, 384, 768, 1536], [768, 12, 16, 768]),
            "rn50" => resnet([3, 4, 6, 3], 1024),
            "rn101" => resnet([3, 4, 23, 3], 512),
            _ => {
                let (hint, names) = (suggest::hint(name, &CLIP_NAMES), CLIP_NAMES.join(", "));
                return Err(Error::Usage(format!("no CLIP is named `{name}`; {hint}\n  next: choose one of {names}")));
            }
        })
    }
}

impl VisualConfig {
    /// Channels of the maps at strides 4, 8, 16, 32.
    pub fn channels(&self) -> [usize; 4] {
        match self {
            Self::ConvNext(config) => config.widths,
            Self::ResNet(config) => config.channels(),
        }
    }

    /// Builds the image tower at `builder`, which is the place called `visual` in open_clip's files.
    ///
    /// Built on [`Builder::frozen`], and run with [`Pass::eval`](crate::nn::Pass::eval) on images without gradient, it
    /// records no graph.
    pub fn build(&self, builder: &Builder) -> Result<Box<dyn Encoder>> {
        Ok(match self {
            Self::ConvNext(config) => Box::new(ConvNext::new(config, &builder.pp("trunk"))?),
            Self::ResNet(config) => Box::new(ModifiedResNet::new(config, builder)?),
        })
    }
}
