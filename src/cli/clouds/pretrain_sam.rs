//! `clouds pretrain-sam`

use crate::base::Result;
use crate::cli::common::{ResumeArgs, VerbArgs};
use crate::cli::settings;
use crate::systems::clouds::pretrain_sam::{self, config::SamPretrainConfig};
use clap::Args;
use serde::Serialize;
use serde_json::json;

/// The verb's table in recipes, and the name of its runs.
const VERB: &str = "pretrain-sam";

/// Train a small Segment Anything of your own from photos with label maps
#[derive(Debug, Args)]
#[command(
    after_help = "It learns to outline connected pieces of a class, whatever the class, from points on them, some of which miss. The result,\n\
                        `sam.safetensors` in the run, has the layout of the published checkpoints, for `--refiner`.\n\n\
                        Examples:\n  clouds pretrain-sam --images streets/images --labels streets/labels\n  \
                        clouds pretrain-sam --recipe clouds-nano-sam --images streets/images --labels streets/labels --output sam\n  \
                        clouds refine --images photos --labels out --refiner sam/sam.safetensors --min-area 60"
)]
pub(super) struct PretrainSamArgs {
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
    /// Folder of label maps, PNGs of train ids named and sized as the photos
    #[arg(long, value_name = "DIR")]
    labels: Option<String>,
    /// What training begins with: scratch, or a file of an earlier run [default: scratch]
    #[arg(long, value_name = "scratch|FILE")]
    base: Option<String>,
    /// Optimiser steps [default: 3000]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Photos of a step [default: 8]
    #[arg(long, value_name = "B")]
    batch_size: Option<usize>,
}

/// Runs the verb.
pub(super) fn run(args: PretrainSamArgs) -> Result<()> {
    args.common.compute.apply_f32()?;
    let resume = args.resume.resume.as_ref();
    let resolved = settings::resolve::<SamPretrainConfig>(VERB, &args.common.run, &args.flags)?;
    let config = &resolved.settings;
    config.validate()?;
    let progress = args.common.display.progress();
    let run = settings::run_folder(VERB, &settings::stem(&config.images), &args.common.run, resume)?;
    let work = || pretrain_sam::run(config, &run, resume, &progress);
    let file = settings::recorded(&run, &resolved, &[], resume, &progress, work)?;
    let result = json!({ "weights": file.display().to_string(), "run": run.path().display().to_string() });
    args.common.display.result(&result, || format!("{}", file.display()))
}
