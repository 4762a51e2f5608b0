//! MobileSAM's image encoder: TinyViT-5M, convolutions first, then window attention with a bias for each distance.

use super::blocks::{Activation, Mlp, Neck, attend, from_windows, to_windows};
use crate::base::Result;
use crate::models::tokens::{map_to_tokens, tokens_to_map};
use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvSpec, Init, LayerNorm, Linear, Pass, gelu, join_heads};
use candle_core::{Result as TensorResult, Tensor};
use std::collections::BTreeMap;

/// Widening within the convolution blocks of the first stage.
const EXPANSION: usize = 4;

/// Sizes of the encoder. The last stage keeps the resolution of the one before it: stride 16.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TinyVitConfig {
    /// Channels of the four stages.
    pub dims: [usize; 4],
    /// Blocks of the four stages.
    pub depths: [usize; 4],
    /// Attention heads; the first stage has none.
    pub heads: [usize; 4],
    /// Sides of the windows in tokens; the first stage has none.
    pub windows: [usize; 4],
}

/// A convolution without bias, and batch norm.
#[derive(Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl ConvNorm {
    fn new(channels: (usize, usize), kernel: usize, spec: ConvSpec, builder: &Builder) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::no_bias(channels.0, channels.1, kernel, spec, &builder.pp("c"))?,
            norm: BatchNorm2d::new(channels.1, &builder.pp("bn"))?,
        })
    }

    fn pointwise(inputs: usize, outputs: usize, builder: &Builder) -> Result<Self> {
        Self::new((inputs, outputs), 1, ConvSpec::default(), builder)
    }

    fn depthwise(channels: usize, stride: usize, builder: &Builder) -> Result<Self> {
        let spec = ConvSpec { stride, padding: 1, groups: channels, ..ConvSpec::default() };
        Self::new((channels, channels), 3, spec, builder)
    }

    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        self.norm.forward(&self.conv.forward(xs)?, pass)
    }
}

/// Widen, 3×3 depthwise, narrow: with a residual in the first stage, and between stages to change channels and stride.
#[derive(Debug)]
struct Bottleneck {
    widen: ConvNorm,
    depthwise: ConvNorm,
    narrow: ConvNorm,
    residual: bool,
}

impl Bottleneck {
    fn new(channels: [usize; 3], stride: usize, residual: bool, builder: &Builder) -> Result<Self> {
        Ok(Self {
            widen: ConvNorm::pointwise(channels[0], channels[1], &builder.pp("conv1"))?,
            depthwise: ConvNorm::depthwise(channels[1], stride, &builder.pp("conv2"))?,
            narrow: ConvNorm::pointwise(channels[1], channels[2], &builder.pp("conv3"))?,
            residual,
        })
    }

    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let hidden = gelu(&self.widen.forward(xs, pass)?)?;
        let hidden = gelu(&self.depthwise.forward(&hidden, pass)?)?;
        let narrow = self.narrow.forward(&hidden, pass)?;
        if self.residual { gelu(&(xs + narrow)?) } else { Ok(narrow) }
    }
}

/// Window attention, 3×3 depthwise convolution, feed-forward layer.
#[derive(Debug)]
struct Block {
    attention: Attention,
    local: ConvNorm,
    norm: LayerNorm,
    mlp: Mlp,
    window: usize,
}

impl Block {
    fn new(dim: usize, heads: usize, window: usize, builder: &Builder) -> Result<Self> {
        let mlp = builder.pp("mlp");
        Ok(Self {
            attention: Attention::new(dim, heads, window, &builder.pp("attn"))?,
            local: ConvNorm::depthwise(dim, 1, &builder.pp("local_conv"))?,
            norm: LayerNorm::new(dim, 1e-5, &mlp.pp("norm"))?,
            mlp: Mlp::new(&[dim, 4 * dim, dim], &["fc1", "fc2"], Activation::Gelu, &mlp)?,
            window,
        })
    }

    /// (B, C, H, W) → same
    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let (_, _, height, width) = xs.dims4()?;
        let grid = xs.permute((0, 2, 3, 1))?.contiguous()?;
        let attended = self.attention.forward(&to_windows(&grid, self.window)?)?;
        let grid = (grid + from_windows(&attended, self.window, (height, width))?)?;
        let xs = self.local.forward(&grid.permute((0, 3, 1, 2))?.contiguous()?, pass)?;
        let tokens = map_to_tokens(&xs)?;
        let tokens = (&tokens + self.mlp.forward(&self.norm.forward(&tokens)?)?)?;
        tokens_to_map(&tokens, (height, width))?.contiguous()
    }
}

/// Self-attention within windows, with a bias for each pair of distances (rows, columns).
#[derive(Debug)]
struct Attention {
    norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    biases: Tensor,
    /// Which bias a pair of tokens takes, row by row.
    places: Tensor,
    heads: usize,
}

impl Attention {
    fn new(dim: usize, heads: usize, window: usize, builder: &Builder) -> Result<Self> {
        let places = bias_places(window);
        let distinct = places.iter().max().map_or(0, |last| *last as usize + 1);
        Ok(Self {
            norm: LayerNorm::new(dim, 1e-5, &builder.pp("norm"))?,
            qkv: Linear::new(dim, 3 * dim, &builder.pp("qkv"))?,
            out: Linear::new(dim, dim, &builder.pp("proj"))?,
            biases: builder.get(&[heads, distinct], "attention_biases", Init::Zeros)?,
            places: Tensor::new(places, &builder.device())?,
            heads,
        })
    }

    /// (windows, S, S, C) → (windows, S·S, C)
    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let (windows, side, _, dim) = xs.dims4()?;
        let (tokens, head) = (side * side, dim / self.heads);
        let xs = self.norm.forward(&xs.reshape((windows, tokens, dim))?)?;
        // Unlike in other transformers, query, key and value lie together for each head.
        let qkv = self.qkv.forward(&xs)?.reshape((windows, tokens, self.heads, 3 * head))?;
        let part = |i: usize| qkv.narrow(3, i * head, head)?.transpose(1, 2)?.contiguous(); // (windows, heads, N, d)
        let scaled = (part(0)? * (1.0 / (head as f64).sqrt()))?;
        let bias = self.biases.index_select(&self.places, 1)?.reshape((1, self.heads, tokens, tokens))?;
        let attended = attend(&scaled, &part(1)?, &part(2)?, |start, len| bias.narrow(2, start, len))?;
        self.out.forward(&join_heads(&attended)?)
    }
}

/// The bias of each pair of tokens of a window: pairs of equal distance in rows and in columns share one. Biases are numbered in
/// the order in which their distances occur.
fn bias_places(window: usize) -> Vec<u32> {
    let tokens: Vec<(usize, usize)> = (0..window * window).map(|i| (i / window, i % window)).collect();
    let mut known = BTreeMap::new();
    let mut places = Vec::with_capacity(tokens.len() * tokens.len());
    for a in &tokens {
        for b in &tokens {
            let next = known.len() as u32;
            places.push(*known.entry((a.0.abs_diff(b.0), a.1.abs_diff(b.1))).or_insert(next));
        }
    }
    places
}

/// See the module.
#[derive(Debug)]
pub(super) struct TinyVit {
    stem: [ConvNorm; 2],
    convolutions: Vec<Bottleneck>,
    /// The change into each stage after the first, and its blocks.
    stages: Vec<(Bottleneck, Vec<Block>)>,
    neck: Neck,
}

impl TinyVit {
    pub(super) fn new(config: &TinyVitConfig, outputs: usize, builder: &Builder) -> Result<Self> {
        let TinyVitConfig { dims, depths, heads, windows } = config;
        let halve = ConvSpec { stride: 2, padding: 1, ..ConvSpec::default() };
        let stem = |i: usize, channels| ConvNorm::new(channels, 3, halve, &builder.pp("patch_embed").pp("seq").pp(i));
        let place = |stage: usize| builder.pp("layers").pp(stage);
        let convolution = |i: usize| {
            let channels = [dims[0], EXPANSION * dims[0], dims[0]];
            Bottleneck::new(channels, 1, true, &place(0).pp("blocks").pp(i))
        };
        let stage = |stage: usize| {
            let channels = [dims[stage - 1], dims[stage], dims[stage]];
            let stride = if stage == 3 { 1 } else { 2 };
            let change = Bottleneck::new(channels, stride, false, &place(stage - 1).pp("downsample"))?;
            let block = |i: usize| Block::new(dims[stage], heads[stage], windows[stage], &place(stage).pp("blocks").pp(i));
            Ok((change, (0..depths[stage]).map(block).collect::<Result<_>>()?))
        };
        Ok(Self {
            stem: [stem(0, (3, dims[0] / 2))?, stem(2, (dims[0] / 2, dims[0]))?],
            convolutions: (0..depths[0]).map(convolution).collect::<Result<_>>()?,
            stages: (1..4).map(stage).collect::<Result<_>>()?,
            neck: Neck::new(dims[3], outputs, &builder.pp("neck"))?,
        })
    }

    /// (B, 3, 16·g, 16·g) → (B, 256, g, g)
    pub(super) fn forward(&self, images: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let xs = gelu(&self.stem[0].forward(images, pass)?)?;
        let mut xs = self.stem[1].forward(&xs, pass)?; // (B, C, H/4, W/4)
        for block in &self.convolutions {
            xs = block.forward(&xs, pass)?;
        }
        for (change, blocks) in &self.stages {
            xs = change.forward(&xs, pass)?;
            for block in blocks {
                xs = block.forward(&xs, pass)?;
            }
        }
        self.neck.forward(&xs)
    }
}

#[cfg(test)]
mod tests {
    use super::bias_places;

    #[test]
    fn equal_distances_share_a_bias() {
        assert_eq!(bias_places(2), [0, 1, 2, 3, 1, 0, 3, 2, 2, 3, 0, 1, 3, 2, 1, 0]);
        assert_eq!(bias_places(7).into_iter().max(), Some(48));
    }
}
