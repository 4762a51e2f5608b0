//! Scoring label maps that any tool wrote.

use super::evaluator::{Evaluation, finish};
use super::{ConfusionMatrix, Scores};
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::data::{Dataset, Sample};
use crate::io::images;
use crate::labels::{IGNORE, IdMap, LabelMap, list_ids};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What the numbers in a folder of predictions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionIds {
    /// 0…C−1.
    TrainIds,
    /// The data set's file ids.
    LabelIds,
}

/// Scores the id maps (PNG) below `folder` against a split of `dataset`. A map belongs to the picture of the same name, or
/// of its label, or of the part that tells it from others (`a.png`, `a_leftImg8bit.png` or `a_gtFine_labelIds.png`); where
/// several have that name, to the one in the same folders, as `predict` lays them out.
/// Whether they hold train ids or label ids is told by the ids that occur: label ids if all are listed in `[id_map]` (a
/// folder without a single pixel of class 0 is the rarer case), else train ids if they fit. Label ids are reported.
///
/// # Errors
/// [`Error::Data`] for missing or ambiguous predictions, sizes other than the label's, and ids that are neither.
pub fn score_predictions(dataset: &Dataset, split: Option<&str>, folder: &Path, progress: &dyn Progress) -> Result<Evaluation> {
    let samples = dataset.samples(split)?;
    let files = find(dataset, &samples, folder)?;
    let ids = detect(dataset, &files)?;
    if let (IdMap::Table(_), PredictionIds::LabelIds) = (&dataset.id_map, ids) {
        progress.say("the predictions hold label ids; they are mapped like the labels");
    }
    let mut matrix = ConfusionMatrix::new(dataset.classes.len());
    progress.stage("evaluate", samples.len() as u64, 0);
    for (done, (sample, file)) in samples.iter().zip(&files).enumerate() {
        let label = dataset.load_label(sample)?;
        let prediction = read(dataset, file, ids)?;
        if (prediction.height, prediction.width) != (label.height, label.width) {
            let expected = format!("a prediction of {}x{} like its label (width x height)", label.width, label.height);
            let found = format!("{}x{}", prediction.width, prediction.height);
            return Err(Error::data(file, expected, found, "write predictions at the size of the original image"));
        }
        matrix.add(&prediction, &label)?;
        progress.step(done as u64 + 1, "");
    }
    progress.end();
    finish(dataset, matrix, samples.len() as u64, Vec::new(), Scores::new, progress)
}

/// The prediction of every sample.
///
/// # Errors
/// Missing ones; two files that may belong to one sample; one file that may belong to two.
fn find(dataset: &Dataset, samples: &[Sample], folder: &Path) -> Result<Vec<PathBuf>> {
    let mut by_stem: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in images::list(folder)? {
        if let (Some(stem), true) = (path.file_stem(), path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"))) {
            by_stem.entry(stem.to_string_lossy().into_owned()).or_default().push(path.clone());
        }
    }
    let prediction = |sample: &Sample| {
        let label = sample.label.as_ref().and_then(|path| path.file_stem()).map(|stem| stem.to_string_lossy().into_owned());
        let names = [Some(sample.stem.clone()), label, Some(dataset.short_name(sample).to_string())];
        let files = names.into_iter().flatten().find_map(|name| by_stem.get(&name));
        files.map_or(Ok(None), |files| nearest(dataset, sample, files, folder))
    };
    let found = samples.iter().map(prediction).collect::<Result<Vec<_>>>()?;
    if let Some(missing) = found.iter().position(Option::is_none) {
        let count = found.iter().filter(|path| path.is_none()).count();
        let expected = format!("one PNG per image of `{}`, named like the image", dataset.name);
        let missing = format!("none for {count} of {}, e.g. {}.png", samples.len(), samples[missing].stem);
        return Err(Error::data(folder, expected, missing, "write the missing ones, or choose the `--split` they belong to"));
    }
    let found: Vec<PathBuf> = found.into_iter().flatten().collect();
    let mut taken = BTreeMap::new();
    for (file, sample) in found.iter().zip(samples) {
        if let Some(other) = taken.insert(file, sample) {
            let expected = format!("one PNG per image of `{}`", dataset.name);
            let both = format!("one for both {} and {}", other.image.display(), sample.image.display());
            return Err(Error::data(
                file,
                expected,
                both,
                "write predictions into the same folders as the images, as `predict` does",
            ));
        }
    }
    Ok(found)
}

/// Of files that are named like a sample, the one whose folders are most like those of its image or label. A part of the
/// images' folders may be missing, since predictions of a split begin below its folder.
///
/// # Errors
/// Two that are equally like.
fn nearest(dataset: &Dataset, sample: &Sample, files: &[PathBuf], folder: &Path) -> Result<Option<PathBuf>> {
    let own: Vec<_> =
        [Some(&sample.image), sample.label.as_ref()].into_iter().flatten().map(|p| folders(p, &dataset.root)).collect();
    // How many folders agree; of as many, the file without further ones.
    let likeness = |file: &PathBuf| {
        let theirs = folders(file, folder);
        let shared = own.iter().map(|own| own.iter().zip(&theirs).take_while(|(own, theirs)| own == theirs).count()).max();
        (shared, shared == Some(theirs.len()))
    };
    let best = files.iter().map(likeness).max();
    let mut nearest = files.iter().filter(|file| Some(likeness(file)) == best);
    let first = nearest.next();
    if let (Some(one), Some(two)) = (first, nearest.next()) {
        let expected = format!("one PNG for {}", sample.image.display());
        let found = format!("{} and {}", one.display(), two.display());
        return Err(Error::data(folder, expected, found, "leave only the predictions that are to be scored in that folder"));
    }
    Ok(first.cloned())
}

/// The folders between `root` and a file, the innermost first.
fn folders<'a>(file: &'a Path, root: &Path) -> Vec<&'a OsStr> {
    let below = file.strip_prefix(root).unwrap_or(file).parent();
    below.into_iter().flat_map(Path::iter).rev().collect()
}

/// Of ids that are neither all listed nor all train ids, those up to the largest listed one are label ids.
fn detect(dataset: &Dataset, files: &[PathBuf]) -> Result<PredictionIds> {
    let IdMap::Table(table) = &dataset.id_map else { return Ok(PredictionIds::TrainIds) };
    let num_classes = dataset.classes.len() as u16;
    let largest = table.keys().next_back().copied().unwrap_or(0);
    let (mut all_listed, mut all_train) = (true, true);
    let mut beyond = None;
    for file in files {
        let raw = images::read_label(file)?;
        let mut seen = vec![0u64; 1 << 16];
        raw.pixels.iter().for_each(|&id| seen[usize::from(id)] += 1);
        for id in (0..=u16::MAX).filter(|&id| seen[usize::from(id)] > 0 && id != u16::from(IGNORE)) {
            all_listed &= table.contains_key(&id);
            all_train &= id < num_classes;
            if id > largest && id >= num_classes && beyond.is_none() {
                beyond = Some((file, id, seen[usize::from(id)]));
            }
        }
    }
    match (all_listed, all_train, beyond) {
        (true, _, _) => Ok(PredictionIds::LabelIds),
        (_, true, _) => Ok(PredictionIds::TrainIds),
        (_, _, None) => Ok(PredictionIds::LabelIds),
        (_, _, Some((file, id, count))) => {
            let expected = format!("train ids below {num_classes} or label ids up to {largest}");
            let next = "write predictions as id maps, not as colours";
            Err(Error::data(file, expected, format!("id {id} ({count} pixels)"), next))
        }
    }
}

fn read(dataset: &Dataset, file: &Path, ids: PredictionIds) -> Result<LabelMap> {
    let raw = images::read_label(file)?;
    let num_classes = dataset.classes.len();
    let train_ids = IdMap::TrainIds { num_classes, ignore_index: dataset.ignore_index };
    let map = if ids == PredictionIds::LabelIds { &dataset.id_map } else { &train_ids };
    map.apply(raw.height, raw.width, &raw.pixels).map_err(|wrong| {
        let expected = format!("train ids below {num_classes} in predictions for `{}`", dataset.name);
        Error::data(file, expected, list_ids(&wrong), "write predictions as id maps of this data set's classes")
    })
}
