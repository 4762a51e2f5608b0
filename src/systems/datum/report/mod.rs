//! `datum report`: one HTML page about a run, or about several side by side.
//!
//! `run` reads what a folder holds, `recipe`, `metrics` and `pictures` parts of it; `facts`, `scores` and `curves` turn it
//! into sections; [`write()`] puts the page together. How a page looks is in [`crate::report::html`].

mod curves;
mod facts;
mod metrics;
mod pictures;
mod recipe;
mod run;
mod scores;

use crate::base::{Error, Result};
use crate::eval::Subject;
use crate::io::atomic;
use crate::report::html::page::{Page, Section};
use crate::report::html::pictures::{Captioned, sheet};
use crate::report::html::table::points;
use crate::report::html::{Markup, html};
use crate::report::terminal;
use pictures::{Album, Gallery};
use run::{Run, Verb};
use std::path::{Path, PathBuf};

/// The page of one run, in its folder.
pub use crate::train::run_dir::REPORT_FILE as FILE;
/// The page of several runs, in the folder of the first.
pub const COMPARISON: &str = "comparison.html";

/// A page that was written, or is there already.
#[derive(Debug, Clone)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: usize,
    /// The runs it shows, the baseline first.
    pub runs: Vec<PathBuf>,
}

/// Writes the page of `runs` (one or more) to `output`, or to [`FILE`] or [`COMPARISON`] in the folder of the first. Of several,
/// `baseline` (else the first) is what the others are compared with. A demo keeps the page that it wrote itself.
///
/// # Errors
/// A folder that is no run; a page that cannot be written; a demo among other runs, or one without its page.
pub fn write(runs: &[PathBuf], baseline: Option<&Path>, output: Option<&Path>) -> Result<Written> {
    let mut paths: Vec<&Path> = Vec::new();
    let same = |a: &Path, b: &Path| a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    for path in baseline.into_iter().chain(runs.iter().map(PathBuf::as_path)) {
        if !paths.iter().any(|other| same(other, path)) {
            paths.push(path);
        }
    }
    let mut read = paths.iter().map(|path| Run::read(path)).collect::<Result<Vec<_>>>()?;
    if let Some(demo) = read.iter().find(|run| run.verb == Some(Verb::Demo)) {
        return page_of_demo(demo, read.len() == 1 && output.is_none());
    }
    tell_apart(&mut read);
    let folder = runs.first().map_or(Path::new("."), PathBuf::as_path);
    let path = match output {
        Some(output) => output.to_path_buf(),
        None => folder.join(if read.len() > 1 { COMPARISON } else { FILE }),
    };
    let text = page(&read).render();
    atomic::write(&path, text.as_bytes())?;
    Ok(Written { path, bytes: text.len(), runs: paths.into_iter().map(PathBuf::from).collect() })
}

/// The page that a demo wrote about the runs in it; ours about the demo's own folder would hold next to nothing. `asked` is false
/// for what that page cannot serve.
fn page_of_demo(demo: &Run, asked: bool) -> Result<Written> {
    let (folder, page) = (demo.path.display(), demo.path.join(FILE));
    let inside = format!("name the runs in it, e.g. {}", demo.path.join("source-only").display());
    if !demo.is_finished() {
        let next = format!("run the demo again with `--output {folder}`, which goes on and writes its page, or {inside}");
        return Err(Error::Usage(format!("{folder} is a demo that is not finished\n  next: {next}")));
    }
    if !asked {
        let next = format!("open {}, or {inside}", page.display());
        return Err(Error::Usage(format!("{folder} is a demo, which has its own page of the runs in it\n  next: {next}")));
    }
    let bytes = std::fs::metadata(&page).map_err(|e| Error::io(&page, e))?.len();
    Ok(Written { path: page, bytes: bytes as usize, runs: vec![demo.path.clone()] })
}

/// Writes the page of a run anew, and those of its seeds.
///
/// # Errors
/// As [`write()`].
pub fn refresh(run: &Path) -> Result<Written> {
    for (_, seed) in crate::systems::shared::segmenter_file::seeds(run) {
        write(&[seed], None, None)?;
    }
    write(&[run.to_path_buf()], None, None)
}

/// An error without line breaks.
fn one_line(error: &Error) -> String {
    error.to_string().replace("\n  next:", ";")
}

/// Runs of the same folder name get the name of the folder above too, or else the whole path.
fn tell_apart(runs: &mut [Run]) {
    for longer in [1, 2] {
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for run in runs.iter_mut().filter(|run| names.iter().filter(|name| **name == run.name).count() > 1) {
            let full = run.path.canonicalize().unwrap_or_else(|_| run.path.clone());
            let above = full.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
            run.name = if longer == 1 { format!("{above}/{}", run.name) } else { full.display().to_string() };
        }
    }
}

fn page(runs: &[Run]) -> Page {
    let mut album = Album::default();
    let mut notes = Vec::new();
    let mut sections = vec![Section { id: "summary", title: "Summary".into(), body: facts::summary(runs) }];
    let mut add = |id: &'static str, title: &str, body: Option<Markup>| {
        sections.extend(body.map(|body| Section { id, title: title.into(), body }));
    };
    // The scored pictures come first to the album: they are what the page is for.
    let scored = scores::subjects(runs);
    let bodies: Vec<Markup> = scored.iter().map(|subject| scores::section(runs, subject, &mut album)).collect();
    add("scores", "Scores", (!bodies.is_empty()).then(|| html! { @for body in &bodies { (body) } }));
    let mut galleries = |make: fn(&mut Album, &Run) -> Gallery, wanted: fn(&Run) -> bool| {
        let found = runs.iter().filter(|run| wanted(run)).map(|run| (run, make(&mut album, run))).collect::<Vec<_>>();
        notes.extend(found.iter().flat_map(|(_, gallery)| gallery.problems.iter().cloned()));
        gallery_section(runs, &found)
    };
    add("target", "Target", galleries(Album::targets, |_| true));
    add("images", "Images", galleries(Album::images, |_| true));
    add("samples", "Samples", galleries(Album::samples, |run| run.verb == Some(Verb::Personalize)));
    add("curves", "Curves", curves::section(runs));
    add("time", "Time and memory", facts::stages(runs));
    add("settings", "Settings", Some(facts::settings(runs)));
    add("machine", "Machine and inputs", facts::environment(runs));
    if album.left_out > 0 {
        notes.push(format!("{} pictures were left out to keep the page small.", album.left_out));
    }
    notes.extend(runs.iter().flat_map(|run| run_notes(run, runs.len() > 1)));
    add("missing", "Not here", (!notes.is_empty()).then(|| html! { ul.notes { @for note in &notes { li { (note) } } } }));
    let (title, kind, lead) = heading(runs);
    let footer = format!("Written by datum {}.", env!("CARGO_PKG_VERSION"));
    Page { title, kind, lead, sections, footer }
}

/// Notes of a run and of its seeds, with its name where there are several.
fn run_notes(run: &Run, several: bool) -> Vec<String> {
    let own = run.notes.iter().cloned();
    // That a seed has no scores is said once, for the whole run.
    let of_seed = |(seed, run): &(u64, Run)| {
        let notes = run.notes.iter().filter(|note| !note.starts_with("Scores, "));
        notes.map(|note| format!("seed {seed}: {note}")).collect::<Vec<_>>()
    };
    let all = own.chain(run.seeds.iter().flat_map(of_seed));
    all.map(|note| if several { format!("{}: {note}", run.name) } else { note }).collect()
}

fn heading(runs: &[Run]) -> (String, String, Markup) {
    if let [run] = runs {
        let lead = html! { (facts::lead(run)) };
        return (run.name.clone(), run.verb.map_or("datum run".into(), Verb::command), lead);
    }
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let (baseline, others) = (names[0], names[1..].join(", "));
    let unfinished = runs.iter().filter(|run| run.verb.is_some() && !run.is_finished());
    let unfinished: Vec<&str> = unfinished.map(|run| run.name.as_str()).collect();
    let lead = html! {
        (others) " compared with the baseline " (baseline) "."
        @for change in changes(runs) { " " (change) }
        @if !unfinished.is_empty() { " Not finished: " (unfinished.join(", ")) "." }
    };
    (names.join(" · "), format!("{} runs compared", runs.len()), lead)
}

/// `On dusk: mIoU 31.5 → 46.2 (+14.7 points).` for each thing that the baseline and one other run were scored on.
fn changes(runs: &[Run]) -> Vec<String> {
    let [baseline, other] = runs else { return Vec::new() };
    let change = |subject: Subject| {
        let (from, to) = (scores::miou(baseline, &subject), scores::miou(other, &subject));
        let [before, after] = [from?, to?].map(|miou| terminal::percent(Some(miou)));
        Some(format!("On {}: mIoU {before} → {after} ({} points).", subject.title(), points(from, to)))
    };
    scores::subjects(runs).into_iter().filter_map(change).collect()
}

/// Pictures of each run that has any, with its name where there are several.
fn gallery_section(runs: &[Run], galleries: &[(&Run, Gallery)]) -> Option<Markup> {
    let shown: Vec<_> = galleries.iter().filter(|(_, gallery)| !gallery.pictures.is_empty()).collect();
    let is_large = |pictures: &[Captioned]| pictures.iter().any(|shown| shown.picture.size.1.max(shown.picture.size.0) > 300);
    let body = html! {
        @for (run, gallery) in &shown {
            @if runs.len() > 1 { h3 { (run.name) } }
            p.note { (gallery.note) }
            @if is_large(&gallery.pictures) { div.large { (sheet(&gallery.pictures)) } } @else { (sheet(&gallery.pictures)) }
        }
    };
    (!shown.is_empty()).then_some(body)
}
