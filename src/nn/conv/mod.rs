//! Two-dimensional convolution.

mod columns;
mod depthwise;
mod direct;
mod op;
#[cfg(test)]
mod plain_sum;
mod plane;
mod small;
mod tiles;
mod winograd;

use super::graph::{self, Reads};
use super::{Builder, Init, cpu};
use crate::base::Result;
use candle_core::{Result as TensorResult, Tensor};
use op::Convolution;
#[cfg(any(test, feature = "cuda"))]
pub(super) use op::Sizes;

/// Stride, padding, dilation and groups of a convolution; equal in both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvSpec {
    /// Step between output positions in pixels.
    pub stride: usize,
    /// Zeros added on every side.
    pub padding: usize,
    /// Distance between kernel taps in pixels.
    pub dilation: usize,
    /// Channels are split into that many independent convolutions.
    pub groups: usize,
}

impl Default for ConvSpec {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

/// Convolution with fused bias, of all images or of each. The gradient of a frozen weight is never computed. Sizes may be odd.
///
/// # Shapes
/// `xs` (B, C, H, W), `weight` (O, C/groups, kh, kw), `bias` (O) or (B, O) → (B, O, H', W'),
/// H' = ⌊(H + 2·padding − dilation·(kh − 1) − 1)/stride⌋ + 1
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, spec: ConvSpec) -> TensorResult<Tensor> {
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        let sizes = Sizes::new(xs.dims(), weight.dims(), spec)?;
        sizes.check_bias(bias.map(Tensor::dims))?;
        return super::cuda::conv2d(&xs, &weight, bias, sizes);
    }
    if cpu::is_narrow(&xs) {
        return cpu::rounded([&xs, &weight.to_dtype(xs.dtype())?], |[xs, weight]| conv2d(xs, weight, bias, spec));
    }
    match bias {
        Some(bias) => graph::apply3(&xs, &weight, &bias.contiguous()?, Reads::Arguments, Convolution(spec)),
        None => graph::apply2(&xs, &weight, Reads::Arguments, Convolution(spec)),
    }
}

/// A convolution layer.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    spec: ConvSpec,
}

impl Conv2d {
    /// Square kernel, with bias; PyTorch's default initialisation.
    pub fn new(in_channels: usize, out_channels: usize, kernel: usize, spec: ConvSpec, builder: &Builder) -> Result<Self> {
        let bound = 1.0 / ((in_channels / spec.groups * kernel * kernel) as f32).sqrt();
        Self::with_init(in_channels, out_channels, kernel, spec, builder, Init::FanInUniform, Some(Init::Uniform { bound }))
    }

    /// Square kernel, without bias; Kaiming-normal fan-out initialisation, for convolutions before a norm.
    pub fn no_bias(in_channels: usize, out_channels: usize, kernel: usize, spec: ConvSpec, builder: &Builder) -> Result<Self> {
        Self::with_init(in_channels, out_channels, kernel, spec, builder, Init::KaimingFanOut { groups: spec.groups }, None)
    }

    /// With chosen initial values; `bias: None` builds a layer without bias.
    pub fn with_init(
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        spec: ConvSpec,
        builder: &Builder,
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self> {
        Ok(Self {
            weight: builder.get(&[out_channels, in_channels / spec.groups, kernel, kernel], "weight", weight)?,
            bias: bias.map(|init| builder.get(&[out_channels], "bias", init)).transpose()?,
            spec,
        })
    }

    /// # Shapes
    /// `xs` (B, C, H, W) → (B, O, H', W'), see [`conv2d`]
    pub fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        conv2d(xs, &self.weight, self.bias.as_ref(), self.spec)
    }

    /// With a number for every channel of every image added to all its pixels, which costs nothing.
    ///
    /// # Shapes
    /// `xs` (B, C, H, W), `shift` (B, O) → (B, O, H', W')
    pub fn forward_shifted(&self, xs: &Tensor, shift: &Tensor) -> TensorResult<Tensor> {
        let bias = match &self.bias {
            Some(bias) => shift.to_dtype(bias.dtype())?.broadcast_add(bias)?,
            None => shift.clone(),
        };
        conv2d(xs, &self.weight, Some(&bias), self.spec)
    }
}
