//! Strong augmentation of mixed images: colour jitter and Gaussian blur, on normalised images.

use crate::base::Rng;
use crate::models::segmenter::Normalization;
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::f32::consts::TAU;

/// When and how strongly images are changed.
///
/// # Source
/// DAFormer's settings. Its option `color_jitter_probability` 0.2 skips the jitter with that probability; ours is the
/// probability that it happens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StrongAugment {
    /// Probability that an iteration jitters colours.
    pub jitter_probability: f32,
    /// Jitter factors: brightness, contrast and saturation in 1 ± this, hue in ± this turns.
    pub jitter_strength: f32,
    /// Probability that an iteration blurs.
    pub blur_probability: f32,
    /// Smallest and largest standard deviation of the blur in pixels.
    pub blur_sigma: (f32, f32),
}

impl Default for StrongAugment {
    fn default() -> Self {
        Self { jitter_probability: 0.8, jitter_strength: 0.2, blur_probability: 0.5, blur_sigma: (0.15, 1.15) }
    }
}

/// What an iteration does to all its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switches {
    /// Colours are jittered.
    pub jitter: bool,
    /// Images are blurred.
    pub blur: bool,
}

/// The changes of one image; `None` leaves out a part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augmentation {
    /// Colour jitter, first.
    pub jitter: Option<ColorJitter>,
    /// Standard deviation of the blur in pixels, second.
    pub blur_sigma: Option<f32>,
}

/// One colour operation on RGB in 0…1.
///
/// # Source
/// kornia 0.5.8, which the published code used: brightness is additive, contrast multiplies about 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ColorOperation {
    /// x + (factor − 1), clamped to 0…1.
    Brightness(f32),
    /// x · factor, clamped to 0…1.
    Contrast(f32),
    /// HSV saturation · factor, clamped to 0…1.
    Saturation(f32),
    /// HSV hue + factor turns.
    Hue(f32),
}

/// Four colour operations in the order they are applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColorJitter(pub [ColorOperation; 4]);

impl StrongAugment {
    /// Decides what an iteration does. # Randomness: two uniforms, jitter then blur
    pub fn switches(&self, rng: &mut Rng) -> Switches {
        Switches { jitter: rng.uniform() < self.jitter_probability, blur: rng.uniform() < self.blur_probability }
    }

    /// The factors of one image.
    ///
    /// # Randomness
    /// With jitter: brightness, contrast, saturation, hue, one shuffle. With blur: sigma.
    pub fn draw(&self, switches: Switches, rng: &mut Rng) -> Augmentation {
        let jitter = switches.jitter.then(|| {
            let s = self.jitter_strength;
            let mut around_one = || rng.uniform_in(1.0 - s, 1.0 + s);
            let mut operations = [
                ColorOperation::Brightness(around_one()),
                ColorOperation::Contrast(around_one()),
                ColorOperation::Saturation(around_one()),
                ColorOperation::Hue(rng.uniform_in(-s, s)),
            ];
            rng.shuffle(&mut operations);
            ColorJitter(operations)
        });
        let blur_sigma = switches.blur.then(|| rng.uniform_in(self.blur_sigma.0, self.blur_sigma.1));
        Augmentation { jitter, blur_sigma }
    }
}

impl Augmentation {
    /// Changes image n by `augmentations[n]`.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), normalised by `normalization` → same
    pub fn apply(augmentations: &[Self], images: &Tensor, normalization: &Normalization) -> Result<Tensor> {
        let (_, channels, height, width) = images.dims4()?;
        if augmentations.iter().all(|a| a.jitter.is_none() && a.blur_sigma.is_none()) {
            return Ok(images.clone());
        }
        let mut values: Vec<f32> = images.flatten_all()?.to_vec1()?;
        values.par_chunks_mut(channels * height * width).zip(augmentations).for_each(|(image, augmentation)| {
            if let Some(jitter) = augmentation.jitter {
                jitter.apply_to(image, normalization);
            }
            if let Some(sigma) = augmentation.blur_sigma {
                image.par_chunks_mut(height * width).for_each(|plane| blur(plane, (height, width), sigma));
            }
        });
        Tensor::from_vec(values, images.shape(), images.device())
    }
}

impl ColorJitter {
    /// # Shapes
    /// `image` (3, H, W), normalised
    fn apply_to(&self, image: &mut [f32], normalization: &Normalization) {
        let mean = normalization.mean.map(|m| m / 255.0);
        let std = normalization.std.map(|s| s / 255.0);
        let plane = image.len() / 3;
        let (red, rest) = image.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        red.par_iter_mut().zip(green).zip(blue).with_min_len(4096).for_each(|((r, g), b)| {
            let mut pixel = [r, g, b];
            let rgb = self.apply(std::array::from_fn(|c| *pixel[c] * std[c] + mean[c]));
            pixel.iter_mut().enumerate().for_each(|(c, value)| **value = (rgb[c] - mean[c]) / std[c]);
        });
    }

    /// Changes one RGB pixel in 0…1. Results of the HSV operations are not clamped.
    pub fn apply(&self, rgb: [f32; 3]) -> [f32; 3] {
        self.0.iter().fold(rgb, |rgb, operation| operation.apply(rgb))
    }
}

impl ColorOperation {
    /// Changes one RGB pixel in 0…1.
    pub fn apply(self, rgb: [f32; 3]) -> [f32; 3] {
        match self {
            Self::Brightness(factor) => rgb.map(|x| (x + (factor - 1.0)).clamp(0.0, 1.0)),
            Self::Contrast(factor) => rgb.map(|x| (x * factor).clamp(0.0, 1.0)),
            Self::Saturation(factor) => {
                let [h, s, v] = rgb_to_hsv(rgb);
                hsv_to_rgb([h, (s * factor).clamp(0.0, 1.0), v])
            }
            Self::Hue(turns) => {
                let [h, s, v] = rgb_to_hsv(rgb);
                hsv_to_rgb([(h + turns * TAU) % TAU, s, v]) // the remainder keeps the sign, as fmod
            }
        }
    }
}

/// Hue in 0…2π, saturation (max − min)/(max + 1e-6), value max.
fn rgb_to_hsv([r, g, b]: [f32; 3]) -> [f32; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let delta = max - min;
    let divisor = if delta == 0.0 { 1.0 } else { delta };
    let sixths = match max {
        _ if max == r => (g - b) / divisor,
        _ if max == g => 2.0 + (b - r) / divisor,
        _ => 4.0 + (r - g) / divisor,
    };
    [(sixths / 6.0).rem_euclid(1.0) * TAU, delta / (max + 1e-6), max]
}

fn hsv_to_rgb([h, s, v]: [f32; 3]) -> [f32; 3] {
    let sixths = (h / TAU * 6.0).rem_euclid(6.0);
    let sector = sixths.floor();
    let f = sixths - sector;
    let (p, q, t) = (v * (1.0 - s), v * (1.0 - f * s), v * (1.0 - (1.0 - f) * s));
    match sector as u32 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        5 => [v, p, q],
        _ => [v, t, p], // rem_euclid may round up to 6.0, which is hue 0
    }
}

/// Side of the blur kernel for an axis of `length` pixels: about a tenth of it, odd.
fn kernel_side(length: usize) -> usize {
    length.div_ceil(10).saturating_sub(1) | 1
}

/// One side of the normalised kernel: the centre tap, then the taps at distance 1, 2, …
///
/// Taps that are below f32's resolution beside the centre are left out; the sum does not see them.
fn half_kernel(length: usize, sigma: f32) -> Vec<f32> {
    let radius = (kernel_side(length) / 2).min((6.0 * sigma).ceil() as usize);
    let raw: Vec<f64> = (0..=radius).map(|x| (-((x * x) as f64) / (2.0 * f64::from(sigma).powi(2))).exp()).collect();
    let sum = raw[0] + 2.0 * raw[1..].iter().sum::<f64>();
    raw.iter().map(|tap| (tap / sum) as f32).collect()
}

/// Gaussian blur with reflected borders (the border pixel is not repeated).
///
/// # Shapes
/// `plane` (H, W)
fn blur(plane: &mut [f32], (height, width): (usize, usize), sigma: f32) {
    let taps = half_kernel(width, sigma);
    let reach = taps.len() - 1;
    let mut padded = vec![0f32; width + 2 * reach];
    for row in plane.chunks_mut(width) {
        for (x, value) in padded.iter_mut().enumerate() {
            *value = row[reflect(x as isize - reach as isize, width)];
        }
        for (x, value) in row.iter_mut().enumerate() {
            let centre = x + reach;
            let sides = (1..=reach).map(|d| taps[d] * (padded[centre - d] + padded[centre + d]));
            *value = taps[0] * padded[centre] + sides.sum::<f32>();
        }
    }
    let taps = half_kernel(height, sigma);
    let rows = plane.to_vec();
    let row = |y: isize| &rows[reflect(y, height) * width..][..width];
    for (y, out) in plane.chunks_mut(width).enumerate() {
        let y = y as isize;
        out.iter_mut().zip(row(y)).for_each(|(value, centre)| *value = taps[0] * centre);
        for (d, tap) in taps.iter().enumerate().skip(1) {
            let (above, below) = (row(y - d as isize), row(y + d as isize));
            out.iter_mut().zip(above).zip(below).for_each(|((value, above), below)| *value += tap * (above + below));
        }
    }
}

/// Index of `i` in 0…length after reflection at the borders; at most one reflection is needed (kernels are short).
fn reflect(i: isize, length: usize) -> usize {
    let last = length as isize - 1;
    let i = i.abs();
    (if i > last { 2 * last - i } else { i }) as usize
}

#[cfg(test)]
mod tests {
    use super::ColorOperation::{Brightness, Contrast, Hue, Saturation};
    use super::*;
    use crate::models::mit;
    use candle_core::Device;

    const PIXEL: [f32; 3] = [0.2, 0.5, 0.9];

    fn close(found: [f32; 3], expected: [f32; 3]) {
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 2e-6), "{found:?} instead of {expected:?}");
    }

    // Golden pixels: kornia 0.5.8, kornia.enhance.adjust_{brightness, contrast, saturation, hue}.
    #[test]
    fn single_operations_match_kornia() {
        close(Brightness(1.15).apply(PIXEL), [0.35, 0.65, 1.0]);
        close(Contrast(0.9).apply(PIXEL), [0.18, 0.45, 0.81]);
        close(Saturation(1.1).apply(PIXEL), [0.130001, 0.460001, 0.9]);
        close(Hue(0.07).apply(PIXEL), [0.200001, 0.206001, 0.9]);
        close(rgb_to_hsv(PIXEL), [3.739991, 0.777777, 0.9]);
    }

    #[test]
    fn the_order_of_operations_matters_as_in_kornia() {
        let (b, c, s, h) = (Brightness(1.15), Contrast(0.9), Saturation(1.1), Hue(0.07));
        close(ColorJitter([b, c, s, h]).apply(PIXEL), [0.256501, 0.283231, 0.9]);
        close(ColorJitter([h, s, c, b]).apply(PIXEL), [0.267001, 0.272942, 0.96]);
    }

    #[test]
    fn gray_black_and_white_stay_finite_and_gray() {
        for value in [0.0, 0.5, 1.0] {
            let rgb = ColorJitter([Hue(-0.2), Saturation(1.2), Hue(0.2), Saturation(0.8)]).apply([value; 3]);
            assert!(rgb.iter().all(|x| (x - value).abs() < 1e-5), "{rgb:?}");
        }
    }

    #[test]
    fn kernel_sides_follow_the_image() {
        for (length, side) in [(8, 1), (64, 7), (256, 25), (384, 39), (512, 51), (768, 77), (1024, 103)] {
            assert_eq!(kernel_side(length), side, "length {length}");
        }
    }

    #[test]
    fn taps_of_half_a_pixel() {
        let taps = half_kernel(512, 0.5);
        for (tap, expected) in taps.iter().zip([0.786_570_7f32, 0.106_450_77, 0.000_263_87]) {
            assert!((tap - expected).abs() < 1e-7, "{taps:?}");
        }
    }

    #[test]
    fn blur_keeps_constants_and_mirrors_the_border() {
        let mut plane = vec![0.7f32; 40 * 30];
        blur(&mut plane, (40, 30), 1.0);
        assert!(plane.iter().all(|x| (x - 0.7).abs() < 1e-6));
        // One bright pixel at the corner: 30 columns give a 3-tap kernel, the mirrored neighbour counts twice.
        let mut plane = vec![0f32; 30 * 30];
        plane[1] = 1.0;
        blur(&mut plane, (30, 30), 0.5);
        let taps = half_kernel(30, 0.5);
        assert!((plane[0] - 2.0 * taps[1] * taps[0]).abs() < 1e-7);
    }

    #[test]
    fn every_image_gets_its_own_factors() {
        let augment = StrongAugment::default();
        let mut rng = Rng::stream(0, "augment", &[]);
        let both = Switches { jitter: true, blur: true };
        let draws = [augment.draw(both, &mut rng), augment.draw(both, &mut rng)];
        assert_ne!(draws[0], draws[1]);
        let image = Rng::stream(1, "image", &[]).normal_tensor(&[1, 3, 24, 40], &Device::Cpu).unwrap();
        let pair = Tensor::cat(&[&image, &image], 0).unwrap();
        let together = Augmentation::apply(&draws, &pair, &mit::NORMALIZATION).unwrap();
        for (n, draw) in draws.iter().enumerate() {
            let alone = Augmentation::apply(&[*draw], &image, &mit::NORMALIZATION).unwrap();
            let difference = (together.narrow(0, n, 1).unwrap() - alone).unwrap().abs().unwrap();
            assert_eq!(difference.max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        }
    }

    #[test]
    fn switches_follow_their_probabilities() {
        let augment = StrongAugment::default();
        let mut rng = Rng::stream(5, "switches", &[]);
        let draws: Vec<Switches> = (0..4000).map(|_| augment.switches(&mut rng)).collect();
        let share = |on: fn(&Switches) -> bool| draws.iter().filter(|s| on(s)).count() as f32 / 4000.0;
        assert!((share(|s| s.jitter) - 0.8).abs() < 0.025 && (share(|s| s.blur) - 0.5).abs() < 0.03);
    }
}
