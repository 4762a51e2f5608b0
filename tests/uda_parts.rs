//! Strong augmentation and feature distance against kornia and PyTorch (tests/golden/uda.safetensors, made by
//! tests/golden/uda.py).

#[path = "support/fill.rs"]
mod fill;

use candle_core::{DType, Device, Result as TensorResult, Tensor, Var};
use datum::base::group::Share;
use datum::io::weights::{SafetensorsFile, TensorSource};
use datum::models::mit;
use datum::models::segmenter::Segmenter;
use datum::nn::Pass;
use datum::uda::strong_augment::ColorOperation::{self, Brightness, Contrast, Hue, Saturation};
use datum::uda::{Augmentation, ColorJitter, Context, FeatureDistance, LossTerm, StepBatch, WholeImage};

fn golden(name: &str) -> Tensor {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/uda.safetensors");
    SafetensorsFile::open(&path).unwrap().load(name, &Device::Cpu).unwrap()
}

fn close(what: &str, found: &Tensor, tolerance: f32) {
    let difference = (found - golden(what)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    println!("{what}: largest difference {difference:.1e}");
    assert!(difference <= tolerance, "{what}: largest difference {difference}");
}

/// Normalised values span ±5; hue has singular points, where f32 rounding is amplified.
#[test]
fn augmentation_matches_kornia() {
    let augment = |image: &Tensor, jitter: Option<[ColorOperation; 4]>, blur_sigma| {
        let augmentation = Augmentation { jitter: jitter.map(ColorJitter), blur_sigma };
        Augmentation::apply(&[augmentation], image, &mit::NORMALIZATION).unwrap()
    };
    let images = fill::image("jitter", &[2, 3, 24, 32]);
    let (first, second) = (images.narrow(0, 0, 1).unwrap(), images.narrow(0, 1, 1).unwrap());
    let order = [Brightness(1.15), Contrast(0.9), Saturation(1.1), Hue(0.17)];
    close("jitter_bcsh", &augment(&first, Some(order), None), 1e-4);
    let order = [Hue(-0.13), Saturation(0.85), Contrast(1.2), Brightness(0.83)];
    close("jitter_hscb", &augment(&second, Some(order), None), 1e-4);
    close("blur", &augment(&fill::image("blur", &[1, 3, 45, 130]), None, Some(1.1)), 2e-6);
    let order = [Contrast(1.1), Hue(0.05), Brightness(0.95), Saturation(1.19)];
    close("both", &augment(&first, Some(order), Some(0.7)), 1e-4);
}

/// An encoder whose output is given.
struct Given(Tensor);

impl Segmenter for Given {
    fn features(&self, _: &Tensor, _: &Pass) -> TensorResult<Vec<Tensor>> {
        Ok(vec![self.0.clone()])
    }

    fn head(&self, _: &[Tensor], _: &Pass) -> TensorResult<Tensor> {
        candle_core::bail!("feature distance needs no head")
    }
}

#[test]
fn feature_distance_and_its_gradient_match_pytorch() {
    let features = Var::from_tensor(&fill::image("features", &[2, 6, 3, 4])).unwrap();
    let labels = golden("feature_distance_labels").to_dtype(DType::U32).unwrap();
    let batch = StepBatch { images: Tensor::zeros((2, 3, 24, 32), DType::F32, &Device::Cpu).unwrap(), labels, target: None };
    let student = Given(features.as_tensor().clone());
    let context = Context {
        student: &student,
        supervision: &WholeImage,
        share: &Share::whole(),
        batch: &batch,
        features: std::slice::from_ref(&student.0),
        pseudo: None,
        mixed: None,
        switches: None,
        iteration: 0,
        seed: 0,
    };
    let term = FeatureDistance::new(Given(fill::image("reference", &[2, 6, 3, 4])), Default::default());
    let (loss, metrics) = term.compute(&context).unwrap().finish().unwrap();
    assert!(metrics.contains_key("loss_imnet_feat_dist"));
    let loss = loss.unwrap();
    close("feature_distance", &loss.reshape(1).unwrap(), 1e-5);
    close("feature_distance_gradient", loss.backward().unwrap().get(&features).unwrap(), 1e-6);
}

#[test]
fn without_things_there_is_no_feature_distance() {
    let features = [fill::image("features", &[1, 6, 2, 2])];
    let student = Given(features[0].clone());
    let batch = StepBatch {
        images: Tensor::zeros((1, 3, 8, 8), DType::F32, &Device::Cpu).unwrap(),
        labels: Tensor::full(255u32, (1, 8, 8), &Device::Cpu).unwrap(),
        target: None,
    };
    let context = Context {
        student: &student,
        supervision: &WholeImage,
        share: &Share::whole(),
        batch: &batch,
        features: &features,
        pseudo: None,
        mixed: None,
        switches: None,
        iteration: 0,
        seed: 0,
    };
    let term = FeatureDistance::new(Given(fill::image("reference", &[1, 6, 2, 2])), Default::default());
    let (loss, metrics) = term.compute(&context).unwrap().finish().unwrap();
    assert!(loss.is_none() && metrics.is_empty());
}
