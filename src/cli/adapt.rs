//! `datum adapt`

use super::common::{ComputeArgs, DisplayArgs, ResumeArgs, RunArgs};
use super::settings;
use crate::base::{Error, Result};
use crate::systems::datum::adapt;
use crate::systems::datum::config::AdaptConfig;
use clap::Args;
use serde::Serialize;
use serde_json::json;

/// Train a segmenter on labelled source and unlabelled (pseudo-)target images
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum adapt --source gta --target runs/set/images\n  \
                        datum adapt --source camvid=photos/day --target runs/set/images --encoder efficientnet-lite0 \\\n    \
                        --encoder-weights lite0.pth --iterations 1000\n  \
                        datum adapt --source gta --strategy source-only")]
pub struct AdaptArgs {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    resume: ResumeArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    display: DisplayArgs,
}

#[derive(Debug, Args, Serialize)]
struct Flags {
    /// Labelled data set: NAME, NAME=ROOT or a TOML file
    #[arg(long, value_name = "DATASET")]
    source: Option<String>,
    /// Unlabelled images: a folder or a data set
    #[arg(long, value_name = "DATASET|FOLDER")]
    target: Option<String>,
    /// source-only or daformer [default: daformer]
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// mit-b0 … mit-b5, efficientnet-lite0 [default: mit-b5]
    #[arg(long, value_name = "NAME")]
    encoder: Option<String>,
    /// ImageNet weights of the encoder (.pth or .safetensors) [default: random]
    #[arg(long, value_name = "FILE")]
    encoder_weights: Option<String>,
    /// daformer or segformer [default: daformer]
    #[arg(long, value_name = "NAME")]
    decoder: Option<String>,
    /// Optimiser steps [default: 40000]
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
    /// Source images, and as many target images, per step [default: 2]
    #[arg(long, value_name = "B")]
    batch_size: Option<usize>,
    /// Threads that prepare batches [default: 2]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

/// Runs the verb.
pub fn run(args: AdaptArgs) -> Result<()> {
    args.compute.apply()?;
    let resolved = settings::resolve::<AdaptConfig>("adapt", &args.run, &args.flags)?;
    let config = &resolved.settings;
    if config.source.is_empty() {
        return Err(Error::Usage("adapt needs a labelled data set\n  next: add `--source NAME=ROOT`".into()));
    }
    config.validate()?;
    let progress = args.display.progress();
    let resume = args.resume.resume.as_ref();
    let run = settings::run_folder("adapt", &settings::stem(&config.source), &args.run, resume)?;
    let work = || adapt::run(config, &run, resume, &settings::search(), &progress);
    let file = settings::recorded(&run, &resolved, &[&config.encoder_weights], resume, work)?;
    let result = json!({ "segmenter": file, "run": run.path() });
    args.display.result(&result, || format!("{}", file.display()))
}
