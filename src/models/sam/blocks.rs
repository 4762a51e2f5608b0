//! Parts that several of SAM's networks share.

use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, LayerNorm, Linear, gelu, relu, softmax};
use candle_core::{Result as TensorResult, Tensor};

/// Scores that one step of [`attend`] holds (64 MB).
const SCORES: usize = 16 << 20;

/// Normalisation over the channels of each pixel.
#[derive(Debug)]
pub(super) struct LayerNorm2d(LayerNorm);

impl LayerNorm2d {
    pub(super) fn new(channels: usize, builder: &Builder) -> Result<Self> {
        Ok(Self(LayerNorm::new(channels, 1e-6, builder)?))
    }

    /// (B, C, H, W) → same
    pub(super) fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        self.0.forward(&xs.permute((0, 2, 3, 1))?.contiguous()?)?.permute((0, 3, 1, 2))?.contiguous()
    }
}

/// Which function stands between the layers of an [`Mlp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Relu,
    Gelu,
}

/// Linear layers with an activation between them.
#[derive(Debug)]
pub(super) struct Mlp {
    layers: Vec<Linear>,
    activation: Activation,
}

impl Mlp {
    /// `names` of the layers, `widths` from the input to the output of the last one.
    pub(super) fn new(widths: &[usize], names: &[&str], activation: Activation, builder: &Builder) -> Result<Self> {
        let layer = |(name, width): (&&str, &[usize])| Linear::new(width[0], width[1], &builder.pp(name));
        Ok(Self { layers: names.iter().zip(widths.windows(2)).map(layer).collect::<Result<_>>()?, activation })
    }

    /// (…, D) → (…, O)
    pub(super) fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let mut xs = xs.clone();
        for (at, layer) in self.layers.iter().enumerate() {
            if at > 0 {
                xs = match self.activation {
                    Activation::Relu => relu(&xs)?,
                    Activation::Gelu => gelu(&xs)?,
                };
            }
            xs = layer.forward(&xs)?;
        }
        Ok(xs)
    }
}

/// From the last block of an encoder to the embedding: 1×1 and 3×3 convolution, each with a norm.
#[derive(Debug)]
pub(super) struct Neck {
    project: Conv2d,
    norm1: LayerNorm2d,
    mix: Conv2d,
    norm2: LayerNorm2d,
}

impl Neck {
    pub(super) fn new(inputs: usize, outputs: usize, builder: &Builder) -> Result<Self> {
        let same = ConvSpec { padding: 1, ..ConvSpec::default() };
        Ok(Self {
            project: Conv2d::no_bias(inputs, outputs, 1, ConvSpec::default(), &builder.pp(0))?,
            norm1: LayerNorm2d::new(outputs, &builder.pp(1))?,
            mix: Conv2d::no_bias(outputs, outputs, 3, same, &builder.pp(2))?,
            norm2: LayerNorm2d::new(outputs, &builder.pp(3))?,
        })
    }

    /// (B, C, h, w) → (B, 256, h, w)
    pub(super) fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let xs = self.norm1.forward(&self.project.forward(xs)?)?;
        self.norm2.forward(&self.mix.forward(&xs)?)
    }
}

/// Square windows of tokens, padded with zeros at the bottom and right.
///
/// # Shapes
/// `xs` (B, H, W, C) → (B·windows, size, size, C)
pub(super) fn to_windows(xs: &Tensor, size: usize) -> TensorResult<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    let (rows, columns) = (height.div_ceil(size), width.div_ceil(size));
    let xs = xs.pad_with_zeros(1, 0, rows * size - height)?.pad_with_zeros(2, 0, columns * size - width)?;
    let xs = xs.contiguous()?.reshape(&[batch, rows, size, columns, size, channels][..])?.transpose(2, 3)?;
    xs.contiguous()?.reshape((batch * rows * columns, size, size, channels))
}

/// The inverse of [`to_windows`]; `grid` is (H, W).
///
/// # Shapes
/// `xs` (B·windows, size·size, C) → (B, H, W, C)
pub(super) fn from_windows(xs: &Tensor, size: usize, grid: (usize, usize)) -> TensorResult<Tensor> {
    let (windows, _, channels) = xs.dims3()?;
    let (rows, columns) = (grid.0.div_ceil(size), grid.1.div_ceil(size));
    let batch = windows / (rows * columns);
    let xs = xs.contiguous()?.reshape(&[batch, rows, columns, size, size, channels][..])?.transpose(2, 3)?;
    let xs = xs.contiguous()?.reshape((batch, rows * size, columns * size, channels))?;
    xs.narrow(1, 0, grid.0)?.narrow(2, 0, grid.1)?.contiguous()
}

/// `softmax(q·kᵀ + bias)·v`, some queries at a time. `bias` gives the bias of the queries from `start` on, of a shape that
/// broadcasts to (B, heads, len, M).
///
/// # Shapes
/// `q` (B, heads, N, d), `k` and `v` (B, heads, M, d) → (B, heads, N, d)
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: impl Fn(usize, usize) -> TensorResult<Tensor>,
) -> TensorResult<Tensor> {
    let (batch, heads, queries, _) = q.dims4()?;
    let keys = k.dim(2)?;
    let step = (SCORES / (batch * heads * keys).max(1)).clamp(1, queries);
    let turned = k.transpose(2, 3)?.contiguous()?;
    let mut parts = Vec::new();
    for start in (0..queries).step_by(step) {
        let len = step.min(queries - start);
        let scores = q.narrow(2, start, len)?.contiguous()?.matmul(&turned)?;
        let scores = scores.broadcast_add(&bias(start, len)?)?;
        parts.push(softmax(&scores)?.matmul(v)?);
    }
    Tensor::cat(&parts, 2)
}
