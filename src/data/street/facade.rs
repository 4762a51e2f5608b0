//! House fronts: walls, windows, doors, shops.

use super::look::Air;
use super::material::{Facade, Wall};
use super::math::{Rgb, clouds, floor, gray, hash01, mix, noise, pulse, smooth, train, v3};
use super::surface::{Place, Surface, bricks, fading};

/// Light of lit rooms.
const WARM: Rgb = v3(1.0, 0.68, 0.36);
const COOL: Rgb = v3(0.72, 0.85, 1.0);

/// The look of a house front.
pub(super) fn facade(air: &Air, f: &Facade, at: &Place) -> Surface {
    let wall = wall(f, at);
    let mut surface = Surface::dull(wall, at.normal);
    // The foot of a wall sees less sky, and is dirtier.
    surface.open = mix(0.6, 1.0, smooth(-0.2, 2.0, at.v));
    surface.albedo = surface.albedo * mix(0.72, 1.0, smooth(0.0, 0.5, at.v));
    if f.wall == Wall::Glass {
        return curtain(air, f, at, surface);
    }
    if at.v < f.ground && !f.blind {
        return match f.shop {
            true => shop(air, f, at, surface),
            false => ground_floor(air, f, at, surface),
        };
    }
    if at.v > f.height {
        return surface;
    }
    let level = floor((at.v - f.ground) / f.storey);
    let column = floor(at.u / f.bay);
    let full = f.ground + (level + 1.0) * f.storey <= f.height + 0.3;
    if !full || level < 0.0 || (f.blind && hash01(column as i32, level as i32, f.seed ^ 3) > 0.22) {
        return surface;
    }
    let x = at.u - (column + 0.5) * f.bay;
    let y = at.v - f.ground - level * f.storey - 0.5 * (f.storey - f.window.1);
    window(air, f, at, surface, (x, y), f.window, (column as i32, level as i32))
}

fn wall(f: &Facade, at: &Place) -> Rgb {
    let stain = mix(0.84, 1.06, clouds(at.u * 0.3, at.v * 0.2, f.seed, 2));
    match f.wall {
        Wall::Brick => bricks(f.color, at, 0.28, 0.1, f.seed),
        Wall::Stone => bricks(f.color, at, 0.9, 0.45, f.seed) * 0.96,
        Wall::Plaster => {
            f.color * (stain * mix(0.94, 1.05, fading(at.u * 6.0, at.v * 6.0, f.seed ^ 1, 1.0 - smooth(0.05, 0.3, at.w))))
        }
        Wall::Panel | Wall::Glass => {
            let joint = train(at.u / f.bay, 0.03, at.w / f.bay).max(train((at.v - f.ground) / f.storey, 0.03, at.w / f.storey));
            f.color * (stain * (1.0 - 0.4 * joint))
        }
    }
}

/// A window of `size` whose lower middle is at the origin of (x, y); `id` is its column and floor.
fn window(air: &Air, f: &Facade, at: &Place, wall: Surface, (x, y): (f32, f32), size: (f32, f32), id: (i32, i32)) -> Surface {
    let (half, high, w) = (0.5 * size.0, size.1, at.w);
    let inside = pulse(x, -half, half, w) * pulse(y, 0.0, high, w);
    let mut surface = wall;
    let border = pulse(x, -half - 0.13, half + 0.13, w) * pulse(y, -0.16, high + 0.15, w);
    surface.albedo = surface.albedo.mix(f.trim, 0.75 * border * (1.0 - inside));
    // The sill throws a shadow.
    surface.albedo = surface.albedo * (1.0 - 0.45 * pulse(x, -half - 0.1, half + 0.1, w) * pulse(y, -0.3, -0.16, w));
    if f.shutters {
        let leaf = pulse(x.abs(), half + 0.06, half + 0.06 + 0.45 * size.0, w) * pulse(y, -0.02, high + 0.02, w);
        let slats = 1.0 - 0.4 * train(y / 0.12, 0.3, w / 0.12);
        surface.albedo = surface.albedo.mix(f.accent * slats, leaf);
    }
    if inside <= 0.0 {
        return surface;
    }
    let room = room(air, f, (x / half, y / high), id);
    let frame = inside * (1.0 - pulse(x, -half + 0.07, half - 0.07, w) * pulse(y, 0.07, high - 0.07, w));
    let mullion = pulse(x, -0.03, 0.03, w) + pulse(y, 0.66 * high, 0.66 * high + 0.06, w);
    let bars = (frame + mullion * inside).min(1.0);
    // Depth of the reveal: its upper edge and one side lie in shadow.
    let shade = pulse(y, high - 0.16, high, w).max(pulse(x, -half, -half + 0.1, w));
    let pane = inside * (1.0 - bars);
    surface.albedo = surface.albedo.mix(gray(0.58), bars).mix(room.0, pane) * (1.0 - 0.6 * shade * inside);
    surface.emission = room.1 * pane;
    surface.gloss = 0.42 * pane * (1.0 - 0.6 * shade);
    surface
}

/// What is behind a pane: its colour by daylight and its own light. `x` −1…1 and `y` 0…1 within the window.
fn room(air: &Air, f: &Facade, (x, y): (f32, f32), (column, level): (i32, i32)) -> (Rgb, Rgb) {
    let h = |salt: u32| hash01(column, level, f.seed ^ salt.wrapping_mul(7919));
    let drawn = match (h(1) * 4.0) as u32 {
        0 => smooth(0.5, 0.75, x.abs()),
        1 => smooth(1.0 - 0.7 * h(2), 1.02 - 0.7 * h(2), y),
        2 => 0.9,
        _ => 0.0,
    };
    let cloth = gray(0.36).mix(v3(0.5, 0.42, 0.32), h(3));
    let dark = v3(0.025, 0.03, 0.036);
    let color = dark.mix(cloth, 0.75 * drawn);
    let lit = h(4) < air.windows;
    let tint = if h(5) < 0.75 { WARM } else { COOL };
    let strength = if lit { mix(0.35, 1.0, h(6)) * air.lamps * (1.0 - 0.35 * drawn) * mix(0.7, 1.0, y) } else { 0.0 };
    (color, tint * strength)
}

/// A shop: windows between pillars, a board with its name, a door.
fn shop(air: &Air, f: &Facade, at: &Place, wall: Surface) -> Surface {
    let span = f.width / (f.width / 4.2).round().max(1.0);
    let column = floor(at.u / span);
    let id = column as i32;
    let x = at.u - column * span;
    let (top, w) = (f.ground - 1.0, at.w);
    let mut surface = wall;
    let board = pulse(at.v, f.ground - 0.85, f.ground - 0.22, w);
    surface.albedo = surface.albedo.mix(f.accent, board);
    let letters = lettering(at.u - 0.15 * f.width, at.v - (f.ground - 0.7), 0.34, 0.7 * f.width, f.seed, w) * board;
    let pale = if f.accent.luminance() > 0.3 { gray(0.04) } else { gray(0.8) };
    surface.albedo = surface.albedo.mix(pale, letters);
    let open = hash01(id, 1, f.seed) < 0.8;
    let shine = if open { air.lamps } else { 0.0 };
    surface.emission = (f.accent * 0.5 * board + pale * (0.8 * letters)) * (0.7 * shine);
    let door = id % 3 == (f.seed % 3) as i32;
    let low = if door { 0.12 } else { 0.55 };
    let pane = pulse(x, 0.22, span - 0.22, w) * pulse(at.v, low, top, w);
    if pane > 0.0 {
        let frame = (train((x - 0.22) / ((span - 0.44) / 2.0), 0.05, w / span * 2.0) + pulse(at.v, 2.1, 2.18, w)).min(1.0);
        let goods = goods(at.u, at.v, f.seed);
        surface.albedo = surface.albedo.mix(v3(0.03, 0.034, 0.038).mix(goods, 0.4), pane).mix(f.accent * 0.6, frame * pane);
        surface.emission = surface.emission * (1.0 - pane)
            + (WARM.mix(COOL, hash01(2, 3, f.seed)) * 0.55 + goods * 0.8) * (shine * pane * (1.0 - frame));
        surface.gloss = 0.38 * pane * (1.0 - frame);
    }
    surface
}

/// Things on display.
fn goods(u: f32, v: f32, seed: u32) -> Rgb {
    let (i, j) = (floor(u * 2.3) as i32, floor(v * 1.7) as i32);
    let h = |salt: u32| hash01(i, j, seed ^ salt);
    let shape = smooth(0.35, 0.5, noise(u * 4.0, v * 4.0, seed));
    v3(h(11), h(12), h(13)) * (0.55 * shape * smooth(2.4, 0.6, v))
}

/// Something like words, `tall` metres high and at most `long` metres wide.
pub(super) fn lettering(x: f32, y: f32, tall: f32, long: f32, seed: u32, w: f32) -> f32 {
    let pitch = 0.62 * tall;
    let i = floor(x / pitch);
    if x < 0.0 || x > long || hash01(i as i32, 5, seed) < 0.14 {
        return 0.0;
    }
    let t = x - i * pitch;
    let body = pulse(t, 0.12 * pitch, 0.85 * pitch, w) * pulse(y, 0.0, tall, w);
    let h = |salt: i32| hash01(i as i32, salt, seed);
    let hole = pulse(t, 0.35 * pitch, (0.62 + 0.3 * h(1)) * pitch, w)
        * (pulse(y, 0.14 * tall, (0.3 + 0.15 * h(2)) * tall, w)
            + pulse(y, (0.58 + 0.1 * h(3)) * tall, (0.85 + 0.2 * h(4)) * tall, w));
    (body - hole).max(0.0)
}

/// The lowest storey of a house people live in: one door, windows.
fn ground_floor(air: &Air, f: &Facade, at: &Place, wall: Surface) -> Surface {
    let column = floor(at.u / f.bay);
    let x = at.u - (column + 0.5) * f.bay;
    let axes = (f.width / f.bay).round().max(1.0) as u32;
    if column as i32 != (f.seed % axes) as i32 {
        let y = at.v - 0.95;
        return window(air, f, at, wall, (x, y), (f.window.0, f.window.1.min(f.ground - 1.5)), (column as i32, -1));
    }
    let w = at.w;
    let half = (0.42 * f.bay).min(0.62);
    let high = (f.ground - 0.6).min(2.35);
    let frame = pulse(x, -half - 0.16, half + 0.16, w) * pulse(at.v, 0.0, high + 0.18, w);
    let leaf = pulse(x, -half, half, w) * pulse(at.v, 0.1, high, w);
    let light = pulse(x, -half + 0.1, half - 0.1, w) * pulse(at.v, high - 0.5, high - 0.1, w);
    let panels = 0.75 + 0.25 * (1.0 - train((at.v - 0.2) / 0.7, 0.12, w / 0.7)).min(1.0 - train(x / half, 0.12, w / half));
    let mut surface = wall;
    surface.albedo = surface.albedo.mix(f.trim, frame).mix(f.accent * panels, leaf).mix(gray(0.03), light);
    surface.emission = WARM * (light * air.lamps * 0.7 * f32::from(u8::from(hash01(3, 3, f.seed) < 0.6)));
    surface.gloss = 0.3 * light;
    surface
}

/// A front of glass: bands of panes, spandrels and thin posts.
fn curtain(air: &Air, f: &Facade, at: &Place, wall: Surface) -> Surface {
    let (w, half_bay) = (at.w, 0.5 * f.bay);
    let (column, level) = (floor(at.u / half_bay) as i32, floor(at.v / f.storey) as i32);
    let (x, y) = (at.u / half_bay, at.v / f.storey);
    let post = train(x + 0.03, 0.07, w / half_bay).max(train(y + 0.02, 0.05, w / f.storey));
    let spandrel = train(y, 0.24, w / f.storey);
    let tint = v3(0.06, 0.11, 0.13).mix(f.color * 0.4, 0.4) * mix(0.7, 1.2, hash01(column, level, f.seed));
    let (color, light) = room(air, f, (0.0, y - floor(y)), (column / 3, level));
    let mut surface = wall;
    surface.albedo = tint.mix(color, 0.3).mix(tint * 1.6 + f.color * 0.12, spandrel).mix(f.color * 0.7, post);
    surface.emission = light * ((1.0 - post) * (1.0 - spandrel));
    surface.gloss = 0.5 * (1.0 - post);
    surface
}
