//! Transforms: image and label stay aligned, draws are reproducible, sizes follow the reference.

use candle_core::{Device, Tensor};
use datum::base::Rng;
use datum::data::transforms::{keep_ratio_size, photometric_distortion};
use datum::data::{Batch, Example, Normalize, Pipeline};
use datum::io::images::RgbImage;
use datum::labels::LabelMap;
use proptest::prelude::*;

/// Cells of `cell` pixels, each of one class whose colour is (10 · class, class, 255 − class).
fn grid(height: usize, width: usize, cell: usize) -> Example {
    let ids: Vec<u8> = (0..height * width).map(|i| ((i / width / cell * 5 + i % width / cell) % 19) as u8).collect();
    let pixels = ids.iter().flat_map(|&id| [id * 10, id, 255 - id]).collect();
    Example { image: RgbImage { height, width, pixels }, label: Some(LabelMap { height, width, ids }) }
}

fn pipeline(crop: (usize, usize)) -> Pipeline {
    Pipeline {
        resize: None,
        crop: Some(crop),
        cat_max_ratio: Some(0.75),
        flip: true,
        photometric: false,
        normalize: Normalize::IMAGENET,
    }
}

fn assert_aligned(example: &Example) {
    let label = example.label.as_ref().unwrap();
    assert_eq!((label.height, label.width), example.size());
    for (pixel, &id) in example.image.pixels.chunks(3).zip(&label.ids) {
        assert_eq!(pixel, [id * 10, id, 255 - id]);
    }
}

proptest! {
    #[test]
    fn crops_and_flips_keep_image_and_label_aligned(
        height in 1usize..40, width in 1usize..40, cell in 1usize..9, crop in (1usize..45, 1usize..45), seed in 0u64..1000
    ) {
        let pipeline = pipeline(crop);
        let example = grid(height, width, cell);
        let augmented = pipeline.augment(&example, &mut Rng::stream(seed, "crop", &[]));
        assert_aligned(&augmented);
        prop_assert_eq!(augmented.size(), (height.min(crop.0), width.min(crop.1)));
        prop_assert_eq!(&augmented, &pipeline.augment(&example, &mut Rng::stream(seed, "crop", &[])));
        let item = pipeline.finish(&augmented, &Device::Cpu).unwrap();
        prop_assert_eq!(item.image.dims(), &[3, crop.0, crop.1]);
        let padding = item.label.unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap().into_iter().filter(|&id| id == 255).count();
        prop_assert_eq!(padding, crop.0 * crop.1 - augmented.image.height * augmented.image.width);
    }

    #[test]
    fn resizing_keeps_the_inside_of_cells(factor in 2usize..5, cell in 2usize..6) {
        // Away from cell borders bilinear and nearest see one class only.
        let example = grid(cell * 4, cell * 5, cell);
        let resized = example.resize((cell * 4 * factor, cell * 5 * factor));
        let label = resized.label.as_ref().unwrap();
        for y in 0..label.height {
            for x in 0..label.width {
                let border = |at: usize| { let inside = at % (cell * factor); inside < factor || inside >= (cell - 1) * factor };
                if !border(y) && !border(x) {
                    let (id, at) = (label.ids[y * label.width + x], (y * label.width + x) * 3);
                    prop_assert_eq!(&resized.image.pixels[at..at + 3], &[id * 10, id, 255 - id]);
                }
            }
        }
    }
}

/// Sizes that the reference pipeline produces.
#[test]
fn keep_ratio_sizes_equal_the_reference() {
    let cases = [
        ((1052, 1914), (720, 1280), (704, 1280)),
        ((1046, 1914), (720, 1280), (700, 1280)),
        ((1052, 1914), (1440, 2560), (1407, 2560)),
        ((1046, 1914), (1440, 2560), (1399, 2560)),
        ((760, 1280), (760, 1280), (760, 1280)),
        ((512, 512), (1024, 2048), (1024, 1024)),
        ((1024, 2048), (512, 1024), (512, 1024)),
        ((1080, 1920), (540, 960), (540, 960)),
        ((2048, 1024), (512, 1024), (1024, 512)),
    ];
    for (from, frame, expected) in cases {
        assert_eq!(keep_ratio_size(from, frame), expected, "{from:?} into {frame:?}");
    }
}

#[test]
fn crops_dominated_by_one_class_are_drawn_again() {
    // One narrow stripe of class 1 in class 0: a uniform crop shows it in about a third of the draws.
    let (height, width) = (8, 64);
    let ids: Vec<u8> = (0..height * width).map(|i| u8::from((28..36).contains(&(i % width)))).collect();
    let image = RgbImage { height, width, pixels: vec![0; height * width * 3] };
    let example = Example { image, label: Some(LabelMap { height, width, ids }) };
    let share = |cat_max_ratio: Option<f32>| {
        let pipeline = Pipeline { cat_max_ratio, ..pipeline((8, 16)) };
        let mixed = |seed: &u64| {
            let crop = pipeline.augment(&example, &mut Rng::stream(*seed, "crop", &[]));
            let ones = crop.label.unwrap().ids.iter().filter(|&&id| id == 1).count();
            4 * ones > 128
        };
        (0..400).filter(mixed).count()
    };
    let (free, limited) = (share(None), share(Some(0.75)));
    assert!((80..180).contains(&free) && limited > 370, "{free} and {limited} of 400");
}

#[test]
fn offsets_reach_every_position_and_flips_are_even() {
    let example = grid(6, 7, 1);
    let (mut seen, mut flipped) = (std::collections::BTreeSet::new(), 0);
    let pipeline = Pipeline { cat_max_ratio: None, ..pipeline((4, 4)) };
    for seed in 0..600 {
        let mut rng = Rng::stream(seed, "crop", &[]);
        let crop = pipeline.augment(&example, &mut rng);
        let position = (0..3).flat_map(|top| (0..4).map(move |left| (top, left))).find_map(|at| {
            let plain = example.crop(at, (4, 4));
            let mirrored = plain == crop.clone().flip();
            (mirrored || plain == crop).then_some((at, mirrored))
        });
        let (at, mirrored) = position.unwrap();
        seen.insert(at);
        flipped += usize::from(mirrored);
    }
    assert_eq!(seen.len(), 12);
    assert!((250..350).contains(&flipped), "{flipped} of 600 flipped");
}

#[test]
fn normalisation_and_padding_have_their_values() {
    let image = RgbImage { height: 1, width: 2, pixels: vec![0, 128, 255, 124, 116, 104] };
    let padded = Normalize::IMAGENET.apply(&image, (2, 3), &Device::Cpu).unwrap();
    let values: Vec<f32> = padded.flatten_all().unwrap().to_vec1().unwrap();
    let expected = [
        [-2.117904, 0.005566, 0.0, 0.0, 0.0, 0.0],
        [0.205182, -0.004902, 0.0, 0.0, 0.0, 0.0],
        [2.64, 0.008192, 0.0, 0.0, 0.0, 0.0],
    ];
    for (value, expected) in values.iter().zip(expected.iter().flatten()) {
        assert!((value - expected).abs() < 1e-5, "{values:?}");
    }
    let symmetric = Normalize::SYMMETRIC.apply(&image, (1, 2), &Device::Cpu).unwrap();
    assert_eq!(symmetric.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0], -1.0);
    assert_eq!(Normalize::SYMMETRIC.invert(&symmetric).unwrap(), image);
}

#[test]
fn batches_stack_and_need_no_labels() {
    let with = pipeline((4, 4)).apply(&grid(6, 6, 2), &mut Rng::stream(0, "", &[]), &Device::Cpu).unwrap();
    let mut without = with.clone();
    without.label = None;
    let batch = Batch::stack(&[with.clone(), with.clone()]).unwrap();
    assert_eq!(batch.images.dims(), [2, 3, 4, 4]);
    let labels: Tensor = batch.labels.unwrap();
    assert_eq!((labels.dims(), labels.dtype()), (&[2, 4, 4][..], candle_core::DType::U32));
    assert!(Batch::stack(&[with, without]).unwrap().labels.is_none());
    assert!(Batch::stack(&[]).is_err());
}

#[test]
fn distortion_is_reproducible_bounded_and_sometimes_nothing() {
    let original = grid(4, 5, 1).image;
    let distort = |seed: u64| {
        let mut image = original.clone();
        photometric_distortion(&mut image, &mut Rng::stream(seed, "distortion", &[]));
        image
    };
    assert_eq!(distort(3), distort(3));
    let untouched = (0..400).filter(|&seed| distort(seed) == original).count();
    // All four switches off: one in sixteen (rarely, a drawn change is too small to see).
    assert!((10..50).contains(&untouched), "{untouched} of 400");
    let gray = RgbImage { height: 1, width: 1, pixels: vec![77; 3] };
    for seed in 0..50 {
        let mut image = gray.clone();
        photometric_distortion(&mut image, &mut Rng::stream(seed, "distortion", &[]));
        assert!(image.pixels.iter().all(|&v| v == image.pixels[0]), "gray has no hue to shift: {:?}", image.pixels);
    }
}
