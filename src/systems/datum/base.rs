//! Which model a verb works on: a folder, a run, a hub id, and low-rank updates on top.

use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::diffusion::{Component, Lora};
use crate::diffusion::model::Model;
use crate::io::hub;
use crate::train::run_dir::RunDir;
use std::path::{Path, PathBuf};

/// Low-rank weights in the run folder of `personalize --method lora`.
pub const LORA_FILE: &str = "pytorch_lora_weights.safetensors";
/// The diffusers folder in run folders of `personalize` and `pretrain`.
pub const MODEL_FOLDER: &str = "model";
/// Text file in a LoRA run that names the base it belongs to.
pub const BASE_FILE: &str = "base.txt";

/// The diffusers folder of a base: a folder, a run folder with `model/`, or a hub id.
///
/// # Errors
/// [`Error::Environment`] where a hub id is neither cached nor reachable, naming what would work.
pub fn folder(base: &str, progress: &dyn Progress) -> Result<PathBuf> {
    if base == "nano" {
        return Err(Error::environment(
            "this build has no embedded `nano` model",
            "train a small model with `datum pretrain --images PHOTOS`, then give its folder as `--base`",
        ));
    }
    let path = Path::new(base);
    if path.join("model_index.json").is_file() {
        return Ok(path.into());
    }
    if path.join(MODEL_FOLDER).join("model_index.json").is_file() {
        return Ok(path.join(MODEL_FOLDER));
    }
    if path.exists() || !is_hub_id(base) {
        return Err(Error::data(
            path,
            "a diffusers folder, a run folder with `model/`, or a hub id `organisation/name`",
            if path.exists() { "none of them" } else { "nothing of that name" },
            "check the path, or train a small model with `datum pretrain --images PHOTOS`",
        ));
    }
    let snapshot = hub::stable_diffusion(base)?;
    progress.say(&format!("base: {base} at revision {}", snapshot.revision));
    Ok(snapshot.folder)
}

fn is_hub_id(name: &str) -> bool {
    let name = name.split('@').next().unwrap_or(name);
    name.split('/').count() == 2 && !name.starts_with(['.', '/', '~']) && !name.contains(' ')
}

/// The model `generate` samples from. `model` is a folder, run or hub id; empty takes the newest personalised run under
/// `runs` and says so. Low-rank updates (of the run, and `loras` as `FILE[:SCALE]`) are merged into the weights.
pub fn open(model: &str, loras: &[String], runs: &Path, progress: &dyn Progress) -> Result<Model> {
    let chosen = if model.is_empty() { newest(runs, progress)? } else { PathBuf::from(model) };
    let run_lora = chosen.join(LORA_FILE);
    let base = if run_lora.is_file() && chosen.join(BASE_FILE).is_file() {
        let path = chosen.join(BASE_FILE);
        std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?.trim().to_string()
    } else {
        chosen.display().to_string()
    };
    let model = Model::open(&folder(&base, progress)?)?;
    if run_lora.is_file() {
        merge(&model, &run_lora, 1.0)?;
    }
    for spec in loras {
        let (file, scale) = match spec.rsplit_once(':').and_then(|(file, scale)| Some((file, scale.parse().ok()?))) {
            Some((file, scale)) => (file, scale),
            None => (spec.as_str(), 1.0),
        };
        merge(&model, Path::new(file), scale)?;
    }
    Ok(model)
}

fn merge(model: &Model, file: &Path, scale: f64) -> Result<()> {
    let lora = Lora::read(file)?;
    for (component, store) in [(Component::Unet, &model.unet), (Component::TextEncoder, &model.text)] {
        let mut tensors = store.tensors();
        lora.merge(component, &mut tensors, scale)?;
        store.load(&tensors)?;
    }
    Ok(())
}

fn newest(runs: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    let run = RunDir::newest(runs, "personalize").ok_or_else(|| {
        Error::data(
            runs,
            "a run of `datum personalize`",
            "none",
            "personalise a model first (`datum personalize target.png`), or name a model with `--model`",
        )
    })?;
    progress.say(&format!("model: the newest personalised run, {}", run.display()));
    Ok(run)
}
