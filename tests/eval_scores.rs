//! Scores: reference values, brute force, tables, and evaluation of a network and of prediction folders on small trees.

use candle_core::{Device, Tensor};
use datum::base::progress::Silent;
use datum::data::{Dataset, Normalize, Search};
use datum::eval::{ConfusionMatrix, Evaluator, Format, Inference, Resize, Scores, score_predictions, table, write_prediction};
use datum::io::images::{self, RgbImage};
use datum::labels::{IdMap, LabelMap};
use proptest::prelude::*;
use std::path::Path;

fn map(width: usize, ids: &[u8]) -> LabelMap {
    LabelMap { height: ids.len() / width, width, ids: ids.to_vec() }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|id| format!("class {id}")).collect()
}

fn score(prediction: &LabelMap, label: &LabelMap, classes: usize) -> Scores {
    let mut matrix = ConfusionMatrix::new(classes);
    matrix.add(prediction, label).unwrap();
    Scores::new(&matrix, &names(classes), 1)
}

/// Computed by mmsegmentation 0.16 on CPU.
#[test]
fn scores_equal_the_reference() {
    let scores = score(&map(4, &[0, 0, 1, 1, 2, 2, 1, 0]), &map(4, &[0, 0, 1, 2, 2, 255, 1, 1]), 4);
    let ious: Vec<Option<f64>> = scores.classes.iter().map(|class| class.iou).collect();
    assert_eq!(ious, [Some(2.0 / 3.0), Some(0.5), Some(0.5), None]);
    assert!((scores.aacc.unwrap() - 0.714286).abs() < 1e-6);
    assert!((scores.miou.unwrap() - (2.0 / 3.0 + 1.0) / 3.0).abs() < 1e-12);
    let accs: Vec<Option<f64>> = scores.classes.iter().map(|class| class.acc).collect();
    assert_eq!(accs, [Some(1.0), Some(2.0 / 3.0), Some(0.5), None]);
}

#[test]
fn absent_classes_never_become_nan() {
    let scores = score(&map(2, &[0, 1]), &map(2, &[255, 255]), 3);
    let json = serde_json::to_string(&scores).unwrap();
    let class = |id: usize| format!(r#"{{"name":"class {id}","iou":null,"acc":null}}"#);
    let classes = [class(0), class(1), class(2)].join(",");
    assert_eq!(json, format!(r#"{{"mIoU":null,"mAcc":null,"aAcc":null,"classes":[{classes}],"images":1}}"#));
    let printed = table(&scores, true);
    assert!(printed.is_ascii() && printed.contains("| class 0 |   - |   - |"), "{printed}");
    assert!(printed.ends_with("mIoU -  mAcc -  aAcc -  over 1 image"), "{printed}");
    assert!(table(&scores, false).contains('–'));
}

#[test]
fn tables_show_percent_with_two_decimals() {
    let printed = table(&score(&map(4, &[0, 0, 1, 1]), &map(4, &[0, 1, 1, 1]), 2), true);
    assert!(printed.contains("| class 1 | 66.67 |  66.67 |"), "{printed}");
    assert!(printed.contains("mIoU 58.33  mAcc 83.33  aAcc 75.00"), "{printed}");
}

#[test]
fn synthia_benchmarks_leave_out_classes_by_name() {
    let search = Search { folders: Vec::new() };
    let classes = Dataset::open("cityscapes=.", &search).unwrap().classes;
    let mut matrix = ConfusionMatrix::new(19);
    let label = map(19, &(0..19).collect::<Vec<u8>>());
    // Right everywhere but terrain, truck, train (as road) and wall (as fence).
    let wrong = |id: u8| {
        if [9, 14, 16].contains(&id) {
            0
        } else if id == 3 {
            4
        } else {
            id
        }
    };
    matrix.add(&map(19, &label.ids.iter().map(|&id| wrong(id)).collect::<Vec<_>>()), &label).unwrap();
    let scores = Scores::new(&matrix, &classes.names, 1);
    let (road, fence) = (0.25, 0.5);
    assert!((scores.miou.unwrap() - (13.0 + road + fence) / 19.0).abs() < 1e-12);
    // As long as the three classes score 0, the rule of thumb mIoU · 19/16 agrees.
    assert!((scores.miou16.unwrap() - scores.miou.unwrap() * 19.0 / 16.0).abs() < 1e-12);
    assert!((scores.miou13.unwrap() - (12.0 + road) / 13.0).abs() < 1e-12);
    assert!(table(&scores, true).contains("mIoU (16 classes)"));
}

proptest! {
    #[test]
    fn the_matrix_agrees_with_counting_sets(pixels in prop::collection::vec((0u8..6, 0u8..7), 1..200)) {
        let prediction = map(pixels.len(), &pixels.iter().map(|p| p.0).collect::<Vec<_>>());
        // Label 6 stands for ignored; prediction 5 is no class.
        let label = map(pixels.len(), &pixels.iter().map(|p| if p.1 == 6 { 255 } else { p.1 }).collect::<Vec<_>>());
        let scores = score(&prediction, &label, 5);
        let counted: Vec<(u8, u8)> = pixels.iter().copied().filter(|p| p.1 < 5).collect();
        let ratio = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
        for (id, class) in scores.classes.iter().enumerate() {
            let id = id as u8;
            let both = counted.iter().filter(|p| p.0 == id && p.1 == id).count();
            let either = counted.iter().filter(|p| p.0 == id || p.1 == id).count();
            prop_assert_eq!(class.iou, ratio(both, either));
            prop_assert_eq!(class.acc, ratio(both, counted.iter().filter(|p| p.1 == id).count()));
        }
        prop_assert_eq!(scores.aacc, ratio(counted.iter().filter(|p| p.0 == p.1).count(), counted.len()));
    }
}

/// A network that reads the class from the red channel: red 0, 100, 200 → class 0, 1, 2 (logits at half size).
fn red_network(images: &Tensor) -> candle_core::Result<Tensor> {
    let red = images.narrow(1, 0, 1)?.avg_pool2d(2)?;
    let logits = [0.0, 100.0, 200.0].map(|level| red.affine(1.0, -level).and_then(|d| d.abs()).and_then(|d| d.neg()));
    Tensor::cat(&logits.into_iter().collect::<candle_core::Result<Vec<_>>>()?, 1)
}

const PLAIN: Normalize = Normalize { mean: [0.0; 3], std: [1.0; 3] };

fn tree() -> (tempfile::TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    for (index, classes) in [[0u8, 1], [1, 2], [2, 2]].into_iter().enumerate() {
        let halves = |values: [u8; 2]| -> Vec<u8> { (0..8 * 12).map(|i| values[i % 12 / 6]).collect() };
        let pixels = halves(classes.map(|c| c * 100)).into_iter().flat_map(|red| [red, 0, 0]).collect();
        let image = RgbImage { height: 8, width: 12, pixels };
        images::write_png(&dir.path().join(format!("images/{index}.png")), &image, &[]).unwrap();
        let ids = halves(classes.map(|c| c * 10 + 5));
        images::write_gray_png(&dir.path().join(format!("labels/{index}.png")), (8, 12), &ids, &[]).unwrap();
    }
    let toml =
        "images = 'images/*.png'\nlabels = 'labels/{stem}.png'\nclasses = ['a', 'b', 'c']\n[id_map]\n5 = 0\n15 = 1\n25 = 2";
    std::fs::write(dir.path().join("set.toml"), toml).unwrap();
    let dataset = Dataset::open(&dir.path().join("set.toml").display().to_string(), &Search { folders: Vec::new() }).unwrap();
    (dir, dataset)
}

fn evaluator(inference: Inference) -> Evaluator {
    Evaluator { resize: None, inference, normalize: PLAIN, device: Device::Cpu }
}

#[test]
fn a_right_network_scores_one_in_every_mode() {
    let (_dir, dataset) = tree();
    let slide = Inference::Slide { window: (6, 6), stride: (2, 6) };
    let larger = Evaluator { resize: Some(Resize::Frame((24, 16))), ..evaluator(Inference::Whole) };
    for evaluator in [evaluator(Inference::Whole), evaluator(slide), larger] {
        let mut seen = Vec::new();
        let each = |sample: &datum::data::Sample, _: &RgbImage, prediction: &LabelMap| {
            seen.push((sample.stem.clone(), prediction.height, prediction.width));
            Ok(())
        };
        let evaluation = evaluator.evaluate(&dataset, None, &red_network, &Silent, each).unwrap();
        assert_eq!((evaluation.scores.miou, evaluation.scores.images), (Some(1.0), 3));
        assert_eq!(seen, [("0".to_string(), 8, 12), ("1".into(), 8, 12), ("2".into(), 8, 12)]);
    }
}

/// Scores at the size that the network is shown, without classes that no label has: detectron2's way, for data sets that ask for it
/// and segmenters that are shown a short side.
#[test]
fn data_sets_may_be_compared_at_the_size_that_is_shown() {
    let (dir, dataset) = tree();
    // One pixel of the first label is of a class that is nowhere else.
    let label = images::read_label(&dir.path().join("labels/0.png")).unwrap();
    let mut ids: Vec<u8> = label.pixels.iter().map(|id| *id as u8).collect();
    ids[0] = 25;
    images::write_gray_png(&dir.path().join("labels/0.png"), (8, 12), &ids, &[]).unwrap();
    for index in [1, 2] {
        std::fs::remove_file(dir.path().join(format!("images/{index}.png"))).unwrap();
    }
    let evaluator = |side: usize| Evaluator { resize: Some(Resize::ShortSide(side)), ..evaluator(Inference::Whole) };
    let scored = |dataset: &Dataset, evaluator: &Evaluator| {
        let each = |_: &datum::data::Sample, _: &RgbImage, prediction: &LabelMap| {
            assert_eq!((prediction.height, prediction.width), (8, 12), "what is written has the picture's size");
            Ok(())
        };
        evaluator.evaluate(dataset, None, &red_network, &Silent, each).unwrap()
    };
    let counts = |evaluation: &datum::eval::Evaluation| -> Vec<u64> { (0..3).map(|id| evaluation.matrix.labelled(id)).collect() };
    assert_eq!(counts(&scored(&dataset, &evaluator(4))), [47, 48, 1]);
    let mut dataset = dataset;
    dataset.compare = datum::data::Compare::Resized;
    // 4 of 8 rows and 6 of 12 columns: the lone pixel is behind none of them.
    let evaluation = scored(&dataset, &evaluator(4));
    assert_eq!(counts(&evaluation), [12, 12, 0]);
    assert_eq!(evaluation.scores.classes[2].iou, None);
    // Other segmenters are compared at the picture's size.
    let framed = Evaluator { resize: Some(Resize::Frame((4, 6))), ..evaluator(4) };
    assert_eq!(counts(&scored(&dataset, &framed)), [47, 48, 1]);
}

#[test]
fn classes_without_labels_count_only_where_that_is_the_rule() {
    let mut matrix = ConfusionMatrix::new(3);
    matrix.add(&map(4, &[0, 1, 2, 0]), &map(4, &[0, 1, 1, 255])).unwrap();
    let iou = |scores: &Scores| scores.classes.iter().map(|class| class.iou).collect::<Vec<_>>();
    assert_eq!(iou(&Scores::new(&matrix, &names(3), 1)), [Some(1.0), Some(0.5), Some(0.0)]);
    let labelled = Scores::of_labelled(&matrix, &names(3), 1);
    assert_eq!((labelled.miou, iou(&labelled)), (Some(0.75), vec![Some(1.0), Some(0.5), None]));
}

#[test]
fn broken_pictures_are_counted_broken_labels_are_errors() {
    let (dir, dataset) = tree();
    std::fs::write(dir.path().join("images/1.png"), "broken").unwrap();
    let run = || evaluator(Inference::Whole).evaluate(&dataset, None, &red_network, &Silent, |_, _, _| Ok(()));
    let evaluation = run().unwrap();
    assert_eq!((evaluation.scores.images, evaluation.unreadable), (2, 1));
    std::fs::remove_file(dir.path().join("labels/2.png")).unwrap();
    assert!(run().unwrap_err().to_string().contains("labels/2.png"));
    for index in [0, 2] {
        std::fs::write(dir.path().join(format!("images/{index}.png")), "broken").unwrap();
    }
    assert!(run().unwrap_err().to_string().contains("3 of 3 images can't be read"));
}

#[test]
fn written_predictions_score_like_the_network_in_both_id_spaces() {
    let (dir, dataset) = tree();
    for format in [Format::TrainIds, Format::LabelIds] {
        let folder = dir.path().join(format!("{format:?}"));
        let each = |sample: &datum::data::Sample, image: &RgbImage, prediction: &LabelMap| {
            let path = folder.join(format!("{}.png", sample.stem));
            write_prediction(&path, image, prediction, &dataset.classes, &dataset.id_map, format)
        };
        let expected = evaluator(Inference::Whole).evaluate(&dataset, None, &red_network, &Silent, each).unwrap();
        let found = score_predictions(&dataset, None, &folder, &Silent).unwrap();
        assert_eq!((found.scores, found.matrix), (expected.scores, expected.matrix), "{format:?}");
    }
    let color = dir.path().join("color.png");
    let image = RgbImage { height: 1, width: 1, pixels: vec![0; 3] };
    let format = Format::Color { opacity: 1.0 };
    write_prediction(&color, &image, &map(1, &[1]), &dataset.classes, &dataset.id_map, format).unwrap();
    assert_eq!(images::read_rgb(&color).unwrap().pixels, dataset.classes.palette[1]);
}

#[test]
fn wrong_predictions_are_named() {
    let (dir, dataset) = tree();
    let folder = dir.path().join("predictions");
    let write = |name: &str, size: (usize, usize), ids: &[u8]| {
        images::write_gray_png(&folder.join(name), size, ids, &[]).unwrap();
    };
    let message = |folder: &Path| score_predictions(&dataset, None, folder, &Silent).unwrap_err().to_string();
    assert!(message(&folder).contains("predictions"));
    write("0.png", (8, 12), &[0; 96]);
    assert!(message(&folder).contains("none for 2 of 3, e.g. 1.png"), "{}", message(&folder));
    write("1.png", (8, 12), &[0; 96]);
    write("2.png", (4, 12), &[0; 48]);
    assert!(
        message(&folder).contains("a prediction of 12x8 like its label (width x height), found 12x4"),
        "{}",
        message(&folder)
    );
    write("2.png", (8, 12), &[99; 96]);
    assert!(
        message(&folder).contains("train ids below 3 or label ids up to 25, found id 99 (96 pixels)"),
        "{}",
        message(&folder)
    );
}

#[test]
fn label_ids_of_cityscapes_invert_the_map() {
    let dataset = Dataset::open("cityscapes=.", &Search { folders: Vec::new() }).unwrap();
    let IdMap::Table(table) = &dataset.id_map else { panic!("a table") };
    let all = map(19, &(0..19).collect::<Vec<u8>>());
    let written: Vec<u16> = dataset.id_map.to_label_ids(&all, 0).into_iter().map(u16::from).collect();
    assert_eq!(written, table.keys().copied().collect::<Vec<_>>());
    assert_eq!(dataset.id_map.apply(1, 19, &written).unwrap(), all);
}

/// Two pictures of the same name in different folders, classes 0 and 1.
fn twins() -> (tempfile::TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    for (folder, id) in [("one", 0), ("two", 1)] {
        let image = RgbImage { height: 2, width: 3, pixels: vec![0; 18] };
        images::write_png(&dir.path().join(format!("images/{folder}/a.png")), &image, &[]).unwrap();
        images::write_gray_png(&dir.path().join(format!("labels/{folder}/a.png")), (2, 3), &[id; 6], &[]).unwrap();
    }
    let toml = "images = 'images/*/*.png'\nlabels = 'labels/{dir}/{stem}.png'\nclasses = ['a', 'b']";
    std::fs::write(dir.path().join("set.toml"), toml).unwrap();
    let dataset = Dataset::open(&dir.path().join("set.toml").display().to_string(), &Search { folders: Vec::new() }).unwrap();
    (dir, dataset)
}

#[test]
fn predictions_of_one_name_belong_to_the_picture_in_the_same_folders() {
    let (dir, dataset) = twins();
    let write = |name: &str, id: u8| images::write_gray_png(&dir.path().join(name), (2, 3), &[id; 6], &[]).unwrap();
    let miou = |folder: &str| score_predictions(&dataset, None, &dir.path().join(folder), &Silent).unwrap().scores.miou;
    // As `predict` writes them for `images` and for the root, and as the labels lie.
    for (below, root) in [("", "p"), ("images/", "q"), ("labels/", "r")] {
        write(&format!("{root}/{below}one/a.png"), 0);
        write(&format!("{root}/{below}two/a.png"), 1);
        assert_eq!(miou(root), Some(1.0), "{root}");
    }
    // The nearer file counts, not the one that comes last.
    write("p/zzz/one/a.png", 1);
    write("p/zzz/a.png", 1);
    assert_eq!(miou("p"), Some(1.0));
}

#[test]
fn ambiguous_predictions_are_errors() {
    let (dir, twins) = twins();
    let write = |name: &str, size: (usize, usize)| {
        images::write_gray_png(&dir.path().join(name), size, &vec![0; size.0 * size.1], &[]).unwrap();
    };
    let message = |dataset: &Dataset, folder: &str| {
        let error = score_predictions(dataset, None, &dir.path().join(folder), &Silent).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    };
    write("flat/a.png", (2, 3));
    let flat = message(&twins, "flat");
    assert!(flat.contains("found one for both") && flat.contains("images/one/a.png and "), "{flat}");
    write("part/one/a.png", (2, 3));
    assert!(message(&twins, "part").contains("found one for both"), "the other picture has no prediction");
    // A name of its own is enough, wherever the file lies, but not two files of it.
    let (_dir, dataset) = tree();
    for name in ["far/away/0.png", "1.png", "2.png"] {
        write(&format!("ids/{name}"), (8, 12));
    }
    assert!(score_predictions(&dataset, None, &dir.path().join("ids"), &Silent).is_ok());
    write("ids/further/0.png", (8, 12));
    let two = message(&dataset, "ids");
    assert!(two.contains("far/away/0.png and ") && two.contains("further/0.png"), "{two}");
}
