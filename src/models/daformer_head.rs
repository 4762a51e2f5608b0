//! DAFormer's decoder: all levels at the finest size, fused by separable convolutions of growing dilation.

use super::conv_module::ConvModule;
use super::segmenter::Decoder;
use super::tokens::per_pixel;
use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init, Linear, Pass, join_channels, resize_bilinear};
use candle_core::{Result as TensorResult, Tensor};

const DILATIONS: [usize; 3] = [6, 12, 18];

/// The decoder.
///
/// # Source
/// DAFormer, section 3.1 and figure 2: context-aware fusion (separable ASPP without image pooling) over all levels.
#[derive(Debug)]
pub struct DaformerHead {
    embed: Vec<Linear>,
    pointwise: ConvModule,
    separable: Vec<(ConvModule, ConvModule)>,
    bottleneck: ConvModule,
    classify: Conv2d,
    dropout: f32,
}

impl DaformerHead {
    /// `inputs`: channels of the levels; `width`: channels of every level's embedding and of every branch.
    pub fn new(inputs: [usize; 4], width: usize, num_classes: usize, dropout: f32, builder: &Builder) -> Result<Self> {
        let fuse = builder.pp("fuse_layer");
        let branches = fuse.pp("aspp_modules");
        let all = inputs.len() * width;
        let separable = |i: usize, dilation: usize| -> Result<_> {
            let spec = ConvSpec { padding: dilation, dilation, groups: all, ..Default::default() };
            let place = branches.pp(i + 1);
            let depthwise = ConvModule::new(all, all, 3, spec, &place.pp("depthwise_conv"))?;
            Ok((depthwise, ConvModule::new(all, width, 1, ConvSpec::default(), &place.pp("pointwise_conv"))?))
        };
        let same_size = ConvSpec { padding: 1, ..Default::default() };
        Ok(Self {
            embed: level_layers(&inputs, width, &builder.pp("embed_layers"))?,
            pointwise: ConvModule::new(all, width, 1, ConvSpec::default(), &branches.pp(0))?,
            separable: DILATIONS.iter().enumerate().map(|(i, &d)| separable(i, d)).collect::<Result<_>>()?,
            bottleneck: ConvModule::new(4 * width, width, 3, same_size, &fuse.pp("bottleneck"))?,
            classify: classifier(width, num_classes, &builder.pp("conv_seg"))?,
            dropout,
        })
    }
}

/// One linear layer per level, named `{level}.proj`.
pub(super) fn level_layers(inputs: &[usize], width: usize, builder: &Builder) -> Result<Vec<Linear>> {
    let layer = |(i, &channels): (usize, &usize)| Linear::new(channels, width, &builder.pp(i).pp("proj"));
    inputs.iter().enumerate().map(layer).collect()
}

/// mmseg's last layer: 1×1 convolution, starts close to zero.
pub(super) fn classifier(inputs: usize, num_classes: usize, builder: &Builder) -> Result<Conv2d> {
    let weight = Init::Normal { std: 0.01 };
    Conv2d::with_init(inputs, num_classes, 1, ConvSpec::default(), builder, weight, Some(Init::Zeros))
}

/// Every level through its linear layer, resized to the finest level, stacked along channels.
///
/// # Shapes
/// `features` per level (B, C, h, w) → (B, levels·D, h₀, w₀)
pub(super) fn embed_levels(layers: &[Linear], features: &[Tensor]) -> TensorResult<Tensor> {
    let Some(finest) = features.first().filter(|_| features.len() == layers.len()) else {
        candle_core::bail!("a decoder of {} levels was given {}", layers.len(), features.len())
    };
    let (_, _, height, width) = finest.dims4()?;
    let maps: Vec<Tensor> = layers
        .iter()
        .zip(features)
        .map(|(layer, map)| resize_bilinear(&per_pixel(layer, map)?, (height, width), false))
        .collect::<TensorResult<_>>()?;
    maps[1..].iter().try_fold(maps[0].clone(), |joined, map| join_channels(&joined, map))
}

impl Decoder for DaformerHead {
    fn forward(&self, features: &[Tensor], pass: &Pass) -> TensorResult<Tensor> {
        let xs = embed_levels(&self.embed, features)?; // (B, 4·D, h, w)
        let mut branches = vec![self.pointwise.forward(&xs, pass)?];
        for (depthwise, pointwise) in &self.separable {
            branches.push(pointwise.forward(&depthwise.forward(&xs, pass)?, pass)?);
        }
        let fused = self.bottleneck.forward(&Tensor::cat(&branches, 1)?, pass)?; // (B, D, h, w)
        self.classify.forward(&pass.dropout2d(&fused, self.dropout)?)
    }
}
