//! `datum dataset prepare`

use super::Chosen;
use crate::base::Result;
use crate::cli::common::DisplayArgs;
use crate::cli::settings;
use crate::data::{Dataset, prepare};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Write a data set as plain folders: images, train-id labels, lists, and a TOML
#[derive(Debug, Args)]
#[command(
    after_help = "For other tools (mmsegmentation, FiftyOne, CVAT): images/NAME beside labels/NAME.png, whose values are train\n\
                        ids, 255 where nothing counts, and splits/SPLIT.txt with one NAME a line; sample_class_stats.json and its two\n\
                        companions for DAFormer's sampling of rare classes (of split train where there is one). Images are linked\n\
                        where the disk allows it, else copied. Files that are there already are kept, but labels whose source or ids have\n\
                        changed are made anew: run the same command again to go on.\n\n\
                        Examples:\n  datum dataset prepare synthia --output synthia-train-ids\n  \
                        datum dataset prepare cityscapes --split val --output val"
)]
pub struct PrepareArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Folder to write to
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    display: DisplayArgs,
}

/// Runs the verb.
pub fn run(args: PrepareArgs) -> Result<()> {
    let dataset = Dataset::open(&args.chosen.dataset, &settings::search())?;
    let prepared = prepare(&dataset, args.chosen.split.as_deref(), &args.output, &args.display.progress())?;
    let result =
        json!({ "dataset": prepared.descriptor.display().to_string(), "images": prepared.images, "made": prepared.made });
    args.display.result(&result, || format!("{}", prepared.descriptor.display()))
}
