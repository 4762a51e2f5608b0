//! How often generated pictures show what their prompt names: classes by the eyes of a segmenter, light and weather by those of the
//! small CLIP inside the program.
//!
//! ```text
//! cargo run --release --example prompt_following -- PICTURES RUN_OF_ADAPT
//! ```
//!
//! PICTURES is a run of `datum generate`; or a folder of `datum dataset render-street`, whose first captions are taken for prompts: what
//! the judges find where everything is as the words say. A picture shows a class when the segmenter finds it in at least one pixel in
//! 500; `chance` is how often the pictures of all other prompts show the class. Of five kinds of light and weather, CLIP takes that
//! whose words are nearest.

use candle_core::Tensor;
use datum::base::{Error, Result, device, progress::Silent};
use datum::eval::Format;
use datum::io::images;
use datum::models::clip::{NORMALIZATION, unit};
use datum::nn::{Pass, linear};
use datum::systems::clouds::{clip_file::token_ids, nano};
use datum::systems::datum::evaluate;
use datum::systems::shared::segmenter_file;
use serde_json::Value;
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
    let pictures = pictures(run)?;
    let seen = pictures.iter().map(|picture| visible(output.path(), picture)).collect::<Result<Vec<_>>>()?;
    println!("| prompt names | pictures | show it | chance |\n|---|---|---|---|");
    let mut table = Table::default();
    for (id, class) in classes.iter().enumerate() {
        let names: Vec<bool> = pictures.iter().map(|p| words(&p.prompt).any(|word| names_class(&word, class))).collect();
        let shows: Vec<bool> = seen.iter().map(|seen| seen.contains_key(&(id as u16))).collect();
        table.line(class, &names, &shows);
    }
    table.end();
    looks(run, &pictures)
}

/// Light and weather, with words that tell them.
const LOOKS: [(&str, &[&str], &str); 5] = [
    ("day", &["day", "daylight"], "a photo of a street by day"),
    ("night", &["night", "dark"], "a photo of a street at night"),
    ("fog", &["fog", "foggy"], "a photo of a street in fog"),
    ("rain", &["rain", "rainy"], "a photo of a street in rain"),
    ("snow", &["snow", "snowy"], "a photo of a street in snow"),
];

/// The table of light and weather.
fn looks(run: &Path, pictures: &[Picture]) -> Result<()> {
    let file = nano::open()?;
    let (clip, normalize) = (file.clip()?, segmenter_file::normalize(NORMALIZATION));
    let texts = unit(&clip.text_vectors(&token_ids(&file.tokenizer, &LOOKS.map(|(.., text)| text))?)?)?;
    let mut taken = Vec::new();
    for picture in pictures {
        let image = images::read_rgb(&run.join("images").join(&picture.name))?;
        let image = normalize.apply(&image, (image.height, image.width), &device::current())?;
        let vector = unit(&clip.image_vectors(&Tensor::stack(&[image], 0)?, &Pass::eval())?)?;
        taken.push(linear(&vector, &texts, None)?.argmax(1)?.to_vec1::<u32>()?[0] as usize);
    }
    // "On a rainy day" tells of rain: the last one that is named.
    let told = |p: &Picture| LOOKS.iter().rposition(|(_, told, _)| words(&p.prompt).any(|word| told.contains(&word.as_str())));
    let told: Vec<Option<usize>> = pictures.iter().map(told).collect();
    println!("\n| prompt tells of | pictures | look like it | chance |\n|---|---|---|---|");
    let mut table = Table::default();
    for (look, (name, ..)) in LOOKS.iter().enumerate() {
        let names: Vec<bool> = told.iter().map(|told| *told == Some(look)).collect();
        let shows: Vec<bool> = taken.iter().map(|taken| *taken == look).collect();
        table.line(name, &names, &shows);
    }
    table.end();
    Ok(())
}

/// Lines of a table, and their sum.
#[derive(Default)]
struct Table {
    named: usize,
    hits: usize,
    by_chance: f64,
}

impl Table {
    /// A line, where some prompts name it and some do not.
    fn line(&mut self, name: &str, names: &[bool], shows: &[bool]) {
        let count = |wanted: bool| names.iter().filter(|names| **names == wanted).count();
        let shown = |wanted: bool| names.iter().zip(shows).filter(|(names, shows)| **names == wanted && **shows).count();
        if count(true) == 0 || count(false) == 0 {
            return;
        }
        let (named, hits, chance) = (count(true), shown(true), shown(false) as f64 / count(false) as f64);
        println!("| {name} | {named} | {:.0} % | {:.0} % |", 100.0 * hits as f64 / named as f64, 100.0 * chance);
        self.named += named;
        self.hits += hits;
        self.by_chance += chance * named as f64;
    }

    fn end(&self) {
        let share = |count: f64| 100.0 * count / self.named.max(1) as f64;
        println!("| all | {} | {:.0} % | {:.0} % |", self.named, share(self.hits as f64), share(self.by_chance));
    }
}

/// A picture, by its file's name, and what it should show.
struct Picture {
    name: String,
    prompt: String,
}

/// The pictures of a run of `generate`, or of a folder of drawn streets.
fn pictures(run: &Path) -> Result<Vec<Picture>> {
    let captions = run.join("captions.jsonl");
    let path = if captions.is_file() { captions } else { run.join("manifest.jsonl") };
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let picture = |line: &str| {
        let json: Value = serde_json::from_str(line).ok()?;
        let file = json["file_name"].as_str().or(json["file"].as_str())?;
        let prompt = json["text"][0].as_str().or(json["prompt"].as_str())?;
        Some(Picture { name: Path::new(file).file_name()?.to_string_lossy().into_owned(), prompt: prompt.into() })
    };
    Ok(text.lines().filter_map(picture).collect())
}

/// Classes that a prediction shows, with their pixels.
fn visible(folder: &Path, picture: &Picture) -> Result<BTreeMap<u16, usize>> {
    let ids = images::read_label(&folder.join(&picture.name))?.pixels;
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
