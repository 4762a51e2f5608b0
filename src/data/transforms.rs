//! What happens to a picture and its label between file and network (DATUM and DAFormer: the mmsegmentation pipeline).
//! All draws come from the caller's [`Rng`]. Sizes are (height, width).

use super::resize;
use crate::base::Rng;
use crate::io::images::RgbImage;
use crate::labels::{IGNORE, LabelMap};
use candle_core::{Device, Result, Tensor};

/// A picture with its label, both as in the file or after geometric transforms; always of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The picture.
    pub image: RgbImage,
    /// Its label, for labelled sets.
    pub label: Option<LabelMap>,
}

impl Example {
    /// Height and width.
    pub fn size(&self) -> (usize, usize) {
        (self.image.height, self.image.width)
    }

    /// To exactly `size`: the picture bilinear without antialiasing, the label nearest.
    pub fn resize(&self, size: (usize, usize)) -> Self {
        Self { image: resize::bilinear(&self.image, size), label: self.label.as_ref().map(|l| resize::nearest(l, size)) }
    }

    /// The part of `size` at (top, left), which must lie in the picture, clipped to it.
    pub fn crop(&self, (top, left): (usize, usize), size: (usize, usize)) -> Self {
        let (full_height, full_width) = self.size();
        let (height, width) = (size.0.min(full_height - top), size.1.min(full_width - left));
        let cut = |values: &[u8], per_pixel: usize| -> Vec<u8> {
            let rows = values.chunks_exact(full_width * per_pixel).skip(top).take(height);
            rows.flat_map(|row| &row[left * per_pixel..][..width * per_pixel]).copied().collect()
        };
        let image = RgbImage { height, width, pixels: cut(&self.image.pixels, 3) };
        let label = self.label.as_ref().map(|label| LabelMap { height, width, ids: cut(&label.ids, 1) });
        Self { image, label }
    }

    /// Left and right exchanged.
    pub fn flip(mut self) -> Self {
        for row in self.image.pixels.chunks_exact_mut(self.image.width * 3) {
            row.reverse();
            row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
        }
        if let Some(label) = &mut self.label {
            label.ids.chunks_exact_mut(label.width).for_each(<[u8]>::reverse);
        }
        self
    }
}

/// The largest size with the aspect of `from` that fits into `frame`; the longer side is matched with the frame's longer
/// side whatever its direction, sides are rounded to the nearest pixel (mmsegmentation's `Resize` with `keep_ratio`).
pub fn keep_ratio_size(from: (usize, usize), frame: (usize, usize)) -> (usize, usize) {
    let sides = |(a, b): (usize, usize)| (a.max(b) as f64, a.min(b) as f64);
    let ((long, short), (frame_long, frame_short)) = (sides(from), sides(frame));
    let scale = (frame_long / long).min(frame_short / short);
    let scaled = |side: usize| ((side as f64 * scale + 0.5) as usize).max(1);
    (scaled(from.0), scaled(from.1))
}

/// Shift and scale per channel, on values 0…255.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalize {
    /// Subtracted.
    pub mean: [f64; 3],
    /// Divided by.
    pub std: [f64; 3],
}

impl Normalize {
    /// The statistics of ImageNet, which the segmenters' encoders expect.
    pub const IMAGENET: Self = Self { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };
    /// To [−1, 1], which diffusion models expect.
    pub const SYMMETRIC: Self = Self { mean: [127.5; 3], std: [127.5; 3] };

    /// # Shapes
    /// (H, W, 3) u8 → (3, height, width) f32; pixels right of and below the picture are 0 *after* normalisation.
    ///
    /// `padded` (height, width) must not be smaller than the picture.
    pub fn apply(&self, image: &RgbImage, padded: (usize, usize), device: &Device) -> Result<Tensor> {
        let (height, width) = padded;
        let mut planes = vec![0f32; 3 * height * width];
        for (channel, plane) in planes.chunks_exact_mut(height * width).enumerate() {
            let value = |level: usize| ((level as f64 - self.mean[channel]) / self.std[channel]) as f32;
            let table: [f32; 256] = std::array::from_fn(value);
            let rows = plane.chunks_exact_mut(width).zip(image.pixels.chunks_exact(image.width * 3));
            for (target, source) in rows {
                for (value, pixel) in target.iter_mut().zip(source.chunks_exact(3)) {
                    *value = table[usize::from(pixel[channel])];
                }
            }
        }
        Tensor::from_vec(planes, (3, height, width), device)
    }

    /// Back to a picture, rounded and clipped.
    ///
    /// # Shapes
    /// `xs` (3, H, W)
    pub fn invert(&self, xs: &Tensor) -> Result<RgbImage> {
        let (_, height, width) = xs.dims3()?;
        let planes: Vec<f32> = xs.flatten_all()?.to_vec1()?;
        let area = height * width;
        let value = |i: usize| {
            let (pixel, channel) = (i / 3, i % 3);
            let level = f64::from(planes[channel * area + pixel]) * self.std[channel] + self.mean[channel];
            level.round().clamp(0.0, 255.0) as u8
        };
        Ok(RgbImage { height, width, pixels: (0..3 * area).map(value).collect() })
    }
}

/// What training sees of one example.
#[derive(Debug, Clone)]
pub struct Item {
    /// (3, H, W) f32, normalised.
    pub image: Tensor,
    /// (H, W) u32 train ids.
    pub label: Option<Tensor>,
}

/// Resize, random crop, flip, colour distortion, normalisation and padding, in this order.
///
/// # Source
/// mmsegmentation 0.16 as configured by DAFormer and DATUM.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// Frame for [`keep_ratio_size`]; none keeps the size.
    pub resize: Option<(usize, usize)>,
    /// Crop, and size that smaller pictures are padded to; none keeps the whole picture.
    pub crop: Option<(usize, usize)>,
    /// Crops in which one class takes this share or more of the labelled pixels, or all of them, are drawn again, up to
    /// ten times (labelled sets only; the usual value is 0.75).
    pub cat_max_ratio: Option<f32>,
    /// Mirror half of the examples.
    pub flip: bool,
    /// Distort colours ([`photometric_distortion`]); only the baselines do.
    pub photometric: bool,
    /// Normalisation.
    pub normalize: Normalize,
}

impl Pipeline {
    /// The part on 8-bit pictures: everything but normalisation and padding.
    ///
    /// # Randomness
    /// Crop offsets (top, left), once or until the crop is mixed enough; one uniform draw for the flip; then the distortion.
    pub fn augment(&self, example: &Example, rng: &mut Rng) -> Example {
        let resized = self.resize.map(|frame| example.resize(keep_ratio_size(example.size(), frame)));
        let example = resized.as_ref().unwrap_or(example);
        let mut cropped = match self.crop {
            Some(size) => random_crop(example, size, self.cat_max_ratio, rng),
            None => example.clone(),
        };
        if self.flip && rng.uniform() < 0.5 {
            cropped = cropped.flip();
        }
        if self.photometric {
            photometric_distortion(&mut cropped.image, rng);
        }
        cropped
    }

    /// Normalises and pads to the crop size: the picture with 0 after normalisation, the label with 255.
    pub fn finish(&self, example: &Example, device: &Device) -> Result<Item> {
        let (height, width) = example.size();
        let (least_height, least_width) = self.crop.unwrap_or_default();
        let padded = (height.max(least_height), width.max(least_width));
        let image = self.normalize.apply(&example.image, padded, device)?;
        let label = example.label.as_ref().map(|label| pad(label, padded).to_tensor(device)).transpose()?;
        Ok(Item { image, label })
    }

    /// [`Self::augment`], then [`Self::finish`].
    pub fn apply(&self, example: &Example, rng: &mut Rng, device: &Device) -> Result<Item> {
        self.finish(&self.augment(example, rng), device)
    }
}

fn random_crop(example: &Example, size: (usize, usize), cat_max_ratio: Option<f32>, rng: &mut Rng) -> Example {
    let margin = |side: usize, crop: usize| side.saturating_sub(crop) + 1;
    let (height, width) = example.size();
    let mut draw = || example.crop((rng.below(margin(height, size.0)), rng.below(margin(width, size.1))), size);
    let mut cropped = draw();
    if let Some(limit) = cat_max_ratio {
        for _ in 0..10 {
            if cropped.label.as_ref().is_none_or(|label| is_mixed(label, limit)) {
                break;
            }
            cropped = draw();
        }
    }
    cropped
}

/// More than one class, and none with `limit` or more of the labelled pixels.
fn is_mixed(label: &LabelMap, limit: f32) -> bool {
    let counts = label.histogram();
    let counts = &counts[..usize::from(IGNORE)];
    let (total, largest) = (counts.iter().sum::<u64>(), counts.iter().copied().max().unwrap_or(0));
    counts.iter().filter(|&&count| count > 0).count() > 1 && (largest as f64) < f64::from(limit) * total as f64
}

/// Extends a map to the right and below with [`IGNORE`].
fn pad(label: &LabelMap, (height, width): (usize, usize)) -> LabelMap {
    let mut padded = LabelMap::filled(height, width, IGNORE);
    for (target, source) in padded.ids.chunks_exact_mut(width).zip(label.ids.chunks_exact(label.width)) {
        target[..label.width].copy_from_slice(source);
    }
    padded
}

/// Each with probability ½: brightness +U(−32, 32); contrast ×U(0.5, 1.5), before or after the next two; saturation
/// ×U(0.5, 1.5); hue shifted by −36°…34° in steps of 2°. Clipped to 8 bits after each.
///
/// # Source
/// mmsegmentation's `PhotoMetricDistortion`, in its 8-bit HSV with hue in half degrees.
pub fn photometric_distortion(image: &mut RgbImage, rng: &mut Rng) {
    let linear = |pixels: &mut [u8], scale: f32, shift: f32| {
        pixels.iter_mut().for_each(|v| *v = (f32::from(*v) * scale + shift).clamp(0.0, 255.0) as u8);
    };
    if rng.below(2) == 1 {
        linear(&mut image.pixels, 1.0, rng.uniform_in(-32.0, 32.0));
    }
    let contrast_first = rng.below(2) == 1;
    let contrast = |pixels: &mut [u8], rng: &mut Rng| {
        if rng.below(2) == 1 {
            linear(pixels, rng.uniform_in(0.5, 1.5), 0.0);
        }
    };
    if contrast_first {
        contrast(&mut image.pixels, rng);
    }
    let saturation = (rng.below(2) == 1).then(|| rng.uniform_in(0.5, 1.5));
    let hue = (rng.below(2) == 1).then(|| rng.below(36) as i32 - 18);
    // One after the other, rounded to 8 bits in between.
    if let Some(scale) = saturation {
        in_hsv(&mut image.pixels, |[h, s, v]| [h, (f32::from(s) * scale).clamp(0.0, 255.0) as u8, v]);
    }
    if let Some(shift) = hue {
        in_hsv(&mut image.pixels, |[h, s, v]| [(i32::from(h) + shift).rem_euclid(180) as u8, s, v]);
    }
    if !contrast_first {
        contrast(&mut image.pixels, rng);
    }
}

/// Changes RGB pixels in HSV.
fn in_hsv(pixels: &mut [u8], change: impl Fn([u8; 3]) -> [u8; 3]) {
    for pixel in pixels.chunks_exact_mut(3) {
        pixel.copy_from_slice(&hsv_to_rgb(change(rgb_to_hsv([pixel[0], pixel[1], pixel[2]]))));
    }
}

/// 8-bit HSV: H in half degrees 0…179, S and V 0…255, rounded.
fn rgb_to_hsv(rgb: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = rgb.map(f32::from);
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let range = max - min;
    if range == 0.0 {
        return [0, 0, max as u8];
    }
    let degrees = match max {
        m if m == r => 60.0 * (g - b) / range,
        m if m == g => 120.0 + 60.0 * (b - r) / range,
        _ => 240.0 + 60.0 * (r - g) / range,
    };
    let half = (degrees.rem_euclid(360.0) / 2.0).round() as u16 % 180;
    [half as u8, (255.0 * range / max).round() as u8, max as u8]
}

fn hsv_to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    let (sector, value, saturation) = (f32::from(h) / 30.0, f32::from(v), f32::from(s) / 255.0);
    let channel = |offset: f32| {
        let k = (offset + sector).rem_euclid(6.0);
        (value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)).round() as u8
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cv2.cvtColor(rgb, COLOR_RGB2HSV)` and back with `COLOR_HSV2RGB`, OpenCV 4, u8. OpenCV's fixed-point tables round a
    /// few values differently, hence one level of tolerance.
    #[test]
    fn hsv_equals_opencv() {
        let golden = [
            ([121, 131, 193], [116, 95, 193], [121, 131, 193]),
            ([243, 8, 36], [176, 247, 243], [243, 8, 39]),
            ([210, 242, 63], [35, 189, 242], [212, 242, 63]),
            ([79, 222, 108], [66, 164, 222], [79, 222, 108]),
            ([69, 211, 65], [59, 176, 211], [70, 211, 65]),
            ([104, 164, 140], [78, 93, 164], [104, 164, 140]),
            ([21, 7, 221], [122, 247, 221], [21, 7, 221]),
            ([192, 214, 137], [39, 92, 214], [191, 214, 137]),
            ([209, 84, 115], [173, 153, 209], [209, 84, 113]),
            ([10, 10, 10], [0, 0, 10], [10, 10, 10]),
            ([255, 0, 0], [0, 255, 255], [255, 0, 0]),
            ([0, 0, 1], [120, 255, 1], [0, 0, 1]),
        ];
        let near = |a: [u8; 3], b: [u8; 3]| a.iter().zip(&b).all(|(a, b)| a.abs_diff(*b) <= 1);
        for (rgb, hsv, back) in golden {
            assert!(near(rgb_to_hsv(rgb), hsv), "{rgb:?}: {:?} instead of {hsv:?}", rgb_to_hsv(rgb));
            assert!(near(hsv_to_rgb(hsv), back), "{hsv:?}: {:?} instead of {back:?}", hsv_to_rgb(hsv));
        }
    }
}
