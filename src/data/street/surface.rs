//! How grounds and simple materials look: colour, bumps, gloss and light of their own at one place.

use super::ground::index;
use super::layout::Scene;
use super::look::Air;
use super::material::Material;
use super::math::{Rgb, V3, clouds, floor, fract, gray, hash01, mix, noise, pulse, smooth, train, v3};

/// What light meets at one place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surface {
    /// Share of light that is scattered.
    pub albedo: Rgb,
    pub normal: V3,
    /// Share of light that is mirrored, seen from straight above.
    pub gloss: f32,
    /// Light of its own.
    pub emission: Rgb,
    /// Share of the sky's light that arrives.
    pub open: f32,
    /// How much the scene itself is mirrored (wet ground).
    pub mirror: f32,
}

impl Surface {
    /// A dull surface.
    pub fn dull(albedo: Rgb, normal: V3) -> Self {
        Self { albedo, normal, gloss: 0.0, emission: gray(0.0), open: 1.0, mirror: 0.0 }
    }

    /// The same, shining with `light`.
    pub fn lit(self, light: Rgb) -> Self {
        Self { emission: light, ..self }
    }

    /// The same, mirroring.
    pub fn glossy(self, gloss: f32) -> Self {
        Self { gloss, ..self }
    }
}

/// One place on a primitive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub p: V3,
    pub normal: V3,
    /// Texture coordinates, in metres.
    pub u: f32,
    pub v: f32,
    /// Metres that a pixel covers there, across and along the line of sight.
    pub w: f32,
    pub long: f32,
}

/// The look of everything but house fronts, vehicles and signs.
pub(super) fn plain(scene: &Scene, air: &Air, material: Material, at: &Place) -> Surface {
    let n = at.normal;
    match material {
        Material::Road => road(scene, air, at),
        Material::Kerb => kerb(at),
        Material::Pavement => pavement(scene, air, at),
        Material::Grass => grass(scene, at),
        Material::Roof { color } => {
            let rows = 1.0 - 0.35 * train(at.v / 0.34, 0.2, at.w / 0.34);
            let tone = mix(0.75, 1.15, noise(at.u * 3.0, at.v * 3.0, 5));
            Surface::dull(color * (rows * tone), n)
        }
        Material::Masonry { color } => Surface::dull(bricks(color, at, 0.4, 0.2, 77), n),
        Material::Plain { color, gloss } => Surface::dull(color, n).glossy(gloss),
        Material::Cloth { color } => {
            let fold = noise(at.p.x * 9.0 + at.p.z * 5.0, at.p.y * 7.0, 31);
            Surface::dull(color * mix(0.72, 1.22, fold), n)
        }
        Material::Leaves { color } => leaves(color, at),
        Material::Wheel { radius } => wheel(radius, at),
        Material::Glass => Surface::dull(v3(0.03, 0.035, 0.04), n).glossy(0.5),
        Material::StreetLamp => Surface::dull(gray(0.6), n).lit(v3(2.6, 2.1, 1.4) * air.lamps),
        Material::Poster { seed, width, height } => poster(air, at, seed, width, height),
        _ => Surface::dull(gray(0.5), n),
    }
}

fn wheel(radius: f32, at: &Place) -> Surface {
    let d = (at.u * at.u + at.v * at.v).sqrt() / radius;
    let rim = 1.0 - smooth(0.6, 0.66, d);
    let spoke = noise(at.u * 18.0, at.v * 18.0, 9);
    let color = mix(0.016, mix(0.12, 0.5, spoke), rim);
    Surface::dull(gray(color), at.normal).glossy(0.2 * rim)
}

fn leaves(color: Rgb, at: &Place) -> Surface {
    let (x, y) = (at.p.x * 6.0 + at.p.z * 4.0, at.p.y * 7.0 + at.p.z * 2.0);
    let fine = 1.0 - smooth(0.05, 0.25, at.w);
    let (coarse, small) = (noise(x, y, 3), noise(2.7 * x, 2.7 * y, 4));
    let speck = mix(0.5, 0.5 * (coarse + small), 0.35 + 0.65 * fine);
    let tilt = v3(coarse - 0.5, small - 0.3, 0.5 * (small - coarse));
    let mut surface = Surface::dull(color * mix(0.45, 1.7, speck), (at.normal + tilt * 1.1).unit());
    // Light is scarce low in a crown and inside it.
    surface.open = mix(0.5, 1.0, smooth(-0.8, 0.5, at.normal.y));
    surface
}

fn poster(air: &Air, at: &Place, seed: u32, width: f32, height: f32) -> Surface {
    let (x, y) = (at.u / width, at.v / height);
    let hue = |salt: u32| hash01(salt as i32, 0, seed);
    let base = v3(hue(1), hue(2), hue(3)) * 0.7 + gray(0.05);
    let blob = pulse(x, 0.2, 0.8, 0.05) * pulse(y, 0.35, 0.85, 0.05);
    let color =
        base.mix(v3(hue(4), hue(5), hue(6)) * 0.8, blob).mix(gray(0.8), pulse(y, 0.1, 0.2, 0.05) * pulse(x, 0.1, 0.9, 0.05));
    Surface::dull(color, at.normal).lit(color * (1.2 * air.lamps))
}

/// Noise of a strength of 0…1 around its mean: fine detail that must not flicker far away.
pub(super) fn fading(x: f32, y: f32, seed: u32, strength: f32) -> f32 {
    if strength <= 0.0 { 0.5 } else { mix(0.5, noise(x, y, seed), strength) }
}

/// Rows of stones `long` × `tall` metres with joints.
pub(super) fn bricks(color: Rgb, at: &Place, long: f32, tall: f32, seed: u32) -> Rgb {
    let row = floor(at.v / tall);
    let shift = if row as i32 % 2 == 0 { 0.0 } else { 0.5 };
    let column = at.u / long + shift;
    let detail = 1.0 - smooth(0.3 * tall, 1.2 * tall, at.w);
    let joint = train(column, 0.06, at.w / long).max(train(at.v / tall, 0.12, at.w / tall));
    let tone = mix(1.0, mix(0.72, 1.25, hash01(floor(column) as i32, row as i32, seed)), detail);
    let stain = mix(0.82, 1.1, clouds(at.u * 0.5, at.v * 0.35, seed, 2));
    (color * tone).mix(color * 0.5 + gray(0.12), 0.7 * joint) * stain
}

fn kerb(at: &Place) -> Surface {
    let joint = train(at.v, 0.03, at.long);
    let tone = mix(0.85, 1.1, noise(at.u * 4.0, at.v * 2.0, 11));
    Surface::dull(gray(0.36 * tone * (1.0 - 0.5 * joint)), at.normal)
}

fn pavement(scene: &Scene, air: &Air, at: &Place) -> Surface {
    let street = &scene.street;
    let size = if street.seed.is_multiple_of(3) { 0.4 } else { 0.75 };
    let (x, y) = (at.u / size, at.v / size);
    let detail = 1.0 - smooth(0.3, 1.3, at.long / size);
    let joint = train(x, 0.07, at.w / size).max(train(y, 0.07, at.long / size));
    let tone = mix(1.0, mix(0.82, 1.14, hash01(floor(x) as i32, floor(y) as i32, street.seed)), detail);
    let stain = mix(0.78, 1.1, clouds(at.u * 0.6, at.v * 0.35, 21, 2));
    let mut surface = Surface::dull(street.paving * (0.62 * tone * stain * (1.0 - 0.35 * joint)), at.normal);
    let side = if at.u > 0.0 { 1.0 } else { -1.0 };
    let to_wall = (street.building_line(side) - at.u) * side;
    surface.open = mix(0.62, 1.0, smooth(0.0, 1.2, to_wall));
    moisten(&mut surface, air, 0.12 * stain);
    surface
}

fn grass(scene: &Scene, at: &Place) -> Surface {
    let (u, v) = (at.u, at.v);
    let dry = clouds(u * 0.22, v * 0.16, scene.street.seed, 2);
    let green = v3(0.1, 0.17, 0.035).mix(v3(0.24, 0.2, 0.08), smooth(0.45, 0.8, dry));
    let fade = 1.0 - smooth(0.1, 0.8, at.long);
    let blade = fading(u * 9.0, v * 4.0, 15, fade);
    let patch = noise(u * 1.3, v * 0.8, 16);
    Surface::dull(green * mix(0.55, 1.45, 0.6 * blade + 0.4 * patch), at.normal)
}

/// Darkens what is wet and lets it mirror the scene.
fn moisten(surface: &mut Surface, air: &Air, mirror: f32) {
    surface.albedo = surface.albedo * (1.0 - 0.42 * air.wet);
    surface.mirror = mirror * air.wet;
}

fn road(scene: &Scene, air: &Air, at: &Place) -> Surface {
    let street = &scene.street;
    let (l, s) = (at.u, at.v);
    let kerb = street.kerb_at(if l > 0.0 { 1.0 } else { -1.0 });
    let inside = l.abs() < kerb.abs();
    let wide = clouds(l * 0.35, s * 0.12, street.seed, 2);
    let grain = fading(l * 14.0, s * 14.0, 17, 1.0 - smooth(0.02, 0.2, at.long));
    let mut tone = 0.125 * mix(0.7, 1.3, wide) * mix(0.75, 1.25, grain);
    if inside {
        tone *= 1.0 - 0.13 * tracks(l / street.lane, at.w);
        tone *= patches(l, s, street.seed);
    }
    let mut color = v3(1.0, 1.0, 1.03) * tone;
    if street.cycle_lane && inside && !street.in_crossing(s, 0.0) {
        let edge = kerb - kerb.signum() * street.parking[index(kerb)];
        let lane = pulse(l * street.keep, edge.abs() - 1.5, edge.abs() - 0.1, at.w) * f32::from(u8::from(l * street.keep > 0.0));
        color = color.mix(v3(0.3, 0.085, 0.06) * mix(0.7, 1.2, wide), 0.85 * lane);
    }
    let paint = markings(scene, at);
    if paint > 0.0 {
        let wear = smooth(0.2, 0.6, clouds(l * 1.7, s * 0.9, 19, 2)) * 0.75 + 0.2;
        color = color.mix(gray(0.68), paint * wear);
    }
    let mut surface = Surface::dull(color, at.normal);
    if street.tracks && inside {
        rails(scene, at, &mut surface);
    }
    let gutter = (kerb - l) * kerb.signum();
    if inside && !street.in_crossing(s, 0.0) {
        surface.open = mix(0.6, 1.0, smooth(0.0, 0.5, gutter));
        surface.albedo = surface.albedo * mix(0.8, 1.0, smooth(0.1, 0.6, gutter));
    }
    if air.wet <= 0.0 {
        return surface;
    }
    let puddle = smooth(0.52, 0.6, clouds(l * 0.45 + 7.0, s * 0.2, street.seed ^ 5, 2)) + 0.8 * (1.0 - smooth(0.1, 0.8, gutter));
    moisten(&mut surface, air, 0.3 + 0.55 * puddle.min(1.0));
    surface
}

/// Where wheels polish a lane; `x` in lanes.
fn tracks(x: f32, w: f32) -> f32 {
    let t = fract(x);
    pulse(t, 0.18, 0.36, 0.12 + w * 0.3) + pulse(t, 0.64, 0.82, 0.12 + w * 0.3)
}

/// Mended places and manhole covers.
fn patches(l: f32, s: f32, seed: u32) -> f32 {
    let cell = floor(s / 9.0);
    let h = |salt: i32| hash01(cell as i32, salt, seed);
    let along = s - cell * 9.0;
    let draw = h(1);
    if draw < 0.45 {
        let (at, middle) = (6.0 * h(2), (h(3) - 0.5) * 9.0);
        let mended = along > at && along < at + 1.0 + 2.0 * h(4) && (l - middle).abs() < 0.8 + 1.2 * h(5);
        return if mended { 0.72 } else { 1.0 };
    }
    let (x, y) = (l - (h(6) - 0.5) * 7.0, along - 8.0 * h(7));
    if draw > 0.6 && x * x + y * y < 0.11 { 0.6 } else { 0.97 }
}

fn rails(scene: &Scene, at: &Place, surface: &mut Surface) {
    let street = &scene.street;
    for with in [false, true] {
        let middle = street.lane_middle(0, with);
        for side in [-0.72, 0.72] {
            let rail = pulse(at.u, middle + side - 0.05, middle + side + 0.05, at.w);
            surface.albedo = surface.albedo.mix(v3(0.2, 0.19, 0.18), rail);
            surface.gloss = surface.gloss.max(0.35 * rail);
        }
        let bed = pulse(at.u, middle - 1.2, middle + 1.2, at.w);
        surface.albedo = surface.albedo * (1.0 + 0.3 * bed);
    }
}

/// Share of a place that is covered with white paint.
fn markings(scene: &Scene, at: &Place) -> f32 {
    let street = &scene.street;
    let (l, s, w, long) = (at.u, at.v, at.w, at.long);
    let side = if l > 0.0 { 1.0 } else { -1.0 };
    let half = street.lanes as f32 * street.lane;
    let line = |middle: f32, width: f32| pulse(l, middle - 0.5 * width, middle + 0.5 * width, w);
    let mut paint: f32 = 0.0;
    if let Some((begin, end, striped)) = street.walkway {
        if l.abs() < half + street.parking[index(side)] {
            let within = pulse(s, begin, end, long);
            paint = within * if striped { train(l, 0.5, w) } else { 0.0 };
            if !striped {
                paint = pulse(s, begin, begin + 0.25, long) + pulse(s, end - 0.25, end, long);
            }
            let ours = l * street.keep > 0.0 && l.abs() < half;
            if ours {
                paint = paint.max(pulse(s, begin - 1.7, begin - 1.2, long));
                paint = paint.max(arrow(l * street.keep, s - begin + 8.0, street.lane, w, long));
            }
        }
        if s > begin - 1.0 && s < end + 1.0 {
            return paint.min(1.0);
        }
    }
    if street.in_crossing(s, 1.5) || l.abs() > half + 0.2 {
        return paint.min(1.0);
    }
    let dash = train(s / 9.0, 0.45, long / 9.0);
    let centre = if street.broken_centre && street.lanes == 1 { line(0.0, 0.14) * dash } else { line(0.0, 0.14) };
    paint = paint.max(if street.lanes == 2 { line(-0.15, 0.12) + line(0.15, 0.12) } else { centre });
    for lane in 1..street.lanes {
        paint = paint.max(line(side * lane as f32 * street.lane, 0.14) * dash);
    }
    if street.parking[index(side)] > 0.0 {
        paint = paint.max(line(side * half, 0.12) * train(s / 6.0, 0.94, long / 6.0));
    }
    paint.min(1.0)
}

/// An arrow ahead, 4 m long, in the middle of each lane.
fn arrow(l: f32, s: f32, lane: f32, w: f32, long: f32) -> f32 {
    let x = (fract(l / lane) - 0.5) * lane;
    let shaft = pulse(x, -0.07, 0.07, w) * pulse(s, 0.0, 2.6, long);
    let half = (0.42 * (4.0 - s) / 1.4).clamp(0.0, 0.42);
    shaft.max(pulse(x, -half, half, w) * pulse(s, 2.6, 4.0, long))
}
