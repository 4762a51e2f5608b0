//! Scenes about one kind of thing: quiet streets with a few of them near the camera. A text-to-image model that learns from
//! crowded streets alone cannot tell which word means which thing.

use super::layout::{Scene, chance, pick};
use super::material::Signal;
use super::traffic::User;
use crate::base::Rng;
use std::f32::consts::{FRAC_PI_2, TAU};

/// Draws for a place until one is free.
const TRIES: usize = 30;

/// What a scene can be about.
#[derive(Debug, Clone, Copy)]
enum Focus {
    Driven(User),
    Person,
    ParkedBicycle,
    TrafficLight,
    TrafficSign,
}

/// In turn, so that every class is the focus equally often.
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

/// Which scenes of a set are about one thing: for scene `index`, its number among those; `None` for a usual street.
pub(in crate::data) fn turn(index: u64, share: f64) -> Option<u64> {
    let before = (index as f64 * share) as u64;
    (((index + 1) as f64 * share) as u64 > before).then_some(before)
}

impl Scene {
    pub(super) fn populate_about(&mut self, rng: &mut Rng, turn: u64) {
        let kind = KINDS[(turn % KINDS.len() as u64) as usize];
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

    #[test]
    fn the_share_is_spread_evenly() {
        assert!((0..50).all(|index| turn(index, 0.0).is_none()));
        assert_eq!((0..5).map(|index| turn(index, 1.0).unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        let turns: Vec<u64> = (0..1000).filter_map(|index| turn(index, 0.3)).collect();
        assert_eq!(turns, (0..300).collect::<Vec<_>>());
    }
}
