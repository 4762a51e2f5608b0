//! Random colours as SSD draws them, on 8-bit pictures, with the arithmetic of OpenCV.

use crate::base::Rng;
use crate::io::images::RgbImage;

/// One draw of all changes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ColorJitter {
    /// Added to all values, −32…32.
    pub brightness: Option<f32>,
    /// Contrast comes before saturation and hue, else after them.
    pub contrast_first: bool,
    /// Factor of all values, 0.5…1.5.
    pub contrast: Option<f32>,
    /// Factor of the saturation, 0.5…1.5.
    pub saturation: Option<f32>,
    /// Steps of 2° that the hue turns by, −18…18.
    pub hue: Option<i32>,
}

impl ColorJitter {
    /// # Randomness
    /// Whether and how much brightness; the order; then whether and how much contrast, saturation and hue.
    ///
    /// # Source
    /// detectron2's `ColorAugSSDTransform`: each change with probability ½.
    pub fn draw(rng: &mut Rng) -> Self {
        let coin = |rng: &mut Rng| rng.below(2) == 1;
        let brightness = coin(rng).then(|| rng.uniform_in(-32.0, 32.0));
        let contrast_first = coin(rng);
        let factor = |rng: &mut Rng| coin(rng).then(|| rng.uniform_in(0.5, 1.5));
        let (contrast, saturation) = (factor(rng), factor(rng));
        let hue = coin(rng).then(|| rng.below(37) as i32 - 18);
        Self { brightness, contrast_first, contrast, saturation, hue }
    }

    /// Changes a picture; values are cut to 8 bits after each change.
    pub fn apply(&self, image: &mut RgbImage) {
        let pixels = &mut image.pixels;
        if let Some(shift) = self.brightness {
            linear(pixels, 1.0, shift);
        }
        let contrast = self.contrast.unwrap_or(1.0);
        if self.contrast_first {
            linear(pixels, contrast, 0.0);
        }
        if let Some(factor) = self.saturation {
            let table = table(factor, 0.0);
            in_hsv(pixels, |[h, s, v]| [h, table[usize::from(s)], v]);
        }
        if let Some(steps) = self.hue {
            in_hsv(pixels, |[h, s, v]| [(i32::from(h) + steps).rem_euclid(180) as u8, s, v]);
        }
        if !self.contrast_first {
            linear(pixels, contrast, 0.0);
        }
    }
}

/// `value · scale + shift`, cut to 8 bits without rounding.
fn table(scale: f32, shift: f32) -> [u8; 256] {
    std::array::from_fn(|value| (value as f32 * scale + shift).clamp(0.0, 255.0) as u8)
}

fn linear(pixels: &mut [u8], scale: f32, shift: f32) {
    let table = table(scale, shift);
    pixels.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

fn in_hsv(pixels: &mut [u8], change: impl Fn([u8; 3]) -> [u8; 3]) {
    let tables = HsvTables::new();
    for pixel in pixels.chunks_exact_mut(3) {
        let hsv = tables.hsv([pixel[0], pixel[1], pixel[2]]);
        pixel.copy_from_slice(&to_rgb(change(hsv)));
    }
}

/// Bits of the fraction in OpenCV's tables.
const SHIFT: i32 = 12;

/// Reciprocals in fixed point.
struct HsvTables {
    /// 255 / value
    saturation: [i32; 256],
    /// 30 / range
    hue: [i32; 256],
}

impl HsvTables {
    fn new() -> Self {
        let table = |numerator: f64| {
            let entry = |value: usize| match value {
                0 => 0,
                _ => (numerator * f64::from(1 << SHIFT) / value as f64).round_ties_even() as i32,
            };
            std::array::from_fn(entry)
        };
        Self { saturation: table(255.0), hue: table(30.0) }
    }

    /// 8-bit HSV: hue in steps of 2°, 0…179.
    fn hsv(&self, rgb: [u8; 3]) -> [u8; 3] {
        let [r, g, b] = rgb.map(i32::from);
        let value = r.max(g).max(b);
        let range = value - r.min(g).min(b);
        let sector = match value {
            v if v == r => g - b,
            v if v == g => b - r + 2 * range,
            _ => r - g + 4 * range,
        };
        let rounded = |product: i32| (product + (1 << (SHIFT - 1))) >> SHIFT;
        let hue = rounded(sector * self.hue[range as usize]);
        let saturation = rounded(range * self.saturation[value as usize]);
        [hue.rem_euclid(180) as u8, saturation as u8, value as u8]
    }
}

/// As the vector code of OpenCV, which cuts the result off. The few pixels at the end of a row that do not fill a vector are rounded
/// there, so its results depend on the machine; ours do not.
fn to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    const UNIT: f32 = 1.0 / 255.0;
    let (hue, saturation, value) = (f32::from(h) * (6.0 / 180.0), f32::from(s) * UNIT, f32::from(v) * UNIT);
    let part = hue.fract();
    // 1 − s·share is rounded once, as by a fused instruction.
    let lowered = |share: f32| value * (1.0 - f64::from(saturation) * f64::from(share)) as f32;
    let (low, falling, rising) = (lowered(1.0), lowered(part), lowered(1.0 - part));
    let rgb = match hue as u8 {
        0 => [value, rising, low],
        1 => [falling, value, low],
        2 => [low, value, rising],
        3 => [low, falling, value],
        4 => [rising, low, value],
        _ => [value, low, falling],
    };
    rgb.map(|value| (value * 255.0) as u8)
}
