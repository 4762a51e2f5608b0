//! Convolution, batch norm, ReLU: the unit decoders are made of.

use crate::base::Result;
use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvSpec, Pass};
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
        self.norm.forward_relu(&self.conv.forward(xs)?, pass)
    }
}
