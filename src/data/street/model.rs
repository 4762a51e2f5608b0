//! What a scene is made of: flat faces and rounded shapes, each with a class and a material.

use super::material::Material;
use super::math::{V3, cos, floor, noise, sin, v3};

/// Cityscapes train ids.
pub(super) mod class {
    pub const ROAD: u8 = 0;
    pub const SIDEWALK: u8 = 1;
    pub const BUILDING: u8 = 2;
    pub const WALL: u8 = 3;
    pub const FENCE: u8 = 4;
    pub const POLE: u8 = 5;
    pub const TRAFFIC_LIGHT: u8 = 6;
    pub const TRAFFIC_SIGN: u8 = 7;
    pub const VEGETATION: u8 = 8;
    pub const TERRAIN: u8 = 9;
    pub const SKY: u8 = 10;
    pub const PERSON: u8 = 11;
    pub const RIDER: u8 = 12;
    pub const CAR: u8 = 13;
    pub const TRUCK: u8 = 14;
    pub const BUS: u8 = 15;
    pub const TRAIN: u8 = 16;
    pub const MOTORCYCLE: u8 = 17;
    pub const BICYCLE: u8 = 18;
}

/// Parts of a face that are air.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cut {
    /// None.
    Whole,
    /// Upright bars: period and width in metres along u; rails below `low` and above `high` of v.
    Bars { period: f32, width: f32, low: f32, high: f32 },
}

impl Cut {
    /// True where there is something at (u, v).
    pub fn is_solid(self, u: f32, v: f32) -> bool {
        match self {
            Self::Whole => true,
            Self::Bars { period, width, low, high } => {
                let t = u / period;
                (t - floor(t)) * period < width || (v > low && v < low + 0.07) || (v > high - 0.07 && v < high)
            }
        }
    }
}

/// The geometry of one primitive.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// A convex polygon of `count` points of [`Model::points`]; texture coordinates are u = (p − origin)·u, v likewise.
    Face { first: u32, count: u8, normal: V3, origin: V3, u: V3, v: V3, cut: Cut, double: bool },
    /// A rounded cone from `a` to `b` (a ball if they are equal). `ragged` 0…1 frays its edge like foliage.
    Round { a: V3, ra: f32, b: V3, rb: f32, ragged: f32, seed: u32 },
}

/// One primitive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prim {
    pub class: u8,
    /// Number of the thing it belongs to; 0 for everything that is not counted.
    pub object: u16,
    pub material: Material,
    pub shape: Shape,
}

/// A list of primitives under construction.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub prims: Vec<Prim>,
    pub points: Vec<V3>,
    /// Class of each object; number 0 is nobody's.
    pub objects: Vec<u8>,
    object: u16,
}

/// A place with directions: maps (right, up, ahead) in metres to the world.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pose {
    pub origin: V3,
    pub right: V3,
    pub ahead: V3,
}

impl Pose {
    /// On the ground at `origin`, looking `heading` radians to the right of +z.
    pub fn new(origin: V3, heading: f32) -> Self {
        let (s, c) = (sin(heading), cos(heading));
        Self { origin, right: v3(c, 0.0, -s), ahead: v3(s, 0.0, c) }
    }

    /// The world's place of a local point.
    pub fn at(&self, right: f32, up: f32, ahead: f32) -> V3 {
        self.origin + self.right * right + self.ahead * ahead + v3(0.0, up, 0.0)
    }

    /// The same directions around another local point.
    pub fn shifted(&self, right: f32, up: f32, ahead: f32) -> Self {
        Self { origin: self.at(right, up, ahead), ..*self }
    }

    /// Turned by `angle` radians to the right around its own origin.
    pub fn turned(&self, angle: f32) -> Self {
        let (s, c) = (sin(angle), cos(angle));
        Self { origin: self.origin, right: self.right * c - self.ahead * s, ahead: self.right * s + self.ahead * c }
    }
}

const UP: V3 = v3(0.0, 1.0, 0.0);

impl Model {
    /// Primitives from here on belong to a new thing of `class`.
    pub fn begin(&mut self, class: u8) {
        if self.objects.is_empty() {
            self.objects.push(class::SKY);
        }
        self.objects.push(class);
        self.object = (self.objects.len() - 1) as u16;
    }

    /// Primitives from here on belong to nothing that is counted.
    pub fn end(&mut self) {
        self.object = 0;
    }

    /// A convex polygon, corners counter-clockwise as seen from outside, with its own texture frame.
    pub fn face(&mut self, class: u8, material: Material, corners: &[V3], frame: (V3, V3, V3), cut: Cut, double: bool) {
        let normal = (corners[2] - corners[0]).cross(corners[1] - corners[0]).unit();
        let first = self.points.len() as u32;
        self.points.extend_from_slice(corners);
        let (origin, u, v) = frame;
        let shape = Shape::Face { first, count: corners.len() as u8, normal, origin, u, v, cut, double };
        self.prims.push(Prim { class, object: self.object, material, shape });
    }

    /// A quadrilateral: lower left, lower right, upper right, upper left as seen from outside. u runs along its lower edge and
    /// v upwards in its plane, both in metres from the lower left corner.
    pub fn quad(&mut self, class: u8, material: Material, corners: [V3; 4]) {
        let u = (corners[1] - corners[0]).unit();
        let across = corners[3] - corners[0];
        let v = (across - u * across.dot(u)).unit();
        self.face(class, material, &corners, (corners[0], u, v), Cut::Whole, false);
    }

    /// A quadrilateral that is seen from both sides.
    pub fn sheet(&mut self, class: u8, material: Material, corners: [V3; 4], cut: Cut) {
        let u = (corners[1] - corners[0]).unit();
        self.face(class, material, &corners, (corners[0], u, UP), cut, true);
    }

    /// A box between two local corners of `pose`: right, up, ahead. Its floor is left out.
    pub fn block(&mut self, class: u8, material: Material, pose: &Pose, low: V3, high: V3) {
        let p = |x, y, z| pose.at(x, y, z);
        let (a, b) = (low, high);
        self.quad(class, material, [p(a.x, a.y, a.z), p(b.x, a.y, a.z), p(b.x, b.y, a.z), p(a.x, b.y, a.z)]);
        self.quad(class, material, [p(b.x, a.y, b.z), p(a.x, a.y, b.z), p(a.x, b.y, b.z), p(b.x, b.y, b.z)]);
        self.quad(class, material, [p(a.x, a.y, b.z), p(a.x, a.y, a.z), p(a.x, b.y, a.z), p(a.x, b.y, b.z)]);
        self.quad(class, material, [p(b.x, a.y, a.z), p(b.x, a.y, b.z), p(b.x, b.y, b.z), p(b.x, b.y, a.z)]);
        self.quad(class, material, [p(a.x, b.y, a.z), p(b.x, b.y, a.z), p(b.x, b.y, b.z), p(a.x, b.y, b.z)]);
    }

    /// A disc with `sides` edges around a local point of `pose`, facing its local direction right (+1 or −1).
    pub fn wheel(&mut self, class: u8, material: Material, pose: &Pose, centre: V3, radius: f32, side: f32) {
        let sides = 12;
        let corner = |i: usize| {
            let angle = std::f32::consts::TAU * i as f32 / sides as f32;
            pose.at(centre.x, centre.y + radius * sin(angle), centre.z + side * radius * cos(angle))
        };
        let corners: Vec<V3> = (0..sides).map(corner).collect();
        let frame = (pose.at(centre.x, centre.y, centre.z), pose.ahead * side, UP);
        self.face(class, material, &corners, frame, Cut::Whole, false);
    }

    /// A rounded cone between two points.
    pub fn limb(&mut self, class: u8, material: Material, a: V3, ra: f32, b: V3, rb: f32) {
        let shape = Shape::Round { a, ra, b, rb, ragged: 0.0, seed: 0 };
        self.prims.push(Prim { class, object: self.object, material, shape });
    }

    /// A ball.
    pub fn ball(&mut self, class: u8, material: Material, centre: V3, radius: f32) {
        self.limb(class, material, centre, radius, centre, radius);
    }

    /// A clump of leaves.
    pub fn clump(&mut self, material: Material, centre: V3, radius: f32, ragged: f32, seed: u32) {
        let shape = Shape::Round { a: centre, ra: radius, b: centre, rb: radius, ragged, seed };
        self.prims.push(Prim { class: class::VEGETATION, object: self.object, material, shape });
    }
}

/// True where a frayed disc has a leaf; `x`, `y` in radii from its centre, `d2` their squared length.
pub(super) fn is_leaf(x: f32, y: f32, d2: f32, ragged: f32, seed: u32) -> bool {
    if d2 < 0.2 {
        return true;
    }
    let limit = 1.0 - ragged * (0.6 * noise(x * 6.0, y * 6.0, seed) + 0.4 * noise(x * 17.0, y * 17.0, seed));
    d2 < limit * limit
}
