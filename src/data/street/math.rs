//! Vectors, colours, elementary functions and noise of the renderer.
//!
//! The functions of the standard library for sine, power and the like may differ in their last bits from one system to
//! the next. Those of `libm` are built from operations that IEEE 754 fixes, so a seed gives the same picture everywhere.

pub(super) use libm::{cosf as cos, expf as exp, sinf as sin};
use std::ops::{Add, AddAssign, Mul, Neg, Sub};

/// A point or direction in metres (x right, y up, z ahead), or a colour in linear light.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct V3 {
    pub x: f32,
    pub y: f32,
    pub z: f32,
}

/// A colour in linear light: 1 is a white sheet of paper in full daylight.
pub(super) type Rgb = V3;

pub(super) const fn v3(x: f32, y: f32, z: f32) -> V3 {
    V3 { x, y, z }
}

/// A gray.
pub(super) const fn gray(value: f32) -> Rgb {
    v3(value, value, value)
}

impl V3 {
    pub fn dot(self, other: Self) -> f32 {
        self.x * other.x + self.y * other.y + self.z * other.z
    }

    pub fn cross(self, o: Self) -> Self {
        v3(self.y * o.z - self.z * o.y, self.z * o.x - self.x * o.z, self.x * o.y - self.y * o.x)
    }

    pub fn length(self) -> f32 {
        self.dot(self).sqrt()
    }

    /// Length 1; the null vector stays as it is.
    pub fn unit(self) -> Self {
        self * (1.0 / self.length().max(1e-9))
    }

    /// Component by component, as light times reflectance.
    pub fn times(self, o: Self) -> Self {
        v3(self.x * o.x, self.y * o.y, self.z * o.z)
    }

    /// `self` at `t` = 0, `other` at 1.
    pub fn mix(self, other: Self, t: f32) -> Self {
        self + (other - self) * t
    }

    /// Brightness as eyes weigh it.
    pub fn luminance(self) -> f32 {
        self.dot(v3(0.2126, 0.7152, 0.0722))
    }
}

impl Add for V3 {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        v3(self.x + o.x, self.y + o.y, self.z + o.z)
    }
}

impl AddAssign for V3 {
    fn add_assign(&mut self, o: Self) {
        *self = *self + o;
    }
}

impl Sub for V3 {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        v3(self.x - o.x, self.y - o.y, self.z - o.z)
    }
}

impl Mul<f32> for V3 {
    type Output = Self;
    fn mul(self, k: f32) -> Self {
        v3(self.x * k, self.y * k, self.z * k)
    }
}

impl Neg for V3 {
    type Output = Self;
    fn neg(self) -> Self {
        self * -1.0
    }
}

/// `a` at `t` = 0, `b` at 1.
#[inline]
pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// 0 below `low`, 1 above `high`, smooth between.
#[inline]
pub(super) fn smooth(low: f32, high: f32, x: f32) -> f32 {
    // Written as a product, because the inverse is a constant almost everywhere.
    let t = ((x - low) * (1.0 / (high - low))).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Share of a window of width `w` around `x` that lies within `low`…`high`: a sharp bar without jagged edges.
#[inline]
pub(super) fn pulse(x: f32, low: f32, high: f32, w: f32) -> f32 {
    let half = 0.5 * w;
    (((x + half).min(high) - (x - half).max(low)) * (1.0 / w.max(1e-6))).clamp(0.0, 1.0)
}

/// Share of a window of width `w` around `x` that lies in the first `duty` of a period of 1.
#[inline]
pub(super) fn train(x: f32, duty: f32, w: f32) -> f32 {
    let area = |t: f32| floor(t) * duty + fract(t).min(duty);
    ((area(x + 0.5 * w) - area(x - 0.5 * w)) * (1.0 / w.max(1e-6))).clamp(0.0, 1.0)
}

/// The largest whole number not above `x`. Faster than the standard library's where the processor has no such instruction;
/// right for magnitudes below 2³¹.
#[inline]
pub(super) fn floor(x: f32) -> f32 {
    below(x) as f32
}

/// [`floor`] as an integer.
#[inline]
fn below(x: f32) -> i32 {
    let whole = x as i32;
    whole.wrapping_sub(i32::from(whole as f32 > x))
}

pub(super) fn fract(x: f32) -> f32 {
    x - floor(x)
}

/// `x` to the power of `y` for `x` ≥ 0.
pub(super) fn pow(x: f32, y: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { libm::powf(x, y) }
}

/// Mixes two coordinates and a seed to 32 bits without pattern.
pub(super) fn hash(x: i32, y: i32, seed: u32) -> u32 {
    let mut h = (x as u32).wrapping_mul(0x9e37_79b1) ^ (y as u32).wrapping_mul(0x85eb_ca77) ^ seed.wrapping_mul(0xc2b2_ae3d);
    h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    h ^ (h >> 15)
}

/// [`hash`] as a number of 0…1.
pub(super) fn hash01(x: i32, y: i32, seed: u32) -> f32 {
    (hash(x, y, seed) >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Smooth noise of 0…1 with one bump per unit.
#[inline]
pub(super) fn noise(x: f32, y: f32, seed: u32) -> f32 {
    let (ix, iy) = (below(x), below(y));
    let (tx, ty) = (x - ix as f32, y - iy as f32);
    let (tx, ty) = (tx * tx * (3.0 - 2.0 * tx), ty * ty * (3.0 - 2.0 * ty));
    // The corners' numbers; one round less than `hash`, which is enough here and counts in the inner loop.
    const COLUMN: u32 = 0x9e37_79b1;
    const ROW: u32 = 0x85eb_ca77;
    let left = (ix as u32).wrapping_mul(COLUMN);
    let row = (iy as u32).wrapping_mul(ROW);
    let salt = seed.wrapping_mul(0xc2b2_ae3d);
    let corner = |column: u32, row: u32| {
        let h = column ^ row ^ salt;
        ((h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d) >> 8) as f32
    };
    let (right, below) = (left.wrapping_add(COLUMN), row.wrapping_add(ROW));
    let upper = mix(corner(left, row), corner(right, row), tx);
    let lower = mix(corner(left, below), corner(right, below), tx);
    mix(upper, lower, ty) * (1.0 / 16_777_216.0)
}

/// Sum of `octaves` of [`noise`], each twice as fine and half as strong; 0…1.
pub(super) fn clouds(x: f32, y: f32, seed: u32, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut total, mut scale) = (0.0, 1.0, 0.0, 1.0);
    for octave in 0..octaves {
        sum += weight * noise(x * scale, y * scale, seed.wrapping_add(octave));
        total += weight;
        weight *= 0.5;
        scale *= 2.03;
    }
    sum / total
}

/// A colour from its sRGB values of 0…255, in linear light.
pub(super) fn srgb(r: u8, g: u8, b: u8) -> Rgb {
    let linear = |value: u8| pow(f32::from(value) / 255.0, 2.2);
    v3(linear(r), linear(g), linear(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_keep_their_area_when_blurred() {
        for w in [0.01, 0.3, 1.7] {
            let mean = (0..1000).map(|i| train(i as f32 / 1000.0, 0.25, w)).sum::<f32>() / 1000.0;
            assert!((mean - 0.25).abs() < 0.01, "{w}: {mean}");
        }
        assert_eq!(pulse(0.5, 0.0, 1.0, 0.1), 1.0);
        assert_eq!(pulse(0.0, 0.0, 1.0, 0.1), 0.5);
    }
}
