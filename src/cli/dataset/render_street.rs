//! `datum dataset render-street`

use crate::base::Result;
use crate::cli::common::{DisplayArgs, RunArgs, set_threads};
use crate::cli::settings;
use crate::data::StreetSet;
use crate::train::run_dir::RunDir;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::Path;

/// Render street scenes with exact labels and captions
#[derive(Debug, Args)]
#[command(
    after_help = "Scenes that are there already are kept: run the same command with the same --output to go on, or with a\n\
                        larger --count to add some. Scene number i of a seed is the same street in every look.\n\n\
                        Examples:\n  datum dataset render-street --count 500 --size 512x256 --look day --output street\n  \
                        datum dataset render-street --count 600 --look day,dusk,night --seed 1 --output mixed\n  \
                        datum adapt --source street=street --target photos\n  \
                        datum pretrain --images street/images --captions street/captions.jsonl"
)]
pub struct RenderStreetArgs {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    run: RunArgs,
    /// Number of threads; never changes a picture [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Computing")]
    threads: Option<u16>,
    #[command(flatten)]
    display: DisplayArgs,
}

#[derive(Debug, Args, Serialize)]
struct Flags {
    /// Number of scenes [default: 500]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Width and height in one
    #[arg(long, value_name = "WxH", conflicts_with_all = ["width", "height"], value_parser = size)]
    #[serde(skip)]
    size: Option<(usize, usize)>,
    /// Width in pixels, 16 to 4096 [default: 512]
    #[arg(long, value_name = "W")]
    width: Option<usize>,
    /// Height in pixels, 16 to 4096 [default: 256]
    #[arg(long, value_name = "H")]
    height: Option<usize>,
    /// day, dusk, night, fog, rain or snow; several (repeated, or with commas) take turns [default: day]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    look: Vec<String>,
    /// Share of quiet scenes about one kind of thing, near the camera, for teaching text-to-image models, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE")]
    focus: Option<f64>,
    /// Share of those in which one thing fills much of the picture, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE")]
    close_up: Option<f64>,
    /// Kinds of things the scenes of --focus are about, e.g. person or "traffic light"; several (repeated, or with commas), each as
    /// often as it is named [default: all ten]
    #[arg(long, value_name = "THING", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    about: Vec<String>,
}

/// Reads `512x256`: width, then height.
fn size(text: &str) -> std::result::Result<(usize, usize), String> {
    let sides = text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.ok_or_else(|| "expected WIDTHxHEIGHT, e.g. 512x256".into())
}

/// Runs the verb.
pub fn run(mut args: RenderStreetArgs) -> Result<()> {
    if let Some((width, height)) = args.flags.size {
        (args.flags.width, args.flags.height) = (Some(width), Some(height));
    }
    if let Some(threads) = args.threads {
        set_threads(usize::from(threads))?;
    }
    let resolved = settings::resolve::<StreetSet>("render-street", &args.run, &args.flags)?;
    let set = &resolved.settings;
    // Nothing is made for settings that cannot work.
    set.check(args.run.output.as_deref())?;
    let progress = args.display.progress();
    let run = match &args.run.output {
        Some(output) if StreetSet::is_begun(output) => RunDir::open(output)?,
        output => RunDir::create(output.as_deref(), Path::new(settings::RUNS), "render-street")?,
    };
    let work = || run.timed("render", || set.write(run.path(), &progress));
    let written = settings::recorded(&run, &resolved, &[], None, &progress, work)?;
    let result = json!({
        "images": written.images.display().to_string(),
        "captions": written.captions.display().to_string(),
        "made": written.made,
        "kept": written.kept,
        "run": run.path().display().to_string(),
    });
    args.display.result(&result, || format!("{}", written.images.display()))
}
