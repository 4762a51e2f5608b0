//! What an adaptation would do and need, without doing it.

use super::batches::Batches;
use super::training::Adaptation;
use super::{data, header};
use crate::base::Result;
use crate::base::progress::{Progress, Silent};
use crate::data::{Dataset, Search};
use crate::report::terminal;
use crate::systems::datum::config::AdaptConfig;
use crate::systems::datum::forecast::{self, Forecast, Measured};
use crate::systems::shared::Size;
use crate::systems::shared::size::frame;
use serde::Serialize;

/// The plan of one adaptation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Labelled images.
    pub source_images: usize,
    /// Unlabelled images; none where the strategy does not learn from them.
    pub target_images: Option<usize>,
    /// Parameters that learn.
    pub parameters: u64,
    /// Optimiser steps.
    pub iterations: u64,
    /// Images of a step, of each kind.
    pub batch_size: usize,
    /// Crops (height, width).
    pub crop: (usize, usize),
    /// What it will take.
    pub forecast: Forecast,
}

/// Runs a few steps on small crops and draws on what they took. Writes nothing.
///
/// # Errors
/// What [`super::run`] would complain about before training.
pub fn plan(config: &AdaptConfig, search: &Search, progress: &dyn Progress) -> Result<Plan> {
    let (source, target) = data(config, search)?;
    let images = |dataset: &Dataset, split: &str| {
        let split = if split.is_empty() { None } else { Some(split) };
        dataset.samples(split)
    };
    let source_split = match config.source_split.as_str() {
        "" => source.first_split(&["train"]).unwrap_or_default().to_string(),
        split => split.into(),
    };
    let crop = (config.crop.height, config.crop.width);
    let sizes = forecast::probes(crop);
    progress.stage("measuring steps on small crops", sizes.len() as u64, 0);
    let (mut measured, mut parameters) = (Vec::new(), 0);
    for (done, size) in sizes.into_iter().enumerate() {
        let mut training = probe(config, &source, target.as_ref(), size)?;
        parameters = training.parameters().weights().map(|(_, weight)| weight.elem_count() as u64).sum();
        measured.push(Measured::training(&mut training, size.0 * size.1)?);
        progress.step(done as u64 + 1, "");
    }
    progress.end();
    let target_samples = target.as_ref().map(|target| images(target, &config.target_split)).transpose()?;
    let source_samples = images(&source, &source_split)?;
    let (seconds_each, peak) = forecast::extrapolate(&measured, crop.0 * crop.1);
    let kept = Batches::cached_bytes(&source_samples, frame(config.source_size))
        + target_samples.as_ref().map_or(0, |samples| Batches::cached_bytes(samples, frame(config.target_size)));
    // Weights, teacher and two moments of Adam: the last checkpoint and the one being written; then the segmenter.
    let disk_bytes = parameters * 4 * (2 * 4 + 1);
    Ok(Plan {
        source_images: source_samples.len(),
        target_images: target_samples.map(|samples| samples.len()),
        parameters,
        iterations: config.iterations,
        batch_size: config.batch_size,
        crop,
        forecast: Forecast {
            seconds_each,
            seconds: seconds_each * config.iterations as f64,
            peak_bytes: peak.map(|bytes| bytes + kept as u64),
            disk_bytes,
        },
    })
}

/// The training with crops of another size. Images are drawn evenly, which needs no statistics of all labels.
fn probe(config: &AdaptConfig, source: &Dataset, target: Option<&Dataset>, crop: (usize, usize)) -> Result<Adaptation> {
    let crop = Size { height: crop.0, width: crop.1 };
    // Two steps are measured, also of a training of one.
    let iterations = config.iterations.max(2);
    let config = AdaptConfig { crop, iterations, rare_class_temperature: 0.0, ..config.clone() };
    let header = header(&config, source);
    let batches = Batches::new(&config, &header, source, target, &Silent)?;
    Adaptation::new(&config, source, batches)
}

impl Plan {
    /// The plan for people.
    pub fn text(&self) -> String {
        let target = self.target_images.map_or(String::new(), |images| format!(", target: {images}"));
        let (height, width) = self.crop;
        let mut facts = vec![
            ("images", format!("source: {}{target}", self.source_images)),
            ("parameters", format!("{:.1} M", self.parameters as f64 / 1e6)),
            ("training", format!("{} steps of {} images, crops of {width}x{height}", self.iterations, self.batch_size)),
        ];
        facts.extend(self.forecast.facts("a step"));
        format!("{}\n\nmeasured on small crops and drawn on; nothing was written", terminal::facts(&facts))
    }
}
