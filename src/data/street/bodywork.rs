//! Vehicles: what is painted on their panels.

use super::facade::lettering;
use super::look::Air;
use super::material::{Part, Vehicle, VehicleKind};
use super::math::{Rgb, gray, hash01, mix, noise, pulse, smooth, train, v3};
use super::surface::{Place, Surface};

const RED: Rgb = v3(0.5, 0.012, 0.012);
const AMBER: Rgb = v3(1.0, 0.5, 0.06);
const PANE: Rgb = v3(0.022, 0.027, 0.032);
const TRIM: Rgb = v3(0.022, 0.022, 0.024);

/// Half the cabin's width at its foot and at the roof, over that of the body.
pub(super) const CABIN_FOOT: f32 = 0.91;
/// See [`CABIN_FOOT`].
pub(super) const CABIN_ROOF: f32 = 0.72;

/// Height of the dark plastic around the foot of a car: its bumpers are painted or not.
fn plastic(car: &Vehicle) -> f32 {
    if car.seed % 5 < 3 { 0.32 } else { 0.46 }
}

/// A panel under construction: later layers cover earlier ones.
struct Panel {
    surface: Surface,
}

impl Panel {
    fn new(at: &Place, color: Rgb, gloss: f32) -> Self {
        Self { surface: Surface::dull(color, at.normal).glossy(gloss) }
    }

    /// Covers a share of the place with something else.
    fn cover(&mut self, share: f32, color: Rgb, gloss: f32) {
        let share = share.clamp(0.0, 1.0);
        let s = &mut self.surface;
        s.albedo = s.albedo.mix(color, share);
        s.gloss = mix(s.gloss, gloss, share);
        s.emission = s.emission * (1.0 - share);
    }

    fn glass(&mut self, share: f32) {
        self.cover(share, PANE, 0.5);
    }

    /// Covers with a lamp's glass of `color` that shines `light` times as bright.
    fn lamp(&mut self, share: f32, color: Rgb, light: f32) {
        self.cover(share, color, 0.35);
        self.surface.emission += color * (light * share.clamp(0.0, 1.0));
    }
}

/// The look of a part of a vehicle.
pub(super) fn body(air: &Air, car: &Vehicle, part: Part, at: &Place) -> Surface {
    let bulged = bulge(car, part, at);
    let at = &bulged;
    let panel = match (part, car.kind) {
        (Part::Under, _) => Panel::new(at, gray(0.01), 0.0),
        (Part::Top, _) => Panel::new(at, car.color, 0.32),
        (Part::Windscreen | Part::RearWindow, _) => windscreen(car, part, at),
        (Part::CabinSide, _) => cabin_side(car, at),
        (Part::Side, VehicleKind::Car) => car_side(air, car, at),
        (Part::Side, VehicleKind::Truck) => cab_side(car, at),
        (Part::Side, _) => coach_side(air, car, at),
        (Part::Front, VehicleKind::Car) => car_front(air, car, at),
        (Part::Front, VehicleKind::Truck) => cab_front(air, car, at),
        (Part::Front, _) => coach_front(air, car, at),
        (Part::Rear, VehicleKind::Car) => car_rear(air, car, at),
        (Part::Rear, _) => coach_rear(air, car, at),
        (Part::CargoSide, _) => cargo_side(car, at),
        (Part::CargoRear, _) => cargo_rear(air, car, at),
        (Part::CargoFront, _) => Panel::new(at, car.accent * 0.9, 0.1),
    };
    panel.surface
}

/// Panels are flat, sheet metal is not: its normal leans up towards the belt line and down towards the sill.
fn bulge(car: &Vehicle, part: Part, at: &Place) -> Place {
    let strength = match (part, car.kind) {
        (Part::Side | Part::Front | Part::Rear, VehicleKind::Car) => 0.75,
        (Part::Side | Part::Front | Part::Rear, _) => 0.12,
        _ => 0.0,
    };
    let lean = (at.v / car.belt - 0.62) * strength;
    Place { normal: (at.normal + v3(0.0, lean, 0.0)).unit(), ..*at }
}

/// How bright the tail lamps are.
fn tail_light(air: &Air, car: &Vehicle) -> f32 {
    match (car.moving, car.braking) {
        (true, true) => 2.0,
        (true, false) => 1.4 * air.lamps,
        _ => 0.0,
    }
}

fn head_light(air: &Air, car: &Vehicle) -> f32 {
    if car.moving { 0.15 + 3.5 * air.lamps } else { 0.0 }
}

fn plate(panel: &mut Panel, u: f32, v: f32, low: f32, w: f32, seed: u32) {
    let field = pulse(u, -0.26, 0.26, w) * pulse(v, low, low + 0.115, w);
    panel.cover(field, if seed.is_multiple_of(4) { v3(0.7, 0.5, 0.06) } else { gray(0.72) }, 0.1);
    panel.cover(field * lettering(u + 0.22, v - low - 0.02, 0.075, 0.44, seed, w), gray(0.03), 0.1);
}

/// The front or rear window between its pillars; texture from its lower left corner, v along the pane.
fn windscreen(car: &Vehicle, part: Part, at: &Place) -> Panel {
    let (u, v, w) = (at.u, at.v, at.w);
    let [foot, front, rear, back] = car.cabin;
    let run = if part == Part::Windscreen { foot - front } else { rear - back };
    let rise = car.height - car.belt + 0.03;
    let long = (run * run + rise * rise).sqrt();
    let x = u - CABIN_FOOT * car.half_width;
    let half = mix(CABIN_FOOT, CABIN_ROOF, v / long) * car.half_width;
    let mut panel = Panel::new(at, car.color, 0.3);
    let pane = pulse(x, 0.075 - half, half - 0.075, w) * pulse(v, 0.07, long - 0.09, w);
    panel.glass(pane);
    // Seats and people, dimly.
    let seats = (pulse(x.abs(), 0.16, 0.52, 0.1 + w) * pulse(v, 0.0, 0.62 * long, 0.1 + w)).min(1.0);
    panel.cover(pane * seats * 0.5, gray(0.09), 0.42);
    panel
}

fn arches(panel: &mut Panel, car: &Vehicle, at: &Place) {
    for axle in car.axles {
        let (x, y) = (at.u - axle, at.v - car.wheel);
        let d = (x * x + y * y).sqrt();
        panel.cover(1.0 - smooth(1.14 * car.wheel - at.w, 1.14 * car.wheel + at.w, d), gray(0.008), 0.0);
    }
}

fn car_side(air: &Air, car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w) = (at.u, at.v, at.w);
    let mut panel = Panel::new(at, car.color, 0.3);
    let [foot, _, _, back] = car.cabin;
    let middle = 0.5 * (foot + back) + 0.05;
    for seam in [foot - 0.12, middle, back + 0.45] {
        panel.cover(0.7 * pulse(u, seam - 0.012, seam + 0.012, w), gray(0.01), 0.0);
    }
    for door in [middle + 0.1, back + 0.55] {
        panel.cover(pulse(u, door, door + 0.2, w) * pulse(v, car.belt - 0.16, car.belt - 0.12, w), car.color * 0.3, 0.5);
    }
    panel.cover(pulse(v, 0.0, 0.34, w), TRIM, 0.05);
    panel.lamp(pulse(u, 0.0, 0.3, w) * pulse(v, car.belt - 0.3, car.belt - 0.1, w), RED, tail_light(air, car));
    let head = pulse(u, car.length - 0.42, car.length, w) * pulse(v, car.belt - 0.42, car.belt - 0.27, w);
    panel.lamp(head, gray(0.6), head_light(air, car));
    arches(&mut panel, car, at);
    panel
}

fn cabin_side(car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w) = (at.u, at.v, at.w);
    let mut panel = Panel::new(at, car.color, 0.3);
    let [foot, front, rear, back] = car.cabin;
    let t = ((v - car.belt) / (car.height - car.belt)).clamp(0.0, 1.0);
    let (begin, end) = (mix(back, rear, t) + 0.14, mix(foot, front, t) - 0.1);
    let pane = pulse(u, begin, end, w) * pulse(v, car.belt + 0.02, car.height - 0.09, w);
    panel.glass(pane);
    let middle = 0.5 * (foot + back) + 0.05;
    panel.cover(pane * (pulse(u, middle - 0.05, middle + 0.05, w) + pulse(u, back + 0.8, back + 0.86, w)), TRIM, 0.1);
    panel
}

fn car_front(air: &Air, car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w, half) = (at.u, at.v, at.w, car.half_width);
    let top = car.belt - 0.28;
    let mut panel = Panel::new(at, car.color, 0.3);
    panel.cover(pulse(v, 0.0, plastic(car) - 0.05, w), TRIM, 0.05);
    panel.cover(pulse(u, -0.5 * half, 0.5 * half, w) * pulse(v, 0.3, 0.38, w), gray(0.012), 0.1);
    let grille = pulse(u, -0.42 * half, 0.42 * half, w) * pulse(v, top - 0.2, top - 0.03, w);
    panel.cover(grille, gray(0.012), 0.1);
    panel.cover(grille * train(v / 0.06, 0.3, w / 0.06), gray(0.25), 0.4);
    panel.cover(pulse(u, -0.09, 0.09, w) * pulse(v, top - 0.15, top - 0.06, w), gray(0.5), 0.5);
    panel.lamp(
        pulse(u.abs(), 0.44 * half, 0.76 * half, w) * pulse(v, top - 0.17, top - 0.02, w),
        gray(0.66),
        head_light(air, car),
    );
    plate(&mut panel, u, v, 0.4, w, car.seed);
    panel
}

fn car_rear(air: &Air, car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w, half) = (at.u, at.v, at.w, car.half_width);
    let mut panel = Panel::new(at, car.color, 0.3);
    panel.cover(pulse(v, 0.0, plastic(car), w), TRIM, 0.05);
    panel.cover(0.6 * pulse(v, 0.56, 0.575, w), gray(0.01), 0.0);
    panel.lamp(
        pulse(u.abs(), 0.52 * half, 0.84 * half, w) * pulse(v, car.belt - 0.34, car.belt - 0.1, w),
        RED,
        tail_light(air, car),
    );
    panel.cover(pulse(u, -0.34, 0.34, w) * pulse(v, 0.62, 0.8, w), car.color * 0.5, 0.1);
    plate(&mut panel, u, v, 0.65, w, car.seed);
    panel
}

fn cab_side(car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w) = (at.u, at.v, at.w);
    let mut panel = Panel::new(at, car.color, 0.28);
    panel.cover(pulse(v, 0.0, 0.75, w), TRIM, 0.05);
    let (begin, end) = (car.length - 1.55, car.length - 0.35);
    for seam in [begin, end] {
        panel.cover(0.7 * pulse(u, seam - 0.015, seam + 0.015, w), gray(0.01), 0.0);
    }
    panel.glass(pulse(u, begin + 0.12, end + 0.12, w) * pulse(v, car.belt + 0.05, car.belt + 0.75, w));
    arches(&mut panel, car, at);
    panel
}

fn cab_front(air: &Air, car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w, half) = (at.u, at.v, at.w, car.half_width);
    let mut panel = Panel::new(at, car.color, 0.28);
    panel.glass(pulse(u, -0.86 * half, 0.86 * half, w) * pulse(v, car.belt, car.belt + 0.82, w));
    let grille = pulse(u, -0.6 * half, 0.6 * half, w) * pulse(v, 0.9, car.belt - 0.12, w);
    panel.cover(grille * mix(0.4, 1.0, train(v / 0.12, 0.6, w / 0.12)), gray(0.015), 0.1);
    panel.cover(pulse(v, 0.0, 0.72, w), TRIM, 0.05);
    panel.lamp(pulse(u.abs(), 0.55 * half, 0.85 * half, w) * pulse(v, 0.62, 0.82, w), gray(0.66), head_light(air, car));
    plate(&mut panel, u, v, 0.5, w, car.seed);
    panel
}

fn cargo_side(car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w) = (at.u, at.v, at.w);
    let mut panel = Panel::new(at, car.accent, 0.06);
    let ribbed = car.seed.is_multiple_of(2);
    if ribbed {
        panel.cover(0.35 * train(u / 0.55, 0.1, w / 0.55), car.accent * 0.4, 0.0);
    }
    let middle = 0.5 * car.height + 0.5;
    let tall = 0.32 * (car.height - 1.0);
    let name = lettering(u - 0.16 * car.length, v - middle + 0.5 * tall, tall, 0.42 * car.length, car.seed, w);
    let ink = if car.accent.luminance() > 0.3 { car.color } else { gray(0.8) };
    panel.cover(name, ink, 0.06);
    panel.cover(pulse(v, 0.95, 1.1, w), gray(0.05), 0.05);
    panel.cover(pulse(v, car.height - 0.1, car.height, w), car.accent * 0.6, 0.05);
    panel.lamp(pulse(v, 1.0, 1.06, w) * train(u / 1.6, 0.06, w / 1.6), AMBER * 0.6, 0.2);
    panel
}

fn cargo_rear(air: &Air, car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w, half) = (at.u, at.v, at.w, car.half_width);
    let mut panel = Panel::new(at, car.accent * 0.94, 0.06);
    panel.cover(pulse(u, -0.02, 0.02, w), gray(0.02), 0.0);
    for bar in [-0.55, -0.25, 0.25, 0.55] {
        panel.cover(pulse(u, bar * half - 0.025, bar * half + 0.025, w) * pulse(v, 1.15, car.height - 0.15, w), gray(0.4), 0.3);
    }
    let edge = 1.0 - pulse(u, -half + 0.09, half - 0.09, w) * pulse(v, 1.1, car.height - 0.12, w);
    panel.cover(edge, gray(0.1), 0.05);
    let stripe = train((u + v) / 0.3, 0.5, w / 0.3);
    panel.cover(pulse(v, 1.12, 1.24, w), RED.mix(gray(0.8), stripe), 0.2);
    panel.lamp(pulse(u.abs(), 0.68 * half, 0.94 * half, w) * pulse(v, 0.96, 1.09, w), RED, tail_light(air, car));
    panel
}

fn coach_side(air: &Air, car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w) = (at.u, at.v, at.w);
    let mut panel = Panel::new(at, car.color, 0.22);
    let low = car.belt - 0.05;
    panel.cover(pulse(v, 0.75, low - 0.08, w), car.accent, 0.2);
    let name = lettering(u - 0.36 * car.length, v - 0.82, 0.26, 0.25 * car.length, car.seed, w);
    panel.cover(name, car.color, 0.2);
    let band = pulse(v, low, car.height - 0.48, w) * pulse(u, 0.35, car.length - 0.05, w);
    panel.glass(band);
    let post = train((u - 0.35) / 1.45, 0.06, w / 1.45);
    panel.cover(band * post, TRIM, 0.1);
    for door in [0.1 * car.length + 1.0, 0.5 * car.length, car.length - 1.75] {
        let leaf = pulse(u, door, door + 1.15, w) * pulse(v, 0.42, car.height - 0.48, w);
        panel.glass(leaf);
        let frame = 1.0 - pulse(u, door + 0.06, door + 1.09, w) * pulse(v, 0.5, car.height - 0.55, w);
        panel.cover(leaf * (frame + pulse(u, door + 0.55, door + 0.6, w)), TRIM, 0.1);
    }
    panel.cover(pulse(v, 0.0, 0.42, w), TRIM, 0.05);
    panel.surface.emission =
        v3(0.95, 0.85, 0.62) * (0.55 * air.lamps * band * (1.0 - post) * mix(0.6, 1.0, noise(u * 1.2, v * 1.5, car.seed)));
    arches(&mut panel, car, at);
    panel
}

fn coach_front(air: &Air, car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w, half) = (at.u, at.v, at.w, car.half_width);
    let mut panel = Panel::new(at, car.color, 0.22);
    panel.glass(pulse(u, -0.92 * half, 0.92 * half, w) * pulse(v, 1.05, car.height - 0.12, w));
    panel.cover(pulse(u, -0.015, 0.015, w) * pulse(v, 1.05, car.height - 0.55, w), TRIM, 0.1);
    display(&mut panel, car, at, car.height - 0.44, 1.5);
    panel.cover(pulse(v, 0.0, 0.55, w), car.accent * 0.5, 0.1);
    panel.lamp(pulse(u.abs(), 0.6 * half, 0.88 * half, w) * pulse(v, 0.68, 0.9, w), gray(0.66), head_light(air, car));
    plate(&mut panel, u, v, 0.44, w, car.seed);
    panel
}

/// The dot display with number and destination.
fn display(panel: &mut Panel, car: &Vehicle, at: &Place, low: f32, long: f32) {
    let field = pulse(at.u, -0.5 * long, 0.5 * long, at.w) * pulse(at.v, low, low + 0.3, at.w);
    panel.cover(field, gray(0.006), 0.1);
    panel.lamp(field * lettering(at.u + 0.46 * long, at.v - low - 0.05, 0.2, 0.9 * long, car.seed ^ 3, at.w), AMBER, 0.8);
}

fn coach_rear(air: &Air, car: &Vehicle, at: &Place) -> Panel {
    let (u, v, w, half) = (at.u, at.v, at.w, car.half_width);
    let mut panel = Panel::new(at, car.color, 0.22);
    panel.glass(pulse(u, -0.85 * half, 0.85 * half, w) * pulse(v, 1.65, car.height - 0.5, w));
    display(&mut panel, car, at, car.height - 0.42, 0.6);
    let grille = pulse(u, -0.6 * half, 0.6 * half, w) * pulse(v, 0.75, 1.25, w);
    panel.cover(grille * train(v / 0.09, 0.5, w / 0.09), gray(0.02), 0.0);
    panel.cover(pulse(v, 0.0, 0.5, w), TRIM, 0.05);
    panel.lamp(pulse(u.abs(), 0.8 * half, 0.95 * half, w) * pulse(v, 0.7, 1.35, w), RED, tail_light(air, car));
    let advert = pulse(u, -0.8 * half, 0.8 * half, w) * pulse(v, 1.32, 1.6, w);
    panel.cover(advert, car.accent, 0.2);
    panel.cover(
        advert * lettering(u + 0.7 * half, v - 1.37, 0.18, 1.4 * half, car.seed ^ 1, w),
        car.color * hash01(1, 1, car.seed),
        0.2,
    );
    plate(&mut panel, u, v, 0.55, w, car.seed);
    panel
}
