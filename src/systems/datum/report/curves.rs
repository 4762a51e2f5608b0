//! Charts of the numbers of each step.

use super::metrics::Curves;
use super::run::Run;
use crate::report::html::chart::{Chart, Line, chart};
use crate::report::html::{Markup, html};

/// Charts of one run by kind of metric, of several runs or seeds by metric; none without numbers.
pub fn section(runs: &[Run]) -> Option<Markup> {
    let charts = match runs {
        [run] if run.seeds.is_empty() => run.curves.iter().flat_map(by_kind).collect::<Vec<_>>(),
        [run] => {
            side_by_side(&run.seeds.iter().map(|(seed, run)| (format!("seed {seed}"), run.curves.clone())).collect::<Vec<_>>())
        }
        runs => side_by_side(&runs.iter().map(|run| (run.name.clone(), averaged(run))).collect::<Vec<_>>()),
    };
    if charts.is_empty() {
        return None;
    }
    let seeds = runs.len() > 1 && runs.iter().any(|run| !run.seeds.is_empty());
    Some(html! {
        p.note {
            "Noisy curves are drawn faintly, with their moving mean on top; the number beside a name is the value at the end."
            @if seeds { " Runs with several seeds are shown as the mean over seeds." }
        }
        div.charts { @for one in &charts { (chart(one)) } }
    })
}

/// The curves of a run; with seeds, their mean by stage.
fn averaged(run: &Run) -> Vec<Curves> {
    if run.seeds.is_empty() {
        return run.curves.clone();
    }
    let stages = run.seeds.first().map(|(_, run)| run.curves.as_slice()).unwrap_or_default();
    let mean = |stage: &Curves| {
        let all = run.seeds.iter().filter_map(|(_, run)| run.curves.iter().find(|other| other.stage == stage.stage));
        Curves::mean(&all.collect::<Vec<_>>())
    };
    stages.iter().filter_map(mean).collect()
}

/// What readers look for first; the title of metrics of a kind.
const KINDS: [(&str, &str); 4] =
    [("loss", "Loss"), ("iou", "mIoU"), ("acc", "Accuracy, % of pixels"), ("learning_rate", "Learning rate")];

/// The kind whose course is known to end at nothing.
const LINEAR: &str = "Learning rate";

/// Place of a metric's kind, and its title.
fn kind(metric: &str) -> (usize, String) {
    let name = metric.to_lowercase();
    match KINDS.iter().position(|(word, _)| name.contains(word)) {
        Some(at) => (at, KINDS[at].1.into()),
        None => (KINDS.len(), name_of(metric)),
    }
}

/// `learning_rate` → `Learning rate`; names with a dot are kept as TensorBoard shows them.
fn name_of(metric: &str) -> String {
    if metric.contains('.') {
        return metric.into();
    }
    let words = metric.replace('_', " ");
    let mut chars = words.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars.clone()).collect()).unwrap_or_default()
}

fn stage_name(stage: &str) -> &str {
    match stage {
        "vae" => "Autoencoder",
        "unet" => "U-Net",
        other => other,
    }
}

fn title(stage: &str, name: &str) -> String {
    if stage.is_empty() { name.into() } else { format!("{}: {name}", stage_name(stage)) }
}

/// One chart per kind of metric.
fn by_kind(curves: &Curves) -> Vec<Chart> {
    let mut kinds: Vec<((usize, String), Vec<Line>)> = Vec::new();
    for (metric, points) in &curves.metrics {
        let line = Line { name: metric.clone(), points: points.clone(), style: 0 };
        let kind = kind(metric);
        match kinds.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, lines)) => lines.push(line),
            None => kinds.push((kind, vec![line])),
        }
    }
    kinds.sort_by(|a, b| a.0.cmp(&b.0));
    let chart = |((_, kind), mut lines): ((usize, String), Vec<Line>)| {
        // The sum before its parts.
        lines.sort_by_key(|line| (line.name != "loss", line.name.clone()));
        lines.iter_mut().enumerate().for_each(|(at, line)| line.style = at);
        let linear = kind == LINEAR;
        Chart { title: title(&curves.stage, &kind), x_label: "step".into(), lines, linear }
    };
    kinds.into_iter().map(chart).collect()
}

/// One chart per stage and metric, with a line for each of the named runs that has it.
fn side_by_side(runs: &[(String, Vec<Curves>)]) -> Vec<Chart> {
    let mut found: Vec<(&str, (usize, String), &str)> = Vec::new();
    for curves in runs.iter().flat_map(|(_, curves)| curves) {
        found.extend(curves.metrics.keys().map(|metric| (curves.stage.as_str(), kind(metric), metric.as_str())));
    }
    found.sort_by(|a, b| (&a.1, a.2 != "loss", a.0, a.2).cmp(&(&b.1, b.2 != "loss", b.0, b.2)));
    found.dedup();
    let chart = |(stage, _, metric): (&str, (usize, String), &str)| {
        let line = |(style, (name, curves)): (usize, &(String, Vec<Curves>))| {
            let points = curves.iter().find(|curves| curves.stage == stage)?.metrics.get(metric)?.clone();
            Some(Line { name: name.clone(), points, style })
        };
        let lines = runs.iter().enumerate().filter_map(line).collect();
        let linear = kind(metric).1 == LINEAR;
        Chart { title: title(stage, &name_of(metric)), x_label: "step".into(), lines, linear }
    };
    found.into_iter().map(chart).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves(stage: &str, metrics: &[&str]) -> Curves {
        let points = |name: &&str| (name.to_string(), vec![(1.0, 0.5), (2.0, 0.4)]);
        Curves { stage: stage.into(), metrics: metrics.iter().map(points).collect(), last: 2 }
    }

    #[test]
    fn losses_share_a_chart_and_come_first() {
        let names = ["decode.loss_seg", "decode.acc_seg", "loss", "learning_rate", "gradient_norm", "val.mIoU"];
        let charts = by_kind(&curves("unet", &names));
        let titles: Vec<&str> = charts.iter().map(|chart| chart.title.as_str()).collect();
        let expected =
            ["Loss", "mIoU", "Accuracy, % of pixels", "Learning rate", "Gradient norm"].map(|name| format!("U-Net: {name}"));
        assert_eq!(titles, expected);
        let lines: Vec<&str> = charts[0].lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(lines, ["loss", "decode.loss_seg"]);
    }

    #[test]
    fn runs_share_the_charts_of_what_they_both_have() {
        let runs = [
            ("a".to_string(), vec![curves("", &["loss", "x"])]),
            ("b".to_string(), vec![curves("", &["loss"]), curves("vae", &["loss"])]),
        ];
        let charts = side_by_side(&runs);
        let shown: Vec<_> = charts.iter().map(|chart| (chart.title.as_str(), chart.lines.len())).collect();
        assert_eq!(shown, [("Loss", 2), ("Autoencoder: Loss", 1), ("X", 1)]);
    }
}
