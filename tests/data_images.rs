//! Picture and label files: every encoding, every kind of damage, resizing like the reference tools.
//! Golden files: `tests/golden/images.py`.

use datum::data::resize;
use datum::io::images::{self, GrayImage, RgbImage};
use datum::labels::LabelMap;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Largest difference of two pictures, and how many values differ.
fn difference(a: &RgbImage, b: &RgbImage) -> (u8, usize) {
    assert_eq!((a.height, a.width), (b.height, b.width));
    let differences: Vec<u8> = a.pixels.iter().zip(&b.pixels).map(|(&a, &b)| a.abs_diff(b)).collect();
    (differences.iter().copied().max().unwrap(), differences.iter().filter(|&&d| d > 0).count())
}

fn gradient(height: usize, width: usize) -> RgbImage {
    RgbImage { height, width, pixels: (0..height * width * 3).map(|i| (i * 7 % 256) as u8).collect() }
}

#[test]
fn every_encoding_decodes_like_pillow() {
    // Lossless files are equal; JPEG decoders may differ by the rounding of their transform and by how they widen subsampled
    // colours.
    let files = [
        ("baseline.jpg", 2),
        ("subsampled.jpg", 2),
        ("progressive.jpg", 2),
        ("gray.jpg", 1),
        ("cmyk.jpg", 1),
        ("rotated.jpg", 2),
        ("lossless.webp", 0),
        ("lossy.webp", 0),
        ("alpha.png", 0),
        ("gray.png", 0),
        ("palette.png", 0),
    ];
    for (name, tolerance) in files {
        let found = images::read_rgb(&golden("images").join(name)).unwrap();
        let expected = images::read_rgb(&golden("images").join(format!("{name}.expected.png"))).unwrap();
        let (largest, count) = difference(&found, &expected);
        println!("{name}: largest difference {largest}, {count} of {} values", found.pixels.len());
        assert!(largest <= tolerance, "{name}: {largest}");
    }
}

#[test]
fn sixteen_bits_keep_their_upper_half_in_pictures_and_everything_in_labels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep.png");
    let label = GrayImage { height: 2, width: 2, pixels: vec![0, 255, 256, 65535] };
    images::write_gray16_png(&path, &label, &[]).unwrap();
    assert_eq!(images::read_label(&path).unwrap(), label);
    assert_eq!(images::read_rgb(&path).unwrap().pixels, [0, 0, 0, 0, 0, 0, 1, 1, 1, 255, 255, 255]);
}

#[test]
fn labels_keep_palette_indices_gray_values_and_the_red_channel() {
    let dir = tempfile::tempdir().unwrap();
    let palette = dir.path().join("palette.png");
    images::write_palette_png(&palette, (1, 3), &[0, 7, 33], &[[9, 9, 9]; 34], &[]).unwrap();
    assert_eq!(images::read_label(&palette).unwrap().pixels, [0, 7, 33]);
    let gray = dir.path().join("gray.png");
    images::write_gray_png(&gray, (3, 1), &[0, 7, 255], &[]).unwrap();
    assert_eq!(images::read_label(&gray).unwrap(), GrayImage { height: 3, width: 1, pixels: vec![0, 7, 255] });
    // Indices of 4 bits, odd width.
    let small = images::read_label(&golden("images/palette.png")).unwrap();
    let shown = images::read_rgb(&golden("images/palette.png")).unwrap();
    assert_eq!((small.height, small.width), (37, 50));
    let colors: std::collections::BTreeSet<_> =
        small.pixels.iter().zip(shown.pixels.chunks(3)).map(|(id, color)| (*id, color.to_vec())).collect();
    assert!(colors.len() <= 16 && colors.iter().all(|(id, _)| *id < 16), "one colour per index");
    // The layout of SYNTHIA: class in red, instance in green.
    let synthia = dir.path().join("synthia.png");
    let bytes: Vec<u8> = [3u16, 700, 0, 12, 1, 0].iter().flat_map(|v| v.to_be_bytes()).collect();
    let file = std::fs::File::create(&synthia).unwrap();
    let mut encoder = png::Encoder::new(file, 2, 1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.write_header().unwrap().write_image_data(&bytes).unwrap();
    assert_eq!(images::read_label(&synthia).unwrap().pixels, [3, 12]);
}

#[test]
fn text_chunks_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.png");
    let text = vec![("prompt".to_string(), "a street".to_string()), ("place".to_string(), "Zürich → 夜".to_string())];
    let image = gradient(3, 5);
    images::write_png(&path, &image, &text).unwrap();
    assert_eq!(images::read_rgb(&path).unwrap(), image);
    assert_eq!(images::read_png_text(&path).unwrap(), text);
}

#[test]
fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let png = std::fs::read(golden("images/alpha.png")).unwrap();
    let jpeg = std::fs::read(golden("images/baseline.jpg")).unwrap();
    let progressive = std::fs::read(golden("images/progressive.jpg")).unwrap();
    let webp = std::fs::read(golden("images/lossless.webp")).unwrap();
    let mut flipped = png.clone();
    flipped[600] ^= 0xff;
    let mut bomb = png.clone();
    bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let crc = png_crc(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let cases = [
        (dir.path().join("missing.png"), "check the path"),
        (write("empty.png", b""), "an empty file"),
        (write("text.png", b"not a picture at all"), "can't be decoded"),
        (write("cut.png", &png[..png.len() / 2]), "can't be decoded"),
        (write("cut.jpg", &jpeg[..jpeg.len() * 3 / 4]), "the end of the file is missing"),
        (write("cut-progressive.jpg", &progressive[..progressive.len() * 3 / 4]), "the end of the file is missing"),
        (write("cut.webp", &webp[..webp.len() / 2]), "can't be decoded"),
        (write("flipped.png", &flipped), "can't be decoded"),
        (write("bomb.png", &bomb), "65535x65535"),
        (dir.path().to_path_buf(), "a folder"),
    ];
    for (path, expected) in cases {
        let error = images::read_rgb(&path).unwrap_err();
        let message = error.to_string();
        println!("{message}\n");
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(&path.display().to_string()) && message.contains("next: "), "{message}");
        assert_eq!(error.exit_code(), 3, "{message}");
    }
    let color = images::read_label(&golden("images/alpha.png")).unwrap_err().to_string();
    assert!(color.contains("a colour picture"), "{color}");
    let lossy = images::read_label(&golden("images/gray.jpg")).unwrap_err().to_string();
    assert!(lossy.contains("save label maps as PNG"), "{lossy}");
}

/// CRC-32 as PNG chunks have it.
fn png_crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn one_pixel_is_readable_and_refused_where_more_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.png");
    images::write_png(&path, &gradient(1, 1), &[]).unwrap();
    let image = images::read_rgb(&path).unwrap();
    image.at_least((1, 1), "anything", &path).unwrap();
    let message = image.at_least((512, 256), "crops", &path).unwrap_err().to_string();
    assert!(
        message.starts_with("expected an image of at least 256x512 pixels (width x height) for crops, found 1x1"),
        "{message}"
    );
}

#[test]
fn a_scan_is_sorted_recursive_and_counts_damage() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["b/2.png", "b/10.png", "a.PNG", ".hidden/x.png", "._a.png"] {
        images::write_png(&at(name), &gradient(2, 2), &[]).unwrap();
    }
    std::fs::write(at("notes.txt"), "no picture").unwrap();
    std::fs::write(at("b/broken.jpg"), "no picture either").unwrap();
    let jpeg = std::fs::read(golden("images/baseline.jpg")).unwrap();
    std::fs::write(at("b/cut.jpg"), &jpeg[..jpeg.len() - 20]).unwrap();
    let found = images::scan(dir.path()).unwrap();
    assert_eq!(found.images, [at("a.PNG"), at("b/10.png"), at("b/2.png")]);
    let line = images::unreadable_line(&found.unreadable, 5).unwrap();
    assert!(
        line.starts_with("2 of 5 images can't be read and are left out; the first: ") && line.contains("broken.jpg"),
        "{line}"
    );
    let empty = tempfile::tempdir().unwrap();
    let message = images::scan(empty.path()).unwrap_err().to_string();
    assert!(message.contains("expected a folder with images (png, jpg, jpeg, webp), found no image"), "{message}");
    assert_eq!(images::scan(&at("nowhere")).unwrap_err().exit_code(), 3);
    assert!(images::scan(&at("notes.txt")).unwrap_err().to_string().contains("found a file"));
}

#[test]
fn resizing_equals_pillow_and_opencv() {
    let tensors = candle_core::safetensors::load(golden("resize.safetensors"), &candle_core::Device::Cpu).unwrap();
    let values = |name: &str| -> (usize, usize, Vec<u8>) {
        let tensor = &tensors[name];
        (tensor.dims()[0], tensor.dims()[1], tensor.flatten_all().unwrap().to_vec1().unwrap())
    };
    let image = |name: &str| {
        let (height, width, pixels) = values(name);
        RgbImage { height, width, pixels }
    };
    let source = image("source");
    let (height, width, ids) = values("labels");
    let labels = LabelMap { height, width, ids };
    for size in [(20, 33), (41, 40), (64, 67), (100, 131), (7, 90)] {
        let name = format!("{}x{}", size.0, size.1);
        assert_eq!(difference(&resize::antialiased(&source, size), &image(&format!("pillow.{name}"))), (0, 0), "pillow {name}");
        let (largest, count) = difference(&resize::bilinear(&source, size), &image(&format!("opencv.{name}")));
        println!("opencv {name}: largest difference {largest}, {count} values");
        assert!(largest <= 1, "opencv {name}: {largest}");
        assert_eq!(resize::nearest(&labels, size).ids, values(&format!("nearest.{name}")).2, "nearest {name}");
    }
}

/// Pillow 13.
#[test]
fn labels_are_resized_to_the_nearest_middle_as_with_pillow() {
    let map = |height: usize, width: usize| LabelMap { height, width, ids: (0..(height * width) as u8).collect() };
    let smaller = resize::nearest_middle(&map(6, 7), (4, 4));
    assert_eq!(smaller.ids, [0, 2, 4, 6, 14, 16, 18, 20, 21, 23, 25, 27, 35, 37, 39, 41]);
    let larger = resize::nearest_middle(&map(2, 4), (5, 7));
    let rows = [[0, 0, 1, 1, 2, 3, 3], [4, 4, 5, 5, 6, 7, 7]];
    assert_eq!(larger.ids, [rows[0], rows[0], rows[1], rows[1], rows[1]].concat());
}
