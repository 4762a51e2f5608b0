//! What generated images start from besides noise: photos whose layout is kept, and whose light they take over first.

use super::config::GenerateConfig;
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::data::color_transfer::match_colors;
use crate::data::fourier::FourierTransfer;
use crate::data::resize::antialiased;
use crate::io::hash;
use crate::io::images::{self, RgbImage};
use crate::io::manifest::START_DIGITS;
use std::path::{Path, PathBuf};

/// As `init_style`: the picture that the prompt of an image gives alone.
pub const PROMPT: &str = "prompt";

/// The initial photos of a generation; there may be none.
pub struct InitialPhotos {
    photos: Vec<PathBuf>,
    style: Style,
    size: (usize, usize),
    /// See [`crate::io::manifest::GenerationFacts::start`]: one for each photo, or one for all images.
    described: Vec<String>,
}

enum Style {
    /// Photos stay as they are.
    Own,
    /// Low frequencies of one photo.
    Photo(FourierTransfer),
    /// Colours of a picture painted from noise.
    Prompt,
}

impl InitialPhotos {
    /// `size` (height, width) is that of the images.
    ///
    /// # Errors
    /// A folder without photos, an impossible strength, a style without photos or one that cannot be read.
    pub fn open(config: &GenerateConfig, size: (usize, usize), progress: &dyn Progress) -> Result<Self> {
        let photos = match config.init_images.as_str() {
            "" => Vec::new(),
            folder => {
                let scan = images::scan(Path::new(folder))?;
                if let Some(line) = images::unreadable_line(&scan.unreadable, scan.images.len() + scan.unreadable.len()) {
                    progress.warn(&line);
                }
                scan.images
            }
        };
        let possible = (0.0..=1.0).contains(&config.strength);
        if !photos.is_empty() && !possible {
            return Err(Error::Usage(format!("strength {}: expected a value from 0 to 1", config.strength)));
        }
        Ok(Self { described: described(config, &photos)?, photos, style: style(config, size)?, size })
    }

    /// Whether every image needs a picture that was painted from noise first, for [`Self::photo`].
    pub fn needs_pictures(&self) -> bool {
        matches!(self.style, Style::Prompt)
    }

    /// What image `j` starts from, for its record.
    pub fn described(&self, j: u64) -> &str {
        &self.described[(j % self.described.len() as u64) as usize]
    }

    /// The photo that image `j` starts from, in its style; `painted` is the picture of the prompt alone.
    ///
    /// # Errors
    /// A photo that cannot be read.
    pub fn photo(&self, j: u64, painted: Option<&RgbImage>) -> Result<Option<RgbImage>> {
        if self.photos.is_empty() {
            return Ok(None);
        }
        let path = &self.photos[(j % self.photos.len() as u64) as usize];
        let mut photo = antialiased(&images::read_rgb(path)?, self.size);
        match (&self.style, painted) {
            (Style::Photo(transfer), _) => {
                photo.pixels = transfer.apply(&photo.floats(), self.size)?.into_iter().map(|v| v.round() as u8).collect();
            }
            (Style::Prompt, Some(painted)) => match_colors(&mut photo, painted),
            _ => {}
        }
        Ok(Some(photo))
    }
}

fn style(config: &GenerateConfig, size: (usize, usize)) -> Result<Style> {
    if config.init_style.is_empty() {
        return Ok(Style::Own);
    }
    if config.init_images.is_empty() {
        return Err(Error::Usage("--init-style changes initial photos\n  next: add `--init-images FOLDER`".into()));
    }
    if config.init_style == PROMPT {
        return Ok(Style::Prompt);
    }
    // Amplitudes grow with the number of pixels, so both pictures must have one size.
    let photo = antialiased(&images::read_rgb(Path::new(&config.init_style))?, size);
    FourierTransfer::new(photo.floats(), size, config.init_style_bandwidth).map(Style::Photo)
}

fn described(config: &GenerateConfig, photos: &[PathBuf]) -> Result<Vec<String>> {
    let digest = |path: &Path| hash::file(path).map(|hash| hash[..START_DIGITS].to_string());
    let latents = match config.latents.as_str() {
        "" => String::new(),
        file => format!("latents {}", digest(Path::new(file))?),
    };
    if photos.is_empty() {
        return Ok(vec![latents]);
    }
    let style = match config.init_style.as_str() {
        "" => String::new(),
        PROMPT => format!(" style {PROMPT} steps {}", config.style_steps()),
        file => format!(" style {} bandwidth {}", digest(Path::new(file))?, config.init_style_bandwidth),
    };
    let photo = |path: &PathBuf| {
        let start = format!("{latents} photo {} strength {}{style}", digest(path)?, config.strength);
        Ok(start.trim().to_string())
    };
    photos.iter().map(photo).collect()
}
