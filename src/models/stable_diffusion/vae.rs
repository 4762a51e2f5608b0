//! The autoencoder between images and latents (`AutoencoderKL`).

use super::blocks::{Downsample, NormSpec, Padding, ResnetBlock, Upsample, conv1x1, conv3x3};
use super::config::VaeConfig;
use crate::base::Result;
use crate::models::tokens::{map_to_tokens, tokens_to_map};
use crate::nn::{Builder, Conv2d, GroupNorm, Linear, add, attention};
use candle_core::{DType, Result as TensorResult, Tensor};

fn norm(config: &VaeConfig) -> NormSpec {
    NormSpec { groups: config.norm_num_groups, eps: 1e-6 }
}

/// Single-head self-attention over all pixels.
#[derive(Debug)]
struct PixelAttention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    scale: f32,
}

impl PixelAttention {
    fn new(config: &VaeConfig, channels: usize, builder: &Builder) -> Result<Self> {
        let linear = |place: &Builder| Linear::new(channels, channels, place);
        Ok(Self {
            norm: norm(config).build(channels, &builder.pp("group_norm"))?,
            query: linear(&builder.pp("to_q"))?,
            key: linear(&builder.pp("to_k"))?,
            value: linear(&builder.pp("to_v"))?,
            out: linear(&builder.pp("to_out").pp(0))?,
            scale: 1.0 / (channels as f32).sqrt(),
        })
    }

    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let (_, _, height, width) = xs.dims4()?;
        let tokens = map_to_tokens(&self.norm.forward(xs)?)?; // (B, h·w, C)
        let (q, k, v) = (self.query.forward(&tokens)?, self.key.forward(&tokens)?, self.value.forward(&tokens)?);
        let ys = attention(&q, &k, &v, 1, self.scale, false)?;
        add(xs, &tokens_to_map(&self.out.forward(&ys)?, (height, width))?)
    }
}

/// Residual block, attention, residual block at the lowest resolution.
#[derive(Debug)]
struct Middle {
    first: ResnetBlock,
    attention: PixelAttention,
    second: ResnetBlock,
}

impl Middle {
    fn new(config: &VaeConfig, channels: usize, builder: &Builder) -> Result<Self> {
        let resnet = |i| ResnetBlock::new(channels, channels, None, norm(config), &builder.pp("resnets").pp(i));
        Ok(Self {
            first: resnet(0)?,
            attention: PixelAttention::new(config, channels, &builder.pp("attentions").pp(0))?,
            second: resnet(1)?,
        })
    }

    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        self.second.forward(&self.attention.forward(&self.first.forward(xs, None)?)?, None)
    }
}

/// `count` residual blocks from `input` to `output` channels.
fn resnets(config: &VaeConfig, input: usize, output: usize, count: usize, builder: &Builder) -> Result<Vec<ResnetBlock>> {
    let block = |i| {
        let channels = if i == 0 { input } else { output };
        ResnetBlock::new(channels, output, None, norm(config), &builder.pp("resnets").pp(i))
    };
    (0..count).map(block).collect()
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(config: &VaeConfig, builder: &Builder) -> Result<Self> {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        let mut width = channels[0];
        let mut down = Vec::new();
        for (level, &output) in channels.iter().enumerate() {
            let place = builder.pp("down_blocks").pp(level);
            let shrink = || Downsample::new(output, Padding::RightBottom, &place.pp("downsamplers").pp(0));
            let sampler = (level + 1 < channels.len()).then(shrink).transpose()?;
            down.push((resnets(config, width, output, config.layers_per_block, &place)?, sampler));
            width = output;
        }
        Ok(Self {
            conv_in: conv3x3(config.in_channels, channels[0], &builder.pp("conv_in"))?,
            down,
            middle: Middle::new(config, last, &builder.pp("mid_block"))?,
            norm_out: norm(config).build(last, &builder.pp("conv_norm_out"))?,
            conv_out: conv3x3(last, 2 * config.latent_channels, &builder.pp("conv_out"))?,
        })
    }

    fn forward(&self, images: &Tensor) -> TensorResult<Tensor> {
        let mut xs = self.conv_in.forward(images)?;
        for (resnets, sampler) in &self.down {
            for resnet in resnets {
                xs = resnet.forward(&xs, None)?;
            }
            if let Some(sampler) = sampler {
                xs = sampler.forward(&xs)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&self.middle.forward(&xs)?)?)
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    up: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(config: &VaeConfig, builder: &Builder) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut width = last;
        let mut up = Vec::new();
        for (i, &output) in channels.iter().rev().enumerate() {
            let place = builder.pp("up_blocks").pp(i);
            let grow = || Upsample::new(output, &place.pp("upsamplers").pp(0));
            let sampler = (i + 1 < channels.len()).then(grow).transpose()?;
            up.push((resnets(config, width, output, config.layers_per_block + 1, &place)?, sampler));
            width = output;
        }
        Ok(Self {
            conv_in: conv3x3(config.latent_channels, last, &builder.pp("conv_in"))?,
            middle: Middle::new(config, last, &builder.pp("mid_block"))?,
            up,
            norm_out: norm(config).build(first, &builder.pp("conv_norm_out"))?,
            conv_out: conv3x3(first, config.out_channels, &builder.pp("conv_out"))?,
        })
    }

    fn forward(&self, latents: &Tensor) -> TensorResult<Tensor> {
        let mut xs = self.middle.forward(&self.conv_in.forward(latents)?)?;
        for (resnets, sampler) in &self.up {
            for resnet in resnets {
                xs = resnet.forward(&xs, None)?;
            }
            if let Some(sampler) = sampler {
                let (_, _, height, width) = xs.dims4()?;
                xs = sampler.forward(&xs, (2 * height, 2 * width))?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&xs)?)
    }
}

/// The normal distribution of latents that the encoder gives for each image, before scaling.
#[derive(Debug, Clone)]
pub struct Moments {
    /// (B, 4, h, w)
    pub mean: Tensor,
    /// (B, 4, h, w), logarithm of the variance, within −30…20.
    pub logvar: Tensor,
}

impl Moments {
    /// `mean + std · noise`.
    ///
    /// # Shapes
    /// `noise` (B, 4, h, w), standard normal → same
    pub fn sample(&self, noise: &Tensor) -> TensorResult<Tensor> {
        let std = (&self.logvar * 0.5)?.exp()?;
        &self.mean + (std * noise)?
    }
}

/// Autoencoder of images, with eighth-size latents of four channels in the published models.
///
/// Latents handed to the U-Net are `sample · scaling_factor`; divide by it before [`Vae::decode`].
///
/// # Source
/// Latent Diffusion, section 3.1, with the parameter names of diffusers' `AutoencoderKL`.
#[derive(Debug)]
pub struct Vae {
    encoder: Encoder,
    quant: Conv2d,
    post_quant: Conv2d,
    decoder: Decoder,
    latent_channels: usize,
    scaling_factor: f64,
    dtype: DType,
}

impl Vae {
    /// Builds the network of `config`.
    ///
    /// # Errors
    /// A configuration that contradicts itself (see [`VaeConfig::validate`]).
    pub fn new(config: &VaeConfig, builder: &Builder) -> Result<Self> {
        config.validate()?;
        let latent = config.latent_channels;
        Ok(Self {
            encoder: Encoder::new(config, &builder.pp("encoder"))?,
            quant: conv1x1(2 * latent, 2 * latent, &builder.pp("quant_conv"))?,
            post_quant: conv1x1(latent, latent, &builder.pp("post_quant_conv"))?,
            decoder: Decoder::new(config, &builder.pp("decoder"))?,
            latent_channels: latent,
            scaling_factor: config.scaling_factor,
            dtype: builder.dtype(),
        })
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// What brings latents to about unit variance (0.18215 for SD 1.x and 2.x).
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }

    /// # Shapes
    /// `images` (B, 3, H, W) in −1…1, sides divisible by 8 → moments (B, 4, H/8, W/8)
    pub fn encode(&self, images: &Tensor) -> TensorResult<Moments> {
        let moments = self.quant.forward(&self.encoder.forward(&images.to_dtype(self.dtype)?)?)?.to_dtype(DType::F32)?;
        let halves = moments.chunk(2, 1)?;
        Ok(Moments { mean: halves[0].contiguous()?, logvar: halves[1].contiguous()?.clamp(-30f32, 20f32)? })
    }

    /// # Shapes
    /// `latents` (B, 4, h, w), unscaled → images (B, 3, 8h, 8w), about −1…1
    pub fn decode(&self, latents: &Tensor) -> TensorResult<Tensor> {
        self.decoder.forward(&self.post_quant.forward(&latents.to_dtype(self.dtype)?)?)?.to_dtype(DType::F32)
    }
}
