//! What a generation would do and need, without doing it.

use super::{Job, MANIFEST, Shard, base};
use crate::base::Result;
use crate::base::heap::peak_memory;
use crate::base::progress::Progress;
use crate::io::manifest::Manifest;
use crate::prompting::{ClassSet, PromptFile};
use crate::report::terminal;
use crate::systems::datum::config::GenerateConfig;
use crate::systems::datum::forecast::Forecast;
use serde::Serialize;
use std::path::Path;

/// What a generation would do and need.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Images of this shard that are not there yet, when `output` is named; else all of them.
    pub images: u64,
    /// Different prompts.
    pub prompts: usize,
    /// Height and width in pixels.
    pub size: (usize, usize),
    /// Denoising steps of an image.
    pub steps: usize,
    /// What it will take.
    pub forecast: Forecast,
}

/// Measures two denoising steps and the decoder on one batch. Writes nothing.
///
/// # Errors
/// Those of [`super::run`] before the first image.
pub fn plan(config: &GenerateConfig, output: Option<&Path>, places: &base::Places, progress: &dyn Progress) -> Result<Plan> {
    config.validate()?;
    let prompts = PromptFile::open(&config.prompts)?.expand(&config.identifier, ClassSet::Things)?;
    let different = prompts.len();
    let shard = if config.shard.is_empty() { Shard { index: 0, count: 1 } } else { config.shard.parse()? };
    let model = base::open(&config.model, &config.lora, places, progress)?;
    let job = Job::new(config, &model, prompts, progress)?;
    output.map_or(Ok(()), |output| job.check(output))?;
    let run = |output: &Path| if config.shard.is_empty() { output.to_path_buf() } else { shard.folder(output) };
    let manifest = output.map(|output| run(output).join(MANIFEST)).filter(|path| path.is_file());
    let manifest = manifest.map(|path| Manifest::open(&path)).transpose()?;
    let is_missing = |j: &u64| !manifest.as_ref().is_some_and(|manifest| job.is_made(manifest, *j));
    let images = (0..config.count).filter(|j| j % shard.count == shard.index).filter(is_missing).count() as u64;
    progress.say("measuring two denoising steps and the decoder");
    let batch: Vec<u64> = (0..config.count.min(config.batch_size.max(1) as u64)).collect();
    let seconds_each = job.rehearse(&batch)? / batch.len() as f64;
    let (height, width) = job.size;
    let forecast = Forecast {
        seconds_each,
        seconds: seconds_each * images as f64,
        peak_bytes: peak_memory(),
        // PNG of photos: about two thirds of the raw bytes.
        disk_bytes: images * (height * width * 2) as u64,
    };
    Ok(Plan { images, prompts: different, size: job.size, steps: config.steps, forecast })
}

impl Plan {
    /// The plan for people.
    pub fn text(&self) -> String {
        let (height, width) = self.size;
        let mut facts = vec![
            ("images", format!("{} of {width}x{height}, {} prompts", self.images, self.prompts)),
            ("denoising", format!("{} steps", self.steps)),
        ];
        facts.extend(self.forecast.facts("an image"));
        format!("{}\n\nmeasured in two denoising steps; nothing was written", terminal::facts(&facts))
    }
}
