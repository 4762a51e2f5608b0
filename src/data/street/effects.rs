//! What happens between the scene and the file: reflections on wet ground, glowing lamps, rain, snow, the camera.

use super::layout::LampKind;
use super::look::{Air, Look};
use super::math::{Rgb, V3, gray, hash, hash01, mix, noise, pow, v3};
use super::render::{Canvas, Frame};
use super::signs::signal_color;

/// Adds all that is not surface.
pub(super) fn finish(canvas: &mut Canvas, frame: &Frame, air: &Air, look: Look) {
    glows(canvas, frame, air);
    if air.wet > 0.05 {
        reflections(canvas, frame);
    }
    if air.rain > 0.0 {
        streaks(canvas, air);
    }
    if look == Look::Snow {
        flakes(canvas, air);
    }
}

/// Halos around lamps that the camera sees.
fn glows(canvas: &mut Canvas, frame: &Frame, air: &Air) {
    for lamp in &frame.scene.lamps {
        let to_eye = frame.view.eye - lamp.at;
        let distance = frame.view.depth(lamp.at);
        if distance < 1.5 {
            continue;
        }
        let facing = lamp.towards.dot(to_eye.unit());
        let (color, power, size, facing) = match lamp.kind {
            LampKind::Street => (v3(1.0, 0.74, 0.44), 0.9 * air.lamps, 1.15, 1.0),
            LampKind::Head => (v3(1.0, 0.95, 0.85), 1.5 * air.lamps, 0.8, facing.max(0.0)),
            LampKind::Tail => (v3(1.0, 0.05, 0.03), 0.55 * air.lamps, 0.4, facing.max(0.0)),
            LampKind::Brake => (v3(1.0, 0.05, 0.03), 0.1 + 0.9 * air.lamps, 0.5, facing.max(0.0)),
            LampKind::Small => (v3(1.0, 0.95, 0.85), 0.8 * air.lamps, 0.35, facing.max(0.0)),
            LampKind::Signal(state) => (signal_color(state), 0.12 + 0.75 * air.lamps, 0.5, facing.max(0.0)),
        };
        let power = power * facing * facing;
        if power > 0.02 {
            halo(canvas, frame, lamp.at, color * power, size * (1.0 + 8.0 * air.density.min(0.05)));
        }
    }
}

/// A bright core and a wide, faint ring around it, as lenses and damp air make them.
fn halo(canvas: &mut Canvas, frame: &Frame, at: V3, light: Rgb, size: f32) {
    let spot = frame.pixel(at);
    let radius = (size * frame.pixels_per_metre(spot.z)).max(0.012 * canvas.width as f32);
    let (column, row) = (spot.x as i64, spot.y as i64);
    let inside = (0..canvas.width as i64).contains(&column) && (0..canvas.height as i64).contains(&row);
    if !inside || spot.x < 0.0 || spot.y < 0.0 || frame.nearness(column as usize, row as usize) > spot.z * 1.04 + 0.004 {
        return; // out of the picture, or behind something
    }
    let reach = radius.ceil() as i64;
    for y in (row - reach).max(0)..=(row + reach).min(canvas.height as i64 - 1) {
        for x in (column - reach).max(0)..=(column + reach).min(canvas.width as i64 - 1) {
            let (dx, dy) = (x as f32 + 0.5 - spot.x, y as f32 + 0.5 - spot.y);
            let t = 1.0 - (dx * dx + dy * dy) / (radius * radius);
            if t > 0.0 {
                let t2 = t * t;
                let core = t2 * t2 * t2;
                canvas.colors[y as usize * canvas.width + x as usize] += light * (0.22 * t2 * t + core * core);
            }
        }
    }
}

/// Wet ground mirrors what stands behind it: the mirrored ray is followed through the picture.
fn reflections(canvas: &mut Canvas, frame: &Frame) {
    let before = canvas.colors.clone();
    let (width, height) = (canvas.width, canvas.height);
    for y in 0..height {
        for x in 0..width {
            let mirror = canvas.mirror[y * width + x];
            let near = frame.nearness(x, y);
            if mirror < 0.02 || near <= 0.0 {
                continue;
            }
            let ray = frame.ray(x, y);
            let p = frame.view.eye + ray * (1.0 / near);
            // Ripples, and a roughness finer than a pixel.
            let ripple = noise(p.x * 5.0, p.z * 2.5, 41) - 0.5;
            let rough = |salt: u32| hash01(x as i32, y as i32, salt) - 0.5;
            let up = v3(ray.x + 0.02 * ripple + 0.014 * rough(43), -ray.y + 0.03 * ripple + 0.05 * rough(44), ray.z);
            let slant = 1.0 - (-ray.y / ray.length()).clamp(0.0, 1.0);
            let share = (mirror * (0.12 + 0.75 * slant * slant * slant)).min(0.85);
            let seen = follow(frame, &before, p, up);
            let at = y * width + x;
            canvas.colors[at] = before[at].mix(seen, share);
        }
    }
}

/// The colour that a ray from `p` along `d` meets on the screen.
fn follow(frame: &Frame, colors: &[Rgb], p: V3, d: V3) -> Rgb {
    let (width, height) = (frame.width, frame.height);
    let mut t = 0.06 * p.z + 0.4;
    let start = frame.pixel(p);
    let mut last = (start.x as usize, start.y as usize);
    for _ in 0..14 {
        let at = frame.pixel(p + d * t);
        if at.y < 0.0 || at.x < 0.0 || at.x >= width as f32 || at.y >= height as f32 {
            break;
        }
        last = (at.x as usize, at.y as usize);
        let near = frame.nearness(last.0, last.1);
        if near > at.z && near < at.z * 1.6 {
            break;
        }
        t *= 1.38;
    }
    colors[last.1.min(height - 1) * width + last.0.min(width - 1)]
}

/// Streaks of rain, slightly inclined, of several lengths.
fn streaks(canvas: &mut Canvas, air: &Air) {
    let (width, height) = (canvas.width as i64, canvas.height as i64);
    let number = (air.rain * (width * height) as f32 / 1000.0) as i32;
    let slope = mix(-0.25, 0.25, hash01(1, 2, air.seed));
    for i in 0..number {
        let h = |salt: i32| hash01(i, salt, air.seed);
        let (x, y) = (h(1) * width as f32, h(2) * height as f32);
        let long = (0.015 + 0.05 * h(3) * h(3)) * height as f32 + 1.5;
        let strength = 0.05 + 0.16 * h(4);
        for step in 0..long as i64 {
            let (sx, sy) = ((x + slope * step as f32) as i64, y as i64 + step);
            if (0..width).contains(&sx) && (0..height).contains(&sy) {
                let color = &mut canvas.colors[(sy * width + sx) as usize];
                *color = color.mix(air.skyline * 1.05, strength);
            }
        }
    }
}

/// Flakes: many small ones, a few large ones out of focus.
fn flakes(canvas: &mut Canvas, air: &Air) {
    let (width, height) = (canvas.width as i64, canvas.height as i64);
    let number = (air.flakes * (width * height) as f32 / 1000.0) as i32;
    let unit = height as f32 / 256.0;
    for i in 0..number {
        let h = |salt: i32| hash01(i, salt, air.seed);
        let (x, y) = (h(1) * width as f32, h(2) * height as f32);
        let near = h(3) * h(3) * h(3);
        let radius = (0.45 + 2.4 * near * near) * unit + 0.25;
        let strength = mix(0.75, 0.3, near);
        let reach = radius.ceil() as i64;
        for sy in (y as i64 - reach).max(0)..=(y as i64 + reach).min(height - 1) {
            for sx in (x as i64 - reach).max(0)..=(x as i64 + reach).min(width - 1) {
                let (dx, dy) = (sx as f32 + 0.5 - x, sy as f32 + 0.5 - y);
                let cover = (radius + 0.5 - (dx * dx + dy * dy).sqrt()).clamp(0.0, 1.0);
                let color = &mut canvas.colors[(sy * width + sx) as usize];
                *color = color.mix(v3(0.86, 0.88, 0.92), cover * strength);
            }
        }
    }
}

/// The camera: exposure, tone curve, colour, vignette, noise, 8 bits.
pub(super) fn develop(canvas: &Canvas, air: &Air) -> Vec<u8> {
    let curve = tone_curve(air);
    let (width, height) = (canvas.width, canvas.height);
    let mut pixels = Vec::with_capacity(width * height * 3);
    let strength = 0.7 * 255.0 * air.noise;
    for y in 0..height {
        for x in 0..width {
            let (dx, dy) = (x as f32 / width as f32 - 0.5, y as f32 / height as f32 - 0.5);
            let corner = 1.0 - 0.38 * (dx * dx + dy * dy);
            let seen = canvas.colors[y * width + x].times(air.white) * (air.exposure * corner);
            let mean = seen.luminance();
            let seen = gray(mean).mix(seen, air.saturation);
            let mut bits = hash(x as i32, y as i32, air.seed);
            let common = noise4(bits);
            for value in [seen.x, seen.y, seen.z] {
                bits = (bits ^ (bits >> 16)).wrapping_mul(0x7feb_352d);
                let level = curve[entry(value).min(curve.len() - 1)];
                let noise = strength * (common + noise4(bits)) * (1.15 - level * (0.6 / 255.0));
                pixels.push((level + noise + 0.5) as u8);
            }
        }
    }
    pixels
}

/// The bits of 2⁻¹², the darkest light that the tone curve tells from black.
const DARKEST: u32 = (127 - 12) << 23;
/// Bits of a number that one entry of the tone curve spans: 512 entries an octave are finer than 8-bit levels.
const STEP: u32 = 14;
/// Entries of the tone curve: 14 octaves, up to a light of 4.
const CURVE: usize = 14 << (23 - STEP);

/// The entry of the tone curve for a light. Positive numbers are ordered like their bits, which count their logarithm.
#[inline]
fn entry(light: f32) -> usize {
    (light.max(0.0).to_bits().saturating_sub(DARKEST) >> STEP) as usize
}

/// Display level 0…255 for light of 0…4: highlights are rolled off, then contrast around middle gray.
fn tone_curve(air: &Air) -> Vec<f32> {
    let level = |i: usize| {
        let light = f32::from_bits(DARKEST + ((i as u32) << STEP) + (1 << (STEP - 1))) * 1.15;
        let rolled = light * (1.0 + light * 0.11) / (1.0 + light * 0.62);
        let display = pow(rolled.min(1.0), 1.0 / 2.2);
        (0.46 + (display - 0.46) * air.contrast).clamp(0.0, 1.0) * 255.0
    };
    (0..CURVE).map(level).collect()
}

/// Roughly normal noise of unit spread from 32 random bits: the sum of four bytes.
fn noise4(bits: u32) -> f32 {
    let sum: u32 = bits.to_le_bytes().iter().map(|&byte| u32::from(byte)).sum();
    (sum as f32 - 510.0) * (1.0 / 147.8)
}
