//! CLIP's own opinion of what a mask shows, mixed into that of the head.

use super::transformer_decoder::{ClassVectors, Prediction, TextHead};
use crate::base::Result;
use crate::models::clip::{ImageHead, ImageHeadConfig, LOGIT_SCALE, VisualConfig};
use crate::nn::{Builder, Init, resize_bilinear, softmax};
use candle_core::{D, DType, Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

/// Keeps the logarithm of a probability of 0 finite.
const SMALLEST: f64 = 1e-8;

/// How to ask CLIP, and how much its answer counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnsembleConfig {
    /// Share of CLIP, 0 to 1: the exponent of its probabilities.
    pub alpha: f64,
    /// Where a mask has no pixel at the size of CLIP's map, the head alone is asked.
    pub valid_mask_only: bool,
    /// How CLIP makes vectors of parts of an image.
    pub image_head: ImageHeadConfig,
    /// Whose names are compared.
    pub names: TextHead,
}

/// Both opinions: `p ∝ head^(1−α) · CLIP^α` over the classes, "no object" as the head says. All weights are CLIP's own, constants.
///
/// # Source
/// FC-CLIP, section 3.3 (equation 6), for classes that the head was trained with; CLOUDS' code has it as `GEOMETRIC_ENSEMBLE`.
#[derive(Debug)]
pub struct Ensemble {
    image_head: ImageHead,
    names: ClassVectors,
    logit_scale: Tensor,
    alpha: f64,
    valid_mask_only: bool,
}

impl Ensemble {
    /// Built at the root: names below `backbone.clip_model` ([`ImageHead::new`], `logit_scale`), and `class_vectors`.
    pub fn build(config: &EnsembleConfig, tower: &VisualConfig, builder: &Builder) -> Result<Self> {
        let clip = builder.pp("backbone").pp("clip_model").frozen();
        Ok(Self {
            image_head: ImageHead::new(config.image_head, tower, config.names.width, &clip.pp("visual"))?,
            names: ClassVectors::build(&config.names, builder)?,
            logit_scale: clip.get(&[], LOGIT_SCALE, Init::Constant { value: 0.0 })?,
            alpha: config.alpha,
            valid_mask_only: config.valid_mask_only,
        })
    }

    /// `answer` with other logits, the logarithms of probabilities.
    ///
    /// # Shapes
    /// `answer` of (B, Q, K + 1) and (B, Q, h, w), `map` (B, C, h', w'), the last of the tower → as `answer`, without gradient
    pub fn mix(&self, answer: &Prediction, map: &Tensor) -> TensorResult<Prediction> {
        let logits = answer.logits.detach();
        let classes = logits.dim(2)? - 1;
        let size = (map.dim(2)?, map.dim(3)?);
        let masks = resize_bilinear(&answer.masks.detach(), size, false)?;
        let inside = masks.gt(0.0)?.to_dtype(DType::F32)?.flatten_from(2)?; // (B, Q, N)
        let vectors = self.image_head.of_masks(map, &inside)?;
        // Powers of probabilities are multiples of logits; what normalises them cancels out.
        let (ours, theirs) = (logits.narrow(2, 0, classes)?, self.names.compare(&vectors, &self.logit_scale)?);
        let share = match self.valid_mask_only {
            true => (inside.max_keepdim(D::Minus1)? * self.alpha)?,
            false => (inside.narrow(2, 0, 1)?.zeros_like()? + self.alpha)?,
        }; // (B, Q, 1)
        let mixed = (&ours + (theirs - &ours)?.broadcast_mul(&share)?)?;
        let void = softmax(&logits)?.narrow(2, classes, 1)?;
        let named = softmax(&mixed)?.broadcast_mul(&void.affine(-1.0, 1.0)?)?;
        let logits = (Tensor::cat(&[named, void], 2)? + SMALLEST)?.log()?;
        Ok(Prediction { logits, masks: answer.masks.clone() })
    }
}
