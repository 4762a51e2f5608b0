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
use datum::systems::clouds::automatic_masks::{AutomaticMasksConfig, automatic_masks};
use datum::systems::clouds::refine::{RefineConfig, class_masks, refine};
use datum::systems::clouds::sam_masks::{EncodedImage, PicturePrompts, Point, SamMasks};
use fill::{fill_store, image, uniform};
use std::collections::BTreeMap;
use summary::{error, summary};

/// f32 through a whole network, relative to the norm or the largest value.
const TOLERANCE: f64 = 1e-4;

fn assert_close(case: &str, name: &str, found: &Tensor) {
    let expected: Vec<f32> = golden(case).to_vec1().unwrap();
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
    for i in [0, 15, 16, 255, 256, 299] {
        let (one, _) = sam.decode(&embedding, &many.narrow(i, 1).unwrap(), true).unwrap();
        let difference = (one - logits.narrow(0, i, 1).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-4, "prompt {i}");
    }
}

/// Whole numbers below `bounds`, which are taken in turn, as in the golden program.
fn drawn(name: &str, count: usize, bounds: &[f64]) -> Vec<f64> {
    (0..count).map(|i| uniform(name, i) * bounds[i % bounds.len()]).collect()
}

fn golden(name: &str) -> Tensor {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sam.safetensors");
    SafetensorsFile::open(path.as_ref()).unwrap().load(name, &Device::Cpu).unwrap()
}

#[test]
fn points_and_boxes_on_a_picture_become_the_masks_of_the_published_predictor() {
    let pixels = drawn("picture", 48 * 64 * 3, &[256.0]).into_iter().map(|u| u as u8).collect();
    let picture = RgbImage { height: 48, width: 64, pixels };
    let places = drawn("places", 7 * 5 * 2, &[64.0, 48.0]);
    let point = |xy: &[f64]| Point { x: xy[0].floor(), y: xy[1].floor(), inside: true };
    let points: Vec<Vec<Point>> = places.chunks(10).map(|row| row.chunks(2).map(point).collect()).collect();
    let corners = drawn("corners", 7 * 4, &[32.0, 24.0]);
    let boxes: Vec<[f64; 4]> = corners.chunks(4).map(|c| [c[0], c[1], c[2] + 32.0, c[3] + 24.0]).collect();
    let two_in_one_out = |row: &Vec<Point>| vec![row[0], row[1], Point { inside: false, ..row[2] }];
    let mixed = points.iter().map(two_in_one_out).collect();
    let sam = vit();
    let encoded = EncodedImage::new(&sam, &picture, &Pass::eval()).unwrap();
    for (case, prompts, second_pass) in [
        ("first", PicturePrompts { points: points.clone(), boxes: vec![] }, false),
        ("second", PicturePrompts { points, boxes: vec![] }, true),
        ("boxes", PicturePrompts { points: vec![], boxes: boxes.clone() }, false),
        ("both", PicturePrompts { points: mixed, boxes }, false),
    ] {
        let found = encoded.best_masks(&prompts, second_pass).unwrap();
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
    assert!(encoded.best_masks(&PicturePrompts::default(), false).unwrap().is_empty());
}

/// The model of the golden program: one channel lowers all logits.
fn with_small_masks() -> Sam {
    let encoder = EncoderConfig::Vit(VitConfig { dim: 32, depth: 3, heads: 2, global: vec![1], window: 3 });
    let decoder = DecoderConfig { layers: 2, heads: 4, mlp: 64, quality: 24 };
    let (sam, store) = built(&SamConfig { image_size: 80, encoder, dim: 32, mask_channels: 16, decoder }).unwrap();
    let set = |name: &str, place: &dyn Fn(usize) -> bool, value: f32| {
        let var = store.get(&format!("mask_decoder.{name}")).unwrap();
        let old: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        let new: Vec<f32> = old.into_iter().enumerate().map(|(at, old)| if place(at) { value } else { old }).collect();
        var.set(&Tensor::from_vec(new, var.dims(), &Device::Cpu).unwrap()).unwrap();
    };
    // Weights of the transposed convolution: (8, 4, 2, 2), inputs first.
    set("output_upscaling.3.weight", &|at| at / 4 % 4 == 0, 0.0);
    set("output_upscaling.3.bias", &|at| at == 0, 1.0);
    for i in 0..4 {
        let layer = format!("output_hypernetworks_mlps.{i}.layers.2");
        set(&format!("{layer}.weight"), &|at| at < 32, 0.0);
        set(&format!("{layer}.bias"), &|at| at == 0, -0.3);
    }
    sam
}

#[test]
fn masks_of_everything_are_those_of_the_published_generator() {
    let squares = drawn("squares", 8 * 10 * 3, &[256.0]);
    let pixel = |at: usize| (0..3).map(move |c| (at / 300 / 30 * 10 + at % 300 / 30) * 3 + c);
    let pixels = (0..240 * 300).flat_map(pixel).map(|at| squares[at] as u8).collect();
    let picture = RgbImage { height: 240, width: 300, pixels };
    let sam = with_small_masks();
    let base = AutomaticMasksConfig { points_per_side: 9, stability_score_offset: 0.01, ..AutomaticMasksConfig::default() };
    let crops = AutomaticMasksConfig { crop_n_layers: 1, crop_n_points_downscale_factor: 2, ..base.clone() };
    let clean = AutomaticMasksConfig { min_mask_region_area: 300, ..base.clone() };
    for (case, config, iou, stability, nms) in
        [("whole", base, 0.02, 0.8, 0.97), ("crops", crops, 0.0, 0.5, 0.9), ("clean", clean, 0.0, 0.5, 0.97)]
    {
        let config =
            AutomaticMasksConfig { pred_iou_thresh: iou, stability_score_thresh: stability, box_nms_thresh: nms, ..config };
        let found = automatic_masks(&sam, &picture, &config, &Pass::eval()).unwrap();
        let numbers: Vec<Vec<f32>> = golden(&format!("{case}/numbers")).to_vec2().unwrap();
        let masks: Vec<Vec<u8>> = golden(&format!("{case}/masks")).to_vec2().unwrap();
        assert_eq!(found.len(), numbers.len(), "{case}");
        for (i, (found, (numbers, mask))) in found.iter().zip(numbers.iter().zip(&masks)).enumerate() {
            let place = format!("{case}, mask {i}: {found:?} {numbers:?}");
            // Logits that are equal but for rounding may fall on both sides of a threshold: up to 1 pixel in 1000.
            assert!((found.area as f32 - numbers[0]).abs() <= 1.0 + numbers[0] / 1000.0, "{place}");
            let exact = found.bbox.iter().chain(&found.crop_box).map(|value| *value as f32);
            assert!(exact.zip(&numbers[1..9]).all(|(ours, theirs)| (ours - theirs).abs() <= 1.0), "{place}");
            let ours = [found.point_coords[0][0] as f32, found.point_coords[0][1] as f32];
            assert!(ours.iter().zip(&numbers[9..11]).all(|(ours, theirs)| (ours - theirs).abs() < 1e-3), "{place}");
            assert!((found.predicted_iou.unwrap() - numbers[11]).abs() < 1e-4, "{place}");
            assert!((found.stability_score.unwrap() - numbers[12]).abs() < 2e-3, "{place}");
            let ours = found.segmentation.mask();
            let different = mask.iter().enumerate().filter(|(j, there)| ours[j * 40] != (**there == 1)).count();
            assert!(different <= 2, "{different} of 1800 pixels differ: {place}");
        }
        println!("{case}: {} masks", found.len());
    }
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
fn the_model_in_a_file_is_told_by_its_tensors() {
    let text = include_str!("golden/sam_keys.json");
    let mut published: BTreeMap<String, BTreeMap<String, Vec<usize>>> = serde_json::from_str(text).unwrap();
    for (model, config) in [("mobile", SamConfig::mobile()), ("vit_b", SamConfig::vit_b())] {
        assert_eq!(SamConfig::of_shapes(&published[model]), Some(config));
    }
    let names = [SamConfig::mobile(), SamConfig::vit_b(), SamConfig::vit_l(), SamConfig::vit_h()].map(|config| config.name());
    assert_eq!(names, ["MobileSAM", "SAM ViT-B", "SAM ViT-L", "SAM ViT-H"]);
    let vit_b = published.get_mut("vit_b").unwrap();
    vit_b.retain(|name, _| !name.starts_with("mask_decoder"));
    assert_eq!(SamConfig::of_shapes(vit_b), None);
    // Sizes that nobody published are read off, too.
    let encoder = EncoderConfig::Vit(VitConfig { dim: 32, depth: 3, heads: 2, global: vec![1], window: 3 });
    let decoder = DecoderConfig { layers: 2, heads: 8, mlp: 64, quality: 24 };
    let config = SamConfig { image_size: 80, encoder, dim: 32, mask_channels: 16, decoder };
    let shapes = built(&config).unwrap().1.iter().map(|(name, p)| (name.to_string(), p.var.dims().to_vec())).collect();
    assert_eq!(SamConfig::of_shapes(&shapes), Some(config));
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
