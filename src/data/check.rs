//! What is wrong with a data set, and what would help.

use super::{Dataset, Sample};
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::io::images;
use crate::labels::{IGNORE, IdMap, list_ids};
use std::collections::BTreeMap;

/// The findings of [`check`].
#[derive(Debug, Default)]
pub struct Check {
    /// Pictures looked at.
    pub images: usize,
    /// Pictures per size (height, width).
    pub sizes: BTreeMap<(usize, usize), usize>,
    /// Labels that could be read.
    pub labels: usize,
    /// Every picture or label that can't be used, with its reason.
    pub problems: Vec<Error>,
    /// Pixels per id as the label files hold them.
    pub file_ids: BTreeMap<u16, u64>,
    /// Pixels per class in train-id order.
    pub class_pixels: Vec<u64>,
    /// Pixels that count for no class.
    pub ignored_pixels: u64,
    /// What the ids look like and the TOML lines that would map them, if they don't fit.
    pub advice: Option<String>,
}

/// Decodes every picture and label of a split (none: all), counts ids and proposes a mapping where they don't fit.
///
/// # Errors
/// Those of [`Dataset::samples`]; single files end up in [`Check::problems`].
pub fn check(dataset: &Dataset, split: Option<&str>, progress: &dyn Progress) -> Result<Check> {
    let samples = dataset.samples(split)?;
    let mut found = Check { images: samples.len(), class_pixels: vec![0; dataset.classes.len()], ..Check::default() };
    progress.stage("check", samples.len() as u64, 0);
    for (done, sample) in samples.iter().enumerate() {
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: "run the same command again".into() });
        }
        let loaded = match dataset.has_labels() {
            true => dataset.load(sample),
            false => dataset.load_image(sample),
        };
        if let Ok(example) = &loaded {
            *found.sizes.entry(example.size()).or_insert(0) += 1;
        }
        found.problems.extend(loaded.err());
        found.count(dataset, sample);
        progress.step(done as u64 + 1, "");
    }
    progress.end();
    found.advice = found.advise(dataset);
    Ok(found)
}

impl Check {
    /// Files that can't be read are among the problems already.
    fn count(&mut self, dataset: &Dataset, sample: &Sample) {
        let Some(Ok(raw)) = sample.label.as_ref().map(|path| images::read_label(path)) else { return };
        self.labels += 1;
        let mut counts = BTreeMap::new();
        for id in raw.pixels {
            *counts.entry(id).or_insert(0u64) += 1;
        }
        for (id, count) in counts {
            *self.file_ids.entry(id).or_insert(0) += count;
            match dataset.id_map.train_id(id).map(usize::from).and_then(|id| self.class_pixels.get_mut(id)) {
                Some(pixels) => *pixels += count,
                None => self.ignored_pixels += count,
            }
        }
    }

    fn advise(&self, dataset: &Dataset) -> Option<String> {
        let ids: Vec<u16> = self.file_ids.keys().copied().collect();
        let labelled = self.class_pixels.iter().any(|&count| count > 0);
        let fits = ids.iter().all(|&id| dataset.id_map.train_id(id).is_some());
        let count = dataset.classes.len() as u16;
        if ids.is_empty() || count == 0 {
            return None;
        }
        if ids == [0, 255] && count == 2 {
            return Some("the labels look like masks of 0 and 255:\n[id_map]\n0 = 0\n255 = 1".into());
        }
        let shifted = !ids.contains(&0) && ids.iter().all(|&id| id <= count || id == u16::from(IGNORE)) && ids.contains(&count);
        if shifted && matches!(dataset.id_map, IdMap::TrainIds { .. }) {
            let lines: Vec<String> = (0..count).map(|id| format!("{} = {id}", id + 1)).collect();
            return Some(format!("the ids look shifted by one (1 to {count}):\n[id_map]\n{}", lines.join("\n")));
        }
        if fits && labelled {
            return None;
        }
        Some(format!(
            "the labels hold {}; map each class with a line `FILE_ID = TRAIN_ID` under `[id_map]`",
            list_ids(&self.file_ids)
        ))
    }
}
