//! What light arrives where: sun with shadows, sky, lamps; and the sky itself.

use super::layout::{Lamp, LampKind, Scene};
use super::look::Air;
use super::math::{Rgb, V3, clouds, gray, smooth, v3};
use super::raster::{Buffer, View};
use super::surface::Surface;

/// Half the width of the ground that the sun's shadows are computed for, in metres.
const SHADOW_REACH: f32 = 46.0;
/// Samples across that ground.
const SHADOW_SIZE: usize = 576;

/// All light of one picture.
#[derive(Debug)]
pub(super) struct Light<'a> {
    pub air: &'a Air,
    sun: Option<(View, Buffer)>,
    /// Street lamps by distance, and headlamps: place, direction, colour.
    street_lamps: Vec<V3>,
    beams: Vec<(V3, V3, f32)>,
}

impl<'a> Light<'a> {
    pub fn new(scene: &Scene, air: &'a Air) -> Self {
        let sun = (air.sun.luminance() > 0.02).then(|| shadows(scene, air));
        let (mut street_lamps, mut beams) = (Vec::new(), Vec::new());
        if air.lamps > 0.3 {
            street_lamps = scene.lamps.iter().filter(|lamp| lamp.kind == LampKind::Street).map(|lamp| lamp.at).collect();
            beams = car_beams(&scene.lamps);
            let ahead = scene.street.pose(scene.street.ego, 0.0).ahead;
            beams.push((v3(0.0, 0.65, 1.0), ahead, 2.6));
        }
        Self { air, sun, street_lamps, beams }
    }

    /// Share of the sun's light that arrives at `p`.
    fn sunlit(&self, p: V3, normal: V3) -> f32 {
        let Some((view, buffer)) = &self.sun else { return 0.0 };
        let at = view.project(p + normal * 0.12);
        let (x, y) = (at.x - 0.5, at.y - 0.5);
        let last = (SHADOW_SIZE - 2) as f32;
        if x < 0.0 || y < 0.0 || x > last || y > last {
            return 0.75;
        }
        let (ix, iy) = (x as usize, y as usize);
        let free = |i: usize, j: usize| f32::from(u8::from(buffer.near[(iy + j) * SHADOW_SIZE + ix + i] < at.z + 0.12));
        let (tx, ty) = (x - ix as f32, y - iy as f32);
        let upper = free(0, 0) * (1.0 - tx) + free(1, 0) * tx;
        let lower = free(0, 1) * (1.0 - tx) + free(1, 1) * tx;
        upper * (1.0 - ty) + lower * ty
    }

    /// Light of lamps at `p`.
    fn lamps(&self, p: V3, normal: V3) -> Rgb {
        let mut sum = gray(0.0);
        for lamp in &self.street_lamps {
            let to = *lamp - p;
            if to.z.abs() > 15.0 || to.x.abs() > 15.0 {
                continue;
            }
            let d2 = to.dot(to) + 1.5;
            let inverse = 1.0 / d2.sqrt();
            let down = (to.y * inverse).max(0.0);
            let facing = (normal.dot(to) * inverse * 0.85 + 0.15).max(0.0);
            sum += v3(1.0, 0.72, 0.42) * (46.0 * down * facing / d2);
        }
        for (from, ahead, power) in &self.beams {
            let d = p - *from;
            let along = d.dot(*ahead);
            if !(0.5..32.0).contains(&along) {
                continue;
            }
            let aside2 = d.dot(d) - along * along;
            let spread = 0.4 + 0.24 * along;
            if aside2 > spread * spread {
                continue;
            }
            let shape = 1.0 - aside2 / (spread * spread);
            // Seen at a slant, a road would get little; beams are aimed at it.
            let facing = (0.45 - normal.dot(d) / (along + 1.0)).clamp(0.0, 1.0);
            let reach = (1.0 - along / 32.0) / (1.0 + 0.07 * along * along);
            sum += v3(1.0, 0.93, 0.8) * (power * shape * shape * facing * reach * 1.3);
        }
        sum * self.air.lamps
    }

    /// The colour of a surface at `p`, seen along `ray`; `contact` is the share of light that things on the ground let through.
    pub fn shade(&self, p: V3, ray: V3, s: &Surface, contact: f32) -> Rgb {
        let air = self.air;
        let n = s.normal;
        let mut light = air.bounce.mix(air.sky, 0.5 + 0.5 * n.y) * (s.open * contact);
        let facing = n.dot(air.sun_at);
        if facing > 0.0 && self.sun.is_some() {
            light += air.sun * (facing * self.sunlit(p, n) * (0.5 + 0.5 * contact));
        }
        if !self.beams.is_empty() {
            light += self.lamps(p, n) * (0.4 + 0.6 * contact);
        }
        let mut color = s.albedo.times(light);
        if s.gloss > 0.01 {
            let view = ray.unit();
            let cosine = (-n.dot(view)).clamp(0.0, 1.0);
            let slant = 1.0 - cosine;
            let share = s.gloss * (0.32 + 0.68 * slant * slant * slant);
            let mirrored = view - n * (2.0 * n.dot(view));
            color = color.mix(self.surroundings(mirrored) * contact, share.min(0.9));
        }
        color + s.emission
    }

    /// What a glossy surface mirrors in direction `d`: sky, a row of houses, ground.
    fn surroundings(&self, d: V3) -> Rgb {
        let air = self.air;
        let houses = air.sky.mix(air.bounce, 0.5) * 0.4 + air.skyline * 0.1;
        let ground = air.bounce * 0.55;
        if d.y < 0.16 {
            return ground.mix(houses, smooth(-0.1, 0.04, d.y));
        }
        houses.mix(self.plain_sky(d), smooth(0.16, 0.42, d.y))
    }

    /// The sky without clouds; `d` has length 1.
    fn plain_sky(&self, d: V3) -> Rgb {
        let air = self.air;
        let up = d.y.max(0.0);
        let low = 1.0 - up;
        let low2 = low * low;
        let mut color = air.zenith.mix(air.skyline, low2 * low2);
        let towards = d.dot(air.sun_at).max(0.0);
        if air.glow.x > 0.0 {
            let square = towards * towards;
            color += air.glow * (square * square * towards * 0.55 * (0.35 + 0.65 * low2));
        }
        color
    }

    /// The sky as the camera sees it along `ray`.
    pub fn sky(&self, ray: V3) -> Rgb {
        let air = self.air;
        let d = ray.unit();
        let mut color = self.plain_sky(d);
        let up = d.y.max(0.02);
        let (x, y) = (d.x / (up + 0.09), d.z / (up + 0.09));
        let bank = clouds(x * 0.9, y * 0.9, air.seed, 3);
        let edge = 0.82 - 0.52 * air.cover;
        let cover = smooth(edge, edge + 0.2, bank) * smooth(0.0, 0.1, d.y);
        if cover > 0.0 {
            let towards = d.dot(air.sun_at).max(0.0);
            let towards = towards * towards * towards * towards;
            let thick = smooth(edge + 0.05, edge + 0.45, bank);
            let tone = air.cloud * (1.0 - 0.38 * thick) + air.glow * (0.5 * towards * (1.0 - thick));
            color = color.mix(tone, 0.92 * cover);
        }
        let disc = d.dot(air.sun_at);
        if air.sun.luminance() > 0.02 && disc > 0.9993 {
            color = color.mix(air.sun * 3.0 + gray(0.6), 1.0 - 0.8 * cover);
        }
        color
    }

    /// What is left of `color` at `depth` metres.
    pub fn through_air(&self, color: Rgb, depth: f32) -> Rgb {
        let clear = super::math::exp(-self.air.density * depth);
        self.air.fog.mix(color, clear)
    }
}

/// One beam for the two headlamps of a car.
fn car_beams(lamps: &[Lamp]) -> Vec<(V3, V3, f32)> {
    let heads: Vec<&Lamp> = lamps.iter().filter(|lamp| lamp.kind == LampKind::Head && lamp.at.z < 45.0).collect();
    heads.iter().step_by(2).map(|lamp| (lamp.at, lamp.towards, 0.8)).collect()
}

/// What the sun sees.
fn shadows(scene: &Scene, air: &Air) -> (View, Buffer) {
    let ahead = -air.sun_at;
    let right = v3(ahead.z, 0.0, -ahead.x).unit();
    let up = ahead.cross(right);
    let centre = scene.street.place(0.0, 0.8 * SHADOW_REACH);
    let middle = 0.5 * SHADOW_SIZE as f32;
    let view = View {
        eye: centre - ahead * 150.0,
        right,
        up,
        ahead,
        focal: middle / SHADOW_REACH,
        cx: middle,
        cy: middle,
        perspective: false,
    };
    let mut buffer = Buffer::new(SHADOW_SIZE, SHADOW_SIZE, f32::MIN);
    buffer.draw(&view, &scene.model);
    (view, buffer)
}
