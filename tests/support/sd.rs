//! The small Stable Diffusion networks that the golden files were made with.
#![allow(dead_code)]

use crate::fill::{fill_store, image};
use candle_core::{Device, Tensor};
use datum::diffusion::NoiseConfig;
use datum::diffusion::sampler::{Sampler, SamplerKind};
use datum::models::stable_diffusion::config::{DownBlock, PerLevel, TextActivation, UpBlock};
use datum::models::stable_diffusion::{TextConfig, TextEncoder, UNet, UNetConfig, Vae, VaeConfig};
use datum::nn::{Builder, ParamStore};

/// Two levels, SD 1.x style.
pub fn unet_1() -> UNetConfig {
    UNetConfig {
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        cross_attention_dim: 32,
        attention_head_dim: PerLevel::All(4),
        norm_num_groups: 8,
        down_block_types: vec![DownBlock::CrossAttnDownBlock2D, DownBlock::DownBlock2D],
        up_block_types: vec![UpBlock::UpBlock2D, UpBlock::CrossAttnUpBlock2D],
        sample_size: 8,
        ..UNetConfig::default()
    }
}

/// Three levels, SD 2.x style: heads per level, linear projections.
pub fn unet_2() -> UNetConfig {
    use {DownBlock::*, UpBlock::*};
    UNetConfig {
        block_out_channels: vec![16, 32, 32],
        layers_per_block: 2,
        cross_attention_dim: 24,
        attention_head_dim: PerLevel::Each(vec![2, 4, 8]),
        norm_num_groups: 4,
        use_linear_projection: true,
        down_block_types: vec![DownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D],
        up_block_types: vec![CrossAttnUpBlock2D, CrossAttnUpBlock2D, UpBlock2D],
        ..UNetConfig::default()
    }
}

/// Two levels: latents of half the image's size.
pub fn vae() -> VaeConfig {
    VaeConfig {
        block_out_channels: vec![16, 32],
        layers_per_block: 1,
        norm_num_groups: 8,
        down_block_types: vec!["DownEncoderBlock2D".into(); 2],
        up_block_types: vec!["UpDecoderBlock2D".into(); 2],
        sample_size: 16,
        ..VaeConfig::default()
    }
}

/// Two layers, 100 tokens, prompts of 16.
pub fn text(hidden_act: TextActivation) -> TextConfig {
    TextConfig {
        vocab_size: 100,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        max_position_embeddings: 16,
        hidden_act,
        ..TextConfig::default()
    }
}

fn filled<M>(prefix: &str, build: impl FnOnce(&Builder) -> datum::base::Result<M>) -> (M, ParamStore) {
    let builder = Builder::random(0);
    let model = build(&builder).unwrap();
    let store = builder.finish().unwrap();
    fill_store(&store, prefix);
    (model, store)
}

/// The U-Net of `config` with filled parameters.
pub fn filled_unet(config: &UNetConfig) -> (UNet, ParamStore) {
    filled("unet.", |builder| UNet::new(config, builder))
}

/// The autoencoder of [`vae`] with filled parameters.
pub fn filled_vae() -> (Vae, ParamStore) {
    filled("vae.", |builder| Vae::new(&vae(), builder))
}

/// The text encoder of [`text`] with filled parameters.
pub fn filled_text(hidden_act: TextActivation) -> (TextEncoder, ParamStore) {
    filled("text.", |builder| TextEncoder::new(&text(hidden_act), builder))
}

/// Input values, uniform in ±1.
pub fn half(name: &str, shape: &[usize]) -> Tensor {
    (image(name, shape) * 0.5).unwrap()
}

/// Token ids, padded to the 16 positions of the small text encoder.
pub fn prompts(prompts: &[&[u32]]) -> Tensor {
    let rows = prompts.iter().map(|tokens| tokens.iter().copied().chain(std::iter::repeat(99)).take(16));
    Tensor::from_vec(rows.flatten().collect::<Vec<_>>(), (prompts.len(), 16), &Device::Cpu).unwrap()
}

/// Latents after sampling from `start` with classifier-free guidance, by the networks of [`unet_1`] and [`filled_text`].
pub fn sampled(kind: SamplerKind, steps: usize, start: Tensor, guidance: f64) -> Tensor {
    let (text, _) = filled_text(TextActivation::QuickGelu);
    let (unet, _) = filled_unet(&unet_1());
    let context = text.forward(&prompts(&[&[98], &[98, 5, 17, 33]])).unwrap().detach();
    let mut sampler = Sampler::new(kind, &NoiseConfig::default(), steps).unwrap();
    let mut latents = start;
    for (index, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
        let both = Tensor::cat(&[&latents, &latents], 0).unwrap();
        let output = unet.forward(&both, &Tensor::new(&[t as f32; 2], &Device::Cpu).unwrap(), &context).unwrap();
        let halves = output.detach().chunk(2, 0).unwrap();
        let guided = (&halves[0] + ((&halves[1] - &halves[0]).unwrap() * guidance).unwrap()).unwrap();
        latents = sampler.step(&guided, index, &latents, None).unwrap();
    }
    latents
}
