//! The street itself: its course, its cross-section and the ground it lies in.

use super::material::Material;
use super::math::{V3, cos, sin, v3};
use super::model::{Cut, Model, Pose, class};
use crate::base::Rng;

/// Where the ground begins behind the camera and where it ends, in metres along the street.
const BEGIN: f32 = -4.0;
/// See [`BEGIN`].
pub(super) const END: f32 = 230.0;
/// How far side streets and fields reach to each side.
const REACH: f32 = 90.0;
/// Width of the pavements of side streets.
pub(super) const CORNER: f32 = 2.6;
/// Beyond this distance the street goes on straight.
const BEND: f32 = 120.0;

/// Course and cross-section. `l` counts metres from the middle of the carriageway to the right, `s` metres ahead of the
/// camera along the street.
#[derive(Debug, Clone)]
pub(super) struct Street {
    /// Offset of the camera from the middle.
    pub ego: f32,
    /// Direction of the street at the camera, radians to the right.
    yaw: f32,
    /// Change of direction per metre.
    bend: f32,
    /// +1 where traffic keeps right, −1 where it keeps left.
    pub keep: f32,
    pub lanes: usize,
    pub lane: f32,
    /// Width of the parking strips, left and right; 0 for none.
    pub parking: [f32; 2],
    /// Width of the green between kerb and pavement.
    pub verge: [f32; 2],
    pub pavement: [f32; 2],
    pub kerb: f32,
    /// A side street from … to.
    pub crossing: Option<(f32, f32)>,
    /// A zebra or a signalled crossing: begin, end, and whether it is striped.
    pub walkway: Option<(f32, f32, bool)>,
    /// Tracks of a tram in the middle of the lane nearest to the centre.
    pub tracks: bool,
    /// The centre line is broken.
    pub broken_centre: bool,
    /// A cycle lane with coloured ground along the kerb of the camera's side.
    pub cycle_lane: bool,
    /// Colour of the pavement's slabs.
    pub paving: V3,
    pub seed: u32,
}

impl Street {
    /// Draws a street.
    pub fn draw(rng: &mut Rng) -> Self {
        let keep = if rng.uniform() < 0.8 { 1.0 } else { -1.0 };
        let lanes = if rng.uniform() < 0.68 { 1 } else { 2 };
        let lane = rng.uniform_in(3.0, 3.6);
        let chance = |rng: &mut Rng, p: f32, value: f32| if rng.uniform() < p { value } else { 0.0 };
        let parking = [chance(rng, 0.62, 2.2), chance(rng, 0.62, 2.2)];
        let strip = rng.uniform_in(1.4, 2.8);
        let verge = [chance(rng, 0.35, strip), chance(rng, 0.35, strip)];
        let pavement = [rng.uniform_in(2.0, 4.6), rng.uniform_in(2.0, 4.6)];
        let side = rng.below(lanes) as f32 + 0.5;
        let begin = rng.uniform_in(15.0, 52.0);
        let crossing = (rng.uniform() < 0.62).then(|| (begin, begin + rng.uniform_in(7.0, 11.0)));
        let at = crossing.map_or_else(|| rng.uniform_in(8.0, 30.0), |(begin, _)| begin - 4.4);
        let striped = rng.uniform() < 0.75;
        let walkway = (rng.uniform() < 0.7).then_some((at, at + 3.4, striped));
        let paving = super::layout::pick(rng, &PAVINGS);
        Self {
            ego: keep * (side * lane + rng.uniform_in(-0.35, 0.35)),
            yaw: rng.uniform_in(-0.05, 0.05),
            bend: rng.uniform_in(-1.0, 1.0) * rng.uniform_in(0.0, 0.007),
            keep,
            lanes,
            lane,
            parking,
            verge,
            pavement,
            kerb: rng.uniform_in(0.11, 0.17),
            crossing,
            walkway,
            tracks: rng.uniform() < 0.3,
            broken_centre: rng.uniform() < 0.6,
            cycle_lane: rng.uniform() < 0.18,
            paving: super::math::srgb(paving[0], paving[1], paving[2]),
            seed: (rng.uniform() * 1e6) as u32,
        }
    }

    /// Offset of the kerb on `side` (−1 left, +1 right).
    pub fn kerb_at(&self, side: f32) -> f32 {
        side * (self.lanes as f32 * self.lane + self.parking[index(side)])
    }

    /// Offset of the inner edge of the pavement on `side`.
    pub fn pavement_at(&self, side: f32) -> f32 {
        self.kerb_at(side) + side * self.verge[index(side)]
    }

    /// Offset of the line that houses stand on.
    pub fn building_line(&self, side: f32) -> f32 {
        self.pavement_at(side) + side * self.pavement[index(side)]
    }

    /// The middle of a lane: number 0 is nearest to the centre; `with` is true for the camera's direction.
    pub fn lane_middle(&self, number: usize, with: bool) -> f32 {
        let sign = if with { self.keep } else { -self.keep };
        sign * (number as f32 + 0.5) * self.lane
    }

    /// Direction of the street at `s`, radians to the right.
    pub fn heading(&self, s: f32) -> f32 {
        self.yaw + self.bend * s.min(BEND)
    }

    /// The world's place of (l, s), on road level.
    pub fn place(&self, l: f32, s: f32) -> V3 {
        let near = s.min(BEND);
        let centre = -self.ego + self.yaw * s + self.bend * near * (s - 0.5 * near);
        let angle = self.heading(s);
        v3(centre + l * cos(angle), 0.0, s - l * sin(angle))
    }

    /// Something that stands at (l, s) and looks along the street.
    pub fn pose(&self, l: f32, s: f32) -> Pose {
        Pose::new(self.place(l, s), self.heading(s))
    }

    /// True within a side street.
    pub fn in_crossing(&self, s: f32, margin: f32) -> bool {
        self.crossing.is_some_and(|(begin, end)| s > begin - margin && s < end + margin)
    }

    /// Adds carriageway, kerbs, pavements, green and the land beyond.
    pub fn build(&self, model: &mut Model) {
        let mut stops: Vec<f32> = vec![BEGIN];
        let mut s = BEGIN;
        while s < END {
            s += if s < 24.0 { 4.0 } else { 10.0 };
            stops.push(s.min(END));
        }
        let ends = self.crossing.into_iter().flat_map(|(begin, end)| [begin - CORNER, begin, end, end + CORNER]);
        stops.extend(ends);
        stops.sort_by(f32::total_cmp);
        for pair in stops.windows(2).filter(|pair| pair[1] - pair[0] > 0.01) {
            self.slice(model, pair[0], pair[1]);
        }
        for s in self.crossing.into_iter().flat_map(|(begin, end)| [begin, end]) {
            self.corner_kerbs(model, s);
        }
    }

    fn slice(&self, model: &mut Model, from: f32, to: f32) {
        let middle = 0.5 * (from + to);
        let crossing = self.in_crossing(middle, 0.0);
        let (left, right) = if crossing { (-REACH, REACH) } else { (self.kerb_at(-1.0), self.kerb_at(1.0)) };
        self.strip(model, class::ROAD, Material::Road, (left, right), (from, to), 0.0);
        if crossing {
            return;
        }
        for side in [-1.0, 1.0] {
            let (kerb, inner, line) = (self.kerb_at(side), self.pavement_at(side), self.building_line(side));
            let ordered = |a: f32, b: f32| (a.min(b), a.max(b));
            let stone = kerb + side * 0.16;
            self.kerb_face(model, side, from, to);
            self.strip(model, class::SIDEWALK, Material::Kerb, ordered(kerb, stone), (from, to), self.kerb);
            if self.verge[index(side)] > 0.0 {
                self.strip(model, class::TERRAIN, Material::Grass, ordered(stone, inner), (from, to), self.kerb);
                self.strip(model, class::SIDEWALK, Material::Pavement, ordered(inner, line), (from, to), self.kerb);
            } else {
                self.strip(model, class::SIDEWALK, Material::Pavement, ordered(stone, line), (from, to), self.kerb);
            }
            let beyond = match self.in_crossing(middle, CORNER) {
                true => (class::SIDEWALK, Material::Pavement),
                false => (class::TERRAIN, Material::Grass),
            };
            self.strip(model, beyond.0, beyond.1, ordered(line, side * REACH), (from, to), self.kerb);
        }
    }

    /// A piece of ground between offsets `l` and stations `s` at height `y`, textured with (l, s).
    fn strip(&self, model: &mut Model, class: u8, material: Material, l: (f32, f32), s: (f32, f32), y: f32) {
        let lift = v3(0.0, y, 0.0);
        let corners = [self.place(l.0, s.0), self.place(l.1, s.0), self.place(l.1, s.1), self.place(l.0, s.1)].map(|p| p + lift);
        let middle = 0.5 * (s.0 + s.1);
        let pose = self.pose(0.0, middle);
        let origin = pose.origin - pose.ahead * middle;
        model.face(class, material, &corners, (origin, pose.right, pose.ahead), Cut::Whole, false);
    }

    fn kerb_face(&self, model: &mut Model, side: f32, from: f32, to: f32) {
        let l = self.kerb_at(side);
        let (near, far) = if side > 0.0 { (to, from) } else { (from, to) };
        let (a, b) = (self.place(l, near), self.place(l, far));
        let up = v3(0.0, self.kerb, 0.0);
        model.quad(class::SIDEWALK, Material::Kerb, [a, b, b + up, a + up]);
    }

    /// Kerbs along a side street's mouth at `s`.
    fn corner_kerbs(&self, model: &mut Model, s: f32) {
        let up = v3(0.0, self.kerb, 0.0);
        for side in [-1.0, 1.0] {
            let (a, b) = (self.kerb_at(side), side * REACH);
            let (left, right) = (self.place(a.min(b), s), self.place(a.max(b), s));
            model.sheet(class::SIDEWALK, Material::Kerb, [left, right, right + up, left + up], Cut::Whole);
        }
    }
}

const PAVINGS: [[u8; 3]; 5] = [[168, 164, 158], [150, 148, 146], [176, 160, 146], [186, 180, 170], [140, 142, 148]];

/// 0 for the left side, 1 for the right one.
pub(super) fn index(side: f32) -> usize {
    usize::from(side > 0.0)
}
