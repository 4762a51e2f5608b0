//! What a personalisation would do and need, without doing it.

use super::base::{self, Places};
use super::dreambooth::{DreamBooth, text_plan, unet_plan};
use super::{Method, PersonalizeConfig, check_crop, photo, with_method_defaults};
use crate::base::Result;
use crate::base::progress::Progress;
use crate::diffusion::folder::PipelineFolder;
use crate::diffusion::footprint;
use crate::diffusion::model::Model;
use crate::io::images::RgbImage;
use crate::io::weights::TensorSource;
use crate::nn::AdapterPlan;
use crate::report::terminal;
use crate::systems::datum::forecast::{self, Forecast, Measured};
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
    /// What this run will take; none where its memory is not to be had here, so that nothing could be measured.
    pub forecast: Option<Forecast>,
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
    /// All parameters, trained or not.
    #[serde(skip)]
    whole: u64,
}

impl Choice {
    fn peak(&self, config: &PersonalizeConfig) -> u64 {
        if config.gradient_checkpointing { self.checkpointed_peak_bytes } else { self.peak_bytes }
    }
}

/// Reads photos and settings, and of the weights only the shapes. With memory for it (`available` bytes), runs a few steps on
/// small crops for the time.
///
/// # Errors
/// What [`super::run`] would complain about before training: unusable photos, an unavailable or incomplete base.
pub fn plan(config: &PersonalizeConfig, places: &Places, available: Option<u64>, progress: &dyn Progress) -> Result<Plan> {
    config.validate()?;
    let config = with_method_defaults(config);
    let photos = config.images.iter().map(|path| photo(Path::new(path), &config)).collect::<Result<Vec<_>>>()?;
    let folder = base::pipeline(&config.base, &places.hub, progress)?;
    check_crop(&config, &folder.vae_config)?;
    let sources = [folder.unet()?, folder.text()?, folder.vae()?];
    let other = match config.method {
        Method::Full => Method::Lora,
        Method::Lora => Method::Full,
    };
    let text = config.train_text_encoder;
    let ways = [(config.method, text), (config.method, !text), (other, text), (other, !text)];
    let choices = ways.map(|(method, text)| choice(&config, &folder, &sources, method, text)).to_vec();
    let forecast = match available.is_some_and(|bytes| choices[0].peak(&config) < bytes) {
        true => Some(forecast(&config, &folder, photos.clone(), &choices[0], progress)?),
        false => None,
    };
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
        choices,
        forecast,
    })
}

/// Measures steps on small crops. Class images are stood for by as many photos of the target.
fn forecast(
    config: &PersonalizeConfig,
    folder: &PipelineFolder,
    photos: Vec<RgbImage>,
    choice: &Choice,
    progress: &dyn Progress,
) -> Result<Forecast> {
    let side = config.crop_size;
    let sizes = forecast::probes((side, side));
    progress.stage("measuring steps on small crops", sizes.len() as u64, 0);
    let mut measured = Vec::new();
    for (done, (side, _)) in sizes.into_iter().enumerate() {
        let config = PersonalizeConfig { crop_size: side, checkpointing_steps: 0, validation_steps: 0, ..config.clone() };
        let model = Model::open(&folder.path)?;
        let class_images = if config.with_prior_preservation { photos.clone() } else { Vec::new() };
        // Nothing is written, so the run folder does not matter.
        let mut training = DreamBooth::new(&model, &config, photos.clone(), class_images, &folder.path, &folder.path)?;
        measured.push(Measured::training(&mut training, side * side)?);
        progress.step(done as u64 + 1, "");
    }
    progress.end();
    let (seconds_each, _) = forecast::extrapolate(&measured, side * side);
    // Usable weights of every interval and at the end; two states of weights and two moments while the last is written.
    let usable = match config.method {
        Method::Full => choice.whole,
        Method::Lora => choice.trained,
    };
    let intervals = config.steps.checked_div(config.checkpointing_steps).unwrap_or(0);
    let disk_bytes = 4 * (usable * (intervals + 1) + 3 * choice.trained * (config.keep_last as u64 + 1));
    let seconds = seconds_each * config.steps as f64;
    Ok(Forecast { seconds_each, seconds, peak_bytes: Some(choice.peak(config)), disk_bytes })
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
    let (peak_bytes, checkpointed_peak_bytes) = (peak(false), peak(true));
    Choice { method, train_text_encoder, trained, peak_bytes, checkpointed_peak_bytes, whole: weights }
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
        let mut facts = vec![
            ("base", self.base.display().to_string()),
            ("parameters", format!("U-Net {unet}, text encoder {text}, autoencoder {vae}")),
            ("photos", format!("{} after resizing, crops of {crop}x{crop} ({latent}x{latent} latents)", photos.join(", "))),
            ("training", format!("{} steps of {} images, learning rate {:e}", self.steps, self.batch, self.learning_rate)),
        ];
        match &self.forecast {
            Some(forecast) => facts.extend(forecast.facts("a step")),
            None => facts.push(("expected time", "not measured: the memory it needs is not free here".into())),
        }
        let facts = terminal::facts(&facts);
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
        format!("{facts}\n{}\nnothing was written", terminal::table(&heads, &rows))
    }
}
