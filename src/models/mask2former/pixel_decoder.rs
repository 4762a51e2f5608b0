//! The pixel decoder: deformable attention over the three coarse levels, then one step up to stride 4.

use super::HeadConfig;
use super::position::sine_positions;
use crate::base::Result;
use crate::models::tokens::{map_to_tokens, tokens_to_map};
use crate::nn::{
    Builder, Conv2d, ConvSpec, GroupNorm, Init, LayerNorm, Linear, add, deformable_attention, relu, resize_bilinear, softmax,
};
use candle_core::{DType, Result as TensorResult, Tensor};

const GROUPS: usize = 32;
const EPS: f64 = 1e-5;
/// Levels of the backbone that attend to each other, coarsest first.
const ATTENDING: [usize; 3] = [3, 2, 1];

/// What the pixel decoder gives.
#[derive(Debug)]
pub struct PixelFeatures {
    /// Per-pixel embeddings that masks are made of: (B, C, h, w).
    pub mask_features: Tensor,
    /// Tokens (B, N, C) and size (H, W) of the levels at strides 32, 16, 8.
    pub memory: Vec<(Tensor, (usize, usize))>,
}

/// The network.
///
/// # Source
/// Mask2Former, section 3.2.1 with the "MSDeformAttn" pixel decoder (six layers of Deformable DETR's encoder).
#[derive(Debug)]
pub struct PixelDecoder {
    projections: Vec<(Conv2d, GroupNorm)>,
    level_embed: Tensor,
    layers: Vec<EncoderLayer>,
    lateral: (Conv2d, GroupNorm),
    output: (Conv2d, GroupNorm),
    mask_features: Conv2d,
    width: usize,
}

impl PixelDecoder {
    /// For maps of `channels`, finest first. Names `input_proj.{i}`, `transformer.…`, `adapter_1`, `layer_1`, `mask_features`.
    pub fn new(config: &HeadConfig, channels: [usize; 4], builder: &Builder) -> Result<Self> {
        let width = config.width;
        let projection = |(i, level): (usize, usize)| -> Result<_> {
            let (place, point) = (builder.pp("input_proj").pp(i), ConvSpec::default());
            let (xavier, zero) = (Init::XavierUniform, Some(Init::Zeros));
            let conv = Conv2d::with_init(channels[level], width, 1, point, &place.pp("0"), xavier, zero)?;
            Ok((conv, GroupNorm::new(GROUPS, width, EPS, &place.pp("1"))?))
        };
        let conv_norm = |inputs: usize, kernel: usize, name: &str| -> Result<_> {
            let (place, spec) = (builder.pp(name), ConvSpec { padding: kernel / 2, ..Default::default() });
            let conv = Conv2d::with_init(inputs, width, kernel, spec, &place, kaiming(inputs * kernel * kernel), None)?;
            Ok((conv, GroupNorm::new(GROUPS, width, EPS, &place.pp("norm"))?))
        };
        let transformer = builder.pp("transformer");
        let layers = transformer.pp("encoder").pp("layers");
        let (last, zero) = (builder.pp("mask_features"), Some(Init::Zeros));
        Ok(Self {
            projections: ATTENDING.into_iter().enumerate().map(projection).collect::<Result<_>>()?,
            level_embed: transformer.get(&[ATTENDING.len(), width], "level_embed", Init::Normal { std: 1.0 })?,
            layers: (0..config.encoder_layers).map(|i| EncoderLayer::new(config, &layers.pp(i))).collect::<Result<_>>()?,
            lateral: conv_norm(channels[0], 1, "adapter_1")?,
            output: conv_norm(width, 3, "layer_1")?,
            mask_features: Conv2d::with_init(width, width, 1, ConvSpec::default(), &last, kaiming(width), zero)?,
            width,
        })
    }

    /// # Shapes
    /// `features` (B, channels, …) at strides 4, 8, 16, 32 → see [`PixelFeatures`]
    pub fn forward(&self, features: &[Tensor]) -> TensorResult<PixelFeatures> {
        let [finest, _, _, _] = features else {
            candle_core::bail!("the pixel decoder needs 4 levels, found {}", features.len())
        };
        let mut grid = Grid::default();
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        for (i, (level, (conv, norm))) in ATTENDING.into_iter().zip(&self.projections).enumerate() {
            let map = norm.forward(&conv.forward(&features[level])?)?;
            let size = (map.dim(2)?, map.dim(3)?);
            let sine = sine_positions(size, self.width, map.device())?;
            positions.push(sine.broadcast_add(&self.level_embed.narrow(0, i, 1)?)?);
            tokens.push(map_to_tokens(&map)?);
            grid.push(size);
        }
        let mut tokens = Tensor::cat(&tokens, 1)?; // (B, N, C)
        let positions = Tensor::cat(&positions, 1)?.to_dtype(tokens.dtype())?; // (1, N, C)
        for layer in &self.layers {
            tokens = layer.forward(&tokens, &positions, &grid)?;
        }
        let memory = grid.split(&tokens)?;
        let (coarse, size) = &memory[ATTENDING.len() - 1];
        let fine = self.lateral.1.forward(&self.lateral.0.forward(finest)?)?;
        let coarse = resize_bilinear(&tokens_to_map(coarse, *size)?, (fine.dim(2)?, fine.dim(3)?), false)?;
        let fine = relu(&self.output.1.forward(&self.output.0.forward(&add(&fine, &coarse)?)?)?)?;
        Ok(PixelFeatures { mask_features: self.mask_features.forward(&fine)?, memory })
    }
}

/// Kaiming-uniform with slope 1, as detectron2 fills convolutions of decoders.
fn kaiming(fan_in: usize) -> Init {
    Init::Uniform { bound: (3.0 / fan_in as f32).sqrt() }
}

/// The levels whose tokens lie one after the other, and where in its map each token lies.
#[derive(Default)]
struct Grid {
    levels: Vec<(usize, usize)>,
    /// (x, y) of each token's centre, 0…1.
    references: Vec<f32>,
}

impl Grid {
    fn push(&mut self, (height, width): (usize, usize)) {
        self.levels.push((height, width));
        for y in 0..height {
            for x in 0..width {
                self.references.extend([(x as f32 + 0.5) / width as f32, (y as f32 + 0.5) / height as f32]);
            }
        }
    }

    /// The tokens of each level.
    fn split(&self, tokens: &Tensor) -> TensorResult<Vec<(Tensor, (usize, usize))>> {
        let mut start = 0;
        let mut parts = Vec::with_capacity(self.levels.len());
        for &(height, width) in &self.levels {
            parts.push((tokens.narrow(1, start, height * width)?.contiguous()?, (height, width)));
            start += height * width;
        }
        Ok(parts)
    }
}

/// Deformable self-attention and a feed-forward layer, each beside a residual and followed by a norm.
#[derive(Debug)]
struct EncoderLayer {
    offsets: Linear,
    weights: Linear,
    value: Linear,
    out: Linear,
    norm1: LayerNorm,
    widen: Linear,
    narrow: Linear,
    norm2: LayerNorm,
    heads: usize,
    points: usize,
}

impl EncoderLayer {
    fn new(config: &HeadConfig, builder: &Builder) -> Result<Self> {
        let HeadConfig { width, heads, points, encoder_hidden: hidden, .. } = *config;
        let (attention, samples) = (builder.pp("self_attn"), heads * ATTENDING.len() * points);
        let linear =
            |inputs, outputs, place: Builder, weight, bias| Linear::with_init(inputs, outputs, &place, weight, Some(bias));
        let xavier = Init::XavierUniform;
        let uniform = |inputs: usize| Init::Uniform { bound: 1.0 / (inputs as f32).sqrt() };
        let ring = Init::SamplingOffsets { heads, points };
        Ok(Self {
            offsets: linear(width, 2 * samples, attention.pp("sampling_offsets"), Init::Zeros, ring)?,
            weights: linear(width, samples, attention.pp("attention_weights"), Init::Zeros, Init::Zeros)?,
            value: linear(width, width, attention.pp("value_proj"), xavier, Init::Zeros)?,
            out: linear(width, width, attention.pp("output_proj"), xavier, Init::Zeros)?,
            norm1: LayerNorm::new(width, EPS, &builder.pp("norm1"))?,
            widen: linear(width, hidden, builder.pp("linear1"), xavier, uniform(width))?,
            narrow: linear(hidden, width, builder.pp("linear2"), xavier, uniform(hidden))?,
            norm2: LayerNorm::new(width, EPS, &builder.pp("norm2"))?,
            heads,
            points,
        })
    }

    /// # Shapes
    /// `xs` (B, N, C), `positions` (1, N, C) → (B, N, C)
    fn forward(&self, xs: &Tensor, positions: &Tensor, grid: &Grid) -> TensorResult<Tensor> {
        let (batch, count, width) = xs.dims3()?;
        let (heads, levels, points) = (self.heads, grid.levels.len(), self.points);
        let query = xs.broadcast_add(positions)?;
        // 16 bits are too few for a place in a map.
        let offsets = self.offsets.forward(&query.to_dtype(DType::F32)?)?.reshape(&[batch, count, heads, levels, points, 2])?;
        let weights = self.weights.forward(&query)?.reshape((batch, count, heads, levels * points))?;
        let weights = softmax(&weights)?.reshape((batch, count, heads, levels, points))?;
        let value = self.value.forward(xs)?.reshape((batch, count, heads, width / heads))?;
        let mixed = deformable_attention(&value, &offsets, &weights, &grid.levels, &grid.references)?;
        let xs = self.norm1.forward(&add(xs, &self.out.forward(&mixed)?)?)?;
        let hidden = relu(&self.widen.forward(&xs)?)?;
        self.norm2.forward(&add(&xs, &self.narrow.forward(&hidden)?)?)
    }
}
