//! A whole CLIP: both towers, the vector of an image, and the loss that brings images and their captions together.

use super::image_head::MeanHead;
use super::{ClipConfig, ConvNext, TextTower, VisualConfig};
use crate::base::{Error, Result};
use crate::models::segmenter::Encoder;
use crate::nn::{Builder, Init, Pass, cross_entropy, linear};
use candle_core::{D, Result as TensorResult, Tensor};

/// Logarithm of 1/0.07, the first logit scale.
const FIRST_LOGIT_SCALE: f32 = 2.659_26;
/// Logarithm of 100, the largest logit scale: [`Clip::logit_scale`] is kept at or below it after each step.
pub const MAX_LOGIT_SCALE: f32 = 4.605_170_2;
/// Name of the logarithm of the logit scale.
pub const LOGIT_SCALE: &str = "logit_scale";

/// Image tower, text tower and the scale of their products.
///
/// # Source
/// CLIP, figure 3, with the names of open_clip and its head for ConvNeXt (mean over pixels, norm, two layers).
#[derive(Debug)]
pub struct Clip {
    trunk: ConvNext,
    head: MeanHead,
    text: TextTower,
    logit_scale: Tensor,
}

impl Clip {
    /// Names `visual.trunk.…`, `visual.head.mlp.{fc1,fc2}`, those of [`TextTower`], and `logit_scale`.
    ///
    /// # Errors
    /// An image tower that is no ConvNeXt; sizes that do not fit each other.
    pub fn new(config: &ClipConfig, builder: &Builder) -> Result<Self> {
        let VisualConfig::ConvNext(convnext) = &config.visual else {
            return Err(Error::Usage("vectors of images are made by ConvNeXt towers only\n  next: choose a ConvNeXt".into()));
        };
        let (width, embedding, visual) = (convnext.widths[3], config.text.embedding, builder.pp("visual"));
        Ok(Self {
            trunk: ConvNext::new(convnext, &visual.pp("trunk"))?,
            head: MeanHead::new(width, Some(2 * embedding), embedding, &visual)?,
            text: TextTower::new(&config.text, builder)?,
            logit_scale: builder.get(&[], LOGIT_SCALE, Init::Constant { value: FIRST_LOGIT_SCALE })?,
        })
    }

    /// The vector of each image, not normalised.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), normalised with [`NORMALIZATION`](super::NORMALIZATION), H and W multiples of 32 → (B, D)
    pub fn image_vectors(&self, images: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let maps = self.trunk.features(images, pass)?;
        self.head.forward(&maps[maps.len() - 1].flatten_from(2)?.mean(2)?)
    }

    /// The vector of each text, not normalised; see [`TextTower::forward`].
    ///
    /// # Shapes
    /// `ids` (B, T) u32 → (B, D)
    pub fn text_vectors(&self, ids: &Tensor) -> TensorResult<Tensor> {
        self.text.forward(ids)
    }

    /// What makes [`Self::text_vectors`].
    pub fn text_tower(&self) -> &TextTower {
        &self.text
    }

    /// The logarithm of what products of vectors are multiplied with, a scalar.
    pub fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }
}

/// How well each image finds its own text among those of the batch, and each text its image: the mean of both cross-entropies.
///
/// # Shapes
/// `images`, `texts` (B, D), row i of both belongs together; `logit_scale` scalar, a logarithm → scalar
///
/// # Source
/// CLIP, figure 3.
pub fn contrastive_loss(images: &Tensor, texts: &Tensor, logit_scale: &Tensor) -> TensorResult<Tensor> {
    let logits = linear(&unit(images)?, &unit(texts)?, None)?.broadcast_mul(&logit_scale.exp()?)?; // (image, text)
    let count = logits.dim(0)?;
    let own = Tensor::arange(0u32, count as u32, logits.device())?.reshape((1, 1, count))?;
    // One row of "pixels", one for each text (image); its classes are the images (texts).
    let direction = |logits: Tensor| cross_entropy(&logits.contiguous()?.reshape((1, count, 1, count))?, &own, None);
    (direction(logits.t()?)? + direction(logits)?)? * 0.5
}

/// Rows brought to length 1. # Shapes: (…, D) → same
pub fn unit(xs: &Tensor) -> TensorResult<Tensor> {
    xs.broadcast_div(&xs.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}
