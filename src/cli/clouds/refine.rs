//! `clouds refine`

use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::cli::common::VerbArgs;
use crate::cli::settings;
use crate::data::Dataset;
use crate::report::terminal;
use crate::systems::clouds::refine_folder::{self, RefineFolderConfig, Refined};
use clap::Args;
use serde::Serialize;
use std::ops::Not;
use std::time::Duration;

/// Clean the outlines of pseudo-labels with Segment Anything, or with regions of like colour
#[derive(Debug, Args)]
#[command(after_help = "Refiners:\n  regions   regions of like colour, found without any weights\n  \
                        nano      the small Segment Anything inside the program, which knows drawn streets\n  \
                        FILE      weights of SAM (sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth) or MobileSAM\n            \
                        (mobile_sam.pt)\n  none      labels stay as they are\n\n\
                        Labels are PNGs of train ids named like the pictures, as `predict --format train-ids` writes them. Refined ones\n\
                        go to labels/ of the run; pixels of no mask become 255. Labels that are there already are kept: run the same\n\
                        command with the same --output to go on.\n\n\
                        Examples:\n  clouds refine --images photos --labels out --output refined\n  \
                        clouds refine --images runs/generated --labels out --refiner mobile_sam.pt --second-pass\n  \
                        clouds refine --images photos --labels out --classes my.toml --min-area 500 --keep-unassigned")]
pub(super) struct RefineArgs {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    common: VerbArgs,
}

#[derive(Debug, Args, Serialize)]
struct Flags {
    /// Folder of the pictures, or a run of `clouds generate`
    #[arg(long, value_name = "DIR")]
    images: Option<String>,
    /// Folder of their pseudo-labels
    #[arg(long, value_name = "DIR")]
    labels: Option<String>,
    /// Data set, by name or TOML file, whose classes the labels hold [default: cityscapes]
    #[arg(long, value_name = "DATASET")]
    classes: Option<String>,
    /// What draws the outlines [default: regions]
    #[arg(long, value_name = "regions|nano|FILE|none")]
    refiner: Option<String>,
    /// Regions must have more pixels than this [default: 5000]
    #[arg(long, value_name = "N")]
    min_area: Option<usize>,
    /// Points on each region [default: 5]
    #[arg(long, value_name = "N")]
    points: Option<usize>,
    /// Side of the square that regions are eroded with before points are drawn; 0: they are not [default: 0]
    #[arg(long, value_name = "N")]
    erosion: Option<usize>,
    /// Ask SAM again, with its first answers as prompts
    #[arg(long)]
    #[serde(skip_serializing_if = "Not::not")]
    second_pass: bool,
    /// Pixels of no mask stay as they were instead of becoming 255
    #[arg(long)]
    #[serde(skip_serializing_if = "Not::not")]
    keep_unassigned: bool,
}

/// Runs the verb.
pub(super) fn run(args: RefineArgs) -> Result<()> {
    args.common.compute.apply_f32()?;
    let resolved = settings::resolve::<RefineFolderConfig>("refine", &args.common.run, &args.flags)?;
    let config = &resolved.settings;
    config.validate()?;
    let classes = Dataset::class_table(&config.classes, &settings::search())?;
    let progress = args.common.display.progress();
    let run = super::run_folder(&format!("refine_{}", settings::stem(&config.labels)), &args.common.run)?;
    settings::record(&run, &resolved, &[&config.refiner])?;
    let refined = run.timed("refine", || refine_folder::run(config, &classes, &run, &progress))?;
    if refined.made + refined.kept == 0 {
        return Err(Error::data(&config.images, "readable pictures", "none", "replace them"));
    }
    // What is not UTF-8 in a path is no JSON.
    let refined = Refined { labels: refined.labels.display().to_string().into(), ..refined };
    args.common.display.result(&refined, || {
        progress.say(&summary(&refined));
        format!("{}", refined.labels.display())
    })
}

fn summary(refined: &Refined) -> String {
    let percent = |share: f64| format!("{} % of all pixels", terminal::percent(Some(share)));
    let dropped: Vec<String> = refined.dropped.iter().map(|(class, pictures)| format!("{class} ({pictures})")).collect();
    let mut facts = vec![
        ("refiner", refined.refiner.clone()),
        ("pictures", format!("{} refined now, {} there already", refined.made, refined.kept)),
        ("another class", percent(refined.changed)),
        ("no class any more", percent(refined.unassigned)),
    ];
    if refined.without_regions > 0 {
        facts.push(("left as they are", format!("{} without a region that is large enough", refined.without_regions)));
    }
    if !dropped.is_empty() {
        facts.push(("classes gone", format!("{} (number of pictures)", dropped.join(", "))));
    }
    if refined.made > 0 {
        facts.push(("time per picture", terminal::duration(Duration::from_secs_f64(refined.seconds_per_picture))));
    }
    terminal::facts(&facts)
}
