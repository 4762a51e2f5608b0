//! `datum pretrain`: a small Stable Diffusion of one's own, from unlabelled photos.
//!
//! Two stages: the autoencoder learns to compress photos (`autoencoder`), then the U-Net and text encoder learn to denoise
//! its latents (`denoiser`). The result is a diffusers folder that every other verb takes as `--base`.

mod autoencoder;
pub mod config;
mod denoiser;
mod label_head;
mod latents;
mod thumbnail;

use super::base::{self, Places};
use crate::base::metrics::Sink;
use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::diffusion::model::Model;
use crate::io::tokenizer::Tokenizer;
use crate::models::stable_diffusion::config::{DownBlock, PerLevel, UpBlock};
use crate::models::stable_diffusion::{SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
use crate::report::tensorboard;
use crate::systems::shared::photos::{LabelSettings, PhotoSettings, Photos};
use crate::train::checkpoint::Resume;
use crate::train::run_dir::RunDir;
use crate::train::stage::Stage;
use config::{PretrainConfig, UnetTraining, VaeTraining};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most images of a micro-batch on the CPU.
const MICRO_BATCH: usize = 4;

/// Runs both stages and returns the diffusers folder, `model/` in the run.
///
/// # Errors
/// Unusable photos or captions; an architecture that does not fit the size; interruption.
pub fn run(
    config: &PretrainConfig,
    run: &RunDir,
    resume: Option<&Resume>,
    places: &Places,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    config.validate()?;
    let labels = LabelSettings { folder: &config.labels, classes: config.unet.label_classes };
    let settings = PhotoSettings {
        images: &config.images,
        captions: &config.captions,
        template: Some(&config.template),
        size: config.size,
        flip: config.flip,
        labels: (!config.labels.is_empty()).then_some(labels),
    };
    let photos = Photos::open(&settings, progress)?;
    let mut model = start(config, &photos, places, progress)?;
    let factor = model.vae_config.downsampling();
    if !config.size.height.is_multiple_of(factor) || !config.size.width.is_multiple_of(factor) {
        return Err(Error::Usage(format!(
            "size {}x{} is no multiple of {factor}, the autoencoder's reduction",
            config.size.height, config.size.width
        )));
    }
    let trains_vae = config.base == "scratch" && config.vae.base.is_empty();
    // Halved latents are whole, too.
    let step = if config.vae.equivariance > 0.0 { 2 * factor } else { factor };
    if trains_vae && !config.vae.crop.is_multiple_of(step) {
        let twice = if step > factor { "twice " } else { "" };
        let crop = config.vae.crop;
        return Err(Error::Usage(format!("vae.crop {crop} is no multiple of {step}, {twice}the autoencoder's reduction")));
    }
    let [resume_vae, resume_unet] = resumes(resume);
    if trains_vae {
        let events = tensorboard::sinks(run.path().join("events-vae"));
        let shared = stage(config, run, "vae", resume_vae.as_ref(), progress, &events)?;
        let stage = Stage { name: "autoencoder", steps: config.vae.steps, ..shared };
        stage.train(&mut autoencoder::Autoencoder::new(&model, &photos, config)?)?;
        latents::standardise(&mut model, &photos, config.seed)?;
    }
    let events = tensorboard::sinks(run.path().join("events-unet"));
    let shared = stage(config, run, "unet", resume_unet.as_ref(), progress, &events)?;
    let stage = Stage { name: "denoiser", steps: config.unet.steps, ..shared };
    let mut denoiser = denoiser::Denoiser::new(&model, &photos, config)?;
    stage.train(&mut denoiser)?;
    denoiser.finish()?;
    let folder = run.path().join("model");
    if run.is_written() {
        model.save(&folder)?;
    }
    progress.say(&format!("model: {}", folder.display()));
    Ok(folder)
}

/// Where the autoencoder and the denoiser go on. A checkpoint that is named belongs to one of them: the denoiser starts anew
/// after an earlier state of the autoencoder.
fn resumes(resume: Option<&Resume>) -> [Option<Resume>; 2] {
    let is_of = |path: &Path, folder: &str| path.parent().is_some_and(|parent| parent.ends_with(folder));
    match resume {
        None => [None, None],
        Some(Resume::Path(path)) if is_of(path, "checkpoints/vae") => [resume.cloned(), None],
        Some(Resume::Path(path)) if is_of(path, "checkpoints/unet") => [Some(Resume::Latest), resume.cloned()],
        Some(_) => [Some(Resume::Latest), Some(Resume::Latest)],
    }
}

/// What both stages share.
fn stage<'a>(
    config: &PretrainConfig,
    run: &'a RunDir,
    folder: &'a str,
    resume: Option<&'a Resume>,
    progress: &'a dyn Progress,
    sinks: &'a dyn Fn(u64) -> Result<Vec<Box<dyn Sink>>>,
) -> Result<Stage<'a>> {
    let whole = serde_json::to_value(config).map_err(|e| Error::Usage(e.to_string()))?;
    let mut identity: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    let own: &[&str] = if folder == "vae" { &["vae"] } else { &["unet", "captions", "template", "labels"] };
    for key in ["seed", "size", "base", "images", "flip"].iter().chain(own) {
        identity.insert((*key).into(), whole[*key].clone());
    }
    identity.insert("vae.base".into(), whole["vae"]["base"].clone());
    let checkpointing_steps = config.checkpointing_steps;
    Ok(Stage { run, name: folder, folder, steps: 0, checkpointing_steps, keep: 1, identity, resume, progress, sinks })
}

/// The model before training.
fn start(config: &PretrainConfig, photos: &Photos, places: &Places, progress: &dyn Progress) -> Result<Model> {
    let read = |base: &str| Model::of(base::pipeline(base, &places.hub, progress)?);
    let mut model = match (config.base.as_str(), config.vae.base.as_str()) {
        ("scratch", "") => {
            let model = drawn(config, photos, vae_config(&config.vae, config))?;
            thumbnail::start(&model.vae, &model.vae_config)?;
            model
        }
        ("scratch", vae) => {
            let from = read(vae)?;
            Model { vae: from.vae, ..drawn(config, photos, from.vae_config)? }
        }
        (base, _) => read(base)?,
    };
    let unet = &config.unet;
    let values = [
        ("prediction_type", unet.prediction_type.map(|kind| serde_json::json!(kind))),
        ("beta_schedule", unet.beta_schedule.map(|kind| serde_json::json!(kind))),
        ("beta_start", unet.beta_start.map(|beta| serde_json::json!(beta))),
        ("beta_end", unet.beta_end.map(|beta| serde_json::json!(beta))),
    ];
    let given = values.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?)));
    model.scheduler_config.other.extend(given);
    model.schedule()?;
    Ok(model)
}

/// A model of random weights.
fn drawn(config: &PretrainConfig, photos: &Photos, vae: VaeConfig) -> Result<Model> {
    let tokenizer = Tokenizer::train(&photos.vocabulary(), config.unet.vocabulary, config.unet.text_length)?;
    let configs = (unet_config(&config.unet, &vae, config), vae, text_config(&config.unet, &tokenizer));
    Model::random(configs, SchedulerConfig::default(), tokenizer, config.seed)
}

fn unet_config(unet: &UnetTraining, vae: &VaeConfig, config: &PretrainConfig) -> UNetConfig {
    let down = |&attends: &bool| if attends { DownBlock::CrossAttnDownBlock2D } else { DownBlock::DownBlock2D };
    let up = |&attends: &bool| if attends { UpBlock::CrossAttnUpBlock2D } else { UpBlock::UpBlock2D };
    UNetConfig {
        in_channels: vae.latent_channels,
        out_channels: vae.latent_channels,
        block_out_channels: unet.channels.clone(),
        layers_per_block: unet.layers_per_block,
        cross_attention_dim: unet.text_width,
        attention_head_dim: PerLevel::All(unet.heads),
        down_block_types: unet.attention.iter().map(down).collect(),
        up_block_types: unet.attention.iter().rev().map(up).collect(),
        norm_num_groups: unet.norm_groups,
        sample_size: config.size.height / vae.downsampling(),
        ..UNetConfig::default()
    }
}

fn vae_config(vae: &VaeTraining, config: &PretrainConfig) -> VaeConfig {
    VaeConfig {
        latent_channels: vae.latent_channels,
        block_out_channels: vae.channels.clone(),
        down_block_types: vec!["DownEncoderBlock2D".into(); vae.channels.len()],
        up_block_types: vec!["UpDecoderBlock2D".into(); vae.channels.len()],
        layers_per_block: vae.layers_per_block,
        norm_num_groups: vae.norm_groups,
        sample_size: config.size.height,
        ..VaeConfig::default()
    }
}

fn text_config(unet: &UnetTraining, tokenizer: &Tokenizer) -> TextConfig {
    TextConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: unet.text_width,
        intermediate_size: 4 * unet.text_width,
        num_hidden_layers: unet.text_layers,
        num_attention_heads: unet.heads,
        max_position_embeddings: unet.text_length,
        ..TextConfig::default()
    }
}
