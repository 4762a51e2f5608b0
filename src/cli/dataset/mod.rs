//! `datum dataset`

mod check;
mod prepare;
mod render_street;
mod show;

use crate::base::Result;
use clap::{Args, Subcommand};

/// Check, show, convert and draw data sets
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "Examples:\n  datum dataset check cityscapes --split val\n  \
                        datum dataset show camvid=photos --output sheet.png\n  \
                        datum dataset prepare gta --output gta-train-ids\n  \
                        datum dataset render-street --count 500 --look day --output street")]
pub struct DatasetArgs {
    #[command(subcommand)]
    verb: DatasetVerb,
}

#[derive(Debug, Subcommand)]
enum DatasetVerb {
    Check(check::CheckArgs),
    Show(show::ShowArgs),
    Prepare(prepare::PrepareArgs),
    RenderStreet(Box<render_street::RenderStreetArgs>),
}

/// Which pictures a verb works on.
#[derive(Debug, Args)]
struct Chosen {
    /// Data set: NAME, NAME=ROOT, a TOML file, or a folder of images
    #[arg(value_name = "DATASET")]
    dataset: String,
    /// Split, as its description names it [default: all pictures]
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
}

/// Runs the verb.
pub fn run(args: DatasetArgs) -> Result<()> {
    match args.verb {
        DatasetVerb::Check(args) => check::run(args),
        DatasetVerb::Show(args) => show::run(args),
        DatasetVerb::Prepare(args) => prepare::run(args),
        DatasetVerb::RenderStreet(args) => render_street::run(*args),
    }
}
