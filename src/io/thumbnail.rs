//! Small pictures for pages.

use super::images::RgbImage;
use crate::base::{Error, Result};
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, imageops};

/// The picture scaled down so that neither side is longer than `side`; smaller ones stay as they are.
pub fn shrink(picture: RgbImage, side: usize) -> RgbImage {
    let longest = picture.height.max(picture.width);
    if longest <= side {
        return picture;
    }
    let scaled = |length: usize| ((length * side + longest / 2) / longest).max(1) as u32;
    let (height, width) = (scaled(picture.height), scaled(picture.width));
    match image::RgbImage::from_raw(picture.width as u32, picture.height as u32, picture.pixels) {
        Some(pixels) => {
            let small = imageops::thumbnail(&pixels, width, height);
            RgbImage { height: height as usize, width: width as usize, pixels: small.into_raw() }
        }
        // Fewer pixels than its size says: no picture at all.
        None => RgbImage { height: 1, width: 1, pixels: vec![0; 3] },
    }
}

/// The picture as a JPEG file of `quality` 1…100.
///
/// # Errors
/// A picture without pixels, or with a side of more than 65535.
pub fn jpeg(picture: &RgbImage, quality: u8) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .write_image(&picture.pixels, picture.width as u32, picture.height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| {
            let size = format!("{}x{}", picture.width, picture.height);
            Error::environment(format!("a picture of {size} pixels cannot be written as JPEG: {e}"), "use a smaller picture")
        })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sides_shrink_and_shapes_stay() {
        let picture = |height: usize, width: usize| RgbImage { height, width, pixels: vec![90; height * width * 3] };
        for ((height, width), expected) in
            [((100, 200), (32, 64)), ((200, 100), (64, 32)), ((1, 1000), (1, 64)), ((9, 5), (9, 5))]
        {
            let small = shrink(picture(height, width), 64);
            assert_eq!((small.height, small.width), expected);
            assert_eq!(small.pixels.len(), 3 * expected.0 * expected.1);
            let bytes = jpeg(&small, 80).unwrap();
            let decoded = image::load_from_memory(&bytes).unwrap().into_rgb8();
            assert!(decoded.pixels().all(|pixel| pixel.0.iter().all(|value| value.abs_diff(90) < 4)));
        }
        assert!(jpeg(&picture(0, 0), 80).is_err());
    }
}
