//! Who is on the road: vehicles, cyclists, people who cross, and the lights that hold them up.

use super::layout::{Scene, chance, pick};
use super::material::Signal;
use super::model::Pose;
use crate::base::Rng;
use std::f32::consts::{FRAC_PI_2, PI, TAU};

/// Share of trucks among what is parked.
const PARKED_TRUCKS: f32 = 0.035;
/// Usual traffic.
const MIX: [User; 14] = {
    use User::{Car, Cyclist, Truck};
    [Car, Car, Car, Car, Car, Car, Car, Car, Car, Car, Car, Truck, Cyclist, Cyclist]
};

/// Kinds of road users with a length to claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data) enum User {
    Car,
    Truck,
    Bus,
    Tram,
    Motorcycle,
    Cyclist,
}

impl User {
    pub(super) fn half_length(self) -> f32 {
        match self {
            Self::Car => 3.0,
            Self::Truck => 5.6,
            Self::Bus => 6.6,
            Self::Tram => 9.8,
            Self::Motorcycle | Self::Cyclist => 1.4,
        }
    }

    fn half_width(self) -> f32 {
        match self {
            Self::Motorcycle | Self::Cyclist => 0.5,
            _ => 1.3,
        }
    }
}

impl Scene {
    /// Traffic lights at the crossing, or at a signalled walkway.
    pub(super) fn signals(&mut self, rng: &mut Rng) {
        let Some((begin, _, striped)) = self.street.walkway else { return };
        if striped && self.street.crossing.is_none() && chance(rng, 0.5) {
            return;
        }
        let keep = self.street.keep;
        let state = pick(rng, &[Signal::Red, Signal::Red, Signal::Green, Signal::Green, Signal::Amber]);
        let arm = if chance(rng, 0.45) { -keep * rng.uniform_in(2.6, 4.2) } else { 0.0 };
        for side in [keep, -keep] {
            let l = self.street.kerb_at(side) + side * 0.55;
            let s = begin - 0.6;
            self.claim(l, s, 0.4, 0.8);
            let pose = self.raised(l, s);
            self.traffic_light(rng, &pose, if side == keep { arm } else { 0.0 }, state);
        }
        if let Some((_, end)) = self.street.crossing {
            // Those for the others show their backs.
            let l = self.street.kerb_at(-keep) - keep * 0.6;
            self.claim(l, end + 1.0, 0.4, 0.8);
            let pose = self.raised(l, end + 1.0).turned(PI);
            self.traffic_light(rng, &pose, 0.0, state);
            let far = self.street.kerb_at(keep) + keep * 0.6;
            if self.claim(far, end + 0.9, 0.4, 0.8) {
                let pose = self.raised(far, end + 0.9);
                self.traffic_light(rng, &pose, 0.0, state);
            }
        }
    }

    /// Vehicles that move, the rare ones first so that they find room near the camera.
    pub(super) fn traffic(&mut self, rng: &mut Rng) {
        if self.street.tracks {
            for _ in 0..4 {
                let s = rng.uniform_in(9.0, 34.0);
                if self.drive(rng, User::Tram, s) {
                    break;
                }
            }
        }
        for (user, p) in [(User::Truck, 0.22), (User::Bus, 0.36), (User::Motorcycle, 0.34), (User::Cyclist, 0.5)] {
            if chance(rng, p) {
                for _ in 0..6 {
                    let far = if user == User::Motorcycle || user == User::Cyclist { 20.0 } else { 34.0 };
                    let s = rng.uniform_in(7.0, far);
                    if self.drive(rng, user, s) {
                        break;
                    }
                }
            }
        }
        let density = rng.uniform_in(0.0, 1.0);
        for _ in 0..(3.0 + 13.0 * density) as usize {
            let user = pick(rng, &MIX);
            let s = 6.0 + 110.0 * rng.uniform() * rng.uniform();
            self.drive(rng, user, s);
        }
    }

    /// Puts a road user near station `s` on some lane; false if there is no room.
    pub(super) fn drive(&mut self, rng: &mut Rng, user: User, s: f32) -> bool {
        let with = chance(rng, 0.5);
        let number = if user == User::Tram { 0 } else { rng.below(self.street.lanes) };
        let mut l = self.street.lane_middle(number, with) + rng.uniform_in(-0.25, 0.25);
        if user == User::Cyclist {
            let side = if with { self.street.keep } else { -self.street.keep };
            l = self.street.kerb_at(side) - side * (self.street.parking[super::ground::index(side)] + 0.7);
        }
        let half = user.half_length();
        let s = s + half;
        // Nothing large right in front of the lens.
        let blind = (l - self.street.ego).abs() < 1.7 && s - half < if half > 4.0 { 13.0 } else { 6.5 };
        if blind || !self.claim(l, s, user.half_width(), half + 0.4) {
            return false;
        }
        let heading = self.street.pose(l, s);
        let along = if with { heading } else { heading.turned(PI) };
        let tail = along.shifted(0.0, 0.0, -0.8 * half);
        self.place_user(rng, user, &tail);
        true
    }

    fn place_user(&mut self, rng: &mut Rng, user: User, tail: &Pose) {
        match user {
            User::Car => {
                self.car(rng, tail, true);
            }
            User::Truck => {
                self.truck(rng, tail, true);
            }
            User::Bus => {
                self.coach(rng, tail, false, true);
            }
            User::Tram => {
                self.coach(rng, tail, true, true);
            }
            User::Motorcycle => {
                let ridden = chance(rng, 0.85);
                self.motorcycle(rng, tail, ridden);
            }
            User::Cyclist => self.bicycle(rng, tail, true),
        }
    }

    /// Vehicles at rest along the kerbs.
    pub(super) fn parked(&mut self, rng: &mut Rng) {
        for side in [-1.0f32, 1.0] {
            let width = self.street.parking[super::ground::index(side)];
            if width <= 0.0 {
                continue;
            }
            let fill = rng.uniform_in(0.35, 0.97);
            // The lens is not pressed against a parked car.
            let mut s = rng.uniform_in(3.0, 9.0);
            while s < 110.0 {
                let free = !self.street.in_crossing(s, 8.5) && self.street.walkway.is_none_or(|w| s > w.1 + 1.0 || s + 5.5 < w.0);
                s += match free && chance(rng, fill) {
                    true => self.park(rng, side, s) + rng.uniform_in(0.6, 1.4),
                    false => 5.5,
                };
            }
        }
    }

    /// Parks something with its near end at `s`; returns the room it takes.
    fn park(&mut self, rng: &mut Rng, side: f32, s: f32) -> f32 {
        let l = self.street.kerb_at(side) - side * 1.12;
        // Along the kerb everybody looks the way that side drives, mostly.
        let with = (side == self.street.keep) != chance(rng, 0.06);
        let draw = rng.uniform();
        let room = if draw < PARKED_TRUCKS { 9.0 } else { 5.2 };
        if !self.claim(l, s + 0.5 * room, 1.1, 0.5 * room) {
            return room;
        }
        let pose = self.street.pose(l + rng.uniform_in(-0.1, 0.1), s);
        let tail = if with { pose } else { pose.shifted(0.0, 0.0, room - 0.4).turned(PI) };
        if draw < PARKED_TRUCKS {
            return self.truck(rng, &tail, false).max(room);
        }
        if draw < PARKED_TRUCKS + 0.1 {
            self.two_wheelers(rng, side, s);
            return room;
        }
        self.car(rng, &tail, false).max(room - 0.4)
    }

    /// A few bicycles and motorcycles side by side, across the strip.
    fn two_wheelers(&mut self, rng: &mut Rng, side: f32, s: f32) {
        let mut at = s + 0.4;
        while at < s + 4.4 {
            let l = self.street.kerb_at(side) - side * 0.4;
            let across = self.street.pose(l, at).turned(-side * rng.uniform_in(1.2, 1.7));
            match chance(rng, 0.4) {
                true => self.motorcycle(rng, &across, false),
                false => self.bicycle(rng, &across, false),
            }
            at += rng.uniform_in(0.7, 1.3);
        }
    }

    /// People on the pavements and on the crossing, bicycles at walls.
    pub(super) fn pedestrians(&mut self, rng: &mut Rng) {
        let crowd = rng.uniform();
        for _ in 0..(3.0 + 24.0 * crowd * crowd) as usize {
            let side = pick(rng, &[-1.0, 1.0]);
            let s = 4.5 + 70.0 * rng.uniform() * rng.uniform();
            let (inner, outer) = (self.street.pavement_at(side), self.street.building_line(side));
            let l = inner + (outer - inner) * rng.uniform_in(0.15, 0.85);
            if self.street.in_crossing(s, 0.0) || !self.claim(l, s, 0.35, 0.4) {
                continue;
            }
            let turn = if chance(rng, 0.75) { pick(rng, &[0.0, PI]) + rng.uniform_in(-0.3, 0.3) } else { TAU * rng.uniform() };
            let pose = self.raised(l, s).turned(turn);
            self.person(rng, &pose);
            if chance(rng, 0.3) {
                let beside = pose.shifted(0.62, 0.0, rng.uniform_in(-0.15, 0.15));
                self.person(rng, &beside);
            }
        }
        self.crossing_people(rng);
        for _ in 0..rng.below(4) {
            let side = pick(rng, &[-1.0, 1.0]);
            let s = rng.uniform_in(5.0, 28.0);
            let l = self.street.building_line(side) - side * 0.4;
            if !self.street.in_crossing(s, 3.0) && self.claim(l, s, 0.3, 1.0) {
                let pose = self.raised(l, s);
                self.bicycle(rng, &pose, false);
            }
        }
    }

    fn crossing_people(&mut self, rng: &mut Rng) {
        let Some((begin, end, _)) = self.street.walkway else { return };
        if !chance(rng, 0.55) {
            return;
        }
        for _ in 0..1 + rng.below(4) {
            let (left, right) = (self.street.kerb_at(-1.0), self.street.kerb_at(1.0));
            let (l, s) = (rng.uniform_in(left, right), rng.uniform_in(begin + 0.4, end - 0.4));
            if self.claim(l, s, 0.35, 0.35) {
                let pose = self.street.pose(l, s).turned(pick(rng, &[-FRAC_PI_2, FRAC_PI_2]));
                self.person(rng, &pose);
            }
        }
    }
}
