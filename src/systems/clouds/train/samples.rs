//! From a picture with its label to what training sees. Sizes are (height, width).

use super::color_jitter::ColorJitter;
use super::config::TrainConfig;
use crate::base::Rng;
use crate::data::{Example, resize};
use crate::io::images::RgbImage;
use crate::labels::{IGNORE, LabelMap};

/// What happens to source images.
///
/// # Source
/// CLOUDS' training configuration: detectron2's `ResizeScale`, `FixedSizeCrop`, `ColorAugSSDTransform`, `RandomFlip`.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceTransform {
    /// Scaled images fit this size times a random factor.
    pub initial_size: (usize, usize),
    /// Range of the factor.
    pub scale_range: (f64, f64),
    /// Size of the result.
    pub crop: (usize, usize),
    /// Each offset of the crop is drawn for itself.
    pub independent_offsets: bool,
    /// Changes of colours.
    pub color_jitter: bool,
    /// Mirrors half of the images.
    pub flip: bool,
}

/// A generated image twice: for the teacher, and with other colours for the student.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedViews {
    /// What teacher and refinement see.
    pub clean: RgbImage,
    /// What the student sees.
    pub augmented: RgbImage,
}

impl SourceTransform {
    /// As the settings say.
    pub fn new(config: &TrainConfig) -> Self {
        let (initial, [low, high]) = (config.data.initial_size, config.data.scale_range);
        Self {
            initial_size: (initial.height, initial.width),
            scale_range: (low, high),
            crop: (config.crop.height, config.crop.width),
            independent_offsets: config.crop.independent_offsets,
            color_jitter: config.data.color_jitter,
            flip: config.data.flip,
        }
    }

    /// Resize, crop, padding (black, ignored), colours, flip. The result has the size of the crop.
    ///
    /// # Randomness
    /// The factor; one number for the offsets of the crop, or two; the colours; one number for the flip.
    pub fn apply(&self, example: &Example, rng: &mut Rng) -> Example {
        let (low, high) = self.scale_range;
        let scale = low + (high - low) * f64::from(rng.uniform());
        let size = scaled_size(example.size(), self.initial_size, scale);
        let down = f64::from(rng.uniform());
        let right = if self.independent_offsets { f64::from(rng.uniform()) } else { down };
        let image = resize::antialiased(&example.image, size);
        let label = example.label.as_ref().map(|label| nearest(label, size));
        let mut example = Example { image, label }.crop(crop_offsets(size, self.crop, (down, right)), self.crop);
        pad(&mut example, self.crop);
        if self.color_jitter {
            ColorJitter::draw(rng).apply(&mut example.image);
        }
        if self.flip && rng.uniform() < 0.5 { example.flip() } else { example }
    }
}

/// A generated image as teacher and student see it: both mirrored or none, never scaled or cropped. With a `photo` of the same size the
/// teacher sees that.
///
/// # Randomness
/// One number for the flip, then the colours.
pub fn generated_views(
    image: RgbImage,
    photo: Option<RgbImage>,
    flip: bool,
    color_jitter: bool,
    rng: &mut Rng,
) -> GeneratedViews {
    let mirrored = flip && rng.uniform() < 0.5;
    let view = |image| {
        let example = Example { image, label: None };
        if mirrored { example.flip() } else { example }.image
    };
    let mut augmented = view(image);
    let clean = photo.map_or_else(|| augmented.clone(), view);
    if color_jitter {
        ColorJitter::draw(rng).apply(&mut augmented);
    }
    GeneratedViews { clean, augmented }
}

/// The size that fits `frame` times `scale` with the aspect of `size`, rounded half to even; at least one pixel.
pub fn scaled_size(size: (usize, usize), frame: (usize, usize), scale: f64) -> (usize, usize) {
    let factor = |frame: usize, side: usize| frame as f64 * scale / side as f64;
    let factor = factor(frame.0, size.0).min(factor(frame.1, size.1));
    let scaled = |side: usize| ((side as f64 * factor).round_ties_even() as usize).max(1);
    (scaled(size.0), scaled(size.1))
}

/// Top and left of a crop at the shares `draws` (0…1) of what is left over, rounded half to even; 0 where nothing is.
pub fn crop_offsets(size: (usize, usize), crop: (usize, usize), draws: (f64, f64)) -> (usize, usize) {
    let offset = |side: usize, crop: usize, draw: f64| (side.saturating_sub(crop) as f64 * draw).round_ties_even() as usize;
    (offset(size.0, crop.0, draws.0), offset(size.1, crop.1, draws.1))
}

/// Nearest as PyTorch: `source = ⌊target · (from / to)⌋`, with ratio and product in f32.
pub fn nearest(labels: &LabelMap, size: (usize, usize)) -> LabelMap {
    let sources = |from: usize, to: usize| -> Vec<usize> {
        let ratio = from as f32 / to as f32;
        (0..to).map(|target| ((target as f32 * ratio) as usize).min(from - 1)).collect()
    };
    let columns = sources(labels.width, size.1);
    let row = |y: usize| &labels.ids[y * labels.width..][..labels.width];
    let ids = sources(labels.height, size.0).into_iter().flat_map(|y| columns.iter().map(move |x| row(y)[*x])).collect();
    LabelMap { height: size.0, width: size.1, ids }
}

/// Black pixels and ignored labels to the right and below.
fn pad(example: &mut Example, (height, width): (usize, usize)) {
    let (rows, columns) = example.size();
    if (rows, columns) == (height, width) {
        return;
    }
    let grown = |values: &[u8], per_pixel: usize, fill: u8| {
        let mut padded = vec![fill; height * width * per_pixel];
        let lines = padded.chunks_exact_mut(width * per_pixel).zip(values.chunks_exact(columns * per_pixel));
        lines.for_each(|(line, values)| line[..values.len()].copy_from_slice(values));
        padded
    };
    example.image = RgbImage { height, width, pixels: grown(&example.image.pixels, 3, 0) };
    let label = example.label.as_ref().map(|label| LabelMap { height, width, ids: grown(&label.ids, 1, IGNORE) });
    example.label = label;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teacher_and_student_see_an_image_the_same_way_round() {
        let picture = |first: u8| RgbImage { height: 1, width: 2, pixels: vec![first, 0, 0, first + 1, 0, 0] };
        let mut mirrored = 0;
        for seed in 0..20 {
            let views = |photo| generated_views(picture(10), photo, true, false, &mut Rng::stream(seed, "views", &[]));
            let (own, other) = (views(None), views(Some(picture(30))));
            assert!(own.clean == own.augmented && own.augmented == other.augmented);
            assert_eq!(other.clean.pixels[0] - 30, own.clean.pixels[0] - 10);
            mirrored += usize::from(own.clean != picture(10));
        }
        assert!((3..17).contains(&mirrored));
    }
}
