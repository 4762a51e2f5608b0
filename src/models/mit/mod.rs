//! MiT: the hierarchical Transformer encoder of SegFormer, sizes B0 to B5.

mod block;

use self::block::{Block, BlockConfig};
use super::segmenter::{Encoder, Level, Normalization};
use super::tokens::{map_to_tokens, tokens_to_map};
use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init, LayerNorm, Pass};
use candle_core::{Result as TensorResult, Tensor};

/// ImageNet's mean and standard deviation.
pub const NORMALIZATION: Normalization = Normalization { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };

const STRIDES: [usize; 4] = [4, 8, 16, 32];
const HEADS: [usize; 4] = [1, 2, 5, 8];
/// Keys and values are taken from a grid that many times coarser.
const REDUCTIONS: [usize; 4] = [8, 4, 2, 1];
/// The published code has two: PyTorch's default where a norm follows a convolution, this one elsewhere.
const EPS: f64 = 1e-6;
const EPS_AFTER_CONV: f64 = 1e-5;

/// Widths and depths of the four stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MitSize {
    /// Channels of the stages.
    pub widths: [usize; 4],
    /// Blocks in the stages.
    pub depths: [usize; 4],
}

impl MitSize {
    /// `mit-b0` … `mit-b5`.
    ///
    /// # Source
    /// SegFormer, table 6.
    pub fn named(name: &str) -> Option<Self> {
        const WIDE: [usize; 4] = [64, 128, 320, 512];
        let (widths, depths) = match name {
            "mit-b0" => ([32, 64, 160, 256], [2, 2, 2, 2]),
            "mit-b1" => (WIDE, [2, 2, 2, 2]),
            "mit-b2" => (WIDE, [3, 4, 6, 3]),
            "mit-b3" => (WIDE, [3, 4, 18, 3]),
            "mit-b4" => (WIDE, [3, 8, 27, 3]),
            "mit-b5" => (WIDE, [3, 6, 40, 3]),
            _ => return None,
        };
        Some(Self { widths, depths })
    }
}

/// The encoder.
///
/// # Source
/// SegFormer, section 3.1. Stochastic depth rises linearly over all blocks from 0 to `drop_path`.
#[derive(Debug)]
pub struct Mit {
    stages: Vec<Stage>,
    widths: [usize; 4],
}

impl Mit {
    /// Names `patch_embed{1…4}`, `block{1…4}.{i}`, `norm{1…4}` as in the published files.
    pub fn new(size: &MitSize, drop_path: f32, builder: &Builder) -> Result<Self> {
        let steps = (size.depths.iter().sum::<usize>() - 1).max(1) as f32;
        let mut stages = Vec::with_capacity(4);
        for stage in 0..4 {
            let before: usize = size.depths[..stage].iter().sum();
            let rates = (0..size.depths[stage]).map(|i| drop_path * (before + i) as f32 / steps);
            let inputs = if stage == 0 { 3 } else { size.widths[stage - 1] };
            stages.push(Stage::new(stage, inputs, size.widths[stage], rates, builder)?);
        }
        Ok(Self { stages, widths: size.widths })
    }
}

impl Encoder for Mit {
    fn levels(&self) -> [Level; 4] {
        std::array::from_fn(|i| Level { channels: self.widths[i], stride: STRIDES[i] })
    }

    fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>> {
        let mut maps: Vec<Tensor> = Vec::with_capacity(4);
        for stage in &self.stages {
            let map = stage.forward(maps.last().unwrap_or(images), pass)?;
            maps.push(map);
        }
        Ok(maps)
    }
}

/// Overlapping patches, Transformer blocks, a norm.
#[derive(Debug)]
struct Stage {
    embed: Conv2d,
    embed_norm: LayerNorm,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Stage {
    fn new(stage: usize, inputs: usize, width: usize, drop_rates: impl Iterator<Item = f32>, builder: &Builder) -> Result<Self> {
        let (kernel, stride) = if stage == 0 { (7, 4) } else { (3, 2) };
        let spec = ConvSpec { stride, padding: kernel / 2, ..Default::default() };
        let patches = builder.pp(format!("patch_embed{}", stage + 1));
        let block_names = builder.pp(format!("block{}", stage + 1));
        let blocks = drop_rates.enumerate().map(|(i, drop_path)| {
            let config = BlockConfig { width, heads: HEADS[stage], reduction: REDUCTIONS[stage], drop_path };
            Block::new(&config, &block_names.pp(i))
        });
        Ok(Self {
            embed: conv(inputs, width, kernel, spec, &patches.pp("proj"))?,
            embed_norm: LayerNorm::new(width, EPS_AFTER_CONV, &patches.pp("norm"))?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::new(width, EPS, &builder.pp(format!("norm{}", stage + 1)))?,
        })
    }

    /// # Shapes
    /// `xs` (B, C, H, W) → (B, width, ⌈H/stride⌉, ⌈W/stride⌉)
    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let map = self.embed.forward(xs)?;
        let (_, _, height, width) = map.dims4()?;
        let mut tokens = self.embed_norm.forward(&map_to_tokens(&map)?)?; // (B, N, D)
        for block in &self.blocks {
            tokens = block.forward(&tokens, (height, width), pass)?;
        }
        tokens_to_map(&self.norm.forward(&tokens)?, (height, width))
    }
}

/// A convolution with bias, initialised as the published code does.
fn conv(inputs: usize, outputs: usize, kernel: usize, spec: ConvSpec, builder: &Builder) -> Result<Conv2d> {
    let weight = Init::KaimingFanOut { groups: spec.groups };
    Conv2d::with_init(inputs, outputs, kernel, spec, builder, weight, Some(Init::Zeros))
}
