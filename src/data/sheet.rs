//! Pictures of a data set on one sheet.

use super::{Dataset, Sample};
use crate::base::Result;
use crate::io::images::RgbImage;
use crate::io::thumbnail;
use crate::labels::overlay;

/// Longer side of a picture on the sheet.
const SIDE: usize = 480;
/// White between pictures.
const GAP: usize = 6;
const OPACITY: f32 = 0.6;

/// `count` photos, evenly taken, one below the other; labelled ones with their labels over them on the right.
///
/// # Errors
/// Those of [`Dataset::load`].
pub fn sheet(dataset: &Dataset, samples: &[Sample], count: usize) -> Result<RgbImage> {
    let count = count.min(samples.len());
    let row = |i: usize| -> Result<Vec<RgbImage>> {
        let sample = &samples[(2 * i + 1) * samples.len() / (2 * count)];
        let example = if dataset.has_labels() { dataset.load(sample)? } else { dataset.load_image(sample)? };
        let label = example.label.as_ref().map(|label| overlay(&example.image, label, &dataset.classes.palette, OPACITY));
        Ok([Some(example.image), label].into_iter().flatten().map(|picture| thumbnail::shrink(picture, SIDE)).collect())
    };
    Ok(stack((0..count).map(row).collect::<Result<Vec<_>>>()?.as_slice()))
}

/// Rows of pictures on white, each as it is.
pub fn stack(rows: &[Vec<RgbImage>]) -> RgbImage {
    let height = |row: &Vec<RgbImage>| row.iter().map(|picture| picture.height).max().unwrap_or(0) + GAP;
    let width = |row: &Vec<RgbImage>| row.iter().map(|picture| picture.width + GAP).sum::<usize>();
    let (total, widest) = (rows.iter().map(height).sum::<usize>() + GAP, rows.iter().map(width).max().unwrap_or(0) + GAP);
    let mut sheet = RgbImage { height: total, width: widest, pixels: vec![255; total * widest * 3] };
    let mut top = GAP;
    for row in rows {
        let mut left = GAP;
        for picture in row {
            for y in 0..picture.height {
                let from = &picture.pixels[y * picture.width * 3..][..picture.width * 3];
                sheet.pixels[((top + y) * widest + left) * 3..][..from.len()].copy_from_slice(from);
            }
            left += picture.width + GAP;
        }
        top += height(row);
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_any_size_find_their_place() {
        let picture =
            |height: usize, width: usize, value: u8| RgbImage { height, width, pixels: vec![value; height * width * 3] };
        let sheet = stack(&[vec![picture(2, 3, 10), picture(4, 1, 20)], vec![picture(1, 1, 30)]]);
        assert_eq!((sheet.height, sheet.width), (4 + 1 + 3 * GAP, 3 + 1 + 3 * GAP));
        let at = |y: usize, x: usize| sheet.pixels[(y * sheet.width + x) * 3];
        assert_eq!([at(GAP, GAP), at(GAP + 3, GAP + 3 + GAP), at(GAP + 4 + GAP, GAP), at(0, 0)], [10, 20, 30, 255]);
        assert_eq!(at(GAP + 2, GAP), 255);
    }
}
