//! Poles, lamps, signs, traffic lights, fences, walls, shelters.

use super::buildings::accent;
use super::layout::{Lamp, LampKind, Scene, chance, pick};
use super::material::{Material, SignKind, Signal};
use super::math::{V3, cos, gray, sin, v3};
use super::model::{Cut, Pose, class};
use crate::base::Rng;
use crate::labels::IGNORE;

const UP: V3 = v3(0.0, 1.0, 0.0);

impl Scene {
    /// A street lamp at `pose` whose arm reaches `out` metres to the right (negative: left).
    pub(super) fn street_lamp(&mut self, rng: &mut Rng, pose: &Pose, out: f32) {
        let steel = Material::Plain { color: self.pole_color, gloss: 0.15 };
        let p = |x, y, z| pose.at(x, y, z);
        let model = &mut self.model;
        let c = class::POLE;
        let height = rng.uniform_in(6.0, 8.0);
        let at = if self.lanterns {
            model.limb(c, steel, p(0.0, 0.0, 0.0), 0.11, p(0.0, 0.8, 0.0), 0.07);
            model.limb(c, steel, p(0.0, 0.8, 0.0), 0.06, p(0.0, 4.0, 0.0), 0.05);
            model.ball(c, Material::StreetLamp, p(0.0, 4.25, 0.0), 0.24);
            model.limb(c, steel, p(0.0, 4.5, 0.0), 0.2, p(0.0, 4.62, 0.0), 0.05);
            p(0.0, 4.25, 0.0)
        } else {
            let (bend, end) = (p(0.12 * out, height + 0.35, 0.0), p(out, height + 0.55, 0.0));
            model.limb(c, steel, p(0.0, 0.0, 0.0), 0.1, p(0.0, height, 0.0), 0.065);
            model.limb(c, steel, p(0.0, height, 0.0), 0.065, bend, 0.055);
            model.limb(c, steel, bend, 0.055, end, 0.05);
            model.limb(c, steel, end, 0.09, p(out * 1.3, height + 0.56, 0.0), 0.08);
            let glass = p(out * 1.16, height + 0.47, 0.0);
            model.limb(c, Material::StreetLamp, glass, 0.075, p(out * 1.3, height + 0.49, 0.0), 0.065);
            glass
        };
        self.lamps.push(Lamp { at, kind: LampKind::Street, towards: -UP });
        self.contact(*pose, 0.15, 0.15, 0.5);
    }

    /// A regular polygon of the upright plane through `pose`, seen from behind it (from where its traffic comes).
    fn board(&mut self, class: u8, material: Material, pose: &Pose, centre: (f32, f32), radius: f32, corners: (usize, f32)) {
        let (sides, turn) = corners;
        let corner = |i: usize| {
            let angle = std::f32::consts::TAU * (i as f32 + turn) / sides as f32;
            pose.at(centre.0 + radius * cos(angle), centre.1 + radius * sin(angle), 0.0)
        };
        let points: Vec<V3> = (0..sides).map(corner).collect();
        let frame = (pose.at(centre.0, centre.1, 0.0), pose.right, UP);
        self.model.face(class, material, &points, frame, Cut::Whole, false);
        let back: Vec<V3> = points.iter().rev().map(|p| *p + pose.ahead * 0.03).collect();
        let gray_back = Material::Sign { kind: SignKind::Back, size: radius, seed: 0 };
        self.model.face(class, gray_back, &back, (frame.0, -pose.right, UP), Cut::Whole, false);
    }

    /// A pole with one or two signs for the traffic that moves along `pose`.
    pub(super) fn sign(&mut self, rng: &mut Rng, pose: &Pose) {
        let steel = Material::Plain { color: gray(0.3), gloss: 0.25 };
        let two = chance(rng, 0.3);
        let top = rng.uniform_in(2.35, 2.9) + if two { 0.75 } else { 0.0 };
        self.model.limb(class::POLE, steel, pose.at(0.0, 0.0, 0.05), 0.04, pose.at(0.0, top + 0.35, 0.05), 0.04);
        let facing = pose.turned(rng.uniform_in(-0.15, 0.15));
        self.sign_face(rng, &facing, top);
        if two {
            self.sign_face(rng, &facing, top - 0.8);
        }
        self.contact(*pose, 0.08, 0.08, 0.5);
    }

    fn sign_face(&mut self, rng: &mut Rng, pose: &Pose, height: f32) {
        use SignKind::*;
        let kind =
            pick(rng, &[Limit, Limit, NoEntry, Warning, Warning, GiveWay, Stop, Mandatory, Information, Information, Direction]);
        let size = rng.uniform_in(0.34, 0.44);
        let (sides, turn, radius) = match kind {
            Warning => (3, 0.75, 1.25 * size),
            GiveWay => (3, 0.25, 1.25 * size),
            Stop => (8, 0.5, 1.05 * size),
            Information => (4, 0.5, 1.25 * size),
            _ => (14, 0.0, size),
        };
        let seed = (rng.uniform() * 1e6) as u32;
        self.model.begin(class::TRAFFIC_SIGN);
        let material = Material::Sign { kind, size: radius, seed };
        if kind == Direction {
            self.direction(pose, height, seed, size);
        } else {
            self.board(class::TRAFFIC_SIGN, material, pose, (0.0, height), radius, (sides, turn));
        }
        self.model.end();
    }

    /// A wide board with place names.
    fn direction(&mut self, pose: &Pose, height: f32, seed: u32, size: f32) {
        let (half, low, high) = (2.0 * size, height - 0.8 * size, height + 0.8 * size);
        let material = Material::Sign { kind: SignKind::Direction, size, seed };
        let p = |x, y, z| pose.at(x, y, z);
        let corners = [p(-half, low, 0.0), p(half, low, 0.0), p(half, high, 0.0), p(-half, high, 0.0)];
        let frame = (p(0.0, height, 0.0), pose.right, UP);
        self.model.face(class::TRAFFIC_SIGN, material, &corners, frame, Cut::Whole, false);
        let back = Material::Sign { kind: SignKind::Back, size, seed };
        self.model.quad(
            class::TRAFFIC_SIGN,
            back,
            [p(half, low, 0.04), p(-half, low, 0.04), p(-half, high, 0.04), p(half, high, 0.04)],
        );
    }

    /// A traffic light for those who move along `pose`; `arm` metres reach over the road (0 for none, negative: to the left).
    pub(super) fn traffic_light(&mut self, rng: &mut Rng, pose: &Pose, arm: f32, state: Signal) {
        let steel = Material::Plain { color: self.pole_color, gloss: 0.1 };
        let tall = arm.abs() > 0.1;
        let top = if tall { 5.6 } else { 3.2 };
        let p = |x, y, z| pose.at(x, y, z);
        self.model.limb(class::POLE, steel, p(0.0, 0.0, 0.2), 0.09, p(0.0, top, 0.2), if tall { 0.08 } else { 0.07 });
        let low = rng.uniform_in(2.2, 2.5);
        self.signal_head(&pose.shifted(0.0, low, 0.0), state);
        if tall {
            self.model.limb(class::POLE, steel, p(0.0, top - 0.1, 0.2), 0.07, p(arm, top + 0.1, 0.2), 0.05);
            self.signal_head(&pose.shifted(arm * 0.94, 4.8, 0.0), state);
        }
        self.contact(*pose, 0.15, 0.15, 0.5);
    }

    fn signal_head(&mut self, pose: &Pose, state: Signal) {
        let (width, height) = (0.36, 1.06);
        let half = 0.5 * width;
        let dark = Material::Plain { color: gray(0.02), gloss: 0.05 };
        let class = class::TRAFFIC_LIGHT;
        self.model.begin(class);
        self.model.block(class, dark, pose, v3(-half, 0.0, 0.005), v3(half, height, 0.24));
        let p = |x, y| pose.at(x, y, 0.0);
        let front = Material::Signals { state, width, height };
        self.model.quad(class, front, [p(-half, 0.0), p(half, 0.0), p(half, height), p(-half, height)]);
        // Hoods over the lamps.
        for row in 0..3 {
            let y = height * (row as f32 + 0.88) / 3.0;
            self.model.block(class, dark, pose, v3(-0.13, y, -0.2), v3(0.13, y + 0.03, 0.0));
        }
        self.model.end();
        let row = match state {
            Signal::Red => 2.5,
            Signal::Amber => 1.5,
            Signal::Green => 0.5,
        };
        self.lamps.push(Lamp {
            at: p(0.0, height * row / 3.0) - pose.ahead * 0.05,
            kind: LampKind::Signal(state),
            towards: -pose.ahead,
        });
    }

    /// A fence between two points on the ground.
    pub(super) fn fence(&mut self, rng: &mut Rng, from: V3, to: V3) {
        let run = to - from;
        let (length, right) = (run.length(), run.unit());
        if length < 0.5 {
            return;
        }
        let pose = Pose { origin: from, right, ahead: right.cross(UP) };
        let c = class::FENCE;
        let height = rng.uniform_in(0.9, 1.5);
        let top = UP * height;
        let corners = [from, to, to + top, from + top];
        let paint = pick(rng, &[gray(0.03), gray(0.55), v3(0.03, 0.09, 0.05), gray(0.2)]);
        match rng.below(4) {
            0 | 1 => {
                let steel = Material::Plain { color: paint, gloss: 0.1 };
                let cut = Cut::Bars { period: 0.16, width: 0.07, low: 0.12, high: height - 0.02 };
                self.model.sheet(c, steel, corners, cut);
            }
            2 => {
                let wood = Material::Cloth { color: pick(rng, &[v3(0.16, 0.09, 0.045), v3(0.3, 0.2, 0.12), gray(0.6)]) };
                let cut = Cut::Bars { period: 0.15, width: 0.12, low: 0.2, high: height - 0.15 };
                self.model.sheet(c, wood, corners, cut);
            }
            _ => {
                let rail = Material::Plain { color: gray(0.4), gloss: 0.3 };
                self.model.block(c, rail, &pose, v3(0.0, 0.45, -0.06), v3(length, 0.78, 0.0));
            }
        }
        let post = Material::Plain { color: paint, gloss: 0.1 };
        for i in 0..=(length / 2.4) as usize {
            let foot = from + right * (i as f32 * 2.4).min(length);
            self.model.limb(c, post, foot, 0.05, foot + UP * (height.min(0.95) + 0.1), 0.05);
        }
    }

    /// A masonry wall between two points on the ground.
    pub(super) fn wall(&mut self, rng: &mut Rng, from: V3, to: V3) {
        let run = to - from;
        let right = run.unit();
        let pose = Pose { origin: from, right, ahead: right.cross(UP) };
        let height = rng.uniform_in(1.1, 2.5);
        let color = pick(rng, &[v3(0.32, 0.3, 0.27), v3(0.26, 0.12, 0.08), v3(0.5, 0.47, 0.42), gray(0.3)]);
        let c = class::WALL;
        self.model.block(c, Material::Masonry { color }, &pose, v3(0.0, -0.1, 0.0), v3(run.length(), height, 0.3));
        let cap = Material::Plain { color: color * 1.25, gloss: 0.0 };
        self.model.block(c, cap, &pose, v3(-0.05, height, -0.06), v3(run.length() + 0.05, height + 0.12, 0.36));
    }

    /// A bus shelter whose open side looks to the left of `pose`.
    pub(super) fn shelter(&mut self, rng: &mut Rng, pose: &Pose) {
        let steel = Material::Plain { color: gray(0.08), gloss: 0.1 };
        let p = |x, y, z| pose.at(x, y, z);
        self.model.block(class::BUILDING, steel, pose, v3(-0.3, 2.35, 0.0), v3(1.3, 2.5, 4.0));
        for (x, z) in [(0.0, 0.1), (1.2, 0.1), (0.0, 3.9), (1.2, 3.9)] {
            self.model.limb(class::POLE, steel, p(x, 0.0, z), 0.05, p(x, 2.4, z), 0.05);
        }
        let glass = Material::Glass;
        self.model.sheet(
            class::BUILDING,
            glass,
            [p(1.2, 0.2, 4.0), p(1.2, 0.2, 0.0), p(1.2, 2.3, 0.0), p(1.2, 2.3, 4.0)],
            Cut::Whole,
        );
        let poster = Material::Poster { seed: (rng.uniform() * 1e6) as u32, width: 1.2, height: 1.7 };
        self.model.sheet(
            class::BUILDING,
            poster,
            [p(0.0, 0.4, 3.95), p(1.2, 0.4, 3.95), p(1.2, 2.1, 3.95), p(0.0, 2.1, 3.95)],
            Cut::Whole,
        );
        self.model.block(class::BUILDING, steel, pose, v3(0.75, 0.42, 0.5), v3(1.1, 0.5, 3.4));
    }

    /// Bins, boxes and columns: things no class is for.
    pub(super) fn clutter(&mut self, rng: &mut Rng, pose: &Pose) {
        let color = accent(rng);
        let paint = Material::Plain { color, gloss: 0.1 };
        let p = |y| pose.at(0.0, y, 0.0);
        match rng.below(3) {
            0 => self.model.block(IGNORE, paint, pose, v3(-0.3, 0.0, -0.3), v3(0.3, 1.1, 0.3)),
            1 => self.model.limb(IGNORE, paint, p(0.1), 0.24, p(0.8), 0.27),
            _ => {
                let gray_box = Material::Plain { color: gray(0.32), gloss: 0.05 };
                self.model.block(IGNORE, gray_box, pose, v3(-0.5, 0.0, -0.2), v3(0.5, 1.25, 0.2));
            }
        }
        self.contact(*pose, 0.35, 0.35, 0.6);
    }

    /// A post that keeps cars off the pavement.
    pub(super) fn bollard(&mut self, pose: &Pose) {
        let steel = Material::Plain { color: self.pole_color, gloss: 0.1 };
        self.model.limb(class::POLE, steel, pose.at(0.0, 0.0, 0.0), 0.07, pose.at(0.0, 0.9, 0.0), 0.06);
    }
}
