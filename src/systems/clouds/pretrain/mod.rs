//! `clouds pretrain`: a small CLIP of one's own, from images and their captions.
//!
//! A ConvNeXt and a text tower learn that an image and its caption belong together. The result has the layout of open_clip;
//! `clouds train --backbone-weights` takes its image tower. Read [`config`] first, then [`Pairs`] for what a step sees.

pub mod config;
mod pairs;
mod retrieval;
mod training;

pub(in crate::systems::clouds) use pairs::evenly;
pub use pairs::{PairBatch, Pairs};
pub use retrieval::{CANDIDATES, Retrieval, area_under_curve};
pub use training::ClipTraining;

use super::clip_file::{self, ClipFile};
use super::nano;
use crate::base::Result;
use crate::base::progress::Progress;
use crate::models::clip::VisualConfig;
use crate::report::tensorboard;
use crate::train::checkpoint::Resume;
use crate::train::run_dir::RunDir;
use crate::train::stage::{self, Stage};
use config::{ClipPretrainConfig, SCRATCH};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Settings that a run may change when it goes on.
const FREE: [&str; 3] = ["workers", "checkpointing_steps", "validation_steps"];

/// Trains and returns the weights in the folder `clip` of the run.
///
/// # Errors
/// Unusable images or captions; interruption.
pub fn run(config: &ClipPretrainConfig, run: &RunDir, resume: Option<&Resume>, progress: &dyn Progress) -> Result<PathBuf> {
    config.validate()?;
    let base = match config.base.as_str() {
        SCRATCH => None,
        nano::NAME => Some(nano::open()?),
        path => Some(ClipFile::open(Path::new(path))?),
    };
    let pairs = Pairs::open(config, base.as_ref().map(|base| base.tokenizer.clone()), progress)?;
    let tokenizer = pairs.tokenizer().clone();
    let mut training = ClipTraining::new(config, pairs, base)?;
    progress.say(&format!("model: {} parameters", training.parameters.parameter_count()));
    let stage = Stage {
        run,
        name: "contrast",
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
    say_retrieval(&training.retrieval()?, run, progress)?;
    let mut network = training.network;
    if let VisualConfig::ConvNext(convnext) = &mut network.visual {
        convnext.drop_path = 0.0; // matters in training alone
    }
    let folder = run.path().join("clip");
    ClipFile { config: network, tokenizer, tensors: training.parameters.tensors() }.save(&folder)?;
    progress.say(&format!("CLIP: {}", folder.display()));
    Ok(folder.join(clip_file::WEIGHTS))
}

/// Says how well held-out pairs find each other, and logs it.
fn say_retrieval(found: &Retrieval, run: &RunDir, progress: &dyn Progress) -> Result<()> {
    if found.pairs == 0 {
        return Ok(());
    }
    let share = |count: f64| found.share(count);
    let (image, text, chance) = (share(found.image_to_text as f64), share(found.text_to_image as f64), share(found.by_chance));
    progress.say(&format!(
        "of {} held-out pairs, {:.1} % of the images find their caption among {CANDIDATES} and {:.1} % of the captions their image \
         ({:.1} % by chance)",
        found.pairs,
        100.0 * image,
        100.0 * text,
        100.0 * chance
    ));
    run.log("retrieval", json!({ "pairs": found.pairs, "image_to_text": image, "text_to_image": text, "chance": chance }))
}
