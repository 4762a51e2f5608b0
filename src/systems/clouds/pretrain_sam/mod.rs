//! `clouds pretrain-sam`: a small Segment Anything of one's own, from photos with label maps.
//!
//! Connected pieces of a class are what it learns to outline, whatever the class. The result has the layout of the published
//! checkpoints; `--refiner` of `clouds train` and `clouds refine` takes it. Read [`config`] first.

pub mod config;
mod examples;
mod training;

pub use examples::{Asked, Examples};
pub use training::{SamTraining, start};

use crate::base::Result;
use crate::base::progress::Progress;
use crate::io::weights;
use crate::report::tensorboard;
use crate::train::checkpoint::Resume;
use crate::train::run_dir::RunDir;
use crate::train::stage::{self, Stage};
use config::SamPretrainConfig;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Settings that a run may change when it goes on.
const FREE: [&str; 2] = ["checkpointing_steps", "validation_steps"];

/// Trains and returns the weights, `sam.safetensors` in the run.
///
/// # Errors
/// Unusable photos or label maps; interruption.
pub fn run(config: &SamPretrainConfig, run: &RunDir, resume: Option<&Resume>, progress: &dyn Progress) -> Result<PathBuf> {
    config.validate()?;
    let (network, parameters) = start(config)?;
    let examples = Examples::open(config, network.image_size(), progress)?;
    progress.say(&format!("model: {} parameters", parameters.parameter_count()));
    let mut training = SamTraining::new(config, (network, parameters), examples)?;
    let stage = Stage {
        run,
        name: "outlines",
        folder: "",
        steps: config.steps,
        checkpointing_steps: config.checkpointing_steps,
        keep: 1,
        identity: stage::identity(config, &FREE)?,
        resume,
        progress,
        sinks: &tensorboard::sinks(run.path().into()),
    };
    stage.train(&mut training)?;
    if let Some(iou) = training.held_out_iou()? {
        progress.say(&format!("held-out photos: IoU {:.1} % with {} points a piece", 100.0 * iou, config.points));
        run.log("outlines", json!({ "iou": iou, "points": config.points }))?;
    }
    let file = run.path().join("sam.safetensors");
    weights::save(&file, &training.weights(), &BTreeMap::from([("format".into(), "pt".into())]))?;
    progress.say(&format!("Segment Anything: {}", file.display()));
    Ok(file)
}
