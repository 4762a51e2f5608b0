//! The `config.json` files of a diffusers folder: what they set, and which settings we refuse.
//!
//! A missing key takes the value of Stable Diffusion 1.4. Keys that we do not use are kept and written back; those
//! that would change the numbers must have their usual value, the others give a warning.

use crate::base::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// A configuration that is read from and written to JSON.
pub trait JsonConfig: DeserializeOwned + Serialize {
    /// The Python class it configures, for messages.
    const CLASS: &'static str;
    /// Keys that we do not implement, each with the JSON list of values under which that makes no difference.
    const FIXED: &'static [(&'static str, &'static str)];
    /// Keys that make no difference here.
    const INERT: &'static [&'static str];

    /// Entries of the file that are no field of ours.
    fn other(&mut self) -> &mut Map<String, Value>;
    /// Checks that the values fit each other.
    fn validate(&self) -> Result<()>;
    /// Entries that the Python libraries expect in the file, for a configuration that was not read from one.
    fn class_entries() -> Vec<(&'static str, Value)>;
}

/// Reads a configuration; `path` is only for messages. Also returns warnings about keys that are ignored.
///
/// # Errors
/// Text that is no JSON object, values of a wrong type, settings that we do not implement or that contradict each other.
pub fn parse<C: JsonConfig>(path: &Path, text: &str) -> Result<(C, Vec<String>)> {
    let bad = |found: String| Error::data(path, format!("a configuration of {}", C::CLASS), found, "correct the file");
    let entries: Map<String, Value> = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let present = entries.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut config: C = serde_path_to_error::deserialize(Value::Object(present)).map_err(|e| bad(e.to_string()))?;
    let fields = fields(&config)?;
    let other: Map<String, Value> = entries.into_iter().filter(|(key, _)| !fields.contains_key(key)).collect();
    let mut warnings = Vec::new();
    for (key, value) in &other {
        match C::FIXED.iter().find(|(name, _)| name == key) {
            Some((_, accepted)) if accepts(accepted, value) => {}
            Some((_, accepted)) => return Err(bad(format!("`{key}` = {value}, where only {accepted} are implemented"))),
            None if value.is_null() || key.starts_with('_') || C::INERT.contains(&key.as_str()) => {}
            None => warnings.push(format!("{}: `{key}` is ignored", path.display())),
        }
    }
    *config.other() = other;
    config.validate().map_err(|e| bad(e.to_string()))?;
    Ok((config, warnings))
}

/// The configuration as JSON text with sorted keys, everything that was read included.
///
/// # Errors
/// None in practice: numbers that JSON cannot hold.
pub fn to_json<C: JsonConfig + Clone>(config: &C) -> Result<String> {
    let mut config = config.clone();
    let mut entries = fields(&config)?;
    entries.extend(std::mem::take(config.other()).into_iter().filter(|(key, _)| key != "_name_or_path"));
    for (key, value) in C::class_entries() {
        entries.entry(key).or_insert(value);
    }
    entries.sort_keys();
    serde_json::to_string_pretty(&entries).map_err(|e| Error::Usage(format!("{}: {e}", C::CLASS)))
}

fn fields<C: JsonConfig>(config: &C) -> Result<Map<String, Value>> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Error::Usage(format!("{} has values that JSON cannot hold", C::CLASS))),
    }
}

/// True when `value` is one of the JSON list `accepted`; 1 and 1.0 are equal.
fn accepts(accepted: &str, value: &Value) -> bool {
    let list: Vec<Value> = serde_json::from_str(accepted).unwrap_or_default();
    list.iter().any(|one| one == value || (one.is_number() && one.as_f64() == value.as_f64()))
}

fn check(holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Usage(message())) }
}

/// The version that our files name as their writer's; readers use it to recognise folders older than diffusers 0.9.
pub const DIFFUSERS_VERSION: &str = "0.30.0";

fn diffusers_class(class: &'static str) -> Vec<(&'static str, Value)> {
    vec![("_class_name", class.into()), ("_diffusers_version", DIFFUSERS_VERSION.into())]
}

/// One value for all levels, or one for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same everywhere.
    All(usize),
    /// From the highest resolution to the lowest.
    Each(Vec<usize>),
}

/// A U-Net block with or without attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlock {
    /// Residual blocks, each followed by attention to the prompt.
    CrossAttnDownBlock2D,
    /// Residual blocks.
    DownBlock2D,
}

/// As [`DownBlock`], on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlock {
    /// Residual blocks, each followed by attention to the prompt.
    CrossAttnUpBlock2D,
    /// Residual blocks.
    UpBlock2D,
}

impl DownBlock {
    /// Whether it has attention.
    pub fn attends(self) -> bool {
        self == Self::CrossAttnDownBlock2D
    }
}

impl UpBlock {
    /// Whether it has attention.
    pub fn attends(self) -> bool {
        self == Self::CrossAttnUpBlock2D
    }
}

/// Configuration of the U-Net (`unet/config.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Channels of each level, from the highest resolution to the lowest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Width of the text encoder.
    pub cross_attention_dim: usize,
    /// **Number of heads**, in spite of its name.
    pub attention_head_dim: PerLevel,
    /// Kind of each level on the way down.
    pub down_block_types: Vec<DownBlock>,
    /// Kind of each level on the way up, lowest resolution first.
    pub up_block_types: Vec<UpBlock>,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms of residual blocks.
    pub norm_eps: f64,
    /// Cosines come before sines in the timestep embedding.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies when they are spaced.
    pub freq_shift: f32,
    /// Transformers start and end with linear layers (SD 2.x) instead of 1×1 convolutions.
    pub use_linear_projection: bool,
    /// Side of the latents it was trained on, in latent pixels.
    pub sample_size: usize,
    /// What else the file holds.
    #[serde(skip)]
    pub other: Map<String, Value>,
}

impl Default for UNetConfig {
    /// Stable Diffusion 1.4.
    fn default() -> Self {
        use {DownBlock::*, UpBlock::*};
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            cross_attention_dim: 768,
            attention_head_dim: PerLevel::All(8),
            down_block_types: vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
            up_block_types: vec![UpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D],
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            use_linear_projection: false,
            sample_size: 64,
            other: Map::new(),
        }
    }
}

impl UNetConfig {
    /// Heads of the transformers of `level`.
    pub fn heads(&self, level: usize) -> usize {
        match &self.attention_head_dim {
            PerLevel::All(heads) => *heads,
            PerLevel::Each(heads) => heads.get(level).copied().unwrap_or(0),
        }
    }

    /// # Errors
    /// Block lists of unequal lengths, channels that groups or heads do not divide.
    pub fn validate(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        let lists = [self.down_block_types.len(), self.up_block_types.len()];
        check(levels > 0 && self.layers_per_block > 0, || "the U-Net needs a level and a layer per block".into())?;
        check(lists == [levels, levels], || {
            format!("block_out_channels has {levels} levels, the lists of down and up blocks have {lists:?}")
        })?;
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            let (groups, heads) = (self.norm_num_groups, self.heads(level));
            check(groups > 0 && channels > 0 && channels.is_multiple_of(groups), || {
                format!("norm_num_groups {groups} does not divide the {channels} channels of level {level}")
            })?;
            check(heads > 0 && channels.is_multiple_of(heads), || {
                format!("attention_head_dim (number of heads) {heads} does not divide the {channels} channels of level {level}")
            })?;
        }
        check(self.block_out_channels[0].is_multiple_of(2), || "the first of block_out_channels must be even".into())
    }
}

impl JsonConfig for UNetConfig {
    const CLASS: &'static str = "UNet2DConditionModel";
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("act_fn", r#"["silu", "swish"]"#),
        ("addition_embed_type", "[null]"),
        ("attention_type", r#"["default"]"#),
        ("center_input_sample", "[false]"),
        ("class_embed_type", "[null]"),
        ("conv_in_kernel", "[3]"),
        ("conv_out_kernel", "[3]"),
        ("cross_attention_norm", "[null]"),
        ("downsample_padding", "[1]"),
        ("dual_cross_attention", "[false]"),
        ("encoder_hid_dim", "[null]"),
        ("encoder_hid_dim_type", "[null]"),
        ("mid_block_only_cross_attention", "[null, false]"),
        ("mid_block_scale_factor", "[1]"),
        ("mid_block_type", r#"["UNetMidBlock2DCrossAttn"]"#),
        ("num_attention_heads", "[null]"),
        ("num_class_embeds", "[null]"),
        ("only_cross_attention", "[false]"),
        ("resnet_out_scale_factor", "[1]"),
        ("resnet_skip_time_act", "[false]"),
        ("resnet_time_scale_shift", r#"["default"]"#),
        ("time_cond_proj_dim", "[null]"),
        ("time_embedding_act_fn", "[null]"),
        ("time_embedding_dim", "[null]"),
        ("time_embedding_type", r#"["positional"]"#),
        ("timestep_post_act", "[null]"),
        ("transformer_layers_per_block", "[1]"),
    ];
    // Attention is always computed in f32, so there is nothing to upcast; dropout is 0 in the published models.
    const INERT: &'static [&'static str] =
        &["addition_embed_type_num_heads", "class_embeddings_concat", "dropout", "upcast_attention"];

    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn class_entries() -> Vec<(&'static str, Value)> {
        diffusers_class(Self::CLASS)
    }
}

/// Configuration of the autoencoder (`vae/config.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of the images.
    pub in_channels: usize,
    /// Channels of the decoded images.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level, from the highest resolution to the lowest.
    pub block_out_channels: Vec<usize>,
    /// Always `DownEncoderBlock2D`, once per level.
    pub down_block_types: Vec<String>,
    /// Always `UpDecoderBlock2D`, once per level.
    pub up_block_types: Vec<String>,
    /// Residual blocks per level of the encoder; one more in the decoder.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Side of the images it was trained on, in pixels.
    pub sample_size: usize,
    /// Latents are multiplied by it before they reach the U-Net.
    pub scaling_factor: f64,
    /// What else the file holds.
    #[serde(skip)]
    pub other: Map<String, Value>,
}

impl Default for VaeConfig {
    /// Stable Diffusion 1.4.
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            down_block_types: vec!["DownEncoderBlock2D".into(); 4],
            up_block_types: vec!["UpDecoderBlock2D".into(); 4],
            layers_per_block: 2,
            norm_num_groups: 32,
            sample_size: 512,
            scaling_factor: 0.18215,
            other: Map::new(),
        }
    }
}

impl VaeConfig {
    /// Image pixels per latent pixel, along each side.
    pub fn downsampling(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// # Errors
    /// Block lists of unequal lengths or of unknown kinds, channels that the groups do not divide.
    pub fn validate(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        check(levels > 0 && self.layers_per_block > 0, || "the autoencoder needs a level and a layer per block".into())?;
        for (list, kind) in [(&self.down_block_types, "DownEncoderBlock2D"), (&self.up_block_types, "UpDecoderBlock2D")] {
            check(list.len() == levels && list.iter().all(|one| one == kind), || {
                format!("expected {levels} blocks, all {kind}, found {list:?}")
            })?;
        }
        let groups = self.norm_num_groups;
        check(groups > 0 && self.block_out_channels.iter().all(|c| *c > 0 && c.is_multiple_of(groups)), || {
            format!("norm_num_groups {groups} does not divide block_out_channels {:?}", self.block_out_channels)
        })?;
        check(self.scaling_factor.is_finite() && self.scaling_factor != 0.0, || "scaling_factor must not be 0".into())
    }
}

impl JsonConfig for VaeConfig {
    const CLASS: &'static str = "AutoencoderKL";
    const FIXED: &'static [(&'static str, &'static str)] = &[
        ("act_fn", r#"["silu", "swish"]"#),
        ("latents_mean", "[null]"),
        ("latents_std", "[null]"),
        ("mid_block_add_attention", "[true]"),
        ("shift_factor", "[null]"),
        ("use_post_quant_conv", "[true]"),
        ("use_quant_conv", "[true]"),
    ];
    const INERT: &'static [&'static str] = &["force_upcast"];

    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn class_entries() -> Vec<(&'static str, Value)> {
        diffusers_class(Self::CLASS)
    }
}

/// Activation of the text encoder's feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextActivation {
    /// CLIP (SD 1.x).
    QuickGelu,
    /// OpenCLIP (SD 2.x).
    Gelu,
}

/// Configuration of the text encoder (`text_encoder/config.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Width D.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of each layer.
    pub num_attention_heads: usize,
    /// Longest prompt in tokens, start and end included.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: TextActivation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// What else the file holds.
    #[serde(skip)]
    pub other: Map<String, Value>,
}

impl Default for TextConfig {
    /// Stable Diffusion 1.4.
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: TextActivation::QuickGelu,
            layer_norm_eps: 1e-5,
            other: Map::new(),
        }
    }
}

impl TextConfig {
    /// # Errors
    /// Heads that do not divide the width, empty tables.
    pub fn validate(&self) -> Result<()> {
        let (dim, heads) = (self.hidden_size, self.num_attention_heads);
        check(self.vocab_size > 0 && self.max_position_embeddings > 0, || "the text encoder needs tokens and positions".into())?;
        check(heads > 0 && dim > 0 && dim.is_multiple_of(heads), || {
            format!("num_attention_heads {heads} does not divide hidden_size {dim}")
        })
    }
}

impl JsonConfig for TextConfig {
    const CLASS: &'static str = "CLIPTextModel";
    const FIXED: &'static [(&'static str, &'static str)] = &[("model_type", r#"["clip_text_model"]"#)];
    // Initialisation, dropout (0 in the published models) and pooled outputs are not taken from the file.
    const INERT: &'static [&'static str] = &[
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dropout",
        "dtype",
        "eos_token_id",
        "initializer_factor",
        "initializer_range",
        "pad_token_id",
        "projection_dim",
        "torch_dtype",
        "transformers_version",
    ];

    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn class_entries() -> Vec<(&'static str, Value)> {
        vec![
            ("architectures", vec![Self::CLASS].into()),
            ("model_type", "clip_text_model".into()),
            ("torch_dtype", "float32".into()),
        ]
    }
}

/// Configuration of the noise schedule and sampler (`scheduler/scheduler_config.json`), kept as it is: the networks do not
/// need it. `diffusion::folder::noise_config` reads the settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// The Python class that samples, e.g. `PNDMScheduler`.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// All settings of the file.
    #[serde(skip)]
    pub other: Map<String, Value>,
}

impl Default for SchedulerConfig {
    /// Stable Diffusion 1.4.
    fn default() -> Self {
        let settings = [
            ("beta_end", Value::from(0.012)),
            ("beta_schedule", "scaled_linear".into()),
            ("beta_start", 0.00085.into()),
            ("clip_sample", false.into()),
            ("num_train_timesteps", 1000.into()),
            ("prediction_type", "epsilon".into()),
            ("set_alpha_to_one", false.into()),
            ("skip_prk_steps", true.into()),
            ("steps_offset", 1.into()),
        ];
        let other = settings.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        Self { class_name: "PNDMScheduler".into(), other }
    }
}

impl JsonConfig for SchedulerConfig {
    const CLASS: &'static str = "a diffusers scheduler";
    const FIXED: &'static [(&'static str, &'static str)] = &[("thresholding", "[false]")];
    // The first two only tune `thresholding`; the others are read by the noise schedule.
    const INERT: &'static [&'static str] = &[
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "beta_end",
        "beta_schedule",
        "beta_start",
        "clip_sample",
        "clip_sample_range",
        "num_train_timesteps",
        "prediction_type",
        "rescale_betas_zero_snr",
        "set_alpha_to_one",
        "skip_prk_steps",
        "steps_offset",
        "timestep_spacing",
        "trained_betas",
        "variance_type",
    ];

    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn class_entries() -> Vec<(&'static str, Value)> {
        diffusers_class("PNDMScheduler")
    }
}
