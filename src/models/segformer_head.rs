//! SegFormer's decoder: all levels at the finest size, fused by one linear layer per pixel.

use super::conv_module::ConvModule;
use super::daformer_head::{classifier, embed_levels, level_layers};
use super::segmenter::Decoder;
use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Linear, Pass};
use candle_core::{Result as TensorResult, Tensor};

/// Width of the layer that published files hold and nothing uses.
const UNUSED_CHANNELS: usize = 128;

/// The decoder.
///
/// # Source
/// SegFormer, section 3.2. Levels are stacked finest first, as in DAFormer's code (SegFormer's own stacks them coarsest
/// first).
#[derive(Debug)]
pub struct SegformerHead {
    embed: Vec<Linear>,
    fuse: ConvModule,
    classify: Conv2d,
    dropout: f32,
}

impl SegformerHead {
    /// `inputs`: channels of the levels; `width`: channels of every level's embedding.
    pub fn new(inputs: [usize; 4], width: usize, num_classes: usize, dropout: f32, builder: &Builder) -> Result<Self> {
        // Kept only so that files have the same tensors in both directions; it never gets a gradient.
        classifier(UNUSED_CHANNELS, num_classes, &builder.pp("conv_seg"))?;
        Ok(Self {
            embed: level_layers(&inputs, width, &builder.pp("linear_c"))?,
            fuse: ConvModule::new(inputs.len() * width, width, 1, ConvSpec::default(), &builder.pp("linear_fuse"))?,
            classify: Conv2d::new(width, num_classes, 1, ConvSpec::default(), &builder.pp("linear_pred"))?,
            dropout,
        })
    }
}

impl Decoder for SegformerHead {
    fn forward(&self, features: &[Tensor], pass: &Pass) -> TensorResult<Tensor> {
        let fused = self.fuse.forward(&embed_levels(&self.embed, features)?, pass)?; // (B, D, h, w)
        self.classify.forward(&pass.dropout2d(&fused, self.dropout)?)
    }
}
