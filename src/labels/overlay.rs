//! Label maps in colour.

use super::LabelMap;
use crate::io::images::RgbImage;

/// The map in the colours of `palette`; ids beyond it, ignored pixels among them, are black.
pub fn colorize(labels: &LabelMap, palette: &[[u8; 3]]) -> RgbImage {
    let color = |&id: &u8| palette.get(usize::from(id)).copied().unwrap_or_default();
    RgbImage { height: labels.height, width: labels.width, pixels: labels.ids.iter().flat_map(color).collect() }
}

/// Colours blended over the picture: `opacity` 0 shows the picture, 1 the colours. Of different sizes, the common
/// upper left part is blended.
pub fn overlay(image: &RgbImage, labels: &LabelMap, palette: &[[u8; 3]], opacity: f32) -> RgbImage {
    let colors = colorize(labels, palette);
    let mut blended = image.clone();
    let row = image.width.min(labels.width) * 3;
    for y in 0..image.height.min(labels.height) {
        let under = &mut blended.pixels[y * image.width * 3..][..row];
        let over = &colors.pixels[y * labels.width * 3..][..row];
        for (value, &color) in under.iter_mut().zip(over) {
            *value = (f32::from(*value) * (1.0 - opacity) + f32::from(color) * opacity).round() as u8;
        }
    }
    blended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opacity_blends_between_picture_and_colors() {
        let image = RgbImage { height: 1, width: 2, pixels: vec![100; 6] };
        let labels = LabelMap { height: 1, width: 2, ids: vec![0, 255] };
        let palette = [[200, 0, 100]];
        assert_eq!(overlay(&image, &labels, &palette, 0.0), image);
        assert_eq!(overlay(&image, &labels, &palette, 1.0).pixels, [200, 0, 100, 0, 0, 0]);
        assert_eq!(overlay(&image, &labels, &palette, 0.5).pixels, [150, 50, 100, 50, 50, 50]);
    }
}
