//! Fourier domain adaptation: an image takes over the low-frequency amplitudes of another, and with them its colours and
//! light.
//!
//! Only the few coefficients that change are ever computed: out = A + Re Σ (|B̂| − |Â|)·e^{i∠Â}·e^{2πi(ky/H + lx/W)}/(HW)
//! over |k|, |l| ≤ radius. That equals the method with whole transforms to rounding.

use crate::base::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::sync::{Arc, Mutex, PoisonError};

const CHANNELS: usize = 3;

/// A complex number (re, im).
type Complex = (f64, f64);

/// Highest frequency that is exchanged for an image of `size` (height, width): ⌊min(H, W)·bandwidth⌋, but never so high
/// that frequencies alias.
pub fn radius(size: (usize, usize), bandwidth: f64) -> usize {
    let side = size.0.min(size.1);
    ((side as f64 * bandwidth) as usize).min(side.saturating_sub(1) / 2)
}

/// The Fourier coefficients of an image around frequency 0.
#[derive(Debug, Clone)]
pub struct LowFrequencies {
    radius: usize,
    /// (2·radius + 1, radius + 1, channel): k from −radius, l from 0. The other half is the conjugate.
    values: Vec<[Complex; CHANNELS]>,
}

impl LowFrequencies {
    /// Coefficients up to `radius` in both axes, in f64.
    ///
    /// # Shapes
    /// `pixels` (H, W, 3)
    pub fn of(pixels: &[f32], (height, width): (usize, usize), radius: usize) -> Self {
        let across = waves(radius + 1, width);
        // Transform of each row: (H, radius + 1, channel).
        let rows: Vec<Vec<[Complex; CHANNELS]>> = pixels
            .par_chunks(width * CHANNELS)
            .map(|row| across.iter().map(|wave| project(row.as_chunks::<CHANNELS>().0, wave)).collect())
            .collect();
        let down = waves(radius + 1, height);
        let coefficient = |k: isize, l: usize| {
            let mut sum = [(0.0, 0.0); CHANNELS];
            for (row, &(cos, sin)) in rows.iter().zip(&down[k.unsigned_abs()]) {
                let wave = (cos, sin * k.signum() as f64);
                for (sum, value) in sum.iter_mut().zip(row[l]) {
                    *sum = add(*sum, times_conjugate(value, wave));
                }
            }
            sum
        };
        let r = radius as isize;
        let values = (-r..=r).flat_map(|k| (0..=radius).map(move |l| (k, l))).map(|(k, l)| coefficient(k, l)).collect();
        Self { radius, values }
    }
}

/// The image with the amplitudes of `style` at its low frequencies and its own phases. Values are not clamped.
///
/// # Shapes
/// `pixels` (H, W, 3), any range → same
///
/// # Source
/// FDA, equations 1 to 3; `style` may be of another size, frequencies are matched by index and not rescaled.
pub fn amplitude_swap(pixels: &[f32], size: (usize, usize), style: &LowFrequencies) -> Vec<f32> {
    swap(pixels, size, style).into_iter().map(|value| value as f32).collect()
}

fn swap(pixels: &[f32], (height, width): (usize, usize), style: &LowFrequencies) -> Vec<f64> {
    let own = LowFrequencies::of(pixels, (height, width), style.radius);
    let columns = style.radius + 1;
    let scale = 1.0 / (height * width) as f64;
    // What is added, by frequency; l > 0 stands for −l as well.
    let change: Vec<[Complex; CHANNELS]> = own
        .values
        .iter()
        .zip(&style.values)
        .enumerate()
        .map(|(i, (own, style))| {
            let weight = if i % columns == 0 { scale } else { 2.0 * scale };
            std::array::from_fn(|c| {
                let (re, im) = own[c];
                let amplitude = re.hypot(im);
                let difference = weight * (style[c].0.hypot(style[c].1) - amplitude);
                // The phase of a zero coefficient is 0.
                if amplitude == 0.0 { (difference, 0.0) } else { (difference * re / amplitude, difference * im / amplitude) }
            })
        })
        .collect();
    let (down, across) = (waves(columns, height), waves(columns, width));
    let mut out: Vec<f64> = pixels.iter().map(|&p| f64::from(p)).collect();
    out.par_chunks_mut(width * CHANNELS).enumerate().for_each(|(y, row)| {
        for (l, wave) in across.iter().enumerate() {
            let mut sum = [(0.0, 0.0); CHANNELS]; // Σ over k at this row
            for (i, change) in change.iter().skip(l).step_by(columns).enumerate() {
                let k = i as isize - style.radius as isize;
                let (cos, sin) = down[k.unsigned_abs()][y];
                for (sum, value) in sum.iter_mut().zip(change) {
                    *sum = add(*sum, times_conjugate(*value, (cos, -sin * k.signum() as f64)));
                }
            }
            for (pixel, &(cos, sin)) in row.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(wave) {
                for (value, (re, im)) in pixel.iter_mut().zip(sum) {
                    *value += re * cos - im * sin;
                }
            }
        }
    });
    out
}

/// e^{2πi·f·x/length} for f in 0…count and x in 0…length.
fn waves(count: usize, length: usize) -> Vec<Vec<Complex>> {
    let at = |step: usize| {
        let (sin, cos) = (TAU * step as f64 / length as f64).sin_cos();
        (cos, sin)
    };
    (0..count).map(|f| (0..length).map(|x| at(f * x % length)).collect()).collect()
}

/// Σ pixel · conjugate(wave), per channel.
fn project(row: &[[f32; CHANNELS]], wave: &[Complex]) -> [Complex; CHANNELS] {
    let mut sum = [(0.0, 0.0); CHANNELS];
    for (pixel, &(cos, sin)) in row.iter().zip(wave) {
        for (sum, &value) in sum.iter_mut().zip(pixel) {
            *sum = (sum.0 + f64::from(value) * cos, sum.1 - f64::from(value) * sin);
        }
    }
    sum
}

fn add(a: Complex, b: Complex) -> Complex {
    (a.0 + b.0, a.1 + b.1)
}

fn times_conjugate(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 + a.1 * b.1, a.1 * b.0 - a.0 * b.1)
}

/// Gives source images the low-frequency amplitudes of one target photo.
#[derive(Debug)]
pub struct FourierTransfer {
    photo: Vec<f32>,
    size: (usize, usize),
    bandwidth: f64,
    /// The photo's coefficients by radius, so that images of one size share the work.
    styles: Mutex<BTreeMap<usize, Arc<LowFrequencies>>>,
}

impl FourierTransfer {
    /// From the target photo; `bandwidth` is the exchanged share of the shorter side (0.01 in the published experiments).
    ///
    /// # Shapes
    /// `photo` (H, W, 3), `size` (H, W), values in the range of the images that will be changed
    ///
    /// # Errors
    /// A bandwidth outside 0…0.5, or pixels that do not fill `size`.
    pub fn new(photo: Vec<f32>, size: (usize, usize), bandwidth: f64) -> Result<Self> {
        if !(0.0..=0.5).contains(&bandwidth) {
            return Err(Error::Usage(format!("the Fourier bandwidth must lie in 0…0.5, found {bandwidth}")));
        }
        check_size(&photo, size)?;
        Ok(Self { photo, size, bandwidth, styles: Mutex::default() })
    }

    /// The image in the photo's style, not clamped.
    ///
    /// # Shapes
    /// `pixels` (H, W, 3), `size` (H, W) → same
    ///
    /// # Errors
    /// Pixels that do not fill `size`.
    pub fn apply(&self, pixels: &[f32], size: (usize, usize)) -> Result<Vec<f32>> {
        check_size(pixels, size)?;
        let radius = radius(size, self.bandwidth).min(radius(self.size, 0.5));
        // A panic elsewhere leaves the map whole: entries are inserted complete.
        let mut styles = self.styles.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(LowFrequencies::of(&self.photo, self.size, radius));
        let style = Arc::clone(styles.entry(radius).or_insert_with(make));
        drop(styles);
        Ok(amplitude_swap(pixels, size, &style))
    }
}

fn check_size(pixels: &[f32], (height, width): (usize, usize)) -> Result<()> {
    if pixels.len() == height * width * CHANNELS && !pixels.is_empty() {
        return Ok(());
    }
    Err(Error::Usage(format!("expected {height}x{width} RGB pixels, found {} values", pixels.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(height: usize, width: usize, value: impl Fn(usize, usize, usize) -> usize) -> Vec<f32> {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                pixels.extend((0..3).map(|c| (value(y, x, c) % 256) as f32));
            }
        }
        pixels
    }

    // Golden values: whole transforms in double precision (numpy.fft.fft2), bandwidth 0.1.
    #[test]
    fn matches_whole_transforms() {
        let image = pattern(16, 24, |y, x, c| 7 * y + 13 * x + 29 * c);
        let style = pattern(18, 20, |y, x, c| 11 * y + 5 * x + 17 * c + 40);
        let style = LowFrequencies::of(&style, (18, 20), radius((16, 24), 0.1));
        assert_eq!(style.radius, 1);
        let out = swap(&image, (16, 24), &style);
        let golden = [
            [67.224113, 76.496825, 183.856028, 234.654826, -13.012287, 298.178968, 135.6875],
            [49.183266, 104.060314, 250.540220, 227.946377, -28.722616, 287.335805, 134.958333],
            [50.214850, 118.002497, 15.860472, 234.195570, -23.633349, 307.625122, 130.895833],
        ];
        for (c, expected) in golden.iter().enumerate() {
            let plane: Vec<f64> = out.iter().skip(c).step_by(3).copied().collect();
            let at = |y: usize, x: usize| plane[y * 24 + x];
            let min = plane.iter().copied().fold(f64::INFINITY, f64::min);
            let max = plane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mean = plane.iter().sum::<f64>() / plane.len() as f64;
            let found = [at(0, 0), at(5, 7), at(8, 12), at(15, 23), min, max, mean];
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "channel {c}: {found} instead of {expected}");
            }
        }
    }

    #[test]
    fn its_own_style_changes_nothing_and_odd_sizes_work() {
        let image = pattern(15, 21, |y, x, c| y * y + 3 * x + 5 * c);
        let transfer = FourierTransfer::new(image.clone(), (15, 21), 0.2).unwrap();
        let same = transfer.apply(&image, (15, 21)).unwrap();
        assert!(same.iter().zip(&image).all(|(a, b)| (a - b).abs() < 1e-4));
    }

    #[test]
    fn radius_zero_moves_the_mean_colour() {
        let black = vec![0f32; 4 * 4 * 3];
        let transfer = FourierTransfer::new(vec![9.0; 4 * 4 * 3], (4, 4), 0.01).unwrap();
        assert!(transfer.apply(&black, (4, 4)).unwrap().iter().all(|v| (v - 9.0).abs() < 1e-5));
    }

    #[test]
    fn a_tiny_photo_limits_the_radius() {
        let transfer = FourierTransfer::new(vec![1.0; 3], (1, 1), 0.5).unwrap();
        assert_eq!(transfer.apply(&[2.0; 8 * 8 * 3], (8, 8)).unwrap().len(), 8 * 8 * 3);
        assert!(FourierTransfer::new(vec![1.0; 3], (1, 2), 0.1).is_err());
        assert!(FourierTransfer::new(vec![1.0; 3], (1, 1), f64::NAN).is_err());
    }
}
