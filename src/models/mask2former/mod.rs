//! Mask2Former's head for semantic segmentation, as CLOUDS and FC-CLIP use it on a CLIP image tower, and its losses.
//!
//! Read [`Mask2Former`] first, then [`pixel_decoder`], [`transformer_decoder`], [`Criterion`]; [`Ensemble`] is an option. Names are
//! those of the published checkpoints (`backbone.clip_model.visual.…`, `sem_seg_head.pixel_decoder.…`, `sem_seg_head.predictor.…`).
//! Letters: `B` batch, `Q` queries, `K` classes, `C` width, `h w` pixels at stride 4, `N` tokens of a level, `T` targets.

mod criterion;
mod ensemble;
mod inference;
mod matcher;
pub mod pixel_decoder;
mod position;
pub mod transformer_decoder;

pub use criterion::{Criterion, CriterionConfig, LayerLosses, Losses, Target};
pub use ensemble::{Ensemble, EnsembleConfig};
pub use inference::semantic_scores;
pub use matcher::assign;
pub use pixel_decoder::PixelDecoder;
pub use transformer_decoder::{CLASS_VECTORS, Prediction, TextClasses, TextHead, TransformerDecoder, VOID};

use super::clip::VisualConfig;
use super::segmenter::Encoder;
use crate::base::{Error, Result};
use crate::nn::{Builder, ParamStore, Pass};
use candle_core::{DType, Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

/// Input pixels per pixel of the smallest feature map.
const SMALLEST: usize = 32;

/// Sizes of the head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadConfig {
    /// K, without the class "no object".
    pub num_classes: usize,
    /// C, width of both decoders and of the mask features; a multiple of 32.
    pub width: usize,
    /// Q.
    pub queries: usize,
    /// Heads of all attentions.
    pub heads: usize,
    /// Points per head and level in the pixel decoder.
    pub points: usize,
    /// Layers of the pixel decoder.
    pub encoder_layers: usize,
    /// Width inside the feed-forward layers of the pixel decoder.
    pub encoder_hidden: usize,
    /// Layers of the Transformer decoder; there is one prediction more.
    pub decoder_layers: usize,
    /// Width inside the feed-forward layers of the Transformer decoder.
    pub decoder_hidden: usize,
    /// The text vectors that classes are compared with; `None` classifies by a linear layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextHead>,
}

impl Default for HeadConfig {
    /// Of the published configurations.
    fn default() -> Self {
        Self {
            num_classes: 19,
            width: 256,
            queries: 100,
            heads: 8,
            points: 4,
            encoder_layers: 6,
            encoder_hidden: 1024,
            decoder_layers: 9,
            decoder_hidden: 2048,
            text: None,
        }
    }
}

impl HeadConfig {
    /// # Errors
    /// Numbers that do not fit together.
    pub fn validate(&self) -> Result<()> {
        let &Self { num_classes, width, queries, heads, points, .. } = self;
        if [num_classes, width, queries, heads, points].contains(&0) || width % 32 != 0 || width % heads != 0 {
            return Err(Error::Usage(format!(
                "a head needs classes, queries and points, and a width that is a multiple of 32 and of the heads; found \
                 {num_classes} classes, {queries} queries, {points} points, width {width}, {heads} heads"
            )));
        }
        if let Some(TextHead { width, synonyms }) = &self.text
            && (*width == 0 || synonyms.len() != num_classes || synonyms.contains(&0))
        {
            return Err(Error::Usage(format!(
                "a head that compares with class names needs vectors and at least one name for each of {num_classes} classes; found \
                 {synonyms:?} names, width {width}"
            )));
        }
        Ok(())
    }
}

/// Pixel decoder and Transformer decoder, without the backbone: what is trained, and what a teacher has its own copy of.
#[derive(Debug)]
pub struct Mask2FormerHead {
    pixel_decoder: PixelDecoder,
    decoder: TransformerDecoder,
    dtype: DType,
}

impl Mask2FormerHead {
    /// For feature maps of `channels`, finest level first. Names `sem_seg_head.pixel_decoder`, `sem_seg_head.predictor`.
    ///
    /// # Errors
    /// An invalid configuration.
    pub fn new(config: &HeadConfig, channels: [usize; 4], builder: &Builder) -> Result<Self> {
        config.validate()?;
        let head = builder.pp("sem_seg_head");
        Ok(Self {
            pixel_decoder: PixelDecoder::new(config, channels, &head.pp("pixel_decoder"))?,
            decoder: TransformerDecoder::new(config, &head.pp("predictor"))?,
            dtype: builder.dtype(),
        })
    }

    /// The predictions of all layers; the last is the answer, the others are only trained.
    ///
    /// # Shapes
    /// `features` (B, channels, …) at strides 4, 8, 16, 32 → logits (B, Q, K + 1) and masks (B, Q, h, w)
    ///
    /// # Errors
    /// A head with a text classifier needs `classes`.
    pub fn forward(&self, features: &[Tensor], classes: Option<&TextClasses>) -> TensorResult<Vec<Prediction>> {
        let features = features.iter().map(|map| map.to_dtype(self.dtype)).collect::<TensorResult<Vec<_>>>()?;
        self.decoder.forward(&self.pixel_decoder.forward(&features)?, classes)
    }
}

/// Which network to build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mask2FormerConfig {
    /// The backbone.
    pub backbone: VisualConfig,
    /// The backbone is not trained: its weights are constants, and it always runs in evaluation mode.
    pub freeze_backbone: bool,
    /// The head.
    pub head: HeadConfig,
    /// CLIP's own opinion beside the head's, in [`Mask2Former::scores`]; absent: it is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ensemble: Option<EnsembleConfig>,
}

impl Mask2FormerConfig {
    /// The ensemble of this network, if it has one; see [`Ensemble::build`].
    pub fn ensemble(&self, builder: &Builder) -> Result<Option<Ensemble>> {
        self.ensemble.as_ref().map(|config| Ensemble::build(config, &self.backbone, builder)).transpose()
    }
}

/// A CLIP image tower with Mask2Former's head.
pub struct Mask2Former {
    backbone: Box<dyn Encoder>,
    frozen: bool,
    head: Mask2FormerHead,
    ensemble: Option<Ensemble>,
    dtype: DType,
}

impl Mask2Former {
    /// Names `backbone.clip_model.visual.…`, those of [`Mask2FormerHead::new`] and, with one, of [`Ensemble::build`].
    ///
    /// # Errors
    /// An invalid configuration.
    pub fn new(config: &Mask2FormerConfig, builder: &Builder) -> Result<Self> {
        let place = builder.pp("backbone").pp("clip_model").pp("visual");
        let place = if config.freeze_backbone { place.frozen() } else { place };
        let head = Mask2FormerHead::new(&config.head, config.backbone.channels(), builder)?;
        let backbone = config.backbone.build(&place)?;
        let ensemble = config.ensemble(builder)?;
        Ok(Self { backbone, frozen: config.freeze_backbone, head, ensemble, dtype: builder.dtype() })
    }

    /// The backbone's maps at strides 4, 8, 16, 32. Student and teacher share them where they see the same images.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), normalised, H and W multiples of 32 → (B, C, H/stride, W/stride)
    pub fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>> {
        let images = images.to_dtype(self.dtype)?;
        let maps = match self.frozen {
            true => self.backbone.features(&images.detach(), &Pass::eval())?,
            false => self.backbone.features(&images, pass)?,
        };
        maps.iter().map(|map| map.to_dtype(DType::F32)).collect()
    }

    /// See [`Mask2FormerHead::forward`].
    pub fn head(&self, features: &[Tensor], classes: Option<&TextClasses>) -> TensorResult<Vec<Prediction>> {
        self.head.forward(features, classes)
    }

    /// [`semantic_scores`] of whole images of any size: padded at the bottom and right with 0 to multiples of 32, the padding cut off
    /// again.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), normalised → (B, K, H, W)
    ///
    /// # Errors
    /// A head with a text classifier needs `classes`.
    pub fn scores(&self, images: &Tensor, classes: Option<&TextClasses>) -> TensorResult<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        let padded = (height.next_multiple_of(SMALLEST), width.next_multiple_of(SMALLEST));
        let inputs = images.pad_with_zeros(2, 0, padded.0 - height)?.pad_with_zeros(3, 0, padded.1 - width)?;
        let features = self.features(&inputs, &Pass::eval())?;
        let Some(mut answer) = self.head(&features, classes)?.pop() else { candle_core::bail!("the decoder made no prediction") };
        if let Some(ensemble) = &self.ensemble {
            answer = ensemble.mix(&answer, &features[features.len() - 1])?;
        }
        semantic_scores(&answer, padded)?.narrow(2, 0, height)?.narrow(3, 0, width)?.contiguous()
    }
}

/// True when weight decay applies to the weight `name` of `store`: to all but norms and tables of embeddings.
///
/// # Source
/// The published training code. The level embedding of the pixel decoder is no table there, and decays.
pub fn is_decayed(name: &str, store: &ParamStore) -> bool {
    const TABLES: [&str; 4] = ["query_feat", "query_embed", "predictor.level_embed", "void_embedding"];
    let Some((place, "weight" | "bias")) = name.rsplit_once('.') else { return true };
    let is_norm = store.get(&format!("{place}.weight")).is_some_and(|weight| weight.rank() == 1);
    !is_norm && !TABLES.iter().any(|table| place.ends_with(table))
}
