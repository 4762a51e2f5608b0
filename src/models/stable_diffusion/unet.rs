//! The denoising U-Net (`UNet2DConditionModel`).

use super::blocks::{Downsample, NormSpec, Padding, ResnetBlock, Upsample, conv3x3};
use super::config::UNetConfig;
use super::transformer::{SpatialTransformer, TransformerSpec};
use crate::base::Result;
use crate::nn::{Builder, Conv2d, GroupNorm, Linear, Recompute, join_channels, silu};
use candle_core::{DType, Result as TensorResult, Tensor};
use std::sync::Arc;

/// Sinusoids of the timestep and two linear layers.
#[derive(Debug)]
struct TimeEmbedding {
    /// (1, C/2) frequencies, highest first.
    frequencies: Tensor,
    cos_first: bool,
    widen: Linear,
    mix: Linear,
}

impl TimeEmbedding {
    fn new(config: &UNetConfig, builder: &Builder) -> Result<Self> {
        let channels = config.block_out_channels[0];
        let half = channels / 2;
        let step = -(10_000f32.ln());
        let frequencies: Vec<f32> = (0..half).map(|i| (step * i as f32 / (half as f32 - config.freq_shift)).exp()).collect();
        Ok(Self {
            frequencies: Tensor::from_vec(frequencies, (1, half), &builder.device())?,
            cos_first: config.flip_sin_to_cos,
            widen: Linear::new(channels, 4 * channels, &builder.pp("linear_1"))?,
            mix: Linear::new(4 * channels, 4 * channels, &builder.pp("linear_2"))?,
        })
    }

    /// `timesteps` (B) → (B, 4C), after the SiLU that every block applies to it.
    fn forward(&self, timesteps: &Tensor) -> TensorResult<Tensor> {
        let angles = timesteps.unsqueeze(1)?.broadcast_mul(&self.frequencies)?; // (B, C/2)
        let (sin, cos) = (angles.sin()?, angles.cos()?);
        let waves = if self.cos_first { Tensor::cat(&[cos, sin], 1)? } else { Tensor::cat(&[sin, cos], 1)? };
        silu(&self.mix.forward(&silu(&self.widen.forward(&waves)?)?)?)
    }
}

/// A residual block, and attention where the level has any.
#[derive(Debug)]
struct Stage {
    resnet: ResnetBlock,
    attention: Option<SpatialTransformer>,
}

impl Stage {
    fn forward(&self, xs: &Tensor, time: &Tensor, context: &Tensor) -> TensorResult<Tensor> {
        let xs = self.resnet.forward(xs, Some(time))?;
        match &self.attention {
            Some(attention) => attention.forward(&xs, context),
            None => Ok(xs),
        }
    }
}

/// Stages of one resolution. They are shared with the graph when their activations are recomputed.
#[derive(Debug)]
struct Level(Vec<Arc<Stage>>);

impl Level {
    /// `inputs`: input channels of each residual block.
    fn new(config: &UNetConfig, level: usize, inputs: &[usize], attends: bool, builder: &Builder) -> Result<Self> {
        let channels = config.block_out_channels[level];
        let norm = NormSpec { groups: config.norm_num_groups, eps: config.norm_eps };
        let time_dim = Some(4 * config.block_out_channels[0]);
        let stage = |(i, input): (usize, &usize)| {
            let attention = || SpatialTransformer::new(transformer(config, level), &builder.pp("attentions").pp(i));
            let resnet = ResnetBlock::new(*input, channels, time_dim, norm, &builder.pp("resnets").pp(i))?;
            Ok(Arc::new(Stage { resnet, attention: attends.then(attention).transpose()? }))
        };
        inputs.iter().enumerate().map(stage).collect::<Result<_>>().map(Self)
    }
}

fn transformer(config: &UNetConfig, level: usize) -> TransformerSpec {
    TransformerSpec {
        channels: config.block_out_channels[level],
        heads: config.heads(level),
        context_dim: config.cross_attention_dim,
        norm_groups: config.norm_num_groups,
        linear_projection: config.use_linear_projection,
    }
}

/// The middle: residual block, attention, residual block.
fn build_middle(config: &UNetConfig, builder: &Builder) -> Result<Level> {
    let level = config.block_out_channels.len() - 1;
    let channels = config.block_out_channels[level];
    let norm = NormSpec { groups: config.norm_num_groups, eps: config.norm_eps };
    let time_dim = Some(4 * config.block_out_channels[0]);
    let resnet = |i| ResnetBlock::new(channels, channels, time_dim, norm, &builder.pp("resnets").pp(i));
    let attention = SpatialTransformer::new(transformer(config, level), &builder.pp("attentions").pp(0))?;
    let first = Stage { resnet: resnet(0)?, attention: Some(attention) };
    Ok(Level(vec![Arc::new(first), Arc::new(Stage { resnet: resnet(1)?, attention: None })]))
}

/// Predicts the noise (or velocity) in latents, given the timestep and the encoded prompt.
///
/// # Source
/// Latent Diffusion, section 3.3, in the sizes and with the parameter names of diffusers' `UNet2DConditionModel`.
#[derive(Debug)]
pub struct UNet {
    time_embedding: TimeEmbedding,
    conv_in: Conv2d,
    down: Vec<(Level, Option<Downsample>)>,
    middle: Level,
    up: Vec<(Level, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    dtype: DType,
}

impl UNet {
    /// Builds the network of `config`.
    ///
    /// # Errors
    /// A configuration that contradicts itself (see [`UNetConfig::validate`]).
    pub fn new(config: &UNetConfig, builder: &Builder) -> Result<Self> {
        config.validate()?;
        let channels = &config.block_out_channels;
        let mut skips = vec![channels[0]];
        let down = Self::build_down(config, &mut skips, &builder.pp("down_blocks"))?;
        let up = Self::build_up(config, &mut skips, &builder.pp("up_blocks"))?;
        let norm = NormSpec { groups: config.norm_num_groups, eps: config.norm_eps };
        Ok(Self {
            time_embedding: TimeEmbedding::new(config, &builder.pp("time_embedding"))?,
            conv_in: conv3x3(config.in_channels, channels[0], &builder.pp("conv_in"))?,
            down,
            middle: build_middle(config, &builder.pp("mid_block"))?,
            up,
            norm_out: norm.build(channels[0], &builder.pp("conv_norm_out"))?,
            conv_out: conv3x3(channels[0], config.out_channels, &builder.pp("conv_out"))?,
            dtype: builder.dtype(),
        })
    }

    /// Pushes the channels of every feature map that the way up will concatenate.
    fn build_down(config: &UNetConfig, skips: &mut Vec<usize>, builder: &Builder) -> Result<Vec<(Level, Option<Downsample>)>> {
        let levels = config.block_out_channels.len();
        let mut width = config.block_out_channels[0];
        let mut blocks = Vec::new();
        for (level, kind) in config.down_block_types.iter().enumerate() {
            let (channels, place) = (config.block_out_channels[level], builder.pp(level));
            let mut inputs = vec![channels; config.layers_per_block];
            inputs[0] = width;
            skips.extend(vec![channels; config.layers_per_block]);
            let shrink = || Downsample::new(channels, Padding::Symmetric, &place.pp("downsamplers").pp(0));
            let sampler = (level + 1 < levels).then(shrink).transpose()?;
            skips.extend(sampler.as_ref().map(|_| channels));
            blocks.push((Level::new(config, level, &inputs, kind.attends(), &place)?, sampler));
            width = channels;
        }
        Ok(blocks)
    }

    fn build_up(config: &UNetConfig, skips: &mut Vec<usize>, builder: &Builder) -> Result<Vec<(Level, Option<Upsample>)>> {
        let levels = config.block_out_channels.len();
        let mut width = config.block_out_channels[levels - 1];
        let mut blocks = Vec::new();
        for (i, kind) in config.up_block_types.iter().enumerate() {
            let level = levels - 1 - i;
            let (channels, place) = (config.block_out_channels[level], builder.pp(i));
            let mut inputs = Vec::new();
            for _ in 0..=config.layers_per_block {
                inputs.push(width + skips.pop().unwrap_or(0));
                width = channels;
            }
            let grow = || Upsample::new(channels, &place.pp("upsamplers").pp(0));
            let sampler = (level > 0).then(grow).transpose()?;
            blocks.push((Level::new(config, level, &inputs, kind.attends(), &place)?, sampler));
        }
        Ok(blocks)
    }

    /// One prediction per item of the batch, each at its own timestep. Latent sizes need not be powers of two.
    ///
    /// # Shapes
    /// `latents` (B, 4, h, w), `timesteps` (B) f32 in 0…999, `context` (B, T, D) → (B, 4, h, w)
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, context: &Tensor) -> TensorResult<Tensor> {
        Ok(self.forward_with_features(latents, timesteps, context)?.0)
    }

    /// As [`Self::forward`], and the features behind the lowest level of the way up: (B, C, h', w'), C the channels of that level,
    /// h' and w' those of the level above it.
    pub fn forward_with_features(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        context: &Tensor,
    ) -> TensorResult<(Tensor, Tensor)> {
        self.run(latents, timesteps, context, &|stage, [xs, time, context]| stage.forward(xs, time, context))
    }

    /// As [`Self::forward`], for training in little memory: of every residual block and its attention only inputs and
    /// output are kept. See [`Recompute::run`].
    pub fn forward_recomputed(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        context: &Tensor,
        recompute: &Recompute,
    ) -> TensorResult<Tensor> {
        let run = |stage: &Arc<Stage>, inputs: [&Tensor; 3]| {
            let stage = stage.clone();
            recompute.run(move |xs, time, context| stage.forward(xs, time, context), inputs)
        };
        Ok(self.run(latents, timesteps, context, &run)?.0)
    }

    fn run(&self, latents: &Tensor, timesteps: &Tensor, context: &Tensor, step: &RunStage) -> TensorResult<(Tensor, Tensor)> {
        let time = self.time_embedding.forward(timesteps)?.to_dtype(self.dtype)?;
        let context = &context.to_dtype(self.dtype)?;
        let mut xs = self.conv_in.forward(&latents.to_dtype(self.dtype)?)?;
        let mut skips = vec![xs.clone()];
        for (level, sampler) in &self.down {
            for stage in &level.0 {
                xs = step(stage, [&xs, &time, context])?;
                skips.push(xs.clone());
            }
            if let Some(sampler) = sampler {
                xs = sampler.forward(&xs)?;
                skips.push(xs.clone());
            }
        }
        for stage in &self.middle.0 {
            xs = step(stage, [&xs, &time, context])?;
        }
        let mut lowest = None;
        for (level, sampler) in &self.up {
            for stage in &level.0 {
                // `build_up` popped the same stack, so there is one left.
                let skip = skips.pop().ok_or_else(|| candle_core::Error::Msg("U-Net without skip connection".into()))?;
                xs = step(stage, [&join_channels(&xs, &skip)?, &time, context])?;
            }
            if let (Some(sampler), Some(skip)) = (sampler, skips.last()) {
                let (_, _, height, width) = skip.dims4()?;
                xs = sampler.forward(&xs, (height, width))?;
            }
            lowest.get_or_insert_with(|| xs.clone());
        }
        let prediction = self.conv_out.forward(&self.norm_out.forward_silu(&xs)?)?.to_dtype(DType::F32)?;
        Ok((prediction, lowest.unwrap_or(xs)))
    }
}

/// How a stage is applied to features, timestep embedding and prompt.
type RunStage<'a> = dyn Fn(&Arc<Stage>, [&Tensor; 3]) -> TensorResult<Tensor> + 'a;
