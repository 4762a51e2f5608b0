//! `clouds pretrain`

use crate::base::Result;
use crate::cli::common::{ResumeArgs, VerbArgs};
use crate::cli::settings;
use crate::systems::clouds::pretrain::{self, config::ClipPretrainConfig};
use clap::Args;
use serde::Serialize;
use serde_json::json;

/// The verb's table in recipes, and the name of its runs; `pretrain` is that of `datum`.
const VERB: &str = "pretrain-clip";

/// Train a small CLIP of your own from images with captions
#[derive(Debug, Args)]
#[command(
    after_help = "A ConvNeXt and a text tower learn that an image and its caption belong together. The result, `clip/` in the run, has\n\
                        the layout of open_clip; its image tower can be the backbone of `clouds train`, its sizes must be those of the\n\
                        recipe. Some images are held out: how often they find their caption among 32 is shown.\n\n\
                        Examples:\n  clouds pretrain --images photos --captions captions.jsonl\n  \
                        clouds pretrain --recipe clouds-nano-clip --images streets/images --captions streets/captions.jsonl --output clip\n  \
                        clouds train --recipe clouds-nano --source street=streets --backbone-weights clip/clip/open_clip_model.safetensors \
                        --set model.freeze_backbone=true"
)]
pub(super) struct PretrainArgs {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    resume: ResumeArgs,
    #[command(flatten)]
    common: VerbArgs,
}

#[derive(Debug, Args, Serialize)]
struct Flags {
    /// Folder of photos
    #[arg(long, value_name = "DIR")]
    images: Option<String>,
    /// Captions, one JSON object a line: {"file_name": "a.jpg", "text": ["a photo of cars", "a street by day"]}
    #[arg(long, value_name = "FILE")]
    captions: Option<String>,
    /// What training begins with: scratch, nano, or a folder or file of an earlier run [default: scratch]
    #[arg(long, value_name = "scratch|nano|PATH")]
    base: Option<String>,
    /// Optimiser steps [default: 3000]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Pairs of a step [default: 32]
    #[arg(long, value_name = "B")]
    batch_size: Option<usize>,
    /// Threads that prepare batches [default: 1]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

/// Runs the verb.
pub(super) fn run(args: PretrainArgs) -> Result<()> {
    args.common.compute.apply_f32()?;
    let resume = args.resume.resume.as_ref();
    let resolved = settings::resolve::<ClipPretrainConfig>(VERB, &args.common.run, &args.flags)?;
    let config = &resolved.settings;
    config.validate()?;
    let progress = args.common.display.progress();
    let run = settings::run_folder(VERB, &settings::stem(&config.images), &args.common.run, resume)?;
    let work = || pretrain::run(config, &run, resume, &progress);
    let file = settings::recorded(&run, &resolved, &[&config.captions], resume, &progress, work)?;
    let result = json!({ "weights": file.display().to_string(), "run": run.path().display().to_string() });
    args.common.display.result(&result, || format!("{}", file.display()))
}
