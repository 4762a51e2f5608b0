//! Rows of the reference table for the small models: networks chained as in generation, weights from the deterministic fill,
//! values as produced by diffusers 0.30.3. Each row is mean, mean of absolute values, and the values at flat indices
//! 0, 1, N/3, N/2, 2N/3, N − 1.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/sd.rs"]
mod sd;

use candle_core::{Device, Tensor};
use datum::models::stable_diffusion::UNet;
use datum::models::stable_diffusion::config::TextActivation;
use datum::nn::{AdapterPlan, Builder};
use fill::image;

/// The table has six decimals; f32 through a whole network.
fn assert_row(what: &str, found: &Tensor, expected: [f32; 8]) {
    let values: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
    let n = values.len();
    let mean = |f: fn(f32) -> f32| values.iter().map(|v| f64::from(f(*v))).sum::<f64>() as f32 / n as f32;
    let at = [0, 1, n / 3, n / 2, 2 * n / 3, n - 1].map(|i| values[i]);
    let row: Vec<f32> = [mean(|v| v), mean(f32::abs)].into_iter().chain(at).collect();
    for (found, expected) in row.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs().max(0.1), "{what}: {row:?}, expected {expected}");
    }
}

fn prompt(tokens: &[u32]) -> Tensor {
    let mut ids = tokens.to_vec();
    ids.resize(16, 99);
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

fn timestep(t: f32) -> Tensor {
    Tensor::new(&[t], &Device::Cpu).unwrap()
}

fn half(name: &str, shape: &[usize]) -> Tensor {
    (image(name, shape) * 0.5).unwrap()
}

#[test]
fn text_encoder_rows() {
    let (text, _) = sd::filled_text(TextActivation::QuickGelu);
    let ids = text.forward(&prompt(&[98, 5, 17, 33])).unwrap();
    assert_row("clip(ids)", &ids, [-0.024263, 0.809876, 2.112654, 0.901862, -0.435918, 0.882890, 0.832002, 0.211949]);
    let uncond = text.forward(&prompt(&[98])).unwrap();
    assert_row("uncond", &uncond, [-0.021938, 0.803578, 2.112654, 0.901862, -1.804879, 1.952828, 0.631802, -0.127839]);
}

#[test]
fn autoencoder_rows() {
    let (vae, _) = sd::filled_vae();
    let moments = vae.encode(&half("img", &[1, 3, 16, 16])).unwrap();
    let mean = [0.122106, 0.416419, -0.236645, 0.058609, 0.613017, 0.037955, -0.208219, -0.238397];
    assert_row("mean", &moments.mean, mean);
    let logvar = [-0.144055, 0.424342, -0.574187, -0.144962, -0.350878, -0.322899, -0.497539, -0.002450];
    assert_row("logvar", &moments.logvar, logvar);
    let decoded = [-0.110234, 0.473625, -0.144804, -0.704089, 0.154649, 0.531344, 0.244859, -0.124944];
    assert_row("decode(mean)", &vae.decode(&moments.mean).unwrap(), decoded);
    // DDPM noising at timestep 321: βs are evenly spaced in √β from 0.00085 to 0.012
    let root = |i: f64| 0.00085f64.sqrt() + (0.012f64.sqrt() - 0.00085f64.sqrt()) * i / 999.0;
    let kept: f64 = (0..=321).map(|i| 1.0 - root(f64::from(i)).powi(2)).product();
    let latents = (&moments.mean * (vae.scaling_factor() * kept.sqrt())).unwrap();
    let noisy = (latents + (half("noise", &[1, 4, 8, 8]) * (1.0 - kept).sqrt()).unwrap()).unwrap();
    let expected = [0.058195, 0.325598, 0.367660, -0.504913, -0.204224, 0.635478, -0.406963, -0.170521];
    assert_row("noisy", &noisy, expected);
}

#[test]
fn unet_rows_with_and_without_adapters() {
    let (text, _) = sd::filled_text(TextActivation::QuickGelu);
    let context = text.forward(&prompt(&[98, 5, 17, 33])).unwrap();
    let latents = half("lat", &[1, 4, 8, 8]);
    let (unet, _) = sd::filled_unet(&sd::unet_1());
    let plain = unet.forward(&latents, &timestep(500.0), &context).unwrap();
    assert_row("unet", &plain, [0.155066, 0.504404, 0.016758, 0.090101, -0.372284, 0.078362, 0.560271, 0.833770]);

    let targets = ["to_q", "to_k", "to_v", "to_out.0"].map(String::from).to_vec();
    let builder = Builder::random(0).with_adapters(AdapterPlan { rank: 4, alpha: 4.0, targets });
    let adapted = UNet::new(&sd::unet_1(), &builder).unwrap();
    let store = builder.finish().unwrap();
    let mut adapters = 0;
    for (name, param) in store.iter() {
        let shape = param.var.dims();
        let value = match name.contains(".lora.") {
            true => (fill::fill(&format!("lora.unet.{name}"), shape) * 0.3).unwrap(),
            false => fill::fill(&format!("unet.{name}"), shape),
        };
        adapters += usize::from(name.contains(".lora."));
        param.var.set(&value).unwrap();
    }
    assert_eq!(adapters, 64);
    let out = adapted.forward(&latents, &timestep(500.0), &context).unwrap();
    assert_row("LoRA", &out, [0.171557, 0.499012, -0.102250, 0.007093, -0.422963, 0.062742, 0.542791, 0.874126]);
}
