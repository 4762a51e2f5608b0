//! `clouds masks`

use crate::base::Result;
use crate::cli::common::VerbArgs;
use crate::cli::settings;
use crate::systems::clouds::everything::{self, MasksConfig};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Draw masks of everything in pictures, with Segment Anything or with regions of like colour
#[derive(Debug, Args)]
#[command(
    after_help = "For each picture one PNG with a colour for every mask, small ones on top, and one JSON in the layout of the\n\
                        published automatic mask generator (uncompressed run lengths, as COCO's tools read them). Its settings have\n\
                        their published names and defaults: --set automatic.pred_iou_thresh=0.8 and so on.\n\n\
                        Examples:\n  clouds masks photo.jpg --output masks\n  \
                        clouds masks photos --refiner sam_vit_b_01ec64.pth --set automatic.crop_n_layers=1 --output masks"
)]
pub(super) struct MasksArgs {
    /// Pictures and folders of pictures
    #[arg(value_name = "IMAGE|FOLDER", required = true)]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    common: VerbArgs,
}

#[derive(Debug, Args, Serialize)]
struct Flags {
    /// What draws the masks [default: regions]
    #[arg(long, value_name = "regions|nano|FILE")]
    refiner: Option<String>,
}

/// Runs the verb.
pub(super) fn run(args: MasksArgs) -> Result<()> {
    args.common.compute.apply_f32()?;
    let resolved = settings::resolve::<MasksConfig>("masks", &args.common.run, &args.flags)?;
    let first = args.inputs.first().map_or(String::new(), |path| path.display().to_string());
    let run = super::run_folder(&format!("masks_{}", settings::stem(&first)), &args.common.run)?;
    settings::record(&run, &resolved, &[&resolved.settings.refiner])?;
    let progress = args.common.display.progress();
    let drawn = run.timed("masks", || everything::run(&resolved.settings, &args.inputs, run.path(), &progress))?;
    args.common.display.result(&drawn, || format!("{}", run.path().display()))
}
