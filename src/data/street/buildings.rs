//! Houses: closed rows along the pavement, detached ones behind gardens, offices.

use super::layout::{Scene, chance, pick, pick_color};
use super::material::{Facade, Material, Wall};
use super::math::{Rgb, V3, gray, srgb, v3};
use super::model::{Cut, Pose, class};
use crate::base::Rng;

const UP: V3 = v3(0.0, 1.0, 0.0);

const PLASTER: [[u8; 3]; 12] = [
    [226, 212, 184],
    [214, 190, 150],
    [232, 226, 214],
    [204, 160, 128],
    [190, 200, 196],
    [216, 178, 164],
    [178, 186, 160],
    [240, 222, 160],
    [158, 170, 186],
    [200, 132, 104],
    [222, 222, 222],
    [170, 152, 134],
];
const BRICK: [[u8; 3]; 5] = [[150, 78, 58], [128, 66, 52], [172, 104, 74], [176, 140, 104], [110, 72, 62]];
const PANEL: [[u8; 3]; 7] =
    [[160, 162, 164], [196, 190, 178], [118, 128, 138], [214, 214, 212], [152, 136, 122], [140, 160, 166], [206, 186, 150]];
const STONE: [[u8; 3]; 4] = [[196, 184, 160], [176, 170, 158], [206, 198, 182], [150, 142, 130]];
const ACCENT: [[u8; 3]; 10] = [
    [140, 36, 34],
    [28, 62, 44],
    [24, 44, 92],
    [40, 40, 42],
    [196, 150, 40],
    [96, 60, 36],
    [30, 108, 120],
    [200, 92, 36],
    [110, 30, 70],
    [220, 214, 200],
];
const TILES: [[u8; 3]; 6] = [[140, 70, 50], [120, 58, 46], [84, 72, 68], [62, 64, 72], [98, 84, 70], [160, 88, 62]];

/// What kind of houses a stretch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quarter {
    /// Old houses wall to wall.
    Old,
    /// Offices and blocks of flats.
    Modern,
    /// Low houses.
    Low,
}

/// Where a house stands: `left` and `right` end of its front as seen from the street.
pub(super) struct Lot {
    pub left: V3,
    pub right: V3,
    pub depth: f32,
}

impl Facade {
    /// Draws the looks of a house front of `width` metres.
    fn draw(rng: &mut Rng, quarter: Quarter, width: f32) -> Self {
        let wall = match (quarter, rng.below(10)) {
            (Quarter::Modern, 0..=3) => Wall::Glass,
            (Quarter::Modern, 4..=7) => Wall::Panel,
            (Quarter::Modern, _) => Wall::Plaster,
            (Quarter::Old | Quarter::Low, 0..=4) => Wall::Plaster,
            (_, 5..=7) => Wall::Brick,
            _ => Wall::Stone,
        };
        let color = match wall {
            Wall::Plaster => pick_color(rng, &PLASTER),
            Wall::Brick => pick_color(rng, &BRICK),
            Wall::Panel | Wall::Glass => pick_color(rng, &PANEL),
            Wall::Stone => pick_color(rng, &STONE),
        };
        let storeys = match quarter {
            Quarter::Old => 2 + rng.below(4),
            Quarter::Modern => 3 + rng.below(6),
            Quarter::Low => 1 + rng.below(2),
        };
        let storey = rng.uniform_in(2.8, 3.5);
        let shop = quarter != Quarter::Low && chance(rng, 0.55);
        let ground = if shop { rng.uniform_in(3.5, 4.4) } else { storey };
        let axes = (width / rng.uniform_in(2.2, 3.6)).round().max(1.0);
        let bay = width / axes;
        let share = if wall == Wall::Panel { rng.uniform_in(0.55, 0.85) } else { rng.uniform_in(0.36, 0.52) };
        Self {
            wall,
            color: color * rng.uniform_in(0.8, 1.1),
            trim: if chance(rng, 0.6) { gray(rng.uniform_in(0.5, 0.8)) } else { color * 0.55 },
            accent: pick_color(rng, &ACCENT),
            width,
            height: ground + storey * (storeys - 1) as f32 + rng.uniform_in(0.3, 0.9),
            ground,
            storey,
            bay,
            window: (bay * share, storey * rng.uniform_in(0.46, 0.62)),
            shop,
            shutters: matches!(wall, Wall::Plaster | Wall::Stone) && !shop && chance(rng, 0.4),
            blind: false,
            seed: (rng.uniform() * 1e6) as u32,
        }
    }
}

impl Scene {
    /// Adds a house and returns its height.
    pub(super) fn house(&mut self, rng: &mut Rng, lot: &Lot, quarter: Quarter) -> f32 {
        let run = lot.right - lot.left;
        let facade = Facade::draw(rng, quarter, run.length());
        let right = run.unit();
        let base = lot.left + v3(0.0, -0.1, 0.0);
        let pose = Pose { origin: base, right, ahead: right.cross(UP) };
        let front = self.add_facade(facade);
        let side = self.add_facade(Facade { blind: true, shop: false, width: lot.depth, ..facade });
        self.walls(&pose, &facade, lot.depth, (front, side));
        match quarter {
            Quarter::Modern => self.flat_roof(rng, &pose, &facade, lot.depth),
            Quarter::Old if chance(rng, 0.35) => self.flat_roof(rng, &pose, &facade, lot.depth),
            _ => self.pitched_roof(rng, &pose, &facade, lot.depth, side),
        }
        if quarter != Quarter::Low {
            self.ornaments(rng, &pose, &facade);
        }
        facade.height
    }

    fn walls(&mut self, pose: &Pose, facade: &Facade, depth: f32, (front, side): (Material, Material)) {
        let (w, h) = (facade.width, facade.height);
        let p = |x, y, z| pose.at(x, y, z);
        let model = &mut self.model;
        let class = class::BUILDING;
        model.quad(class, front, [p(0.0, 0.0, 0.0), p(w, 0.0, 0.0), p(w, h, 0.0), p(0.0, h, 0.0)]);
        model.quad(class, side, [p(0.0, 0.0, depth), p(0.0, 0.0, 0.0), p(0.0, h, 0.0), p(0.0, h, depth)]);
        model.quad(class, side, [p(w, 0.0, 0.0), p(w, 0.0, depth), p(w, h, depth), p(w, h, 0.0)]);
        model.quad(class, side, [p(w, 0.0, depth), p(0.0, 0.0, depth), p(0.0, h, depth), p(w, h, depth)]);
    }

    fn flat_roof(&mut self, rng: &mut Rng, pose: &Pose, facade: &Facade, depth: f32) {
        let (w, h) = (facade.width, facade.height);
        let out = rng.uniform_in(0.08, 0.4);
        let trim = Material::Plain { color: facade.trim, gloss: 0.0 };
        self.model.block(class::BUILDING, trim, pose, v3(-0.02, h - 0.35, -out), v3(w + 0.02, h, depth));
        if chance(rng, 0.4) {
            let at = rng.uniform_in(0.15, 0.6) * w;
            let low = v3(at, h, 2.0);
            self.model.block(class::BUILDING, trim, pose, low, low + v3(0.25 * w, rng.uniform_in(1.2, 2.6), 3.0));
        }
    }

    /// A roof whose ridge runs along the street, or whose gable faces it.
    fn pitched_roof(&mut self, rng: &mut Rng, pose: &Pose, facade: &Facade, depth: f32, gable: Material) {
        let (w, h, over) = (facade.width, facade.height, 0.4);
        let roof = Material::Roof { color: pick_color(rng, &TILES) };
        let p = |x, y, z| pose.at(x, y, z);
        let class = class::BUILDING;
        let towards = facade.width < 9.5 && chance(rng, 0.35);
        let top = h + rng.uniform_in(0.3, 0.55) * if towards { w } else { depth };
        let model = &mut self.model;
        let frame = |origin: V3, u: V3| (origin, u, UP);
        if towards {
            let (mid, drop) = (0.5 * w, over * (top - h) / (0.5 * w));
            let front = self.facades.len().saturating_sub(2) as u16;
            let corners = [p(0.0, h, 0.0), p(w, h, 0.0), p(mid, top, 0.0)];
            model.face(class, Material::Facade(front), &corners, frame(pose.origin, pose.right), Cut::Whole, false);
            let e = h - drop;
            model.quad(class, roof, [p(-over, e, depth), p(-over, e, -over), p(mid, top, -over), p(mid, top, depth)]);
            model.quad(class, roof, [p(w + over, e, -over), p(w + over, e, depth), p(mid, top, depth), p(mid, top, -over)]);
        } else {
            let (mid, drop) = (0.5 * depth, over * (top - h) / (0.5 * depth));
            let e = h - drop;
            model.quad(class, roof, [p(0.0, e, -over), p(w, e, -over), p(w, top, mid), p(0.0, top, mid)]);
            model.quad(class, roof, [p(w, e, depth), p(0.0, e, depth), p(0.0, top, mid), p(w, top, mid)]);
            let left = [p(0.0, h, depth), p(0.0, h, 0.0), p(0.0, top, mid)];
            model.face(class, gable, &left, frame(pose.at(0.0, 0.0, depth), -pose.ahead), Cut::Whole, false);
            let right = [p(w, h, 0.0), p(w, h, depth), p(w, top, mid)];
            model.face(class, gable, &right, frame(pose.at(w, 0.0, 0.0), pose.ahead), Cut::Whole, false);
            self.dormers(rng, pose, facade, (top - h) / mid);
        }
        let chimney = Material::Masonry { color: pick_color(rng, &BRICK) };
        let at = rng.uniform_in(0.1, 0.8) * w;
        let low = v3(at, h, 0.35 * depth);
        self.model.block(class, chimney, pose, low, v3(at + 0.8, top + rng.uniform_in(0.5, 1.2), 0.35 * depth + 0.6));
    }

    fn dormers(&mut self, rng: &mut Rng, pose: &Pose, facade: &Facade, slope: f32) {
        if slope < 0.7 || !chance(rng, 0.6) {
            return;
        }
        let trim = Material::Plain { color: facade.trim, gloss: 0.0 };
        for axis in 0..(facade.width / facade.bay) as usize {
            let x = (axis as f32 + 0.5) * facade.bay;
            let (low, high) = (v3(x - 0.6, facade.height, 0.6), v3(x + 0.6, facade.height + 1.5, 3.0));
            self.model.block(class::BUILDING, trim, pose, low, high);
            let p = |dx: f32, y: f32| pose.at(x + dx, facade.height + y, 0.58);
            let corners = [p(-0.45, 0.25), p(0.45, 0.25), p(0.45, 1.35), p(-0.45, 1.35)];
            self.model.quad(class::BUILDING, Material::Glass, corners);
        }
    }

    /// Awnings, balconies, a ledge.
    fn ornaments(&mut self, rng: &mut Rng, pose: &Pose, facade: &Facade) {
        let class = class::BUILDING;
        let p = |x, y, z| pose.at(x, y, z);
        let (w, ground) = (facade.width, facade.ground);
        let trim = Material::Plain { color: facade.trim, gloss: 0.0 };
        if facade.shop && chance(rng, 0.45) {
            let awning = Material::Cloth { color: facade.accent };
            let (low, out) = (ground - 1.35, rng.uniform_in(0.8, 1.5));
            let (a, b) = (0.06 * w, 0.94 * w);
            let top = ground - 0.8;
            self.model.sheet(class, awning, [p(a, low, -out), p(b, low, -out), p(b, top, 0.0), p(a, top, 0.0)], Cut::Whole);
            self.model.sheet(
                class,
                awning,
                [p(a, low - 0.2, -out), p(b, low - 0.2, -out), p(b, low, -out), p(a, low, -out)],
                Cut::Whole,
            );
        } else if facade.wall != Wall::Glass {
            self.model.block(class, trim, pose, v3(0.0, ground - 0.1, -0.12), v3(w, ground + 0.1, 0.0));
        }
        if facade.wall == Wall::Glass || !chance(rng, 0.4) {
            return;
        }
        let rail = Material::Plain { color: if chance(rng, 0.5) { gray(0.05) } else { facade.trim }, gloss: 0.1 };
        let axes = (w / facade.bay) as usize;
        let every = 1 + rng.below(3);
        let floors = ((facade.height - ground) / facade.storey) as usize;
        for (floor, axis) in (0..floors).flat_map(|floor| (0..axes).map(move |axis| (floor, axis))) {
            if axis % every != 0 {
                continue;
            }
            let (x, y) = ((axis as f32 + 0.5) * facade.bay, ground + floor as f32 * facade.storey);
            let half = 0.42 * facade.bay;
            self.model.block(class, trim, pose, v3(x - half, y, -0.9), v3(x + half, y + 0.15, 0.0));
            self.model.block(class, rail, pose, v3(x - half, y + 0.15, -0.9), v3(x + half, y + 0.95, -0.82));
        }
    }

    fn add_facade(&mut self, facade: Facade) -> Material {
        self.facades.push(facade);
        Material::Facade((self.facades.len() - 1) as u16)
    }

    /// A row of plain blocks far away, which closes the view.
    pub(super) fn skyline(&mut self, rng: &mut Rng, from: V3, to: V3) {
        let run = to - from;
        let (length, right) = (run.length(), run.unit());
        let mut at = 0.0;
        while at < length {
            let width = rng.uniform_in(12.0, 26.0);
            let quarter = if chance(rng, 0.5) { Quarter::Old } else { Quarter::Modern };
            let shift = right.cross(UP) * rng.uniform_in(0.0, 20.0);
            let left = from + right * at + shift;
            if chance(rng, 0.8) {
                let facade = Facade { shop: false, ..Facade::draw(rng, quarter, width) };
                let front = self.add_facade(facade);
                let pose = Pose { origin: left, right, ahead: right.cross(UP) };
                self.walls(&pose, &facade, 12.0, (front, front));
            }
            at += width + rng.uniform_in(-2.0, 6.0);
        }
    }
}

/// The colours that shops and signs advertise with.
pub(super) fn accent(rng: &mut Rng) -> Rgb {
    let [r, g, b] = pick(rng, &ACCENT);
    srgb(r, g, b)
}
