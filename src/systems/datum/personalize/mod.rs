//! `datum personalize`: teaches a text-to-image model the look of one photo.
//!
//! `dreambooth` is the training; `class_images` makes the pictures of prior preservation; `plan` says what it would need.

mod class_images;
mod dreambooth;
mod plan;

use super::base::{self, Places};
use super::config::{Method, PersonalizeConfig};
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::data::resize::antialiased;
use crate::diffusion::model::{MOST_PIXELS, Model};
use crate::io::images::{self, RgbImage};
use crate::models::stable_diffusion::config::VaeConfig;
use crate::report::tensorboard;
use crate::train::checkpoint::Resume;
use crate::train::run_dir::RunDir;
use crate::train::stage::{self, Stage};
pub use plan::{Choice, Plan, plan};
use std::path::{Path, PathBuf};

/// Settings that a run may change when it goes on.
const FREE: [&str; 5] = ["steps", "checkpointing_steps", "keep_last", "validation_steps", "validation_prompt"];

/// Runs the personalisation and returns what `generate --model` takes: the run folder.
///
/// # Errors
/// Unusable photos, an unavailable base, interruption.
pub fn run(
    config: &PersonalizeConfig,
    run: &RunDir,
    resume: Option<&Resume>,
    places: &Places,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    config.validate()?;
    let config = with_method_defaults(config);
    let photos = config.images.iter().map(|path| photo(Path::new(path), &config)).collect::<Result<Vec<_>>>()?;
    if photos.is_empty() {
        return Err(Error::Usage("personalize needs at least one photo of the target".into()));
    }
    let base = base::pipeline(&config.base, &places.hub, progress)?;
    check_crop(&config, &base.vae_config)?;
    let origin = base.origin()?;
    let model = Model::of(base)?;
    let class_images =
        if config.with_prior_preservation { class_images::prepare(&model, &config, run, progress)? } else { Vec::new() };
    let stage = Stage {
        run,
        name: "personalize",
        folder: "",
        steps: config.steps,
        checkpointing_steps: config.checkpointing_steps,
        keep: config.keep_last,
        identity: stage::identity(&config, &FREE)?,
        resume,
        progress,
        sinks: &tensorboard::sinks(run.path().into()),
    };
    progress.say(&format!("{} steps at a learning rate of {:e}", config.steps, config.learning_rate));
    let mut training = dreambooth::DreamBooth::new(&model, &config, photos, class_images, run.path(), &origin)?;
    stage.train(&mut training)?;
    if run.is_written() {
        training.export(run.path())?;
    }
    progress.say(&format!("personalised model: {}", run.path().display()));
    Ok(run.path().into())
}

/// Steps and learning rate where they are 0: DATUM's values for full fine-tuning, those of diffusers' recipe for LoRA.
pub fn with_method_defaults(config: &PersonalizeConfig) -> PersonalizeConfig {
    let mut config = config.clone();
    let (steps, learning_rate) = match config.method {
        Method::Full => (1000, 5e-6),
        Method::Lora => (500, 1e-4),
    };
    if config.steps == 0 {
        config.steps = steps;
    }
    if config.learning_rate == 0.0 {
        config.learning_rate = learning_rate;
    }
    config
}

/// A crop has at least one latent.
fn check_crop(config: &PersonalizeConfig, autoencoder: &VaeConfig) -> Result<()> {
    let (crop, least) = (config.crop_size, autoencoder.downsampling());
    if crop < least {
        return Err(Error::Usage(format!(
            "--crop-size {crop}: this model makes one value of {least}x{least} pixels; give at least that"
        )));
    }
    Ok(())
}

/// A photo with its shorter side at `resolution`.
///
/// # Source
/// torchvision's `Resize` on PIL images: the longer side is truncated, antialiased bilinear; nothing happens when the shorter
/// side fits already.
fn photo(path: &Path, config: &PersonalizeConfig) -> Result<RgbImage> {
    let image = images::read_rgb(path)?;
    let (short, long) = (image.height.min(image.width), image.height.max(image.width));
    if config.crop_size > config.resolution {
        let (crop, resolution) = (config.crop_size, config.resolution);
        return Err(Error::Usage(format!("--crop-size {crop} does not fit into --resolution {resolution}")));
    }
    image.at_least((8, 8), "personalize", path)?;
    if short == config.resolution {
        return Ok(image);
    }
    let other = (config.resolution as f64 * long as f64 / short as f64) as usize;
    if config.resolution.saturating_mul(other) > MOST_PIXELS {
        let expected = format!("a photo whose shorter side can be {} pixels", config.resolution);
        let found = format!("{}x{}, which would become {other} long", image.width, image.height);
        return Err(Error::data(path, expected, found, "cut out the part to learn from, or give a smaller --resolution"));
    }
    let size = if image.height <= image.width { (config.resolution, other) } else { (other, config.resolution) };
    Ok(antialiased(&image, size))
}
