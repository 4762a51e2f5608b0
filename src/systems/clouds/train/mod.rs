//! `clouds train`: Mask2Former's head on CLIP, first on labelled source images (`warmup`), then on generated images too, which a
//! slow average of the head labels and a proposer of masks cleans (`joint`).
//!
//! Read [`config`] first (every value, and where paper and published code differ), then [`training`](self) for the step.

mod batches;
mod color_jitter;
pub mod config;
mod generated;
mod sampler;
mod samples;
mod teacher;
mod training;

pub use color_jitter::ColorJitter;
pub use sampler::{Pick, Sampler};
pub use samples::{GeneratedViews, SourceTransform, crop_offsets, generated_views, nearest, scaled_size};
pub use training::{Cost, groups};

use super::refine::MaskProposer;
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::data::{Dataset, Search};
use crate::report::tensorboard;
use crate::systems::shared::published;
use crate::systems::shared::segmenter_file::{self, Header, Model, Segmenter};
use crate::systems::shared::validation::{Validation, Wanted};
use crate::train::checkpoint::Resume;
use crate::train::run_dir::RunDir;
use crate::train::stage::{self, Stage};
use batches::Batches;
use config::{Part, TrainConfig};
use std::path::{Path, PathBuf};
use training::CloudsTraining;

/// Generated images whose paths the log of a run keeps.
const LOGGED_IMAGES: usize = 24;

/// Settings that a run may change when it goes on.
const FREE: [&str; 7] =
    ["workers", "checkpointing_steps", "short_side", "validation", "validation_split", "validation_steps", "validation_images"];

/// Trains and returns the segmenter's file, `segmenter.safetensors` in the run.
///
/// # Errors
/// Unusable data sets or weights; interruption.
pub fn run(
    config: &TrainConfig,
    run: &RunDir,
    resume: Option<&Resume>,
    search: &Search,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let refiner = match config.stage {
        Part::Warmup => None,
        Part::Joint => config.proposer().open()?,
    };
    run_with(config, refiner, run, resume, search, progress)
}

/// [`run`] with a proposer of masks of one's own for the stage `joint`.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    config: &TrainConfig,
    refiner: Option<Box<dyn MaskProposer>>,
    run: &RunDir,
    resume: Option<&Resume>,
    search: &Search,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    config.validate()?;
    let source = Dataset::open(&config.source, search)?;
    if !source.has_labels() {
        return Err(Error::Usage(format!("the source `{}` has no labels; give a labelled data set as --source", config.source)));
    }
    let names = training::class_names(config, &source.classes)?;
    let network = config.network(source.classes.len(), names.as_ref())?;
    let model = Model::Mask2Former { mask2former: Box::new(published::as_file(&network)) };
    let header = Header { short_side: config.short_side, ..Header::new(model, &source.classes) };
    let batches = Batches::new(config, &source, progress)?;
    if config.stage == Part::Joint {
        progress.say(&match &refiner {
            Some(refiner) => format!("pseudo-labels are refined with {}", refiner.name()),
            None => "pseudo-labels are not refined (`--refiner none`); CLOUDS refines them with SAM".into(),
        });
    }
    run.log("data", used(&source, &batches))?;
    let mut identity = stage::identity(config, &FREE)?;
    identity.insert("pictures".into(), batches.pictures());
    let mut training = CloudsTraining::new(config, &network, names, batches, refiner)?;
    let wanted = Wanted {
        dataset: &config.validation,
        split: &config.validation_split,
        steps: config.validation_steps,
        images: config.validation_images,
    };
    training.validation = Validation::new(wanted, &header, search)?;
    let stage = Stage {
        run,
        name: match config.stage {
            Part::Warmup => "warmup",
            Part::Joint => "joint",
        },
        folder: "",
        steps: config.steps(),
        checkpointing_steps: config.checkpointing_steps,
        keep: 1,
        identity,
        resume,
        progress,
        sinks: &tensorboard::sinks(run.path().into()),
    };
    stage.train(&mut training)?;
    if config.stage == Part::Joint {
        say_cost(training.cost, run, progress)?;
    }
    let file = run.path().join(segmenter_file::FILE);
    Segmenter::save(&file, &header, &training.parameters)?;
    progress.say(&format!("segmenter: {}", file.display()));
    Ok(file)
}

/// Says where the time of a joint training went, and logs it.
fn say_cost(cost: Cost, run: &RunDir, progress: &dyn Progress) -> Result<()> {
    let share = |seconds: f64| format!("{seconds:.1} s ({:.0} %)", 100.0 * seconds / cost.steps.max(1e-9));
    progress.say(&format!(
        "of {:.1} s in steps, the teacher took {}, the refinement {}",
        cost.steps,
        share(cost.teacher),
        share(cost.refinement)
    ));
    let facts = serde_json::json!({ "steps_s": cost.steps, "teacher_s": cost.teacher, "refinement_s": cost.refinement });
    run.log("cost", facts)
}

/// Folder of the source and a few generated images, for the report.
fn used(source: &Dataset, batches: &Batches) -> serde_json::Value {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into()).display().to_string();
    let images: Vec<String> = batches.some_generated(LOGGED_IMAGES).iter().map(|path| absolute(path)).collect();
    serde_json::json!({ "source": absolute(&source.root), "target_images": images })
}
