//! Rare class sampling: images that show rare classes are drawn more often.

use crate::base::{Error, Result, Rng, interrupt};
use crate::io::{atomic, images};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Train ids from here on are no classes (`ignore_index`).
const IGNORE: u8 = 255;
/// Names of the statistics files of DAFormer: a list of files, files by name, files by class.
pub const STATISTICS_FILES: [&str; 3] = ["sample_class_stats.json", "sample_class_stats_dict.json", "samples_with_class.json"];

/// Pixels per class in one label map, without ignored pixels.
///
/// # Shapes
/// `ids` (H, W) train ids, flattened
pub fn count_pixels(ids: &[u8]) -> BTreeMap<u8, u64> {
    let mut counts = [0u64; 256];
    ids.iter().for_each(|&id| counts[usize::from(id)] += 1);
    (0..IGNORE).map(|id| (id, counts[usize::from(id)])).filter(|(_, count)| *count > 0).collect()
}

/// Pixels per class of one label file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStatistics {
    /// The label file, as the data set names it.
    pub file: String,
    /// Train id → pixels; classes without pixels are left out.
    pub pixels: BTreeMap<u8, u64>,
}

/// Pixels per class of all label files of a data set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClassStatistics {
    /// One entry per file, in the data set's order.
    pub files: Vec<FileStatistics>,
}

impl ClassStatistics {
    /// Counts label files that hold train ids, in parallel; `files` are names to write down with their paths.
    ///
    /// # Errors
    /// Files that cannot be read; interruption.
    pub fn count(files: Vec<(String, PathBuf)>) -> Result<Self> {
        let count = |(file, path): (String, PathBuf)| {
            if interrupt::requested() {
                return Err(Error::Interrupted { resume: "run the same command again".into() });
            }
            let ids: Vec<u8> =
                images::read_label(&path)?.pixels.into_iter().map(|id| u8::try_from(id).unwrap_or(IGNORE)).collect();
            Ok(FileStatistics { file, pixels: count_pixels(&ids) })
        };
        Ok(Self { files: files.into_par_iter().map(count).collect::<Result<_>>()? })
    }

    /// The [`STATISTICS_FILES`] in the form DAFormer's converters write them.
    fn to_json(&self) -> [Value; 3] {
        let pixels = |file: &FileStatistics| -> Map<String, Value> {
            file.pixels.iter().map(|(id, count)| (id.to_string(), json!(count))).collect()
        };
        let list = self.files.iter().map(|file| {
            let mut entry = pixels(file);
            entry.insert("file".into(), json!(file.file));
            Value::Object(entry)
        });
        let by_file: Map<String, Value> = self.files.iter().map(|f| (f.file.clone(), Value::Object(pixels(f)))).collect();
        let mut by_class: BTreeMap<u8, Vec<Value>> = BTreeMap::new();
        for file in &self.files {
            file.pixels.iter().for_each(|(id, count)| by_class.entry(*id).or_default().push(json!([file.file, count])));
        }
        let by_class: Map<String, Value> = by_class.into_iter().map(|(id, list)| (id.to_string(), list.into())).collect();
        [Value::Array(list.collect()), Value::Object(by_file), Value::Object(by_class)]
    }

    /// Writes the [`STATISTICS_FILES`] to `folder`.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for (name, value) in STATISTICS_FILES.iter().zip(self.to_json()) {
            atomic::write(&folder.join(name), format!("{value:#}").as_bytes())?;
        }
        Ok(())
    }
}

/// How many pixels of a class make an image worth drawing for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MinPixels {
    /// So many, whatever the image's size.
    Count(u64),
    /// This share (0…1) of the image's labelled pixels, or of the crop's area.
    Share(f64),
}

impl MinPixels {
    /// The number for an image or crop of `area` pixels.
    pub fn of(self, area: u64) -> f64 {
        match self {
            Self::Count(count) => count as f64,
            Self::Share(share) => share * area as f64,
        }
    }
}

/// Settings of [`RareClassSampling`]. The defaults are DAFormer's for 512-pixel crops.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RareClassConfig {
    /// Small values prefer rare classes, infinity draws all classes equally often.
    pub temperature: f64,
    /// An image is drawn for a class when it has more pixels of it than this.
    pub min_pixels: MinPixels,
    /// A crop is taken when it has more than this times `min_pixels` of the class. HRDA's larger crops use 2.
    pub min_crop_ratio: f64,
    /// So many crops are tried; the last is taken as it is.
    pub max_crops: usize,
}

impl Default for RareClassConfig {
    fn default() -> Self {
        Self { temperature: 0.01, min_pixels: MinPixels::Count(3000), min_crop_ratio: 0.5, max_crops: 10 }
    }
}

/// Draws a class by rarity, then an image that shows it.
///
/// # Source
/// DAFormer, section 3.2, equations 5 and 6.
#[derive(Debug, Clone)]
pub struct RareClassSampling {
    config: RareClassConfig,
    /// Rarest class first.
    classes: Vec<Candidates>,
}

/// The images that are drawn for one class.
#[derive(Debug, Clone)]
struct Candidates {
    class: u8,
    probability: f64,
    files: Vec<usize>,
    /// What makes them candidates: the configured number, or less where no image shows that much.
    min_pixels: MinPixels,
}

impl Candidates {
    /// Images with more than `wanted` pixels of the class; if there is none, those with more than half of the largest number.
    fn new(statistics: &ClassStatistics, class: u8, probability: f64, wanted: MinPixels) -> Self {
        let files_above = |min_pixels: MinPixels| -> Vec<usize> {
            let enough = |file: &FileStatistics| {
                let area = file.pixels.values().sum();
                file.pixels.get(&class).is_some_and(|&count| count as f64 > min_pixels.of(area))
            };
            (0..statistics.files.len()).filter(|&i| enough(&statistics.files[i])).collect()
        };
        let files = files_above(wanted);
        if !files.is_empty() {
            return Self { class, probability, files, min_pixels: wanted };
        }
        let largest = statistics.files.iter().filter_map(|file| file.pixels.get(&class)).max();
        let min_pixels = MinPixels::Count(largest.copied().unwrap_or(0) / 2);
        Self { class, probability, files: files_above(min_pixels), min_pixels }
    }
}

/// What [`RareClassSampling::draw`] drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RareClassDraw {
    /// Train id of the class.
    pub class: u8,
    /// Index into [`ClassStatistics::files`].
    pub file: usize,
}

impl RareClassSampling {
    /// P(c) ∝ exp((1 − f_c)/temperature), f_c the share of the class in all labelled pixels.
    ///
    /// # Errors
    /// A temperature that is not above 0, or no labelled pixel at all.
    pub fn new(statistics: &ClassStatistics, config: RareClassConfig) -> Result<Self> {
        if config.temperature.is_nan() || config.temperature <= 0.0 {
            return Err(Error::Usage(format!("the temperature must be above 0, found {}", config.temperature)));
        }
        let probabilities = class_probabilities(statistics, config.temperature);
        if probabilities.is_empty() {
            return Err(Error::Usage("rare class sampling needs label files with at least one labelled pixel".into()));
        }
        let candidates = |(class, p)| Candidates::new(statistics, class, p, config.min_pixels);
        Ok(Self { config, classes: probabilities.into_iter().map(candidates).collect() })
    }

    /// Train ids with their probabilities, rarest first.
    pub fn probabilities(&self) -> impl Iterator<Item = (u8, f64)> {
        self.classes.iter().map(|c| (c.class, c.probability))
    }

    /// Train ids that no image shows enough of, so that those that show most of them are drawn.
    pub fn scarce(&self) -> impl Iterator<Item = u8> {
        self.classes.iter().filter(|c| c.min_pixels != self.config.min_pixels).map(|c| c.class)
    }

    /// Draws a class and one of its files.
    ///
    /// # Randomness
    /// A uniform for the class, an integer for the file.
    pub fn draw(&self, rng: &mut Rng) -> RareClassDraw {
        let mut left = f64::from(rng.uniform());
        let drawn = self.classes.iter().position(|candidates| {
            left -= candidates.probability;
            left < 0.0
        });
        // Rounding may leave a rest behind the last class; the likeliest one takes it.
        let Candidates { class, files, .. } = &self.classes[drawn.unwrap_or(0)];
        RareClassDraw { class: *class, file: files[rng.below(files.len())] }
    }

    /// Crops the drawn image until the crop shows enough of the class: `crop` makes one (its argument counts from 0),
    /// `labels` gives a crop's train ids. After `max_crops` that show too little one more is taken as it is, as DAFormer does.
    pub fn crop<T>(&self, class: u8, mut crop: impl FnMut(usize) -> Result<T>, labels: impl Fn(&T) -> &[u8]) -> Result<T> {
        let min_pixels = self.classes.iter().find(|c| c.class == class).map_or(self.config.min_pixels, |c| c.min_pixels);
        let mut attempt = 0;
        loop {
            let candidate = crop(attempt)?;
            attempt += 1;
            let ids = labels(&candidate);
            let shown = ids.iter().filter(|&&id| id == class).count();
            let wanted = min_pixels.of(ids.len() as u64) * self.config.min_crop_ratio;
            if shown as f64 > wanted || attempt > self.config.max_crops {
                return Ok(candidate);
            }
        }
    }
}

/// Classes that occur, by ascending pixel count, with their probabilities.
fn class_probabilities(statistics: &ClassStatistics, temperature: f64) -> Vec<(u8, f64)> {
    let mut totals: BTreeMap<u8, u64> = BTreeMap::new();
    for (id, count) in statistics.files.iter().flat_map(|file| &file.pixels) {
        *totals.entry(*id).or_default() += count;
    }
    let all: u64 = totals.values().sum();
    let mut totals: Vec<(u8, u64)> = totals.into_iter().collect();
    totals.sort_by_key(|&(_, count)| count);
    let Some(&(_, rarest)) = totals.first() else { return Vec::new() };
    // exp((f_min − f_c)/T): the largest is 1, so nothing overflows.
    let score = |count: u64| ((rarest as f64 - count as f64) / all as f64 / temperature).exp();
    let sum: f64 = totals.iter().map(|&(_, count)| score(count)).sum();
    totals.into_iter().map(|(class, count)| (class, score(count) / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(files: &[&[(u8, u64)]]) -> ClassStatistics {
        let file = |(i, pixels): (usize, &&[(u8, u64)])| FileStatistics {
            file: format!("labels/{i:02}_labelTrainIds.png"),
            pixels: pixels.iter().copied().collect(),
        };
        ClassStatistics { files: files.iter().enumerate().map(file).collect() }
    }

    fn example() -> ClassStatistics {
        statistics(&[
            &[(0, 900_000), (2, 80_000), (13, 15_000)],
            &[(0, 50_000), (11, 4000), (17, 1000)],
            &[(2, 40_000), (18, 500), (13, 9500)],
        ])
    }

    // Golden values: the published sampler's own function on these statistics.
    #[test]
    fn probabilities_match_the_published_sampler() {
        let golden = [
            (0.01, [0.357_666_7, 0.341_775_2, 0.260_193_4, 0.040_357_83, 6.846_412e-6, 1.164e-38]),
            (0.1, [0.243_561_1, 0.242_456_3, 0.235_933_4, 0.195_818_1, 0.082_187_57, 4.343_668e-5]),
            (f64::INFINITY, [1.0 / 6.0; 6]),
        ];
        for (temperature, expected) in golden {
            let found = class_probabilities(&example(), temperature);
            assert_eq!(found.iter().map(|(class, _)| *class).collect::<Vec<_>>(), [18, 17, 11, 13, 2, 0]);
            for ((class, p), expected) in found.iter().zip(expected) {
                assert!((p / expected - 1.0).abs() < 1e-3, "class {class} at {temperature}: {p} instead of {expected}");
                assert!((p - expected).abs() < 3e-6); // the golden values are f32 sums over 99 units in the exponent
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_only_name_files_with_enough_pixels() {
        let config = RareClassConfig { temperature: 0.1, min_pixels: MinPixels::Count(450), ..Default::default() };
        let sampling = RareClassSampling::new(&example(), config).unwrap();
        let mut counts: BTreeMap<u8, u32> = BTreeMap::new();
        for i in 0..20_000 {
            let drawn = sampling.draw(&mut Rng::stream(9, "rare class", &[i]));
            assert!(example().files[drawn.file].pixels[&drawn.class] > 450);
            *counts.entry(drawn.class).or_default() += 1;
        }
        for (class, p) in sampling.probabilities() {
            let share = f64::from(*counts.get(&class).unwrap_or(&0)) / 20_000.0;
            assert!((share - p).abs() < 0.012, "class {class}: {share} instead of {p}");
        }
    }

    #[test]
    fn of_a_class_nobody_shows_enough_of_the_best_images_are_drawn() {
        let files = [&[(7, 40), (0, 5000)][..], &[(7, 900), (0, 5000)], &[(7, 700), (0, 5000)]];
        let sampling = RareClassSampling::new(&statistics(&files), RareClassConfig::default()).unwrap();
        assert_eq!(sampling.scarce().collect::<Vec<_>>(), [7]);
        for i in 0..50 {
            let drawn = sampling.draw(&mut Rng::stream(1, "scarce", &[i]));
            assert!(drawn.class != 7 || drawn.file > 0, "{drawn:?}");
        }
        // Crops are tried until one shows more than 450 · 0.5.
        let crop = |attempt: usize| Ok(vec![7u8; 100 * attempt]);
        assert_eq!(sampling.crop(7, crop, |ids| ids).unwrap().len(), 300);

        let relative = RareClassConfig { min_pixels: MinPixels::Share(0.005), ..Default::default() };
        assert!(RareClassSampling::new(&example(), relative).is_ok());
        assert!(RareClassSampling::new(&ClassStatistics::default(), relative).is_err());
    }

    #[test]
    fn crops_are_retried_until_the_class_shows() {
        let config = RareClassConfig { min_pixels: MinPixels::Count(4), ..Default::default() };
        let sampling = RareClassSampling::new(&statistics(&[&[(3, 100)]]), config).unwrap();
        // The i-th crop shows i pixels of the class; more than 4 · 0.5 are wanted.
        let crop = |attempt: usize| Ok((0..8).map(|i| if i < attempt { 3 } else { 0 }).collect::<Vec<u8>>());
        let taken = sampling.crop(3, crop, |ids| ids).unwrap();
        assert_eq!(taken.iter().filter(|&&id| id == 3).count(), 3);
        let mut tries = 0;
        let empty = |_| {
            tries += 1;
            Ok(vec![0u8; 8])
        };
        sampling.crop(3, empty, |ids| ids).unwrap();
        assert_eq!(tries, 11);
    }

    #[test]
    fn files_have_the_converters_form() {
        let folder = tempfile::tempdir().unwrap();
        let written = statistics(&[&[(0, 5), (13, 2)], &[(13, 4)]]);
        written.write(folder.path()).unwrap();
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let list = "[\n  {\n    \"0\": 5,\n    \"13\": 2,\n    \"file\": \"labels/00_labelTrainIds.png\"\n  },";
        assert!(text(STATISTICS_FILES[0]).starts_with(list), "{}", text(STATISTICS_FILES[0]));
        let by_class: Value = serde_json::from_str(&text("samples_with_class.json")).unwrap();
        let expected = json!({"0": [["labels/00_labelTrainIds.png", 5]],
            "13": [["labels/00_labelTrainIds.png", 2], ["labels/01_labelTrainIds.png", 4]]});
        assert_eq!(by_class, expected);
        let by_file: Value = serde_json::from_str(&text("sample_class_stats_dict.json")).unwrap();
        assert_eq!(by_file["labels/01_labelTrainIds.png"], json!({"13": 4}));
    }

    #[test]
    fn ignored_pixels_are_not_counted() {
        assert_eq!(count_pixels(&[3, 255, 3, 0, 255]), BTreeMap::from([(0, 1), (3, 2)]));
    }
}
