//! Cars, trucks, buses and trams: bodies of flat panels whose details are painted on.

use super::bodywork::{CABIN_FOOT, CABIN_ROOF};
use super::layout::{Lamp, LampKind, Scene, chance, pick_color};
use super::material::{Material, Part, Vehicle, VehicleKind};
use super::math::{Rgb, V3, gray, v3};
use super::model::{Cut, Pose, class};
use crate::base::Rng;

const CAR_COLORS: [[u8; 3]; 16] = [
    [228, 228, 230],
    [236, 236, 234],
    [28, 29, 32],
    [40, 42, 46],
    [92, 96, 102],
    [136, 140, 146],
    [176, 180, 184],
    [150, 22, 26],
    [186, 30, 34],
    [24, 52, 110],
    [34, 78, 150],
    [18, 62, 52],
    [96, 70, 48],
    [214, 160, 28],
    [208, 92, 24],
    [120, 152, 178],
];
const FLEET: [[u8; 3]; 8] =
    [[196, 30, 36], [232, 178, 34], [24, 84, 150], [238, 238, 236], [30, 120, 74], [226, 106, 28], [70, 74, 80], [120, 36, 90]];

/// Half the width of a cross-section of a body, and the heights where it begins and ends.
struct Station {
    ahead: f32,
    half: f32,
    low: f32,
    top: f32,
}

impl Station {
    /// Where the body is widest.
    fn shoulder(&self) -> f32 {
        self.low + 0.62 * (self.top - self.low)
    }
}

/// What kind of car.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Hatchback,
    Sedan,
    Estate,
    OffRoad,
    Van,
}

impl Scene {
    /// A car with its tail at `pose`; returns its length.
    pub(super) fn car(&mut self, rng: &mut Rng, pose: &Pose, moving: bool) -> f32 {
        let shape = match rng.below(20) {
            0..=5 => Shape::Hatchback,
            6..=10 => Shape::Sedan,
            11..=13 => Shape::Estate,
            14..=17 => Shape::OffRoad,
            _ => Shape::Van,
        };
        let (length, half, height, belt) = match shape {
            Shape::Hatchback => (rng.uniform_in(3.7, 4.2), 0.86, 1.48, 0.92),
            Shape::Sedan => (rng.uniform_in(4.5, 4.9), 0.9, 1.44, 0.94),
            Shape::Estate => (rng.uniform_in(4.4, 4.8), 0.9, 1.5, 0.94),
            Shape::OffRoad => (rng.uniform_in(4.3, 4.8), 0.94, 1.74, 1.06),
            Shape::Van => (rng.uniform_in(4.8, 5.4), 0.97, 1.98, 1.14),
        };
        let l = length;
        let cabin = match shape {
            Shape::Hatchback => [l - 1.05, l - 1.75, 0.55, 0.1],
            Shape::Sedan => [l - 1.35, l - 2.1, 1.35, 0.75],
            Shape::Estate => [l - 1.3, l - 2.05, 0.5, 0.12],
            Shape::OffRoad => [l - 1.2, l - 1.8, 0.45, 0.1],
            Shape::Van => [l - 0.7, l - 1.4, 0.16, 0.04],
        };
        let color = pick_color(rng, &CAR_COLORS);
        let vehicle = Vehicle {
            kind: VehicleKind::Car,
            color,
            accent: color * 0.6,
            length,
            half_width: half,
            height: height * rng.uniform_in(0.97, 1.04),
            belt,
            axles: [0.19 * l, l - 0.2 * l],
            wheel: if shape == Shape::OffRoad { 0.37 } else { 0.32 },
            cabin,
            moving,
            braking: moving && chance(rng, 0.4),
            seed: (rng.uniform() * 1e6) as u32,
        };
        self.model.begin(class::CAR);
        let id = self.add_vehicle(vehicle);
        self.car_body(pose, &vehicle, id, shape == Shape::Sedan);
        self.car_cabin(pose, &vehicle, id);
        self.running_gear(class::CAR, pose, &vehicle, id);
        self.model.end();
        self.shadow(pose, &vehicle, 0.86);
        self.lamps_of(pose, &vehicle);
        length
    }

    fn add_vehicle(&mut self, vehicle: Vehicle) -> u16 {
        self.vehicles.push(vehicle);
        (self.vehicles.len() - 1) as u16
    }

    /// Sides, bonnet, boot, front and rear of a car, below its windows.
    fn car_body(&mut self, pose: &Pose, car: &Vehicle, id: u16, boot: bool) {
        let (l, w, belt) = (car.length, car.half_width, car.belt);
        let tail = if boot { belt - 0.02 } else { belt };
        let stations = [
            Station { ahead: 0.0, half: 0.84 * w, low: 0.36, top: tail - 0.08 },
            Station { ahead: 0.3, half: 0.97 * w, low: 0.26, top: tail },
            Station { ahead: car.cabin[3] + 0.4, half: w, low: 0.22, top: belt },
            Station { ahead: car.cabin[0], half: w, low: 0.22, top: belt },
            Station { ahead: l - 0.4, half: 0.96 * w, low: 0.25, top: belt - 0.14 },
            Station { ahead: l, half: 0.78 * w, low: 0.3, top: belt - 0.28 },
        ];
        let side = Material::Body(id, Part::Side);
        let top = Material::Body(id, Part::Top);
        for pair in stations.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            for sign in [-1.0, 1.0] {
                let p = |s: &Station, y: f32, k: f32| pose.at(sign * s.half * k, y, s.ahead);
                let lower = [p(a, a.low, 0.94), p(b, b.low, 0.94), p(b, b.shoulder(), 1.0), p(a, a.shoulder(), 1.0)];
                let upper = [p(a, a.shoulder(), 1.0), p(b, b.shoulder(), 1.0), p(b, b.top, 0.93), p(a, a.top, 0.93)];
                self.panel(class::CAR, side, pose, lower, sign);
                self.panel(class::CAR, side, pose, upper, sign);
            }
            let p = |s: &Station, sign: f32| pose.at(sign * s.half * 0.93, s.top, s.ahead);
            self.model.quad(class::CAR, top, [p(a, -1.0), p(a, 1.0), p(b, 1.0), p(b, -1.0)]);
        }
        self.end_panel(class::CAR, Material::Body(id, Part::Rear), pose, &stations[0], -1.0);
        self.end_panel(class::CAR, Material::Body(id, Part::Front), pose, &stations[5], 1.0);
    }

    /// A panel of a side given for the right side in order tail-low, nose-low, nose-high, tail-high; textured with metres from
    /// the tail and above the road.
    fn panel(&mut self, class: u8, material: Material, pose: &Pose, corners: [V3; 4], sign: f32) {
        let [a, b, c, d] = corners;
        let ordered = if sign > 0.0 { [a, b, c, d] } else { [b, a, d, c] };
        self.model.face(class, material, &ordered, (pose.origin, pose.ahead, v3(0.0, 1.0, 0.0)), Cut::Whole, false);
    }

    /// The front (`sign` +1) or rear of a body; textured with metres from the middle to the right as seen, and above the road.
    fn end_panel(&mut self, class: u8, material: Material, pose: &Pose, station: &Station, sign: f32) {
        let p = |x: f32, y: f32| pose.at(-sign * x * station.half, y, station.ahead);
        let (low, shoulder, top) = (station.low, station.shoulder(), station.top);
        let corners = [p(-0.94, low), p(0.94, low), p(1.0, shoulder), p(0.93, top), p(-0.93, top), p(-1.0, shoulder)];
        self.model.face(class, material, &corners, (pose.origin, pose.right * -sign, v3(0.0, 1.0, 0.0)), Cut::Whole, false);
    }

    fn car_cabin(&mut self, pose: &Pose, car: &Vehicle, id: u16) {
        let [foot, front, rear, back] = car.cabin;
        let (wide, slim) = (CABIN_FOOT * car.half_width, CABIN_ROOF * car.half_width);
        let (low, high) = (car.belt - 0.03, car.height);
        let p = |x: f32, y: f32, z: f32| pose.at(x, y, z);
        let glass = |part| Material::Body(id, part);
        let model = &mut self.model;
        let c = class::CAR;
        model.quad(
            c,
            glass(Part::Windscreen),
            [p(wide, low, foot), p(-wide, low, foot), p(-slim, high, front), p(slim, high, front)],
        );
        model.quad(
            c,
            glass(Part::RearWindow),
            [p(-wide, low, back), p(wide, low, back), p(slim, high, rear), p(-slim, high, rear)],
        );
        model.quad(c, glass(Part::Top), [p(-slim, high, rear), p(slim, high, rear), p(slim, high, front), p(-slim, high, front)]);
        for sign in [-1.0, 1.0] {
            let corners =
                [p(sign * wide, low, back), p(sign * wide, low, foot), p(sign * slim, high, front), p(sign * slim, high, rear)];
            self.panel(c, glass(Part::CabinSide), pose, corners, sign);
            let mirror = pose.at(sign * (wide + 0.12), low + 0.1, foot - 0.25);
            self.model.ball(c, Material::Plain { color: car.color * 0.8, gloss: 0.3 }, mirror, 0.085);
        }
    }

    /// Wheels and the dark underside.
    fn running_gear(&mut self, class: u8, pose: &Pose, vehicle: &Vehicle, id: u16) {
        let (w, r) = (vehicle.half_width, vehicle.wheel);
        let under = Material::Body(id, Part::Under);
        let clearance = 0.55 * r;
        let top = if vehicle.kind == VehicleKind::Car { 0.42 } else { 0.6 };
        self.model.block(class, under, pose, v3(-0.8 * w, clearance, 0.25), v3(0.8 * w, top, vehicle.length - 0.25));
        for axle in vehicle.axles {
            for sign in [-1.0, 1.0] {
                let outer = sign * (w + 0.005);
                self.model.wheel(class, Material::Wheel { radius: r }, pose, v3(outer, r, axle), r, sign);
                let inner = sign * (w - 0.24);
                let low = v3(inner.min(outer), 0.0, axle - 0.75 * r);
                let high = v3(inner.max(outer) - 0.01, 1.5 * r, axle + 0.75 * r);
                self.model.block(class, Material::Plain { color: gray(0.012), gloss: 0.0 }, pose, low, high);
            }
        }
    }

    fn lamps_of(&mut self, pose: &Pose, vehicle: &Vehicle) {
        if !vehicle.moving {
            return;
        }
        let (height, x) = (if vehicle.kind == VehicleKind::Car { 0.68 } else { 0.85 }, 0.74 * vehicle.half_width);
        for sign in [-1.0, 1.0] {
            let head = pose.at(sign * x, height, vehicle.length + 0.02);
            self.lamps.push(Lamp { at: head, kind: LampKind::Head, towards: pose.ahead });
            let kind = if vehicle.braking { LampKind::Brake } else { LampKind::Tail };
            self.lamps.push(Lamp { at: pose.at(sign * x, height + 0.05, -0.02), kind, towards: -pose.ahead });
        }
    }

    /// Dark ground below a vehicle.
    fn shadow(&mut self, pose: &Pose, vehicle: &Vehicle, strength: f32) {
        let centre = pose.shifted(0.0, 0.0, 0.5 * vehicle.length);
        self.contact(centre, vehicle.half_width + 0.05, 0.5 * vehicle.length, strength);
    }

    /// A truck with its tail at `pose`; returns its length.
    pub(super) fn truck(&mut self, rng: &mut Rng, pose: &Pose, moving: bool) -> f32 {
        let small = chance(rng, 0.45);
        let (length, height) = if small {
            (rng.uniform_in(5.8, 7.0), rng.uniform_in(2.7, 3.1))
        } else {
            (rng.uniform_in(7.5, 10.5), rng.uniform_in(3.3, 3.9))
        };
        let half = if small { 1.05 } else { 1.22 };
        let accent = if chance(rng, 0.5) { gray(rng.uniform_in(0.55, 0.8)) } else { pick_color(rng, &FLEET) };
        let cab = if small { 1.9 } else { 2.1 };
        let vehicle = Vehicle {
            kind: VehicleKind::Truck,
            color: pick_color(rng, &FLEET),
            accent,
            length,
            half_width: half,
            height,
            belt: if small { 1.2 } else { 1.55 },
            axles: [0.22 * length, length - 1.1],
            wheel: if small { 0.4 } else { 0.5 },
            cabin: [length, length - 0.25, length - cab, length - cab],
            moving,
            braking: moving && chance(rng, 0.4),
            seed: (rng.uniform() * 1e6) as u32,
        };
        self.model.begin(class::TRUCK);
        let id = self.add_vehicle(vehicle);
        let part = |part| Material::Body(id, part);
        let floor = 0.95;
        let bed = length - cab - 0.2;
        self.shell(
            class::TRUCK,
            pose,
            (0.0, bed),
            (half, half),
            (floor, height),
            [part(Part::CargoSide), part(Part::CargoRear), part(Part::CargoFront), part(Part::Top)],
        );
        let roof = if small { height - 0.35 } else { height - 0.6 };
        self.shell(
            class::TRUCK,
            pose,
            (length - cab, length),
            (half * 0.96, half * 0.92),
            (0.42, roof.min(3.0)),
            [part(Part::Side), part(Part::Under), part(Part::Front), part(Part::Top)],
        );
        self.running_gear(class::TRUCK, pose, &vehicle, id);
        // Mudguards and the bar that keeps cars from getting below.
        let steel = Material::Plain { color: gray(0.06), gloss: 0.1 };
        self.model.block(class::TRUCK, steel, pose, v3(-half * 0.95, 0.45, -0.02), v3(half * 0.95, 0.62, 0.06));
        self.model.end();
        self.shadow(pose, &vehicle, 0.85);
        self.lamps_of(pose, &vehicle);
        length
    }

    /// A bus, or a tram, with its tail at `pose`; returns its length.
    pub(super) fn coach(&mut self, rng: &mut Rng, pose: &Pose, tram: bool, moving: bool) -> f32 {
        let length = if tram { rng.uniform_in(13.0, 19.0) } else { rng.uniform_in(9.5, 12.5) };
        let (half, height) = if tram { (1.25, 3.4) } else { (1.26, rng.uniform_in(2.95, 3.25)) };
        let color = pick_color(rng, &FLEET);
        let vehicle = Vehicle {
            kind: if tram { VehicleKind::Tram } else { VehicleKind::Bus },
            color,
            accent: if chance(rng, 0.6) { gray(0.75) } else { color * 0.4 },
            length,
            half_width: half,
            height,
            belt: 1.3,
            axles: [0.22 * length, length - 0.23 * length],
            wheel: if tram { 0.3 } else { 0.48 },
            cabin: [length, length - 0.15, 0.1, 0.0],
            moving,
            braking: moving && chance(rng, 0.4),
            seed: (rng.uniform() * 1e6) as u32,
        };
        let class = if tram { class::TRAIN } else { class::BUS };
        self.model.begin(class);
        let id = self.add_vehicle(vehicle);
        let part = |part| Material::Body(id, part);
        let low = if tram { 0.22 } else { 0.32 };
        let parts = [part(Part::Side), part(Part::Rear), part(Part::Front), part(Part::Top)];
        self.shell(class, pose, (0.0, length), (half, half * 0.97), (low, height), parts);
        let gear = Material::Plain { color: gray(0.25), gloss: 0.1 };
        let hump = v3(0.75 * half, height + 0.25, 0.62 * length);
        self.model.block(class, gear, pose, v3(-0.75 * half, height, 0.3 * length), hump);
        self.running_gear(class, pose, &vehicle, id);
        if tram {
            self.pantograph(pose, length, height);
        }
        self.model.end();
        self.shadow(pose, &vehicle, 0.85);
        self.lamps_of(pose, &vehicle);
        length
    }

    fn pantograph(&mut self, pose: &Pose, length: f32, height: f32) {
        let steel = Material::Plain { color: gray(0.05), gloss: 0.0 };
        let (foot, elbow, top) = (0.7 * length, 0.7 * length - 0.9, 0.7 * length);
        for side in [-0.4, 0.4] {
            let p = |y: f32, z: f32| pose.at(side, height + y, z);
            self.model.limb(class::TRAIN, steel, p(0.1, foot), 0.04, p(0.8, elbow), 0.04);
            self.model.limb(class::TRAIN, steel, p(0.8, elbow), 0.04, p(1.5, top), 0.04);
        }
        let bar = |x: f32| pose.at(x, height + 1.5, top);
        self.model.limb(class::TRAIN, steel, bar(-0.8), 0.04, bar(0.8), 0.04);
    }

    /// A box-like body from `ends.0` to `ends.1` ahead, half as wide as `half` at bottom and top; materials of the sides, tail,
    /// nose and top.
    fn shell(
        &mut self,
        class: u8,
        pose: &Pose,
        ends: (f32, f32),
        half: (f32, f32),
        heights: (f32, f32),
        materials: [Material; 4],
    ) {
        let [side, tail, nose, top] = materials;
        let (low, high) = heights;
        let p = |x: f32, y: f32, z: f32| pose.at(x, y, z);
        let up = v3(0.0, 1.0, 0.0);
        for sign in [-1.0, 1.0] {
            let (a, b) = (sign * half.0, sign * half.1);
            self.panel(class, side, pose, [p(a, low, ends.0), p(a, low, ends.1), p(b, high, ends.1), p(b, high, ends.0)], sign);
        }
        let rear = [p(-half.0, low, ends.0), p(half.0, low, ends.0), p(half.1, high, ends.0), p(-half.1, high, ends.0)];
        self.model.face(class, tail, &rear, (pose.origin, pose.right, up), Cut::Whole, false);
        let front = [p(half.0, low, ends.1), p(-half.0, low, ends.1), p(-half.1, high, ends.1), p(half.1, high, ends.1)];
        self.model.face(class, nose, &front, (pose.origin, -pose.right, up), Cut::Whole, false);
        let roof = [p(-half.1, high, ends.0), p(half.1, high, ends.0), p(half.1, high, ends.1), p(-half.1, high, ends.1)];
        self.model.quad(class, top, roof);
    }
}

/// Colours of fleets, also worn by motorcycles.
pub(super) fn fleet(rng: &mut Rng) -> Rgb {
    pick_color(rng, &FLEET)
}
