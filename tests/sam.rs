//! Segment Anything and MobileSAM against their published code: outputs (tests/golden/sam.safetensors) and the names of the
//! published files (tests/golden/sam_keys.json); both from tests/golden/sam.py.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/summary.rs"]
mod summary;

use candle_core::{Device, Tensor};
use datum::base::{Result, Rng};
use datum::io::images::RgbImage;
use datum::io::weights::{SafetensorsFile, TensorSource};
use datum::labels::LabelMap;
use datum::models::sam::{DecoderConfig, EncoderConfig, Prompts, Sam, SamConfig, TinyVitConfig, VitConfig};
use datum::nn::{Builder, ParamStore, Pass};
use datum::systems::clouds::refine::{RefineConfig, class_masks, refine};
use datum::systems::clouds::sam_masks::{EncodedImage, SamMasks};
use fill::{fill_store, image};
use std::collections::BTreeMap;
use summary::{error, summary};

/// f32 through a whole network, relative to the norm or the largest value.
const TOLERANCE: f64 = 1e-4;

fn assert_close(case: &str, name: &str, found: &Tensor) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sam.safetensors");
    let golden = SafetensorsFile::open(path.as_ref()).unwrap().load(case, &Device::Cpu).unwrap();
    let expected: Vec<f32> = golden.to_vec1().unwrap();
    let worst = error(&summary(name, found), &expected, 1e-12);
    println!("{case}: error {worst:.1e}");
    assert!(worst < TOLERANCE, "{case}: {worst:e}\n{:?}\n{expected:?}", summary(name, found));
}

fn small(encoder: EncoderConfig, image_size: usize) -> Sam {
    let decoder = DecoderConfig { layers: 2, heads: 4, mlp: 64, quality: 24 };
    let config = SamConfig { image_size, encoder, dim: 32, mask_channels: 16, decoder };
    built(&config).unwrap().0
}

/// A model with the deterministic values, and its parameters.
fn built(config: &SamConfig) -> Result<(Sam, ParamStore)> {
    let builder = Builder::random(0);
    let sam = Sam::new(config, &builder)?;
    let store = builder.finish()?;
    fill_store(&store, "");
    Ok((sam, store))
}

fn vit() -> Sam {
    small(EncoderConfig::Vit(VitConfig { dim: 32, depth: 3, heads: 2, global: vec![1], window: 3 }), 80)
}

/// Coordinates within an image of that size.
fn pixels(name: &str, count: usize, size: f64) -> Tensor {
    // `image` is uniform in ±2.
    ((image(name, &[count, 2]) / 4.0).unwrap() + 0.5).unwrap().affine(size, 0.0).unwrap()
}

fn prompts(masks: usize) -> Prompts {
    let row = |labels: [f32; 5]| labels.to_vec();
    let mut labels: Vec<f32> = (0..3).flat_map(|_| [row([1., 1., 1., 1., 1.]), row([1., 0., 1., 0., -1.])].concat()).collect();
    labels.extend([0., 0., 1., -1., -1.]);
    let labels = Tensor::from_vec(labels, (7, 5), &Device::Cpu).unwrap();
    Prompts {
        points: Some((pixels("points", 35, 80.0).reshape((7, 5, 2)).unwrap(), labels)),
        boxes: Some(pixels("boxes", 14, 80.0).reshape((7, 4)).unwrap()),
        masks: (masks > 0).then(|| image("masks", &[masks, 1, 20, 20])),
    }
}

#[test]
fn image_encoders_agree_with_the_published_code() {
    let embedding = vit().encode(&image("image", &[1, 3, 80, 80]), &Pass::eval()).unwrap();
    assert_eq!(embedding.dims(), [1, 32, 5, 5]);
    assert_close("vit/embedding", "embedding", &embedding);

    let tiny = TinyVitConfig { dims: [16, 24, 32, 320], depths: [1, 2, 1, 1], heads: [1, 2, 4, 10], windows: [7, 4, 3, 7] };
    let sam = small(EncoderConfig::TinyVit(tiny), 112);
    let images = image("images", &[2, 3, 112, 112]);
    let both = sam.encode(&images, &Pass::eval()).unwrap();
    assert_close("tiny/embedding", "embedding", &both);
    for i in 0..2 {
        let one = sam.encode(&images.narrow(0, i, 1).unwrap(), &Pass::eval()).unwrap();
        let difference = (one - both.narrow(0, i, 1).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "a batch is what its images are");
    }
    let of_image = sam.encode(&images.narrow(0, 0, 1).unwrap(), &Pass::statistics_only()).unwrap();
    assert_close("tiny/of_image", "embedding", &of_image);
    assert!(sam.encode(&image("image", &[1, 3, 96, 112]), &Pass::eval()).is_err());
}

#[test]
fn prompts_become_the_masks_of_the_published_code() {
    let sam = vit();
    let embedding = sam.encode(&image("image", &[1, 3, 80, 80]), &Pass::eval()).unwrap();
    let Prompts { points, boxes, masks } = prompts(7);
    for (case, prompts, multimask) in [
        ("points", Prompts { points: points.clone(), ..Prompts::default() }, true),
        ("single", Prompts { points: points.clone(), ..Prompts::default() }, false),
        ("boxes", Prompts { boxes: boxes.clone(), ..Prompts::default() }, true),
        ("points_boxes", Prompts { points: points.clone(), boxes: boxes.clone(), masks: None }, true),
        ("points_masks", Prompts { points: points.clone(), boxes: None, masks: masks.clone() }, true),
        ("masks", Prompts { masks: masks.clone(), ..Prompts::default() }, false),
    ] {
        let (logits, quality) = sam.decode(&embedding, &prompts, multimask).unwrap();
        assert_eq!(logits.dims(), [7, if multimask { 3 } else { 1 }, 20, 20]);
        assert_close(&format!("{case}/logits"), "logits", &logits);
        assert_close(&format!("{case}/quality"), "quality", &quality);
    }
    assert!(sam.decode(&embedding, &Prompts::default(), true).is_err());
    assert!(sam.decode(&embedding, &prompts(3), true).is_err(), "seven points and three masks");
}

#[test]
fn hundreds_of_prompts_are_what_each_of_them_is() {
    let sam = vit();
    let embedding = sam.encode(&image("image", &[1, 3, 80, 80]), &Pass::eval()).unwrap();
    let coordinates = pixels("many", 300 * 5, 80.0).reshape((300, 5, 2)).unwrap();
    let labels = Tensor::ones((300, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
    let many = Prompts { points: Some((coordinates, labels)), ..Prompts::default() };
    let (logits, quality) = sam.decode(&embedding, &many, true).unwrap();
    assert_eq!((logits.dims(), quality.dims()), (&[300, 3, 20, 20][..], &[300, 3][..]));
    for i in [0, 31, 32, 299] {
        let (one, _) = sam.decode(&embedding, &many.narrow(i, 1).unwrap(), true).unwrap();
        let difference = (one - logits.narrow(0, i, 1).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-4, "prompt {i}");
    }
}

/// Uniform in 0…1 as in the golden program.
fn uniform(name: &str, shape: &[usize]) -> Vec<f64> {
    let values: Vec<f32> = image(name, &[shape.iter().product()]).to_vec1().unwrap();
    values.into_iter().map(|value| (f64::from(value) / 2.0 + 1.0) / 2.0).collect()
}

#[test]
fn points_on_a_picture_become_the_masks_of_the_published_predictor() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sam.safetensors");
    let golden = |name: &str| SafetensorsFile::open(path.as_ref()).unwrap().load(name, &Device::Cpu).unwrap();
    let pixels = uniform("picture", &[48, 64, 3]).into_iter().map(|u| (256.0 * u) as u8).collect();
    let picture = RgbImage { height: 48, width: 64, pixels };
    let places = uniform("places", &[7, 5, 2]);
    let points: Vec<Vec<(usize, usize)>> = places
        .chunks(10)
        .map(|row| row.chunks(2).map(|xy| ((64.0 * xy[0]) as usize, (48.0 * xy[1]) as usize)).collect())
        .collect();
    let sam = vit();
    let encoded = EncodedImage::new(&sam, &picture, &Pass::eval()).unwrap();
    for (case, second_pass) in [("first", false), ("second", true)] {
        let found = encoded.best_masks(&points, second_pass).unwrap();
        let masks: Vec<Vec<u8>> = golden(&format!("predict/{case}")).flatten_from(1).unwrap().to_vec2().unwrap();
        let best: Vec<Vec<f32>> = golden(&format!("predict/{case}_best")).to_vec2().unwrap();
        let mut different = 0;
        for (i, found) in found.iter().enumerate() {
            assert_eq!(found.answer, best[0][i] as usize, "{case} {i}");
            assert!((found.quality - best[1][i]).abs() < 1e-4, "{case} {i}: {} {}", found.quality, best[1][i]);
            different += found.mask.iter().zip(&masks[i]).filter(|(ours, theirs)| **ours != (**theirs == 1)).count();
        }
        println!("{case}: {different} of {} pixels differ", 7 * 48 * 64);
        assert!(different <= 7 * 48 * 64 / 1000);
    }
    assert!(encoded.best_masks(&[], false).unwrap().is_empty());
}

#[test]
fn a_pseudo_label_is_refined() {
    let proposer = SamMasks { sam: vit(), name: "small".into(), batch_statistics: false };
    let picture = RgbImage { height: 48, width: 64, pixels: vec![90; 48 * 64 * 3] };
    let mut label = LabelMap::filled(48, 64, 3);
    label.ids[..64 * 20].fill(10);
    label.ids[0] = 5;
    let refined = |min_area| {
        let config = RefineConfig { min_area, ..RefineConfig::default() };
        refine(&proposer, &picture, &label, &config, &mut Rng::stream(0, "test", &[])).unwrap()
    };
    assert_eq!(refined(64 * 48), class_masks(&label), "without a region nothing changes");
    let masks = refined(100);
    assert_eq!(masks.keys().collect::<Vec<_>>(), [&3, &10], "a class without a region disappears");
    assert!((0..48 * 64).all(|at| !(masks[&3][at] && masks[&10][at])));
}

#[test]
fn names_and_shapes_are_those_of_the_published_files() {
    let text = include_str!("golden/sam_keys.json");
    let published: BTreeMap<String, BTreeMap<String, Vec<usize>>> = serde_json::from_str(text).unwrap();
    for (model, config) in [("mobile", SamConfig::mobile()), ("vit_b", SamConfig::vit_b())] {
        let builder = Builder::random(0);
        Sam::new(&config, &builder).unwrap();
        let store = builder.finish().unwrap();
        let ours: BTreeMap<String, Vec<usize>> = store.iter().map(|(name, p)| (name.into(), p.var.dims().to_vec())).collect();
        assert_eq!(ours, published[model], "{model}");
    }
}
