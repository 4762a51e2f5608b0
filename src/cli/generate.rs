//! `datum generate`

use super::common::{RunArgs, VerbArgs};
use super::settings;
use crate::base::{Error, Result};
use crate::systems::datum::config::GenerateConfig;
use crate::systems::datum::generate::{self, Shard};
use crate::train::checkpoint::Resume;
use crate::train::run_dir::RunDir;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Generate the pseudo-target data set from class-wise prompts
#[derive(Debug, Args)]
#[command(after_help = "Images that are there already are kept: run the same command with the same --output to go on.\n\n\
                        Examples:\n  datum generate --prompts things.txt\n  \
                        datum generate --prompts things.txt --count 500 --shard 0/4 --output set\n  \
                        datum generate --prompts things.txt --model runs/small --plan\n  \
                        datum generate --prompts my.txt --model runs/small/model --lora style.safetensors:0.8\n  \
                        datum generate --prompts things.txt --init-images day --init-style target.png --scheduler ddim")]
pub struct GenerateArgs {
    #[command(flatten)]
    flags: Flags,
    /// Say how long it would take, how much memory and disk it needs; write nothing
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    common: VerbArgs,
}

#[derive(Debug, Args, Serialize)]
struct Flags {
    /// Prompts, one a line: a file, a run of `clouds prompts`, or things.txt, things-stuff.txt, scene.txt, street.txt that
    /// ship with the program
    #[arg(long, value_name = "FILE")]
    prompts: Option<String>,
    /// Run of `personalize`, diffusers folder, or hub id [default: the newest personalised run]
    #[arg(long, value_name = "FOLDER|ID|nano")]
    model: Option<String>,
    /// Low-rank update with its scale; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lora: Vec<String>,
    /// Word for the `{identifier}` holes of prompts [default: sks]
    #[arg(long, value_name = "WORD")]
    identifier: Option<String>,
    /// Number of images [default: 2975]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Denoising steps [default: 50]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Weight of the prompt; 1 or less switches the unconditional branch off [default: 7.5]
    #[arg(long, value_name = "X")]
    guidance_scale: Option<f64>,
    /// pndm, ddim, ddpm, euler or dpmpp-2m [default: pndm]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// Width in pixels [default: what the model was trained for]
    #[arg(long, value_name = "W")]
    width: Option<usize>,
    /// Height in pixels [default: what the model was trained for]
    #[arg(long, value_name = "H")]
    height: Option<usize>,
    /// What the images must not show
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Images per forward pass; never changes a result [default: 1]
    #[arg(long, value_name = "B")]
    batch_size: Option<usize>,
    /// Make part I of N (I from 0)
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    /// Tensor `latents` [N, 4, h, w] that replaces the noise
    #[arg(long, value_name = "FILE.safetensors")]
    latents: Option<String>,
    /// Photos whose layout is kept: image j starts from photo j mod n instead of from noise alone
    #[arg(long, value_name = "DIR")]
    init_images: Option<String>,
    /// Share of the way to noise that these photos go; 0 only passes them through the autoencoder [default: 0.6]
    #[arg(long, value_name = "X")]
    strength: Option<f64>,
    /// Photo whose light and colours these photos take over first (FDA), e.g. the one of the target; or `prompt`: of the picture that
    /// the prompt gives from noise alone
    #[arg(long, value_name = "IMAGE|prompt")]
    init_style: Option<String>,
}

/// Runs the verb.
pub fn run(args: GenerateArgs) -> Result<()> {
    run_over(None, args)
}

/// Runs the verb with the settings of a shipped recipe in place of the defaults.
pub fn run_over(base: Option<&str>, args: GenerateArgs) -> Result<()> {
    args.common.compute.apply()?;
    let resolved = settings::resolve_over::<GenerateConfig>(base, "generate", &args.common.run, &args.flags)?;
    let config = &resolved.settings;
    if config.prompts.is_empty() {
        return Err(Error::Usage("generate needs prompts\n  next: add `--prompts things.txt`".into()));
    }
    config.validate()?;
    let progress = args.common.display.progress();
    if args.plan {
        let plan = generate::plan(config, args.common.run.output.as_deref(), &settings::places(), &progress)?;
        return args.common.display.result(&plan, || plan.text());
    }
    let (run, output) = open(config, &args.common.run)?;
    // Settings that are refused do not replace those of the images that are there.
    let resume = generate::is_begun(run.path()).then_some(Resume::Latest);
    let work = || run.timed("generate", || generate::run(config, &run, &output, &settings::places(), &progress));
    let made = settings::recorded(&run, &resolved, &[&config.prompts], resume.as_ref(), &progress, work)?;
    let result = json!({
        "images": made.folder.display().to_string(),
        "made": made.made,
        "kept": made.kept,
        "run": run.path().display().to_string(),
    });
    args.common.display.result(&result, || format!("{}", made.folder.display()))
}

/// The run folder and the folder that holds `images/`. Shards share the latter and have a run folder each.
fn open(config: &GenerateConfig, run: &RunArgs) -> Result<(RunDir, PathBuf)> {
    let open_or_create = |folder: &Path| match folder.join("recipe.toml").is_file() {
        true => RunDir::open(folder),
        false => RunDir::create(Some(folder), Path::new(settings::RUNS), ""),
    };
    match (&run.output, config.shard.as_str()) {
        (None, "") => {
            let run = RunDir::create(None, Path::new(settings::RUNS), &format!("generate_{}", settings::stem(&config.prompts)))?;
            let output = run.path().to_path_buf();
            Ok((run, output))
        }
        (None, _) => Err(Error::Usage("--shard needs --output, so that all parts go to one folder".into())),
        (Some(output), "") => Ok((open_or_create(output)?, output.clone())),
        (Some(output), shard) => {
            let shard: Shard = shard.parse()?;
            Ok((open_or_create(&shard.folder(output))?, output.clone()))
        }
    }
}
