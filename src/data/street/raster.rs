//! From primitives to what each sample of the picture sees: the nearest primitive and its depth.

use super::math::{V3, v3};
use super::model::{Cut, Model, Prim, Shape, is_leaf};

/// No primitive: the sky.
pub(super) const NONE: u32 = u32::MAX;
/// Nothing nearer than this many metres is drawn.
const NEAR: f32 = 0.4;

/// A camera, or the sun's parallel view.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub eye: V3,
    pub right: V3,
    pub up: V3,
    pub ahead: V3,
    /// Samples per unit of x/z, or per metre for the sun.
    pub focal: f32,
    /// The sample straight ahead.
    pub cx: f32,
    pub cy: f32,
    pub perspective: bool,
}

impl View {
    /// Right, up and ahead components.
    fn local(&self, p: V3) -> V3 {
        let d = p - self.eye;
        v3(d.dot(self.right), d.dot(self.up), d.dot(self.ahead))
    }

    /// Column, row and nearness: 1/z in perspective, −z in parallel views. Both are affine on planes.
    fn project_local(&self, p: V3) -> V3 {
        if self.perspective {
            let q = 1.0 / p.z;
            v3(self.cx + self.focal * p.x * q, self.cy - self.focal * p.y * q, q)
        } else {
            v3(self.cx + self.focal * p.x, self.cy - self.focal * p.y, -p.z)
        }
    }

    /// Column, row and nearness of a point of the world, which must not lie behind a perspective view.
    pub fn project(&self, p: V3) -> V3 {
        self.project_local(self.local(p))
    }

    /// Distance ahead of a point.
    pub fn depth(&self, p: V3) -> f32 {
        (p - self.eye).dot(self.ahead)
    }

    /// The direction of a sample, with length 1 along `ahead`.
    pub fn ray(&self, x: f32, y: f32) -> V3 {
        self.ahead + self.right * ((x - self.cx) / self.focal) + self.up * ((self.cy - y) / self.focal)
    }

    /// The point of the world at a sample of nearness `q`.
    pub fn point(&self, x: f32, y: f32, q: f32) -> V3 {
        if self.perspective {
            return self.eye + self.ray(x, y) * (1.0 / q);
        }
        let side = self.right * ((x - self.cx) / self.focal) + self.up * ((self.cy - y) / self.focal);
        self.eye + side - self.ahead * q
    }

    /// Samples that a length of 1 m covers at nearness `q`.
    fn scale(&self, q: f32) -> f32 {
        if self.perspective { self.focal * q } else { self.focal }
    }
}

/// The ends of a rounded cone on the screen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spindle {
    a: V3,
    ra: f32,
    b: V3,
    rb: f32,
    along: (f32, f32),
    inverse: f32,
}

/// Where a sample lies on a [`Spindle`].
pub(super) struct OnSpindle {
    /// Offset from the axis in radii, and its square.
    pub x: f32,
    pub y: f32,
    pub d2: f32,
    /// 0 at `a`, 1 at `b`.
    pub t: f32,
}

impl Spindle {
    /// `None` for shapes that reach behind the view.
    pub fn new(view: &View, a: V3, ra: f32, b: V3, rb: f32) -> Option<Self> {
        if view.perspective && view.depth(a).min(view.depth(b)) - ra.max(rb) < NEAR {
            return None;
        }
        let (a, b) = (view.project(a), view.project(b));
        let along = (b.x - a.x, b.y - a.y);
        let length = along.0 * along.0 + along.1 * along.1;
        // Less than this is a point; its inverse would be noise.
        let inverse = if length > 1e-4 { 1.0 / length } else { 0.0 };
        Some(Self { a, ra: ra * view.scale(a.z), b, rb: rb * view.scale(b.z), along, inverse })
    }

    /// The position of a sample relative to the axis.
    #[inline]
    pub fn locate(&self, x: f32, y: f32) -> OnSpindle {
        let (dx, dy) = (x - self.a.x, y - self.a.y);
        let t = ((dx * self.along.0 + dy * self.along.1) * self.inverse).clamp(0.0, 1.0);
        let scale = 1.0 / (self.ra + (self.rb - self.ra) * t).max(1e-3);
        let (x, y) = ((dx - self.along.0 * t) * scale, (dy - self.along.1 * t) * scale);
        OnSpindle { x, y, d2: x * x + y * y, t }
    }
}

/// What each sample sees.
#[derive(Debug)]
pub(super) struct Buffer {
    pub width: usize,
    pub height: usize,
    /// Nearness, see [`View::project`].
    pub near: Vec<f32>,
    /// Index of the primitive, or [`NONE`].
    pub prim: Vec<u32>,
}

impl Buffer {
    pub fn new(width: usize, height: usize, farthest: f32) -> Self {
        Self { width, height, near: vec![farthest; width * height], prim: vec![NONE; width * height] }
    }

    /// Draws everything.
    pub fn draw(&mut self, view: &View, model: &Model) {
        for (index, prim) in model.prims.iter().enumerate() {
            self.draw_one(view, model, index as u32, prim);
        }
    }

    fn draw_one(&mut self, view: &View, model: &Model, index: u32, prim: &Prim) {
        match prim.shape {
            Shape::Face { first, count, normal, origin, u, v, cut, double } => {
                let points = &model.points[first as usize..][..usize::from(count)];
                let plane = normal.dot(points[0] - view.eye);
                let facing = if view.perspective { plane } else { normal.dot(view.ahead) };
                if facing >= 0.0 && !double {
                    return;
                }
                let Some(plane) = Plane::new(view, normal, plane) else { return };
                let cut = (cut != Cut::Whole).then_some((cut, origin, u, v));
                self.fill(view, points, &plane, index, cut);
            }
            Shape::Round { a, ra, b, rb, ragged, seed } => {
                if let Some(spindle) = Spindle::new(view, a, ra, b, rb) {
                    match a == b {
                        true => self.ball(view, &spindle, ra, (ragged, seed), index),
                        false => self.round(view, &spindle, ra.max(rb), index),
                    }
                }
            }
        }
    }

    /// Scan conversion of a convex polygon.
    fn fill(&mut self, view: &View, points: &[V3], plane: &Plane, index: u32, cut: Option<(Cut, V3, V3, V3)>) {
        let mut screen = [V3::default(); 16];
        let count = clip(view, points, &mut screen);
        if count < 3 {
            return;
        }
        let screen = &screen[..count];
        let bounds = screen.iter().fold((f32::MAX, f32::MIN), |(low, high), p| (low.min(p.y), high.max(p.y)));
        let rows = span(bounds.0, bounds.1, self.height);
        for row in rows {
            let y = row as f32 + 0.5;
            let (mut left, mut right) = (f32::MAX, f32::MIN);
            for i in 0..count {
                let (p, q) = (screen[i], screen[(i + 1) % count]);
                if (p.y <= y) != (q.y <= y) {
                    let x = p.x + (q.x - p.x) * ((y - p.y) / (q.y - p.y));
                    (left, right) = (left.min(x), right.max(x));
                }
            }
            let columns = span(left, right, self.width);
            let start = row * self.width;
            let mut near = plane.at(columns.start as f32 + 0.5, y);
            let Some(cut) = cut else {
                for at in start + columns.start..start + columns.end {
                    if near > self.near[at] {
                        self.near[at] = near;
                        self.prim[at] = index;
                    }
                    near += plane.dx;
                }
                continue;
            };
            for column in columns {
                let at = start + column;
                if near > self.near[at] {
                    let (cut, origin, u, v) = cut;
                    let p = view.point(column as f32 + 0.5, y, near) - origin;
                    if cut.is_solid(p.dot(u), p.dot(v)) {
                        self.near[at] = near;
                        self.prim[at] = index;
                    }
                }
                near += plane.dx;
            }
        }
    }

    /// A ball, frayed or not: its rows are cut to the disc, and there is no axis to look for.
    fn ball(&mut self, view: &View, spindle: &Spindle, radius: f32, (ragged, seed): (f32, u32), index: u32) {
        let (centre, r) = (spindle.a, spindle.ra.max(1e-3));
        // Shadows are too coarse for single leaves.
        let ragged = if view.perspective { ragged } else { 0.0 };
        let scale = 1.0 / r;
        let lift = radius * if view.perspective { centre.z * centre.z } else { 1.0 };
        for row in span(centre.y - r, centre.y + r, self.height) {
            let y = (row as f32 + 0.5 - centre.y) * scale;
            let half = (1.0 - y * y).max(0.0).sqrt() * r;
            let columns = span(centre.x - half, centre.x + half, self.width);
            let start = row * self.width;
            for at in start + columns.start..start + columns.end {
                if self.near[at] >= centre.z + lift {
                    continue;
                }
                let x = ((at - start) as f32 + 0.5 - centre.x) * scale;
                let d2 = x * x + y * y;
                let near = centre.z + lift * (1.0 - d2).max(0.0).sqrt();
                if near > self.near[at] && (ragged <= 0.0 || is_leaf(x, y, d2, ragged, seed)) {
                    self.near[at] = near;
                    self.prim[at] = index;
                }
            }
        }
    }

    fn round(&mut self, view: &View, spindle: &Spindle, radius: f32, index: u32) {
        let (a, b, ra, rb) = (spindle.a, spindle.b, spindle.ra, spindle.rb);
        let rows = span((a.y - ra).min(b.y - rb), (a.y + ra).max(b.y + rb), self.height);
        let columns = span((a.x - ra).min(b.x - rb), (a.x + ra).max(b.x + rb), self.width);
        for row in rows {
            let start = row * self.width;
            for column in columns.clone() {
                let on = spindle.locate(column as f32 + 0.5, row as f32 + 0.5);
                if on.d2 > 1.0 {
                    continue;
                }
                let axis = a.z + (b.z - a.z) * on.t;
                let bulge = radius * (1.0 - on.d2).sqrt();
                let near = if view.perspective { axis + axis * axis * bulge } else { axis + bulge };
                let at = start + column;
                if near > self.near[at] {
                    self.near[at] = near;
                    self.prim[at] = index;
                }
            }
        }
    }
}

/// Samples whose centres lie within `low`…`high`, on a screen of `size` samples.
fn span(low: f32, high: f32, size: usize) -> std::ops::Range<usize> {
    // Casts of floats saturate; empty ranges stay empty.
    let (low, high) = ((low - 0.5).ceil().max(0.0) as usize, (high + 0.5).floor().max(0.0) as usize);
    low.min(size)..high.min(size)
}

/// Nearness on the screen of the points of a plane.
struct Plane {
    dx: f32,
    dy: f32,
    base: f32,
}

impl Plane {
    /// `distance` is that of the plane along its normal, from the eye. `None` for planes seen edge-on.
    fn new(view: &View, normal: V3, distance: f32) -> Option<Self> {
        let n = v3(normal.dot(view.right), normal.dot(view.up), normal.dot(view.ahead));
        let divisor = if view.perspective { distance } else { n.z };
        if divisor.abs() < 1e-4 {
            return None;
        }
        let (k, offset) = (1.0 / (divisor * view.focal), if view.perspective { n.z / distance } else { -distance / n.z });
        let (dx, dy) = (n.x * k, -n.y * k);
        Some(Self { dx, dy, base: offset - dx * view.cx - dy * view.cy })
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        self.base + self.dx * x + self.dy * y
    }
}

/// Projects a polygon, cut at the near plane; returns the number of corners.
fn clip(view: &View, points: &[V3], screen: &mut [V3; 16]) -> usize {
    let mut count = 0;
    let mut push = |p: V3| {
        if count < screen.len() {
            screen[count] = view.project_local(p);
            count += 1;
        }
    };
    for i in 0..points.len() {
        let (p, q) = (view.local(points[i]), view.local(points[(i + 1) % points.len()]));
        if !view.perspective {
            push(p);
            continue;
        }
        if p.z >= NEAR {
            push(p);
        }
        if (p.z >= NEAR) != (q.z >= NEAR) {
            push(p + (q - p) * ((NEAR - p.z) / (q.z - p.z)));
        }
    }
    count
}
