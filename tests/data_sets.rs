//! Data sets on small trees: names, roots, TOML, splits, labels, and what is said when something is wrong.

use datum::base::progress::{Progress, Silent};
use datum::data::{Compare, Dataset, Search, check};
use datum::io::images::{self, RgbImage};
use std::path::{Path, PathBuf};

/// A folder with pictures and files, gone after the test.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self, name: &str, (height, width): (usize, usize)) -> &Self {
        let image = RgbImage { height, width, pixels: vec![100; height * width * 3] };
        images::write_png(&self.path(name), &image, &[]).unwrap();
        self
    }

    fn label(&self, name: &str, width: usize, ids: &[u8]) -> &Self {
        images::write_gray_png(&self.path(name), (ids.len() / width, width), ids, &[]).unwrap();
        self
    }

    fn text(&self, name: &str, text: &str) -> &Self {
        datum::io::atomic::write(&self.path(name), text.as_bytes()).unwrap();
        self
    }

    fn search(&self) -> Search {
        Search { folders: vec![self.path("datasets")] }
    }

    fn open(&self, spec: &str) -> datum::base::Result<Dataset> {
        Dataset::open(spec, &self.search())
    }

    /// Opens `NAME=<folder of this tree>`.
    fn named(&self, name: &str, root: &str) -> Dataset {
        self.open(&format!("{name}={}", self.path(root).display())).unwrap()
    }

    fn toml(&self, text: &str) -> datum::base::Result<Dataset> {
        self.text("set.toml", text);
        self.open(&self.path("set.toml").display().to_string())
    }
}

fn stems(dataset: &Dataset, split: Option<&str>) -> Vec<String> {
    dataset.samples(split).unwrap().into_iter().map(|sample| sample.stem).collect()
}

#[track_caller]
fn assert_message<T>(result: datum::base::Result<T>, parts: &[&str]) {
    let Err(error) = result else { panic!("no error") };
    let message = error.to_string();
    println!("{message}\n");
    assert!(parts.iter().all(|part| message.contains(part)), "{message}\nlacks one of {parts:?}");
    assert!(message.contains("next: "), "{message}");
    assert_eq!(error.exit_code(), 3);
}

fn camvid() -> Tree {
    let tree = Tree::new();
    for stem in ["b", "a", "c"] {
        tree.image(&format!("images/{stem}.png"), (2, 3)).label(&format!("labels/{stem}.png"), 3, &[0, 1, 2, 10, 11, 255]);
    }
    tree.text("train.txt", "a\nc\n").text("val.txt", "# one\nb\n");
    tree
}

#[test]
fn every_shipped_description_is_sound() {
    let tree = Tree::new();
    let names = tree.search().names();
    assert_eq!(names, ["acdc", "bdd100k", "camvid", "cityscapes", "dark-zurich", "gta", "mapillary", "street", "synthia"]);
    for name in names {
        let dataset = tree.named(&name, ".");
        let classes = if name == "camvid" { 11 } else { 19 };
        assert_eq!((dataset.classes.len(), dataset.classes.palette.len()), (classes, classes), "{name}");
        assert!(dataset.has_labels() && dataset.splits.contains_key("train"), "{name}");
        if classes == 19 {
            assert_eq!(dataset.classes.thing_ids(), [6, 7, 11, 12, 13, 14, 15, 16, 17, 18], "{name}");
        }
    }
}

#[test]
fn official_trees_pair_images_with_labels() {
    let cases = [
        ("cityscapes", "leftImg8bit/train/ulm/ulm_000_leftImg8bit.png", "gtFine/train/ulm/ulm_000_gtFine_labelIds.png", "train"),
        ("gta", "images/00001.png", "labels/00001.png", "train"),
        ("synthia", "RGB/0000000.png", "GT/LABELS/0000000.png", "train"),
        ("acdc", "rgb_anon/fog/val/GP01/GP01_1_rgb_anon.png", "gt/fog/val/GP01/GP01_1_gt_labelTrainIds.png", "val"),
        ("acdc", "rgb_anon/night/val/GP01/GP01_1_rgb_anon.png", "gt/night/val/GP01/GP01_1_gt_labelTrainIds.png", "night"),
        ("acdc", "rgb_anon/train/GP01_1_rgb_anon.png", "gt/train/GP01_1_gt_labelTrainIds.png", "train"),
        ("dark-zurich", "rgb_anon/val/night/G/G_1_rgb_anon.png", "gt/val/night/G/G_1_gt_labelTrainIds.png", "val"),
        ("bdd100k", "images/10k/val/x.jpg", "labels/sem_seg/masks/val/x.png", "val"),
        ("mapillary", "validation/images/x.jpg", "validation/labels/x.png", "val"),
        ("camvid", "images/x.jpg", "labels/x.png", ""),
    ];
    for (name, image, label, split) in cases {
        let tree = Tree::new();
        tree.text(image, "").text("gt/other.png", "").text("images/10k/readme.md", "");
        let dataset = tree.named(name, ".");
        let samples = dataset.samples(Some(split).filter(|split| !split.is_empty())).unwrap();
        assert_eq!(samples.len(), 1, "{name}");
        let resized = ["acdc", "bdd100k", "mapillary"].contains(&name);
        assert_eq!(dataset.compare == Compare::Resized, resized, "{name}");
        assert_eq!((&samples[0].image, samples[0].label.as_ref()), (&tree.path(image), Some(&tree.path(label))), "{name}");
    }
}

#[test]
fn file_ids_become_train_ids() {
    let tree = Tree::new();
    tree.image("images/1.png", (1, 4)).label("labels/1.png", 4, &[7, 26, 0, 34]);
    let gta = tree.named("gta", ".");
    assert_eq!(gta.load(&gta.samples(None).unwrap()[0]).unwrap().label.unwrap().ids, [0, 13, 255, 255]);
    let tree = camvid();
    let dataset = tree.named("camvid", ".");
    assert_eq!(dataset.load_label(&dataset.samples(None).unwrap()[0]).unwrap().ids, [0, 1, 2, 10, 255, 255]);
}

#[test]
fn splits_are_lists_or_globs() {
    let tree = camvid();
    let dataset = tree.named("camvid", ".");
    assert_eq!(stems(&dataset, None), ["a", "b", "c"]);
    assert_eq!(stems(&dataset, Some("train")), ["a", "c"]);
    assert_eq!(stems(&dataset, Some("val")), ["b"]);
    assert_eq!(dataset.first_split(&["test", "val"]), Some("val"));
    tree.text("list.txt", "images/a.png\n\nb.png\n./images/c\n");
    let custom = tree
        .toml("extends = 'camvid'\nimages = 'images/*.png'\nsplits = {list = 'list.txt', glob = 'images/[bc].png', none = 'x*'}")
        .unwrap();
    assert_eq!(custom.root, tree.0.path());
    assert_eq!(stems(&custom, Some("list")), ["a", "b", "c"]);
    assert_eq!(stems(&custom, Some("glob")), ["b", "c"]);
    assert_message(custom.samples(Some("none")), &["1 without image, e.g. x*"]);
    assert_message(custom.samples(Some("lits")), &["`lits`", "did you mean `list`?"]);
    tree.text("list.txt", "a\nzz\nyy\n");
    assert_message(custom.samples(Some("list")), &["2 without image, e.g. zz, yy", "list.txt"]);
    let records = "[{'file_name': 'datasets/gta5/images/a.png', 'image_id': 1}, {'file_name': 'c.png'}]".replace('\'', "\"");
    tree.text("list.json", &records);
    let listed = tree.toml("extends = 'camvid'\nimages = 'images/*.png'\nsplits = {list = 'list.json'}").unwrap();
    assert_eq!(stems(&listed, Some("list")), ["a", "c"]);
    tree.text("list.json", &records.replace("images/a", "images/d"));
    assert_message(listed.samples(Some("list")), &["1 without image, e.g. datasets/gta5/images/d.png"]);
    tree.text("list.json", "{}");
    assert_message(listed.samples(Some("list")), &["a list of pictures in JSON", "list.json"]);
    tree.text("list.txt", "\n");
    assert_message(custom.samples(Some("list")), &["an empty list"]);
    std::fs::remove_file(tree.path("list.txt")).unwrap();
    assert_message(custom.samples(Some("list")), &["expected the list of split `list`, found no file", "list.txt"]);
    assert_eq!(custom.first_split(&["list"]), None);
}

#[test]
fn placeholders_follow_the_image() {
    let tree = Tree::new();
    tree.image("photos/in/x/1_rgb.png", (1, 1));
    let label = |pattern: &str| {
        let text = format!("root = 'photos'\nimages = 'in/**/*_rgb.png'\nlabels = '{pattern}'\nclasses = ['a']");
        tree.toml(&text).unwrap().samples(None).unwrap()[0].label.clone().unwrap()
    };
    assert_eq!(label("out/{dir}/{stem}.png"), tree.path("photos/out/x/1_rgb.png"));
    assert_eq!(label("out/{name}"), tree.path("photos/out/1_rgb.png"));
    assert_eq!(label("out/{dir}/{*}_ids.png"), tree.path("photos/out/x/1_ids.png"));
    assert_eq!(label("in/{dir}/../{stem}.png"), tree.path("photos/in/1_rgb.png"));
}

#[test]
fn descriptions_extend_and_override() {
    let tree = camvid();
    let own = "extends = 'camvid'\nimages = 'images/*.png'\nlabels = 'labels/{stem}.png'\n";
    let dataset = tree.toml(own).unwrap();
    assert_eq!((dataset.name.as_str(), dataset.classes.len(), dataset.ignore_index), ("set", 11, 11));
    let renamed =
        tree.toml(&format!("{own}classes = ['sky', 'rest']\nthings = ['rest']\n[id_map]\n0 = 0\n1 = 1\n2 = 1")).unwrap();
    assert_eq!(renamed.classes.things, [false, true]);
    assert_eq!(renamed.classes.palette.len(), 2);
    let sample = &renamed.samples(Some("val")).unwrap()[0];
    assert_eq!(renamed.load(sample).unwrap().label.unwrap().ids, [0, 1, 1, 255, 255, 255]);
    let unlabelled = tree.toml("images = 'images/*'").unwrap();
    assert!(!unlabelled.has_labels() && unlabelled.classes.is_empty());
    assert_message(unlabelled.load(&unlabelled.samples(None).unwrap()[0]), &["the unlabelled data set `set`"]);
}

#[test]
fn names_are_found_in_the_users_folder_first() {
    let tree = camvid();
    std::fs::create_dir_all(tree.path("datasets")).unwrap();
    assert_message(
        tree.open("camvid"),
        &["the root folder of data set `camvid`", "none (tried ", "camvid=FOLDER", "DATUM_DATASETS"],
    );
    tree.image("datasets/camvid/images/1.png", (1, 1));
    assert_eq!(tree.open("camvid").unwrap().root, tree.path("datasets/camvid"));
    tree.text("datasets/camvid.toml", "images = 'images/*.png'\nroot = '..'\nclasses = ['mine']");
    let mine = tree.open("camvid").unwrap();
    assert_eq!((mine.classes.names.as_slice(), mine.samples(None).unwrap().len()), (&["mine".to_string()][..], 3));
    tree.text("datasets/camvid.toml", "extends = 'camvid'\nroot = '..'");
    let mine = tree.open("camvid").unwrap();
    assert_eq!((mine.classes.len(), stems(&mine, Some("val"))), (11, vec!["b".to_string()]));
    tree.text("datasets/a.toml", "extends = 'b'").text("datasets/b.toml", "extends = 'a'");
    assert_message(tree.open("a"), &["found a circle"]);
}

#[test]
fn wrong_specifications_get_a_hint() {
    let tree = camvid();
    assert_message(tree.open("citiscapes"), &["an unknown name: citiscapes", "did you mean `cityscapes`?"]);
    assert_message(tree.open("camvit=/tmp"), &["did you mean `camvid`?"]);
    assert_message(
        tree.open("camvid=/no/such/folder"),
        &["the root folder of data set `camvid`, found no folder: /no/such/folder"],
    );
    assert_message(tree.open("/no/such/folder"), &["found nothing there"]);
    assert_message(tree.open(&tree.path("train.txt").display().to_string()), &["found a file"]);
    assert_message(tree.open("no/such.toml"), &["no/such.toml"]);
    let missing = Tree::new();
    std::fs::create_dir_all(missing.path("images")).unwrap();
    assert_message(missing.named("camvid", ".").samples(None), &["images that match `images/*.{jpg,jpeg,png}`, found none"]);
}

#[test]
fn wrong_descriptions_name_the_key() {
    let tree = camvid();
    let images = "images = 'images/*.png'\n";
    let cases = [
        ("iamges = 'x'", "the unknown key `iamges`"),
        ("iamges = 'x'", "did you mean `images`?"),
        ("classes = ['a']", "expected the key `images`, found none"),
        ("images = 3", "a wrong value in `images`: invalid type: integer `3`, expected a string"),
        ("images = 'a", "TOML parse error at line 1"),
        ("images = '[a'", "a glob"),
        ("extends = 'citys'\nimages = '*'", "`extends = \"citys\"`"),
        ("images = '*'\nclasses = ['a']\npalette = [[1, 2, 3], [4, 5, 6]]", "a `palette` of 1 colours, one per class, found 2"),
        ("images = '*'\nclasses = ['a']\npalette = [[1, 2, 300]]", "palette"),
        ("images = '*'\nclasses = ['car']\nthings = ['cra']", "`cra`, which is no class"),
        ("images = '*'\nclasses = ['a']\n[id_map]\n7 = 1", "train ids below 1"),
        ("images = '*'\nclasses = ['a']\n[id_map]\nx = 0", "file ids from 0 to 65535 in `id_map`, found `x`"),
    ];
    for (text, part) in cases {
        assert_message(tree.toml(text), &[part, "set.toml"]);
    }
    assert!(tree.toml(images).is_ok());
}

#[test]
fn wrong_labels_are_named_with_file_and_count() {
    let tree = camvid();
    let dataset = tree.named("camvid", ".");
    let samples = dataset.samples(None).unwrap();
    tree.label("labels/a.png", 3, &[0, 0, 77, 12, 12, 12]);
    assert_message(
        dataset.load(&samples[0]),
        &["ids 0 to 10 or 11", "id 12 (3 pixels), id 77 (1 pixel)", "labels/a.png", "id_map"],
    );
    tree.label("labels/b.png", 2, &[0, 0, 0, 0]);
    assert_message(
        dataset.load(&samples[1]),
        &["a label of 3x2 like its image (width x height), found 2x2", "labels/b.png", "images/b.png"],
    );
    std::fs::remove_file(tree.path("labels/c.png")).unwrap();
    assert_message(dataset.load(&samples[2]), &["expected the label of", "images/c.png, found no file", "labels/c.png"]);
    assert!(dataset.load_image(&samples[2]).is_ok(), "labels only matter when asked for");
}

/// Keeps warnings.
#[derive(Default)]
struct Warnings(std::sync::Mutex<Vec<String>>);

impl Progress for Warnings {
    fn stage(&self, _: &str, _: u64, _: u64) {}
    fn step(&self, _: u64, _: &str) {}
    fn end(&self) {}
    fn say(&self, _: &str) {}
    fn warn(&self, line: &str) {
        self.0.lock().unwrap().push(line.into());
    }
}

#[test]
fn a_plain_folder_is_unlabelled_and_broken_pictures_are_counted() {
    let tree = Tree::new();
    for index in 0..20 {
        tree.image(&format!("photos/{index:02}.png"), (2, 2));
    }
    tree.text("photos/07.png", "broken").text("photos/readme.txt", "");
    let folder = tree.open(&tree.path("photos").display().to_string()).unwrap();
    assert_eq!((folder.name.as_str(), folder.has_labels()), ("photos", false));
    assert_eq!(folder.samples(None).unwrap().len(), 20);
    let warnings = Warnings::default();
    assert_eq!(folder.readable_samples(None, &warnings).unwrap().len(), 19);
    let warnings = warnings.0.into_inner().unwrap();
    assert!(warnings.len() == 1 && warnings[0].starts_with("1 of 20 images can't be read") && warnings[0].contains("07.png"));
    // The source of a training: labels of another size, and broken ones.
    let tree = camvid();
    tree.label("labels/a.png", 2, &[0, 1, 2, 10]).text("labels/b.png", "broken");
    let warnings = Warnings::default();
    let samples = tree.named("camvid", ".").labelled_samples(None, &warnings).unwrap();
    assert_eq!(samples.iter().map(|sample| sample.stem.as_str()).collect::<Vec<_>>(), ["c"]);
    let warnings = warnings.0.into_inner().unwrap();
    assert!(warnings[0].starts_with("2 of 3 images can't be read") && warnings[0].contains("labels/a.png"), "{warnings:?}");
    let empty = Tree::new();
    assert_message(
        empty.open(&empty.path(".").display().to_string()).unwrap().samples(None),
        &["expected a folder with images (png, jpg, jpeg, webp), found none"],
    );
    let broken = Tree::new();
    broken.text("a.jpg", "broken");
    let broken = broken.open(&broken.path("").display().to_string()).unwrap().readable_samples(None, &Silent);
    assert_message(broken, &["1 of 1 images can't be read"]);
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/camvid.toml").is_file());
}

#[test]
fn a_check_counts_ids_and_proposes_a_mapping() {
    let tree = Tree::new();
    tree.image("images/a.png", (1, 4)).image("images/b.png", (1, 4)).image("images/c.png", (1, 4));
    let with = |classes: &str, ids: &[u8]| {
        tree.label("labels/a.png", 4, ids).label("labels/b.png", 4, ids);
        let dataset = tree.toml(&format!("images = 'images/*.png'\nlabels = 'labels/{{stem}}.png'\nclasses = [{classes}]"));
        check(&dataset.unwrap(), None, &Silent).unwrap()
    };
    let fine = with("'a', 'b', 'c'", &[0, 1, 1, 255]);
    assert_eq!((fine.images, fine.labels, fine.class_pixels.as_slice(), fine.ignored_pixels), (3, 2, &[2, 4, 0][..], 2));
    assert_eq!((fine.problems.len(), fine.advice), (1, None), "the label of c.png is missing");
    assert!(fine.problems[0].to_string().contains("labels/c.png"));
    let masks = with("'a', 'b'", &[0, 255, 255, 0]);
    assert!(masks.advice.unwrap().contains("0 = 0\n255 = 1"));
    let shifted = with("'a', 'b', 'c'", &[1, 2, 3, 255]);
    assert!(shifted.advice.unwrap().ends_with("1 = 0\n2 = 1\n3 = 2"));
    let strange = with("'a', 'b'", &[0, 40, 40, 40]);
    assert!(strange.advice.unwrap().contains("id 0 (2 pixels), id 40 (6 pixels)"));
    assert!(strange.problems.iter().any(|problem| problem.to_string().contains("id 40 (3 pixels)")));
}
