//! Whole runs of the small diffusion networks against diffusers, transformers and torch (tests/golden/sd_runs.py): DreamBooth
//! optimiser steps, and pictures from given latents.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/sd.rs"]
mod sd;

use candle_core::{D, DType, Device, Tensor};
use datum::diffusion::sampler::SamplerKind;
use datum::diffusion::{NoiseConfig, NoiseSchedule};
use datum::models::stable_diffusion::config::TextActivation;
use datum::nn::mse;
use datum::train::Gradients;
use datum::train::optim::{AdamW, AdamWConfig, Group};
use sd::{half, prompts};

fn golden(name: &str) -> Tensor {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sd_runs.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()[name].clone()
}

#[test]
fn five_dreambooth_steps_have_the_reference_losses() {
    let (text, text_store) = sd::filled_text(TextActivation::QuickGelu);
    let (unet, unet_store) = sd::filled_unet(&sd::unet_1());
    let (vae, _) = sd::filled_vae();
    let mean = vae.encode(&half("img", &[2, 3, 16, 16])).unwrap().mean.detach();
    let latents = (mean * vae.scaling_factor()).unwrap();
    let schedule = NoiseSchedule::new(&NoiseConfig::default()).unwrap();
    let mut store = unet_store.prefixed("unet");
    store.merge(&text_store.prefixed("text"));
    let config = AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(vec![Group::all(&store, 1e-2)], config).unwrap();
    let rows: Vec<Vec<f32>> = golden("dreambooth").to_vec2().unwrap();
    assert_eq!(rows.len(), 5);
    for (step, row) in rows.iter().enumerate() {
        let noise = half(&format!("noise{step}"), latents.dims());
        let times = [37 + 190 * step, 980 - 211 * step];
        let noisy = schedule.add_noise(&latents, &noise, &times).unwrap();
        let times = Tensor::new(&times.map(|t| t as f32), &Device::Cpu).unwrap();
        let context = text.forward(&prompts(&[&[98, 5, 17, 33][..]; 2])).unwrap();
        let loss = mse(&unet.forward(&noisy, &times, &context).unwrap(), &noise).unwrap();
        let gradients = Gradients::of(&loss, store.weights()).unwrap();
        let norm = optimizer.step(&gradients, 5e-6).unwrap() as f32;
        let loss = loss.to_scalar::<f32>().unwrap();
        assert!((loss - row[0]).abs() < 1e-5 * row[0], "step {step}: loss {loss}, expected {}", row[0]);
        assert!((norm - row[1]).abs() < 1e-4 * row[1], "step {step}: gradient norm {norm}, expected {}", row[1]);
    }
}

/// Bytes (64, 96, 3) from the golden file's latents.
fn picture(kind: SamplerKind) -> Tensor {
    let (vae, _) = sd::filled_vae();
    let latents = sd::sampled(kind, 10, half("start", &[1, 4, 32, 48]), 1.5);
    let spread = latents.flatten_all().unwrap().var(D::Minus1).unwrap().sqrt().unwrap();
    let decoded = vae.decode(&latents.broadcast_div(&spread).unwrap()).unwrap();
    let levels = decoded.affine(127.5, 127.5).unwrap().clamp(0f32, 255f32).unwrap().round().unwrap();
    levels.squeeze(0).unwrap().permute((1, 2, 0)).unwrap().contiguous().unwrap()
}

#[test]
fn the_same_latents_give_the_same_picture() {
    for (kind, name) in [(SamplerKind::Pndm, "pndm"), (SamplerKind::Ddim, "ddim")] {
        let expected = golden(name).to_dtype(DType::F32).unwrap();
        let difference = (picture(kind) - expected).unwrap().abs().unwrap();
        let values: Vec<f32> = difference.flatten_all().unwrap().to_vec1().unwrap();
        let equal = values.iter().filter(|d| **d <= 1.0).count() as f64 / values.len() as f64;
        let worst = values.iter().copied().fold(0f32, f32::max);
        println!("{name}: {:.3} % within 1/255, worst {worst}", 100.0 * equal);
        assert!(equal >= 0.99, "{name}: {:.2} % of the values are within 1/255, worst {worst}", 100.0 * equal);
    }
}
