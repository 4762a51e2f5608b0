//! Folders of rendered street scenes: a labelled data set, and captions for text-to-image training.
//!
//! ```text
//! FOLDER/
//!   images/000000.png     the pictures; their number is that of the scene
//!   labels/000000.png     palette PNGs whose indices are Cityscapes train ids
//!   captions.jsonl        one line a picture: {"file_name": "000000.png", "text": ["a photo of …", …]}
//!   manifest.jsonl        one line a picture: look, seed, hashes, visible things
//!   train.txt, val.txt    stems of the splits: of ten rounds of looks, the last one is `val`
//! ```
//!
//! Scene number i is the same alone, in any number of scenes and with any number of threads; its look is entry i modulo the
//! number of looks. `street=FOLDER` opens the folder as a [`Dataset`](super::Dataset).

use super::dataset::Search;
use super::descriptor::Descriptor;
use super::street::{Look, Rendered, Scene};
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::io::{atomic, hash, images};
use crate::labels::Classes;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Folder of the pictures, of the label maps, and the list of what is finished.
const IMAGES: &str = "images";
/// See [`IMAGES`].
const LABELS: &str = "labels";
/// See [`IMAGES`].
const MANIFEST: &str = "manifest.jsonl";
/// The captions, as `datum pretrain --captions` reads them.
pub const CAPTIONS: &str = "captions.jsonl";
/// Shortest and longest side of a picture.
const SIDES: std::ops::RangeInclusive<usize> = 16..=4096;
/// Largest number of scenes.
const MOST: u64 = 10_000_000;
/// Scenes between two entries in the manifest.
const BATCH: usize = 32;

/// What to render.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreetSet {
    /// Number of scenes.
    pub count: u64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Names of looks; scenes take them in turn.
    pub look: Vec<String>,
    /// Seed of all scenes.
    pub seed: u64,
}

impl Default for StreetSet {
    fn default() -> Self {
        Self { count: 500, width: 512, height: 256, look: vec![Look::Day.name().into()], seed: 0 }
    }
}

/// What a rendering left behind.
#[derive(Debug, Clone)]
pub struct Written {
    /// The folder of pictures.
    pub images: PathBuf,
    /// The captions file.
    pub captions: PathBuf,
    /// Scenes rendered now.
    pub made: u64,
    /// Scenes that were there already, unchanged.
    pub kept: u64,
}

/// One line of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    index: u64,
    file: String,
    label: String,
    look: String,
    seed: u64,
    width: usize,
    height: usize,
    /// BLAKE3 of the picture and of its label map.
    blake3: String,
    label_blake3: String,
    captions: Vec<String>,
    /// Visible things: class name and number.
    things: BTreeMap<String, usize>,
}

impl StreetSet {
    /// Checks all settings, also against what is in `folder`; changes nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for numbers out of range, unknown looks, and a folder with scenes of other settings.
    pub fn check(&self, folder: Option<&Path>) -> Result<()> {
        self.check_numbers()?;
        self.looks()?;
        folder.map_or(Ok(()), |folder| Job::new(self, folder).map(|_| ()))
    }

    /// True if a rendering was begun in `folder`.
    pub fn is_begun(folder: &Path) -> bool {
        folder.join(MANIFEST).is_file()
    }

    /// Renders the scenes that are not there yet.
    ///
    /// # Errors
    /// Those of [`Self::check`]; [`Error::Io`] when the folder cannot be written; [`Error::Interrupted`] after Ctrl-C, with all
    /// finished scenes kept.
    pub fn write(&self, folder: &Path, progress: &dyn Progress) -> Result<Written> {
        let mut job = Job::new(self, folder)?;
        // From here on the folder counts as ours, and a torn last line is gone.
        job.write_manifest()?;
        let missing = job.missing();
        let kept = self.count - missing.len() as u64;
        if kept > 0 {
            progress.say(&format!("{kept} of {} scenes are there already", self.count));
        }
        progress.stage("render", self.count, kept);
        let mut made = 0;
        for batch in missing.chunks(BATCH) {
            if interrupt::requested() {
                break;
            }
            let records = batch.par_iter().map(|&index| job.make(index)).collect::<Result<Vec<_>>>()?;
            job.append(records)?;
            made += batch.len() as u64;
            progress.step(kept + made, "");
        }
        progress.end();
        job.lists()?;
        if made < missing.len() as u64 {
            return Err(Error::Interrupted { resume: "run the same command again; finished scenes are kept".into() });
        }
        Ok(Written { images: folder.join(IMAGES), captions: folder.join(CAPTIONS), made, kept })
    }

    fn looks(&self) -> Result<Vec<Look>> {
        if self.look.is_empty() {
            return Err(Error::Usage("no look\n  next: add e.g. `--look day`".into()));
        }
        self.look.iter().map(|name| name.trim().parse().map_err(|e| Error::Usage(format!("--look: {e}")))).collect()
    }

    fn check_numbers(&self) -> Result<()> {
        for (flag, side) in [("--width", self.width), ("--height", self.height)] {
            if !SIDES.contains(&side) {
                let (low, high) = (SIDES.start(), SIDES.end());
                return Err(Error::Usage(format!(
                    "{flag} {side}: expected {low} to {high} pixels\n  next: give a size in that range"
                )));
            }
        }
        if self.count == 0 || self.count > MOST {
            return Err(Error::Usage(format!("--count {}: expected 1 to {MOST}\n  next: give the number of scenes", self.count)));
        }
        Ok(())
    }
}

struct Job<'a> {
    set: &'a StreetSet,
    folder: &'a Path,
    looks: Vec<Look>,
    classes: Classes,
    records: BTreeMap<u64, Record>,
}

impl<'a> Job<'a> {
    fn new(set: &'a StreetSet, folder: &'a Path) -> Result<Self> {
        set.check_numbers()?;
        let looks = set.looks()?;
        let nowhere = Search { folders: Vec::new() };
        let classes = Descriptor::named("street", &nowhere)?.unwrap_or_default().classes()?;
        let job = Self { set, folder, looks, classes, records: read(&folder.join(MANIFEST))? };
        match job.records.values().find(|record| !job.fits(record)) {
            None => Ok(job),
            Some(other) => Err(Error::Usage(format!(
                "{} holds scenes of other settings: seed {}, {}x{}, scene {} by the look `{}`\n  next: choose another `--output`, \
                 or give the same settings to add scenes",
                folder.display(),
                other.seed,
                other.width,
                other.height,
                other.index,
                other.look
            ))),
        }
    }

    fn look(&self, index: u64) -> Look {
        self.looks[(index % self.looks.len() as u64) as usize]
    }

    fn fits(&self, record: &Record) -> bool {
        let set = self.set;
        (record.seed, record.width, record.height) == (set.seed, set.width, set.height)
            && record.look == self.look(record.index).name()
    }

    /// Scenes without files, or with files that were changed.
    fn missing(&self) -> Vec<u64> {
        let same = |file: &str, digest: &str| hash::file(&self.folder.join(file)).is_ok_and(|found| found == digest);
        let there = |index: &u64| {
            let record = self.records.get(index);
            record.is_some_and(|r| same(&r.file, &r.blake3) && same(&r.label, &r.label_blake3))
        };
        (0..self.set.count).into_par_iter().filter(|index| !there(index)).collect()
    }

    /// Renders one scene and writes its files.
    fn make(&self, index: u64) -> Result<Record> {
        let set = self.set;
        let look = self.look(index);
        let Rendered { image, labels, captions, things } = Scene::new(set.seed, index).render((set.height, set.width), look);
        let (file, label) = (format!("{IMAGES}/{index:06}.png"), format!("{LABELS}/{index:06}.png"));
        let (image_path, label_path) = (self.folder.join(&file), self.folder.join(&label));
        images::write_png_fast(&image_path, &image)?;
        images::write_palette_png(&label_path, (set.height, set.width), &labels.ids, &self.classes.palette, &[])?;
        let named = |(class, number): &(u8, usize)| Some((self.classes.names.get(usize::from(*class))?.clone(), *number));
        Ok(Record {
            index,
            file,
            label,
            look: look.name().into(),
            seed: set.seed,
            width: set.width,
            height: set.height,
            blake3: hash::file(&image_path)?,
            label_blake3: hash::file(&label_path)?,
            captions,
            things: things.iter().filter_map(named).collect(),
        })
    }

    fn append(&mut self, records: Vec<Record>) -> Result<()> {
        let path = self.folder.join(MANIFEST);
        let failed = |e| Error::io(&path, e);
        let lines = json_lines(&records).map_err(failed)?;
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        file.write_all(&lines).and_then(|()| file.sync_data()).map_err(failed)?;
        self.records.extend(records.into_iter().map(|record| (record.index, record)));
        Ok(())
    }

    /// Writes the manifest in order, without lines that later ones replaced.
    fn write_manifest(&self) -> Result<()> {
        let path = self.folder.join(MANIFEST);
        let records: Vec<&Record> = self.records.values().collect();
        atomic::write(&path, &json_lines(&records).map_err(|e| Error::io(&path, e))?)
    }

    /// Writes the manifest, the captions and the splits.
    fn lists(&self) -> Result<()> {
        self.write_manifest()?;
        let write = |name: &str, bytes: &[u8]| atomic::write(&self.folder.join(name), bytes);
        let caption = |r: &Record| json!({ "file_name": format!("{:06}.png", r.index), "text": r.captions });
        let captions: Vec<_> = self.records.values().map(caption).collect();
        write(CAPTIONS, &json_lines(&captions).map_err(|e| Error::io(self.folder.join(CAPTIONS), e))?)?;
        let rounds = |index: u64| index / self.looks.len() as u64;
        let split = |validation: bool| -> String {
            let mine = self.records.values().filter(|r| (rounds(r.index) % 10 == 9) == validation);
            mine.map(|r| format!("{:06}\n", r.index)).collect()
        };
        write("train.txt", split(false).as_bytes())?;
        match split(true) {
            // An empty list would be a split without pictures.
            list if list.is_empty() => Ok(()),
            list => write("val.txt", list.as_bytes()),
        }
    }
}

fn json_lines<T: Serialize>(values: &[T]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for value in values {
        serde_json::to_writer(&mut bytes, value)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// The records of a manifest, if there is one; a last line that a killed run left half-written does not count.
fn read(path: &Path) -> Result<BTreeMap<u64, Record>> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut records = BTreeMap::new();
    for (number, line) in text[..whole].split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let record: Record = serde_json::from_slice(line).map_err(|e| {
            let next = "remove that line; its scene is then rendered again";
            Error::data(path, "one scene a line", format!("line {}: {e}", number + 1), next)
        })?;
        records.insert(record.index, record);
    }
    Ok(records)
}
