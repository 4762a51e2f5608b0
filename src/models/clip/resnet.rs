//! The ResNet of the original CLIP: a stem of three convolutions, and average pooling instead of strides.

use crate::base::Result;
use crate::models::segmenter::{Encoder, Level};
use crate::nn::{BatchNorm2d, Builder, Conv2d, ConvSpec, Pass, add, conv2d, relu};
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

/// Channels of a block's output per channel inside.
const EXPANSION: usize = 4;

/// Sizes of a CLIP ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModifiedResNetConfig {
    /// Blocks in the layers.
    pub depths: [usize; 4],
    /// Channels after the stem, an even number.
    pub width: usize,
}

impl ModifiedResNetConfig {
    pub(super) fn channels(&self) -> [usize; 4] {
        std::array::from_fn(|l| (EXPANSION * self.width) << l)
    }
}

/// The network, without its attention pooling.
///
/// # Source
/// CLIP, section 2.4: ResNet-D with antialiased pooling; names of the published code.
#[derive(Debug)]
pub struct ModifiedResNet {
    stem: Vec<ConvNorm>,
    layers: Vec<Vec<Bottleneck>>,
    channels: [usize; 4],
}

impl ModifiedResNet {
    /// Names `conv{1…3}`, `bn{1…3}`, `layer{1…4}.{i}.…`.
    pub fn new(config: &ModifiedResNetConfig, builder: &Builder) -> Result<Self> {
        let (width, half) = (config.width, config.width / 2);
        let stem = [(3, half, 2), (half, half, 1), (half, width, 1)];
        let stem = stem.into_iter().enumerate().map(|(i, (inputs, outputs, stride))| {
            ConvNorm::new(inputs, outputs, 3, ConvSpec { stride, padding: 1, ..Default::default() }, i + 1, builder)
        });
        let layer = |l: usize| -> Result<Vec<Bottleneck>> {
            let (place, planes) = (builder.pp(format!("layer{}", l + 1)), width << l);
            let block = |i: usize| {
                let (inputs, stride) = match (l, i) {
                    (0, 0) => (width, 1),
                    (_, 0) => (planes / 2 * EXPANSION, 2),
                    _ => (planes * EXPANSION, 1),
                };
                Bottleneck::new(inputs, planes, stride, &place.pp(i))
            };
            (0..config.depths[l]).map(block).collect()
        };
        let layers = (0..4).map(layer).collect::<Result<_>>()?;
        Ok(Self { stem: stem.collect::<Result<_>>()?, layers, channels: config.channels() })
    }
}

impl Encoder for ModifiedResNet {
    fn levels(&self) -> [Level; 4] {
        std::array::from_fn(|l| Level { channels: self.channels[l], stride: 4 << l })
    }

    fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>> {
        let mut xs = images.clone();
        for unit in &self.stem {
            xs = unit.forward_relu(&xs, pass)?;
        }
        xs = average_pool(&xs, 2)?;
        let mut maps = Vec::with_capacity(4);
        for layer in &self.layers {
            for block in layer {
                xs = block.forward(&xs, pass)?;
            }
            maps.push(xs.clone());
        }
        Ok(maps)
    }
}

/// A convolution without bias and its batch norm, under the names `conv{n}` and `bn{n}`.
#[derive(Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm2d,
}

impl ConvNorm {
    fn new(inputs: usize, outputs: usize, kernel: usize, spec: ConvSpec, number: usize, builder: &Builder) -> Result<Self> {
        let names = (builder.pp(format!("conv{number}")), builder.pp(format!("bn{number}")));
        Self::named(inputs, outputs, kernel, spec, names)
    }

    fn named(inputs: usize, outputs: usize, kernel: usize, spec: ConvSpec, names: (Builder, Builder)) -> Result<Self> {
        Ok(Self { conv: Conv2d::no_bias(inputs, outputs, kernel, spec, &names.0)?, norm: BatchNorm2d::new(outputs, &names.1)? })
    }

    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        self.norm.forward(&self.conv.forward(xs)?, pass)
    }

    fn forward_relu(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        self.norm.forward_relu(&self.conv.forward(xs)?, pass)
    }
}

/// 1×1, 3×3, pooling where other ResNets have strides, 1×1; beside a residual that is pooled and projected where needed.
#[derive(Debug)]
struct Bottleneck {
    first: ConvNorm,
    second: ConvNorm,
    third: ConvNorm,
    shortcut: Option<ConvNorm>,
    stride: usize,
}

impl Bottleneck {
    fn new(inputs: usize, planes: usize, stride: usize, builder: &Builder) -> Result<Self> {
        let (outputs, point) = (planes * EXPANSION, ConvSpec::default());
        let shortcut = || {
            let place = builder.pp("downsample");
            ConvNorm::named(inputs, outputs, 1, point, (place.pp("0"), place.pp("1")))
        };
        Ok(Self {
            first: ConvNorm::new(inputs, planes, 1, point, 1, builder)?,
            second: ConvNorm::new(planes, planes, 3, ConvSpec { padding: 1, ..point }, 2, builder)?,
            third: ConvNorm::new(planes, outputs, 1, point, 3, builder)?,
            shortcut: (stride > 1 || inputs != outputs).then(shortcut).transpose()?,
            stride,
        })
    }

    fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let hidden = self.first.forward_relu(xs, pass)?;
        let hidden = self.second.forward_relu(&hidden, pass)?;
        let branch = self.third.forward(&average_pool(&hidden, self.stride)?, pass)?;
        let direct = match &self.shortcut {
            Some(unit) => unit.forward(&average_pool(xs, self.stride)?, pass)?,
            None => xs.clone(),
        };
        relu(&add(&branch, &direct)?)
    }
}

/// Mean over windows of `size`², side by side; what does not fill a window is left out.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, ⌊H/size⌋, ⌊W/size⌋)
fn average_pool(xs: &Tensor, size: usize) -> TensorResult<Tensor> {
    if size == 1 {
        return Ok(xs.clone());
    }
    let channels = xs.dim(1)?;
    let share = Tensor::full(1.0 / (size * size) as f32, (channels, 1, size, size), xs.device())?;
    conv2d(xs, &share, None, ConvSpec { stride: size, groups: channels, ..Default::default() })
}
