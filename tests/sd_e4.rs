//! Rows of the reference table for the small models: networks chained as in generation, weights from the deterministic fill,
//! values as produced by diffusers 0.30.3. Each row is mean, mean of absolute values, and the values at flat indices
//! 0, 1, N/3, N/2, 2N/3, N − 1.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/sd.rs"]
mod sd;

use candle_core::{Device, Tensor};
use datum::diffusion::sampler::SamplerKind;
use datum::diffusion::{NoiseConfig, NoiseSchedule};
use datum::models::stable_diffusion::UNet;
use datum::models::stable_diffusion::config::TextActivation;
use datum::nn::{AdapterPlan, Builder, mse};
use datum::train::Gradients;
use datum::train::optim::{AdamW, AdamWConfig, Group};
use sd::{half, prompts};

/// The table has six decimals; f32 through a whole network.
const FORWARD: f32 = 1e-4;
/// Errors grow over the steps of a sampling run, whose latents grow a hundredfold here.
const SAMPLED: f32 = 1e-3;

fn assert_row(what: &str, found: &Tensor, expected: [f32; 8]) {
    assert_within(FORWARD, what, found, expected);
}

fn assert_within(tolerance: f32, what: &str, found: &Tensor, expected: [f32; 8]) {
    let values: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
    let n = values.len();
    let mean = |f: fn(f32) -> f32| values.iter().map(|v| f64::from(f(*v))).sum::<f64>() as f32 / n as f32;
    let at = [0, 1, n / 3, n / 2, 2 * n / 3, n - 1].map(|i| values[i]);
    let row: Vec<f32> = [mean(|v| v), mean(f32::abs)].into_iter().chain(at).collect();
    for (found, expected) in row.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * expected.abs().max(0.1), "{what}: {row:?}, expected {expected}");
    }
}

fn timestep(t: f32) -> Tensor {
    Tensor::new(&[t], &Device::Cpu).unwrap()
}

#[test]
fn text_encoder_rows() {
    let (text, _) = sd::filled_text(TextActivation::QuickGelu);
    let ids = text.forward(&prompts(&[&[98, 5, 17, 33]])).unwrap();
    assert_row("clip(ids)", &ids, [-0.024263, 0.809876, 2.112654, 0.901862, -0.435918, 0.882890, 0.832002, 0.211949]);
    let uncond = text.forward(&prompts(&[&[98]])).unwrap();
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
    let latents = (&moments.mean * vae.scaling_factor()).unwrap();
    let schedule = NoiseSchedule::new(&NoiseConfig::default()).unwrap();
    let noisy = schedule.add_noise(&latents, &half("noise", &[1, 4, 8, 8]), &[321]).unwrap();
    let expected = [0.058195, 0.325598, 0.367660, -0.504913, -0.204224, 0.635478, -0.406963, -0.170521];
    assert_row("noisy", &noisy, expected);
}

#[test]
fn unet_rows_with_and_without_adapters() {
    let (text, _) = sd::filled_text(TextActivation::QuickGelu);
    let context = text.forward(&prompts(&[&[98, 5, 17, 33]])).unwrap();
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

/// Classifier-free guidance 7.5 from the fixed start.
fn sampled(kind: SamplerKind, steps: usize) -> Tensor {
    sd::sampled(kind, steps, half("lat", &[1, 4, 8, 8]), 7.5)
}

#[test]
fn sampling_rows() {
    use SamplerKind::{Ddim, Pndm};
    let rows = [
        (Pndm, 5, [-3.101405, 6.752623, -2.605795, -0.290635, -8.735741, -5.405045, -1.819108, -9.424617]),
        (Pndm, 50, [-7.739285, 17.117874, -6.653032, -4.451238, -18.441603, -12.605196, -0.978035, -25.975086]),
        (Ddim, 10, [-5.788863, 11.364324, -6.488047, -0.100963, -9.376389, -9.193234, -10.657024, -22.271624]),
    ];
    for (kind, steps, row) in rows {
        assert_within(SAMPLED, &format!("{kind:?} {steps}"), &sampled(kind, steps), row);
    }
    let latents = sampled(Pndm, 10);
    let row = [-4.780787, 11.035884, -7.403791, -2.962133, -12.783458, -8.467849, -2.319898, -18.272366];
    assert_within(SAMPLED, "Pndm 10", &latents, row);
    let (vae, _) = sd::filled_vae();
    let decoded = vae.decode(&(latents / vae.scaling_factor()).unwrap()).unwrap();
    let image = ((decoded * 0.5).unwrap() + 0.5).unwrap().clamp(0f32, 1f32).unwrap();
    let row = [0.440955, 0.440955, 0.525163, 0.658772, 0.575630, 0.268043, 0.482916, 0.530434];
    assert_within(SAMPLED, "image", &image, row);
}

#[test]
fn dreambooth_rows() {
    let (text, text_store) = sd::filled_text(TextActivation::QuickGelu);
    let (unet, unet_store) = sd::filled_unet(&sd::unet_1());
    let (vae, _) = sd::filled_vae();
    let mean = vae.encode(&half("img", &[1, 3, 16, 16])).unwrap().mean;
    let noise = half("noise", &[1, 4, 8, 8]);
    let schedule = NoiseSchedule::new(&NoiseConfig::default()).unwrap();
    let noisy = schedule.add_noise(&(mean * vae.scaling_factor()).unwrap().detach(), &noise, &[321]).unwrap();
    let mut store = unet_store.prefixed("unet");
    store.merge(&text_store.prefixed("text"));
    let config = AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(vec![Group::all(&store, 1e-2)], config).unwrap();
    for (loss, norm) in [(0.9222467, 7.390532), (0.9094391, 7.373270), (0.8965932, 7.357345)] {
        let context = text.forward(&prompts(&[&[98, 5, 17, 33]])).unwrap();
        let found = mse(&unet.forward(&noisy, &timestep(321.0), &context).unwrap(), &noise).unwrap();
        let gradients = Gradients::of(&found, store.weights()).unwrap();
        let found_norm = optimizer.step(&gradients, 5e-6).unwrap();
        let found = f64::from(found.to_scalar::<f32>().unwrap());
        assert!((found - loss).abs() < 1e-5, "loss {found}, expected {loss}");
        assert!((found_norm - norm).abs() < 1e-4 * norm, "gradient norm {found_norm}, expected {norm}");
    }
    let trained = |name: &str| {
        let values: Vec<f32> = store.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let n = values.len();
        [0, 1, n / 3, n / 2, 2 * n / 3, n - 1].map(|i| values[i])
    };
    let rows = [
        ("unet.conv_in.weight", [0.047099, 0.179887, -0.200395, 0.169085, 0.141576, 0.093436]),
        ("text.text_model.embeddings.token_embedding.weight", [0.229596, -0.208157, 0.062592, 0.000670, -0.196413, 0.206378]),
    ];
    for (name, row) in rows {
        for (found, expected) in trained(name).into_iter().zip(row) {
            assert!((found - expected).abs() < 2e-6, "{name}: {:?}, expected {row:?}", trained(name));
        }
    }
}
