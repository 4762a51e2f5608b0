//! U-Net, autoencoder and text encoder against PyTorch: outputs, the gradient of every parameter and input
//! (tests/golden/sd.safetensors) and the names of the published files (tests/golden/sd_keys.json); both from
//! tests/golden/sd.py.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/sd.rs"]
mod sd;
#[path = "support/summary.rs"]
mod summary;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use datum::base::Result;
use datum::io::weights::{SafetensorsFile, TensorSource};
use datum::models::stable_diffusion::config::{PerLevel, TextActivation};
use datum::models::stable_diffusion::{TextConfig, TextEncoder, UNet, UNetConfig, Vae, VaeConfig};
use datum::nn::{self, Builder, ParamStore, Recompute};
use fill::image;
use std::collections::BTreeMap;
use summary::{error, summary};

/// Tolerance of outputs: f32 through a whole network, relative to the norm or the largest value.
const OUTPUT: f64 = 1e-4;
/// Tolerance of gradients, likewise.
const GRADIENT: f64 = 1e-3;
/// A parameter whose gradient is below this share of the whole gradient's norm is rounding noise: the bias of a key
/// projection moves all scores of a query alike and has the true gradient 0.
const NOISE: f64 = 1e-4;

fn golden(name: &str) -> Tensor {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sd.safetensors");
    SafetensorsFile::open(path.as_ref()).unwrap().load(name, &Device::Cpu).unwrap()
}

fn assert_close(case: &str, name: &str, found: &Tensor, tolerance: f64) {
    let expected: Vec<f32> = golden(&format!("{case}/{name}")).to_vec1().unwrap();
    let worst = error(&summary(name, found), &expected, 1e-12);
    println!("{case}/{name}: error {worst:.1e}");
    assert!(worst < tolerance, "{case}/{name}: {worst:e}\n{:?}\n{expected:?}", summary(name, found));
}

/// The gradients of all parameters of `store`.
fn assert_gradients(case: &str, store: &ParamStore, gradients: &GradStore) {
    let expected: Vec<Vec<f32>> = golden(&format!("{case}/gradients")).to_vec2().unwrap();
    assert_eq!(store.len(), expected.len());
    let total = expected.iter().map(|row| f64::from(row[0]).powi(2)).sum::<f64>().sqrt();
    let mut worst = 0f64;
    for ((name, var), expected) in store.weights().zip(&expected) {
        let found = gradients.get(var).unwrap_or_else(|| panic!("{case}: no gradient for {name}"));
        let error = error(&summary(name, found), expected, NOISE * total);
        assert!(error < GRADIENT, "{case}, gradient of {name}: {error:e}");
        worst = worst.max(error);
    }
    println!("{case}: {} gradients, error {worst:.1e}", expected.len());
}

/// A loss that reaches every value of a result with its own weight.
fn weighted(name: &str, tensor: &Tensor) -> Tensor {
    (tensor * image(name, tensor.dims())).unwrap().sum_all().unwrap()
}

fn input(name: &str, shape: &[usize], scale: f64) -> Var {
    Var::from_tensor(&(image(name, shape) * scale).unwrap()).unwrap()
}

fn timesteps(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn check_unet(case: &str, config: &UNetConfig, latents: &[usize], context: &[usize], steps: &[f32]) {
    let (unet, store) = sd::filled_unet(config);
    let (latents, context) = (input("lat", latents, 0.5), input("ctx", context, 1.0));
    let out = nn::recording(|| unet.forward(&latents, &timesteps(steps), &context)).unwrap();
    assert_close(case, "output", &out, OUTPUT);
    let gradients = nn::backward(&weighted("loss", &out)).unwrap();
    assert_close(case, "latents", gradients.get(&latents).unwrap(), GRADIENT);
    assert_close(case, "context", gradients.get(&context).unwrap(), GRADIENT);
    assert_gradients(case, &store, &gradients);
}

#[test]
fn unet_in_the_style_of_sd_1() {
    check_unet("unet_1", &sd::unet_1(), &[2, 4, 8, 8], &[2, 16, 32], &[500.0, 7.0]);
}

#[test]
fn unet_in_the_style_of_sd_2_on_latents_that_are_no_powers_of_two() {
    check_unet("unet_2", &sd::unet_2(), &[1, 4, 10, 14], &[1, 7, 24], &[999.0]);
}

#[test]
fn unet_on_odd_latents() {
    check_unet("unet_odd", &sd::unet_2(), &[1, 4, 6, 9], &[1, 7, 24], &[0.0]);
}

#[test]
fn unet_of_a_batch_is_that_of_its_items() {
    let (unet, _) = sd::filled_unet(&sd::unet_1());
    let (latents, context) = (image("batch", &[3, 4, 8, 6]), image("contexts", &[3, 16, 32]));
    let steps = [999.0, 0.0, 321.0];
    let together = unet.forward(&latents, &timesteps(&steps), &context).unwrap();
    for (i, step) in steps.into_iter().enumerate() {
        let (one, its) = (latents.narrow(0, i, 1).unwrap(), context.narrow(0, i, 1).unwrap());
        let alone = unet.forward(&one, &timesteps(&[step]), &its).unwrap();
        let difference = (alone - together.narrow(0, i, 1).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5);
    }
}

#[test]
fn recomputed_activations_give_the_same_result_and_gradients() {
    let (unet, store) = sd::filled_unet(&sd::unet_1());
    let (latents, context) = (input("lat", &[2, 4, 8, 6], 0.5), input("ctx", &[2, 16, 32], 1.0));
    let steps = timesteps(&[500.0, 7.0]);
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let out = unet.forward(&latents, &steps, &context).unwrap();
    let plain = nn::backward(&weighted("loss", &out)).unwrap();
    let recompute = Recompute::new(store.weights().map(|(_, var)| var));
    // Twice: nothing of the first pass may be left in the second.
    for _ in 0..2 {
        let again = nn::recording(|| unet.forward_recomputed(&latents, &steps, &context, &recompute)).unwrap();
        assert_eq!(values(&again), values(&out), "the result has the same bits");
        let gradients = recompute.backward(&weighted("loss", &again)).unwrap();
        for (name, var) in store.weights().chain([("latents", &latents), ("context", &context)]) {
            let (found, expected) = (values(gradients.get(var).unwrap()), values(plain.get(var).unwrap()));
            // Where paths meet, the engine adds in another order; the bias of a key projection is rounding alone.
            let tolerance = 1e-5 * expected.iter().fold(1f32, |most, x| most.max(x.abs()));
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= tolerance), "{name}");
        }
    }
}

#[test]
fn autoencoder() {
    let (vae, store) = sd::filled_vae();
    let (images, latents) = (input("img", &[2, 3, 16, 24], 0.5), input("lat", &[2, 4, 6, 5], 1.0));
    let moments = nn::recording(|| vae.encode(&images)).unwrap();
    let sample = moments.sample(&image("noise", &[2, 4, 8, 12])).unwrap();
    let decoded = nn::recording(|| vae.decode(&latents)).unwrap();
    let results = [("mean", &moments.mean), ("logvar", &moments.logvar), ("sample", &sample), ("decoded", &decoded)];
    let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
    for (name, result) in results {
        assert_close("vae", name, result, OUTPUT);
        loss = (loss + weighted(name, result)).unwrap();
    }
    let gradients = nn::backward(&loss).unwrap();
    assert_close("vae", "images", gradients.get(&images).unwrap(), GRADIENT);
    assert_close("vae", "latents", gradients.get(&latents).unwrap(), GRADIENT);
    assert_gradients("vae", &store, &gradients);
}

#[test]
fn text_encoder_with_both_activations() {
    let second: Vec<u32> = [98].into_iter().chain([7, 80].repeat(7)).chain([99]).collect();
    let first: Vec<u32> = [98, 5, 17, 33].into_iter().chain([99; 12]).collect();
    let ids = Tensor::new(vec![first, second], &Device::Cpu).unwrap();
    for (case, activation) in [("text_quick_gelu", TextActivation::QuickGelu), ("text_gelu", TextActivation::Gelu)] {
        let (encoder, store) = sd::filled_text(activation);
        let out = nn::recording(|| encoder.forward(&ids)).unwrap();
        assert_close(case, "output", &out, OUTPUT);
        assert_gradients(case, &store, &nn::backward(&weighted("loss", &out)).unwrap());
    }
}

/// Names and shapes without values: every tensor loads as a single zero, so that full sizes can be built at no cost.
struct ShapesOnly(BTreeMap<String, Vec<usize>>);

impl TensorSource for ShapesOnly {
    fn origin(&self) -> String {
        "published names".into()
    }
    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.0.clone()
    }
    fn load(&self, _: &str, device: &Device) -> Result<Tensor> {
        Ok(Tensor::zeros((), candle_core::DType::F32, device)?)
    }
}

/// Builds a network of full size; the strict check of `finish` compares its names and shapes with the published ones.
fn check_keys<M>(part: &str, tensors: usize, values: usize, build: impl FnOnce(&Builder) -> Result<M>) {
    let keys: BTreeMap<String, BTreeMap<String, Vec<usize>>> = serde_json::from_str(include_str!("golden/sd_keys.json")).unwrap();
    let names = keys[part].clone();
    assert_eq!(names.len(), tensors);
    assert_eq!(names.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>(), values);
    let builder = Builder::from_source(ShapesOnly(names), 0);
    build(&builder).unwrap();
    builder.finish().unwrap();
}

#[test]
fn names_and_shapes_are_those_of_the_published_models() {
    let unet_2 = UNetConfig {
        cross_attention_dim: 1024,
        attention_head_dim: PerLevel::Each(vec![5, 10, 20, 20]),
        use_linear_projection: true,
        ..UNetConfig::default()
    };
    check_keys("unet", 686, 859_520_964, |builder| UNet::new(&UNetConfig::default(), builder));
    check_keys("unet_2", 686, 865_910_724, |builder| UNet::new(&unet_2, builder));
    check_keys("vae", 248, 83_653_863, |builder| Vae::new(&VaeConfig::default(), builder));
    check_keys("text_encoder", 196, 123_060_480, |builder| TextEncoder::new(&TextConfig::default(), builder));
}

/// Sizes at which every way to convolve is taken: few and many channels, wide and small maps.
#[test]
fn an_item_has_the_same_bits_alone_and_in_a_batch() {
    let config = UNetConfig {
        block_out_channels: vec![32, 64, 128, 192],
        layers_per_block: 1,
        cross_attention_dim: 64,
        attention_head_dim: PerLevel::All(4),
        norm_num_groups: 16,
        ..UNetConfig::default()
    };
    let builder = Builder::random(0);
    let unet = UNet::new(&config, &builder.frozen()).unwrap();
    let (latents, context) = (image("latents", &[3, 4, 40, 56]), image("context", &[3, 16, 64]));
    let times = Tensor::new(&[1f32, 500.0, 999.0], &Device::Cpu).unwrap();
    let text = TextConfig {
        hidden_size: 64,
        intermediate_size: 256,
        num_attention_heads: 4,
        num_hidden_layers: 2,
        ..TextConfig::default()
    };
    let text = TextEncoder::new(&text, &Builder::random(1).frozen()).unwrap();
    let ids = Tensor::from_vec((0..48u32).collect(), (3, 16), &Device::Cpu).unwrap();
    let vae_config = VaeConfig { block_out_channels: vec![32, 64, 96], norm_num_groups: 8, ..vae_levels(3) };
    let vae = Vae::new(&vae_config, &Builder::random(2).frozen()).unwrap();
    let run = |from: usize, count: usize| {
        let part = |tensor: &Tensor| tensor.narrow(0, from, count).unwrap().contiguous().unwrap();
        let noise = unet.forward(&part(&latents), &part(&times), &part(&context)).unwrap();
        [noise, text.forward(&part(&ids)).unwrap(), vae.decode(&part(&latents)).unwrap()]
    };
    let whole = run(0, 3);
    for item in 0..3 {
        for (what, (alone, whole)) in ["U-Net", "text encoder", "autoencoder"].iter().zip(run(item, 1).iter().zip(&whole)) {
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values(alone) == values(&whole.narrow(0, item, 1).unwrap()), "{what}, item {item}");
        }
    }
}

/// Default settings with blocks for so many levels.
fn vae_levels(levels: usize) -> VaeConfig {
    VaeConfig {
        down_block_types: vec!["DownEncoderBlock2D".into(); levels],
        up_block_types: vec!["UpDecoderBlock2D".into(); levels],
        layers_per_block: 1,
        ..VaeConfig::default()
    }
}
