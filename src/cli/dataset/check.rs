//! `datum dataset check`

use super::Chosen;
use crate::base::{Error, Result};
use crate::cli::common::DisplayArgs;
use crate::cli::settings;
use crate::data::{Check, Dataset, check};
use crate::report::terminal::{facts, percent, table};
use clap::Args;
use serde_json::{Value, json};

/// Problems shown; all of them are counted.
const SHOWN: usize = 20;

/// Read every picture and label, count ids, and say what is wrong
#[derive(Debug, Args)]
#[command(
    after_help = "Ends with exit code 3 when something cannot be used. Where ids do not fit the classes, it proposes the lines\n\
                        for the data set's TOML.\n\n\
                        Examples:\n  datum dataset check photos\n  datum dataset check gta\n  \
                        datum dataset check my.toml --split val --json"
)]
pub struct CheckArgs {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    display: DisplayArgs,
}

/// Runs the verb.
pub fn run(args: CheckArgs) -> Result<()> {
    let dataset = Dataset::open(&args.chosen.dataset, &settings::search())?;
    let found = check(&dataset, args.chosen.split.as_deref(), &args.display.progress())?;
    args.display.result(&as_json(&dataset, &found), || as_text(&dataset, &found))?;
    if found.problems.is_empty() && found.advice.is_none() {
        return Ok(());
    }
    let what = match found.problems.len() {
        0 => "ids that fit no class".to_string(),
        count => format!("{count} unusable files"),
    };
    Err(Error::data(&dataset.root, format!("a data set `{}` without faults", dataset.name), what, "see the findings above"))
}

fn as_json(dataset: &Dataset, found: &Check) -> Value {
    let classes = dataset.classes.names.iter().zip(&found.class_pixels);
    json!({
        "dataset": dataset.name,
        "root": dataset.root.display().to_string(),
        "images": found.images,
        "labels": found.labels,
        "sizes": found.sizes.iter().map(|(&(height, width), &count)| json!({ "height": height, "width": width, "images": count })).collect::<Vec<_>>(),
        "classes": classes.map(|(name, &pixels)| json!({ "name": name, "pixels": pixels })).collect::<Vec<_>>(),
        "ignored_pixels": found.ignored_pixels,
        "file_ids": found.file_ids,
        "problems": found.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "advice": found.advice,
    })
}

fn as_text(dataset: &Dataset, found: &Check) -> String {
    let sizes: Vec<String> =
        found.sizes.iter().rev().map(|(&(height, width), count)| format!("{count} of {width}x{height}")).collect();
    let labels = match dataset.has_labels() {
        true => found.labels.to_string(),
        false => "none are described: an unlabelled set".into(),
    };
    let mut text = facts(&[
        ("data set", dataset.name.clone()),
        ("root", dataset.root.display().to_string()),
        ("images", found.images.to_string()),
        ("sizes", few(&sizes, 6)),
        ("labels", labels),
    ]);
    if found.labels > 0 {
        text += &format!("\n\n{}", class_table(dataset, found));
    }
    for problem in found.problems.iter().take(SHOWN) {
        text += &format!("\n\n{problem}");
    }
    if found.problems.len() > SHOWN {
        text += &format!("\n\n… and {} more", found.problems.len() - SHOWN);
    }
    if let Some(advice) = &found.advice {
        text += &format!("\n\n{advice}");
    }
    text
}

fn few(parts: &[String], shown: usize) -> String {
    let rest = parts.len().saturating_sub(shown);
    let more = if rest > 0 { format!(", {rest} more") } else { String::new() };
    format!("{}{more}", parts[..parts.len() - rest].join(", "))
}

/// Pixels per class, the file ids they come from, and their share.
fn class_table(dataset: &Dataset, found: &Check) -> String {
    let total = found.class_pixels.iter().sum::<u64>() + found.ignored_pixels;
    let share = |pixels: u64| percent(Some(pixels as f64 / total.max(1) as f64));
    let ids = |train_id: Option<u8>| {
        let from: Vec<String> =
            found.file_ids.keys().filter(|&&id| dataset.id_map.train_id(id) == train_id).map(ToString::to_string).collect();
        few(&from, 12)
    };
    let row = |(id, name): (usize, &String)| {
        let pixels = found.class_pixels[id];
        vec![name.clone(), id.to_string(), pixels.to_string(), share(pixels), ids(u8::try_from(id).ok())]
    };
    let mut rows: Vec<Vec<String>> = dataset.classes.names.iter().enumerate().map(row).collect();
    let ignored = found.ignored_pixels;
    rows.push(vec!["ignored".into(), String::new(), ignored.to_string(), share(ignored), ids(Some(crate::labels::IGNORE))]);
    if found.file_ids.keys().any(|&id| dataset.id_map.train_id(id).is_none()) {
        rows.push(vec!["of no class".into(), String::new(), String::new(), String::new(), ids(None)]);
    }
    table(&["class", "train id", "pixels", "%", "ids in the files"], &rows)
}
