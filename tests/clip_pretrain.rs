//! The training of a small CLIP: its loss and all gradients against open_clip, batches, resuming, files, wrong inputs.
//! Values come from tests/golden/clip_contrast.safetensors, made by tests/golden/clip_contrast.py.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/summary.rs"]
mod summary;

use candle_core::{Device, Tensor, Var};
use datum::base::progress::Silent;
use datum::io::images::{RgbImage, write_png};
use datum::io::weights::{self, SafetensorsFile, TensorSource, clip};
use datum::models::clip::{
    Clip, ClipConfig, ConvNextConfig, LOGIT_SCALE, ModifiedResNetConfig, TextTowerConfig, VisualConfig, contrastive_loss,
};
use datum::models::stable_diffusion::config::TextActivation;
use datum::nn::{self, Builder, Pass};
use datum::systems::clouds::clip_file::{ClipFile, WEIGHTS, token_ids};
use datum::systems::clouds::pretrain::config::{ClipModelConfig, ClipPretrainConfig};
use datum::systems::clouds::pretrain::{self, ClipTraining, Pairs};
use datum::systems::shared::Size;
use datum::train::checkpoint::{Checkpointer, Resume};
use datum::train::driver::{Driver, Training};
use datum::train::run_dir::RunDir;
use datum::train::stage::Resumable;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Relative tolerance of outputs and of the gradients of the loss alone.
const OUTPUT: f64 = 1e-5;
/// Relative tolerance of a parameter's gradient.
const GRADIENT: f64 = 1e-4;
/// Below this share of the whole gradient's norm a parameter's own gradient is rounding noise.
const NOISE: f64 = 1e-5;

fn golden() -> SafetensorsFile {
    SafetensorsFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip_contrast.safetensors")).unwrap()
}

fn worst(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let largest = |t: &Tensor| f64::from(t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap());
    largest(&(found - expected).unwrap()) / largest(expected)
}

#[test]
fn the_loss_and_its_gradients_are_those_of_open_clip() {
    let file = golden();
    let expected = |name: &str| file.load(&format!("alone/{name}"), &Device::Cpu).unwrap();
    let var = |name: &str| Var::from_tensor(&fill::image(name, &[5, 7])).unwrap();
    let (images, texts) = (var("images"), var("texts"));
    let scale = Var::from_tensor(&Tensor::new(1.3f32, &Device::Cpu).unwrap()).unwrap();
    let loss = nn::recording(|| contrastive_loss(&images, &texts, &scale)).unwrap();
    assert!(worst(&loss, &expected("loss")) < OUTPUT);
    let gradients = nn::backward(&loss).unwrap();
    for (name, var) in [("images", &images), ("texts", &texts), ("scale", &scale)] {
        let error = worst(gradients.get(var).unwrap(), &expected(name));
        assert!(error < OUTPUT, "{name}: {error:.1e}");
    }
}

#[test]
fn a_whole_clip_and_the_gradient_of_every_parameter_are_those_of_open_clip() {
    let file = golden();
    let expected = |name: &str| file.load(&format!("whole/{name}"), &Device::Cpu).unwrap();
    let config = ClipConfig {
        visual: VisualConfig::ConvNext(ConvNextConfig { depths: [1, 1, 2, 1], widths: [8, 16, 24, 32], drop_path: 0.1 }),
        text: TextTowerConfig {
            vocabulary: 50,
            context: 12,
            width: 32,
            heads: 4,
            layers: 2,
            embedding: 24,
            activation: TextActivation::Gelu,
        },
    };
    let builder = Builder::random(0);
    let clip = Clip::new(&config, &builder).unwrap();
    let store = builder.finish().unwrap();
    fill::fill_store(&store, "");
    store.get(LOGIT_SCALE).unwrap().set(&Tensor::new(20f32.ln(), &Device::Cpu).unwrap()).unwrap();
    let ids = [
        [47u32, 3, 9, 48, 0, 0, 0, 0, 0, 0, 0, 0],
        [47, 5, 5, 5, 30, 22, 1, 12, 13, 14, 15, 48],
        [47, 20, 9, 1, 2, 48, 0, 0, 0, 0, 0, 0],
        [47, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    let images = nn::recording(|| clip.image_vectors(&fill::image("input", &[4, 3, 64, 96]), &Pass::eval())).unwrap();
    let texts = nn::recording(|| clip.text_vectors(&Tensor::new(&ids, &Device::Cpu).unwrap())).unwrap();
    let loss = contrastive_loss(&images, &texts, clip.logit_scale()).unwrap();
    for (name, found) in [("images", &images), ("texts", &texts), ("loss", &loss)] {
        let error = worst(found, &expected(name));
        assert!(error < OUTPUT, "{name}: {error:.1e}");
    }
    let gradients = nn::backward(&loss).unwrap();
    let names: Vec<String> = file.shapes().into_keys().filter_map(|n| n.strip_prefix("whole/grad/").map(String::from)).collect();
    assert!(names.iter().map(String::as_str).eq(store.weights().map(|(name, _)| name)), "the names of open_clip");
    let expected = |name: &str| expected(&format!("grad/{name}")).to_vec1::<f32>().unwrap();
    let whole = names.iter().map(|name| f64::from(expected(name)[0]).powi(2)).sum::<f64>().sqrt();
    for name in &names {
        let gradient = gradients.get(store.get(name).unwrap()).unwrap_or_else(|| panic!("no gradient for {name}"));
        let error = summary::error(&summary::summary(name, gradient), &expected(name), NOISE * whole);
        assert!(error < GRADIENT, "the gradient of {name} has a relative error of {error:.1e}");
    }
}

const COLOURS: [&str; 4] = ["red", "green", "blue", "grey"];

/// `count` photos of 64x32 with a block of one of four colours, and their captions.
fn draw(folder: &Path, count: usize) -> ClipPretrainConfig {
    let mut lines = String::new();
    for index in 0..count {
        let (colour, place) = (index % 4, 4 * (index / 4) % 40);
        let mut image = RgbImage { height: 32, width: 64, pixels: vec![90; 32 * 64 * 3] };
        for (i, pixel) in image.pixels.chunks_exact_mut(3).enumerate() {
            if colour < 3 && (place..place + 20).contains(&(i % 64)) {
                pixel[colour] = 230;
            }
        }
        write_png(&folder.join(format!("images/{index:02}.png")), &image, &[]).unwrap();
        let texts = [format!("a {} car at {place}", COLOURS[colour]), format!("a photo of a {} car", COLOURS[colour])];
        lines += &format!("{}\n", serde_json::json!({ "file_name": format!("{index:02}.png"), "text": texts }));
    }
    std::fs::write(folder.join("captions.jsonl"), lines).unwrap();
    ClipPretrainConfig {
        images: folder.join("images").display().to_string(),
        captions: folder.join("captions.jsonl").display().to_string(),
        size: Size { height: 32, width: 64 },
        model: ClipModelConfig {
            depths: [1; 4],
            widths: [8, 8, 16, 16],
            drop_path: 0.1,
            layer_scale: 0.1,
            embedding: 8,
            text_width: 16,
            text_layers: 1,
            text_heads: 2,
            text_length: 12,
            vocabulary: 560,
        },
        steps: 6,
        batch_size: 4,
        warmup_steps: 2,
        validation_images: 4,
        validation_steps: 3,
        checkpointing_steps: 2,
        ..ClipPretrainConfig::default()
    }
}

#[test]
fn batches_are_as_specified() {
    let dir = tempfile::tempdir().unwrap();
    let config = ClipPretrainConfig { steps: 20, ..draw(dir.path(), 22) };
    let pairs = Pairs::open(&config, None, &Silent).unwrap();
    assert_eq!(pairs.held_out_count(), 4);
    // 18 photos to learn from: a round has 4 batches.
    let mut rounds = Vec::new();
    for round in 0..3 {
        let mut seen = BTreeSet::new();
        for step in 4 * round..4 * round + 4 {
            let chosen = pairs.choice(step);
            let texts: BTreeSet<&String> = chosen.iter().map(|(_, text)| text).collect();
            assert_eq!((chosen.len(), texts.len()), (4, 4), "no caption twice in a step");
            for (index, text) in &chosen {
                assert!(text.contains(COLOURS[index % 4]), "{index}: {text}");
                assert!(seen.insert(*index), "no photo twice in a round");
            }
        }
        assert!([2, 8, 13, 19].iter().all(|held| !seen.contains(held)), "{seen:?}");
        rounds.push(seen);
    }
    assert!(rounds[0] != rounds[1] || rounds[1] != rounds[2], "rounds differ in what they leave out");
    let batch = pairs.make(7).unwrap();
    assert_eq!(batch.images.dims(), [4, 3, 32, 64]);
    let texts: Vec<String> = pairs.choice(7).into_iter().map(|(_, text)| text).collect();
    let ids = token_ids(pairs.tokenizer(), &texts).unwrap().to_vec2::<u32>().unwrap();
    assert_eq!(batch.ids.to_vec2::<u32>().unwrap(), ids);
    let (start, end, _) = pairs.tokenizer().special_ids();
    for row in &ids {
        let last = row.iter().position(|id| *id == end).unwrap();
        assert!(row[0] == start && row[last + 1..].iter().all(|id| *id == 0), "{row:?}");
    }
    assert!(ids.iter().any(|row| row.last() == Some(&end)), "as long as the longest text");
    for workers in [0, 3] {
        let pairs = Pairs::open(&ClipPretrainConfig { workers, ..config.clone() }, None, &Silent).unwrap();
        let again = pairs.loader(7).unwrap().next().unwrap().unwrap();
        assert_eq!(worst(&again.images, &batch.images), 0.0, "{workers} workers");
    }
}

#[test]
fn batches_of_one_group_are_told_by_words() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["Red", "hoto of a green", "green", "photo of a blue"].map(String::from).to_vec();
    let config = ClipPretrainConfig { group_words: words, group_share: 1.0, ..draw(dir.path(), 50) };
    let pairs = Pairs::open(&config, None, &Silent).unwrap();
    // 46 photos to learn from: 13 red, 13 green, 10 blue, 10 grey.
    let colours = |step| pairs.choice(step).iter().map(|(index, _)| index % 4).collect::<Vec<_>>();
    let mut orders = BTreeSet::new();
    for round in 0..2 {
        let (mut seen, mut batches) = (BTreeSet::new(), Vec::new());
        for step in 10 * round..10 * round + 10 {
            assert!(pairs.choice(step).iter().all(|(index, _)| seen.insert(*index)), "no photo twice in a round");
            let colours = colours(step);
            assert!(colours.iter().all(|colour| *colour == colours[0]), "{colours:?}");
            batches.push(colours[0]);
        }
        orders.insert(batches);
    }
    assert_eq!(orders.len(), 2, "groups come in another order each round");
    // Half of the steps: one of each group of 13 and 10, and 5 of 46 photos in batches of 4.
    let mixed = Pairs::open(&ClipPretrainConfig { group_share: 0.5, ..config.clone() }, None, &Silent).unwrap();
    for round in 0..4 {
        let steps = (9 * round..9 * round + 9).map(|step| mixed.choice(step)).collect::<Vec<_>>();
        let seen: BTreeSet<usize> = steps.iter().flatten().map(|(index, _)| *index).collect();
        assert_eq!(seen.len(), 36, "no photo twice in a round");
        let of_one = |step: &&Vec<(usize, String)>| step.iter().map(|(index, _)| index % 4).collect::<BTreeSet<_>>().len() == 1;
        let count = steps.iter().filter(of_one).count();
        assert!((4..=5).contains(&count), "{count} of 9");
    }

    assert!(
        message(Pairs::open(&ClipPretrainConfig { batch_size: 14, ..config.clone() }, None, &Silent))
            .contains("at most 13 in one")
    );
    assert!(message(ClipPretrainConfig { group_words: Vec::new(), ..config }.validate()).contains("set group_words"));
}

fn training(config: &ClipPretrainConfig) -> ClipTraining {
    ClipTraining::new(config, Pairs::open(config, None, &Silent).unwrap(), None).unwrap()
}

fn bits(training: &ClipTraining) -> BTreeMap<String, Vec<u32>> {
    bits_of(training.parameters.tensors())
}

fn bits_of(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<u32>> {
    let bits = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    tensors.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
}

#[test]
fn a_stopped_training_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let config = draw(dir.path(), 22);
    let mut whole = training(&config);
    let start = bits(&whole);
    for step in 0..config.steps {
        whole.step(step).unwrap();
    }
    assert!(bits(&whole).iter().all(|(name, bits)| start[name] != *bits), "every parameter moves");

    let checkpointer = Checkpointer::new(dir.path().join("checkpoints"), 1, BTreeMap::new());
    let mut first = training(&config);
    let stop = || true;
    let mut driver = Driver::new("contrast", &checkpointer, 0, &Silent);
    driver.stop = &stop;
    assert!(driver.run(0..config.steps, &mut first).unwrap_err().to_string().contains("after step 1"));
    let checkpoint = checkpointer.latest(&Silent).unwrap().unwrap();
    let mut second = training(&ClipPretrainConfig { workers: 2, ..config.clone() });
    second.restore(&checkpoint).unwrap();
    for step in checkpoint.step()..config.steps {
        second.step(step).unwrap();
    }
    assert!(bits(&second) == bits(&whole));
}

#[test]
fn the_logit_scale_stays_at_100() {
    let dir = tempfile::tempdir().unwrap();
    let mut training = training(&draw(dir.path(), 22));
    training.parameters.get(LOGIT_SCALE).unwrap().set(&Tensor::new(5f32, &Device::Cpu).unwrap()).unwrap();
    let scale = training.step(0).unwrap()["logit_scale"];
    assert!((scale - 100.0).abs() < 1e-3, "{scale}");
    assert!(training.parameters.get(LOGIT_SCALE).unwrap().to_scalar::<f32>().unwrap() <= 100f32.ln());
}

#[test]
fn a_run_writes_a_clip_that_is_read_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let config = draw(dir.path(), 22);
    let output = dir.path().join("run");
    let run = RunDir::create(Some(&output), Path::new("unused"), "clip").unwrap();
    let file = pretrain::run(&config, &run, None, &Silent).unwrap();
    assert_eq!(file, output.join("clip").join(WEIGHTS));
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    assert_eq!((metrics.lines().count(), metrics.matches("validation.image_to_text").count()), (6, 2), "{metrics}");
    let written = std::fs::read(&file).unwrap();
    pretrain::run(&config, &run, Some(&Resume::Latest), &Silent).unwrap();
    assert!(std::fs::read(&file).unwrap() == written, "a finished run is left as it is");

    let base = output.join("clip").display().to_string();
    let further = ClipPretrainConfig { base, size: Size { height: 32, width: 32 }, ..config };
    let opened = ClipFile::open(&output.join("clip")).unwrap();
    let pairs = Pairs::open(&further, Some(opened.tokenizer.clone()), &Silent).unwrap();
    let further_start = ClipTraining::new(&further, pairs, Some(opened.clone())).unwrap();
    assert!(bits(&further_start) == bits_of(opened.tensors.clone()), "an earlier run is gone on with at another size");
    let run = RunDir::create(Some(&dir.path().join("further")), Path::new("unused"), "clip").unwrap();
    pretrain::run(&further, &run, None, &Silent).unwrap();

    // As open_clip's files: the image tower alone, and the text tower alone.
    let visual = Builder::from_source(clip::visual(weights::open(&file).unwrap()).unwrap(), 0);
    opened.config.visual.build(&visual.pp("backbone").pp("clip_model").pp("visual")).unwrap();
    visual.finish().unwrap();
    let text = clip::text(weights::open(&file).unwrap()).unwrap();
    assert!(text.shapes().contains_key("text_projection") && !text.shapes().contains_key(LOGIT_SCALE));

    let packed = dir.path().join("packed.safetensors");
    opened.pack(&packed).unwrap();
    let again = ClipFile::open(&packed).unwrap();
    assert_eq!(again.config, opened.config);
    let texts = ["a red car", "a photo of a blue car at 8"];
    let vectors = |file: &ClipFile| file.clip().unwrap().text_vectors(&token_ids(&file.tokenizer, &texts).unwrap()).unwrap();
    assert!(worst(&vectors(&again), &vectors(&opened)) < 1e-2, "16 bit");
}

#[test]
fn the_default_fits_into_6_mb() {
    let config = ClipPretrainConfig::default();
    let builder = Builder::random(0);
    Clip::new(&config.network(config.model.vocabulary), &builder).unwrap();
    let count = builder.finish().unwrap().parameter_count();
    // Two bytes each, and the tokenizer.
    assert!((2_000_000..2_900_000).contains(&count), "{count}");
}

fn message<T>(result: datum::base::Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn wrong_inputs_are_one_clear_error_each() {
    let dir = tempfile::tempdir().unwrap();
    let good = draw(dir.path(), 22);
    good.validate().unwrap();
    for (change, part) in [
        ((|c| c.captions.clear()) as fn(&mut ClipPretrainConfig), "--captions FILE"),
        (|c| c.images.clear(), "--images FOLDER"),
        (|c| c.size.width = 48, "multiples of 32"),
        (|c| c.batch_size = 1, "batch_size 1"),
        (|c| c.steps = 0, "`steps`"),
        (|c| c.least_share = 0.0, "least_share"),
        (|c| c.learning_rate = f64::NAN, "learning_rate"),
        (|c| c.model.widths[2] = 0, "size of the model"),
    ] {
        let mut config = good.clone();
        change(&mut config);
        let message = message(config.validate());
        assert!(message.contains(part) && message.lines().count() <= 2, "{message}");
    }
    let lines = |text: &str| -> PathBuf {
        let path = dir.path().join("other.jsonl");
        std::fs::write(&path, text).unwrap();
        path
    };
    for (text, parts) in [
        ("{\"file_name\": 3}\n", ["other.jsonl", "line 1"]),
        ("{\"file_name\": \"00.png\", \"text\": []}\n", ["other.jsonl", "at least one text"]),
        ("{\"file_name\": \"elsewhere.png\", \"text\": \"a car\"}\n", ["other.jsonl", "none of these names"]),
        ("{\"file_name\": \"00.png\", \"text\": \"a car\"}\n", ["at least 4 photos with captions", "1, of them 0 held out"]),
    ] {
        let config = ClipPretrainConfig { captions: lines(text).display().to_string(), ..good.clone() };
        let message = message(Pairs::open(&config, None, &Silent));
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let small = ClipPretrainConfig { model: ClipModelConfig { vocabulary: 100, ..good.model.clone() }, ..good.clone() };
    assert!(message(Pairs::open(&small, None, &Silent)).contains("at least 514"));
    let heads = ClipPretrainConfig { model: ClipModelConfig { text_heads: 3, ..good.model.clone() }, ..good.clone() };
    assert!(
        message(ClipTraining::new(&heads, Pairs::open(&heads, None, &Silent).unwrap(), None).map(|_| ())).contains("3 heads")
    );
    let resnet = VisualConfig::ResNet(ModifiedResNetConfig { depths: [1; 4], width: 8 });
    let config = ClipConfig { visual: resnet, text: good.network(560).text };
    assert!(message(Clip::new(&config, &Builder::random(0))).contains("ConvNeXt"));
    assert!(message(ClipFile::open(&dir.path().join("captions.jsonl"))).contains("captions.jsonl"));
}
