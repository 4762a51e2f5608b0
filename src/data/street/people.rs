//! People on foot and on two wheels.

use super::layout::{Lamp, LampKind, Scene, chance, pick, pick_color};
use super::material::Material;
use super::math::{Rgb, V3, cos, gray, sin, v3};
use super::model::{Pose, class};
use super::vehicles::fleet;
use crate::base::Rng;

const CLOTHES: [[u8; 3]; 18] = [
    [30, 32, 38],
    [44, 50, 66],
    [66, 80, 110],
    [30, 54, 100],
    [120, 30, 34],
    [180, 44, 42],
    [214, 208, 196],
    [236, 232, 226],
    [96, 100, 96],
    [60, 82, 58],
    [196, 156, 66],
    [222, 120, 40],
    [104, 70, 50],
    [150, 120, 90],
    [86, 50, 96],
    [60, 140, 160],
    [224, 140, 160],
    [216, 220, 60],
];
const TROUSERS: [[u8; 3]; 7] =
    [[34, 38, 52], [44, 56, 84], [28, 28, 30], [72, 74, 78], [120, 106, 84], [60, 48, 40], [150, 146, 136]];
const SKIN: [[u8; 3]; 5] = [[232, 190, 164], [214, 166, 136], [176, 124, 92], [122, 82, 60], [84, 56, 42]];
const HAIR: [[u8; 3]; 6] = [[28, 22, 20], [58, 40, 28], [96, 66, 40], [176, 138, 84], [140, 140, 140], [120, 56, 30]];

/// The colours of one person.
struct Look {
    jacket: Material,
    legs: Material,
    skin: Material,
    hair: Material,
    shoes: Material,
}

impl Look {
    fn draw(rng: &mut Rng) -> Self {
        let cloth = |color: Rgb| Material::Cloth { color };
        Self {
            jacket: cloth(pick_color(rng, &CLOTHES)),
            legs: cloth(pick_color(rng, &TROUSERS)),
            skin: cloth(pick_color(rng, &SKIN)),
            hair: cloth(pick_color(rng, &HAIR)),
            shoes: cloth(if chance(rng, 0.7) { gray(0.02) } else { gray(0.5) }),
        }
    }
}

/// The joints of a body in local metres; pairs are left and right.
struct Joints {
    hips: V3,
    chest: V3,
    head: V3,
    knees: [V3; 2],
    feet: [V3; 2],
    elbows: [V3; 2],
    hands: [V3; 2],
}

impl Scene {
    /// Somebody on foot at `pose`: standing or walking ahead.
    pub(super) fn person(&mut self, rng: &mut Rng, pose: &Pose) {
        let size = if chance(rng, 0.12) { rng.uniform_in(0.68, 0.82) } else { rng.uniform_in(0.93, 1.08) };
        let look = Look::draw(rng);
        let step = if chance(rng, 0.7) { rng.uniform_in(-0.34, 0.34) } else { 0.04 };
        let (hip, shoulder) = (0.92, 1.42);
        let lean = 0.03 + 0.08 * step.abs();
        let wave = chance(rng, 0.12);
        let hand = |side: f32| v3(side * 0.29, 0.84, lean - side * step * 0.9);
        let mut joints = Joints {
            hips: v3(0.0, hip, 0.0),
            chest: v3(0.0, shoulder, lean),
            head: v3(0.0, 1.63, lean + 0.02),
            knees: [-1.0, 1.0].map(|side| v3(side * 0.1, 0.5, side * step * 0.55 + 0.06)),
            feet: [-1.0, 1.0].map(|side| v3(side * 0.11, 0.06 + 0.05 * (-side * step).max(0.0), side * step)),
            elbows: [-1.0, 1.0].map(|side| v3(side * 0.28, 1.13, lean - 0.04 - side * step * 0.4)),
            hands: [hand(-1.0), hand(1.0)],
        };
        if wave {
            (joints.elbows[1], joints.hands[1]) = (v3(0.3, 1.2, 0.12), v3(0.18, 1.5, 0.22)); // a phone
        }
        self.model.begin(class::PERSON);
        self.body(class::PERSON, pose, &joints, &look, size);
        self.belongings(rng, pose, &look, size);
        self.model.end();
        self.contact(*pose, 0.22 * size, 0.2 * size, 0.6);
    }

    /// Skirt or coat, bag, rucksack, hat, umbrella.
    fn belongings(&mut self, rng: &mut Rng, pose: &Pose, look: &Look, size: f32) {
        let p = |x: f32, y: f32, z: f32| pose.at(x * size, y * size, z * size);
        let bag = Material::Cloth { color: pick_color(rng, &CLOTHES) };
        match rng.below(8) {
            0 | 1 => self.model.limb(class::PERSON, look.jacket, p(0.0, 1.0, 0.0), 0.18 * size, p(0.0, 0.62, 0.0), 0.25 * size),
            2 | 3 => self.model.limb(class::PERSON, bag, p(0.0, 1.34, -0.2), 0.13 * size, p(0.0, 1.1, -0.22), 0.16 * size),
            4 => self.model.limb(class::PERSON, bag, p(0.36, 0.72, 0.0), 0.1 * size, p(0.36, 0.5, 0.0), 0.15 * size),
            5 => self.model.limb(class::PERSON, bag, p(0.0, 1.76, 0.03), 0.11 * size, p(0.0, 1.72, 0.1), 0.1 * size),
            _ => {}
        }
        if chance(rng, self.umbrellas) {
            let pole = Material::Plain { color: gray(0.1), gloss: 0.2 };
            self.model.limb(class::PERSON, pole, p(0.2, 1.2, 0.2), 0.015, p(0.08, 2.1, 0.1), 0.015);
            let cloth = Material::Cloth { color: pick_color(rng, &CLOTHES) };
            let rim = |i: usize, y: f32, r: f32| {
                let angle = std::f32::consts::TAU * i as f32 / 8.0;
                p(0.08 + r * cos(angle), y, 0.1 + r * sin(angle))
            };
            for i in 0..8 {
                let corners = [rim(i, 1.88, 0.55), rim(i + 1, 1.88, 0.55), rim(i + 1, 2.1, 0.12), rim(i, 2.1, 0.12)];
                self.model.sheet(class::PERSON, cloth, corners, super::model::Cut::Whole);
            }
            self.model.ball(class::PERSON, cloth, p(0.08, 2.06, 0.1), 0.13);
        }
    }

    fn body(&mut self, class: u8, pose: &Pose, joints: &Joints, look: &Look, size: f32) {
        let p = |v: V3| pose.at(v.x * size, v.y * size, v.z * size);
        let model = &mut self.model;
        let mut limb = |material, a: V3, ra: f32, b: V3, rb: f32| model.limb(class, material, p(a), ra * size, p(b), rb * size);
        let (hips, chest) = (joints.hips, joints.chest);
        let x = |side: f32, k: f32| v3(side * k, 0.0, 0.0);
        for (i, side) in [-1.0, 1.0].into_iter().enumerate() {
            let (knee, foot) = (joints.knees[i], joints.feet[i]);
            limb(look.legs, hips + x(side, 0.09), 0.1, knee, 0.075);
            limb(look.legs, knee, 0.075, foot, 0.05);
            limb(look.shoes, foot, 0.055, foot + v3(0.0, -0.01, 0.15), 0.045);
            let (elbow, hand) = (joints.elbows[i], joints.hands[i]);
            limb(look.jacket, chest + x(side, 0.17), 0.075, elbow, 0.06);
            limb(look.jacket, elbow, 0.06, hand, 0.045);
            limb(look.skin, hand, 0.05, hand, 0.05);
            limb(look.jacket, hips + x(side, 0.06) + v3(0.0, 0.02, 0.0), 0.115, chest + x(side, 0.09), 0.125);
        }
        limb(look.skin, chest, 0.06, joints.head, 0.06);
        limb(look.skin, joints.head, 0.105, joints.head + v3(0.0, -0.03, 0.02), 0.095);
        limb(look.hair, joints.head + v3(0.0, 0.05, -0.035), 0.105, joints.head + v3(0.0, -0.01, -0.05), 0.095);
    }

    /// A bicycle whose rear hub is at `pose`; with a rider or leaning on its own.
    pub(super) fn bicycle(&mut self, rng: &mut Rng, pose: &Pose, ridden: bool) {
        let color = if chance(rng, 0.5) { gray(0.03) } else { fleet(rng) };
        let frame = Material::Plain { color, gloss: 0.3 };
        let tyre = Material::Plain { color: gray(0.015), gloss: 0.0 };
        let steel = Material::Plain { color: gray(0.3), gloss: 0.4 };
        let class = class::BICYCLE;
        self.model.begin(class);
        let (r, base) = (0.34, 1.05);
        self.ring(class, tyre, pose, v3(0.0, r, 0.0), r, 0.028);
        self.ring(class, tyre, pose, v3(0.0, r, base), r, 0.028);
        let p = |y: f32, z: f32| pose.at(0.0, y, z);
        let (hub, front, crank, seat, head) = (p(r, 0.0), p(r, base), p(0.3, 0.45), p(0.86, 0.26), p(0.86, 0.9));
        for (a, b) in [(hub, crank), (hub, seat), (crank, seat), (crank, head), (seat, head), (head, front)] {
            self.model.limb(class, frame, a, 0.026, b, 0.026);
        }
        let bar = |x: f32| pose.at(x, 1.04, 0.86);
        self.model.limb(class, steel, head, 0.025, p(1.04, 0.86), 0.025);
        self.model.limb(class, steel, bar(-0.27), 0.025, bar(0.27), 0.025);
        self.model.limb(class, tyre, p(0.97, 0.12), 0.06, p(0.98, 0.34), 0.035);
        if chance(rng, 0.3) {
            let basket = Material::Masonry { color: v3(0.2, 0.13, 0.07) };
            self.model.block(class, basket, pose, v3(-0.17, 0.72, 1.0), v3(0.17, 0.98, 1.3));
        }
        self.model.end();
        self.contact(pose.shifted(0.0, 0.0, 0.5), 0.1, 0.8, 0.35);
        if ridden {
            let look = Look::draw(rng);
            let helmet = chance(rng, 0.5).then(|| Material::Plain { color: fleet(rng), gloss: 0.3 });
            let up = rng.uniform_in(-0.12, 0.12);
            self.rider(pose, &look, helmet, &saddle(0.3, up));
            self.lamps.push(Lamp { at: pose.at(0.0, 0.75, 1.1), kind: LampKind::Small, towards: pose.ahead });
            self.lamps.push(Lamp { at: pose.at(0.0, 0.62, -0.1), kind: LampKind::Tail, towards: -pose.ahead });
        }
    }

    fn rider(&mut self, pose: &Pose, look: &Look, helmet: Option<Material>, joints: &Joints) {
        self.model.begin(class::RIDER);
        self.body(class::RIDER, pose, joints, look, 1.0);
        if let Some(material) = helmet {
            let top = joints.head + v3(0.0, 0.05, 0.0);
            let at = |v: V3| pose.at(v.x, v.y, v.z);
            self.model.limb(class::RIDER, material, at(top + v3(0.0, 0.0, 0.04)), 0.125, at(top - v3(0.0, 0.0, 0.04)), 0.125);
        }
        self.model.end();
    }

    /// A motorcycle or scooter whose rear hub is at `pose`, with or without its rider.
    pub(super) fn motorcycle(&mut self, rng: &mut Rng, pose: &Pose, ridden: bool) {
        let class = class::MOTORCYCLE;
        let paint = Material::Plain { color: fleet(rng), gloss: 0.5 };
        let black = Material::Plain { color: gray(0.02), gloss: 0.1 };
        let steel = Material::Plain { color: gray(0.35), gloss: 0.6 };
        self.model.begin(class);
        let (r, base) = (0.31, 1.4);
        for z in [0.0, base] {
            self.ring(class, black, pose, v3(0.0, r, z), r - 0.04, 0.075);
            self.model.ball(class, steel, pose.at(0.0, r, z), 0.1);
        }
        let p = |x: f32, y: f32, z: f32| pose.at(x, y, z);
        self.model.limb(class, black, p(0.0, 0.42, 0.45), 0.2, p(0.0, 0.45, 0.85), 0.2);
        self.model.limb(class, paint, p(0.0, 0.74, 0.75), 0.17, p(0.0, 0.82, 1.0), 0.14);
        self.model.limb(class, black, p(0.0, 0.78, 0.15), 0.13, p(0.0, 0.77, 0.65), 0.13);
        self.model.limb(class, paint, p(0.0, 0.7, -0.12), 0.11, p(0.0, 0.72, 0.25), 0.15);
        for x in [-0.1, 0.1] {
            self.model.limb(class, steel, p(x, r, base), 0.03, p(x, 0.95, 1.12), 0.03);
            self.model.limb(class, steel, p(2.0 * x, 0.32, 0.0), 0.06, p(1.5 * x, 0.35, 0.8), 0.05);
        }
        self.model.limb(class, black, p(-0.33, 1.04, 1.0), 0.03, p(0.33, 1.04, 1.0), 0.03);
        self.model.ball(class, paint, p(0.0, 0.9, 1.2), 0.14);
        self.model.end();
        self.contact(pose.shifted(0.0, 0.0, 0.7), 0.2, 0.95, 0.6);
        if ridden {
            let look = Look { jacket: black, ..Look::draw(rng) };
            let helmet = Material::Plain { color: pick(rng, &[gray(0.02), gray(0.6), v3(0.4, 0.02, 0.02)]), gloss: 0.5 };
            self.rider(pose, &look, Some(helmet), &saddle(0.45, 0.0));
            self.lamps.push(Lamp { at: pose.at(0.0, 0.9, 1.38), kind: LampKind::Head, towards: pose.ahead });
            self.lamps.push(Lamp { at: pose.at(0.0, 0.75, -0.22), kind: LampKind::Tail, towards: -pose.ahead });
        }
    }

    /// A ring in the plane of up and ahead.
    fn ring(&mut self, class: u8, material: Material, pose: &Pose, centre: V3, radius: f32, thick: f32) {
        let sides = 14;
        let at = |i: usize| {
            let angle = std::f32::consts::TAU * i as f32 / sides as f32;
            pose.at(centre.x, centre.y + radius * sin(angle), centre.z + radius * cos(angle))
        };
        for i in 0..sides {
            self.model.limb(class, material, at(i), thick, at(i + 1), thick);
        }
    }
}

/// Somebody in the saddle `ahead` of the rear hub; `turn` moves one foot up and the other down.
fn saddle(ahead: f32, turn: f32) -> Joints {
    let z = ahead;
    Joints {
        hips: v3(0.0, 0.98, z - 0.06),
        chest: v3(0.0, 1.42, z + 0.2),
        head: v3(0.0, 1.66, z + 0.28),
        knees: [-1.0, 1.0].map(|side| v3(side * 0.13, 0.68 + side * turn, z + 0.34)),
        feet: [-1.0, 1.0].map(|side| v3(side * 0.13, 0.26 + 1.2 * side * turn, z + 0.17)),
        elbows: [-1.0, 1.0].map(|side| v3(side * 0.3, 1.2, z + 0.34)),
        hands: [-1.0, 1.0].map(|side| v3(side * 0.27, 1.08, z + 0.54)),
    }
}
