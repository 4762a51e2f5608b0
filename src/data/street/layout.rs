//! The scene: everything that stands or moves in the street, in metres.

use super::focus::{CloseUp, Focus};
use super::ground::Street;
use super::material::{Facade, Signal, Vehicle};
use super::math::{Rgb, V3, gray, srgb, v3};
use super::model::{Model, Pose};
use crate::base::Rng;

/// Something that shines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lamp {
    pub at: V3,
    pub kind: LampKind,
    /// Where it shines to.
    pub towards: V3,
}

/// What shines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LampKind {
    /// A street lamp.
    Street,
    /// A headlamp.
    Head,
    /// A tail lamp.
    Tail,
    /// A brake lamp.
    Brake,
    /// The lamp of a bicycle.
    Small,
    /// A traffic light.
    Signal(Signal),
}

/// Ground that a thing keeps the sky's light from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contact {
    pub pose: Pose,
    pub half_width: f32,
    pub half_length: f32,
    pub strength: f32,
}

/// A street scene in metres, without light and weather: the same for every look and every picture size.
///
/// # Example
/// ```
/// use datum::data::street::{Look, Scene};
/// let picture = Scene::new(7, 0).render((64, 128), Look::Dusk);
/// assert_eq!((picture.image.height, picture.labels.width), (64, 128));
/// ```
#[derive(Debug)]
pub struct Scene {
    pub(super) model: Model,
    pub(super) street: Street,
    pub(super) facades: Vec<Facade>,
    pub(super) vehicles: Vec<Vehicle>,
    pub(super) lamps: Vec<Lamp>,
    pub(super) contacts: Vec<Contact>,
    /// Height of the camera above the road, in metres.
    pub(super) eye: f32,
    /// Row of the horizon, as a share of the picture's height.
    pub(super) horizon: f32,
    /// Share of trees in autumn colours.
    pub(super) autumn: f32,
    /// Share of people with umbrellas.
    pub(super) umbrellas: f32,
    /// Street lamps are old lanterns.
    pub(super) lanterns: bool,
    pub(super) pole_color: Rgb,
    /// Seen through a long lens.
    pub(super) close_up: Option<CloseUp>,
    pub(super) seed: u64,
    pub(super) index: u64,
    /// Ground that is taken: l, s, half width, half length.
    taken: Vec<[f32; 4]>,
}

impl Scene {
    /// Draws scene number `index` of the set with this seed.
    ///
    /// # Randomness
    /// Two streams of their own; nothing else is drawn from.
    pub fn new(seed: u64, index: u64) -> Self {
        Self::populated(seed, index, Self::populate)
    }

    /// Scene number `index` as a quiet street with a few things of one kind near the camera; in a share `close_up` of scenes one of
    /// them fills much of the picture.
    ///
    /// # Randomness
    /// As [`Self::new`], and that of the lens.
    pub(in crate::data) fn about(seed: u64, index: u64, kind: Focus, close_up: f64) -> Self {
        let scene = Self::populated(seed, index, |scene, rng| scene.populate_about(rng, kind));
        Self { close_up: CloseUp::drawn(seed, index, close_up, kind), ..scene }
    }

    fn populated(seed: u64, index: u64, populate: impl FnOnce(&mut Self, &mut Rng)) -> Self {
        let rng = &mut Rng::stream(seed, "street scene", &[index]);
        let street = Street::draw(rng);
        let mut scene = Self {
            model: Model::default(),
            street,
            facades: Vec::new(),
            vehicles: Vec::new(),
            lamps: Vec::new(),
            contacts: Vec::new(),
            eye: rng.uniform_in(1.35, 1.85),
            horizon: rng.uniform_in(0.42, 0.52),
            autumn: if chance(rng, 0.2) { rng.uniform_in(0.3, 0.9) } else { 0.04 },
            umbrellas: if chance(rng, 0.12) { 0.5 } else { 0.04 },
            lanterns: chance(rng, 0.3),
            pole_color: pick(rng, &[gray(0.16), gray(0.05), v3(0.03, 0.07, 0.05), gray(0.28)]),
            close_up: None,
            seed,
            index,
            taken: Vec::new(),
        };
        let street = scene.street.clone();
        street.build(&mut scene.model);
        populate(&mut scene, rng);
        scene
    }

    fn populate(&mut self, rng: &mut Rng) {
        self.signals(rng);
        self.traffic(rng);
        self.parked(rng);
        for side in [-1.0, 1.0] {
            self.houses(rng, side);
            self.roadside(rng, side);
        }
        self.pedestrians(rng);
        self.horizon(rng);
    }

    /// Claims the ground around (l, s); false if somebody was there first.
    pub(super) fn claim(&mut self, l: f32, s: f32, half_width: f32, half_length: f32) -> bool {
        let overlaps = |t: &[f32; 4]| (t[0] - l).abs() < t[2] + half_width && (t[1] - s).abs() < t[3] + half_length;
        if self.taken.iter().any(overlaps) {
            return false;
        }
        self.taken.push([l, s, half_width, half_length]);
        true
    }

    /// Darkens the ground below something.
    pub(super) fn contact(&mut self, pose: Pose, half_width: f32, half_length: f32, strength: f32) {
        self.contacts.push(Contact { pose, half_width, half_length, strength });
    }

    /// On the pavement's level.
    pub(super) fn raised(&self, l: f32, s: f32) -> Pose {
        self.street.pose(l, s).shifted(0.0, self.street.kerb, 0.0)
    }
}

/// True with probability `p`.
pub(super) fn chance(rng: &mut Rng, p: f32) -> bool {
    rng.uniform() < p
}

/// One of several, each as likely as the next.
pub(super) fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len())]
}

/// A colour of a table of sRGB values.
pub(super) fn pick_color(rng: &mut Rng, from: &[[u8; 3]]) -> Rgb {
    let [r, g, b] = pick(rng, from);
    srgb(r, g, b)
}
