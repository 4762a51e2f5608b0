//! `datum dataset show`

use super::Chosen;
use crate::base::Result;
use crate::cli::common::DisplayArgs;
use crate::cli::settings;
use crate::data::{Dataset, sheet};
use crate::io::images;
use crate::report::terminal::{facts, table};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Show what a data set is, and pictures of it beside their labels
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum dataset show cityscapes\n  \
                        datum dataset show camvid=photos --split day --output sheet.png --count 8")]
pub struct ShowArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Picture to write: photos, each beside its label in the classes' colours
    #[arg(long, short, value_name = "FILE.png")]
    output: Option<PathBuf>,
    /// Photos on the picture, taken evenly [default: 6]
    #[arg(long, value_name = "N", default_value_t = 6, hide_default_value = true, value_parser = clap::value_parser!(u16).range(1..=200))]
    count: u16,
    #[command(flatten)]
    display: DisplayArgs,
}

/// Runs the verb.
pub fn run(args: ShowArgs) -> Result<()> {
    let dataset = Dataset::open(&args.chosen.dataset, &settings::search())?;
    let samples = dataset.samples(args.chosen.split.as_deref())?;
    if let Some(path) = &args.output {
        images::write_png(path, &sheet(&dataset, &samples, usize::from(args.count))?, &[])?;
    }
    let colors = dataset.classes.palette.iter().map(|[r, g, b]| format!("#{r:02x}{g:02x}{b:02x}"));
    let classes: Vec<(&String, String)> = dataset.classes.names.iter().zip(colors).collect();
    let result = json!({
        "dataset": dataset.name,
        "root": dataset.root.display().to_string(),
        "images": samples.len(),
        "labelled": dataset.has_labels(),
        "splits": dataset.splits,
        "classes": classes.iter().map(|(name, color)| json!({ "name": name, "color": color })).collect::<Vec<_>>(),
        "sheet": args.output.as_ref().map(|path| path.display().to_string()),
    });
    args.display.result(&result, || {
        let splits: Vec<String> = dataset.splits.iter().map(|(name, list)| format!("{name} ({list})")).collect();
        let mut text = facts(&[
            ("data set", dataset.name.clone()),
            ("root", dataset.root.display().to_string()),
            ("images", samples.len().to_string()),
            ("first", samples.first().map(|sample| sample.image.display().to_string()).unwrap_or_default()),
            (
                "its label",
                samples.first().and_then(|sample| sample.label.as_ref()).map_or("–".into(), |path| path.display().to_string()),
            ),
            ("splits", if splits.is_empty() { "–".into() } else { splits.join(", ") }),
        ]);
        if !classes.is_empty() {
            let row = |(id, (name, color)): (usize, &(&String, String))| {
                let kind = if dataset.classes.things[id] { "thing" } else { "stuff" };
                vec![name.to_string(), id.to_string(), color.clone(), kind.to_string()]
            };
            let rows: Vec<Vec<String>> = classes.iter().enumerate().map(row).collect();
            text += &format!("\n\n{}", table(&["class", "train id", "colour", "kind"], &rows));
        }
        if let Some(path) = &args.output {
            text += &format!("\n\n{}", path.display());
        }
        text
    })
}
