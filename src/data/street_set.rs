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

use super::descriptor::classes_of;
use super::street::focus::{self, Focus};
use super::street::{Look, Rendered, Scene};
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::io::manifest::{self, Manifest, Record, json_lines};
use crate::io::{atomic, hash, images};
use crate::labels::Classes;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
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
    /// Share of scenes that are about one kind of thing, near the camera, 0 to 1; for teaching text-to-image models.
    pub focus: f64,
    /// Share of those in which one thing fills much of the picture, 0 to 1.
    pub close_up: f64,
    /// Kinds of things those scenes are about, each as often as it is named; all ten if none is.
    pub about: Vec<String>,
    /// Seed of all scenes.
    pub seed: u64,
}

impl Default for StreetSet {
    fn default() -> Self {
        Self {
            count: 500,
            width: 512,
            height: 256,
            look: vec![Look::Day.name().into()],
            focus: 0.0,
            close_up: 0.0,
            about: Vec::new(),
            seed: 0,
        }
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
struct Rendering {
    index: u64,
    file: String,
    label: String,
    look: String,
    seed: u64,
    width: usize,
    height: usize,
    #[serde(default)]
    focus: f64,
    #[serde(default)]
    close_up: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    about: Vec<String>,
    /// BLAKE3 of the picture and of its label map.
    blake3: String,
    label_blake3: String,
    captions: Vec<String>,
    /// Visible things: class name and number.
    things: BTreeMap<String, usize>,
}

impl Record for Rendering {
    fn index(&self) -> u64 {
        self.index
    }

    fn files(&self) -> Vec<(&str, &str)> {
        vec![(&self.file, &self.blake3), (&self.label, &self.label_blake3)]
    }
}

impl StreetSet {
    /// Checks all settings, also against what is in `folder`; changes nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for numbers out of range, unknown looks, and a folder with scenes of other settings.
    pub fn check(&self, folder: Option<&Path>) -> Result<()> {
        self.check_numbers()?;
        let looks = self.looks()?;
        self.kinds()?;
        let Some(folder) = folder.filter(|folder| Self::is_begun(folder)) else { return Ok(()) };
        let (records, _) = manifest::read::<Rendering>(&folder.join(MANIFEST))?;
        let fits = |record: &&Rendering| {
            (record.seed, record.width, record.height) == (self.seed, self.width, self.height)
                && (record.focus, record.close_up, &record.about) == (self.focus, self.close_up, &self.about)
                && record.look == look_of(&looks, record.index).name()
        };
        match records.iter().find(|record| !fits(record)) {
            None => Ok(()),
            Some(other) => Err(Error::Usage(format!(
                "{} holds scenes of other settings: seed {}, {}x{}, focus {}, close-up {}, about {:?}, scene {} by the look `{}`\n  next: choose \
                 another `--output`, or give the same settings to add scenes",
                folder.display(),
                other.seed,
                other.width,
                other.height,
                other.focus,
                other.close_up,
                other.about,
                other.index,
                other.look
            ))),
        }
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
        self.check(Some(folder))?;
        let job = Job::new(self, folder)?;
        let mut manifest = Manifest::<Rendering>::open(&folder.join(MANIFEST))?;
        let missing: Vec<u64> = (0..self.count).into_par_iter().filter(|&index| manifest.intact(index).is_none()).collect();
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
            manifest.append_all(batch.par_iter().map(|&index| job.make(index)).collect::<Result<Vec<_>>>()?)?;
            made += batch.len() as u64;
            progress.step(kept + made, "");
        }
        progress.end();
        manifest.sort()?;
        job.lists(manifest.records())?;
        if made < missing.len() as u64 {
            // Without `--output`, the same command would begin another folder.
            let resume = format!("run the same command with `--output {}`; finished scenes are kept", folder.display());
            return Err(Error::Interrupted { resume });
        }
        Ok(Written { images: folder.join(IMAGES), captions: folder.join(CAPTIONS), made, kept })
    }

    fn looks(&self) -> Result<Vec<Look>> {
        if self.look.is_empty() {
            return Err(Error::Usage("no look\n  next: add e.g. `--look day`".into()));
        }
        self.look.iter().map(|name| name.trim().parse().map_err(|e| Error::Usage(format!("--look: {e}")))).collect()
    }

    fn kinds(&self) -> Result<Vec<Focus>> {
        focus::kinds(&self.about).map_err(|e| Error::Usage(format!("--about: {e}")))
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
        for (flag, share) in [("--focus", self.focus), ("--close-up", self.close_up)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::Usage(format!("{flag} {share}: expected a share from 0 to 1")));
            }
        }
        if self.focus == 0.0 && (self.close_up > 0.0 || !self.about.is_empty()) {
            let flag = if self.close_up > 0.0 { "--close-up" } else { "--about" };
            let text = format!("{flag} without --focus: no scene is about one kind of thing");
            return Err(Error::Usage(format!("{text}\n  next: add e.g. `--focus 0.5`")));
        }
        if self.count == 0 || self.count > MOST {
            return Err(Error::Usage(format!("--count {}: expected 1 to {MOST}\n  next: give the number of scenes", self.count)));
        }
        Ok(())
    }
}

fn look_of(looks: &[Look], index: u64) -> Look {
    looks[(index % looks.len() as u64) as usize]
}

struct Job<'a> {
    set: &'a StreetSet,
    folder: &'a Path,
    looks: Vec<Look>,
    kinds: Vec<Focus>,
    classes: Classes,
}

impl<'a> Job<'a> {
    fn new(set: &'a StreetSet, folder: &'a Path) -> Result<Self> {
        Ok(Self { set, folder, looks: set.looks()?, kinds: set.kinds()?, classes: classes_of("street")? })
    }

    /// Renders one scene and writes its files.
    fn make(&self, index: u64) -> Result<Rendering> {
        let set = self.set;
        let look = look_of(&self.looks, index);
        let scene = match focus::drawn(set.seed, index, set.focus, &self.kinds) {
            None => Scene::new(set.seed, index),
            Some(kind) => Scene::about(set.seed, index, kind, set.close_up),
        };
        let Rendered { image, labels, captions, things } = scene.render((set.height, set.width), look);
        let (file, label) = (format!("{IMAGES}/{index:06}.png"), format!("{LABELS}/{index:06}.png"));
        let (image_path, label_path) = (self.folder.join(&file), self.folder.join(&label));
        images::write_png_fast(&image_path, &image)?;
        images::write_palette_png(&label_path, (set.height, set.width), &labels.ids, &self.classes.palette, &[])?;
        let named = |(class, number): &(u8, usize)| Some((self.classes.names.get(usize::from(*class))?.clone(), *number));
        Ok(Rendering {
            index,
            file,
            label,
            look: look.name().into(),
            seed: set.seed,
            width: set.width,
            height: set.height,
            focus: set.focus,
            close_up: set.close_up,
            about: set.about.clone(),
            blake3: hash::file(&image_path)?,
            label_blake3: hash::file(&label_path)?,
            captions,
            things: things.iter().filter_map(named).collect(),
        })
    }

    /// Writes the captions and the splits.
    fn lists(&self, records: &[Rendering]) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| atomic::write(&self.folder.join(name), bytes);
        let caption = |r: &Rendering| json!({ "file_name": format!("{:06}.png", r.index), "text": r.captions });
        let captions: Vec<_> = records.iter().map(caption).collect();
        write(CAPTIONS, &json_lines(&captions).map_err(|e| Error::io(self.folder.join(CAPTIONS), e))?)?;
        let rounds = |index: u64| index / self.looks.len() as u64;
        let split = |validation: bool| -> String {
            let mine = records.iter().filter(|r| (rounds(r.index) % 10 == 9) == validation);
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
