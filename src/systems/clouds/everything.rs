//! `clouds masks`: masks of everything in pictures, as PNG and JSON.

use super::automatic_masks::{Annotation, AutomaticMasksConfig, stacked};
use super::refiner::{REGIONS, RefinerConfig};
use super::regions::Regions;
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::io::{atomic, images};
use crate::labels::{Classes, IGNORE};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every value of `clouds masks` with its default. Field names are the keys of recipes and of `--set`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MasksConfig {
    /// `regions`, or a file with weights of SAM or MobileSAM.
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

/// What a run left behind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drawn {
    /// What drew the masks.
    pub refiner: String,
    /// Number of masks of each picture, by its name.
    pub masks: BTreeMap<String, usize>,
}

/// Writes `NAME.png` and `NAME.json` for each picture of `inputs` (files and folders) to `output`.
///
/// # Errors
/// Unusable settings or weights; pictures that cannot be read or have the same name; interruption.
pub fn run(config: &MasksConfig, inputs: &[PathBuf], output: &Path, progress: &dyn Progress) -> Result<Drawn> {
    config.automatic.validate()?;
    let refiner =
        RefinerConfig { refiner: config.refiner.clone(), batch_statistics: config.batch_statistics, regions: config.regions };
    let next = "name a file with weights of SAM, or `regions`";
    let proposer = refiner.open()?.ok_or_else(|| Error::Usage(format!("`none` draws no masks\n  next: {next}")))?;
    let pictures = pictures(inputs)?;
    progress.say(&format!("refiner: {}", proposer.name()));
    progress.stage("masks", pictures.len() as u64, 0);
    let mut masks = BTreeMap::new();
    for (name, path) in &pictures {
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: "run the same command again".into() });
        }
        let image = images::read_rgb(path)?;
        let found = proposer.everything(&image, &config.automatic)?;
        write(output, name, path, &proposer.name(), (image.height, image.width), &found)?;
        masks.insert(name.clone(), found.len());
        progress.step(masks.len() as u64, &format!("{} masks", found.len()));
    }
    progress.end();
    Ok(Drawn { refiner: proposer.name(), masks })
}

/// Pictures by the names of their results.
fn pictures(inputs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for input in inputs {
        let files = if input.is_dir() { images::scan(input)?.images } else { vec![input.clone()] };
        for file in files {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(other) = found.insert(name, file.clone()).filter(|other| *other != file) {
                let (one, two) = (other.display(), file.display());
                return Err(Error::Usage(format!("{one} and {two} have the same name\n  next: give them different `--output`s")));
            }
        }
    }
    Ok(found)
}

fn write(output: &Path, name: &str, path: &Path, refiner: &str, size: (usize, usize), found: &[Annotation]) -> Result<()> {
    let palette = Classes::new((0..IGNORE).map(|number| number.to_string()).collect()).palette;
    let text = [("refiner".to_string(), refiner.to_string())];
    images::write_palette_png(&output.join(format!("{name}.png")), size, &stacked(found, size), &palette, &text)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let image = json!({ "file_name": file, "height": size.0, "width": size.1 });
    let json = json!({ "image": image, "refiner": refiner, "annotations": found });
    atomic::write(&output.join(format!("{name}.json")), format!("{json}\n").as_bytes())
}
