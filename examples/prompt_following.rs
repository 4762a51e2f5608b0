//! How often generated pictures show what their prompt names, by the eyes of a segmenter.
//!
//! ```text
//! cargo run --release --example prompt_following -- RUN_OF_GENERATE RUN_OF_ADAPT
//! ```
//!
//! A picture shows a class when the segmenter finds it in at least one pixel in 500. `chance` is how often the pictures of all
//! other prompts show the class.

use datum::base::Result;
use datum::base::{Error, progress::Silent};
use datum::eval::Format;
use datum::io::images;
use datum::io::manifest::{ImageRecord, Manifest};
use datum::systems::datum::evaluate;
use datum::systems::shared::segmenter_file;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One pixel in so many makes a class visible.
const VISIBLE: usize = 500;

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [run, segmenter] = arguments.as_slice() else {
        return Err(Error::Usage("expected RUN_OF_GENERATE RUN_OF_ADAPT".into()));
    };
    let classes = segmenter_file::read(&segmenter_file::locate(segmenter))?.0.classes;
    let output = tempfile::tempdir().map_err(|e| Error::io("a temporary folder", e))?;
    evaluate::predict(segmenter, &[run.join("images")], output.path(), Format::TrainIds, &Silent)?;
    let manifest: Manifest = Manifest::open(&run.join("manifest.jsonl"))?;
    let seen = manifest.records().iter().map(|record| visible(output.path(), record)).collect::<Result<Vec<_>>>()?;
    println!("| prompt names | pictures | show it | chance |\n|---|---|---|---|");
    let (mut hits, mut named_total, mut by_chance) = (0, 0, 0.0);
    for (id, class) in classes.iter().enumerate() {
        let names = |record: &ImageRecord| words(&record.facts.prompt).any(|word| names_class(&word, class));
        let (named, others): (Vec<_>, Vec<_>) = manifest.records().iter().zip(&seen).partition(|(record, _)| names(record));
        if named.is_empty() || others.is_empty() {
            continue;
        }
        let count = |group: &[(&ImageRecord, &BTreeMap<u16, usize>)]| {
            group.iter().filter(|(_, seen)| seen.contains_key(&(id as u16))).count()
        };
        let (found, chance) = (count(&named), count(&others) as f64 / others.len() as f64);
        println!("| {class} | {} | {:.0} % | {:.0} % |", named.len(), 100.0 * found as f64 / named.len() as f64, 100.0 * chance);
        (hits, named_total, by_chance) = (hits + found, named_total + named.len(), by_chance + chance * named.len() as f64);
    }
    let share = |count: f64| 100.0 * count / named_total.max(1) as f64;
    println!("| all | {named_total} | {:.0} % | {:.0} % |", share(hits as f64), share(by_chance));
    Ok(())
}

/// Classes that a prediction shows, with their pixels.
fn visible(folder: &Path, record: &ImageRecord) -> Result<BTreeMap<u16, usize>> {
    let name = Path::new(&record.file).file_name().unwrap_or_default();
    let ids = images::read_label(&folder.join(name))?.pixels;
    let mut pixels = BTreeMap::new();
    ids.iter().for_each(|id| *pixels.entry(*id).or_insert(0) += 1);
    pixels.retain(|_, count| *count * VISIBLE >= ids.len());
    Ok(pixels)
}

/// One- and two-word names in a prompt.
fn words(prompt: &str) -> impl Iterator<Item = String> {
    let words: Vec<String> = prompt.split_whitespace().map(|word| word.trim_matches(',').to_lowercase()).collect();
    let pairs: Vec<String> = words.windows(2).map(|pair| pair.join(" ")).collect();
    words.into_iter().chain(pairs)
}

/// `cars` names `car`, `buses` names `bus`.
fn names_class(word: &str, class: &str) -> bool {
    word == class || [class.to_string() + "s", class.to_string() + "es"].iter().any(|plural| plural == word)
}
