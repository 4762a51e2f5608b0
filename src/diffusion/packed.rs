//! A whole pipeline in one safetensors file: the tensors of its networks as `unet/NAME`, `vae/NAME` and `text_encoder/NAME`,
//! the JSON files of its folder as metadata under their paths. Small models are kept like this, in 16 bit.

use super::folder::{PipelineFolder, PipelineSettings};
use crate::base::{Error, Result};
use crate::io::tokenizer::Tokenizer;
use crate::io::weights::{self, diffusers::Part};
use crate::models::stable_diffusion::config::{self, JsonConfig};
use std::collections::BTreeMap;
use std::path::Path;

const PARTS: [Part; 3] = [Part::UNet, Part::Vae, Part::TextEncoder];
const SCHEDULER: &str = "scheduler/scheduler_config.json";
const TOKENIZER: &str = "tokenizer/tokenizer.json";
const TOKENIZER_SETTINGS: &str = "tokenizer/tokenizer_config.json";

/// Writes the pipeline to `path`, weights in 16 bit.
///
/// # Errors
/// Weights that cannot be read; values beyond the range of 16 bit.
pub fn pack(folder: &PipelineFolder, path: &Path) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for part in PARTS {
        let source = folder.weights(part)?;
        for name in source.shapes().keys() {
            tensors.insert(format!("{}/{name}", part.folder()), source.load(name, &candle_core::Device::Cpu)?);
        }
    }
    let PipelineSettings { unet, vae, text, scheduler, tokenizer } = folder.settings();
    let (tokens, token_settings) = tokenizer.to_json();
    let metadata = BTreeMap::from([
        (config_path(Part::UNet), config::to_json(unet)?),
        (config_path(Part::Vae), config::to_json(vae)?),
        (config_path(Part::TextEncoder), config::to_json(text)?),
        (SCHEDULER.into(), config::to_json(scheduler)?),
        (TOKENIZER.into(), tokens),
        (TOKENIZER_SETTINGS.into(), token_settings),
    ]);
    weights::save(path, &weights::halved(&tensors, path)?, &metadata)
}

/// The pipeline in `bytes`, called `name` in messages.
///
/// # Errors
/// Anything but a packed pipeline.
pub fn unpack(bytes: &[u8], name: &str) -> Result<PipelineFolder> {
    let (tensors, metadata) = weights::from_bytes(bytes, name)?;
    let of_part = |part: Part| {
        let own = tensors.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(part.folder())?.strip_prefix('/')?;
            Some((name.to_string(), tensor.clone()))
        });
        own.collect::<BTreeMap<_, _>>()
    };
    let text = |path: &str| {
        metadata.get(path).map(String::as_str).ok_or_else(|| {
            Error::data(name, format!("a packed pipeline with {path}"), "none of that name", "pack the model again")
        })
    };
    let tokenizer = Tokenizer::from_json(text(TOKENIZER)?, text(TOKENIZER_SETTINGS)?, Path::new(name))?;
    PipelineFolder::in_memory(
        name,
        (parse(name, text(&config_path(Part::UNet))?)?, parse(name, text(&config_path(Part::Vae))?)?),
        (parse(name, text(&config_path(Part::TextEncoder))?)?, parse(name, text(SCHEDULER)?)?),
        tokenizer,
        PARTS.map(of_part),
    )
}

fn config_path(part: Part) -> String {
    format!("{}/config.json", part.folder())
}

fn parse<C: JsonConfig>(name: &str, text: &str) -> Result<C> {
    Ok(config::parse(Path::new(name), text)?.0)
}
