//! Prior preservation: pictures of the class, made by the base model before training.

use super::PersonalizeConfig;
use crate::base::progress::Progress;
use crate::base::{Error, Result, group};
use crate::diffusion::model::Model;
use crate::diffusion::text_to_image::{Request, SamplingSettings};
use crate::io::images::{self, RgbImage};
use crate::train::run_dir::RunDir;
use std::path::{Path, PathBuf};

const BATCH: usize = 4;

/// The class images; missing ones are generated into `class_images` (default: a folder of the run).
///
/// # Source
/// DreamBooth, section 4.2: 50 steps, guidance 7.5, the base model's own size.
pub fn prepare(model: &Model, config: &PersonalizeConfig, run: &RunDir, progress: &dyn Progress) -> Result<Vec<RgbImage>> {
    if config.class_prompt.is_empty() {
        return Err(Error::Usage("--with-prior-preservation needs --class-prompt, e.g. \"a photo of an urban scene\"".into()));
    }
    let folder = match config.class_images.as_str() {
        "" => run.path().join("class-images"),
        folder => PathBuf::from(folder),
    };
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let existing =
        || -> Result<Vec<PathBuf>> { Ok(images::list(&folder)?.into_iter().filter(|p| images::is_image(p)).collect()) };
    let count = existing()?.len();
    if run.is_written() && count < config.num_class_images {
        generate(model, config, &folder, count, progress)?;
    }
    group::current().wait()?;
    let paths: Vec<PathBuf> = existing()?;
    paths.iter().take(config.num_class_images).map(|path| load(path, config.crop_size)).collect()
}

fn load(path: &Path, crop: usize) -> Result<RgbImage> {
    let image = images::read_rgb(path)?;
    image.at_least((crop, crop), "a class image (they are cropped, not resized)", path)?;
    Ok(image)
}

fn generate(model: &Model, config: &PersonalizeConfig, folder: &Path, have: usize, progress: &dyn Progress) -> Result<()> {
    let sampler = model.sampler()?;
    // A model trained on crops of another size still has to give pictures that hold the crop.
    let least = config.crop_size.div_ceil(model.vae_config.downsampling());
    let (height, width) = model.latent_size(0, 0)?;
    let settings = SamplingSettings {
        sampler: model.usual_sampler()?,
        steps: 50,
        guidance_scale: 7.5,
        negative_prompt: String::new(),
        latent_size: (height.max(least), width.max(least)),
    };
    progress.stage("class images", config.num_class_images as u64, have as u64);
    let indices: Vec<usize> = (have..config.num_class_images).collect();
    for batch in indices.chunks(BATCH) {
        let request = |&index: &usize| Request {
            prompt: config.class_prompt.clone(),
            seed: config.seed.wrapping_add(index as u64),
            latents: None,
            initial: None,
        };
        let pictures =
            sampler.sample(&batch.iter().map(request).collect::<Vec<_>>(), &settings).map_err(|error| match error {
                Error::Interrupted { .. } => {
                    Error::Interrupted { resume: "run the same command again with `--resume latest`".into() }
                }
                other => other,
            })?;
        for (index, picture) in batch.iter().zip(&pictures) {
            let hash = &blake3::hash(&picture.pixels).to_hex()[..16];
            images::write_png(&folder.join(format!("{index}-{hash}.png")), picture, &[])?;
            progress.step(*index as u64 + 1, "");
        }
    }
    progress.end();
    Ok(())
}
