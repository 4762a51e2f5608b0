//! `datum adapt`

use super::common::{ResumeArgs, RunArgs, VerbArgs};
use super::recipe::Resolved;
use super::settings;
use crate::base::{Error, Result};
use crate::systems::datum::adapt;
use crate::systems::datum::config::AdaptConfig;
use crate::systems::shared::segmenter_file;
use crate::train::checkpoint::Resume;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Train a segmenter on labelled source and unlabelled (pseudo-)target images
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum adapt --source gta --target runs/set/images\n  \
                        datum adapt --source camvid=photos/day --target runs/set/images --encoder efficientnet-lite0 \\\n    \
                        --encoder-weights lite0.pth --iterations 1000\n  \
                        datum adapt --source gta --target runs/set/images --plan\n  \
                        datum adapt --source gta --strategy source-only\n  \
                        datum adapt --source gta --target runs/set/images --seeds 0,1,2\n  \
                        datum adapt --source gta --target runs/set/images --init runs/source-only")]
pub struct AdaptArgs {
    #[command(flatten)]
    flags: Flags,
    /// Say how long the training would take, how much memory and disk it needs; write nothing
    #[arg(long, conflicts_with = "resume")]
    plan: bool,
    /// One training per seed, each in its folder seed-N of the run
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', conflicts_with = "seed")]
    seeds: Vec<u64>,
    #[command(flatten)]
    resume: ResumeArgs,
    #[command(flatten)]
    common: VerbArgs,
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
    /// Segmenter to start from, a run of `adapt` or its file [default: encoder weights and a random head]
    #[arg(long, value_name = "RUN|FILE")]
    init: Option<String>,
    /// daformer or segformer [default: daformer]
    #[arg(long, value_name = "NAME")]
    decoder: Option<String>,
    /// Optimiser steps [default: 40000]
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
    /// Source images, and as many target images, per step [default: 2]
    #[arg(long, value_name = "B")]
    batch_size: Option<usize>,
    /// Labelled data set to score on the way, for the curve in the report; never chooses the weights
    #[arg(long, value_name = "DATASET")]
    validation: Option<String>,
    /// Steps between such scores [default: 500]
    #[arg(long, value_name = "N")]
    validation_steps: Option<u64>,
    /// Threads that prepare batches [default: 2]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

/// Runs the verb.
pub fn run(args: AdaptArgs) -> Result<()> {
    args.common.compute.join()?;
    if args.plan {
        let resolved = resolved(&args, &args.common.run)?;
        let plan = adapt::plan(&resolved.settings, &settings::search(), &args.common.display.progress())?;
        return args.common.display.result(&plan, || plan.text());
    }
    let resume = args.resume.resume.as_ref();
    if args.seeds.is_empty() {
        let (run, file) = train(&args, &args.common.run, resume)?;
        let result = json!({ "segmenter": file.display().to_string(), "run": run.display().to_string() });
        return args.common.display.result(&result, || format!("{}", file.display()));
    }
    let (run, files) = train_seeds(&args, resume)?;
    let of_seed = |(seed, file): (&u64, &PathBuf)| json!({ "seed": seed, "segmenter": file.display().to_string() });
    let trained: Vec<Value> = args.seeds.iter().zip(&files).map(of_seed).collect();
    let lines = || files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join("\n");
    args.common.display.result(&json!({ "run": run.display().to_string(), "seeds": trained }), lines)
}

fn resolved(args: &AdaptArgs, run: &RunArgs) -> Result<Resolved<AdaptConfig>> {
    let resolved = settings::resolve::<AdaptConfig>("adapt", run, &args.flags)?;
    if resolved.settings.source.is_empty() {
        return Err(Error::Usage("adapt needs a labelled data set\n  next: add `--source NAME=ROOT`".into()));
    }
    resolved.settings.validate()?;
    Ok(resolved)
}

/// One training. Returns its folder and the segmenter's file.
fn train(args: &AdaptArgs, run: &RunArgs, resume: Option<&Resume>) -> Result<(PathBuf, PathBuf)> {
    let resolved = resolved(args, run)?;
    let config = &resolved.settings;
    let progress = args.common.display.progress();
    let run = settings::run_folder("adapt", &settings::stem(&config.source), run, resume)?;
    let work = || adapt::run(config, &run, resume, &settings::search(), &progress);
    let init = segmenter_file::locate(Path::new(&config.init)).display().to_string();
    let file = settings::recorded(&run, &resolved, &[&config.encoder_weights, &init], resume, &progress, work)?;
    Ok((run.path().into(), file))
}

/// One training after the other. A resumed run goes on with the first that is not finished.
fn train_seeds(args: &AdaptArgs, resume: Option<&Resume>) -> Result<(PathBuf, Vec<PathBuf>)> {
    if let Some(Resume::Path(path)) = resume {
        return Err(Error::Usage(format!(
            "`--seeds` goes on with a whole run, not with one checkpoint ({})\n  next: `--output RUN --resume latest`",
            path.display()
        )));
    }
    let resolved = resolved(args, &args.common.run)?;
    let label = settings::stem(&resolved.settings.source);
    let parent = settings::run_folder("adapt", &label, &args.common.run, resume)?;
    let folder = |seed: &u64| parent.path().join(format!("seed-{seed}"));
    if resume.is_some() && !args.seeds.iter().any(|seed| folder(seed).is_dir()) {
        let next = "name the run with `--output`, or start without `--resume`";
        return Err(Error::data(parent.path(), "a run of `adapt --seeds`", "a run without these seeds", next));
    }
    let of_seed = |&seed: &u64| {
        let output = folder(&seed);
        let started = resume.is_some() && output.join("recipe.toml").is_file();
        let run = RunArgs { seed: Some(seed), output: Some(output), ..args.common.run.clone() };
        Ok(train(args, &run, resume.filter(|_| started))?.1)
    };
    parent.log("seeds", json!({ "seeds": args.seeds }))?;
    let progress = args.common.display.progress();
    let work = || args.seeds.iter().map(of_seed).collect::<Result<Vec<_>>>();
    let files = settings::recorded(&parent, &resolved, &[], resume, &progress, work)?;
    Ok((parent.path().into(), files))
}
