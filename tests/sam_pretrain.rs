//! The training of a small Segment Anything: all gradients against the published code, what a step sees, resuming, files, wrong inputs.
//! Values come from tests/golden/sam_gradients.safetensors, made by tests/golden/sam_gradients.py.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/summary.rs"]
mod summary;

use candle_core::{Device, Tensor};
use datum::base::Rng;
use datum::base::progress::Silent;
use datum::data::street::{Look, Scene};
use datum::io::images::{RgbImage, write_gray_png, write_png};
use datum::io::weights::{SafetensorsFile, TensorSource};
use datum::models::sam::{DecoderConfig, EncoderConfig, Prompts, Sam, SamConfig, VitConfig};
use datum::nn::{self, Builder, Pass};
use datum::systems::clouds::pretrain_sam::config::{SamModelConfig, SamPretrainConfig};
use datum::systems::clouds::pretrain_sam::{self, Asked, Examples, SamTraining};
use datum::systems::clouds::refiner;
use datum::systems::shared::Size;
use datum::train::checkpoint::Checkpointer;
use datum::train::driver::{Driver, Training};
use datum::train::run_dir::RunDir;
use datum::train::stage::Resumable;
use fill::{fill_store, image};
use std::collections::BTreeMap;
use std::path::Path;
use summary::{error, summary};

/// Relative tolerance of results, and of a parameter's gradient.
const OUTPUT: f64 = 1e-4;
const GRADIENT: f64 = 5e-4;
/// Below this share of the whole gradient's norm a parameter's own gradient is rounding noise.
const NOISE: f64 = 1e-4;

/// Coordinates within an image of 80 pixels; `image` is uniform in ±2.
fn pixels(name: &str, count: usize) -> Tensor {
    ((image(name, &[count, 2]) / 4.0).unwrap() + 0.5).unwrap().affine(80.0, 0.0).unwrap()
}

#[test]
fn the_gradient_of_every_parameter_is_that_of_the_published_code() {
    let file =
        SafetensorsFile::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sam_gradients.safetensors"))).unwrap();
    let expected = |name: &str| file.load(name, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    let decoder = DecoderConfig { layers: 2, heads: 4, mlp: 64, quality: 24 };
    let encoder = EncoderConfig::Vit(VitConfig { dim: 32, depth: 2, heads: 8, global: vec![1], window: 3 });
    let builder = Builder::random(0);
    let sam = Sam::new(&SamConfig { image_size: 80, encoder, dim: 32, mask_channels: 16, decoder }, &builder).unwrap();
    let store = builder.finish().unwrap();
    fill_store(&store, "");
    let labels = Tensor::new(&[[1f32, 1., 1., 1., 1.], [1., 0., 1., 0., -1.], [0., 0., 1., -1., -1.]], &Device::Cpu).unwrap();
    let points = Prompts { points: Some((pixels("points", 15).reshape((3, 5, 2)).unwrap(), labels)), ..Prompts::default() };
    let boxes = Some(pixels("boxes", 6).reshape((3, 4)).unwrap());
    let again = Prompts { boxes, masks: Some(image("masks", &[3, 1, 20, 20])), points: None };
    let close = |name: &str, kind: &str, found: &Tensor| {
        let error = error(&summary(kind, found), &expected(name), 1e-12);
        assert!(error < OUTPUT, "{name}: {error:.1e}");
    };
    let weighted = |name: String, found: &Tensor| (found * image(&name, found.dims())).unwrap().mean_all().unwrap();
    let loss = nn::recording(|| {
        let embedding = sam.encode(&image("image", &[1, 3, 80, 80]), &Pass::eval()).unwrap();
        close("embedding", "embedding", &embedding);
        let mut losses = Vec::new();
        for (case, prompts) in [("points", &points), ("again", &again)] {
            let (logits, quality) = sam.answers(&embedding, prompts).unwrap();
            close(&format!("{case}/logits"), "logits", &logits);
            close(&format!("{case}/quality"), "quality", &quality);
            losses.extend([weighted(format!("{case} logits"), &logits), weighted(format!("{case} quality"), &quality)]);
        }
        losses.into_iter().reduce(|a, b| (a + b).unwrap()).unwrap()
    });
    assert!((loss.to_scalar::<f32>().unwrap() - expected("loss")[0]).abs() < 1e-5);
    let gradients = nn::backward(&loss).unwrap();
    let names: Vec<String> = file.shapes().into_keys().filter_map(|n| n.strip_prefix("grad/").map(String::from)).collect();
    assert!(names.iter().map(String::as_str).eq(store.weights().map(|(name, _)| name)), "the published names");
    let gradient_of = |name: &str| expected(&format!("grad/{name}"));
    let whole = names.iter().map(|name| f64::from(gradient_of(name)[0]).powi(2)).sum::<f64>().sqrt();
    let mut worst = 0f64;
    for name in &names {
        let gradient = gradients.get(store.get(name).unwrap()).unwrap_or_else(|| panic!("no gradient for {name}"));
        let error = error(&summary(name, gradient), &gradient_of(name), NOISE * whole);
        assert!(error < GRADIENT, "the gradient of {name} has a relative error of {error:.1e}");
        worst = worst.max(error);
    }
    println!("{} gradients, error {worst:.1e}", names.len());
}

/// `count` photos of 64x32 with a block of some colour on grey ground, and their label maps.
fn draw(folder: &Path, count: usize) -> SamPretrainConfig {
    for index in 0..count {
        let place = 5 * index % 44;
        let inside = |i: usize| (place..place + 16).contains(&(i % 64)) && (6..26).contains(&(i / 64));
        let pixel = |i: usize| if inside(i) { [220, (60 * index % 200) as u8, 40] } else { [90; 3] };
        let photo = RgbImage { height: 32, width: 64, pixels: (0..32 * 64).flat_map(pixel).collect() };
        let ids: Vec<u8> = (0..32 * 64).map(|i| u8::from(inside(i))).collect();
        write_png(&folder.join(format!("images/{index:02}.png")), &photo, &[]).unwrap();
        write_gray_png(&folder.join(format!("labels/{index:02}.png")), (32, 64), &ids, &[]).unwrap();
    }
    SamPretrainConfig {
        images: folder.join("images").display().to_string(),
        labels: folder.join("labels").display().to_string(),
        label_classes: 2,
        size: Size { height: 32, width: 64 },
        model: SamModelConfig { image_size: 64, dim: 16, depth: 2, heads: 2, global: vec![1], window: 2, embedding: 16, mlp: 32 },
        prompts: 2,
        steps: 6,
        batch_size: 2,
        warmup_steps: 2,
        validation_images: 2,
        validation_steps: 3,
        checkpointing_steps: 2,
        ..SamPretrainConfig::default()
    }
}

fn examples(config: &SamPretrainConfig) -> Examples {
    Examples::open(config, config.model.image_size, &Silent).unwrap()
}

#[test]
fn prompts_lie_on_the_pieces_that_masks_are_of() {
    let dir = tempfile::tempdir().unwrap();
    let config = SamPretrainConfig { stray: 0.0, degrade: 0.0, flip: 0.0, prompts: 8, ..draw(dir.path(), 12) };
    let found = examples(&config);
    let mut sizes = std::collections::BTreeSet::new();
    for item in 0..20 {
        let asked: Asked = found.random(Rng::stream(0, "test", &[item])).unwrap();
        assert_eq!((asked.size, asked.seen, asked.planes.len()), ((32, 64), (32, 64), 3 * 64 * 64));
        for ((points, corners), target) in asked.points.points.iter().zip(&asked.boxes.boxes).zip(&asked.targets) {
            assert!([1, 3, 5].contains(&points.len()));
            // A cell of a mask is 4 pixels: of the middles, most of those under points are on the piece.
            let on = points.iter().filter(|point| target[point.y as usize / 4 * 16 + point.x as usize / 4] == 1.0).count();
            assert!(2 * on >= points.len() || points.len() == 1, "{on} of {}", points.len());
            assert!(corners[0] < corners[2] && corners[1] < corners[3], "{corners:?}");
            assert!(target[16 * 8..].iter().all(|x| *x == 0.0), "nothing below the photo");
            sizes.insert(target.iter().filter(|x| **x == 1.0).count());
        }
    }
    // Blocks of 16x20, and what is around them.
    assert!(sizes.iter().all(|size| (16..=24).contains(size) || (100..=112).contains(size)), "{sizes:?}");
}

fn training(config: &SamPretrainConfig) -> SamTraining {
    SamTraining::new(config, pretrain_sam::start(config).unwrap(), examples(config)).unwrap()
}

fn bits(training: &SamTraining) -> BTreeMap<String, Vec<u32>> {
    let bits = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    training.parameters.tensors().into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

#[test]
fn a_stopped_training_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let config = draw(dir.path(), 12);
    let mut whole = training(&config);
    for step in 0..config.steps {
        whole.step(step).unwrap();
    }
    let checkpointer = Checkpointer::new(dir.path().join("checkpoints"), 1, BTreeMap::new());
    let mut first = training(&config);
    let stop = || true;
    let mut driver = Driver::new("outlines", &checkpointer, 0, &Silent);
    driver.stop = &stop;
    assert!(driver.run(0..config.steps, &mut first).unwrap_err().to_string().contains("after step 1"));
    let checkpoint = checkpointer.latest(&Silent).unwrap().unwrap();
    let mut second = training(&config);
    second.restore(&checkpoint).unwrap();
    for step in checkpoint.step()..config.steps {
        second.step(step).unwrap();
    }
    assert!(bits(&second) == bits(&whole));
}

#[test]
fn it_learns_to_outline() {
    let dir = tempfile::tempdir().unwrap();
    let config = SamPretrainConfig { steps: 150, learning_rate: 3e-3, degrade: 0.0, batch_size: 4, ..draw(dir.path(), 24) };
    let mut training = training(&config);
    let before = training.held_out_iou().unwrap().unwrap();
    for step in 0..config.steps {
        training.step(step).unwrap();
    }
    let after = training.held_out_iou().unwrap().unwrap();
    println!("IoU {before:.2}, after training {after:.2}");
    assert!(after > 0.6 && after > before + 0.2, "{before} {after}");
}

#[test]
fn a_run_writes_weights_that_refine() {
    let dir = tempfile::tempdir().unwrap();
    let config = draw(dir.path(), 12);
    let output = dir.path().join("run");
    let run = RunDir::create(Some(&output), Path::new("unused"), "sam").unwrap();
    let file = pretrain_sam::run(&config, &run, None, &Silent).unwrap();
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    assert_eq!((metrics.lines().count(), metrics.matches("validation.iou").count()), (6, 2), "{metrics}");
    let proposer = refiner::open(&file.display().to_string()).unwrap().unwrap();
    assert!(proposer.name().contains("sam.safetensors"), "{}", proposer.name());
    // An earlier run is gone on with, whatever the sizes in `model`.
    let further =
        SamPretrainConfig { base: file.display().to_string(), class_loss: 0.0, model: SamModelConfig::default(), ..config };
    let (sam, parameters) = pretrain_sam::start(&further).unwrap();
    assert_eq!((sam.image_size(), parameters.tensors().len()), (64, SafetensorsFile::open(&file).unwrap().shapes().len()));
}

#[test]
fn wrong_settings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = draw(dir.path(), 8);
    let model = |model: SamModelConfig| SamPretrainConfig { model, ..config.clone() };
    for (wrong, part) in [
        (SamPretrainConfig { labels: String::new(), ..config.clone() }, "--labels"),
        (SamPretrainConfig { batch_size: 1, ..config.clone() }, "batch_size"),
        (SamPretrainConfig { stray: 1.5, ..config.clone() }, "stray"),
        (model(SamModelConfig { image_size: 60, ..config.model.clone() }), "multiple of 16"),
        (model(SamModelConfig { heads: 3, ..config.model.clone() }), "multiple of heads"),
        (model(SamModelConfig { embedding: 24, ..config.model.clone() }), "model.embedding"),
        (model(SamModelConfig { global: vec![2], ..config.model.clone() }), "beyond depth"),
    ] {
        let error = wrong.validate().unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(part), "{error}");
    }
    let error = pretrain_sam::start(&SamPretrainConfig { base: "missing".into(), ..config.clone() }).err().unwrap();
    assert!(error.to_string().contains("missing"), "{error}");
    let large = examples(&SamPretrainConfig { min_area: 5000, ..config });
    assert!(large.random(Rng::stream(0, "test", &[])).err().unwrap().to_string().contains("smaller min_area"));
}

#[test]
fn the_default_fits_into_3_mb() {
    let config = SamPretrainConfig::default();
    let builder = Builder::random(0);
    Sam::new(&config.network(), &builder).unwrap();
    let count = builder.finish().unwrap().parameter_count();
    assert!((1_000_000..1_500_000).contains(&count), "{count}");
}

/// Means of single streets scatter by some hundredths; before training the IoU is a tenth of this.
#[test]
fn the_small_one_inside_outlines_streets_it_has_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let looks = [Look::Day, Look::Night, Look::Fog, Look::Rain, Look::Snow];
    for index in 0..40 {
        let street = Scene::new(7, index).render((128, 256), looks[index as usize % looks.len()]);
        let name = format!("{index:02}.png");
        write_png(&dir.path().join("images").join(&name), &street.image, &[]).unwrap();
        write_gray_png(&dir.path().join("labels").join(&name), (128, 256), &street.labels.ids, &[]).unwrap();
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("nano/sam.safetensors");
    let config = SamPretrainConfig {
        images: dir.path().join("images").display().to_string(),
        labels: dir.path().join("labels").display().to_string(),
        base: file.display().to_string(),
        class_loss: 0.0,
        validation_images: 10,
        ..SamPretrainConfig::default()
    };
    let network = pretrain_sam::start(&config).unwrap();
    let examples = Examples::open(&config, network.0.image_size(), &Silent).unwrap();
    let iou = SamTraining::new(&config, network, examples).unwrap().held_out_iou().unwrap().unwrap();
    println!("IoU {iou:.3}");
    assert!(iou > 0.5, "{iou}");
    assert!(refiner::open("nano").unwrap().unwrap().name().contains("nano"));
}
