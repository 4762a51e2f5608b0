//! `datum adapt`: trains a segmenter on labelled source and unlabelled (pseudo-)target images.
//!
//! `batches` prepares what one step sees, `training` runs the step of the self-training engine under the optimiser.

mod batches;
mod plan;
mod training;

use super::config::{AdaptConfig, Strategy};
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::data::{Dataset, Search};
use crate::io::weights;
use crate::models::segmenter::SegmenterConfig;
use crate::report::tensorboard;
use crate::systems::shared::segmenter_file::{self, Header, Model, Segmenter as SegmenterFile};
use crate::systems::shared::validation::{Validation, Wanted};
use crate::train::checkpoint::Resume;
use crate::train::run_dir::RunDir;
use crate::train::stage::{self, Stage};
use batches::Batches;
pub use plan::{Plan, plan};
use std::path::{Path, PathBuf};
use training::Adaptation;

/// Target images whose paths the log of a run keeps.
const LOGGED_IMAGES: usize = 24;

/// Settings that a run may change when it goes on.
const FREE: [&str; 7] =
    ["workers", "checkpointing_steps", "test_size", "validation", "validation_split", "validation_steps", "validation_images"];

/// Trains and returns the segmenter's file, `segmenter.safetensors` in the run.
///
/// # Errors
/// Unusable data sets or weights; interruption.
pub fn run(
    config: &AdaptConfig,
    run: &RunDir,
    resume: Option<&Resume>,
    search: &Search,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let (source, target) = data(config, search)?;
    let header = header(config, &source);
    check_network(config, &source)?;
    let batches = Batches::new(config, &header, &source, target.as_ref(), progress)?;
    let mut identity = stage::identity(config, &FREE)?;
    identity.insert("pictures".into(), batches.pictures());
    let mut training = Adaptation::new(config, &source, batches)?;
    run.log("data", used(&source, target.as_ref(), config)?)?;
    let wanted = Wanted {
        dataset: &config.validation,
        split: &config.validation_split,
        steps: config.validation_steps,
        images: config.validation_images,
    };
    training.validation = Validation::new(wanted, &header, search)?;
    let stage = Stage {
        run,
        name: "adapt",
        folder: "",
        steps: config.iterations,
        checkpointing_steps: config.checkpointing_steps,
        keep: 1,
        identity,
        resume,
        progress,
        sinks: &tensorboard::sinks(run.path().into()),
    };
    stage.train(&mut training)?;
    let file = run.path().join(segmenter_file::FILE);
    if run.is_written() {
        SegmenterFile::save(&file, &header, training.parameters())?;
    }
    progress.say(&format!("segmenter: {}", file.display()));
    Ok(file)
}

/// Folders of the data sets and a few images of the target, for the report: names are looked up elsewhere later.
fn used(source: &Dataset, target: Option<&Dataset>, config: &AdaptConfig) -> Result<serde_json::Value> {
    let split = Some(config.target_split.as_str()).filter(|split| !split.is_empty());
    let samples = target.map_or(Ok(Vec::new()), |target| target.samples(split))?;
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into()).display().to_string();
    let count = samples.len().min(LOGGED_IMAGES);
    let images = (0..count).map(|i| absolute(&samples[(2 * i + 1) * samples.len() / (2 * count)].image));
    Ok(serde_json::json!({
        "source": absolute(&source.root),
        "target": target.map(|target| absolute(&target.root)),
        "target_images": images.collect::<Vec<_>>(),
    }))
}

/// Checks the settings and opens source and, where the strategy learns from it, target.
fn data(config: &AdaptConfig, search: &Search) -> Result<(Dataset, Option<Dataset>)> {
    config.validate()?;
    let source = Dataset::open(&config.source, search)?;
    if !source.has_labels() {
        return Err(Error::Usage(format!("the source `{}` has no labels; give a labelled data set as --source", config.source)));
    }
    let target = match (config.strategy, config.fourier > 0.0, config.target.as_str()) {
        (Strategy::SourceOnly, false, _) => None,
        (_, _, "") => return Err(Error::Usage("this strategy learns from the target; give --target DATASET|FOLDER".into())),
        (_, _, target) => Some(Dataset::open(target, search)?),
    };
    Ok((source, target))
}

/// The network that `config` trains on `source`.
fn network(config: &AdaptConfig, source: &Dataset) -> SegmenterConfig {
    SegmenterConfig {
        encoder: config.encoder.clone(),
        decoder: config.decoder.clone(),
        num_classes: source.classes.len(),
        decoder_channels: Some(config.decoder_channels),
        ..SegmenterConfig::default()
    }
}

/// Names and files of the network, before all labels of the source are read.
fn check_network(config: &AdaptConfig, source: &Dataset) -> Result<()> {
    network(config, source).validate()?;
    if !config.encoder_weights.is_empty() {
        weights::open(Path::new(&config.encoder_weights))?;
    }
    if !config.init.is_empty() {
        segmenter_file::read(Path::new(&config.init))?;
    }
    Ok(())
}

/// The header of the segmenter that `config` trains on `source`.
fn header(config: &AdaptConfig, source: &Dataset) -> Header {
    let model = Model::EncoderDecoder(network(config, source));
    Header { test_size: config.test_size, ..Header::new(model, &source.classes) }
}
