//! Results as text for people. No colour: the text means the same in a file.

use comfy_table::{CellAlignment, Table, presets};
use std::time::Duration;

/// Aligned lines `name  value`.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = facts.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

/// A table with a header; all columns but the first hold numbers and are right-aligned.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// `850 ms`, `12.3 s`, `4 min 05 s`, `2 h 03 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match time.as_secs_f64() {
        short if short < 1.0 => format!("{} ms", time.as_millis()),
        short if short < 60.0 => format!("{short:.1} s"),
        _ if seconds < 3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Bytes as MiB.
pub fn memory(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// A value of 0…1 as percent with one decimal, `–` when there is none.
pub fn percent(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map_or("–".into(), |v| format!("{:.1}", 100.0 * v))
}

/// The course of a number in `width` characters, each the mean of its part, from its least (▁) to its greatest (█).
pub fn sparkline(values: &[f64], width: usize) -> String {
    let width = width.min(values.len());
    let part = |i: usize| &values[i * values.len() / width..(i + 1) * values.len() / width];
    let means: Vec<f64> = (0..width).map(|i| part(i).iter().sum::<f64>() / part(i).len() as f64).collect();
    let (low, high) = means.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
    let level = |x: f64| ((x - low) / (high - low).max(f64::MIN_POSITIVE) * 7.0).round() as usize;
    means.iter().map(|&x| ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][level(x).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_line_up() {
        assert_eq!(
            facts(&[("run", "runs/a".into()), ("peak memory", "3 MiB".into())]),
            "run          runs/a\npeak memory  3 MiB"
        );
        let rows = [vec!["road".to_string(), percent(Some(0.957))], vec!["train".to_string(), percent(None)]];
        let lines: Vec<String> = table(&["class", "IoU"], &rows).lines().map(|l| l.trim_end().to_string()).collect();
        assert_eq!(lines, [" class   IoU", " road   95.7", " train     –"]);
    }

    #[test]
    fn durations_read_well() {
        let texts = [0.85, 12.34, 245.0, 7380.0].map(|s| duration(Duration::from_secs_f64(s)));
        assert_eq!(texts, ["850 ms", "12.3 s", "4 min 05 s", "2 h 03 min"]);
    }

    #[test]
    fn sparklines_show_the_course() {
        assert_eq!(sparkline(&[8.0, 6.0, 4.0, 4.0, 1.0, 1.0], 3), "█▅▁");
        assert_eq!(sparkline(&[1.0], 5), "▁");
        assert_eq!(sparkline(&[], 5), "");
    }
}
