//! `datum evaluate`

use super::common::{ComputeArgs, DisplayArgs};
use super::settings;
use crate::base::{Error, Result};
use crate::data::Dataset;
use crate::eval::{self, Evaluation, Inference};
use crate::systems::datum::evaluate;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Score a segmenter, or a folder of predictions, on a labelled data set
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum evaluate --checkpoint runs/adapted --dataset camvid=photos/dusk\n  \
                        datum evaluate --predictions ids --dataset cityscapes --split val --json\n  \
                        datum evaluate --checkpoint runs/adapted --dataset cityscapes --fail-under 0.5")]
pub struct EvaluateArgs {
    /// Run of `adapt`, or a segmenter file
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
    let evaluation = evaluation(&args, &dataset, split, &progress)?;
    let ascii = std::env::var_os("NO_COLOR").is_some();
    args.display.result(&evaluation.scores, || eval::table(&evaluation.scores, ascii))?;
    let miou = evaluation.scores.miou.unwrap_or(0.0);
    match args.fail_under {
        Some(least) if miou < least => Err(Error::Gate(format!("mIoU {miou:.4} is below --fail-under {least}"))),
        _ => Ok(()),
    }
}

fn evaluation(
    args: &EvaluateArgs,
    dataset: &Dataset,
    split: Option<&str>,
    progress: &dyn crate::base::progress::Progress,
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
    let checkpoint = args.checkpoint.as_deref().unwrap_or(std::path::Path::new(""));
    evaluate::checkpoint(checkpoint, dataset, split, inference, args.overlays.as_deref(), progress)
}
