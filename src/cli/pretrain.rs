//! `datum pretrain`

use super::common::{ResumeArgs, VerbArgs};
use super::settings;
use crate::base::{Error, Result};
use crate::systems::datum::pretrain::{self, config::PretrainConfig};
use clap::Args;
use serde::Serialize;
use serde_json::json;

/// Train a small Stable Diffusion of your own from photos
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum pretrain --images photos\n  \
                        datum pretrain --images photos --captions captions.jsonl --set unet.steps=2000 --output runs/small")]
pub struct PretrainArgs {
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
    /// Captions, one JSON object a line: {"file_name": "a.jpg", "text": "a photo of cars"}
    #[arg(long, value_name = "FILE")]
    captions: Option<String>,
    /// Label maps of the photos, from which the U-Net learns more about things
    #[arg(long, value_name = "DIR")]
    labels: Option<String>,
    /// Caption of photos without one of their own
    #[arg(long, value_name = "TEXT")]
    template: Option<String>,
    /// `scratch`, or a model to go on from: `nano`, a diffusers folder or a hub id
    #[arg(long, value_name = "scratch|nano|FOLDER")]
    base: Option<String>,
}

/// Runs the verb.
pub fn run(args: PretrainArgs) -> Result<()> {
    args.common.compute.join()?;
    let resolved = settings::resolve::<PretrainConfig>("pretrain", &args.common.run, &args.flags)?;
    let config = &resolved.settings;
    if config.images.is_empty() {
        return Err(Error::Usage("pretrain needs photos\n  next: add `--images FOLDER`".into()));
    }
    config.validate()?;
    let progress = args.common.display.progress();
    let resume = args.resume.resume.as_ref();
    let run = settings::run_folder("pretrain", &settings::stem(&config.images), &args.common.run, resume)?;
    let work = || pretrain::run(config, &run, resume, &settings::places(), &progress);
    let folder = settings::recorded(&run, &resolved, &[&config.captions], resume, &progress, work)?;
    let result = json!({ "model": folder.display().to_string(), "run": run.path().display().to_string() });
    args.common.display.result(&result, || format!("{}", folder.display()))
}
