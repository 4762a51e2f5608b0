//! What a personalisation would do and need, without doing it.

use super::base::{self, Places};
use super::dreambooth::{text_plan, unet_plan};
use super::{Method, PersonalizeConfig, photo, with_method_defaults};
use crate::base::Result;
use crate::base::progress::Progress;
use crate::diffusion::folder::PipelineFolder;
use crate::diffusion::footprint;
use crate::io::weights::TensorSource;
use crate::nn::AdapterPlan;
use crate::report::terminal;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The plan of one personalisation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Folder of the base.
    pub base: PathBuf,
    /// Parameters of U-Net, text encoder and autoencoder.
    pub parameters: [u64; 3],
    /// Height and width of the photos after resizing.
    pub photos: Vec<(usize, usize)>,
    /// Side of the crops in pixels.
    pub crop_size: usize,
    /// Side of the crops in latents.
    pub latent_size: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Images in memory at once, class images included.
    pub batch: u64,
    /// Activations are computed again in the backward pass.
    pub gradient_checkpointing: bool,
    /// What could be trained; the first is what is asked for.
    pub choices: Vec<Choice>,
}

/// One way to train.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// All weights, or a low-rank update.
    pub method: Method,
    /// Whether the text encoder learns too.
    pub train_text_encoder: bool,
    /// Parameters that learn.
    pub trained: u64,
    /// Expected peak memory in bytes.
    pub peak_bytes: u64,
    /// The same with gradient checkpointing.
    pub checkpointed_peak_bytes: u64,
}

/// Reads photos and settings, and of the weights only the shapes.
///
/// # Errors
/// What [`super::run`] would complain about before training: unusable photos, an unavailable or incomplete base.
pub fn plan(config: &PersonalizeConfig, places: &Places, progress: &dyn Progress) -> Result<Plan> {
    config.validate()?;
    let config = with_method_defaults(config);
    let photos = config.images.iter().map(|path| photo(Path::new(path), &config)).collect::<Result<Vec<_>>>()?;
    let folder = base::pipeline(&config.base, &places.hub, progress)?;
    let sources = [folder.unet()?, folder.text()?, folder.vae()?];
    let other = match config.method {
        Method::Full => Method::Lora,
        Method::Lora => Method::Full,
    };
    let text = config.train_text_encoder;
    let ways = [(config.method, text), (config.method, !text), (other, text), (other, !text)];
    Ok(Plan {
        base: folder.path.clone(),
        parameters: [count(&*sources[0]), count(&*sources[1]), count(&*sources[2])],
        photos: photos.iter().map(|photo| (photo.height, photo.width)).collect(),
        crop_size: config.crop_size,
        latent_size: config.crop_size / folder.vae_config.downsampling(),
        steps: config.steps,
        learning_rate: config.learning_rate,
        batch: batch(&config),
        gradient_checkpointing: config.gradient_checkpointing,
        choices: ways.map(|(method, text)| choice(&config, &folder, &sources, method, text)).to_vec(),
    })
}

fn batch(config: &PersonalizeConfig) -> u64 {
    config.train_batch_size as u64 * if config.with_prior_preservation { 2 } else { 1 }
}

fn count(source: &dyn TensorSource) -> u64 {
    source.shapes().values().map(|shape| shape.iter().product::<usize>() as u64).sum()
}

fn choice(
    config: &PersonalizeConfig,
    folder: &PipelineFolder,
    [unet, text, vae]: &[Box<dyn TensorSource>; 3],
    method: Method,
    train_text_encoder: bool,
) -> Choice {
    let trained_of = |source: &dyn TensorSource, adapters: AdapterPlan| match method {
        Method::Full => count(source),
        Method::Lora => adapter_parameters(source, &adapters),
    };
    let trained_text = if train_text_encoder { trained_of(&**text, text_plan(config)) } else { 0 };
    let trained = trained_of(&**unet, unet_plan(config)) + trained_text;
    let (side, tokens) = (config.crop_size / folder.vae_config.downsampling(), folder.text_config.max_position_embeddings);
    let text_kept = if train_text_encoder { footprint::text(&folder.text_config, tokens) } else { 0 };
    let weights = count(&**unet) + count(&**text) + count(&**vae);
    let accumulates = config.gradient_accumulation_steps > 1;
    let peak = |recomputed: bool| {
        let kept = footprint::unet(&folder.unet_config, (side, side), tokens, recomputed) + text_kept;
        let item = kept.max(footprint::vae_encoding(&folder.vae_config, config.crop_size));
        footprint::peak(weights, trained, accumulates, batch(config) * item)
    };
    Choice { method, train_text_encoder, trained, peak_bytes: peak(false), checkpointed_peak_bytes: peak(true) }
}

/// Two matrices for every adapted layer.
fn adapter_parameters(source: &dyn TensorSource, plan: &AdapterPlan) -> u64 {
    let adapted = |(name, shape): (&String, &Vec<usize>)| match (name.strip_suffix(".weight"), shape.as_slice()) {
        (Some(layer), [outputs, inputs, ..]) if plan.covers(layer) => (plan.rank * (inputs + outputs)) as u64,
        _ => 0,
    };
    source.shapes().iter().map(adapted).sum()
}

impl Plan {
    /// The plan for people.
    pub fn text(&self) -> String {
        let millions = |n: u64| format!("{:.1} M", n as f64 / 1e6);
        let [unet, text, vae] = self.parameters.map(millions);
        let photos: Vec<String> = self.photos.iter().map(|(h, w)| format!("{w}x{h}")).collect();
        let (crop, latent) = (self.crop_size, self.latent_size);
        let facts = terminal::facts(&[
            ("base", self.base.display().to_string()),
            ("parameters", format!("U-Net {unet}, text encoder {text}, autoencoder {vae}")),
            ("photos", format!("{} after resizing, crops of {crop}x{crop} ({latent}x{latent} latents)", photos.join(", "))),
            ("training", format!("{} steps of {} images, learning rate {:e}", self.steps, self.batch, self.learning_rate)),
        ]);
        let row = |choice: &Choice| {
            let method = match choice.method {
                Method::Full => "full",
                Method::Lora => "lora",
            };
            let (peak, less) = (terminal::memory(choice.peak_bytes), terminal::memory(choice.checkpointed_peak_bytes));
            vec![method.to_string(), choice.train_text_encoder.to_string(), millions(choice.trained), peak, less]
        };
        let mut rows: Vec<Vec<String>> = self.choices.iter().map(row).collect();
        let with = if self.gradient_checkpointing { ", with gradient checkpointing" } else { "" };
        rows[0].push(format!("← this run{with}"));
        let heads =
            ["method", "text encoder learns", "trained", "expected peak memory", "with gradient_checkpointing = true", ""];
        format!("{facts}\n{}\nnothing was trained or written", terminal::table(&heads, &rows))
    }
}
