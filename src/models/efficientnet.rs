//! EfficientNet-Lite0 as an encoder: the CPU-sized network with permissively licensed ImageNet weights.
//!
//! Its classifier (`_conv_head`, `_bn1`, `_fc` in the published file) is not built.

use super::segmenter::{Encoder, Level, Normalization};
use crate::base::Result;
use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvSpec, Pass, add};
use candle_core::{Result as TensorResult, Tensor};

/// TensorFlow's scaling to ±1.
pub const NORMALIZATION: Normalization = Normalization { mean: [127.0; 3], std: [128.0; 3] };

/// Per stage: repeats, kernel, stride of the first block, expansion, output channels.
///
/// # Source
/// EfficientNet, table 1, without squeeze-and-excitation and with ReLU6 (the Lite form).
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
const STEM_CHANNELS: usize = 32;
/// The last block of each stride, and the channels it gives.
const TAPS: [(usize, Level); 4] = [
    (2, Level { channels: 24, stride: 4 }),
    (4, Level { channels: 40, stride: 8 }),
    (10, Level { channels: 112, stride: 16 }),
    (15, Level { channels: 320, stride: 32 }),
];

/// The encoder.
#[derive(Debug)]
pub struct EfficientNetLite0 {
    stem: SameConv,
    stem_norm: BatchNorm2d,
    blocks: Vec<Block>,
}

impl EfficientNetLite0 {
    /// Names `_conv_stem`, `_bn0`, `_blocks.{0…15}` as in the published file. Block i of 16 is dropped with probability
    /// `drop_path`·i/16 (TensorFlow's drop-connect).
    pub fn new(drop_path: f32, builder: &Builder) -> Result<Self> {
        let count: usize = STAGES.iter().map(|stage| stage.0).sum();
        let mut blocks = Vec::with_capacity(count);
        let mut inputs = STEM_CHANNELS;
        for (repeats, kernel, first_stride, expansion, outputs) in STAGES {
            for repeat in 0..repeats {
                let stride = if repeat == 0 { first_stride } else { 1 };
                let place = builder.pp("_blocks").pp(blocks.len());
                let rate = drop_path * blocks.len() as f32 / count as f32;
                blocks.push(Block::new((inputs, expansion * inputs, outputs), kernel, stride, rate, &place)?);
                inputs = outputs;
            }
        }
        Ok(Self {
            stem: SameConv::new((3, STEM_CHANNELS), 3, 2, 1, &builder.pp("_conv_stem"))?,
            stem_norm: batch_norm(STEM_CHANNELS, &builder.pp("_bn0"))?,
            blocks,
        })
    }
}

impl Encoder for EfficientNetLite0 {
    fn levels(&self) -> [Level; 4] {
        TAPS.map(|(_, level)| level)
    }

    fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>> {
        let mut xs = self.stem_norm.forward_relu6(&self.stem.forward(images)?, pass)?;
        let mut maps = Vec::with_capacity(TAPS.len());
        for (i, block) in self.blocks.iter().enumerate() {
            xs = block.forward(&xs, pass)?;
            if TAPS.iter().any(|(tap, _)| *tap == i) {
                maps.push(xs.clone());
            }
        }
        Ok(maps)
    }
}

/// Inverted residual: widen, depthwise convolution, narrow without activation; skipped over where shapes allow.
#[derive(Debug)]
struct Block {
    expand: Option<(SameConv, BatchNorm2d)>,
    depthwise: (SameConv, BatchNorm2d),
    project: (SameConv, BatchNorm2d),
    skip: bool,
    drop_path: f32,
}

impl Block {
    /// `widths`: channels in, inside, out.
    fn new(widths: (usize, usize, usize), kernel: usize, stride: usize, drop_path: f32, builder: &Builder) -> Result<Self> {
        let (inputs, hidden, outputs) = widths;
        let pair = |conv: &str, norm: &str, widths: (usize, usize), kernel, stride, groups| -> Result<_> {
            let conv = SameConv::new(widths, kernel, stride, groups, &builder.pp(conv))?;
            Ok((conv, batch_norm(widths.1, &builder.pp(norm))?))
        };
        let widens = hidden != inputs;
        Ok(Self {
            expand: widens.then(|| pair("_expand_conv", "_bn0", (inputs, hidden), 1, 1, 1)).transpose()?,
            depthwise: pair("_depthwise_conv", "_bn1", (hidden, hidden), kernel, stride, hidden)?,
            project: pair("_project_conv", "_bn2", (hidden, outputs), 1, 1, 1)?,
            skip: stride == 1 && inputs == outputs,
            drop_path,
        })
    }

    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let conv_relu = |(conv, norm): &(SameConv, BatchNorm2d), xs: &Tensor| norm.forward_relu6(&conv.forward(xs)?, pass);
        let wide = match &self.expand {
            Some(expand) => conv_relu(expand, xs)?,
            None => xs.clone(),
        };
        let wide = conv_relu(&self.depthwise, &wide)?;
        let ys = self.project.1.forward(&self.project.0.forward(&wide)?, pass)?;
        if self.skip { add(xs, &pass.drop_path(&ys, self.drop_path)?) } else { Ok(ys) }
    }
}

/// Eps and momentum of the TensorFlow original (its momentum 0.99 is PyTorch's 0.01).
fn batch_norm(channels: usize, builder: &Builder) -> Result<BatchNorm2d> {
    BatchNorm2d::with_eps(channels, 1e-3, 0.01, builder)
}

/// A convolution without bias whose output has ⌈size/stride⌉ pixels: TensorFlow's "same" padding, which at even sizes
/// and stride 2 puts one zero more right and below than left and above.
#[derive(Debug)]
struct SameConv {
    conv: Conv2d,
    kernel: usize,
    stride: usize,
}

impl SameConv {
    fn new(widths: (usize, usize), kernel: usize, stride: usize, groups: usize, builder: &Builder) -> Result<Self> {
        let padding = if stride == 1 { kernel / 2 } else { 0 };
        let spec = ConvSpec { stride, padding, groups, ..Default::default() };
        Ok(Self { conv: Conv2d::no_bias(widths.0, widths.1, kernel, spec, builder)?, kernel, stride })
    }

    /// # Shapes
    /// `xs` (B, C, H, W) → (B, O, ⌈H/stride⌉, ⌈W/stride⌉)
    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        if self.stride == 1 {
            return self.conv.forward(xs);
        }
        let pad = |xs: &Tensor, axis: usize| -> TensorResult<Tensor> {
            let size = xs.dim(axis)?;
            let total = ((size.div_ceil(self.stride) - 1) * self.stride + self.kernel).saturating_sub(size);
            xs.pad_with_zeros(axis, total / 2, total - total / 2)
        };
        self.conv.forward(&pad(&pad(xs, 2)?, 3)?)
    }
}
