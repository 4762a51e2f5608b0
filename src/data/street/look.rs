//! Light and weather.

use super::math::{Rgb, V3, cos, gray, sin, v3};
use crate::base::Rng;
use std::fmt;
use std::str::FromStr;

/// Light and weather of a picture. The scene, and so the label map, does not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Look {
    /// Sun, or a bright sky.
    Day,
    /// A low or sunken sun; lamps and windows are lit.
    Dusk,
    /// Lamps only.
    Night,
    /// Gray air that swallows what is far.
    Fog,
    /// Overcast, streaks of rain, a mirroring road.
    Rain,
    /// Overcast, flakes, white ground.
    Snow,
}

impl Look {
    /// All looks.
    pub const ALL: [Self; 6] = [Self::Day, Self::Dusk, Self::Night, Self::Fog, Self::Rain, Self::Snow];

    /// Its name on the command line, e.g. `dusk`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Dusk => "dusk",
            Self::Night => "night",
            Self::Fog => "fog",
            Self::Rain => "rain",
            Self::Snow => "snow",
        }
    }
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Look {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name);
        let found = Self::ALL.into_iter().find(|look| look.name() == text);
        found.ok_or_else(|| format!("`{text}` is no look; {}", crate::base::suggest::hint(text, &names)))
    }
}

/// The numbers behind a look, drawn anew for each picture.
#[derive(Debug, Clone)]
pub(super) struct Air {
    /// Towards the sun.
    pub sun_at: V3,
    pub sun: Rgb,
    /// Light from above and from below.
    pub sky: Rgb,
    pub bounce: Rgb,
    /// Colour of the sky overhead, at the horizon, and towards the sun.
    pub zenith: Rgb,
    pub skyline: Rgb,
    pub glow: Rgb,
    /// Share of the sky under clouds, and their colour.
    pub cover: f32,
    pub cloud: Rgb,
    pub fog: Rgb,
    /// Share of light that the air swallows per metre.
    pub density: f32,
    /// 0…1: how bright lamps are against the daylight.
    pub lamps: f32,
    /// Share of windows with light.
    pub windows: f32,
    pub wet: f32,
    pub snow: f32,
    /// Streaks of rain, flakes of snow per 1000 pixels.
    pub rain: f32,
    pub flakes: f32,
    pub exposure: f32,
    pub contrast: f32,
    pub saturation: f32,
    /// Colour cast of the camera.
    pub white: Rgb,
    /// Strength of the sensor's noise.
    pub noise: f32,
    pub seed: u32,
}

impl Air {
    /// Draws the air of one picture.
    pub fn draw(look: Look, rng: &mut Rng) -> Self {
        let clear = Self::day(rng);
        let mut air = match look {
            Look::Day => clear,
            Look::Dusk => clear.dusk(rng),
            Look::Night => clear.night(rng),
            Look::Fog => clear.overcast(0.95).fog(rng),
            Look::Rain => clear.overcast(0.62).rain(rng),
            Look::Snow => clear.overcast(0.9).snow(rng),
        };
        air.exposure *= rng.uniform_in(0.9, 1.12);
        air.white = air.white.times(v3(rng.uniform_in(0.97, 1.03), 1.0, rng.uniform_in(0.96, 1.04)));
        air.seed = (rng.uniform() * 1e6) as u32;
        air
    }

    fn day(rng: &mut Rng) -> Self {
        let (azimuth, height) = (rng.uniform() * std::f32::consts::TAU, rng.uniform_in(0.42, 1.05));
        let cover = rng.uniform_in(0.0, 0.9);
        let strength = if rng.uniform() < 0.25 { 0.25 } else { 1.0 };
        let warm = rng.uniform();
        Self {
            sun_at: towards(azimuth, height),
            sun: v3(2.5, 2.28 - 0.15 * warm, 2.0 - 0.45 * warm) * strength,
            sky: v3(0.36, 0.43, 0.55) * (2.0 - strength),
            bounce: v3(0.25, 0.23, 0.2),
            zenith: v3(0.2, 0.42, 0.86),
            skyline: v3(0.78, 0.92, 1.06),
            glow: v3(0.3, 0.26, 0.18),
            cover,
            cloud: gray(1.25),
            fog: v3(0.74, 0.84, 0.96),
            density: 0.0012,
            lamps: 0.0,
            windows: 0.0,
            wet: 0.0,
            snow: 0.0,
            rain: 0.0,
            flakes: 0.0,
            exposure: 1.0,
            contrast: 1.06,
            saturation: 1.08,
            white: gray(1.0),
            noise: 0.008,
            seed: 0,
        }
    }

    fn dusk(self, rng: &mut Rng) -> Self {
        let late = rng.uniform();
        let azimuth = rng.uniform_in(-1.3, 1.3); // often ahead, where the camera sees it
        let pink = rng.uniform();
        Self {
            sun_at: towards(azimuth, rng.uniform_in(0.03, 0.12)),
            sun: v3(0.42, 0.2, 0.08) * (1.0 - late) * 0.7,
            sky: v3(0.13, 0.125, 0.17) * (1.0 - 0.45 * late),
            bounce: v3(0.07, 0.055, 0.05),
            zenith: v3(0.075, 0.1, 0.22) * (1.0 - 0.4 * late),
            skyline: v3(0.62, 0.36 + 0.05 * pink, 0.2 + 0.18 * pink) * (0.95 - 0.35 * late),
            glow: v3(0.85, 0.42, 0.14) * (1.0 - 0.3 * late),
            cover: rng.uniform_in(0.2, 0.9),
            cloud: v3(0.3, 0.19, 0.2) * (1.0 - 0.4 * late),
            fog: v3(0.3, 0.22, 0.2) * (1.0 - 0.4 * late),
            density: 0.0022,
            lamps: 0.55 + 0.35 * late,
            windows: rng.uniform_in(0.22, 0.45),
            exposure: 1.0,
            contrast: 1.12,
            saturation: 1.0,
            white: v3(1.06, 0.97, 0.94),
            noise: 0.02,
            ..self
        }
    }

    fn night(self, rng: &mut Rng) -> Self {
        let town = rng.uniform_in(0.6, 1.3);
        Self {
            sun: gray(0.0),
            sky: v3(0.03, 0.032, 0.044) * town,
            bounce: v3(0.016, 0.013, 0.01) * town,
            zenith: v3(0.006, 0.008, 0.018) * town,
            skyline: v3(0.05, 0.04, 0.036) * town,
            glow: gray(0.0),
            cover: rng.uniform_in(0.0, 0.8),
            cloud: v3(0.04, 0.034, 0.034) * town,
            fog: v3(0.03, 0.026, 0.024) * town,
            density: 0.003,
            lamps: 1.0,
            windows: rng.uniform_in(0.2, 0.5),
            wet: if rng.uniform() < 0.25 { 0.6 } else { 0.0 },
            exposure: 1.15,
            contrast: 1.08,
            saturation: 0.95,
            white: v3(1.06, 1.0, 0.88),
            noise: 0.028,
            ..self
        }
    }

    /// A gray sky of the given brightness.
    fn overcast(self, light: f32) -> Self {
        Self {
            sun: gray(0.0),
            sky: v3(0.72, 0.76, 0.82) * light,
            bounce: v3(0.24, 0.23, 0.22) * light,
            zenith: v3(0.56, 0.6, 0.66) * light,
            skyline: v3(0.78, 0.8, 0.82) * light,
            glow: gray(0.0),
            cover: 1.0,
            cloud: v3(0.66, 0.68, 0.72) * light,
            contrast: 1.0,
            saturation: 0.85,
            noise: 0.014,
            ..self
        }
    }

    fn fog(self, rng: &mut Rng) -> Self {
        let tint = rng.uniform();
        Self {
            fog: v3(0.66, 0.69, 0.7 + 0.04 * tint),
            zenith: v3(0.66, 0.69, 0.71),
            skyline: v3(0.66, 0.69, 0.71),
            density: rng.uniform_in(0.018, 0.045),
            lamps: 0.22,
            windows: 0.1,
            contrast: 0.9,
            saturation: 0.7,
            wet: 0.15,
            ..self
        }
    }

    fn rain(self, rng: &mut Rng) -> Self {
        Self {
            fog: v3(0.36, 0.38, 0.42),
            density: rng.uniform_in(0.003, 0.009),
            lamps: 0.4,
            windows: 0.2,
            wet: 1.0,
            rain: rng.uniform_in(0.8, 2.2),
            contrast: 0.98,
            saturation: 0.78,
            white: v3(0.96, 1.0, 1.05),
            noise: 0.018,
            ..self
        }
    }

    fn snow(self, rng: &mut Rng) -> Self {
        Self {
            fog: v3(0.68, 0.71, 0.76),
            density: rng.uniform_in(0.006, 0.014),
            bounce: v3(0.42, 0.43, 0.46),
            lamps: 0.15,
            windows: 0.12,
            snow: rng.uniform_in(0.55, 1.0),
            flakes: rng.uniform_in(1.2, 3.5),
            exposure: 0.92,
            contrast: 0.96,
            saturation: 0.75,
            white: v3(0.97, 1.0, 1.05),
            noise: 0.014,
            ..self
        }
    }
}

/// The direction `azimuth` radians to the right of +z and `height` radians up.
fn towards(azimuth: f32, height: f32) -> V3 {
    v3(sin(azimuth) * cos(height), sin(height), cos(azimuth) * cos(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_misspelt_ones_explained() {
        for look in Look::ALL {
            assert_eq!(look.to_string().parse(), Ok(look));
        }
        assert_eq!("dust".parse::<Look>(), Err("`dust` is no look; did you mean `dusk`?".into()));
    }
}
