//! Convolution, batch norm, ReLU: the unit decoders are made of.

use crate::base::Result;
use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvSpec, Pass, relu};
use candle_core::{Result as TensorResult, Tensor};

/// A convolution without bias, batch norm and ReLU, under mmseg's names `conv` and `bn`.
#[derive(Debug)]
pub(crate) struct ConvModule {
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl ConvModule {
    pub(crate) fn new(inputs: usize, outputs: usize, kernel: usize, spec: ConvSpec, builder: &Builder) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::no_bias(inputs, outputs, kernel, spec, &builder.pp("conv"))?,
            norm: BatchNorm2d::new(outputs, &builder.pp("bn"))?,
        })
    }

    /// # Shapes
    /// `xs` (B, inputs, H, W) → (B, outputs, H', W')
    pub(crate) fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        relu(&self.norm.forward(&self.conv.forward(xs)?, pass)?)
    }
}

/// A linear layer on every pixel.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, D, H, W)
pub(crate) fn per_pixel(layer: &crate::nn::Linear, xs: &Tensor) -> TensorResult<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    tokens_to_map(&layer.forward(&map_to_tokens(xs)?)?, (height, width))
}

/// # Shapes
/// (B, C, H, W) → (B, H·W, C), contiguous
pub(crate) fn map_to_tokens(xs: &Tensor) -> TensorResult<Tensor> {
    xs.flatten_from(2)?.transpose(1, 2)?.contiguous()
}

/// # Shapes
/// (B, H·W, C) and `grid` (H, W) → (B, C, H, W)
pub(crate) fn tokens_to_map(xs: &Tensor, grid: (usize, usize)) -> TensorResult<Tensor> {
    let (batch, _, channels) = xs.dims3()?;
    xs.transpose(1, 2)?.reshape((batch, channels, grid.0, grid.1))
}
