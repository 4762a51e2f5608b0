//! Convolutional blocks that the U-Net and the autoencoder share.

use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, GroupNorm, Linear, add, resize_nearest};
use candle_core::{Result as TensorResult, Tensor};

/// 3×3 convolution that keeps the size.
pub(super) fn conv3x3(in_channels: usize, out_channels: usize, builder: &Builder) -> Result<Conv2d> {
    Conv2d::new(in_channels, out_channels, 3, ConvSpec { padding: 1, ..ConvSpec::default() }, builder)
}

/// 1×1 convolution.
pub(super) fn conv1x1(in_channels: usize, out_channels: usize, builder: &Builder) -> Result<Conv2d> {
    Conv2d::new(in_channels, out_channels, 1, ConvSpec::default(), builder)
}

/// How group norms of one network are built.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormSpec {
    pub groups: usize,
    pub eps: f64,
}

impl NormSpec {
    pub fn build(self, channels: usize, builder: &Builder) -> Result<GroupNorm> {
        GroupNorm::new(self.groups, channels, self.eps, builder)
    }
}

/// Two convolutions around a residual connection; in the U-Net the timestep embedding is added between them.
#[derive(Debug)]
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_projection: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// `time_dim`: width of the timestep embedding, if the block takes one.
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        time_dim: Option<usize>,
        norm: NormSpec,
        builder: &Builder,
    ) -> Result<Self> {
        let shortcut = || conv1x1(in_channels, out_channels, &builder.pp("conv_shortcut"));
        Ok(Self {
            norm1: norm.build(in_channels, &builder.pp("norm1"))?,
            conv1: conv3x3(in_channels, out_channels, &builder.pp("conv1"))?,
            time_projection: time_dim.map(|dim| Linear::new(dim, out_channels, &builder.pp("time_emb_proj"))).transpose()?,
            norm2: norm.build(out_channels, &builder.pp("norm2"))?,
            conv2: conv3x3(out_channels, out_channels, &builder.pp("conv2"))?,
            shortcut: (in_channels != out_channels).then(shortcut).transpose()?,
        })
    }

    /// # Shapes
    /// `xs` (B, C, h, w), `time` (B, time_dim), the embedding after its SiLU → (B, O, h, w)
    pub fn forward(&self, xs: &Tensor, time: Option<&Tensor>) -> TensorResult<Tensor> {
        let normed = self.norm1.forward_silu(xs)?;
        let ys = match (&self.time_projection, time) {
            (Some(projection), Some(time)) => self.conv1.forward_shifted(&normed, &projection.forward(time)?)?,
            _ => self.conv1.forward(&normed)?,
        };
        let ys = self.conv2.forward(&self.norm2.forward_silu(&ys)?)?;
        match &self.shortcut {
            Some(shortcut) => add(&shortcut.forward(xs)?, &ys),
            None => add(xs, &ys),
        }
    }
}

/// Where the zeros of a strided convolution go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    /// One on every side (U-Net): H → ⌈H/2⌉.
    Symmetric,
    /// One to the right and at the bottom (autoencoder): H → ⌊H/2⌋.
    RightBottom,
}

/// Halves the size with a strided 3×3 convolution.
#[derive(Debug)]
pub(super) struct Downsample {
    conv: Conv2d,
    padding: Padding,
}

impl Downsample {
    pub fn new(channels: usize, padding: Padding, builder: &Builder) -> Result<Self> {
        let spec = ConvSpec { stride: 2, padding: usize::from(padding == Padding::Symmetric), ..ConvSpec::default() };
        Ok(Self { conv: Conv2d::new(channels, channels, 3, spec, &builder.pp("conv"))?, padding })
    }

    pub fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        match self.padding {
            Padding::Symmetric => self.conv.forward(xs),
            Padding::RightBottom => self.conv.forward(&xs.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?),
        }
    }
}

/// Nearest upsampling and a 3×3 convolution.
#[derive(Debug)]
pub(super) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub fn new(channels: usize, builder: &Builder) -> Result<Self> {
        Ok(Self { conv: conv3x3(channels, channels, &builder.pp("conv"))? })
    }

    /// To `size` (height, width): twice the size of `xs`, or one less where the way down rounded up.
    pub fn forward(&self, xs: &Tensor, size: (usize, usize)) -> TensorResult<Tensor> {
        self.conv.forward(&resize_nearest(xs, size)?)
    }
}
