//! The photos and captions of a pretraining.

use super::Size;
use crate::base::progress::Progress;
use crate::base::{Error, Result, Rng};
use crate::data::resize::{antialiased, nearest};
use crate::data::transforms::Example;
use crate::io::images::{self, RgbImage};
use crate::labels::{IGNORE, LabelMap};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Where photos and captions are, and how they are seen.
#[derive(Debug, Clone, Copy)]
pub struct PhotoSettings<'a> {
    /// Folder of photos.
    pub images: &'a str,
    /// JSON lines `{"file_name": …, "text": …}`; empty: none.
    pub captions: &'a str,
    /// Caption of photos without one of their own; without it, those are left out.
    pub template: Option<&'a str>,
    /// Size that photos are resized to cover.
    pub size: Size,
    /// Chance that a use of a photo mirrors it.
    pub flip: f32,
    /// Where label maps of the photos are, if they are wanted.
    pub labels: Option<LabelSettings<'a>>,
}

/// Label maps: PNGs of train ids, named and sized as the photos.
#[derive(Debug, Clone, Copy)]
pub struct LabelSettings<'a> {
    /// Their folder.
    pub folder: &'a str,
    /// Ids below it are classes, 255 is none.
    pub classes: usize,
}

/// Photos with captions.
#[derive(Debug, Clone)]
pub struct Photos {
    paths: Vec<PathBuf>,
    /// The captions of each photo; one is drawn each time it is used.
    captions: Vec<Vec<String>>,
    /// (height, width) that photos are resized to cover.
    size: (usize, usize),
    flip: f32,
    /// The label map of each photo, or none at all.
    labels: Vec<PathBuf>,
    classes: usize,
    /// Decoded photos, where all of them fit into memory.
    cache: Option<Arc<Vec<OnceLock<Example>>>>,
}

/// Decoded photos are kept up to this many bytes.
const CACHE_BYTES: usize = 2 << 30;

/// One line of a captions file.
#[derive(Debug, Deserialize)]
struct Caption {
    file_name: String,
    text: Texts,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Photos {
    /// The readable photos of a folder; the others are reported.
    ///
    /// # Errors
    /// No photo, none with a caption, or captions that cannot be read.
    pub fn open(settings: &PhotoSettings, progress: &dyn Progress) -> Result<Self> {
        let folder = Path::new(settings.images);
        let scan = images::scan(folder)?;
        if let Some(line) = images::unreadable_line(&scan.unreadable, scan.images.len() + scan.unreadable.len()) {
            progress.warn(&line);
        }
        if scan.images.is_empty() {
            return Err(Error::data(folder, "photos to learn from", "none", "check `--images`"));
        }
        let named = if settings.captions.is_empty() { BTreeMap::new() } else { read_captions(Path::new(settings.captions))? };
        let own = |path: &PathBuf| named.get(path.file_name().and_then(|n| n.to_str()).unwrap_or_default()).cloned();
        if !named.is_empty() {
            let count = scan.images.iter().filter(|path| own(path).is_some()).count();
            progress.say(&format!("captions: {count} of {} photos have their own", scan.images.len()));
        }
        let caption = |path: PathBuf| Some((own(&path).or_else(|| settings.template.map(|text| vec![text.into()]))?, path));
        let (captions, paths): (Vec<Vec<String>>, Vec<PathBuf>) = scan.images.into_iter().filter_map(caption).unzip();
        if paths.is_empty() {
            let expected = format!("captions of the photos in {}", folder.display());
            let next = "`file_name` is the name of a photo without its folder";
            return Err(Error::data(settings.captions, expected, "none of these names", next));
        }
        let (size, flip) = ((settings.size.height, settings.size.width), settings.flip);
        let labels = settings.labels.map_or(Ok(Vec::new()), |labels| label_files(labels.folder, &paths))?;
        let classes = settings.labels.map_or(0, |labels| labels.classes);
        // Twice the area: photos cover the size and may be longer.
        let fits = paths.len() * size.0 * size.1 * 4 * 2 <= CACHE_BYTES;
        let cache = fits.then(|| Arc::new(paths.iter().map(|_| OnceLock::new()).collect()));
        Ok(Self { paths, captions, size, flip, labels, classes, cache })
    }

    /// Number of photos.
    pub(crate) fn len(&self) -> usize {
        self.paths.len()
    }

    /// Texts that the tokenizer learns from: all captions, and the prompts that ship with the program, so that their words
    /// are in the vocabulary.
    pub fn vocabulary(&self) -> Vec<String> {
        let shipped = crate::prompting::SHIPPED.iter().flat_map(|(_, text)| text.lines().map(str::to_string));
        self.captions.iter().flatten().cloned().chain(shipped.filter(|line| !line.starts_with('#'))).collect()
    }

    /// One of the photo's captions.
    pub fn caption(&self, index: usize, rng: &mut Rng) -> &str {
        let texts = &self.captions[index];
        &texts[rng.below(texts.len())]
    }

    /// All captions of a photo.
    pub fn captions(&self, index: usize) -> &[String] {
        &self.captions[index]
    }

    /// Whether a use of a photo mirrors it.
    pub fn draw_flip(&self, rng: &mut Rng) -> bool {
        rng.uniform() < self.flip
    }

    /// The photo resized to cover the size and cropped in the middle, mirrored if asked for.
    pub fn whole(&self, index: usize, flip: bool) -> Result<RgbImage> {
        Ok(self.example(index, flip)?.image)
    }

    /// As [`Self::whole`], the label map; none when no folder of label maps was given.
    pub fn whole_label(&self, index: usize, flip: bool) -> Result<Option<LabelMap>> {
        Ok(self.example(index, flip)?.label)
    }

    /// As [`Self::whole`], with its label map.
    pub(crate) fn example(&self, index: usize, flip: bool) -> Result<Example> {
        let cover = self.covering(index)?;
        let (height, width) = self.size;
        let offset = ((cover.image.height - height) / 2, (cover.image.width - width) / 2);
        let cropped = cover.crop(offset, self.size);
        Ok(if flip { cropped.flip() } else { cropped })
    }

    /// A random square crop of a random photo.
    ///
    /// # Randomness
    /// The photo, top, left, the mirror.
    pub fn random_crop(&self, side: usize, rng: &mut Rng) -> Result<RgbImage> {
        let cover = self.covering(rng.below(self.len()))?;
        let side = side.min(self.size.0).min(self.size.1);
        let offset = (rng.below(cover.image.height - side + 1), rng.below(cover.image.width - side + 1));
        let cropped = cover.crop(offset, (side, side));
        Ok(if self.draw_flip(rng) { cropped.flip() } else { cropped }.image)
    }

    /// A random part of a photo with the proportions of the size and `share` (0 to 1) of its sides, resized to the size.
    ///
    /// # Randomness
    /// Top, left, the mirror.
    pub fn random_part(&self, index: usize, share: f32, rng: &mut Rng) -> Result<RgbImage> {
        let cover = self.covering(index)?;
        let side = |whole: usize| ((whole as f32 * share).round() as usize).clamp(1, whole);
        let part = (side(self.size.0), side(self.size.1));
        let offset = (rng.below(cover.image.height - part.0 + 1), rng.below(cover.image.width - part.1 + 1));
        let cropped = cover.crop(offset, part);
        let cropped = if self.draw_flip(rng) { cropped.flip() } else { cropped };
        Ok(antialiased(&cropped.image, self.size))
    }

    fn covering(&self, index: usize) -> Result<Example> {
        let Some(slot) = self.cache.as_ref().map(|cache| &cache[index]) else { return self.decode(index) };
        if let Some(example) = slot.get() {
            return Ok(example.clone());
        }
        let example = self.decode(index)?;
        Ok(slot.get_or_init(|| example).clone())
    }

    fn decode(&self, index: usize) -> Result<Example> {
        let image = images::read_rgb(&self.paths[index])?;
        let scale = (self.size.0 as f64 / image.height as f64).max(self.size.1 as f64 / image.width as f64);
        let cover = |side: usize, least: usize| ((side as f64 * scale).round() as usize).max(least);
        let size = (cover(image.height, self.size.0), cover(image.width, self.size.1));
        let label = self.labels.get(index).map(|path| self.label(path, (image.height, image.width))).transpose()?;
        Ok(Example { image: antialiased(&image, size), label: label.map(|label| nearest(&label, size)) })
    }

    fn label(&self, path: &Path, size: (usize, usize)) -> Result<LabelMap> {
        let raw = images::read_label(path)?;
        if (raw.height, raw.width) != size {
            let found = format!("{}x{}", raw.height, raw.width);
            return Err(Error::data(path, format!("the size of its photo, {}x{}", size.0, size.1), found, "check `labels`"));
        }
        let id = |&id: &u16| u8::try_from(id).ok().filter(|&id| usize::from(id) < self.classes || id == IGNORE);
        match raw.pixels.iter().map(id).collect() {
            Some(ids) => Ok(LabelMap { height: size.0, width: size.1, ids }),
            None => {
                let (largest, last) = (raw.pixels.iter().max().copied().unwrap_or(0), self.classes - 1);
                let next = "map the ids to train ids, e.g. by `datum dataset prepare`, or correct `unet.label_classes`";
                Err(Error::data(path, format!("train ids 0 to {last} or {IGNORE}"), format!("ids up to {largest}"), next))
            }
        }
    }
}

/// The label map of every photo.
fn label_files(folder: &str, photos: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let name = |photo: &PathBuf| {
        let stem = photo.file_stem().unwrap_or_default().to_string_lossy();
        Path::new(folder).join(format!("{stem}.png"))
    };
    let files: Vec<PathBuf> = photos.iter().map(name).collect();
    let missing = files.iter().filter(|file| !file.is_file()).count();
    match files.iter().find(|file| !file.is_file()) {
        None => Ok(files),
        Some(first) => {
            let found = format!("none for {missing} of {} photos, e.g. no {}", photos.len(), first.display());
            Err(Error::data(folder, "a label map (PNG) of the name of each photo", found, "check `labels`"))
        }
    }
}

fn read_captions(path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let mut captions = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let caption: Caption = serde_json::from_str(line).map_err(|e| {
            let expected = "one JSON object a line: {\"file_name\": \"a.jpg\", \"text\": \"a photo of cars\"}";
            Error::data(path, expected, format!("line {}: {e}", number + 1), "correct that line")
        })?;
        let texts = match caption.text {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        };
        if texts.is_empty() {
            return Err(Error::data(
                path,
                "at least one text a photo",
                format!("none in line {}", number + 1),
                "correct that line",
            ));
        }
        captions.insert(caption.file_name, texts);
    }
    Ok(captions)
}
/// The number of pictures and a fingerprint of their names in order. Trainings draw pictures by their numbers: one more or less changes
/// all draws, and a run must not go on with others.
pub fn listed<'a>(files: impl Iterator<Item = &'a PathBuf>) -> String {
    let (mut count, mut hasher) = (0, blake3::Hasher::new());
    for file in files {
        count += 1;
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes()).update(b"\n");
    }
    format!("{count} pictures ({})", &hasher.finalize().to_hex()[..8])
}
