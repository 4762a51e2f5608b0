//! The Transformer block of MiT: attention to a coarser grid, and an MLP with a depthwise convolution inside.

use super::{EPS, EPS_AFTER_CONV, conv, map_to_tokens, tokens_to_map};
use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init, LayerNorm, Linear, Pass, add, attention, gelu};
use candle_core::{Result as TensorResult, Tensor};

/// Sizes of one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockConfig {
    pub width: usize,
    pub heads: usize,
    pub reduction: usize,
    pub drop_path: f32,
}

/// `x += attention(norm1(x)); x += mlp(norm2(x))`, each branch dropped as a whole at times.
#[derive(Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    attention: EfficientAttention,
    norm2: LayerNorm,
    mlp: MixFfn,
    drop_path: f32,
}

impl Block {
    pub(super) fn new(config: &BlockConfig, builder: &Builder) -> Result<Self> {
        Ok(Self {
            norm1: LayerNorm::new(config.width, EPS, &builder.pp("norm1"))?,
            attention: EfficientAttention::new(config, &builder.pp("attn"))?,
            norm2: LayerNorm::new(config.width, EPS, &builder.pp("norm2"))?,
            mlp: MixFfn::new(config.width, 4 * config.width, &builder.pp("mlp"))?,
            drop_path: config.drop_path,
        })
    }

    /// # Shapes
    /// `xs` (B, N, D) with N = h·w of `grid` (h, w) → same
    pub(super) fn forward(&self, xs: &Tensor, grid: (usize, usize), pass: &Pass) -> TensorResult<Tensor> {
        let branch = self.attention.forward(&self.norm1.forward(xs)?, grid)?;
        let xs = add(xs, &pass.drop_path(&branch, self.drop_path)?)?;
        let branch = self.mlp.forward(&self.norm2.forward(&xs)?, grid)?;
        add(&xs, &pass.drop_path(&branch, self.drop_path)?)
    }
}

/// Attention whose keys and values come from a coarser grid.
///
/// # Source
/// SegFormer, section 3.1, equation 2: the reduction is a convolution with kernel = stride = R.
#[derive(Debug)]
struct EfficientAttention {
    query: Linear,
    key_value: Linear,
    output: Linear,
    reduction: Option<(Conv2d, LayerNorm)>,
    heads: usize,
}

impl EfficientAttention {
    fn new(config: &BlockConfig, builder: &Builder) -> Result<Self> {
        let (width, stride) = (config.width, config.reduction);
        let reduce = || -> Result<_> {
            let spec = ConvSpec { stride, ..Default::default() };
            let norm = LayerNorm::new(width, EPS_AFTER_CONV, &builder.pp("norm"))?;
            Ok((conv(width, width, stride, spec, &builder.pp("sr"))?, norm))
        };
        Ok(Self {
            query: linear(width, width, &builder.pp("q"))?,
            key_value: linear(width, 2 * width, &builder.pp("kv"))?,
            output: linear(width, width, &builder.pp("proj"))?,
            reduction: (stride > 1).then(reduce).transpose()?,
            heads: config.heads,
        })
    }

    fn forward(&self, xs: &Tensor, grid: (usize, usize)) -> TensorResult<Tensor> {
        let key_value = match &self.reduction {
            Some((conv, norm)) => {
                let reduced = conv.forward(&tokens_to_map(xs, grid)?)?; // (B, D, ⌊h/R⌋, ⌊w/R⌋)
                self.key_value.forward(&norm.forward(&map_to_tokens(&reduced)?)?)?
            }
            None => self.key_value.forward(xs)?,
        };
        let query = self.query.forward(xs)?;
        let width = query.dim(2)?;
        let (key, value) = (key_value.narrow(2, 0, width)?, key_value.narrow(2, width, width)?);
        let scale = 1.0 / ((width / self.heads) as f32).sqrt();
        self.output.forward(&attention(&query, &key, &value, self.heads, scale, false)?)
    }
}

/// Widen, 3×3 depthwise convolution, GELU, narrow. The convolution stands in for positional encoding.
///
/// # Source
/// SegFormer, section 3.1, equation 3.
#[derive(Debug)]
struct MixFfn {
    widen: Linear,
    depthwise: Conv2d,
    narrow: Linear,
}

impl MixFfn {
    fn new(width: usize, hidden: usize, builder: &Builder) -> Result<Self> {
        let same_size = ConvSpec { padding: 1, groups: hidden, ..Default::default() };
        Ok(Self {
            widen: linear(width, hidden, &builder.pp("fc1"))?,
            depthwise: conv(hidden, hidden, 3, same_size, &builder.pp("dwconv").pp("dwconv"))?,
            narrow: linear(hidden, width, &builder.pp("fc2"))?,
        })
    }

    fn forward(&self, xs: &Tensor, grid: (usize, usize)) -> TensorResult<Tensor> {
        let map = self.depthwise.forward(&tokens_to_map(&self.widen.forward(xs)?, grid)?)?; // (B, hidden, h, w)
        self.narrow.forward(&map_to_tokens(&gelu(&map)?)?)
    }
}

/// A linear layer with bias, initialised as the published code does.
fn linear(inputs: usize, outputs: usize, builder: &Builder) -> Result<Linear> {
    Linear::with_init(inputs, outputs, builder, Init::TruncatedNormal { std: 0.02 }, Some(Init::Zeros))
}
