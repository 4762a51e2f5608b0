//! `datum evaluate`

use super::common::{self, ComputeArgs, DisplayArgs};
use super::settings;
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::data::Dataset;
use crate::eval::{self, Evaluation, Inference, SeedScores, Series};
use crate::systems::datum::evaluate::{self, Asked};
use crate::systems::shared::segmenter_file;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Score a segmenter, or a folder of predictions, on a labelled data set
#[derive(Debug, Args)]
#[command(
    after_help = "A run keeps its scores (scores/) and shows them in its report.html; a segmenter file leaves nothing behind.\n\n\
                        Examples:\n  datum evaluate --checkpoint runs/adapted --dataset camvid=photos/dusk\n  \
                        datum evaluate --predictions ids --dataset cityscapes --split val --json\n  \
                        datum evaluate --checkpoint runs/adapted --dataset cityscapes --fail-under 0.5"
)]
pub struct EvaluateArgs {
    /// Run of `adapt` or `clouds train`, a segmenter file, or a published checkpoint of DAFormer, DATUM or CLOUDS; of a run with
    /// `--seeds`, mean and spread are shown
    #[arg(long, value_name = "RUN|FILE", required_unless_present = "predictions", conflicts_with = "predictions")]
    checkpoint: Option<PathBuf>,
    /// Folder of id maps made by any tool
    #[arg(long, value_name = "DIR")]
    predictions: Option<PathBuf>,
    /// Labelled data set: NAME, NAME=ROOT or a TOML file
    #[arg(long, value_name = "DATASET")]
    dataset: String,
    /// Split [default: val where there is one, else all images]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Whole photos or overlapping windows
    #[arg(long, value_enum, default_value = "whole")]
    inference: InferenceChoice,
    /// Side of the windows in pixels
    #[arg(long, default_value_t = 1024, value_name = "PIXELS")]
    window: usize,
    /// Step between windows in pixels
    #[arg(long, default_value_t = 512, value_name = "PIXELS")]
    stride: usize,
    /// Share of CLIP's own opinion in the class of a mask, 0 to 1 (FC-CLIP has 0.4): for published checkpoints that hold the whole
    /// CLIP, and those trained with `model.ensemble` [default: as trained; published checkpoints: 0]
    #[arg(long, value_name = "SHARE", value_parser = common::share, conflicts_with = "predictions")]
    ensemble: Option<f64>,
    /// Exit with code 1 when the mIoU is below this value (0 to 1)
    #[arg(long, value_name = "MIOU")]
    fail_under: Option<f64>,
    /// Write a colour overlay of every photo to this folder
    #[arg(long, value_name = "DIR", conflicts_with = "predictions")]
    overlays: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    display: DisplayArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum InferenceChoice {
    /// The whole photo at once.
    Whole,
    /// Overlapping windows, averaged.
    Slide,
}

/// Runs the verb.
pub fn run(args: EvaluateArgs) -> Result<()> {
    args.compute.apply()?;
    if args.fail_under.is_some_and(|least| !(0.0..=1.0).contains(&least)) {
        return Err(Error::Usage("--fail-under: expected a mIoU from 0 to 1, e.g. 0.5 for 50 %".into()));
    }
    let progress = args.display.progress();
    let dataset = Dataset::open(&args.dataset, &settings::search())?;
    let split = args.split.as_deref().or_else(|| dataset.first_split(&["val"]));
    let ascii = std::env::var_os("NO_COLOR").is_some();
    let miou = match args.checkpoint.as_deref().map(segmenter_file::seeds).unwrap_or_default() {
        seeds if seeds.is_empty() => {
            let checkpoint = args.checkpoint.as_deref().unwrap_or(Path::new(""));
            let scores = evaluation(&args, checkpoint, args.overlays.as_deref(), &dataset, split, &progress)?.scores;
            args.display.result(&scores, || eval::table(&scores, ascii))?;
            scores.miou
        }
        seeds => {
            let series = series(&args, &seeds, &dataset, split, &progress)?;
            args.display.result(&series, || eval::series_table(&series, ascii))?;
            series.mean.miou
        }
    }
    .unwrap_or(0.0);
    if let Some(run) = args.checkpoint.as_deref().filter(|checkpoint| evaluate::is_run(checkpoint)) {
        settings::refresh_report(run, &progress);
    }
    match args.fail_under {
        Some(least) if miou < least => Err(Error::Gate(format!("mIoU {miou:.4} is below --fail-under {least}"))),
        _ => Ok(()),
    }
}

/// The scores of every seed of a run.
fn series(
    args: &EvaluateArgs,
    seeds: &[(u64, PathBuf)],
    dataset: &Dataset,
    split: Option<&str>,
    progress: &dyn Progress,
) -> Result<Series> {
    let of_seed = |(seed, folder): &(u64, PathBuf)| {
        let overlays = args.overlays.as_ref().map(|overlays| overlays.join(format!("seed-{seed}")));
        let scores = evaluation(args, folder, overlays.as_deref(), dataset, split, progress)?.scores;
        Ok(SeedScores { seed: *seed, scores })
    };
    let runs = seeds.iter().map(of_seed).collect::<Result<Vec<_>>>()?;
    Series::new(runs).ok_or_else(|| Error::Usage("no seed to evaluate".into()))
}

fn evaluation(
    args: &EvaluateArgs,
    checkpoint: &Path,
    overlays: Option<&Path>,
    dataset: &Dataset,
    split: Option<&str>,
    progress: &dyn Progress,
) -> Result<Evaluation> {
    if let Some(folder) = &args.predictions {
        return eval::score_predictions(dataset, split, folder, progress);
    }
    let inference = match args.inference {
        InferenceChoice::Whole => Inference::Whole,
        InferenceChoice::Slide if args.window == 0 || args.stride == 0 => {
            return Err(Error::Usage("--window and --stride must be greater than 0".into()));
        }
        InferenceChoice::Slide => Inference::Slide { window: (args.window, args.window), stride: (args.stride, args.stride) },
    };
    evaluate::checkpoint(checkpoint, dataset, split, Asked { inference, ensemble: args.ensemble }, overlays, progress)
}
