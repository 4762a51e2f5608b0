//! The numbers of each step, as curves, and the lines of JSON files.

use crate::base::Result;
use crate::io;
use crate::report::html::thin::Point;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The curves of one metrics file.
#[derive(Debug, Clone, Default)]
pub struct Curves {
    /// The stage they belong to, e.g. `vae`; empty for the only one of a run.
    pub stage: String,
    /// Points by metric.
    pub metrics: BTreeMap<String, Vec<Point>>,
    /// The last step there is.
    pub last: u64,
}

/// The whole records of a file with one JSON object a line, and how many lines are something else.
///
/// # Errors
/// A file that cannot be read.
pub fn records(path: &Path) -> Result<(Vec<Value>, usize)> {
    let text = io::read_text(path)?;
    let mut broken = 0;
    let parse = |line: &str| serde_json::from_str::<Value>(line).ok().filter(Value::is_object);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let found = lines
        .filter_map(|line| {
            parse(line).or_else(|| {
                broken += 1;
                None
            })
        })
        .collect();
    Ok((found, broken))
}

impl Curves {
    /// Reads `metrics.jsonl` or `metrics-STAGE.jsonl`; second: lines that are no records.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(path: &Path) -> Result<(Self, usize)> {
        let (records, broken) = records(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut curves = Self { stage: name.strip_prefix("metrics-").unwrap_or_default().into(), ..Self::default() };
        for record in &records {
            let Some(step) = record.get("step").and_then(Value::as_u64) else { continue };
            curves.last = curves.last.max(step);
            for (metric, value) in record.as_object().into_iter().flatten().filter(|(metric, _)| *metric != "step") {
                // Numbers that are not finite are written as null.
                let value = if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
                if let Some(value) = value {
                    curves.metrics.entry(metric.clone()).or_default().push((step as f64, value));
                }
            }
        }
        Ok((curves, broken))
    }

    /// The mean of several runs' curves at each step that all have.
    pub fn mean(all: &[&Self]) -> Option<Self> {
        let first = all.first()?;
        let mut mean = Self { stage: first.stage.clone(), last: first.last, metrics: BTreeMap::new() };
        for (metric, points) in &first.metrics {
            let others: Vec<BTreeMap<u64, f64>> = all[1..]
                .iter()
                .map(|curves| curves.metrics.get(metric).into_iter().flatten().map(|(x, y)| (*x as u64, *y)).collect())
                .collect();
            let at = |&(x, y): &Point| {
                let rest = others.iter().map(|points| points.get(&(x as u64)).copied()).sum::<Option<f64>>()?;
                Some((x, (y + rest) / all.len() as f64))
            };
            mean.metrics.insert(metric.clone(), points.iter().filter_map(at).collect());
        }
        Some(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_lines_are_counted_and_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics-vae.jsonl");
        std::fs::write(&path, "{\"step\":1,\"loss\":0.5,\"note\":\"x\"}\n\n7\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"lo")
            .unwrap();
        let (curves, broken) = Curves::read(&path).unwrap();
        assert_eq!((curves.stage.as_str(), curves.last, broken), ("vae", 2, 2));
        let loss = &curves.metrics["loss"];
        assert!(curves.metrics.len() == 1 && loss[0] == (1.0, 0.5) && loss[1].1.is_nan());
    }

    #[test]
    fn the_mean_takes_steps_that_all_have() {
        let of = |points: &[Point]| Curves { metrics: [("loss".to_string(), points.to_vec())].into(), ..Curves::default() };
        let (a, b) = (of(&[(1.0, 1.0), (2.0, 2.0)]), of(&[(1.0, 3.0)]));
        assert_eq!(Curves::mean(&[&a, &b]).unwrap().metrics["loss"], [(1.0, 2.0)]);
        assert!(Curves::mean(&[]).is_none());
    }
}
