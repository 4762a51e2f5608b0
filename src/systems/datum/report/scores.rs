//! Scores of several runs side by side: per-class tables with differences to a baseline, confusion matrices, pictures.

use super::pictures::Album;
use super::run::Run;
use crate::eval::{ScoreFile, Scores, SeedScores, Series, Subject};
use crate::report::html::matrix::{Matrix, matrix};
use crate::report::html::pictures::{Comparison, comparisons, legend, swatch};
use crate::report::html::table::{Cell, Row, Table, difference_bar, points, table};
use crate::report::html::{Markup, html};
use crate::report::terminal;

/// The scores of one run on one subject.
pub struct Scored<'a> {
    run: &'a Run,
    /// Means, and spreads where there are several seeds.
    series: Series,
    /// The files behind it, one per seed.
    files: Vec<(&'a Run, &'a ScoreFile)>,
}

impl<'a> Scored<'a> {
    /// None if the run was not scored on it.
    fn new(run: &'a Run, subject: &Subject) -> Option<Self> {
        let of = |run: &'a Run| Some((run, run.scores.iter().find(|file| file.subject == *subject)?));
        let (files, seeds): (Vec<_>, Vec<_>) = match run.seeds.as_slice() {
            [] => (vec![of(run)?], vec![run.recipe.count("seed").unwrap_or(0)]),
            seeds => seeds.iter().filter_map(|(seed, run)| Some((of(run)?, *seed))).unzip(),
        };
        let scores = files.iter().zip(seeds).map(|((_, file), seed)| SeedScores { seed, scores: file.scores.clone() });
        Some(Self { run, series: Series::new(scores.collect())?, files })
    }

    fn mean(&self) -> &Scores {
        &self.series.mean
    }

    /// All seeds' pixels together.
    fn confusion(&self) -> Vec<Vec<u64>> {
        let mut sum = self.files.first().map(|(_, file)| file.confusion.clone()).unwrap_or_default();
        for (_, file) in self.files.iter().skip(1) {
            for (row, more) in sum.iter_mut().zip(&file.confusion) {
                row.iter_mut().zip(more).for_each(|(count, more)| *count += more);
            }
        }
        sum
    }
}

/// Everything that any of the runs was scored on, in the order of appearance.
pub fn subjects(runs: &[Run]) -> Vec<Subject> {
    let mut found: Vec<Subject> = Vec::new();
    let files = |run: &Run| run.seeds.iter().flat_map(|(_, run)| &run.scores).chain(&run.scores).cloned().collect::<Vec<_>>();
    for file in runs.iter().flat_map(files) {
        if !found.contains(&file.subject) {
            found.push(file.subject);
        }
    }
    found
}

/// The mIoU of a run on a subject, mean over seeds.
pub fn miou(run: &Run, subject: &Subject) -> Option<f64> {
    Scored::new(run, subject)?.mean().miou
}

/// The same as text, in percent, with the spread over seeds.
pub fn miou_text(run: &Run, subject: &Subject) -> Option<String> {
    let scored = Scored::new(run, subject)?;
    Some(percent(Some(scored.mean().miou?), scored.series.sd.miou))
}

/// One subject: tables, matrices, pictures. The first run is the baseline.
pub fn section(runs: &[Run], subject: &Subject, album: &mut Album) -> Markup {
    let scored: Vec<Scored> = runs.iter().filter_map(|run| Scored::new(run, subject)).collect();
    let Some(first) = scored.first() else { return html! {} };
    let names = &first.mean().classes;
    // A baseline that was not scored here, or has other classes, compares with nothing.
    let same = |other: &&Scored| other.mean().classes.iter().map(|class| &class.name).eq(names.iter().map(|class| &class.name));
    let comparable: Vec<&Scored> = scored.iter().filter(same).collect();
    let missing: Vec<&str> = runs
        .iter()
        .filter(|run| !comparable.iter().any(|scored| scored.run.path == run.path))
        .map(|run| run.name.as_str())
        .collect();
    html! {
        h3 { (subject.title()) }
        @if !missing.is_empty() { p.note { "Not scored here, or on other classes: " (missing.join(", ")) "." } }
        (means(&comparable))
        div.side {
            // With one run there is room for its matrix beside the classes.
            div.whole[comparable.len() > 1] { h4 { "Per class, in percent" } (classes(&comparable)) }
            @for one in &comparable { div { h4 { "Confusion of " (one.run.name) } (confusion(one)) } }
        }
        p.note {
            "Confusion: rows are labels, columns predictions, in percent of the row; below 0.5 left out."
            @if comparable.len() > 1 { " Changes are in points; bars to the right are gains, hatched ones to the left losses." }
            @if comparable.iter().any(|one| one.files.len() > 1) { " ± is the sample standard deviation over seeds." }
        }
        (pictures(&comparable, album))
    }
}

/// A value of 0…1 in percent, with its spread over seeds.
fn percent(value: Option<f64>, sd: Option<f64>) -> String {
    match (value, sd) {
        (Some(_), Some(sd)) => format!("{} ± {}", terminal::percent(value), terminal::percent(Some(sd))),
        _ => terminal::percent(value),
    }
}

type Pick = fn(&Scores) -> Option<f64>;

/// One row per run: mIoU and the other means.
fn means(scored: &[&Scored]) -> Markup {
    let picks: [(&str, Pick); 5] = [
        ("mIoU", |s| s.miou),
        ("mIoU, 16 classes", |s| s.miou16),
        ("mIoU, 13 classes", |s| s.miou13),
        ("mAcc", |s| s.macc),
        ("aAcc", |s| s.aacc),
    ];
    let picks: Vec<_> = picks
        .into_iter()
        .filter(|(name, pick)| !name.contains(',') || scored.iter().any(|one| pick(one.mean()).is_some()))
        .collect();
    let mut head = vec![Cell::text("Run")];
    for (at, (name, _)) in picks.iter().enumerate() {
        head.push(Cell::number(name));
        if at == 0 && scored.len() > 1 {
            head.push(Cell::number("change"));
        }
    }
    head.push(Cell::number("Images"));
    let row = |(index, one): (usize, &&Scored)| {
        let mut cells = vec![Cell::text(run_name(one, index, scored.len()))];
        for (at, (_, pick)) in picks.iter().enumerate() {
            cells.push(Cell::number(percent(pick(one.mean()), pick(&one.series.sd))));
            if at == 0 && scored.len() > 1 {
                let change = points(scored[0].mean().miou, one.mean().miou);
                cells.push(Cell::number(if index == 0 { String::new() } else { change }));
            }
        }
        cells.push(Cell::number(one.mean().images.to_string()));
        Row::new(cells)
    };
    table(&Table { caption: String::new(), head, rows: scored.iter().enumerate().map(row).collect() })
}

fn run_name(one: &Scored, index: usize, runs: usize) -> String {
    let baseline = if index == 0 && runs > 1 { " (baseline)" } else { "" };
    let seeds = if one.files.len() > 1 { format!(", {} seeds", one.files.len()) } else { String::new() };
    format!("{}{seeds}{baseline}", one.run.name)
}

/// One row per class: IoU of each run, differences to the baseline, accuracy.
fn classes(scored: &[&Scored]) -> Markup {
    let Some(baseline) = scored.first() else { return html! {} };
    let iou = |one: &Scored, id: usize| one.mean().classes.get(id).and_then(|class| class.iou);
    let compared = &scored[1..];
    let ids = 0..baseline.mean().classes.len();
    let differences =
        compared.iter().flat_map(|one| ids.clone().filter_map(|id| Some((iou(one, id)? - iou(baseline, id)?).abs())));
    let largest = differences.fold(0.0, f64::max);
    let mut head = vec![Cell::text("Class"), Cell::number("Pixels")];
    head.push(Cell::number(if compared.is_empty() { "IoU".into() } else { format!("IoU {}", baseline.run.name) }));
    for one in compared {
        head.extend([Cell::number(format!("IoU {}", one.run.name)), Cell::number("change"), Cell::text("")]);
    }
    head.extend(
        scored.iter().map(|one| Cell::number(if compared.is_empty() { "Acc".into() } else { format!("Acc {}", one.run.name) })),
    );
    let confusion = baseline.confusion();
    let pixels: Vec<u64> = confusion.iter().map(|row| row.iter().sum()).collect();
    let all: u64 = pixels.iter().sum();
    let row = |id: usize| {
        let share = pixels.get(id).filter(|_| all > 0).map(|count| *count as f64 / all as f64);
        let mut cells = vec![name(baseline, id), Cell::number(terminal::percent(share))];
        for (at, one) in scored.iter().enumerate() {
            cells.push(Cell::number(percent(iou(one, id), one.series.sd.classes.get(id).and_then(|class| class.iou))));
            if at > 0 {
                cells.push(Cell::number(points(iou(baseline, id), iou(one, id))));
                cells.push(Cell::markup(difference_bar(iou(baseline, id), iou(one, id), largest)));
            }
        }
        let acc = |one: &&Scored| Cell::number(terminal::percent(one.mean().classes.get(id).and_then(|class| class.acc)));
        cells.extend(scored.iter().map(acc));
        Row::new(cells)
    };
    table(&Table { caption: String::new(), head, rows: ids.map(row).collect() })
}

fn name(one: &Scored, id: usize) -> Cell {
    let color = one.files.first().and_then(|(_, file)| file.palette.get(id).copied());
    let name = one.mean().classes.get(id).map_or("?", |class| class.name.as_str());
    Cell::markup(html! { span.name { @if let Some(color) = color { (swatch(color)) } (name) } })
}

fn confusion(one: &Scored) -> Markup {
    let classes = one.mean().classes.iter().map(|class| class.name.clone()).collect();
    matrix(&Matrix { caption: String::new(), classes, counts: one.confusion() })
}

/// Photo, labels and every run's prediction of the same pictures.
fn pictures(scored: &[&Scored], album: &mut Album) -> Markup {
    let Some((_, lead)) = scored.first().and_then(|one| one.files.first()) else { return html! {} };
    let mut scenes = Vec::new();
    for shown in &lead.pictures {
        let mut layers = Vec::new();
        for (at, one) in scored.iter().enumerate() {
            let Some((run, file)) = one.files.first() else { continue };
            let Some(own) = file.pictures.iter().find(|own| own.stem == shown.stem) else { continue };
            let named = |name: &str| format!("{}: {name}", shown.stem);
            if at == 0 {
                let kinds = [("photo", &own.photo), ("labels", &own.label)];
                layers.extend(
                    kinds.iter().filter_map(|(name, f)| Some((name.to_string(), album.scored(&run.path, f, named(name))?))),
                );
            }
            let picture = album.scored(&run.path, &own.prediction, named(&format!("prediction of {}", run.name)));
            layers.extend(picture.map(|picture| (run.name.clone(), picture)));
        }
        if layers.len() > 1 {
            let last = layers.len() - 1;
            let left = if scored.len() > 1 && last > 2 { 2 } else { 0 };
            scenes.push(Comparison { title: shown.stem.clone(), layers, first: (left, last) });
        }
    }
    if scenes.is_empty() {
        return html! {};
    }
    let classes = lead.scores.classes.iter().zip(&lead.palette).map(|(class, color)| (class.name.clone(), *color));
    html! {
        h3 { "Pictures" }
        p.note { "Predictions in class colours over the photo. The slider moves the border; the menus choose what is on either side." }
        (legend(&classes.collect::<Vec<_>>()))
        (comparisons(&scenes))
    }
}
