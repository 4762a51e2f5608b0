//! Rendered street scenes: reproducible, labelled the same in every light, complete, and usable as a data set.

use datum::base::progress::Silent;
use datum::data::street::{Look, Rendered, Scene};
use datum::data::{Dataset, Search, StreetSet};
use datum::labels::IGNORE;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// (height, width) that is quick and still shows everything.
const SIZE: (usize, usize) = (128, 256);

/// Names of the things in Cityscapes' train ids.
const THINGS: [(u8, &str); 10] = [
    (6, "traffic light"),
    (7, "traffic sign"),
    (11, "person"),
    (12, "rider"),
    (13, "car"),
    (14, "truck"),
    (15, "bus"),
    (16, "train"),
    (17, "motorcycle"),
    (18, "bicycle"),
];

fn mean(rendered: &Rendered) -> f64 {
    rendered.image.pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / rendered.image.pixels.len() as f64
}

#[test]
fn a_seed_is_one_picture() {
    for look in Look::ALL {
        let first = Scene::new(3, 5).render(SIZE, look);
        assert_eq!(first, Scene::new(3, 5).render(SIZE, look), "{look}");
        for (seed, index) in [(4, 5), (3, 6)] {
            assert_ne!(first.image, Scene::new(seed, index).render(SIZE, look).image, "{look}");
        }
    }
}

/// The renderer uses no function whose last bits depend on the system, so these hold everywhere. A change of the renderer
/// changes them: look at the pictures, then write the new ones down.
#[test]
fn pictures_are_the_same_on_every_machine() {
    let mut hasher = blake3::Hasher::new();
    for (index, look) in Look::ALL.into_iter().enumerate() {
        let rendered = Scene::new(0, index as u64).render((64, 128), look);
        hasher.update(&rendered.image.pixels);
        hasher.update(&rendered.labels.ids);
        hasher.update(rendered.captions.join("\n").as_bytes());
    }
    assert_eq!(&hasher.finalize().to_hex()[..16], "86e6d4f392019c33");
}

#[test]
fn labels_do_not_depend_on_the_look() {
    for index in 0..6 {
        let scene = Scene::new(1, index);
        let day = scene.render(SIZE, Look::Day);
        for look in Look::ALL {
            let other = scene.render(SIZE, look);
            assert_eq!(other.labels, day.labels, "scene {index}, {look}");
            assert_eq!(other.things, day.things, "scene {index}, {look}");
            assert!(look == Look::Day || other.image != day.image, "scene {index}, {look}");
        }
    }
}

#[test]
fn any_size_works() {
    for (height, width) in [(0, 0), (0, 9), (1, 1), (1, 40), (40, 1), (17, 33), (96, 64), (61, 251), (520, 1042)] {
        let rendered = Scene::new(2, 0).render((height, width), Look::Rain);
        assert_eq!((rendered.image.height, rendered.image.width), (height, width));
        assert_eq!(rendered.image.pixels.len(), height * width * 3);
        assert_eq!(rendered.labels.ids.len(), height * width);
        assert!(rendered.labels.ids.iter().all(|&id| id < 19 || id == IGNORE));
    }
}

/// At half the nominal size: a quarter of 40 pixels counts as visible.
#[test]
fn every_class_is_visible_in_a_fifth_of_the_scenes() {
    let (mut seen, mut road, mut sky) = ([0; 256], 0, 0);
    for index in 0..100 {
        let labels = Scene::new(11, index).render(SIZE, Look::Day).labels;
        for (id, &count) in labels.histogram().iter().enumerate() {
            seen[id] += usize::from(count >= 10);
        }
        road += usize::from(labels.ids[(SIZE.0 - 1) * SIZE.1 + SIZE.1 / 2] == 0);
        sky += usize::from(labels.ids[..SIZE.1 * SIZE.0 / 3].contains(&10));
    }
    for (id, &count) in seen.iter().enumerate().take(19) {
        assert!(count >= 20, "class {id} is visible in {count} of 100 scenes; all: {:?}", &seen[..19]);
    }
    assert!(road >= 80 && sky >= 90, "road below in {road}, sky above in {sky} of 100 scenes");
}

#[test]
fn looks_differ_as_light_does() {
    let mut means = BTreeMap::new();
    for look in Look::ALL {
        let sum: f64 = (0..12).map(|index| mean(&Scene::new(5, index).render(SIZE, look))).sum();
        means.insert(look, sum / 12.0);
    }
    assert!(means[&Look::Day] > 1.6 * means[&Look::Dusk], "{means:?}");
    assert!(means[&Look::Dusk] > 1.25 * means[&Look::Night], "{means:?}");
    assert!(means[&Look::Snow] > means[&Look::Rain], "{means:?}");
    // Fog takes contrast away: far and near parts of a picture come close together.
    let spread = |look| {
        let pixels = Scene::new(5, 0).render(SIZE, look).image.floats();
        let mean = pixels.iter().sum::<f32>() / pixels.len() as f32;
        (pixels.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / pixels.len() as f32).sqrt()
    };
    assert!(spread(Look::Fog) < 0.8 * spread(Look::Day));
}

#[test]
fn captions_name_what_the_labels_show() {
    for index in 0..40 {
        let look = Look::ALL[index as usize % 6];
        let rendered = Scene::new(7, index).render(SIZE, look);
        let histogram = rendered.labels.histogram();
        let full = &rendered.captions[0];
        for (id, name) in THINGS {
            let plural = match name {
                "bus" => "buses".into(),
                name => format!("{name}s"),
            };
            let words = |text: &str| format!(" {text} ").replace(',', " ");
            let named = words(full).contains(&format!(" {name} ")) || words(full).contains(&format!(" {plural} "));
            let counted = rendered.things.iter().any(|(class, number)| *class == id && *number > 0);
            assert_eq!(named, counted, "scene {index}, {name}: {full}");
            // Samples are counted for the things and voted on for the labels, so a few pixels may be missing.
            assert!(!counted || histogram[usize::from(id)] >= 5, "scene {index}, {name}: {full}");
        }
        for caption in &rendered.captions {
            assert!(caption.is_ascii() && !caption.contains("  ") && caption.len() < 400, "{caption}");
        }
    }
}

/// All files of a folder but the logs.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    files.map(|file| (file.path().strip_prefix(folder).unwrap().into(), std::fs::read(file.path()).unwrap())).collect()
}

fn small(count: u64) -> StreetSet {
    StreetSet { count, width: 48, height: 32, look: vec!["day".into(), "night".into()], seed: 9, ..StreetSet::default() }
}

fn write(set: &StreetSet, folder: &Path, threads: usize) -> (u64, u64) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let written = pool.install(|| set.write(folder, &Silent)).unwrap();
    (written.made, written.kept)
}

#[test]
fn folders_are_the_same_for_any_number_of_threads_and_after_any_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    assert_eq!(write(&small(40), &one, 1), (40, 0));
    assert_eq!(write(&small(7), &two, 3), (7, 0));
    // A stop in the middle of a line, a lost picture, a changed label, a lost list.
    let manifest = std::fs::read(two.join("manifest.jsonl")).unwrap();
    std::fs::write(two.join("manifest.jsonl"), &manifest[..manifest.len() - 9]).unwrap();
    std::fs::remove_file(two.join("images/000001.png")).unwrap();
    std::fs::write(two.join("labels/000002.png"), b"").unwrap();
    std::fs::remove_file(two.join("captions.jsonl")).unwrap();
    assert_eq!(write(&small(40), &two, 3), (36, 4));
    assert_eq!(contents(&one), contents(&two));
    assert_eq!(write(&small(40), &two, 1), (0, 40));
    assert_eq!(write(&small(5), &two, 1), (0, 5));
    assert_eq!(contents(&one), contents(&two), "a smaller count takes nothing away");
}

#[test]
fn a_folder_is_a_labelled_data_set_with_splits() {
    let dir = tempfile::tempdir().unwrap();
    write(&small(40), dir.path(), 2);
    let search = Search { folders: Vec::new() };
    let dataset = Dataset::open(&format!("street={}", dir.path().display()), &search).unwrap();
    let split = |name: &str| dataset.samples(Some(name)).unwrap();
    assert_eq!((split("train").len(), split("val").len(), dataset.samples(None).unwrap().len()), (36, 4, 40));
    for (index, sample) in dataset.samples(None).unwrap().iter().enumerate() {
        let example = dataset.load(sample).unwrap();
        let look = [Look::Day, Look::Night][index % 2];
        let rendered = Scene::new(9, index as u64).render((32, 48), look);
        assert_eq!((example.image, example.label), (rendered.image, Some(rendered.labels)));
    }
    // Both looks are in the validation split.
    assert_eq!(
        split("val").iter().map(|sample| sample.stem.as_str()).collect::<Vec<_>>(),
        ["000018", "000019", "000038", "000039"]
    );
}

#[test]
fn settings_that_cannot_work_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    write(&small(3), dir.path(), 1);
    let wrong = [
        (StreetSet { width: 0, ..small(1) }, "--width 0"),
        (StreetSet { height: 5000, ..small(1) }, "16 to 4096"),
        (StreetSet { count: 0, ..small(1) }, "--count 0"),
        (StreetSet { look: vec!["dust".into()], ..small(1) }, "did you mean `dusk`?"),
        (StreetSet { look: Vec::new(), ..small(1) }, "--look day"),
        (StreetSet { focus: 0.5, close_up: 1.5, ..small(1) }, "--close-up 1.5"),
        (StreetSet { close_up: 0.5, ..small(1) }, "add e.g. `--focus 0.5`"),
        (StreetSet { seed: 1, ..small(3) }, "other settings: seed 9, 48x32, focus 0"),
        (StreetSet { look: vec!["fog".into()], ..small(3) }, "by the look `day`"),
    ];
    let before = contents(dir.path());
    for (set, part) in wrong {
        let error = set.write(dir.path(), &Silent).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(part), "{error}");
    }
    assert_eq!(contents(dir.path()), before);
    std::fs::write(dir.path().join("manifest.jsonl"), "{\"index\": 1}\n").unwrap();
    let error = small(3).write(dir.path(), &Silent).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("line 1"), "{error}");
}
