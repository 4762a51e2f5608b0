//! Faces of traffic signs and traffic lights.

use super::facade::lettering;
use super::look::Air;
use super::material::{SignKind, Signal};
use super::math::{Rgb, floor, gray, pulse, smooth, v3};
use super::surface::{Place, Surface};

const RED: Rgb = v3(0.56, 0.014, 0.02);
const BLUE: Rgb = v3(0.012, 0.085, 0.42);
const GREEN: Rgb = v3(0.01, 0.2, 0.08);
const WHITE: Rgb = v3(0.82, 0.82, 0.82);
const BLACK: Rgb = v3(0.012, 0.012, 0.014);

/// Colour of the light of a traffic light.
pub(super) fn signal_color(state: Signal) -> Rgb {
    match state {
        Signal::Red => v3(1.0, 0.05, 0.03),
        Signal::Amber => v3(1.0, 0.5, 0.03),
        Signal::Green => v3(0.06, 0.95, 0.45),
    }
}

/// The look of a sign of `size` metres (half its width).
pub(super) fn sign(air: &Air, kind: SignKind, size: f32, seed: u32, at: &Place) -> Surface {
    let (x, y, w) = (at.u / size, at.v / size, at.w / size);
    let d = (x * x + y * y).sqrt();
    let disc = |r: f32| 1.0 - smooth(r - 0.5 * w, r + 0.5 * w + 1e-3, d);
    let color = match kind {
        SignKind::Back => gray(0.26),
        SignKind::Limit => {
            let text = lettering(x + 0.45, y + 0.3, 0.62, 0.9, seed, w);
            RED.mix(WHITE, disc(0.72)).mix(BLACK, text * disc(0.7))
        }
        SignKind::NoEntry => RED.mix(WHITE, pulse(x, -0.7, 0.7, w) * pulse(y, -0.18, 0.18, w)),
        SignKind::Warning => {
            let mark = pulse(x, -0.09, 0.09, w) * (pulse(y, -0.08, 0.36, w) + pulse(y, -0.26, -0.14, w));
            RED.mix(WHITE, triangle(x, y, w)).mix(BLACK, mark)
        }
        SignKind::GiveWay => RED.mix(WHITE, triangle(x, -y, w)),
        SignKind::Stop => {
            let text = lettering(x + 0.72, y + 0.22, 0.46, 1.2, 99, w) * pulse(x, -0.74, 0.74, w);
            RED.mix(WHITE, text)
        }
        SignKind::Mandatory => {
            let arrow = pulse(x, -0.1, 0.1, w) * pulse(y, -0.6, 0.3, w);
            let half = (0.62 - y).clamp(0.0, 0.4);
            let head = pulse(x, -half, half, w) * pulse(y, 0.1, 0.62, w);
            BLUE.mix(WHITE, arrow.max(head))
        }
        SignKind::Information => {
            let field = pulse(x, -0.62, 0.62, w) * pulse(y, -0.62, 0.62, w);
            let letter = pulse(x, -0.26, -0.08, w) * pulse(y, -0.45, 0.45, w)
                + pulse(x, -0.08, 0.24, w) * (pulse(y, 0.27, 0.45, w) + pulse(y, -0.1, 0.08, w))
                + pulse(x, 0.1, 0.26, w) * pulse(y, 0.0, 0.4, w);
            WHITE.mix(BLUE, field).mix(WHITE, letter.min(1.0))
        }
        SignKind::Direction => direction(x, y, w, seed),
    };
    let mut surface = Surface::dull(color, at.normal).glossy(0.05);
    // Foil throws lamp light back to where it came from.
    if kind != SignKind::Back {
        surface.emission = color * (0.28 * air.lamps);
    }
    surface
}

/// The white inside of a triangular sign, tip up.
fn triangle(x: f32, y: f32, w: f32) -> f32 {
    let half = (0.52 - y) * 0.577;
    pulse(x, -half.max(0.0), half.max(0.0), w) * pulse(y, -0.27, 0.6, w)
}

fn direction(x: f32, y: f32, w: f32, seed: u32) -> Rgb {
    let ground = if seed.is_multiple_of(2) { BLUE } else { GREEN };
    let field = pulse(x, -1.92, 1.92, w) * pulse(y, -0.72, 0.72, w);
    let text = lettering(x + 1.5, y - 0.12, 0.42, 2.4, seed, w) + lettering(x + 1.5, y + 0.52, 0.36, 1.8, seed ^ 1, w);
    let half = (1.75 - x).clamp(0.0, 0.3);
    let arrow = pulse(y, -half, half, w) * pulse(x, 1.4, 1.75, w) + pulse(y, -0.08, 0.08, w) * pulse(x, 1.1, 1.4, w);
    WHITE.mix(ground, field).mix(WHITE, text.max(arrow).min(1.0))
}

/// The front of a traffic light.
pub(super) fn signals(air: &Air, state: Signal, (width, height): (f32, f32), at: &Place) -> Surface {
    let x = at.u - 0.5 * width;
    let row = floor(at.v / height * 3.0).clamp(0.0, 2.0);
    let y = at.v - (row + 0.5) * height / 3.0;
    let glass = 1.0 - smooth(0.125 - 0.5 * at.w, 0.125 + 0.5 * at.w + 1e-3, (x * x + y * y).sqrt());
    let lamp = [Signal::Green, Signal::Amber, Signal::Red][row as usize];
    let color = signal_color(lamp);
    let on = lamp == state;
    let mut surface = Surface::dull(gray(0.016).mix(color * 0.09, glass), at.normal);
    if on {
        surface.emission = color * (glass * (1.5 + 1.5 * air.lamps));
    }
    surface
}
