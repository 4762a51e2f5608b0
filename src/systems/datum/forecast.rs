//! What a run will take, measured in a few steps at smaller sizes.

use crate::base::heap::peak_memory;
use crate::base::{Error, Result, interrupt};
use crate::report::terminal;
use crate::train::driver::Training;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Expected cost of a run on this machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// Time of one step, or of one image.
    pub seconds_each: f64,
    /// Time of all.
    pub seconds: f64,
    /// Peak memory in bytes, where the system tells.
    pub peak_bytes: Option<u64>,
    /// What the run folder will hold at most, in bytes.
    pub disk_bytes: u64,
}

impl Forecast {
    /// Lines for people; `each` names what is counted.
    pub fn facts(&self, each: &str) -> Vec<(&'static str, String)> {
        let duration = |seconds: f64| terminal::duration(Duration::from_secs_f64(seconds));
        vec![
            ("expected time", format!("{} ({} {each})", duration(self.seconds), duration(self.seconds_each))),
            ("expected peak memory", self.peak_bytes.map_or("not known on this system".into(), terminal::memory)),
            ("disk", terminal::memory(self.disk_bytes.max(1 << 20))),
        ]
    }
}

/// Seconds of a step and peak memory at one size.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Pixels of an image.
    pub area: f64,
    /// Of one step.
    pub seconds: f64,
    /// Of the process so far.
    pub peak_bytes: Option<u64>,
}

impl Measured {
    /// Runs two steps and takes the second, which finds memory and threads ready.
    pub fn training(training: &mut impl Training, area: usize) -> Result<Self> {
        training.step(0)?;
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: "plans have nothing to go on from; start again".into() });
        }
        let started = Instant::now();
        training.step(1)?;
        Ok(Self { area: area as f64, seconds: started.elapsed().as_secs_f64(), peak_bytes: peak_memory() })
    }
}

/// The sides at which a training with crops of `sides` is measured: a quarter and a half of them, rounded up to multiples of
/// 32; small crops as they are.
pub fn probes(sides: (usize, usize)) -> Vec<(usize, usize)> {
    if sides.0.min(sides.1) < 128 {
        return vec![sides];
    }
    let part = |n: usize| (sides.0.div_ceil(32 * n) * 32, sides.1.div_ceil(32 * n) * 32);
    vec![part(4), part(2)]
}

/// Time and memory at `area`: measured values drawn on as a line that does not fall.
pub fn extrapolate(measured: &[Measured], area: usize) -> (f64, Option<u64>) {
    let line = |value: &dyn Fn(&Measured) -> Option<f64>| {
        let (first, last) = (measured.first()?, measured.last()?);
        let (low, high) = (value(first)?, value(last)?);
        let slope = if last.area > first.area { (high - low).max(0.0) / (last.area - first.area) } else { 0.0 };
        Some(high + slope * (area as f64 - last.area))
    };
    let seconds = line(&|m| Some(m.seconds)).unwrap_or(0.0);
    (seconds, line(&|m| m.peak_bytes.map(|bytes| bytes as f64)).map(|bytes| bytes as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_with_the_area_is_drawn_on() {
        let at = |side: usize| Measured {
            area: (side * side) as f64,
            seconds: 0.5 + (side * side) as f64 / 1e4,
            peak_bytes: Some(1000 + 3 * (side * side) as u64),
        };
        let sides = probes((512, 512));
        assert_eq!(sides, [(128, 128), (256, 256)]);
        let (seconds, bytes) = extrapolate(&[at(128), at(256)], 512 * 512);
        assert!((seconds - at(512).seconds).abs() < 1e-9);
        assert_eq!(bytes, at(512).peak_bytes);
        assert_eq!(probes((32, 48)), [(32, 48)]);
        assert_eq!(extrapolate(&[at(100)], 100 * 100), (at(100).seconds, at(100).peak_bytes));
    }
}
