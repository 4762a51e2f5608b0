//! Scores for people.

use super::Scores;
use comfy_table::{CellAlignment, Table, presets};

/// A table with IoU and accuracy per class, then the means, in percent with two decimals; absent classes show `–`.
/// `ascii` keeps to ASCII characters.
pub fn table(scores: &Scores, ascii: bool) -> String {
    let absent = if ascii { "-" } else { "–" };
    let percent = |value: Option<f64>| value.map_or(absent.to_string(), |v| format!("{:.2}", v * 100.0));
    let mut table = Table::new();
    table.load_style(if ascii { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED });
    table.set_header(["class", "IoU", "Acc"]);
    for class in &scores.classes {
        table.add_row([class.name.clone(), percent(class.iou), percent(class.acc)]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut means = vec![("mIoU".to_string(), scores.miou), ("mAcc".into(), scores.macc), ("aAcc".into(), scores.aacc)];
    for (number, value) in [(16, scores.miou16), (13, scores.miou13)] {
        if value.is_some() {
            means[0].0 = format!("mIoU ({} classes)", scores.classes.len());
            means.push((format!("mIoU ({number} classes)"), value));
        }
    }
    let means: Vec<String> = means.iter().map(|(name, value)| format!("{name} {}", percent(*value))).collect();
    let plural = if scores.images == 1 { "" } else { "s" };
    format!("{table}\n{}  over {} image{plural}", means.join("  "), scores.images)
}
