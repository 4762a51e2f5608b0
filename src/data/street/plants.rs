//! Trees, bushes and hedges.

use super::layout::{Scene, chance, pick_color};
use super::material::Material;
use super::math::{Rgb, V3, cos, sin, v3};
use super::model::{Cut, class};
use crate::base::Rng;

const GREENS: [[u8; 3]; 7] =
    [[72, 104, 46], [90, 122, 52], [58, 88, 44], [104, 128, 60], [80, 110, 66], [66, 96, 36], [112, 132, 50]];
const AUTUMN: [[u8; 3]; 4] = [[176, 120, 40], [150, 84, 36], [190, 150, 56], [134, 110, 48]];
const BARK: Material = Material::Cloth { color: v3(0.085, 0.062, 0.045) };

/// A direction without preference, and a radius below 1 that fills a ball evenly enough.
fn in_ball(rng: &mut Rng) -> V3 {
    let (angle, y) = (rng.uniform() * std::f32::consts::TAU, rng.uniform_in(-1.0, 1.0));
    let r = (1.0 - y * y).sqrt();
    v3(r * cos(angle), y, r * sin(angle)) * rng.uniform_in(0.55, 1.0)
}

impl Scene {
    /// A tree of some kind, `scale` 1 for a grown street tree.
    pub(super) fn tree(&mut self, rng: &mut Rng, foot: V3, scale: f32) {
        let color = match chance(rng, self.autumn) {
            true => pick_color(rng, &AUTUMN),
            false => pick_color(rng, &GREENS),
        } * rng.uniform_in(0.8, 1.1);
        match rng.below(10) {
            0..=5 => self.broadleaf(rng, foot, scale, color),
            6 => self.poplar(rng, foot, scale, color),
            7 | 8 => self.conifer(rng, foot, scale, color * 0.6),
            _ => self.bare(rng, foot, scale),
        }
    }

    /// Number of clumps that a tree at `foot` is worth: far ones need few.
    fn detail(&self, foot: V3, most: usize) -> usize {
        let share = (22.0 / foot.z.max(1.0)).clamp(0.22, 1.0);
        (most as f32 * share) as usize + 3
    }

    fn broadleaf(&mut self, rng: &mut Rng, foot: V3, scale: f32, color: Rgb) {
        let trunk = scale * rng.uniform_in(2.0, 3.2);
        let radius = scale * rng.uniform_in(1.5, 2.7);
        let tall = rng.uniform_in(0.85, 1.35);
        let crown = foot + v3(0.0, trunk + radius * tall * 0.75, 0.0);
        let fork = foot + v3(0.0, trunk, 0.0);
        self.model.limb(class::VEGETATION, BARK, foot, 0.2 * scale, fork, 0.12 * scale);
        for _ in 0..3 {
            let end = crown + in_ball(rng) * (0.6 * radius);
            self.model.limb(class::VEGETATION, BARK, fork, 0.1 * scale, end, 0.04 * scale);
        }
        let count = self.detail(foot, 46);
        for _ in 0..count {
            let d = in_ball(rng);
            let size = radius * rng.uniform_in(0.26, 0.44) * if count < 20 { 1.35 } else { 1.0 };
            let shade = color * (0.78 + 0.22 * d.y + rng.uniform_in(-0.1, 0.16));
            let at = crown + v3(d.x, d.y * tall, d.z) * (radius * 0.85);
            self.model.clump(Material::Leaves { color: shade }, at, size, 0.75, (rng.uniform() * 1e6) as u32);
        }
    }

    fn poplar(&mut self, rng: &mut Rng, foot: V3, scale: f32, color: Rgb) {
        let height = scale * rng.uniform_in(7.0, 11.0);
        self.model.limb(class::VEGETATION, BARK, foot, 0.18 * scale, foot + v3(0.0, 0.4 * height, 0.0), 0.1 * scale);
        let count = self.detail(foot, 36);
        for i in 0..count {
            let t = i as f32 / count as f32;
            let wide = scale * (0.5 + 1.1 * sin(std::f32::consts::PI * (0.15 + 0.8 * t)));
            let d = in_ball(rng) * (0.55 * wide);
            let at = foot + v3(d.x, 1.3 * scale + t * (height - 1.5 * scale), d.z);
            let shade = color * rng.uniform_in(0.75, 1.1);
            self.model.clump(Material::Leaves { color: shade }, at, wide * 0.6, 0.7, (rng.uniform() * 1e6) as u32);
        }
    }

    fn conifer(&mut self, rng: &mut Rng, foot: V3, scale: f32, color: Rgb) {
        let height = scale * rng.uniform_in(5.5, 9.5);
        let top = foot + v3(0.0, height, 0.0);
        self.model.limb(class::VEGETATION, BARK, foot, 0.16 * scale, top, 0.03);
        let count = self.detail(foot, 60);
        for i in 0..count {
            let t = i as f32 / count as f32;
            let wide = scale * 1.75 * (1.0 - t) + 0.12;
            let angle = rng.uniform() * std::f32::consts::TAU;
            let out = wide * 0.62;
            let at = foot + v3(out * cos(angle), 0.9 * scale + t * (height - scale), out * sin(angle));
            let shade = color * rng.uniform_in(0.7, 1.15);
            self.model.clump(
                Material::Leaves { color: shade },
                at,
                0.14 * scale + wide * 0.42,
                0.85,
                (rng.uniform() * 1e6) as u32,
            );
        }
        self.model.limb(class::VEGETATION, Material::Leaves { color }, top - v3(0.0, scale, 0.0), 0.25 * scale, top, 0.02);
    }

    /// Branches without leaves.
    fn bare(&mut self, rng: &mut Rng, foot: V3, scale: f32) {
        let fork = foot + v3(0.0, scale * rng.uniform_in(1.8, 2.6), 0.0);
        self.model.limb(class::VEGETATION, BARK, foot, 0.2 * scale, fork, 0.13 * scale);
        for _ in 0..7 {
            let d = in_ball(rng);
            let elbow = fork + v3(d.x * 1.1, 1.0 + 0.9 * d.y.max(-0.4), d.z * 1.1) * scale;
            self.model.limb(class::VEGETATION, BARK, fork, 0.1 * scale, elbow, 0.055 * scale);
            for _ in 0..4 {
                let d = in_ball(rng);
                let tip = elbow + v3(d.x * 0.9, 0.6 + 0.8 * d.y, d.z * 0.9) * scale;
                self.model.limb(class::VEGETATION, BARK, elbow, 0.05 * scale, tip, 0.018 * scale);
            }
        }
    }

    /// A round bush.
    pub(super) fn bush(&mut self, rng: &mut Rng, foot: V3, size: f32) {
        let color = pick_color(rng, &GREENS) * rng.uniform_in(0.7, 1.0);
        for _ in 0..self.detail(foot, 9) {
            let d = in_ball(rng);
            let at = foot + v3(d.x, 0.75 + 0.5 * d.y, d.z) * (0.6 * size);
            let shade = color * rng.uniform_in(0.75, 1.15);
            self.model.clump(Material::Leaves { color: shade }, at, 0.5 * size, 0.6, (rng.uniform() * 1e6) as u32);
        }
    }

    /// A clipped hedge between two points.
    pub(super) fn hedge(&mut self, rng: &mut Rng, from: V3, to: V3, height: f32) {
        let leaves = Material::Leaves { color: pick_color(rng, &GREENS) * 0.8 };
        let up = v3(0.0, height, 0.0);
        self.model.sheet(class::VEGETATION, leaves, [from, to, to + up, from + up], Cut::Whole);
        let steps = ((to - from).length() / 0.8) as usize + 1;
        for i in 0..steps {
            let at = from.mix(to, (i as f32 + rng.uniform()) / steps as f32) + v3(0.0, height - 0.1, 0.0);
            self.model.clump(leaves, at, rng.uniform_in(0.25, 0.45), 0.7, (rng.uniform() * 1e6) as u32);
        }
    }
}
