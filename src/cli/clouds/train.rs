//! `clouds train`

use crate::base::Result;
use crate::cli::common::{ResumeArgs, VerbArgs};
use crate::cli::settings;
use crate::data::Dataset;
use crate::systems::clouds::nano;
use crate::systems::clouds::train::{self, config::TrainConfig};
use crate::systems::shared::segmenter_file;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::Path;

/// Recipe below all others: what the command does without any.
const RECIPE: &str = "clouds-gta";

/// Train a segmenter on labelled images (warmup), then also on generated ones that a slow teacher labels (joint)
#[derive(Debug, Args)]
#[command(
    after_help = "Two runs, as CLOUDS: `warmup` trains the head on the source, with a frozen CLIP as the backbone; `joint` goes on from it\n\
                        with generated images, whose labels come from a slow average of the head and are cleaned by a refiner.\n\
                        Settings that are not given are those of recipe clouds-gta; others: clouds-synthia, clouds-cityscapes,\n\
                        clouds-nano (small; for street scenes of 256x128). Its backbone is trained, too; with `--backbone-weights nano` it is the\n\
                        small CLIP inside the program, and stays as it is.\n\n\
                        Examples:\n  clouds train --source gta --backbone-weights open_clip_pytorch_model.bin --output warm\n  \
                        clouds train --stage joint --source gta --generated runs/set --init warm --refiner mobile_sam.pt\n  \
                        clouds train --recipe clouds-synthia --set model.backbone=rn50 --backbone-weights rn50.safetensors\n  \
                        clouds train --recipe clouds-nano --source street=streets --backbone-weights nano --output warm\n  \
                        clouds train --recipe clouds-nano --stage joint --source street=streets --generated dusk --init warm"
)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    resume: ResumeArgs,
    #[command(flatten)]
    common: VerbArgs,
}

#[derive(Debug, Args, Serialize)]
struct Flags {
    /// warmup or joint [default: warmup]
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Labelled data set: NAME, NAME=ROOT or a TOML file [default: gta]
    #[arg(long, value_name = "DATASET")]
    source: Option<String>,
    /// Generated images without labels: a folder, or a run of `clouds generate`
    #[arg(long, value_name = "FOLDER")]
    generated: Option<String>,
    /// The photos they were painted from (as in `generate`): the teacher labels these instead, which it knows better
    #[arg(long, value_name = "FOLDER")]
    init_images: Option<String>,
    /// Segmenter to start from: a run of `train`, its file, or a published checkpoint
    #[arg(long, value_name = "RUN|FILE")]
    init: Option<String>,
    /// CLIP weights of the backbone: a file of open_clip (.bin, .pth or .safetensors), or nano, which is not trained further
    #[arg(long, value_name = "FILE|nano")]
    backbone_weights: Option<String>,
    /// What cleans pseudo-labels: none, regions, nano, or a file of SAM or MobileSAM [default: regions]
    #[arg(long, value_name = "none|regions|nano|FILE")]
    refiner: Option<String>,
    /// Optimiser steps [default: 40000]
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
    /// Images of a step, of both kinds together [default: 8]
    #[arg(long, value_name = "B")]
    batch_size: Option<usize>,
    /// Labelled data set to score on the way, for the curve in the report; never chooses the weights
    #[arg(long, value_name = "DATASET")]
    validation: Option<String>,
    /// Steps between such scores [default: 4000]
    #[arg(long, value_name = "N")]
    validation_steps: Option<u64>,
    /// Threads that prepare batches [default: 4]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

/// Runs the verb.
pub(super) fn run(mut args: TrainArgs) -> Result<()> {
    args.common.compute.apply()?;
    if args.flags.backbone_weights.as_deref() == Some(nano::NAME) {
        // First, so that a `--set` of the user's own comes after it.
        args.common.run.set.insert(0, "model.freeze_backbone=true".into());
    }
    let resume = args.resume.resume.as_ref();
    let resolved = settings::resolve_over::<TrainConfig>(Some(RECIPE), "train", &args.common.run, &args.flags)?;
    let config = &resolved.settings;
    // Data that is not there is said before all else.
    if !config.source.is_empty() {
        Dataset::open(&config.source, &settings::search())?;
    }
    config.validate()?;
    let progress = args.common.display.progress();
    let run = settings::run_folder("train", &settings::stem(&config.source), &args.common.run, resume)?;
    let work = || train::run(config, &run, resume, &settings::search(), &progress);
    let init = segmenter_file::locate(Path::new(&config.init)).display().to_string();
    let inputs = [config.backbone_weights.as_str(), &init, &config.refiner];
    let file = settings::recorded(&run, &resolved, &inputs, resume, &progress, work)?;
    let result = json!({ "segmenter": file.display().to_string(), "run": run.path().display().to_string() });
    args.common.display.result(&result, || format!("{}", file.display()))
}
