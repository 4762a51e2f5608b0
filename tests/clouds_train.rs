//! `clouds train`: transforms and optimiser against their references (tests/golden/clouds_train.safetensors, made by
//! tests/golden/clouds_train.py), and both stages from end to end on drawn streets of 96x64 pixels.

use candle_core::{DType, Device, Tensor};
use datum::base::Result;
use datum::base::progress::{Progress, Silent};
use datum::data::{Search, StreetSet};
use datum::eval::Inference;
use datum::io::images::RgbImage;
use datum::io::weights::{SafetensorsFile, TensorSource};
use datum::labels::LabelMap;
use datum::models::clip::{Clip, ClipConfig, ConvNextConfig, STREET_CLASSES, TextTowerConfig, VisualConfig};
use datum::nn::{Builder, Init};
use datum::systems::clouds::automatic_masks::{Annotation, AutomaticMasksConfig};
use datum::systems::clouds::refine::{MaskProposer, RegionPrompt};
use datum::systems::clouds::train::config::{ClassHead, Part, TrainConfig};
use datum::systems::clouds::train::{ColorJitter, crop_offsets, groups, nearest, run, run_with, scaled_size};
use datum::systems::shared::published::name_vectors;
use datum::systems::shared::segmenter_file::Segmenter;
use datum::train::Gradients;
use datum::train::checkpoint::Resume;
use datum::train::optim::{AdamW, AdamWConfig};
use datum::train::run_dir::RunDir;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn golden() -> SafetensorsFile {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clouds_train.safetensors");
    SafetensorsFile::open(path.as_ref()).unwrap()
}

fn numbers(file: &SafetensorsFile, name: &str) -> Vec<f64> {
    let tensor = file.load(name, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn colours_change_as_with_opencv() {
    let file = golden();
    let bytes = |name: &str| numbers(&file, name).into_iter().map(|value| value as u8).collect::<Vec<_>>();
    let size = file.shapes()["jitter.image"].clone();
    let cases = file.shapes().keys().filter(|name| name.ends_with(".draws")).count();
    assert_eq!(cases, 8);
    for case in 0..cases {
        let draws: Vec<Option<f64>> =
            numbers(&file, &format!("jitter.{case}.draws")).into_iter().map(|x| Some(x).filter(|x| x.is_finite())).collect();
        let number = |at: usize| draws[at].map(|value| value as f32);
        let jitter = ColorJitter {
            brightness: number(0),
            contrast_first: draws[1] == Some(1.0),
            contrast: number(2),
            saturation: number(3),
            hue: draws[4].map(|steps| steps as i32),
        };
        let mut image = RgbImage { height: size[0], width: size[1], pixels: bytes("jitter.image") };
        jitter.apply(&mut image);
        let expected = bytes(&format!("jitter.{case}.image"));
        let differences = image.pixels.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
        let (worst, count) = differences.fold((0, 0), |(worst, count), d| (d.max(worst), count + usize::from(d > 0)));
        println!("jitter {case}: {count} of {} values differ, by {worst} at most", expected.len());
        assert_eq!(worst, 0, "case {case}: {count} values differ");
    }
}

#[test]
fn labels_are_resized_as_with_pytorch() {
    let file = golden();
    let mut cases = 0;
    for (name, _) in file.shapes() {
        let Some(sides) = name.strip_prefix("nearest.") else { continue };
        let (from, to) = sides.split_once('.').map(|(a, b)| (a.parse::<usize>().unwrap(), b.parse::<usize>().unwrap())).unwrap();
        let expected: Vec<usize> = numbers(&file, &name).into_iter().map(|value| value as usize).collect();
        // Two maps hold the low and the high digits of their positions.
        let map = |digit: &dyn Fn(usize) -> usize| LabelMap {
            height: 1,
            width: from,
            ids: (0..from).map(|x| digit(x) as u8).collect(),
        };
        let (low, high) = (nearest(&map(&|x| x % 200), (1, to)), nearest(&map(&|x| x / 200), (1, to)));
        let found: Vec<usize> =
            low.ids.iter().zip(&high.ids).map(|(low, high)| usize::from(*high) * 200 + usize::from(*low)).collect();
        assert_eq!(found, expected, "{from} to {to}");
        // The other direction is computed alike.
        let column = LabelMap { height: from, width: 1, ids: (0..from).map(|x| (x % 200) as u8).collect() };
        assert_eq!(nearest(&column, (to, 1)).ids, low.ids);
        cases += 1;
    }
    assert_eq!(cases, 10);
}

#[test]
fn sizes_and_crops_are_those_of_detectron2() {
    let rows = numbers(&golden(), "geometry");
    assert_eq!(rows.len(), 10 * 100);
    for row in rows.chunks(10) {
        let pair = |at: usize| (row[at] as usize, row[at + 1] as usize);
        let (size, draw) = (scaled_size(pair(0), pair(2), row[4]), row[5]);
        assert_eq!(size, pair(6), "{row:?}");
        assert_eq!(crop_offsets(size, (768, 768), (draw, draw)), pair(8), "{row:?}");
    }
}

#[test]
fn five_steps_of_the_optimiser_agree_with_pytorch() {
    let file = golden();
    let part = |prefix: &str| -> BTreeMap<String, Tensor> {
        let names = file.shapes().into_keys();
        names.filter_map(|n| Some((n.strip_prefix(prefix)?.to_string(), file.load(&n, &Device::Cpu).unwrap()))).collect()
    };
    let start = part("adamw.start.");
    let shapes: Vec<(String, Vec<usize>)> = start.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
    let builder = Builder::from_source(start, 0);
    shapes.iter().for_each(|(name, shape)| drop(builder.get(shape, name, Init::Zeros).unwrap()));
    let store = builder.finish().unwrap();
    let config = TrainConfig::default();
    let clip = AdamWConfig { max_gradient_norm: Some(config.clip_norm), ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(groups(&config, &store), clip).unwrap();
    for step in 0..5 {
        let gradients: Gradients = part(&format!("adamw.gradient.{step}.")).into_iter().collect();
        optimizer.step(&gradients, 1e-3).unwrap();
        let after = part(&format!("adamw.after.{step}."));
        assert_eq!(after.len(), optimizer.parameters().count());
        for (name, var) in optimizer.parameters() {
            let difference = (var.as_tensor() - &after[name]).unwrap().abs().unwrap().max_all().unwrap();
            let difference = difference.to_scalar::<f32>().unwrap();
            assert!(difference <= 1e-6, "{name} after step {step}: {difference:e}");
        }
    }
}

/// A folder with `day/` (labelled) and `dusk/`, streets of 96x64 pixels.
fn streets() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, look, count) in [("day", "day", 12), ("dusk", "dusk", 5)] {
        let set = StreetSet { count, width: 96, height: 64, look: vec![look.into()], seed: 4, ..StreetSet::default() };
        set.write(&folder.path().join(name), &Silent).unwrap();
    }
    folder
}

const TINY: &str = r#"
batch_size = 3
learning_rate = 1e-3
backbone_multiplier = 1.0
short_side = 0
workers = 2
checkpointing_steps = 2
crop = { height = 64, width = 96 }
sam = { min_area = 40 }
teacher = { period = 2, alpha = 0.9 }
loss = { points = 64 }
[model]
backbone = "convnext"
depths = [1, 1, 1, 1]
widths = [8, 12, 16, 20]
freeze_backbone = false
width = 32
num_queries = 20
heads = 2
encoder_layers = 1
encoder_feedforward = 32
decoder_layers = 2
dim_feedforward = 32
[data]
initial_size = { height = 64, width = 96 }
generated_factor = 3.0
"#;

fn config(folder: &Path, stage: Part, iterations: u64) -> TrainConfig {
    let path = |name: &str| folder.join(name).display().to_string();
    let joint = stage == Part::Joint;
    TrainConfig {
        stage,
        iterations,
        source: format!("street={}", path("day")),
        generated: if joint { path("dusk") } else { String::new() },
        init: if joint { path("warm") } else { String::new() },
        ..toml::from_str(TINY).unwrap()
    }
}

fn nowhere() -> Search {
    Search { folders: Vec::new() }
}

fn warm(folder: &Path) -> PathBuf {
    let output = folder.join("warm");
    let dir = RunDir::create(Some(&output), folder, "train").unwrap();
    run(&config(folder, Part::Warmup, 2), &dir, None, &nowhere(), &Silent).unwrap()
}

/// Proposes the columns around the first point.
struct Columns;

impl MaskProposer for Columns {
    fn name(&self) -> String {
        "columns".into()
    }

    fn masks(&self, image: &RgbImage, prompts: &[RegionPrompt], _: bool) -> Result<Vec<Vec<bool>>> {
        let near = |prompt: &RegionPrompt| {
            (0..image.height * image.width).map(|at| (at % image.width).abs_diff(prompt.points[0].0) < 6).collect()
        };
        Ok(prompts.iter().map(near).collect())
    }

    fn everything(&self, _: &RgbImage, _: &AutomaticMasksConfig) -> Result<Vec<Annotation>> {
        unreachable!("trainings ask for prompted masks only")
    }
}

/// Copies the run to another folder as soon as a step begins to be shown.
struct CopyAt {
    step: u64,
    from: PathBuf,
    to: PathBuf,
}

impl Progress for CopyAt {
    fn stage(&self, _: &str, _: u64, _: u64) {}
    fn step(&self, done: u64, _: &str) {
        if done != self.step {
            return;
        }
        for entry in walkdir::WalkDir::new(&self.from) {
            let entry = entry.unwrap();
            let target = self.to.join(entry.path().strip_prefix(&self.from).unwrap());
            match entry.file_type().is_dir() {
                true => std::fs::create_dir_all(target).unwrap(),
                false => drop(std::fs::copy(entry.path(), target).unwrap()),
            }
        }
    }
    fn end(&self) {}
    fn say(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

/// Lines of `metrics.jsonl` without times.
fn metrics(run: &Path) -> Vec<BTreeMap<String, serde_json::Value>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut lines: Vec<BTreeMap<String, serde_json::Value>> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.iter_mut().for_each(|line| line.retain(|name, _| !name.starts_with("seconds.")));
    lines
}

#[test]
fn a_resumed_joint_training_ends_with_the_same_bits() {
    let folder = streets();
    let folder = folder.path();
    warm(folder);
    let config = config(folder, Part::Joint, 5);
    let (whole, copy) = (folder.join("joint"), folder.join("copy"));
    let train = |dir: &RunDir, resume: Option<&Resume>, progress: &dyn Progress| {
        run_with(&config, Some(Box::new(Columns)), dir, resume, &nowhere(), progress).unwrap()
    };
    let dir = RunDir::create(Some(&whole), folder, "train").unwrap();
    dir.write_recipe("").unwrap();
    // The checkpoint of step 2 is there when step 3 is shown; the teacher moves before steps 2 and 4.
    train(&dir, None, &CopyAt { step: 3, from: whole.clone(), to: copy.clone() });
    assert!(!copy.join("segmenter.safetensors").exists());
    let resumed = RunDir::open(&copy).unwrap();
    train(&resumed, Some(&Resume::Latest), &Silent);
    let bytes = |run: &Path, file: &str| std::fs::read(run.join(file)).unwrap();
    for file in
        ["segmenter", "checkpoints/step-000005/weights", "checkpoints/step-000005/optimizer", "checkpoints/step-000005/teacher"]
    {
        let file = format!("{file}.safetensors");
        assert!(bytes(&whole, &file) == bytes(&copy, &file), "{file}");
    }
    assert_eq!(metrics(&whole), metrics(&copy));
    // All that is promised is there, and the teacher is neither the student nor where it started.
    let log = std::fs::read_to_string(whole.join("log.jsonl")).unwrap();
    assert!(log.contains("\"refinement_s\""), "{log}");
    let all = metrics(&whole);
    assert!(all.iter().any(|line| line["generated_images"].as_f64() > Some(0.0)), "{all:?}");
    let name = "sem_seg_head.predictor.mask_embed.layers.0.weight";
    let weight = |path: &Path| -> Vec<f32> {
        SafetensorsFile::open(path).unwrap().load(name, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let teacher = weight(&whole.join("checkpoints/step-000005/teacher.safetensors"));
    assert!(
        teacher != weight(&whole.join("segmenter.safetensors")) && teacher != weight(&folder.join("warm/segmenter.safetensors"))
    );
    // With another picture every draw would be another.
    let pictures = std::fs::read_dir(folder.join("dusk/images")).unwrap().next().unwrap().unwrap().path();
    std::fs::copy(&pictures, folder.join("dusk/images/more.png")).unwrap();
    let error = run_with(&config, Some(Box::new(Columns)), &dir, Some(&Resume::Latest), &nowhere(), &Silent).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("`pictures.generated` was "), "{error}");
}

/// A CLIP with the image tower of [`TINY`] and a text tower of the usual vocabulary.
fn tiny_clip(path: &Path) {
    let visual = VisualConfig::ConvNext(ConvNextConfig { depths: [1; 4], widths: [8, 12, 16, 20], drop_path: 0.0 });
    let text = TextTowerConfig { width: 8, heads: 1, layers: 1, embedding: 24, ..TextTowerConfig::default() };
    let builder = Builder::random(6);
    Clip::new(&ClipConfig { visual, text }, &builder).unwrap();
    datum::io::weights::save(path, &builder.finish().unwrap().tensors(), &BTreeMap::new()).unwrap();
}

#[test]
fn a_head_that_compares_with_class_names_is_trained_resumed_and_used() {
    let folder = streets();
    let folder = folder.path();
    let clip = folder.join("clip.safetensors");
    tiny_clip(&clip);
    let text = |stage, steps| {
        let mut config = config(folder, stage, steps);
        config.model.class_head = ClassHead::Text;
        config
    };
    let start = TrainConfig { backbone_weights: clip.display().to_string(), ..text(Part::Warmup, 2) };
    let warm = {
        let dir = RunDir::create(Some(&folder.join("warm")), folder, "train").unwrap();
        run(&start, &dir, None, &nowhere(), &Silent).unwrap()
    };
    let (whole, copy) = (folder.join("joint"), folder.join("copy"));
    let joint = text(Part::Joint, 5);
    let train = |dir: &RunDir, resume: Option<&Resume>, progress: &dyn Progress| {
        run_with(&joint, Some(Box::new(Columns)), dir, resume, &nowhere(), progress).unwrap()
    };
    let dir = RunDir::create(Some(&whole), folder, "train").unwrap();
    dir.write_recipe("").unwrap();
    let file = train(&dir, None, &CopyAt { step: 3, from: whole.clone(), to: copy.clone() });
    let resumed = train(&RunDir::open(&copy).unwrap(), Some(&Resume::Latest), &Silent);
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&resumed).unwrap());
    // The vectors of the names stay what the text tower says; that of "no object" and the scale of cosines learn.
    let tensor = |path: &Path, name: &str| -> Vec<f32> {
        SafetensorsFile::open(path).unwrap().load(name, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let source = datum::io::weights::clip::text(datum::io::weights::open(&clip).unwrap()).unwrap();
    let visual = start.backbone().unwrap();
    let names = STREET_CLASSES.concat();
    let vectors = name_vectors(source, &visual, &names).unwrap().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(vectors.len(), 60 * 24);
    assert!([&warm, &file].into_iter().all(|path| tensor(path, "class_vectors") == vectors));
    for name in ["void_embedding.weight", "sem_seg_head.predictor.logit_scale"] {
        assert_ne!(tensor(&warm, name), tensor(&file, name), "{name}");
    }
    let segmenter = Segmenter::open(&file).unwrap();
    let scores = segmenter.scores(&Tensor::zeros((1, 3, 64, 96), DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(scores.dims(), [1, 19, 64, 96]);

    let error = |config: &TrainConfig| run(config, &dir, None, &nowhere(), &Silent).unwrap_err().to_string();
    let nameless = error(&text(Part::Warmup, 2));
    assert!(nameless.contains("a text tower must read") && nameless.contains("--backbone-weights FILE"), "{nameless}");
    let mixed = error(&TrainConfig { model: config(folder, Part::Joint, 2).model, ..joint.clone() });
    assert!(mixed.contains("\"synonyms\":[2,2,6"), "{mixed}");
    std::fs::rename(folder.join("warm"), folder.join("warm-text")).unwrap();
    self::warm(folder);
    let linear = error(&joint);
    assert!(linear.contains("model.class_head = \"text\"") && linear.contains("a warm-up with the same value"), "{linear}");
}

#[test]
fn clip_has_a_say_where_the_settings_want_it() {
    let folder = streets();
    let folder = folder.path();
    let clip = folder.join("clip.safetensors");
    tiny_clip(&clip);
    let asking = |stage, steps| {
        let mut config = config(folder, stage, steps);
        (config.model.ensemble, config.model.freeze_backbone, config.teacher.ensemble) = (true, true, stage == Part::Joint);
        config
    };
    let train = |config: &TrainConfig, name: &str| {
        let dir = RunDir::create(Some(&folder.join(name)), folder, "train").unwrap();
        run_with(config, Some(Box::new(Columns)), &dir, None, &nowhere(), &Silent)
    };
    train(&TrainConfig { backbone_weights: clip.display().to_string(), ..asking(Part::Warmup, 4) }, "warm").unwrap();
    let joint = train(&asking(Part::Joint, 2), "joint").unwrap();

    let images = datum::base::Rng::stream(1, "images", &[]).normal_tensor(&[1, 3, 64, 96], &Device::Cpu).unwrap();
    let scores = |share| -> Vec<f32> {
        let segmenter = Segmenter::open_with(&joint, share).unwrap();
        segmenter.scores(&images).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (trained, head, clip_alone) = (scores(None), scores(Some(0.0)), scores(Some(1.0)));
    assert!(trained == scores(Some(0.4)) && trained != head && trained != clip_alone);
    // What training changes does not ask CLIP: the head's own scores are those of a file without it.
    let (header, source) = datum::systems::shared::segmenter_file::read(&joint).unwrap();
    let names: Vec<String> = source.shapes().into_keys().filter(|name| !name.contains(".head.mlp.")).collect();
    assert!(names.len() + 3 == source.shapes().len() && names.iter().any(|name| name.ends_with("clip_model.logit_scale")));
    assert!(serde_json::to_string(&header).unwrap().contains("\"ensemble\":{\"alpha\":0.4"), "{header:?}");

    // A teacher that does not ask labels otherwise.
    let mut deaf = asking(Part::Joint, 2);
    deaf.teacher.ensemble = false;
    assert!(std::fs::read(train(&deaf, "deaf").unwrap()).unwrap() != std::fs::read(&joint).unwrap());

    std::fs::rename(folder.join("warm"), folder.join("asked")).unwrap();
    self::warm(folder);
    let error = train(&asking(Part::Joint, 2), "other").unwrap_err().to_string();
    assert!(error.contains("trained with model.ensemble = true") && error.contains("a warm-up with the same value"), "{error}");
}

#[test]
fn the_segmenter_sees_pictures_of_any_size() {
    let folder = streets();
    let segmenter = Segmenter::open(&warm(folder.path())).unwrap();
    for (height, width) in [(64, 96), (37, 101)] {
        let image = RgbImage { height, width, pixels: (0..3 * height * width).map(|i| (i % 251) as u8).collect() };
        let evaluator = segmenter.evaluator(Inference::Whole);
        let map = evaluator.predict(&image, &|images| segmenter.scores(images)).unwrap();
        assert_eq!((map.height, map.width), (height, width));
        assert!(map.ids.iter().all(|id| *id < 19));
    }
    let mut evaluator = segmenter.evaluator(Inference::Whole);
    evaluator.resize = Some(datum::eval::Resize::ShortSide(50));
    let image = RgbImage { height: 64, width: 96, pixels: vec![90; 3 * 64 * 96] };
    let seen = |images: &Tensor| {
        assert_eq!(images.dims(), [1, 3, 50, 75]);
        segmenter.scores(images)
    };
    evaluator.predict(&image, &seen).unwrap();
}

/// The program with the words of `line`; its exit code, standard output and standard error.
fn clouds(folder: &Path, line: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clouds"));
    command.env_clear().current_dir(folder).env("RAYON_NUM_THREADS", "2").env("HOME", folder);
    let output = command.args(line.split_whitespace()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(!stderr.contains("panicked at"), "{stderr}");
    (output.status.code().unwrap(), stdout, stderr)
}

#[test]
fn both_stages_and_what_follows_from_the_command_line() {
    let folder = streets();
    let folder = folder.path();
    std::fs::write(folder.join("tiny.toml"), TINY).unwrap();
    let ok = |line: &str| {
        let (code, stdout, stderr) = clouds(folder, line);
        assert_eq!(code, 0, "clouds {line}\n{stderr}");
        (stdout, stderr)
    };
    ok("train --recipe tiny.toml --source street=day --iterations 2 --output warm --validation street=day --validation-steps 2");
    assert!(metrics(&folder.join("warm"))[1].contains_key("validation.mIoU"));
    let recipe = std::fs::read_to_string(folder.join("warm/recipe.toml")).unwrap();
    for part in
        ["schedule = \"constant\"  # recipe clouds-gta", "iterations = 2  # `--iterations`", "batch_size = 3  # recipe tiny.toml"]
    {
        assert!(recipe.contains(part), "{part}\n{recipe}");
    }
    let joint = "train --recipe tiny.toml --stage joint --source street=day --generated dusk --init warm --iterations 2";
    let (stdout, stderr) = ok(&format!("{joint} --output joint"));
    assert!(stdout.contains("segmenter.safetensors"), "{stdout}");
    for part in ["generated: 5 images", "refined with regions of like colour (no SAM)", "the teacher took"] {
        assert!(stderr.contains(part), "{part}\n{stderr}");
    }
    let (scores, _) = ok("evaluate --checkpoint joint --dataset street=day --json");
    let scores: serde_json::Value = serde_json::from_str(&scores).unwrap();
    assert!(scores["mIoU"].is_f64() && scores["classes"].as_array().unwrap().len() == 19, "{scores}");
    ok("predict --checkpoint joint/segmenter.safetensors dusk/images --output seen --format train-ids");
    assert_eq!(std::fs::read_dir(folder.join("seen")).unwrap().count(), 5);
    ok(&format!("{joint} --output joint --resume latest"));
}

#[test]
fn wrong_inputs_are_one_clear_error() {
    let folder = streets();
    let folder = folder.path();
    std::fs::write(folder.join("tiny.toml"), TINY).unwrap();
    warm(folder);
    let small = StreetSet { count: 2, width: 64, height: 64, ..StreetSet::default() };
    small.write(&folder.join("small"), &Silent).unwrap();
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clouds_train.safetensors");
    std::fs::copy(other, folder.join("other.safetensors")).unwrap();
    let tiny = "train --recipe tiny.toml --source street=day --output out";
    let joint = format!("{tiny} --stage joint --init warm");
    for (line, code, parts) in [
        ("train".to_string(), 3, &["data set `gta`", "DATUM_DATASETS", "gta/images/*.png\n    gta/labels/", "`clouds demo`"][..]),
        ("train --source street=day --output out".into(), 2, &["--backbone-weights FILE", "clouds-nano"]),
        (format!("{tiny} --stage joint --generated dusk"), 2, &["starts from a warm-up", "--init RUN"]),
        (joint.clone(), 2, &["generated images", "--generated FOLDER"]),
        (format!("{tiny} --generated dusk"), 2, &["source images only", "--stage joint"]),
        (format!("{tiny} --init-images dusk"), 2, &["no teacher", "--stage joint"]),
        (format!("{joint} --generated dusk --init-images day"), 3, &["manifest.jsonl", "leave `--init-images` out"]),
        (format!("{joint} --generated nothing"), 3, &["a folder of generated images", "nothing", "clouds generate"]),
        (
            format!("{joint} --generated small"),
            3,
            &["generated images of 96x64", "2 of another size, such as 64x64", "crop.width=64"],
        ),
        (format!("{tiny} --stage joint --generated dusk --init gone"), 3, &["gone", "check the path"]),
        (format!("{joint} --generated dusk --set model.num_queries=21"), 3, &["\"queries\":21", "\"queries\":20"]),
        (format!("{joint} --generated dusk --refiner other.safetensors"), 3, &["weights of Segment Anything"]),
        (format!("{tiny} --init other.safetensors"), 3, &["segmenter written by", "weights of another kind"]),
        (
            format!("{tiny} --init warm/checkpoints/step-000002/weights.safetensors"),
            3,
            &["width 32", "heads", "a run of `clouds train`"],
        ),
        (format!("{tiny} --set crop.width=100"), 2, &["crop 100x64", "multiples of 32"]),
        (format!("{tiny} --set data.initial_size.hight=64"), 2, &["hight", "height"]),
        (format!("{tiny} --stage cold"), 2, &["cold", "warmup"]),
        (format!("{tiny} --set model.ensemble=true"), 2, &["model.ensemble", "model.freeze_backbone"]),
        (format!("{tiny} --set teacher.ensemble=true"), 2, &["teacher.ensemble", "--set model.ensemble=true"]),
        ("evaluate --checkpoint warm --dataset street=day --ensemble 0.4".into(), 3, &["one without", "model.ensemble=true"]),
        ("predict --checkpoint warm day/images --output seen --ensemble 2".into(), 2, &["--ensemble", "a number from 0 to 1"]),
    ] {
        let (found, stdout, stderr) = clouds(folder, &line);
        assert_eq!(found, code, "clouds {line}\n{stderr}");
        assert_eq!(stdout, "", "clouds {line}");
        for part in parts {
            assert!(stderr.contains(part), "clouds {line}: `{part}` is not in\n{stderr}");
        }
    }
}
