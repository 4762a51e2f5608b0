//! What lines the street: houses, gardens, parks, trees, lamps, signs.

use super::buildings::{Lot, Quarter};
use super::ground::{CORNER, END, index};
use super::layout::{Scene, chance, pick};
use super::math::{V3, v3};
use crate::base::Rng;

/// How a stretch of land beside the pavement is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Land {
    Row(Quarter),
    /// Detached houses behind gardens.
    Gardens,
    Park,
    /// A long wall with trees behind.
    Wall,
}

impl Scene {
    /// Fills the land on `side`, stretch by stretch.
    pub(super) fn houses(&mut self, rng: &mut Rng, side: f32) {
        let usual = match rng.below(10) {
            0..=3 => Land::Row(Quarter::Old),
            4 | 5 => Land::Row(Quarter::Modern),
            6 | 7 => Land::Gardens,
            8 => Land::Row(Quarter::Low),
            _ => Land::Park,
        };
        let mut s = -3.0;
        while s < 150.0 {
            let land = match rng.below(10) {
                0 => Land::Park,
                1 => Land::Wall,
                2 => Land::Gardens,
                3 => Land::Row(Quarter::Modern),
                _ => usual,
            };
            let mut end = s + rng.uniform_in(20.0, 42.0);
            if let Some((from, to)) = self.street.crossing {
                let (from, to) = (from - CORNER, to + CORNER);
                if s < from && end > from {
                    end = from;
                } else if s >= from && s < to {
                    s = to;
                    end = end.max(to + 14.0);
                }
            }
            self.stretch(rng, side, land, (s, end));
            s = end.max(s + 2.0);
        }
    }

    fn stretch(&mut self, rng: &mut Rng, side: f32, land: Land, (from, to): (f32, f32)) {
        let line = self.street.building_line(side);
        match land {
            Land::Row(quarter) => self.row(rng, side, quarter, (from, to)),
            Land::Gardens => self.gardens(rng, side, (from, to)),
            Land::Park => {
                self.boundary(rng, side, line + side * 0.3, (from, to));
                for _ in 0..((to - from) / 4.5) as usize {
                    let l = line + side * rng.uniform_in(2.0, 22.0);
                    let s = rng.uniform_in(from, to);
                    let foot = self.raised(l, s).origin;
                    match chance(rng, 0.7) {
                        true => self.tree(rng, foot, 1.15),
                        false => self.bush(rng, foot, 1.3),
                    }
                }
            }
            Land::Wall => {
                let (a, b) = self.ends(side, line + side * 0.2, (from, to));
                self.wall(rng, a, b);
                for _ in 0..((to - from) / 6.0) as usize {
                    let foot = self.raised(line + side * rng.uniform_in(2.5, 9.0), rng.uniform_in(from, to)).origin;
                    self.tree(rng, foot, 1.2);
                }
            }
        }
    }

    /// Left and right end, as seen from the street, of a line parallel to it.
    fn ends(&self, side: f32, l: f32, (from, to): (f32, f32)) -> (V3, V3) {
        let (a, b) = (self.raised(l, from).origin, self.raised(l, to).origin);
        if side > 0.0 { (b, a) } else { (a, b) }
    }

    fn row(&mut self, rng: &mut Rng, side: f32, quarter: Quarter, (from, to): (f32, f32)) {
        let line = self.street.building_line(side);
        let mut s = from;
        while s < to - 3.0 {
            let mut width = rng.uniform_in(8.0, 17.0) * if quarter == Quarter::Modern { 1.5 } else { 1.0 };
            if to - (s + width) < 6.0 {
                width = to - s;
            }
            let set_back = if chance(rng, 0.2) { rng.uniform_in(0.0, 1.2) } else { 0.0 };
            let (left, right) = self.ends(side, line + side * set_back, (s, s + width));
            let depth = rng.uniform_in(10.0, 15.0);
            self.house(rng, &Lot { left, right, depth }, quarter);
            s += width;
        }
    }

    fn gardens(&mut self, rng: &mut Rng, side: f32, (from, to): (f32, f32)) {
        let line = self.street.building_line(side);
        let back = rng.uniform_in(3.5, 7.5);
        self.boundary(rng, side, line + side * 0.2, (from, to));
        let mut s = from + rng.uniform_in(0.5, 3.0);
        while s + 8.0 < to {
            let width = rng.uniform_in(8.0, 12.0);
            let (left, right) = self.ends(side, line + side * back, (s, s + width));
            let depth = rng.uniform_in(8.0, 11.0);
            self.house(rng, &Lot { left, right, depth }, Quarter::Low);
            s += width + rng.uniform_in(2.5, 6.0);
        }
        for _ in 0..((to - from) / 6.0) as usize {
            let foot = self.raised(line + side * rng.uniform_in(1.0, back - 0.8), rng.uniform_in(from, to)).origin;
            match chance(rng, 0.35) {
                true => self.tree(rng, foot, 0.75),
                false => self.bush(rng, foot, 0.8),
            }
        }
        for _ in 0..2 {
            let foot = self.raised(line + side * (back + rng.uniform_in(13.0, 20.0)), rng.uniform_in(from, to)).origin;
            self.tree(rng, foot, 1.3);
        }
    }

    /// A fence, hedge or wall along the pavement, with gaps.
    fn boundary(&mut self, rng: &mut Rng, side: f32, l: f32, (from, to): (f32, f32)) {
        let kind = rng.below(10);
        let mut s = from;
        while s < to - 1.0 {
            let end = (s + rng.uniform_in(7.0, 16.0)).min(to);
            let (a, b) = self.ends(side, l, (s, end));
            match kind {
                0..=5 => self.fence(rng, a, b),
                6..=7 => self.hedge(rng, a, b, 1.0),
                8 => self.wall(rng, a, b),
                _ => {}
            }
            s = end + if chance(rng, 0.5) { 2.6 } else { 0.0 };
        }
    }

    /// Lamps, trees, signs, shelters and small things between kerb and houses.
    pub(super) fn roadside(&mut self, rng: &mut Rng, side: f32) {
        self.lamp_row(rng, side);
        self.tree_row(rng, side);
        let keep = self.street.keep;
        let near_kerb = self.street.kerb_at(side) + side * 0.5;
        for _ in 0..2 + rng.below(3) {
            let s = 7.0 + 50.0 * rng.uniform() * rng.uniform();
            let free = !self.street.in_crossing(s, 0.4) && self.claim(near_kerb, s, 0.3, 0.5);
            if free {
                let pose = self.raised(near_kerb, s);
                let facing = if side == keep || chance(rng, 0.35) { pose } else { pose.turned(std::f32::consts::PI) };
                self.sign(rng, &facing);
            }
        }
        if chance(rng, 0.2) && side == keep {
            let s = rng.uniform_in(9.0, 26.0);
            let l = self.street.building_line(side) - side * 1.5;
            if !self.street.in_crossing(s + 2.0, 4.0) && self.claim(l, s + 2.0, 0.7, 2.0) {
                let pose = self.raised(l, s);
                let open = if side > 0.0 { pose } else { pose.turned(std::f32::consts::PI).shifted(0.0, 0.0, -4.0) };
                self.shelter(rng, &open);
            }
        }
        for _ in 0..rng.below(4) {
            let s = rng.uniform_in(5.0, 40.0);
            let l = pick(rng, &[near_kerb, self.street.building_line(side) - side * 0.5]);
            if !self.street.in_crossing(s, 1.0) && self.claim(l, s, 0.5, 0.5) {
                let pose = self.raised(l, s).turned(std::f32::consts::FRAC_PI_2 * side);
                self.clutter(rng, &pose);
            }
        }
        self.kerb_guard(rng, side);
    }

    pub(super) fn lamp_row(&mut self, rng: &mut Rng, side: f32) {
        let every = rng.uniform_in(20.0, 32.0);
        let mut s = rng.uniform_in(4.0, every);
        let l = self.street.kerb_at(side) + side * 0.45;
        while s < 120.0 {
            if !self.street.in_crossing(s, 0.5) && self.claim(l, s, 0.3, 0.5) {
                let pose = self.raised(l, s);
                self.street_lamp(rng, &pose, -side * 1.6);
            }
            s += every;
        }
    }

    pub(super) fn tree_row(&mut self, rng: &mut Rng, side: f32) {
        let verge = self.street.verge[index(side)];
        if !chance(rng, if verge > 0.0 { 0.9 } else { 0.4 }) {
            return;
        }
        let every = rng.uniform_in(8.0, 14.0);
        let l = self.street.kerb_at(side) + side * if verge > 0.0 { 0.5 * verge } else { 0.8 };
        let mut s = rng.uniform_in(5.0, 12.0);
        let scale = rng.uniform_in(0.7, 1.1);
        while s < 105.0 {
            let at = s + rng.uniform_in(-1.0, 1.0);
            if !self.street.in_crossing(at, 3.0) && self.claim(l, at, 0.4, 0.6) {
                let foot = self.raised(l, at);
                self.tree(rng, foot.origin, scale);
                self.contact(foot, 0.35, 0.35, 0.5);
            }
            s += every;
        }
    }

    /// Bollards or a railing along the kerb.
    fn kerb_guard(&mut self, rng: &mut Rng, side: f32) {
        let l = self.street.kerb_at(side) + side * 0.35;
        let from = rng.uniform_in(5.0, 18.0);
        let to = from + rng.uniform_in(6.0, 14.0);
        let free = |s: f32| !self.street.in_crossing(s, 1.0);
        if !free(from) || !free(to) || !free(0.5 * (from + to)) {
            return;
        }
        match rng.below(6) {
            0 => {
                let (a, b) = self.ends(side, l, (from, to));
                self.fence(rng, a, b);
            }
            1 => {
                let mut s = from;
                while s < to {
                    if self.claim(l, s, 0.15, 0.3) {
                        let pose = self.raised(l, s);
                        self.bollard(&pose);
                    }
                    s += 1.6;
                }
            }
            _ => {}
        }
    }

    /// What closes the view at the end of the street, and fills gaps between houses.
    pub(super) fn horizon(&mut self, rng: &mut Rng) {
        let along = |street: &super::ground::Street, l: f32, s: f32| street.place(l, s);
        let (left, right) = (along(&self.street, -85.0, 168.0), along(&self.street, 85.0, 168.0));
        self.skyline(rng, left, right);
        for _ in 0..14 {
            let l = pick(rng, &[-1.0, 1.0]) * rng.uniform_in(26.0, 80.0);
            let foot = along(&self.street, l, rng.uniform_in(50.0, 150.0));
            let size = rng.uniform_in(2.0, 4.0);
            self.bush(rng, foot, size * 1.4);
        }
        if chance(rng, 0.35) {
            for _ in 0..16 {
                let foot = along(&self.street, rng.uniform_in(-30.0, 30.0), rng.uniform_in(150.0, END - 66.0));
                self.tree(rng, foot + v3(0.0, -0.2, 0.0), 1.3);
            }
        }
    }
}
