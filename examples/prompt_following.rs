//! How often generated pictures show what their prompt names: classes by the eyes of a segmenter; light, weather and kinds of things by
//! those of the small CLIP inside the program.
//!
//! ```text
//! cargo run --release --example prompt_following -- PICTURES RUN_OF_ADAPT
//! ```
//!
//! PICTURES is a run of `datum generate`; or a folder of `datum dataset render-street`, whose first captions are taken for prompts: what
//! the judges find where everything is as the words say. A picture shows a class when the segmenter finds it in at least one pixel in
//! 500; `chance` is how often the pictures of all other prompts show the class. Of five kinds of light and weather, and of ten kinds of
//! things, CLIP takes the one whose words are nearest.

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
    evaluate::predict(segmenter, &[run.join("images")], output.path(), Format::TrainIds, None, &Silent)?;
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
    by_clip(run, &pictures)
}

/// Light and weather, with words that tell them.
const LOOKS: [(&str, &[&str], &str); 5] = [
    ("day", &["day", "daylight"], "a photo of a street by day"),
    ("night", &["night", "dark"], "a photo of a street at night"),
    ("fog", &["fog", "foggy"], "a photo of a street in fog"),
    ("rain", &["rain", "rainy"], "a photo of a street in rain"),
    ("snow", &["snow", "snowy"], "a photo of a street in snow"),
];

/// Kinds of things, one and many.
const THINGS: [[&str; 2]; 10] = [
    ["car", "cars"],
    ["truck", "trucks"],
    ["bus", "buses"],
    ["train", "trains"],
    ["person", "persons"],
    ["rider", "riders"],
    ["bicycle", "bicycles"],
    ["motorcycle", "motorcycles"],
    ["traffic light", "traffic lights"],
    ["traffic sign", "traffic signs"],
];

/// The tables of light and weather and of things.
fn by_clip(run: &Path, pictures: &[Picture]) -> Result<()> {
    let file = nano::open()?;
    let (clip, normalize) = (file.clip()?, segmenter_file::normalize(NORMALIZATION));
    let mut vectors = Vec::new();
    for picture in pictures {
        let image = images::read_rgb(&run.join("images").join(&picture.name))?;
        let image = normalize.apply(&image, (image.height, image.width), &device::current())?;
        vectors.push(unit(&clip.image_vectors(&Tensor::stack(&[image], 0)?, &Pass::eval())?)?);
    }
    let vectors = Tensor::cat(&vectors, 0)?;
    // Of each picture the entry with the nearest words, the mean over all ways to say it.
    let nearest = |sayings: &[Vec<String>]| -> Result<Vec<u32>> {
        let of = |texts: &Vec<String>| Ok(unit(&clip.text_vectors(&token_ids(&file.tokenizer, texts)?)?)?.mean_keepdim(0)?);
        let texts = Tensor::cat(&sayings.iter().map(of).collect::<Result<Vec<_>>>()?, 0)?;
        Ok(linear(&vectors, &texts, None)?.argmax(1)?.to_vec1()?)
    };
    let looks = nearest(&LOOKS.map(|(.., text)| vec![text.to_string()]))?;
    // "On a rainy day" tells of rain: the last one that is named.
    let told = |p: &Picture| LOOKS.iter().rposition(|(_, told, _)| words(&p.prompt).any(|word| told.contains(&word.as_str())));
    let told: Vec<Option<usize>> = pictures.iter().map(told).collect();
    println!("\n| prompt tells of | pictures | look like it | chance |\n|---|---|---|---|");
    let names = LOOKS.map(|(name, ..)| name);
    table_of(&names, &looks, |picture, look| told[picture] == Some(look));

    let say = |[one, many]: [&str; 2]| {
        let said = |(.., look): &(&str, &[&str], &str)| {
            let light = look.trim_start_matches("a photo of a street ");
            [format!("a photo of a street with a {one} {light}"), format!("a photo of a street with {many} {light}")]
        };
        LOOKS.iter().flat_map(said).collect()
    };
    let things = nearest(&THINGS.map(say))?;
    println!("\n| prompt names | pictures | nearest to its words | chance |\n|---|---|---|---|");
    let named =
        |picture: usize, thing: usize| words(&pictures[picture].prompt).any(|word| THINGS[thing].contains(&word.as_str()));
    table_of(&THINGS.map(|[one, _]| one), &things, named);
    Ok(())
}

/// A line for each name: how often a picture that should show it was taken for it.
fn table_of(names: &[&str], taken: &[u32], should: impl Fn(usize, usize) -> bool) {
    let mut table = Table::default();
    for (entry, name) in names.iter().enumerate() {
        let wanted: Vec<bool> = (0..taken.len()).map(|picture| should(picture, entry)).collect();
        let shows: Vec<bool> = taken.iter().map(|taken| *taken as usize == entry).collect();
        table.line(name, &wanted, &shows);
    }
    table.end();
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
