//! `datum predict`

use super::common::{self, ComputeArgs, DisplayArgs};
use crate::base::{Error, Result};
use crate::eval::Format;
use crate::systems::datum::evaluate;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

/// Segment photos with a trained segmenter
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum predict --checkpoint runs/adapted photo.jpg --output out\n  \
                        datum predict --checkpoint runs/adapted photos --output out --format train-ids")]
pub struct PredictArgs {
    /// Photos and folders of photos
    #[arg(value_name = "IMAGE|FOLDER", required = true)]
    inputs: Vec<PathBuf>,
    /// Run of `adapt` or `clouds train`, a segmenter file, or a published checkpoint of DAFormer, DATUM or CLOUDS
    #[arg(long, value_name = "RUN|FILE")]
    checkpoint: PathBuf,
    /// Folder for the results
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Share of the class colours over the photo, 0 to 1
    #[arg(long, default_value_t = 0.5, value_name = "X")]
    opacity: f32,
    /// Share of CLIP's own opinion in the class of a mask, 0 to 1 (FC-CLIP has 0.4): for published checkpoints that hold the whole
    /// CLIP, and those trained with `model.ensemble` [default: as trained; published checkpoints: 0]
    #[arg(long, value_name = "SHARE", value_parser = common::share)]
    ensemble: Option<f64>,
    /// Colour overlays, palette images of train ids, or gray images of label ids
    #[arg(long, value_enum, default_value = "color")]
    format: FormatChoice,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    display: DisplayArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatChoice {
    /// Class colours over the photo.
    Color,
    /// Palette PNG of train ids.
    TrainIds,
    /// Gray PNG of label ids.
    LabelIds,
}

/// Runs the verb.
pub fn run(args: PredictArgs) -> Result<()> {
    args.compute.apply()?;
    if !(0.0..=1.0).contains(&args.opacity) {
        return Err(Error::Usage(format!("--opacity {}: expected a value from 0 to 1", args.opacity)));
    }
    let format = match args.format {
        FormatChoice::Color => Format::Color { opacity: args.opacity },
        FormatChoice::TrainIds => Format::TrainIds,
        FormatChoice::LabelIds => Format::LabelIds,
    };
    let progress = args.display.progress();
    let (written, unreadable) =
        evaluate::predict(&args.checkpoint, &args.inputs, &args.output, format, args.ensemble, &progress)?;
    let result = json!({ "written": written, "unreadable": unreadable, "output": args.output.display().to_string() });
    args.display.result(&result, || format!("{}", args.output.display()))
}
