//! Scores for people.

use super::{Scores, Series};
use comfy_table::{CellAlignment, Table, presets};

/// A table with IoU and accuracy per class, then the means, in percent with two decimals; absent classes show `–`.
/// `ascii` keeps to ASCII characters.
pub fn table(scores: &Scores, ascii: bool) -> String {
    render(scores, None, ascii)
}

/// The same for several seeds: every number is mean ± sample standard deviation.
pub fn series_table(series: &Series, ascii: bool) -> String {
    let table = render(&series.mean, Some(&series.sd), ascii);
    let seeds: Vec<String> = series.runs.iter().map(|run| run.seed.to_string()).collect();
    match seeds.as_slice() {
        [seed] => format!("{table}, seed {seed}"),
        _ => format!("{table}, mean {} sd of seeds {}", if ascii { "+-" } else { "±" }, seeds.join(", ")),
    }
}

fn render(scores: &Scores, sd: Option<&Scores>, ascii: bool) -> String {
    let (absent, plus_minus) = if ascii { ("-", "+-") } else { ("–", "±") };
    let percent = |value: Option<f64>, sd: Option<f64>| match (value, sd) {
        (None, _) => absent.to_string(),
        (Some(value), None) => format!("{:.2}", value * 100.0),
        (Some(value), Some(sd)) => format!("{:.2} {plus_minus} {:.2}", value * 100.0, sd * 100.0),
    };
    let mut table = Table::new();
    table.load_style(if ascii { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED });
    table.set_header(["class", "IoU", "Acc"]);
    for (id, class) in scores.classes.iter().enumerate() {
        let spread = sd.map(|sd| &sd.classes[id]);
        let iou = percent(class.iou, spread.and_then(|s| s.iou));
        table.add_row([class.name.clone(), iou, percent(class.acc, spread.and_then(|s| s.acc))]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    type Pick = fn(&Scores) -> Option<f64>;
    let mut means: Vec<(String, Pick)> =
        vec![("mIoU".into(), |s| s.miou), ("mAcc".into(), |s| s.macc), ("aAcc".into(), |s| s.aacc)];
    for (number, pick) in [(16, (|s| s.miou16) as Pick), (13, |s| s.miou13)] {
        if pick(scores).is_some() {
            means[0].0 = format!("mIoU ({} classes)", scores.classes.len());
            means.push((format!("mIoU ({number} classes)"), pick));
        }
    }
    let mean = |(name, pick): &(String, Pick)| format!("{name} {}", percent(pick(scores), sd.and_then(pick)));
    let means: Vec<String> = means.iter().map(mean).collect();
    let plural = if scores.images == 1 { "" } else { "s" };
    format!("{table}\n{}  over {} image{plural}", means.join("  "), scores.images)
}
