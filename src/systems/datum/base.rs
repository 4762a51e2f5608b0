//! Which model a verb works on: a folder, a run, a hub id, and low-rank updates on top.

use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::diffusion::folder::PipelineFolder;
use crate::diffusion::model::Model;
use crate::diffusion::{Component, Lora, nano};
use crate::io::hub::{self, HubSettings, ModelId, Wanted};
use crate::train::run_dir::RunDir;
use std::path::{Path, PathBuf};

/// Low-rank weights in the run folder of `personalize --method lora`.
pub const LORA_FILE: &str = "pytorch_lora_weights.safetensors";
/// The diffusers folder in run folders of `personalize` and `pretrain`.
pub const MODEL_FOLDER: &str = "model";
/// Text file in a LoRA run that names the base it belongs to.
pub const BASE_FILE: &str = "base.txt";

/// Where models are looked for.
#[derive(Debug, Clone)]
pub struct Places {
    /// Folder of numbered runs.
    pub runs: PathBuf,
    /// The hub and its cache.
    pub hub: HubSettings,
}

/// The files of a Stable Diffusion folder that we read, in old and new layouts.
fn wanted() -> Wanted {
    let group = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let weights = |folder: &str, stem: &str, old: &str| {
        let names = [(stem, "safetensors"), (old, "bin")];
        names.iter().map(|(stem, extension)| format!("{folder}/{stem}.{extension}")).collect::<Vec<_>>()
    };
    Wanted {
        required: vec![
            group(&["model_index.json"]),
            group(&["scheduler/scheduler_config.json"]),
            group(&["unet/config.json"]),
            group(&["vae/config.json"]),
            group(&["text_encoder/config.json"]),
            group(&["tokenizer/vocab.json", "tokenizer/tokenizer.json"]),
            weights("unet", "diffusion_pytorch_model", "diffusion_pytorch_model"),
            weights("vae", "diffusion_pytorch_model", "diffusion_pytorch_model"),
            weights("text_encoder", "model", "pytorch_model"),
        ],
        optional: group(&[
            "tokenizer/merges.txt",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/special_tokens_map.json",
        ]),
    }
}

/// A base: `nano`, a diffusers folder, a run folder with `model/`, or a hub id.
///
/// # Errors
/// [`Error::Environment`] where a hub id is neither cached nor reachable, naming what would work.
pub fn pipeline(base: &str, settings: &HubSettings, progress: &dyn Progress) -> Result<PipelineFolder> {
    match base {
        nano::NAME => nano::open(),
        _ => PipelineFolder::open(&folder(base, settings, progress)?),
    }
}

fn folder(base: &str, settings: &HubSettings, progress: &dyn Progress) -> Result<PathBuf> {
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
            "`nano`, a diffusers folder, a run folder with `model/`, or a hub id `organisation/name`",
            if path.exists() { "none of them" } else { "nothing of that name" },
            "check the path, or take the small model inside the program: `nano`",
        ));
    }
    let snapshot = hub::fetch(&base.parse::<ModelId>()?, &wanted(), settings, progress)?;
    progress.say(&format!("base: {base} at revision {}", snapshot.revision));
    Ok(snapshot.folder)
}

fn is_hub_id(name: &str) -> bool {
    let name = name.split('@').next().unwrap_or(name);
    name.split('/').count() == 2 && !name.starts_with(['.', '/', '~']) && !name.contains(' ')
}

/// The model `generate` samples from. `model` is a folder, run or hub id; empty takes the newest personalised run under
/// `runs` and says so. Low-rank updates (of the run, and `loras` as `FILE[:SCALE]`) are merged into the weights.
pub fn open(model: &str, loras: &[String], places: &Places, progress: &dyn Progress) -> Result<Model> {
    let chosen = if model.is_empty() { newest(&places.runs, progress)? } else { PathBuf::from(model) };
    let run_lora = chosen.join(LORA_FILE);
    let base = if run_lora.is_file() && chosen.join(BASE_FILE).is_file() {
        let path = chosen.join(BASE_FILE);
        std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?.trim().to_string()
    } else {
        chosen.display().to_string()
    };
    let model = Model::of(pipeline(&base, &places.hub, progress)?)?;
    if run_lora.is_file() {
        merge(&model, &run_lora, 1.0, progress)?;
    }
    for spec in loras {
        let (file, scale) = match spec.rsplit_once(':').and_then(|(file, scale)| Some((file, scale.parse().ok()?))) {
            Some((file, scale)) => (file, scale),
            None => (spec.as_str(), 1.0),
        };
        merge(&model, Path::new(file), scale, progress)?;
    }
    Ok(model)
}

fn merge(model: &Model, file: &Path, scale: f64, progress: &dyn Progress) -> Result<()> {
    let lora = Lora::read(file)?;
    for (component, store) in [(Component::Unet, &model.unet), (Component::TextEncoder, &model.text)] {
        let adapted = |name: &str| {
            name.strip_suffix(".weight").is_some_and(|module| lora.pairs.contains_key(&(component, module.to_string())))
        };
        let mut tensors = store.tensors();
        lora.merge(component, &mut tensors, scale)?;
        // The others are the store's own and cannot be written onto themselves.
        tensors.retain(|name, _| adapted(name));
        store.select(adapted).load(&tensors)?;
    }
    let layers = |component| lora.of(component).count();
    progress.say(&format!(
        "adapter: {} ({}), all {} layers of the U-Net and {} of the text encoder found, scale {scale}",
        file.display(),
        lora.dialect,
        layers(Component::Unet),
        layers(Component::TextEncoder),
    ));
    Ok(())
}

/// The newest personalised run that was finished.
fn newest(runs: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    let finished = |run: &Path| run.join(MODEL_FOLDER).join("model_index.json").is_file() || run.join(BASE_FILE).is_file();
    let run = RunDir::newest_of(runs, "personalize", finished).ok_or_else(|| {
        Error::data(
            runs,
            "a finished run of `datum personalize`",
            "none",
            "personalise a model first (`datum personalize target.png`), or name a model with `--model`",
        )
    })?;
    progress.say(&format!("model: the newest personalised run, {}", run.display()));
    Ok(run)
}
