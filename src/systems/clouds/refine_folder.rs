//! `clouds refine`: a folder of pseudo-labels with the outlines of the pictures.
//!
//! ```text
//! RUN/
//!   labels/STEM.png   palette PNGs of train ids, 255 where no mask is; named after the pictures, folders included
//!   manifest.jsonl    one line a picture: what it was made from, and what has changed
//! ```

use super::refine::{MaskProposer, RefineConfig, Selection, class_masks, label_of, region_prompts, union};
use super::refiner::{REGIONS, RefinerConfig};
use super::regions::Regions;
use crate::base::progress::Progress;
use crate::base::{Error, Result, Rng, interrupt};
use crate::io::hash;
use crate::io::images::{self, RgbImage};
use crate::io::manifest::{Manifest, Record};
use crate::labels::{Classes, IGNORE, IdMap, LabelMap, list_ids};
use crate::train::run_dir::RunDir;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Folder of the refined labels in a run.
const LABELS: &str = "labels";
/// List of what is finished.
const MANIFEST: &str = "manifest.jsonl";
/// What names of labels may add to names of their pictures.
const SUFFIXES: [&str; 3] = ["", "_labelTrainIds", "_gtFine_labelTrainIds"];

/// Every value of `clouds refine` with its default. Field names are the keys of recipes and of `--set`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefineFolderConfig {
    /// Folder of the pictures, or a run of `clouds generate`.
    pub images: String,
    /// Folder of the pseudo-labels: PNGs of train ids named like the pictures.
    pub labels: String,
    /// Data set, by name or TOML file, whose classes the labels hold.
    pub classes: String,
    /// `none`, `regions`, `nano`, or a file with weights of SAM or MobileSAM.
    pub refiner: String,
    /// See [`RefinerConfig::batch_statistics`].
    pub batch_statistics: bool,
    /// See [`RefineConfig::min_area`].
    pub min_area: usize,
    /// See [`RefineConfig::erosion`].
    pub erosion: usize,
    /// See [`RefineConfig::points`].
    pub points: usize,
    /// See [`RefineConfig::selection`].
    pub selection: Selection,
    /// See [`RefineConfig::remove_intersections`].
    pub remove_intersections: bool,
    /// See [`RefineConfig::second_pass`].
    pub second_pass: bool,
    /// Pixels of no mask stay as they were instead of becoming 255.
    pub keep_unassigned: bool,
    /// Seed of the points.
    pub seed: u64,
    /// How `regions` are found.
    pub regions: Regions,
}

impl Default for RefineFolderConfig {
    fn default() -> Self {
        let RefineConfig { min_area, erosion, points, selection, remove_intersections, second_pass } = RefineConfig::default();
        Self {
            images: String::new(),
            labels: String::new(),
            classes: "cityscapes".into(),
            refiner: REGIONS.into(),
            batch_statistics: false,
            min_area,
            erosion,
            points,
            selection,
            remove_intersections,
            second_pass,
            keep_unassigned: false,
            seed: 0,
            regions: Regions::default(),
        }
    }
}

impl RefineFolderConfig {
    /// # Errors
    /// Missing folders and values that nothing can be done with.
    pub fn validate(&self) -> Result<()> {
        for (flag, value) in [("--images", &self.images), ("--labels", &self.labels)] {
            if value.is_empty() {
                return Err(Error::Usage(format!("refine needs pictures and their pseudo-labels\n  next: add `{flag} DIR`")));
            }
        }
        self.regions.validate()?;
        self.refine().validate()
    }

    fn refine(&self) -> RefineConfig {
        let &Self { min_area, erosion, points, selection, remove_intersections, second_pass, .. } = self;
        RefineConfig { min_area, erosion, points, selection, remove_intersections, second_pass }
    }

    fn refiner(&self) -> RefinerConfig {
        let &Self { batch_statistics, regions, .. } = self;
        RefinerConfig { refiner: self.refiner.clone(), batch_statistics, regions }
    }

    /// Fingerprint of all that decides what becomes of a picture and its label.
    fn fingerprint(&self) -> Result<String> {
        let weights = Path::new(&self.refiner);
        let refiner = if weights.is_file() { hash::file(weights)? } else { self.refiner.clone() };
        let bare = Self { images: String::new(), labels: String::new(), classes: String::new(), refiner, ..self.clone() };
        let text = toml::to_string(&bare).map_err(|e| Error::Usage(e.to_string()))?;
        Ok(blake3::hash(text.as_bytes()).to_hex()[..16].to_string())
    }
}

/// What a run left behind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refined {
    /// Folder of the refined labels.
    pub labels: PathBuf,
    /// What drew the masks.
    pub refiner: String,
    /// Pictures refined now.
    pub made: u64,
    /// Pictures that were there already, unchanged.
    pub kept: u64,
    /// Pictures that cannot be read.
    pub unreadable: u64,
    /// Pictures without a region that is large enough; their labels stay as they are.
    pub without_regions: u64,
    /// Share of all pixels that got another class, 0 to 1.
    pub changed: f64,
    /// Share of all pixels that lost their class.
    pub unassigned: f64,
    /// In how many pictures a class has disappeared, by its name.
    pub dropped: BTreeMap<String, u64>,
    /// Mean over the pictures refined now.
    pub seconds_per_picture: f64,
}

/// One line of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Picture {
    index: u64,
    /// Path below the folder of pictures, without extension.
    stem: String,
    file: String,
    blake3: String,
    /// BLAKE3 of what it was made from.
    image_blake3: String,
    label_blake3: String,
    settings: String,
    refiner: String,
    regions: usize,
    pixels: u64,
    changed: u64,
    unassigned: u64,
    dropped: Vec<String>,
}

impl Record for Picture {
    fn index(&self) -> u64 {
        self.index
    }

    fn files(&self) -> Vec<(&str, &str)> {
        vec![(&self.file, &self.blake3)]
    }
}

/// A picture and its pseudo-label.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    stem: String,
    image: PathBuf,
    label: PathBuf,
}

impl Pair {
    /// The same for a picture in any folder of pictures.
    fn index(&self) -> u64 {
        let digest = blake3::hash(self.stem.as_bytes());
        let first: [u8; 8] = std::array::from_fn(|i| digest.as_bytes()[i]);
        // JSON readers keep 53 bits.
        u64::from_le_bytes(first) >> 11
    }
}

/// Refines the pseudo-labels that are not there yet into `run`. `classes` are those of the labels.
///
/// # Errors
/// Unusable settings, weights or folders; a picture without a label, or with one of another size or with other ids; interruption
/// (finished labels are kept).
pub fn run(config: &RefineFolderConfig, classes: &Classes, run: &RunDir, progress: &dyn Progress) -> Result<Refined> {
    config.validate()?;
    let (pairs, mut unreadable) = pairs(Path::new(&config.images), Path::new(&config.labels), progress)?;
    let job = Job { config, classes, folder: run.path(), proposer: config.refiner().open()?, settings: config.fingerprint()? };
    let mut manifest = Manifest::<Picture>::open(&run.path().join(MANIFEST))?;
    let mut missing = Vec::new();
    for pair in &pairs {
        if !job.is_made(&manifest, pair)? {
            missing.push(pair);
        }
    }
    let kept = (pairs.len() - missing.len()) as u64;
    if kept > 0 {
        progress.say(&format!("{kept} of {} labels are there already", pairs.len()));
    }
    let wanted: BTreeSet<u64> = pairs.iter().map(Pair::index).collect();
    let again: BTreeSet<u64> = missing.iter().map(|pair| pair.index()).collect();
    manifest.retain(|record| wanted.contains(&record.index) && !again.contains(&record.index))?;
    progress.say(&format!("refiner: {}", job.name()));
    progress.stage("refine", pairs.len() as u64, kept);
    let (mut made, start) = (0, Instant::now());
    for pair in missing {
        if interrupt::requested() {
            return Err(Error::Interrupted {
                resume: format!("run the same command with `--output {}`; finished labels are kept", run.path().display()),
            });
        }
        match images::read_rgb(&pair.image) {
            Ok(image) => manifest.append(job.make(pair, &image)?)?,
            Err(error) => {
                unreadable.push(error);
                continue;
            }
        }
        made += 1;
        progress.step(kept + made, &pair.stem);
    }
    progress.end();
    if let Some(line) = images::unreadable_line(&unreadable, pairs.len()) {
        progress.warn(&line);
    }
    let seconds_per_picture = if made > 0 { start.elapsed().as_secs_f64() / made as f64 } else { 0.0 };
    let count = |number: &dyn Fn(&Picture) -> u64| manifest.records().iter().map(number).sum::<u64>();
    let pixels = count(&|picture| picture.pixels).max(1) as f64;
    let mut dropped = BTreeMap::new();
    for class in manifest.records().iter().flat_map(|picture| &picture.dropped) {
        *dropped.entry(class.clone()).or_insert(0) += 1;
    }
    Ok(Refined {
        labels: run.path().join(LABELS),
        refiner: job.name(),
        made,
        kept,
        unreadable: unreadable.len() as u64,
        without_regions: count(&|picture| u64::from(picture.regions == 0)),
        changed: count(&|picture| picture.changed) as f64 / pixels,
        unassigned: count(&|picture| picture.unassigned) as f64 / pixels,
        dropped,
        seconds_per_picture,
    })
}

struct Job<'a> {
    config: &'a RefineFolderConfig,
    classes: &'a Classes,
    folder: &'a Path,
    proposer: Option<Box<dyn MaskProposer>>,
    settings: String,
}

impl Job<'_> {
    fn name(&self) -> String {
        self.proposer.as_ref().map_or("none".into(), |proposer| proposer.name())
    }

    /// True when the label of `pair` was refined from the same files with the same settings and is intact.
    fn is_made(&self, manifest: &Manifest<Picture>, pair: &Pair) -> Result<bool> {
        let Some(record) = manifest.intact(pair.index()) else { return Ok(false) };
        let same = record.stem == pair.stem && record.settings == self.settings;
        Ok(same && record.image_blake3 == hash::file(&pair.image)? && record.label_blake3 == hash::file(&pair.label)?)
    }

    fn make(&self, pair: &Pair, image: &RgbImage) -> Result<Picture> {
        let label = self.read(&pair.label)?;
        if (label.height, label.width) != (image.height, image.width) {
            let expected = format!("a label of {}x{} like its picture (width x height)", image.width, image.height);
            let found = format!("{}x{}", label.width, label.height);
            return Err(Error::data(&pair.label, expected, found, "write predictions at the size of their pictures"));
        }
        let (refined, regions) = self.refined(pair, image, &label)?;
        let file = format!("{LABELS}/{}.png", pair.stem);
        let path = self.folder.join(&file);
        let text = [("refiner".to_string(), self.name())];
        images::write_palette_png(&path, (label.height, label.width), &refined.ids, &self.classes.palette, &text)?;
        let count = |wanted: &dyn Fn(u8, u8) -> bool| {
            label.ids.iter().zip(&refined.ids).filter(|(old, new)| wanted(**old, **new)).count() as u64
        };
        let (old, new) = (label.histogram(), refined.histogram());
        let dropped = |(id, name): (usize, &String)| (old[id] > 0 && new[id] == 0).then(|| name.clone());
        Ok(Picture {
            index: pair.index(),
            stem: pair.stem.clone(),
            blake3: hash::file(&path)?,
            file,
            image_blake3: hash::file(&pair.image)?,
            label_blake3: hash::file(&pair.label)?,
            settings: self.settings.clone(),
            refiner: self.name(),
            regions,
            pixels: label.ids.len() as u64,
            changed: count(&|old, new| old != new && new != IGNORE),
            unassigned: count(&|old, new| old != new && new == IGNORE),
            dropped: self.classes.names.iter().enumerate().filter_map(dropped).collect(),
        })
    }

    /// The refined label and the number of regions that were asked for.
    fn refined(&self, pair: &Pair, image: &RgbImage, label: &LabelMap) -> Result<(LabelMap, usize)> {
        let config = self.config.refine();
        let prompts = region_prompts(label, &config, &mut Rng::stream(self.config.seed, "refine", &[pair.index()]));
        let masks = match &self.proposer {
            Some(proposer) if !prompts.is_empty() => {
                union(&prompts, proposer.masks(image, &prompts, config.second_pass)?, config.remove_intersections)
            }
            _ => class_masks(label),
        };
        Ok((label_of(&masks, label, self.config.keep_unassigned), prompts.len()))
    }

    fn read(&self, path: &Path) -> Result<LabelMap> {
        let raw = images::read_label(path)?;
        let train_ids = IdMap::TrainIds { num_classes: self.classes.len(), ignore_index: u16::from(IGNORE) };
        train_ids.apply(raw.height, raw.width, &raw.pixels).map_err(|wrong| {
            let expected =
                format!("train ids below {} ({} classes of `{}`)", self.classes.len(), self.classes.len(), self.config.classes);
            let next =
                "name the data set that the classes come from with `--classes`; `predict --format train-ids` writes train ids";
            Error::data(path, expected, list_ids(&wrong), next)
        })
    }
}

/// The part of a run folder that is meant, or the folder itself.
fn inside(folder: &Path, part: &str) -> PathBuf {
    let below = folder.join(part);
    if folder.join("recipe.toml").is_file() && below.is_dir() { below } else { folder.into() }
}

/// Path below `folder` without extension, parts separated by `/`.
fn stem_of(path: &Path, folder: &Path) -> String {
    let inside = path.strip_prefix(folder).unwrap_or(path).with_extension("");
    inside.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Every readable picture with its label, sorted; and the pictures that are none.
///
/// # Errors
/// A folder without pictures; pictures without a label.
fn pairs(images: &Path, labels: &Path, progress: &dyn Progress) -> Result<(Vec<Pair>, Vec<Error>)> {
    let (images, labels) = (inside(images, "images"), inside(labels, LABELS));
    let scan = images::scan(&images)?;
    let files: Vec<PathBuf> = images::list(&labels)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")))
        .collect();
    let by_stem: BTreeMap<String, &PathBuf> = files.iter().map(|path| (stem_of(path, &labels), path)).collect();
    let label = |stem: &str| {
        // In Cityscapes' layout the picture's name has an ending of its own.
        let bare = stem.strip_suffix("_leftImg8bit").unwrap_or(stem);
        let names = [stem, bare].into_iter().flat_map(|stem| SUFFIXES.map(|suffix| format!("{stem}{suffix}")));
        names.into_iter().find_map(|name| by_stem.get(&name).map(|path| (**path).clone()))
    };
    let (mut pairs, mut without) = (Vec::new(), Vec::new());
    for image in scan.images {
        let stem = stem_of(&image, &images);
        match label(&stem) {
            Some(label) => pairs.push(Pair { stem, image, label }),
            None => without.push(stem),
        }
    }
    if let Some(first) = without.first() {
        let expected = "one PNG of train ids for each picture, named like it";
        let found = format!("none for {} of {} pictures, e.g. {first}.png", without.len(), without.len() + pairs.len());
        let next = "write the missing ones, e.g. with `clouds predict --format train-ids`, or name another folder";
        return Err(Error::data(&labels, expected, found, next));
    }
    if let Some(twice) = pairs.windows(2).find(|two| two[0].stem == two[1].stem) {
        let found = format!("{} and {}", twice[0].image.display(), twice[1].image.display());
        return Err(Error::data(&images, "pictures of different names", found, "rename one of them"));
    }
    if files.len() > pairs.len() {
        progress.warn(&format!("{} of {} labels belong to no picture and are left out", files.len() - pairs.len(), files.len()));
    }
    Ok((pairs, scan.unreadable))
}
