//! Scenes about one kind of thing: quiet streets with a few of them near the camera. A text-to-image model that learns from
//! crowded streets alone cannot tell which word means which thing.

use super::caption::THINGS;
use super::layout::{Scene, chance, pick};
use super::material::Signal;
use super::model::class;
use super::traffic::User;
use crate::base::{Rng, suggest};
use std::f32::consts::{FRAC_PI_2, TAU};

/// Draws for a place until one is free.
const TRIES: usize = 30;

/// What a scene can be about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::data) enum Focus {
    Driven(User),
    Person,
    ParkedBicycle,
    TrafficLight,
    TrafficSign,
}

/// All of them.
const KINDS: [Focus; 10] = {
    use Focus::{Driven, ParkedBicycle, Person, TrafficLight, TrafficSign};
    [
        Driven(User::Car),
        Person,
        TrafficLight,
        Driven(User::Truck),
        TrafficSign,
        Driven(User::Bus),
        ParkedBicycle,
        Driven(User::Tram),
        Driven(User::Cyclist),
        Driven(User::Motorcycle),
    ]
};

/// The kinds of things of these names (`car`, `traffic light`, …), in the given order; all ten without names.
///
/// # Errors
/// The message for a name that is none of them.
pub(in crate::data) fn kinds(names: &[String]) -> Result<Vec<Focus>, String> {
    if names.is_empty() {
        return Ok(KINDS.to_vec());
    }
    let find = |name: &String| KINDS.into_iter().find(|kind| kind.name() == name.trim());
    let unknown = |name: &String| format!("`{name}` is no kind of thing; {}", suggest::hint(name, &KINDS.map(Focus::name)));
    names.iter().map(|name| find(name).ok_or_else(|| unknown(name))).collect()
}

/// What scene `index` of a set is about, each of `kinds` equally often; `None` for a usual street, as all but a `share` of scenes
/// are. Drawn for each scene anew: looks take turns, and kinds that did so too would go with one look each.
///
/// # Randomness
/// One stream of its own.
pub(in crate::data) fn drawn(seed: u64, index: u64, share: f64, kinds: &[Focus]) -> Option<Focus> {
    let rng = &mut Rng::stream(seed, "street focus", &[index]);
    (f64::from(rng.uniform()) < share).then(|| pick(rng, kinds))
}

/// A lens that brings one thing of a class near: how, but not yet which one.
#[derive(Debug, Clone, Copy)]
pub(super) struct CloseUp {
    pub class: u8,
    /// Share of the picture's height or width that the thing takes.
    pub fill: f32,
    /// Where its middle is, as shares of the picture's width and height.
    pub middle: (f32, f32),
}

impl CloseUp {
    /// The lens for scene `index` about `kind`; `None` for all but a `share` of scenes.
    ///
    /// # Randomness
    /// One stream of its own.
    pub fn drawn(seed: u64, index: u64, share: f64, kind: Focus) -> Option<Self> {
        let rng = &mut Rng::stream(seed, "street close-up", &[index]);
        let wanted = f64::from(rng.uniform()) < share;
        let middle = (rng.uniform_in(0.3, 0.7), rng.uniform_in(0.42, 0.58));
        wanted.then(|| Self { class: kind.class(), fill: rng.uniform_in(0.45, 0.9), middle })
    }

    /// How many times nearer, and the point of the wide view that comes to the middle, for a thing within `low` and `high` of a
    /// view of `size` (width, height).
    pub fn zoom(&self, low: (f32, f32), high: (f32, f32), size: (f32, f32)) -> (f32, (f32, f32)) {
        let room = (size.0 / (high.0 - low.0).max(1.0)).min(size.1 / (high.1 - low.1).max(1.0));
        ((self.fill * room).max(1.0), (0.5 * (low.0 + high.0), 0.5 * (low.1 + high.1)))
    }
}

impl Focus {
    /// The word of prompts and captions for one of them.
    fn name(self) -> &'static str {
        THINGS.into_iter().find(|(class, ..)| *class == self.class()).map_or("", |(_, one, _)| one)
    }

    /// The train id of the thing in the middle.
    fn class(self) -> u8 {
        match self {
            Self::Driven(User::Car) => class::CAR,
            Self::Driven(User::Truck) => class::TRUCK,
            Self::Driven(User::Bus) => class::BUS,
            Self::Driven(User::Tram) => class::TRAIN,
            Self::Driven(User::Cyclist) => class::RIDER,
            Self::Driven(User::Motorcycle) => class::MOTORCYCLE,
            Self::Person => class::PERSON,
            Self::ParkedBicycle => class::BICYCLE,
            Self::TrafficLight => class::TRAFFIC_LIGHT,
            Self::TrafficSign => class::TRAFFIC_SIGN,
        }
    }
}

impl Scene {
    pub(super) fn populate_about(&mut self, rng: &mut Rng, kind: Focus) {
        let large = matches!(kind, Focus::Driven(User::Truck | User::Bus | User::Tram));
        let mut wanted = 1 + rng.below(if large { 2 } else { 5 });
        for _ in 0..TRIES {
            if wanted > 0 && self.put(rng, kind) {
                wanted -= 1;
            }
        }
        for side in [-1.0, 1.0] {
            self.houses(rng, side);
            self.lamp_row(rng, side);
            self.tree_row(rng, side);
        }
        self.horizon(rng);
    }

    /// Puts one of a kind where the camera sees it large; false if there is no room.
    fn put(&mut self, rng: &mut Rng, kind: Focus) -> bool {
        let side = pick(rng, &[-1.0f32, 1.0]);
        match kind {
            Focus::Driven(user) => {
                let s = rng.uniform_in(5.0, if user.half_length() > 2.0 { 15.0 } else { 9.0 });
                self.drive(rng, user, s)
            }
            Focus::Person => {
                let on_road = chance(rng, 0.3);
                let l = self.beside(rng, side, on_road);
                let s = self.in_view(rng, l).max(6.0);
                let turn = if on_road { pick(rng, &[-FRAC_PI_2, FRAC_PI_2]) } else { TAU * rng.uniform() };
                self.stand(l, s, (0.35, 0.4), on_road).map(|pose| self.person(rng, &pose.turned(turn))).is_some()
            }
            Focus::ParkedBicycle => {
                let l = self.beside(rng, side, false);
                let s = self.in_view(rng, l);
                let turn = TAU * rng.uniform();
                self.stand(l, s, (0.9, 0.9), false).map(|pose| self.bicycle(rng, &pose.turned(turn), false)).is_some()
            }
            Focus::TrafficLight => {
                let state = pick(rng, &[Signal::Red, Signal::Red, Signal::Green, Signal::Green, Signal::Amber]);
                let arm = if chance(rng, 0.4) { -side * rng.uniform_in(2.0, 3.4) } else { 0.0 };
                let l = self.street.kerb_at(side) + side * 0.5;
                let s = self.in_view(rng, l);
                self.stand(l, s, (0.4, 0.8), false).map(|pose| self.traffic_light(rng, &pose, arm, state)).is_some()
            }
            Focus::TrafficSign => {
                let l = self.street.kerb_at(side) + side * 0.4;
                let s = self.in_view(rng, l);
                self.stand(l, s, (0.3, 0.5), false).map(|pose| self.sign(rng, &pose)).is_some()
            }
        }
    }

    /// A distance at which the camera sees what stands at `l`: it looks 35 degrees to each side.
    fn in_view(&self, rng: &mut Rng, l: f32) -> f32 {
        (l - self.street.ego).abs() / 0.6 + rng.uniform_in(1.0, 5.0)
    }

    /// A place across the street: on the road, or between kerb and houses.
    fn beside(&self, rng: &mut Rng, side: f32, on_road: bool) -> f32 {
        let (from, to) = match on_road {
            true => (0.0, self.street.kerb_at(side)),
            false => (self.street.pavement_at(side), self.street.building_line(side)),
        };
        from + (to - from) * rng.uniform_in(0.15, 0.85)
    }

    /// Claims the ground at (l, s); none if it is taken or in the side street.
    fn stand(&mut self, l: f32, s: f32, half: (f32, f32), on_road: bool) -> Option<super::model::Pose> {
        let free = (on_road || !self.street.in_crossing(s, 0.0)) && self.claim(l, s, half.0, half.1);
        free.then(|| if on_road { self.street.pose(l, s) } else { self.raised(l, s) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::street::Look;

    #[test]
    fn every_kind_goes_with_every_look() {
        let about = |index| drawn(7, index, 0.5, &KINDS);
        assert!((0..50).all(|index| drawn(7, index, 0.0, &KINDS).is_none() && drawn(7, index, 1.0, &KINDS).is_some()));
        for look in 0..6 {
            let kinds: Vec<Focus> = (0..2000).filter_map(|round| about(6 * round + look)).collect();
            assert!(kinds.len().abs_diff(1000) < 100, "look {look}: {} of 2000", kinds.len());
            for kind in KINDS {
                let count = kinds.iter().filter(|other| **other == kind).count();
                assert!(count.abs_diff(100) < 40, "look {look}: {kind:?} {count} times");
            }
        }
    }

    #[test]
    fn named_kinds_alone_are_drawn_and_in_these_shares() {
        let named = |names: &[&str]| kinds(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(named(&[]).unwrap(), KINDS);
        assert_eq!(KINDS.map(Focus::name).len(), KINDS.iter().map(|kind| kind.name()).filter(|name| !name.is_empty()).count());
        let wanted = named(&["person", "person", "train"]).unwrap();
        assert_eq!(wanted, [Focus::Person, Focus::Person, Focus::Driven(User::Tram)]);
        let persons = (0..3000).filter(|&index| drawn(7, index, 1.0, &wanted) == Some(Focus::Person)).count();
        assert!(persons.abs_diff(2000) < 100, "{persons} of 3000");
        assert_eq!(named(&["persn"]).unwrap_err(), "`persn` is no kind of thing; did you mean `person`?");
    }

    /// Pixels of the class a scene is about, and the captions.
    fn seen(index: u64, kind: Focus, close_up: f64) -> (usize, Vec<String>) {
        let picture = Scene::about(11, index, kind, close_up).render((64, 128), Look::Day);
        (picture.labels.ids.iter().filter(|id| **id == kind.class()).count(), picture.captions)
    }

    #[test]
    fn a_close_up_shows_more_of_the_thing_and_names_it() {
        for kind in KINDS {
            let (_, word, _) = THINGS.into_iter().find(|(class, ..)| *class == kind.class()).unwrap();
            let (mut wide, mut close) = (Vec::new(), Vec::new());
            for index in 0..12 {
                let (pixels, captions) = seen(index, kind, 1.0);
                // Where nothing found room in the street, there is nothing to come near to.
                if pixels > 0 {
                    assert!(captions[0].contains(word), "{kind:?}: {captions:?}");
                    wide.push(seen(index, kind, 0.0).0);
                    close.push(pixels);
                }
            }
            wide.sort_unstable();
            close.sort_unstable();
            let (wide, close) = (wide[wide.len() / 2], close[close.len() / 2]);
            assert!(close > 64 * 128 / 40 && close >= wide, "{kind:?}: {wide} pixels, close up {close}");
        }
    }
}
