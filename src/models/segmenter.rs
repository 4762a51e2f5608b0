//! Semantic segmenters: an encoder that gives feature maps of several levels, a decoder that turns them into logits.
//!
//! Letters: `B` batch, `C` channels, `H W` pixels of the input, `h w` pixels of a level, `K` classes.

use super::daformer_head::DaformerHead;
use super::efficientnet::EfficientNetLite0;
use super::mit::{Mit, MitSize};
use super::segformer_head::SegformerHead;
use super::{efficientnet, mit};
use crate::base::{Error, Result, suggest};
use crate::io::weights::{self, TensorSource};
use crate::nn::{Builder, ParamStore, Pass};
use candle_core::{DType, Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

/// Predicts a class per pixel. Features and head are apart so that losses on features need no second encoder pass.
pub trait Segmenter: Send + Sync {
    /// Feature maps, finest level first.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), normalised, H and W ≥ 32, also odd → per level (B, C, ⌈H/stride⌉, ⌈W/stride⌉)
    fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>>;

    /// Logits from what [`Segmenter::features`] gave.
    ///
    /// # Shapes
    /// → (B, K, h, w) of the finest level (stride 4)
    fn head(&self, features: &[Tensor], pass: &Pass) -> TensorResult<Tensor>;

    /// Logits at stride 4; resize them bilinearly to the labels' or the input's size.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W) → (B, K, ⌈H/4⌉, ⌈W/4⌉)
    fn forward(&self, images: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        self.head(&self.features(images, pass)?, pass)
    }
}

/// One level of an encoder's pyramid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Channels C of the feature map.
    pub channels: usize,
    /// Input pixels per pixel of the feature map.
    pub stride: usize,
}

/// The part of a segmenter that has seen ImageNet.
pub trait Encoder: Send + Sync {
    /// What [`Encoder::features`] gives, finest level first.
    fn levels(&self) -> [Level; 4];

    /// # Shapes
    /// `images` (B, 3, H, W) → per level (B, C, ⌈H/stride⌉, ⌈W/stride⌉)
    fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>>;
}

/// The part of a segmenter that is new for every task.
pub trait Decoder: Send + Sync {
    /// # Shapes
    /// `features` one map per level → logits (B, K, h, w) of the finest level
    fn forward(&self, features: &[Tensor], pass: &Pass) -> TensorResult<Tensor>;
}

/// How an encoder wants its input: `(value − mean) / std` per channel.
///
/// # Range
/// RGB order, values 0…255.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// Subtracted.
    pub mean: [f32; 3],
    /// Divided by.
    pub std: [f32; 3],
}

/// Which segmenter to build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SegmenterConfig {
    /// One of [`ENCODERS`].
    pub encoder: String,
    /// One of [`DECODERS`].
    pub decoder: String,
    /// K, without the ignored one.
    pub num_classes: usize,
    /// Width of the decoder; the paper's (256 for `daformer`, 768 for `segformer`) when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_channels: Option<usize>,
    /// Largest rate of stochastic depth in the encoder, reached at its last block.
    pub drop_path: f32,
    /// Rate of channel dropout before the last layer of the decoder.
    pub dropout: f32,
}

/// Encoders by name.
pub const ENCODERS: [&str; 7] = ["mit-b0", "mit-b1", "mit-b2", "mit-b3", "mit-b4", "mit-b5", "efficientnet-lite0"];

/// Decoders by name.
pub const DECODERS: [&str; 2] = ["daformer", "segformer"];

impl Default for SegmenterConfig {
    /// DAFormer with MiT-B5 for the 19 classes of Cityscapes.
    fn default() -> Self {
        Self {
            encoder: "mit-b5".into(),
            decoder: "daformer".into(),
            num_classes: 19,
            decoder_channels: None,
            drop_path: 0.1,
            dropout: 0.1,
        }
    }
}

impl SegmenterConfig {
    /// # Errors
    /// Unknown names (with the closest known one) and numbers out of range.
    pub fn validate(&self) -> Result<()> {
        known("encoder", &self.encoder, &ENCODERS)?;
        known("decoder", &self.decoder, &DECODERS)?;
        let range = |field: &str, wanted: &str, found: String| Error::Usage(format!("`{field}` must be {wanted}, found {found}"));
        if !(1..=255).contains(&self.num_classes) {
            return Err(range("num_classes", "in 1…255", self.num_classes.to_string()));
        }
        if self.decoder_channels == Some(0) {
            return Err(range("decoder_channels", "at least 1", "0".into()));
        }
        for (field, rate) in [("drop_path", self.drop_path), ("dropout", self.dropout)] {
            if !(0.0..1.0).contains(&rate) {
                return Err(range(field, "at least 0 and below 1", rate.to_string()));
            }
        }
        Ok(())
    }

    /// How this encoder's published weights want their input.
    pub fn normalization(&self) -> Normalization {
        if self.encoder.starts_with("efficientnet") { efficientnet::NORMALIZATION } else { mit::NORMALIZATION }
    }

    fn encoder(&self, builder: &Builder) -> Result<Box<dyn Encoder>> {
        Ok(match MitSize::named(&self.encoder) {
            Some(size) => Box::new(Mit::new(&size, self.drop_path, builder)?),
            None => Box::new(EfficientNetLite0::new(self.drop_path, builder)?),
        })
    }

    fn decoder(&self, levels: &[Level; 4], builder: &Builder) -> Result<Box<dyn Decoder>> {
        let inputs = levels.map(|level| level.channels);
        let width = |default| self.decoder_channels.unwrap_or(default);
        Ok(match self.decoder.as_str() {
            "segformer" => Box::new(SegformerHead::new(inputs, width(768), self.num_classes, self.dropout, builder)?),
            _ => Box::new(DaformerHead::new(inputs, width(256), self.num_classes, self.dropout, builder)?),
        })
    }
}

fn known(what: &str, name: &str, names: &[&str]) -> Result<()> {
    if names.contains(&name) {
        return Ok(());
    }
    let hint = suggest::hint(name, names);
    Err(Error::Usage(format!("no {what} is named `{name}`; {hint}\n  next: choose one of {}", names.join(", "))))
}

/// An encoder and a decoder, under the names `backbone` and `decode_head` that published checkpoints use.
pub struct EncoderDecoder {
    encoder: Box<dyn Encoder>,
    decoder: Box<dyn Decoder>,
    dtype: DType,
}

impl EncoderDecoder {
    /// # Errors
    /// An invalid configuration.
    pub fn new(config: &SegmenterConfig, builder: &Builder) -> Result<Self> {
        config.validate()?;
        let encoder = config.encoder(&builder.pp("backbone"))?;
        let decoder = config.decoder(&encoder.levels(), &builder.pp("decode_head"))?;
        Ok(Self { encoder, decoder, dtype: builder.dtype() })
    }

    /// A segmenter to be trained: the encoder from its published ImageNet weights, the decoder drawn from `seed`.
    ///
    /// # Errors
    /// Weights that are not exactly those of the encoder (their classifier is ignored).
    pub fn pretrained(config: &SegmenterConfig, encoder_weights: Box<dyn TensorSource>, seed: u64) -> Result<(Self, ParamStore)> {
        config.validate()?;
        let source: Box<dyn TensorSource> = match MitSize::named(&config.encoder) {
            Some(_) => Box::new(weights::mit::backbone(encoder_weights)?),
            None => Box::new(weights::efficientnet::backbone(encoder_weights)?),
        };
        let builder = Builder::from_source(source, seed);
        let segmenter = Self::new(config, &builder)?;
        Ok((segmenter, builder.finish_partial(&["decode_head."], &[])?))
    }

    /// Channels and strides of [`Segmenter::features`].
    pub fn levels(&self) -> [Level; 4] {
        self.encoder.levels()
    }
}

impl Segmenter for EncoderDecoder {
    fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>> {
        let (_, _, height, width) = images.dims4()?;
        if height.min(width) < 32 {
            candle_core::bail!("a segmenter needs images of at least 32×32 pixels, found {height}×{width}");
        }
        let maps = self.encoder.features(&images.to_dtype(self.dtype)?, pass)?;
        maps.iter().map(|map| map.to_dtype(DType::F32)).collect()
    }

    fn head(&self, features: &[Tensor], pass: &Pass) -> TensorResult<Tensor> {
        let features = features.iter().map(|map| map.to_dtype(self.dtype)).collect::<TensorResult<Vec<_>>>()?;
        self.decoder.forward(&features, pass)?.to_dtype(DType::F32)
    }
}
