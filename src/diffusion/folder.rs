//! Pipeline folders of the Python library diffusers, read in the layouts of old and new releases, written for both.
//!
//! ```text
//! model_index.json
//! scheduler/scheduler_config.json
//! tokenizer/{vocab.json,merges.txt,tokenizer.json,special_tokens_map.json,tokenizer_config.json}
//! text_encoder/{config.json,model.safetensors}
//! unet/{config.json,diffusion_pytorch_model.safetensors}
//! vae/{config.json,diffusion_pytorch_model.safetensors}
//! ```
//! A safety checker in a folder is neither read nor written.

use super::noise_schedule::{NoiseConfig, NoiseSchedule};
use crate::base::{Error, Result};
use crate::io::atomic;
use crate::io::tokenizer::Tokenizer;
use crate::io::weights::diffusers::Part;
use crate::io::weights::{self, TensorSource};
use crate::models::stable_diffusion::config::{self, JsonConfig};
use crate::models::stable_diffusion::{SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use candle_core::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An open pipeline folder: its configurations and tokenizer. Weights are read when a network is built from them:
///
/// ```no_run
/// # use datum::{diffusion::folder::PipelineFolder, models::stable_diffusion::UNet, nn::Builder};
/// let folder = PipelineFolder::open("stable-diffusion-v1-4".as_ref())?;
/// let builder = Builder::from_source(folder.unet()?, 0);
/// let unet = UNet::new(&folder.unet_config, &builder)?;
/// let parameters = builder.finish()?;
/// # Ok::<(), datum::base::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PipelineFolder {
    /// Where it lies.
    pub path: PathBuf,
    /// `unet/config.json`
    pub unet_config: UNetConfig,
    /// `vae/config.json`
    pub vae_config: VaeConfig,
    /// `text_encoder/config.json`
    pub text_config: TextConfig,
    /// `scheduler/scheduler_config.json`
    pub scheduler_config: SchedulerConfig,
    /// `tokenizer/`
    pub tokenizer: Tokenizer,
    /// Settings in the files that were ignored, one line each, for the user to see.
    pub warnings: Vec<String>,
    /// Weights of U-Net, autoencoder and text encoder of a pipeline that lies in memory.
    memory: Option<[BTreeMap<String, Tensor>; 3]>,
}

impl PipelineFolder {
    /// Reads and checks everything but the weights.
    ///
    /// # Errors
    /// [`Error::Data`] for missing files, settings that are not implemented, and parts that do not fit each other.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join("model_index.json").is_file() {
            let next = "give the folder that holds model_index.json, as written by diffusers' save_pretrained";
            return Err(Error::data(path, "a diffusers pipeline folder", "no model_index.json", next));
        }
        let mut warnings = Vec::new();
        let folder = Self {
            path: path.into(),
            unet_config: read(path, "unet/config.json", &mut warnings)?,
            vae_config: read(path, "vae/config.json", &mut warnings)?,
            text_config: read(path, "text_encoder/config.json", &mut warnings)?,
            scheduler_config: read(path, "scheduler/scheduler_config.json", &mut warnings)?,
            tokenizer: Tokenizer::open(&path.join("tokenizer"))?,
            warnings: Vec::new(),
            memory: None,
        };
        Self { warnings, ..folder }.checked()
    }

    /// A pipeline whose weights are at hand, `[unet, vae, text encoder]`; `name` stands for its path.
    ///
    /// # Errors
    /// Parts that do not fit each other.
    pub fn in_memory(
        name: &str,
        (unet_config, vae_config): (UNetConfig, VaeConfig),
        (text_config, scheduler_config): (TextConfig, SchedulerConfig),
        tokenizer: Tokenizer,
        weights: [BTreeMap<String, Tensor>; 3],
    ) -> Result<Self> {
        let (path, warnings, memory) = (name.into(), Vec::new(), Some(weights));
        Self { path, unet_config, vae_config, text_config, scheduler_config, tokenizer, warnings, memory }.checked()
    }

    fn checked(self) -> Result<Self> {
        self.settings().check(&self.path)?;
        noise_config(&self.scheduler_config).map_err(|e| {
            let file = self.path.join("scheduler/scheduler_config.json");
            Error::data(file, "settings of a noise schedule", e.to_string(), "correct the file")
        })?;
        Ok(self)
    }

    /// What names it from any working directory.
    pub fn origin(&self) -> Result<PathBuf> {
        match self.memory {
            Some(_) => Ok(self.path.clone()),
            None => std::path::absolute(&self.path).map_err(|e| Error::io(&self.path, e)),
        }
    }

    /// Weights of one network.
    pub fn weights(&self, part: Part) -> Result<Box<dyn TensorSource>> {
        match &self.memory {
            Some([unet, vae, text]) => Ok(Box::new(match part {
                Part::UNet => unet.clone(),
                Part::Vae => vae.clone(),
                Part::TextEncoder => text.clone(),
            })),
            None => part.open(&self.path),
        }
    }

    /// Weights of the U-Net.
    pub fn unet(&self) -> Result<Box<dyn TensorSource>> {
        self.weights(Part::UNet)
    }

    /// Weights of the autoencoder.
    pub fn vae(&self) -> Result<Box<dyn TensorSource>> {
        self.weights(Part::Vae)
    }

    /// Weights of the text encoder.
    pub fn text(&self) -> Result<Box<dyn TensorSource>> {
        self.weights(Part::TextEncoder)
    }

    /// The settings of this folder, for [`save_pipeline`].
    pub fn settings(&self) -> PipelineSettings<'_> {
        PipelineSettings {
            unet: &self.unet_config,
            vae: &self.vae_config,
            text: &self.text_config,
            scheduler: &self.scheduler_config,
            tokenizer: &self.tokenizer,
        }
    }
}

/// Configurations and tokenizer of a pipeline.
#[derive(Debug, Clone, Copy)]
pub struct PipelineSettings<'a> {
    /// Of the U-Net.
    pub unet: &'a UNetConfig,
    /// Of the autoencoder.
    pub vae: &'a VaeConfig,
    /// Of the text encoder.
    pub text: &'a TextConfig,
    /// Of the noise schedule and sampler.
    pub scheduler: &'a SchedulerConfig,
    /// Of the prompts.
    pub tokenizer: &'a Tokenizer,
}

impl PipelineSettings<'_> {
    fn check(&self, path: &Path) -> Result<()> {
        let fits = |holds: bool, expected: &str, found: String| match holds {
            true => Ok(()),
            false => Err(Error::data(path, expected, found, "take all parts of the folder from one model")),
        };
        let (context, hidden) = (self.unet.cross_attention_dim, self.text.hidden_size);
        fits(context == hidden, "a U-Net for this text encoder", format!("cross_attention_dim {context}, hidden_size {hidden}"))?;
        let (channels, latent) = (self.unet.in_channels, self.vae.latent_channels);
        fits(channels == latent, "a U-Net for this autoencoder", format!("in_channels {channels}, latent_channels {latent}"))?;
        let (tokens, entries) = (self.tokenizer.vocab_size(), self.text.vocab_size);
        fits(tokens <= entries, "a tokenizer for this text encoder", format!("{tokens} tokens, vocab_size {entries}"))?;
        let (length, positions) = (self.tokenizer.length(), self.text.max_position_embeddings);
        fits(
            length <= positions,
            "prompts that fit the text encoder",
            format!("model_max_length {length}, max_position_embeddings {positions}"),
        )
    }
}

/// The settings of `config` that change numbers; missing ones take the values of Stable Diffusion 1.4.
///
/// # Errors
/// [`Error::Usage`] for values without meaning or that are not implemented.
pub fn noise_config(config: &SchedulerConfig) -> Result<NoiseConfig> {
    let present = config.other.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    let noise: NoiseConfig =
        serde_path_to_error::deserialize(Value::Object(present)).map_err(|e| Error::Usage(format!("scheduler config: {e}")))?;
    NoiseSchedule::new(&noise)?;
    Ok(noise)
}

/// Tensors of the three networks under our names, e.g. from `ParamStore::tensors` (without adapters: merge them first).
#[derive(Debug, Clone, Copy)]
pub struct PipelineWeights<'a> {
    /// Of the U-Net.
    pub unet: &'a BTreeMap<String, Tensor>,
    /// Of the autoencoder.
    pub vae: &'a BTreeMap<String, Tensor>,
    /// Of the text encoder.
    pub text: &'a BTreeMap<String, Tensor>,
}

fn read<C: JsonConfig>(folder: &Path, name: &str, warnings: &mut Vec<String>) -> Result<C> {
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let (config, ignored) = config::parse(&path, &text)?;
    warnings.extend(ignored);
    Ok(config)
}

/// Writes a whole pipeline folder that diffusers of old and new releases load. `model_index.json` is written last, so that a
/// folder that has one is complete.
///
/// # Errors
/// Parts that do not fit each other; files that cannot be written.
pub fn save_pipeline(path: &Path, settings: PipelineSettings, weights: PipelineWeights) -> Result<()> {
    settings.check(path)?;
    save_network(path, Part::UNet, settings.unet, weights.unet)?;
    save_network(path, Part::Vae, settings.vae, weights.vae)?;
    save_network(path, Part::TextEncoder, &with_token_ids(settings.text, settings.tokenizer), weights.text)?;
    write(path, "scheduler/scheduler_config.json", config::to_json(settings.scheduler)?)?;
    settings.tokenizer.save(&path.join("tokenizer"))?;
    let scheduler = settings.scheduler.class_name.as_str();
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": config::DIFFUSERS_VERSION,
        "feature_extractor": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    write(path, "model_index.json", format!("{index:#}"))
}

/// Writes one network's `config.json` and weights (`tensors` under our names) into its folder below `pipeline`.
pub fn save_network<C: JsonConfig + Clone>(
    pipeline: &Path,
    part: Part,
    config: &C,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    weights::save(&pipeline.join(part.folder()).join(part.file_name()), &part.for_file(tensors), &metadata)?;
    write(pipeline, &format!("{}/config.json", part.folder()), config::to_json(config)?)
}

/// A configuration of our own making names the ids of its vocabulary; one that was read keeps what it has.
fn with_token_ids(config: &TextConfig, tokenizer: &Tokenizer) -> TextConfig {
    let mut config = config.clone();
    let (start, end, pad) = tokenizer.special_ids();
    for (key, id) in [("bos_token_id", start), ("eos_token_id", end), ("pad_token_id", pad)] {
        config.other.entry(key).or_insert(Value::from(id));
    }
    config
}

fn write(folder: &Path, name: &str, text: String) -> Result<()> {
    atomic::write(&folder.join(name), format!("{text}\n").as_bytes())
}
