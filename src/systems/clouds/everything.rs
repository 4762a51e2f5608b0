//! `clouds masks`: masks of everything in pictures, as PNG and JSON.

use super::automatic_masks::{Annotation, AutomaticMasksConfig, stacked};
use super::refiner::{REGIONS, RefinerConfig};
use super::regions::Regions;
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::io::{atomic, hash, images};
use crate::labels::{Classes, IGNORE};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `environment.json` is a run's own.
const RESERVED: &str = "environment";

/// Every value of `clouds masks` with its default. Field names are the keys of recipes and of `--set`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MasksConfig {
    /// `regions`, `nano`, or a file with weights of SAM or MobileSAM.
    pub refiner: String,
    /// See [`RefinerConfig::batch_statistics`].
    pub batch_statistics: bool,
    /// How masks are chosen.
    pub automatic: AutomaticMasksConfig,
    /// How `regions` are found.
    pub regions: Regions,
}

impl Default for MasksConfig {
    fn default() -> Self {
        Self {
            refiner: REGIONS.into(),
            batch_statistics: false,
            automatic: AutomaticMasksConfig::default(),
            // Masks for people to look at are larger than what refines labels.
            regions: Regions { sigma: 0.8, scale: 300.0, min_size: 100, ..Regions::default() },
        }
    }
}

impl MasksConfig {
    /// Fingerprint of all that decides what the masks of a picture are.
    fn fingerprint(&self) -> Result<String> {
        let weights = Path::new(&self.refiner);
        let refiner = if weights.is_file() { hash::file(weights)? } else { self.refiner.clone() };
        let text = toml::to_string(&Self { refiner, ..self.clone() }).map_err(|e| Error::Usage(e.to_string()))?;
        Ok(blake3::hash(text.as_bytes()).to_hex()[..16].to_string())
    }
}

/// What a run left behind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drawn {
    /// What drew the masks.
    pub refiner: String,
    /// Number of masks of each picture, by its name.
    pub masks: BTreeMap<String, usize>,
    /// Pictures whose masks were there already, from the same picture and settings.
    pub kept: u64,
    /// Pictures in folders that could not be read.
    pub unreadable: u64,
}

/// Writes `NAME.png` and `NAME.json` for each picture of `inputs` (files and folders) to `output`; what is there already, from the same
/// picture and settings, is kept.
///
/// # Errors
/// Unusable settings or weights; a named picture that cannot be read, or a folder without any that can; pictures of the same name;
/// interruption.
pub fn run(config: &MasksConfig, inputs: &[PathBuf], output: &Path, progress: &dyn Progress) -> Result<Drawn> {
    config.automatic.validate()?;
    let refiner =
        RefinerConfig { refiner: config.refiner.clone(), batch_statistics: config.batch_statistics, regions: config.regions };
    let next = "name a file with weights of SAM, or `regions`";
    let proposer = refiner.open()?.ok_or_else(|| Error::Usage(format!("`none` draws no masks\n  next: {next}")))?;
    let (pictures, mut unreadable) = pictures(inputs)?;
    let total = pictures.len() + unreadable.len();
    progress.say(&format!("refiner: {}", proposer.name()));
    progress.stage("masks", pictures.len() as u64, 0);
    let settings = config.fingerprint()?;
    let (mut masks, mut kept) = (BTreeMap::new(), 0);
    for (name, path) in &pictures {
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: "run the same command again, with the same `--output`".into() });
        }
        let made_from = format!("{}-{settings}", &hash::file(path)?[..16]);
        let count = if let Some(count) = there(output, name, &made_from) {
            kept += 1;
            count
        } else {
            let image = match images::read_rgb(path) {
                Err(error) if !inputs.contains(path) => {
                    unreadable.push(error);
                    continue;
                }
                image => image?,
            };
            let found = proposer.everything(&image, &config.automatic)?;
            let facts = json!({ "refiner": proposer.name(), "made_from": made_from });
            write(output, name, path, &facts, (image.height, image.width), &found)?;
            found.len()
        };
        masks.insert(name.clone(), count);
        progress.step(masks.len() as u64, &format!("{count} masks"));
    }
    progress.end();
    if let Some(line) = images::unreadable_line(&unreadable, total) {
        if masks.is_empty() {
            return Err(Error::data(&inputs[0], "readable images", line, "replace them"));
        }
        progress.warn(&line);
    }
    if masks.values().all(|count| *count == 0) {
        progress.warn(&nothing_passed(&config.automatic));
    }
    Ok(Drawn { refiner: proposer.name(), masks, kept, unreadable: unreadable.len() as u64 })
}

/// What to do about pictures without masks.
fn nothing_passed(settings: &AutomaticMasksConfig) -> String {
    format!(
        "no masks: the refiner has to expect an IoU of {} (automatic.pred_iou_thresh) and masks have to be stable by {} \
         (automatic.stability_score_thresh)\n  next: give lower ones with --set; for `nano`: 0.4 and 0.7",
        settings.pred_iou_thresh, settings.stability_score_thresh
    )
}

/// The number of masks of a picture whose files are there and come from the same picture and settings.
fn there(output: &Path, name: &str, made_from: &str) -> Option<usize> {
    let text = std::fs::read(output.join(format!("{name}.json"))).ok()?;
    let json: Value = serde_json::from_slice(&text).ok()?;
    let same = json["made_from"] == made_from && output.join(format!("{name}.png")).is_file();
    same.then(|| json["annotations"].as_array().map(Vec::len))?
}

/// Pictures by the names of their results, and why others in the folders are none.
fn pictures(inputs: &[PathBuf]) -> Result<(BTreeMap<String, PathBuf>, Vec<Error>)> {
    let (mut found, mut unreadable) = (BTreeMap::<String, PathBuf>::new(), Vec::new());
    for input in inputs {
        let named = || images::Scan { images: vec![input.clone()], unreadable: Vec::new() };
        let scan = if input.is_dir() { images::scan(input)? } else { named() };
        unreadable.extend(scan.unreadable);
        for file in scan.images {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if name == RESERVED {
                let what =
                    format!("{}: the masks of a picture of this name would take the place of the run's own file", file.display());
                return Err(Error::Usage(format!("{what}\n  next: rename the picture")));
            }
            if let Some(other) = found.insert(name, file.clone()).filter(|other| *other != file) {
                let (one, two) = (other.display(), file.display());
                return Err(Error::Usage(format!("{one} and {two} have the same name\n  next: give them different `--output`s")));
            }
        }
    }
    Ok((found, unreadable))
}

fn write(output: &Path, name: &str, path: &Path, facts: &Value, size: (usize, usize), found: &[Annotation]) -> Result<()> {
    let palette = Classes::new((0..IGNORE).map(|number| number.to_string()).collect()).palette;
    let text = [("refiner".to_string(), facts["refiner"].as_str().unwrap_or_default().to_string())];
    images::write_palette_png(&output.join(format!("{name}.png")), size, &stacked(found, size), &palette, &text)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let mut json = facts.clone();
    json["image"] = json!({ "file_name": file, "height": size.0, "width": size.1 });
    json["annotations"] = json!(found);
    atomic::write(&output.join(format!("{name}.json")), format!("{json}\n").as_bytes())
}
