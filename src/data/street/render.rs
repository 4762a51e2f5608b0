//! From a scene to a picture and its label map.

use super::bodywork::body;
use super::caption;
use super::effects;
use super::facade::facade;
use super::layout::Scene;
use super::light::Light;
use super::look::{Air, Look};
use super::material::Material;
use super::math::{Rgb, V3, gray, mix, noise, smooth, v3};
use super::model::{Prim, Shape, class};
use super::raster::{Buffer, NONE, Spindle, View};
use super::signs;
use super::surface::{Place, Surface, plain};
use crate::base::Rng;
use crate::io::images::RgbImage;
use crate::labels::LabelMap;

/// Samples per pixel along each axis.
const SAMPLES: usize = 2;
/// Focal length over the mean of the picture's width and twice its height.
const FOCAL: f32 = 0.7;

/// A rendered scene.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The picture (H, W, 3).
    pub image: RgbImage,
    /// Cityscapes train ids (H, W); 255 for bins and boxes, which no class is for.
    pub labels: LabelMap,
    /// Sentences that name what is visible, the most complete one first.
    pub captions: Vec<String>,
    /// Visible things: train id and number, by train id.
    pub things: Vec<(u8, usize)>,
}

impl Scene {
    /// The scene as a picture of `size` (height, width) in the light and weather of `look`. The label map depends on the size
    /// alone.
    ///
    /// # Randomness
    /// One stream for the look's light, clouds, drops and noise.
    ///
    /// # Range
    /// Any size that fits into memory; a side of 0 gives an empty picture.
    pub fn render(&self, size: (usize, usize), look: Look) -> Rendered {
        let rng = &mut Rng::stream(self.seed, "street look", &[self.index, look as u64]);
        let air = Air::draw(look, rng);
        let frame = Frame::new(self, size);
        let labels = frame.labels();
        let things = frame.things();
        let mut canvas = frame.shade(&air);
        effects::finish(&mut canvas, &frame, &air, look);
        let captions = caption::write(&things, &labels, look, &mut Rng::stream(self.seed, "street caption", &[self.index]));
        let image = RgbImage { height: size.0, width: size.1, pixels: effects::develop(&canvas, &air) };
        Rendered { image, labels, captions, things }
    }
}

/// Colours in linear light, and how much each pixel mirrors the scene.
#[derive(Debug)]
pub(super) struct Canvas {
    pub height: usize,
    pub width: usize,
    pub colors: Vec<Rgb>,
    pub mirror: Vec<f32>,
}

/// A scene seen by its camera: what each sample shows.
pub(super) struct Frame<'a> {
    pub scene: &'a Scene,
    pub height: usize,
    pub width: usize,
    /// The camera in samples.
    pub view: View,
    pub buffer: Buffer,
    /// Share of the sky's light that things on the ground let through, per pixel.
    contact: Vec<f32>,
}

impl<'a> Frame<'a> {
    fn new(scene: &'a Scene, (height, width): (usize, usize)) -> Self {
        let scale = SAMPLES as f32;
        let focal = FOCAL * 0.5 * (width as f32 + 2.0 * height as f32);
        let view = View {
            eye: v3(0.0, scene.eye, 0.0),
            right: v3(1.0, 0.0, 0.0),
            up: v3(0.0, 1.0, 0.0),
            ahead: v3(0.0, 0.0, 1.0),
            focal: focal * scale,
            cx: 0.5 * width as f32 * scale,
            cy: scene.horizon * height as f32 * scale,
            perspective: true,
        };
        let wide = Self::through(scene, (height, width), view);
        let mut frame = wide.lens().map_or(wide, |view| Self::through(scene, (height, width), view));
        frame.contacts();
        frame
    }

    fn through(scene: &'a Scene, (height, width): (usize, usize), view: View) -> Self {
        let mut buffer = Buffer::new(width * SAMPLES, height * SAMPLES, 0.0);
        buffer.draw(&view, &scene.model);
        Self { scene, height, width, view, buffer, contact: vec![1.0; height * width] }
    }

    /// The view of the scene's long lens: at the thing of its class that is seen best.
    fn lens(&self) -> Option<View> {
        let close_up = self.scene.close_up?;
        let mut seen = vec![(0usize, (f32::MAX, f32::MAX), (f32::MIN, f32::MIN)); self.scene.model.objects.len()];
        for (y, row) in self.buffer.prim.chunks_exact(self.buffer.width.max(1)).enumerate() {
            for (x, &prim) in row.iter().enumerate().filter(|(_, prim)| **prim != NONE) {
                let prim = &self.scene.model.prims[prim as usize];
                if prim.class == close_up.class {
                    let (count, low, high) = &mut seen[usize::from(prim.object)];
                    *count += 1;
                    *low = (low.0.min(x as f32), low.1.min(y as f32));
                    *high = (high.0.max(x as f32), high.1.max(y as f32));
                }
            }
        }
        let (_, low, high) = seen.into_iter().max_by_key(|(count, ..)| *count).filter(|(count, ..)| *count > 0)?;
        let size = (self.buffer.width as f32, self.buffer.height as f32);
        let (zoom, middle) = close_up.zoom(low, high, size);
        let View { focal, cx, cy, .. } = self.view;
        let to = (close_up.middle.0 * size.0, close_up.middle.1 * size.1);
        Some(View { focal: focal * zoom, cx: to.0 - zoom * (middle.0 - cx), cy: to.1 - zoom * (middle.1 - cy), ..self.view })
    }

    /// The samples of a pixel.
    #[inline]
    fn samples(&self, x: usize, y: usize) -> [usize; SAMPLES * SAMPLES] {
        let start = y * SAMPLES * self.buffer.width + x * SAMPLES;
        [start, start + 1, start + self.buffer.width, start + self.buffer.width + 1]
    }

    fn class_of(&self, prim: u32) -> u8 {
        match prim {
            NONE => class::SKY,
            prim => self.scene.model.prims[prim as usize].class,
        }
    }

    /// The class that most samples of each pixel show; of equal ones the nearest.
    fn labels(&self) -> LabelMap {
        let label = |x: usize, y: usize| {
            let samples = self.samples(x, y);
            let prims = samples.map(|sample| self.buffer.prim[sample]);
            if prims.iter().all(|prim| *prim == prims[0]) {
                return self.class_of(prims[0]);
            }
            let classes = prims.map(|prim| self.class_of(prim));
            let votes = |class: u8| {
                let members = samples.iter().zip(classes).filter(|(_, other)| *other == class);
                members.fold((0, 0.0f32), |(count, near), (&sample, _)| (count + 1, near.max(self.buffer.near[sample])))
            };
            let best = |a: u8, b: u8| if votes(b) > votes(a) { b } else { a };
            classes.into_iter().reduce(best).unwrap_or(class::SKY)
        };
        let mut ids = Vec::with_capacity(self.height * self.width);
        for y in 0..self.height {
            ids.extend((0..self.width).map(|x| label(x, y)));
        }
        LabelMap { height: self.height, width: self.width, ids }
    }

    /// Visible things per class, by number of pixels at a nominal picture size.
    fn things(&self) -> Vec<(u8, usize)> {
        let mut samples = vec![0usize; self.scene.model.objects.len().max(1)];
        for run in self.buffer.prim.chunk_by(|a, b| a == b).filter(|run| run[0] != NONE) {
            samples[usize::from(self.scene.model.prims[run[0] as usize].object)] += run.len();
        }
        caption::count(&samples, &self.scene.model.objects, self.height * self.width, SAMPLES * SAMPLES)
    }

    /// Darkens the ground below things.
    fn contacts(&mut self) {
        let scale = 1.0 / SAMPLES as f32;
        for contact in &self.scene.contacts {
            let (wide, long) = (contact.half_width + 0.45, contact.half_length + 0.45);
            let corners = [(-wide, -long), (wide, -long), (wide, long), (-wide, long)];
            let corners = corners.map(|(x, z)| contact.pose.at(x, 0.0, z));
            if corners.iter().any(|p| self.view.depth(*p) < 0.5) {
                continue;
            }
            let spots = corners.map(|p| self.view.project(p));
            let range = |value: fn(&V3) -> f32, size: usize| {
                let low = spots.iter().map(value).fold(f32::MAX, f32::min) * scale;
                let high = spots.iter().map(value).fold(f32::MIN, f32::max) * scale + 1.0;
                low.max(0.0) as usize..(high.max(0.0) as usize).min(size)
            };
            let (columns, rows) = (range(|p| p.x, self.width), range(|p| p.y, self.height));
            let level = contact.pose.origin.y;
            for y in rows {
                for x in columns.clone() {
                    let ray = self.ray(x, y);
                    if ray.y > -1e-4 {
                        continue;
                    }
                    let d = self.view.eye + ray * ((level - self.scene.eye) / ray.y) - contact.pose.origin;
                    let (u, v) = (d.dot(contact.pose.right).abs(), d.dot(contact.pose.ahead).abs());
                    let (u, v) = ((u - contact.half_width).max(0.0), (v - contact.half_length).max(0.0));
                    let near = 1.0 - smooth(0.0, 0.45, (u * u + v * v).sqrt());
                    self.contact[y * self.width + x] *= 1.0 - contact.strength * near;
                }
            }
        }
    }

    /// The direction of a pixel's middle, with length 1 ahead.
    pub fn ray(&self, x: usize, y: usize) -> V3 {
        let scale = SAMPLES as f32;
        self.view.ray((x as f32 + 0.5) * scale, (y as f32 + 0.5) * scale)
    }

    /// The nearest thing's nearness at a pixel, 0 for the sky.
    pub fn nearness(&self, x: usize, y: usize) -> f32 {
        self.buffer.near[y * SAMPLES * self.buffer.width + x * SAMPLES]
    }

    /// Pixel column and row of a point ahead of the camera, and its nearness.
    pub fn pixel(&self, p: V3) -> V3 {
        let at = self.view.project(p);
        v3(at.x / SAMPLES as f32, at.y / SAMPLES as f32, at.z)
    }

    /// Pixels that a length of 1 m covers at nearness `near`.
    pub fn pixels_per_metre(&self, near: f32) -> f32 {
        self.view.focal * near / SAMPLES as f32
    }

    /// Each primitive that a pixel shows is shaded once, and weighed by its samples.
    fn shade(&self, air: &Air) -> Canvas {
        let light = Light::new(self.scene, air);
        let mut canvas = Canvas { height: self.height, width: self.width, colors: Vec::new(), mirror: Vec::new() };
        canvas.colors.reserve(self.height * self.width);
        canvas.mirror.reserve(self.height * self.width);
        for y in 0..self.height {
            for x in 0..self.width {
                let (color, mirror) = self.shade_pixel(&light, x, y);
                canvas.colors.push(color);
                canvas.mirror.push(mirror);
            }
        }
        canvas
    }

    fn shade_pixel(&self, light: &Light, x: usize, y: usize) -> (Rgb, f32) {
        let samples = self.samples(x, y);
        let prims = samples.map(|sample| self.buffer.prim[sample]);
        let contact = self.contact[y * self.width + x];
        if prims.iter().all(|prim| *prim == prims[0]) {
            let scale = SAMPLES as f32;
            let sample = ((x as f32 + 0.5) * scale, (y as f32 + 0.5) * scale);
            let near = samples.iter().map(|&sample| self.buffer.near[sample]).sum::<f32>() / samples.len() as f32;
            return self.shade_sample(light, prims[0], sample, near, contact);
        }
        let (mut color, mut mirror) = (gray(0.0), 0.0);
        for i in 0..samples.len() {
            let prim = prims[i];
            if prims[..i].contains(&prim) {
                continue;
            }
            // The middle of the samples that show this primitive.
            let (mut sx, mut sy, mut near, mut count) = (0.0, 0.0, 0.0, 0.0);
            for j in (i..samples.len()).filter(|&j| prims[j] == prim) {
                sx += (x * SAMPLES + j % SAMPLES) as f32 + 0.5;
                sy += (y * SAMPLES + j / SAMPLES) as f32 + 0.5;
                near += self.buffer.near[samples[j]];
                count += 1.0;
            }
            let k = 1.0 / count;
            let share = count / samples.len() as f32;
            let (seen, mirrored) = self.shade_sample(light, prim, (sx * k, sy * k), near * k, contact);
            color += seen * share;
            mirror += mirrored * share;
        }
        (color, mirror)
    }

    fn shade_sample(&self, light: &Light, prim: u32, sample: (f32, f32), near: f32, contact: f32) -> (Rgb, f32) {
        match prim {
            NONE => (self.sky(light, sample), 0.0),
            prim => self.shade_prim(light, &self.scene.model.prims[prim as usize], sample, near, contact),
        }
    }

    fn sky(&self, light: &Light, (sx, sy): (f32, f32)) -> Rgb {
        let ray = self.view.ray(sx, sy);
        let sky = light.sky(ray);
        // Haze is thickest near the horizon.
        let depth = 260.0 / (1.0 + 9.0 * ray.y.max(0.0));
        light.through_air(sky, depth)
    }

    fn shade_prim(&self, light: &Light, prim: &Prim, (sx, sy): (f32, f32), near: f32, contact: f32) -> (Rgb, f32) {
        let ray = self.view.ray(sx, sy);
        let p = self.view.eye + ray * (1.0 / near);
        let place = self.place(prim, p, (sx, sy), near, ray);
        let mut surface = self.surface(light.air, prim, &place);
        if light.air.snow > 0.0 {
            settle(&mut surface, prim.material, &place, light.air.snow);
        }
        let on_ground = matches!(prim.material, Material::Road | Material::Pavement | Material::Grass | Material::Kerb);
        let contact = if on_ground { contact } else { 1.0 };
        let color = light.shade(p, ray, &surface, contact);
        (light.through_air(color, 1.0 / near), surface.mirror)
    }

    /// Normal and texture coordinates at a point of a primitive.
    fn place(&self, prim: &Prim, p: V3, (sx, sy): (f32, f32), near: f32, ray: V3) -> Place {
        let w = SAMPLES as f32 / (self.view.focal * near);
        match prim.shape {
            Shape::Face { normal, origin, u, v, double, .. } => {
                let d = p - origin;
                let normal = if double && normal.dot(ray) > 0.0 { -normal } else { normal };
                let slant = (-normal.dot(ray) / ray.length()).max(0.03);
                // Houses are seen at a slant from side to side, the ground from near to far.
                let across = if normal.y.abs() > 0.7 { w } else { w / slant.max(0.2) };
                Place { p, normal, u: d.dot(u), v: d.dot(v), w: across, long: w / slant }
            }
            Shape::Round { a, ra, b, rb, .. } => {
                let normal = Spindle::new(&self.view, a, ra, b, rb).map_or(v3(0.0, 1.0, 0.0), |spindle| {
                    let on = spindle.locate(sx, sy);
                    let depth = (1.0 - on.d2).max(0.0).sqrt();
                    v3(on.x, -on.y, -depth).unit()
                });
                Place { p, normal, u: p.x + p.z, v: p.y, w, long: w }
            }
        }
    }

    fn surface(&self, air: &Air, prim: &Prim, at: &Place) -> Surface {
        let scene = self.scene;
        match prim.material {
            Material::Facade(number) => facade(air, &scene.facades[usize::from(number)], at),
            Material::Body(number, part) => body(air, &scene.vehicles[usize::from(number)], part, at),
            Material::Sign { kind, size, seed } => signs::sign(air, kind, size, seed, at),
            Material::Signals { state, width, height } => signs::signals(air, state, (width, height), at),
            other => plain(scene, air, other, at),
        }
    }
}

/// Snow lies on what looks up, less where wheels pass.
fn settle(surface: &mut Surface, material: Material, at: &Place, snow: f32) {
    let facing = smooth(0.35, 0.8, at.normal.y);
    if facing <= 0.0 {
        return;
    }
    let patch = noise(at.p.x * 0.7, at.p.z * 0.5, 23) * 0.6 + noise(at.p.x * 3.1, at.p.z * 2.3, 24) * 0.4;
    let share = match material {
        Material::Road => {
            let lane = noise(at.u * 1.4, at.v * 0.05, 25);
            smooth(0.35, 0.75, patch * 0.5 + lane * 0.6) * (1.1 * snow - 0.25)
        }
        Material::Pavement | Material::Kerb => smooth(0.1, 0.5, patch) * snow,
        Material::Body(..) => 0.75 * snow,
        Material::Leaves { .. } => 0.62 * snow,
        _ => mix(0.7, 1.0, patch) * snow,
    };
    let share = (share * facing).clamp(0.0, 0.96);
    surface.albedo = surface.albedo.mix(v3(0.84, 0.86, 0.9), share);
    surface.gloss *= 1.0 - share;
}
