//! Segment Anything (Kirillov et al., 2023) and MobileSAM (Zhang et al., 2023): an image is encoded once, then any number of
//! prompts is decoded into masks. For inference; the names are those of the published checkpoints.
//!
//! Letters: `B` prompts (or images, for the encoder), `C` features, `g` side of the embedding (image size / 16).

mod blocks;
mod decoder;
mod prompt;
mod tiny_vit;
mod vit;

pub use decoder::DecoderConfig;
pub use prompt::Prompts;
pub use tiny_vit::TinyVitConfig;
pub use vit::VitConfig;

use super::segmenter::Normalization;
use crate::base::Result;
use crate::nn::{Builder, Pass};
use candle_core::{Result as TensorResult, Tensor, bail};
use decoder::MaskDecoder;
use prompt::PromptEncoder;
use std::collections::BTreeMap;
use tiny_vit::TinyVit;
use vit::{PATCH, Vit};

/// How images are normalised, in 0…255.
pub const NORMALIZATION: Normalization = Normalization { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };
/// A pixel belongs to a mask when its logit is above this.
pub const MASK_THRESHOLD: f32 = 0.0;
/// Names in MobileSAM's file that belong to its classifier or only count batches.
pub const UNUSED: [&str; 2] = ["image_encoder.norm_head", "image_encoder.head"];

/// Prompts that are decoded at once. Never changes a result.
const CHUNK: usize = 256;

/// Which image encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncoderConfig {
    /// Plain vision transformer.
    Vit(VitConfig),
    /// TinyViT.
    TinyVit(TinyVitConfig),
}

/// Sizes of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamConfig {
    /// Side of the encoder's image in pixels, a multiple of 16.
    pub image_size: usize,
    /// The image encoder.
    pub encoder: EncoderConfig,
    /// Features of the embedding and of all tokens.
    pub dim: usize,
    /// Channels within the layers that read masks.
    pub mask_channels: usize,
    /// The mask decoder.
    pub decoder: DecoderConfig,
}

impl SamConfig {
    fn published(encoder: EncoderConfig) -> Self {
        let decoder = DecoderConfig { layers: 2, heads: 8, mlp: 2048, quality: 256 };
        Self { image_size: 1024, encoder, dim: 256, mask_channels: 16, decoder }
    }

    fn vit(dim: usize, depth: usize, heads: usize, global: [usize; 4]) -> Self {
        Self::published(EncoderConfig::Vit(VitConfig { dim, depth, heads, global: global.into(), window: 14 }))
    }

    /// `sam_vit_b_01ec64.pth`.
    pub fn vit_b() -> Self {
        Self::vit(768, 12, 12, [2, 5, 8, 11])
    }

    /// `sam_vit_l_0b3195.pth`.
    pub fn vit_l() -> Self {
        Self::vit(1024, 24, 16, [5, 11, 17, 23])
    }

    /// `sam_vit_h_4b8939.pth`.
    pub fn vit_h() -> Self {
        Self::vit(1280, 32, 16, [7, 15, 23, 31])
    }

    /// The model that a checkpoint with tensors of these names and shapes holds; none for other files. Attention heads of the
    /// decoder and all of TinyViT are taken to be the published ones; strict loading tells where they are not.
    pub fn of_shapes(shapes: &BTreeMap<String, Vec<usize>>) -> Option<Self> {
        let size = |name: &str, axis: usize| shapes.get(name)?.get(axis).copied().filter(|size| *size > 0);
        let count = |prefix: &str| (0..).take_while(|i| shapes.contains_key(&format!("{prefix}.{i}.norm1.weight"))).count();
        let decoder = DecoderConfig {
            layers: count("mask_decoder.transformer.layers"),
            heads: 8,
            mlp: size("mask_decoder.transformer.layers.0.mlp.lin1.weight", 0)?,
            quality: size("mask_decoder.iou_prediction_head.layers.0.weight", 0)?,
        };
        let mask_channels = size("prompt_encoder.mask_downscaling.3.weight", 0)?;
        let config = |image_size, encoder, dim| Self { image_size, encoder, dim, mask_channels, decoder };
        if shapes.contains_key("image_encoder.patch_embed.seq.0.c.weight") {
            let Self { image_size, encoder, dim, .. } = Self::mobile();
            return Some(config(image_size, encoder, dim));
        }
        let (grid, dim) = (size("image_encoder.pos_embed", 1)?, size("image_encoder.patch_embed.proj.weight", 0)?);
        let depth = count("image_encoder.blocks");
        let reach = |i: usize| size(&format!("image_encoder.blocks.{i}.attn.rel_pos_h"), 0);
        let global: Vec<usize> = (0..depth).filter(|i| reach(*i) == Some(2 * grid - 1)).collect();
        let window = (0..depth).filter(|i| !global.contains(i)).find_map(reach).map_or(grid, |reach| reach.div_ceil(2));
        let heads = dim / size("image_encoder.blocks.0.attn.rel_pos_h", 1)?;
        let encoder = EncoderConfig::Vit(VitConfig { dim, depth, heads, global, window });
        Some(config(grid * PATCH, encoder, size("image_encoder.neck.0.weight", 0)?))
    }

    /// For people: `SAM ViT-B`, `MobileSAM`, …
    pub fn name(&self) -> &'static str {
        match &self.encoder {
            EncoderConfig::TinyVit(_) => "MobileSAM",
            encoder if *encoder == Self::vit_b().encoder => "SAM ViT-B",
            encoder if *encoder == Self::vit_l().encoder => "SAM ViT-L",
            encoder if *encoder == Self::vit_h().encoder => "SAM ViT-H",
            EncoderConfig::Vit(_) => "SAM",
        }
    }

    /// `mobile_sam.pt`.
    pub fn mobile() -> Self {
        Self::published(EncoderConfig::TinyVit(TinyVitConfig {
            dims: [64, 128, 160, 320],
            depths: [2, 2, 6, 2],
            heads: [2, 4, 5, 10],
            windows: [7, 7, 14, 7],
        }))
    }
}

#[derive(Debug)]
enum Encoder {
    Vit(Vit),
    TinyVit(TinyVit),
}

/// See the module.
#[derive(Debug)]
pub struct Sam {
    encoder: Encoder,
    prompts: PromptEncoder,
    decoder: MaskDecoder,
    image_size: usize,
}

impl Sam {
    /// Names `image_encoder.…`, `prompt_encoder.…`, `mask_decoder.…`.
    pub fn new(config: &SamConfig, builder: &Builder) -> Result<Self> {
        let place = builder.pp("image_encoder");
        let encoder = match &config.encoder {
            EncoderConfig::Vit(vit) => Encoder::Vit(Vit::new(vit, config.image_size / PATCH, config.dim, &place)?),
            EncoderConfig::TinyVit(tiny) => Encoder::TinyVit(TinyVit::new(tiny, config.dim, &place)?),
        };
        let prompts = builder.pp("prompt_encoder");
        Ok(Self {
            encoder,
            prompts: PromptEncoder::new(config.dim, config.mask_channels, config.image_size, &prompts)?,
            decoder: MaskDecoder::new(config.dim, config.decoder, &builder.pp("mask_decoder"))?,
            image_size: config.image_size,
        })
    }

    /// Side of the encoder's image in pixels.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// The embedding of images. MobileSAM's batch norms follow `pass`: CLOUDS' published code runs them on the statistics of the
    /// image itself ([`Pass::statistics_only`]), everything else on the running ones.
    ///
    /// # Shapes
    /// `images` (B, 3, S, S), normalised, then padded with zeros at the bottom and right → (B, C, g, g)
    pub fn encode(&self, images: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        if (height, width) != (self.image_size, self.image_size) {
            bail!("an image of {0}x{0} pixels is expected, found {height}x{width}", self.image_size);
        }
        match &self.encoder {
            Encoder::Vit(vit) => vit.forward(images),
            Encoder::TinyVit(tiny) => tiny.forward(images, pass),
        }
    }

    /// All four answers to each prompt and their expected IoUs, all prompts at once, for training: the first for a prompt without
    /// doubt, then those of [`Self::decode`] with `multimask`.
    ///
    /// # Shapes
    /// `embedding` (1, C, g, g) → logits (B, 4, 4g, 4g) and (B, 4)
    pub fn answers(&self, embedding: &Tensor, prompts: &Prompts) -> TensorResult<(Tensor, Tensor)> {
        let places = self.prompts.grid(embedding.dim(2)?)?;
        let (tokens, dense) = self.prompts.forward(prompts)?;
        self.decoder.forward(embedding, &places, &tokens, &dense)
    }

    /// Masks for prompts on one image, and the IoU that the model expects of each. With `multimask` three masks (whole, part,
    /// part of a part), else the one for a prompt without doubt.
    ///
    /// # Shapes
    /// `embedding` (1, C, g, g) → logits (B, 3 or 1, 4g, 4g) and (B, 3 or 1)
    pub fn decode(&self, embedding: &Tensor, prompts: &Prompts, multimask: bool) -> TensorResult<(Tensor, Tensor)> {
        let count = prompts.count()?;
        if embedding.dim(0)? != 1 || count == 0 {
            bail!("prompts for one image are expected, found {count} for {}", embedding.dim(0)?);
        }
        let places = self.prompts.grid(embedding.dim(2)?)?;
        let (first, masks) = if multimask { (1, 3) } else { (0, 1) };
        let (mut logits, mut qualities) = (Vec::new(), Vec::new());
        for start in (0..count).step_by(CHUNK) {
            let (tokens, dense) = self.prompts.forward(&prompts.narrow(start, CHUNK.min(count - start))?)?;
            let (mask, quality) = self.decoder.forward(embedding, &places, &tokens, &dense)?;
            logits.push(mask.narrow(1, first, masks)?);
            qualities.push(quality.narrow(1, first, masks)?);
        }
        Ok((Tensor::cat(&logits, 0)?, Tensor::cat(&qualities, 0)?))
    }
}
