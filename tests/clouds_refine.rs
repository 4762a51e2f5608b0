//! Refinement of pseudo-label folders: the library's work behind `clouds refine` and `clouds masks`, and segments of like colour
//! against scikit-image (tests/golden/segments.py).

#[path = "support/fill.rs"]
mod fill;

use candle_core::Device;
use datum::base::Error;
use datum::base::progress::Silent;
use datum::data::street::{Look, Scene};
use datum::data::{Dataset, Search};
use datum::eval::ConfusionMatrix;
use datum::io::images::{self, RgbImage};
use datum::io::weights::{self, SafetensorsFile, TensorSource};
use datum::labels::{Classes, IGNORE, LabelMap};
use datum::models::sam::{DecoderConfig, EncoderConfig, Sam, SamConfig, VitConfig};
use datum::nn::Builder;
use datum::systems::clouds::automatic_masks::AutomaticMasksConfig;
use datum::systems::clouds::everything::{self, MasksConfig};
use datum::systems::clouds::refine_folder::{self, RefineFolderConfig, Refined};
use datum::systems::clouds::refiner::{self, RefinerConfig};
use datum::systems::clouds::segments::{Segments, SegmentsConfig};
use datum::train::run_dir::RunDir;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[test]
fn segments_are_those_of_scikit_image() {
    let level = |name: &str, at: usize, most: f64| (fill::uniform(name, at) * most) as u8;
    let color = |at: usize| {
        let (y, x) = (at / 60, at % 60);
        [0, 1, 2].map(|c| f64::from(level("squares", (y / 12 * 5 + x / 12) * 3 + c, 200.0) + level("noise", at * 3 + c, 40.0)))
    };
    let colors: Vec<[f64; 3]> = (0..48 * 60).map(color).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/segments.safetensors");
    let golden = SafetensorsFile::open(path.as_ref()).unwrap();
    for (case, scale, sigma, min_size) in
        [("default", 1.0, 0.8, 20), ("large", 200.0, 0.5, 20), ("rough", 40.0, 0.0, 1), ("soft", 300.0, 1.7, 50)]
    {
        let found = Segments::new(&colors, (48, 60), &SegmentsConfig { sigma, scale, min_size });
        let expected = golden.load(case, &Device::Cpu).unwrap().to_dtype(candle_core::DType::F32).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        // The same up to their numbers: one of theirs for each of ours, and the other way round.
        let (mut forth, mut back) = (BTreeMap::new(), BTreeMap::new());
        let different = found.of_pixel.iter().zip(&expected).filter(|(ours, theirs)| {
            let theirs = **theirs as u32;
            *forth.entry(**ours).or_insert(theirs) != theirs || *back.entry(theirs).or_insert(**ours) != **ours
        });
        assert_eq!(different.count(), 0, "{case}: pixels differ");
    }
}

/// Streets of 128x64 pixels in `images/`, what a teacher with shifted borders sees in `labels/`, the truth in `truth/`.
struct Folders {
    root: tempfile::TempDir,
}

fn classes() -> Classes {
    Dataset::class_table("cityscapes", &Search { folders: vec![] }).unwrap()
}

impl Folders {
    fn new(count: u64) -> Self {
        let folders = Self { root: tempfile::tempdir().unwrap() };
        for index in 0..count {
            let scene = Scene::new(5, index).render((64, 128), Look::Day);
            let shifted =
                (0..64 * 128).map(|at: usize| scene.labels.ids[at / 128 * 128 + (at % 128).saturating_sub(3)]).collect();
            folders.label(&format!("truth/town/s{index}.png"), &scene.labels);
            folders.label(&format!("labels/town/s{index}_labelTrainIds.png"), &LabelMap { height: 64, width: 128, ids: shifted });
            images::write_png(&folders.path(&format!("images/town/s{index}.png")), &scene.image, &[]).unwrap();
        }
        folders
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn label(&self, name: &str, label: &LabelMap) {
        images::write_palette_png(&self.path(name), (label.height, label.width), &label.ids, &classes().palette, &[]).unwrap();
    }

    fn read(&self, name: &str) -> LabelMap {
        let raw = images::read_label(&self.path(name)).unwrap();
        LabelMap { height: raw.height, width: raw.width, ids: raw.pixels.iter().map(|id| *id as u8).collect() }
    }

    fn config(&self) -> RefineFolderConfig {
        let text = |name: &str| self.path(name).display().to_string();
        RefineFolderConfig { images: text("images"), labels: text("labels"), min_area: 40, ..RefineFolderConfig::default() }
    }

    fn refine(&self, output: &str, config: &RefineFolderConfig) -> Result<Refined, Error> {
        let folder = self.path(output);
        let run = match folder.join("recipe.toml").is_file() {
            true => RunDir::open(&folder)?,
            false => RunDir::create(Some(&folder), Path::new("unused"), "refine")?,
        };
        run.write_recipe("")?;
        refine_folder::run(config, &classes(), &run, &Silent)
    }

    fn fails(&self, config: &RefineFolderConfig, code: u8, parts: &[&str]) {
        let error = self.refine("wrong", config).unwrap_err();
        std::fs::remove_dir_all(self.path("wrong")).unwrap();
        assert_eq!(error.exit_code(), code, "{error}");
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "`{part}` is not in: {error}"));
    }
}

fn right(prediction: &LabelMap, truth: &LabelMap) -> u64 {
    let mut matrix = ConfusionMatrix::new(19);
    matrix.add(prediction, truth).unwrap();
    (0..19).map(|class| matrix.count(class, class)).sum()
}

#[test]
fn regions_bring_a_shifted_label_back_to_the_picture() {
    let folders = Folders::new(3);
    let refined = folders.refine("out", &RefineFolderConfig { keep_unassigned: true, ..folders.config() }).unwrap();
    assert_eq!((refined.made, refined.kept, refined.unassigned), (3, 0, 0.0));
    assert!(refined.refiner.contains("no SAM"), "{}", refined.refiner);
    let (mut before, mut after) = (0, 0);
    for index in 0..3 {
        let truth = folders.read(&format!("truth/town/s{index}.png"));
        before += right(&folders.read(&format!("labels/town/s{index}_labelTrainIds.png")), &truth);
        after += right(&folders.read(&format!("out/labels/town/s{index}.png")), &truth);
    }
    println!("right pixels: {before} before, {after} after");
    assert!(after > before, "{before} before, {after} after");
    let text = images::read_png_text(&folders.path("out/labels/town/s0.png")).unwrap();
    assert_eq!(text, [("refiner".to_string(), refined.refiner)]);
}

#[test]
fn finished_labels_are_kept_and_changed_ones_are_made_again() {
    let folders = Folders::new(3);
    let config = folders.config();
    let first = folders.refine("out", &config).unwrap();
    assert!(first.unassigned > 0.0 && first.changed > 0.0);
    assert!(folders.read("out/labels/town/s1.png").ids.contains(&IGNORE));
    let bytes = || (0..3).map(|i| std::fs::read(folders.path(&format!("out/labels/town/s{i}.png"))).unwrap()).collect::<Vec<_>>();
    let whole = bytes();
    let manifest = std::fs::read(folders.path("out/manifest.jsonl")).unwrap();

    let again = folders.refine("out", &config).unwrap();
    assert_eq!((again.made, again.kept), (0, 3));
    assert_eq!((again.changed, again.dropped), (first.changed, first.dropped), "the summary is that of all pictures");
    // A killed run: one label and the end of the manifest are missing.
    std::fs::remove_file(folders.path("out/labels/town/s2.png")).unwrap();
    std::fs::write(folders.path("out/manifest.jsonl"), &manifest[..manifest.len() - 20]).unwrap();
    let again = folders.refine("out", &config).unwrap();
    assert_eq!((again.made, again.kept), (1, 2));
    assert_eq!((bytes(), std::fs::read(folders.path("out/manifest.jsonl")).unwrap()), (whole.clone(), manifest));
    // Another label, then other settings.
    folders.label("labels/town/s0_labelTrainIds.png", &LabelMap::filled(64, 128, 2));
    assert_eq!(folders.refine("out", &config).unwrap().made, 1);
    assert_eq!(folders.refine("out", &RefineFolderConfig { points: 3, ..config.clone() }).unwrap().made, 3);
    // A picture is refined the same alone.
    std::fs::remove_dir_all(folders.path("images/town")).unwrap();
    let scene = Scene::new(5, 2).render((64, 128), Look::Day);
    images::write_png(&folders.path("images/town/s2.png"), &scene.image, &[]).unwrap();
    folders.refine("alone", &config).unwrap();
    assert_eq!(std::fs::read(folders.path("alone/labels/town/s2.png")).unwrap(), whole[2]);
}

#[test]
fn none_copies_and_small_regions_disappear() {
    let folders = Folders::new(1);
    let label = folders.read("labels/town/s0_labelTrainIds.png");
    folders.refine("copy", &RefineFolderConfig { refiner: "none".into(), ..folders.config() }).unwrap();
    assert_eq!(folders.read("copy/labels/town/s0.png"), label);
    let nothing = folders.refine("large", &RefineFolderConfig { min_area: 64 * 128, ..folders.config() }).unwrap();
    assert_eq!((nothing.without_regions, folders.read("large/labels/town/s0.png")), (1, label.clone()));
    let refined = folders.refine("some", &RefineFolderConfig { min_area: 1000, ..folders.config() }).unwrap();
    let left = folders.read("some/labels/town/s0.png").histogram();
    let gone = (0..19).filter(|id| label.histogram()[*id] > 0 && left[*id] == 0).count();
    assert!(gone > 0);
    assert_eq!(refined.dropped.values().sum::<u64>(), gone as u64);
}

#[test]
fn wrong_folders_are_one_clear_error() {
    let folders = Folders::new(2);
    let config = folders.config();
    folders.fails(&RefineFolderConfig { labels: String::new(), ..config.clone() }, 2, &["--labels DIR"]);
    folders.fails(&RefineFolderConfig { points: 0, ..config.clone() }, 2, &["`points` is 0"]);
    folders.fails(&RefineFolderConfig { erosion: 4, ..config.clone() }, 2, &["`erosion` is 4"]);
    folders.fails(
        &RefineFolderConfig { images: folders.path("nowhere").display().to_string(), ..config.clone() },
        3,
        &["nowhere"],
    );

    std::fs::rename(folders.path("labels/town/s1_labelTrainIds.png"), folders.path("labels/town/other.png")).unwrap();
    folders.fails(&config, 3, &["none for 1 of 2 pictures, e.g. town/s1.png"]);
    folders.label("labels/town/s1.png", &LabelMap::filled(64, 127, 3));
    folders.fails(&config, 3, &["labels/town/s1.png", "128x64", "127x64"]);
    folders.label("labels/town/s1.png", &LabelMap::filled(64, 128, 19));
    folders.fails(&config, 3, &["labels/town/s1.png", "train ids below 19", "id 19"]);
    let colored = RgbImage { height: 64, width: 128, pixels: [220, 20, 60].repeat(64 * 128) };
    images::write_png(&folders.path("labels/town/s1.png"), &colored, &[]).unwrap();
    folders.fails(&config, 3, &["labels/town/s1.png", "a colour picture"]);
    // A picture that is none is left out and counted.
    std::fs::write(folders.path("images/town/s1.png"), b"no picture").unwrap();
    let refined = folders.refine("out", &config).unwrap();
    assert_eq!((refined.made, refined.unreadable), (1, 1));
}

/// A file with a small SAM of random weights.
fn small_sam(path: &Path) {
    let decoder = DecoderConfig { layers: 2, heads: 8, mlp: 64, quality: 24 };
    let encoder = EncoderConfig::Vit(VitConfig { dim: 32, depth: 2, heads: 2, global: vec![1], window: 3 });
    let builder = Builder::random(0);
    Sam::new(&SamConfig { image_size: 80, encoder, dim: 32, mask_channels: 16, decoder }, &builder).unwrap();
    weights::save(path, &builder.finish().unwrap().tensors(), &BTreeMap::new()).unwrap();
}

#[test]
fn the_weights_choose_the_refiner() {
    let folders = Folders::new(1);
    assert!(refiner::open("none").unwrap().is_none());
    assert!(refiner::open("regions").unwrap().unwrap().name().contains("no SAM"));
    let file = folders.path("sam.safetensors");
    small_sam(&file);
    let refined = folders.refine("out", &RefineFolderConfig { refiner: file.display().to_string(), ..folders.config() }).unwrap();
    assert_eq!((refined.made, refined.refiner.as_str()), (1, "SAM (sam.safetensors)"));

    let fails = |choice: &str, code: u8, parts: &[&str]| {
        let error = RefinerConfig { refiner: choice.into(), ..RefinerConfig::default() }.open().err().unwrap();
        assert_eq!(error.exit_code(), code, "{error}");
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "`{part}` is not in: {error}"));
    };
    fails("region", 3, &["no such file", "did you mean `regions`?"]);
    let other = folders.path("other.safetensors").display().to_string();
    let tensors = BTreeMap::from([(
        "backbone.weight".to_string(),
        candle_core::Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap(),
    )]);
    weights::save(other.as_ref(), &tensors, &BTreeMap::new()).unwrap();
    fails(
        &other,
        3,
        &["other.safetensors", "Segment Anything or MobileSAM", "1 tensors such as `backbone.weight`", "mobile_sam.pt"],
    );
    // One tensor is missing.
    let source = weights::open(&file).unwrap();
    let tensors = source.shapes().into_keys().filter(|name| name != "mask_decoder.iou_token.weight");
    let tensors = tensors.map(|name| (name.clone(), source.load(&name, &Device::Cpu).unwrap())).collect();
    weights::save(other.as_ref(), &tensors, &BTreeMap::new()).unwrap();
    fails(&other, 3, &["mask_decoder.iou_token.weight"]);
}

#[test]
fn everything_in_a_picture_becomes_a_picture_and_json() {
    let folders = Folders::new(1);
    let file = folders.path("sam.safetensors");
    small_sam(&file);
    let automatic = AutomaticMasksConfig {
        points_per_side: 3,
        pred_iou_thresh: 0.0,
        stability_score_thresh: 0.0,
        ..AutomaticMasksConfig::default()
    };
    for refiner in ["regions".to_string(), file.display().to_string()] {
        let config = MasksConfig { refiner, automatic: automatic.clone(), ..MasksConfig::default() };
        let drawn = everything::run(&config, &[folders.path("images")], &folders.path("masks"), &Silent).unwrap();
        let text = std::fs::read_to_string(folders.path("masks/s0.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let annotations = json["annotations"].as_array().unwrap();
        assert!(!annotations.is_empty());
        assert_eq!((drawn.masks["s0"], &drawn.refiner), (annotations.len(), &json["refiner"].as_str().unwrap().to_string()));
        for one in annotations {
            let counts: Vec<u64> =
                one["segmentation"]["counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
            assert_eq!(counts.iter().sum::<u64>(), 64 * 128);
            assert_eq!(counts.iter().skip(1).step_by(2).sum::<u64>(), one["area"].as_u64().unwrap());
        }
        let picture = images::read_label(&folders.path("masks/s0.png")).unwrap();
        assert_eq!((picture.height, picture.width), (64, 128));
        let again = everything::run(&config, &[folders.path("images")], &folders.path("masks"), &Silent).unwrap();
        assert_eq!((drawn.kept, again.kept, &again.masks), (0, 1, &drawn.masks));
        assert_eq!(std::fs::read_to_string(folders.path("masks/s0.json")).unwrap(), text);
    }
    // What cannot be read is counted and left out; named, it ends the work.
    let bytes = std::fs::read(folders.path("images/town/s0.png")).unwrap();
    let broken = folders.path("images/town/broken.png");
    // A header and an end, and nothing in between that a picture could be made of.
    let mut torn = bytes.clone();
    let middle = torn.len() / 2;
    torn[middle..middle + 16].fill(0xff);
    std::fs::write(&broken, torn).unwrap();
    std::fs::write(folders.path("images/town/empty.png"), "").unwrap();
    let config = MasksConfig { automatic, ..MasksConfig::default() };
    let drawn = everything::run(&config, &[folders.path("images")], &folders.path("masks2"), &Silent).unwrap();
    assert_eq!((drawn.unreadable, drawn.masks.keys().map(String::as_str).collect::<Vec<_>>()), (2, vec!["s0"]));
    assert_eq!(
        everything::run(&config, std::slice::from_ref(&broken), &folders.path("masks2"), &Silent).unwrap_err().exit_code(),
        3
    );
    let own = folders.path("environment.png");
    std::fs::copy(folders.path("images/town/s0.png"), &own).unwrap();
    assert_eq!(everything::run(&config, &[own], &folders.path("masks2"), &Silent).unwrap_err().exit_code(), 2);

    let nothing = MasksConfig { refiner: "none".into(), ..MasksConfig::default() };
    assert_eq!(everything::run(&nothing, &[folders.path("images")], &folders.path("masks"), &Silent).unwrap_err().exit_code(), 2);
}
