//! ConvNeXt: the image tower of OpenCLIP's convolutional models.

use crate::base::Result;
use crate::models::segmenter::{Encoder, Level};
use crate::models::tokens::{map_to_tokens, tokens_to_map};
use crate::nn::{Builder, Conv2d, ConvSpec, Init, LayerNorm, Linear, Pass, add, gelu, scale_channels};
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-6;
const STRIDES: [usize; 4] = [4, 8, 16, 32];

/// Sizes of a ConvNeXt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvNextConfig {
    /// Blocks in the stages.
    pub depths: [usize; 4],
    /// Channels of the stages.
    pub widths: [usize; 4],
    /// Largest rate of stochastic depth, reached at the last block; only on passes that train.
    pub drop_path: f32,
}

/// The network, without its classifier.
///
/// # Source
/// "A ConvNet for the 2020s", section 2, with timm's names and initial values.
#[derive(Debug)]
pub struct ConvNext {
    stem: Conv2d,
    stem_norm: LayerNorm,
    stages: Vec<Stage>,
    widths: [usize; 4],
}

impl ConvNext {
    /// Names `stem.{0,1}`, `stages.{s}.downsample.{0,1}`, `stages.{s}.blocks.{b}.…`.
    pub fn new(config: &ConvNextConfig, builder: &Builder) -> Result<Self> {
        let (widths, stem) = (config.widths, builder.pp("stem"));
        let steps = config.depths.iter().sum::<usize>().saturating_sub(1).max(1) as f32;
        let stage = |s: usize| {
            let before: usize = config.depths[..s].iter().sum();
            let rates = (0..config.depths[s]).map(|b| config.drop_path * (before + b) as f32 / steps);
            let inputs = (s > 0).then(|| widths[s - 1]);
            Stage::new(inputs, widths[s], rates, &builder.pp("stages").pp(s))
        };
        Ok(Self {
            stem: conv(3, widths[0], 4, ConvSpec { stride: 4, ..Default::default() }, &stem.pp("0"))?,
            stem_norm: LayerNorm::new(widths[0], EPS, &stem.pp("1"))?,
            stages: (0..4).map(stage).collect::<Result<_>>()?,
            widths,
        })
    }
}

impl Encoder for ConvNext {
    fn levels(&self) -> [Level; 4] {
        std::array::from_fn(|i| Level { channels: self.widths[i], stride: STRIDES[i] })
    }

    fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>> {
        let mut xs = per_pixel_norm(&self.stem_norm, &self.stem.forward(images)?)?;
        let mut maps = Vec::with_capacity(4);
        for stage in &self.stages {
            xs = stage.forward(&xs, pass)?;
            maps.push(xs.clone());
        }
        Ok(maps)
    }
}

/// Halves the resolution (but for the first stage), then blocks.
#[derive(Debug)]
struct Stage {
    downsample: Option<(LayerNorm, Conv2d)>,
    blocks: Vec<Block>,
}

impl Stage {
    fn new(inputs: Option<usize>, width: usize, drop_rates: impl Iterator<Item = f32>, builder: &Builder) -> Result<Self> {
        let place = builder.pp("downsample");
        let downsample = |inputs| -> Result<_> {
            let halves = ConvSpec { stride: 2, ..Default::default() };
            Ok((LayerNorm::new(inputs, EPS, &place.pp("0"))?, conv(inputs, width, 2, halves, &place.pp("1"))?))
        };
        let blocks = drop_rates.enumerate().map(|(i, rate)| Block::new(width, rate, &builder.pp("blocks").pp(i)));
        Ok(Self { downsample: inputs.map(downsample).transpose()?, blocks: blocks.collect::<Result<_>>()? })
    }

    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let mut xs = match &self.downsample {
            Some((norm, conv)) => conv.forward(&per_pixel_norm(norm, xs)?)?,
            None => xs.clone(),
        };
        for block in &self.blocks {
            xs = block.forward(&xs, pass)?;
        }
        Ok(xs)
    }
}

/// 7×7 depthwise convolution, norm, widen, GELU, narrow, scale by `gamma`; beside a residual.
#[derive(Debug)]
struct Block {
    depthwise: Conv2d,
    norm: LayerNorm,
    widen: Linear,
    narrow: Linear,
    gamma: Tensor,
    drop_path: f32,
}

impl Block {
    fn new(width: usize, drop_path: f32, builder: &Builder) -> Result<Self> {
        let same_size = ConvSpec { padding: 3, groups: width, ..Default::default() };
        let mlp = builder.pp("mlp");
        let linear = |inputs, outputs, name: &str| {
            Linear::with_init(inputs, outputs, &mlp.pp(name), Init::TruncatedNormal { std: 0.02 }, Some(Init::Zeros))
        };
        Ok(Self {
            depthwise: conv(width, width, 7, same_size, &builder.pp("conv_dw"))?,
            norm: LayerNorm::new(width, EPS, &builder.pp("norm"))?,
            widen: linear(width, 4 * width, "fc1")?,
            narrow: linear(4 * width, width, "fc2")?,
            gamma: builder.get(&[width], "gamma", Init::Constant { value: 1e-6 })?,
            drop_path,
        })
    }

    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let map = self.depthwise.forward(xs)?;
        let (_, _, height, width) = map.dims4()?;
        let hidden = gelu(&self.widen.forward(&self.norm.forward(&map_to_tokens(&map)?)?)?)?; // (B, N, 4C)
        let branch = scale_channels(&self.narrow.forward(&hidden)?, &self.gamma)?;
        let branch = tokens_to_map(&branch, (height, width))?;
        add(xs, &pass.drop_path(&branch, self.drop_path)?)
    }
}

/// Normalises the channels of every pixel. # Shapes: (B, C, H, W) → same
fn per_pixel_norm(norm: &LayerNorm, xs: &Tensor) -> TensorResult<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    tokens_to_map(&norm.forward(&map_to_tokens(xs)?)?, (height, width))
}

fn conv(inputs: usize, outputs: usize, kernel: usize, spec: ConvSpec, builder: &Builder) -> Result<Conv2d> {
    Conv2d::with_init(inputs, outputs, kernel, spec, builder, Init::TruncatedNormal { std: 0.02 }, Some(Init::Zeros))
}
