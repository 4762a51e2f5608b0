//! Adapters, written for diffusers, peft, and A1111, ComfyUI and kohya's scripts.

use super::keys::{Key, Role};
use super::settings::{self, METADATA, PEFT_CONFIG};
use super::{Component, Dialect, Lora};
use crate::base::{Error, Result};
use crate::io::{atomic, weights};
use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Metadata that belongs to a dialect and is made anew.
const OF_KOHYA: [&str; 7] = [
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_base_model_version",
    "ss_v2",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
];

impl Lora {
    /// Writes the file that diffusers reads, atomically. Where alpha differs from the rank, the settings say so.
    ///
    /// # Errors
    /// No adapters, or a file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let settings = |component: Component| {
            let settings = settings::of_pairs(self, component).unwrap_or_default();
            settings.into_iter().map(move |(key, value)| (format!("{}.{key}", component.name()), value))
        };
        let mut metadata = self.kept_metadata();
        if self.pairs.values().any(|pair| pair.alpha != pair.rank() as f64) {
            let settings: Map<String, Value> = [Component::Unet, Component::TextEncoder].into_iter().flat_map(settings).collect();
            metadata.insert(METADATA.into(), Value::Object(settings).to_string());
        }
        weights::save(path, &self.tensors(Dialect::Diffusers, None)?, &metadata)
    }

    /// Writes one file that A1111, ComfyUI and kohya's scripts read, atomically, with every layer's alpha.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_kohya(&self, path: &Path) -> Result<()> {
        let mut metadata = self.kept_metadata();
        let first = self.pairs.values().next();
        metadata.insert("ss_network_module".into(), "networks.lora".into());
        if let Some(pair) = first {
            metadata.insert("ss_network_dim".into(), pair.rank().to_string());
            metadata.insert("ss_network_alpha".into(), pair.alpha.to_string());
        }
        if let Some((version, second, architecture)) = self.base_version() {
            metadata.insert("ss_base_model_version".into(), version.into());
            metadata.insert("ss_v2".into(), second.into());
            metadata.insert("modelspec.sai_model_spec".into(), "1.0.0".into());
            metadata.insert("modelspec.architecture".into(), architecture.into());
        }
        weights::save(path, &self.tensors(Dialect::Kohya, None)?, &metadata)
    }

    /// Writes a folder for each network, `unet` and `text_encoder`, as peft does.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_peft(&self, folder: &Path) -> Result<()> {
        for component in [Component::Unet, Component::TextEncoder] {
            let Some(mut settings) = settings::of_pairs(self, component) else { continue };
            let fixed = json!({
                "peft_type": "LORA", "task_type": null, "base_model_name_or_path": null, "inference_mode": true, "bias": "none",
                "lora_dropout": 0.0, "fan_in_fan_out": false, "init_lora_weights": true, "use_rslora": false, "use_dora": false,
            });
            settings.extend(fixed.as_object().cloned().unwrap_or_default());
            let part = folder.join(component.name());
            let tensors = self.tensors(Dialect::Peft, Some(component))?;
            weights::save(&part.join("adapter_model.safetensors"), &tensors, &self.kept_metadata())?;
            atomic::write(&part.join(PEFT_CONFIG), format!("{:#}\n", Value::Object(settings)).as_bytes())?;
        }
        Ok(())
    }

    /// All tensors, or those of one network, under a dialect's names.
    fn tensors(&self, dialect: Dialect, only: Option<Component>) -> Result<BTreeMap<String, Tensor>> {
        if self.pairs.is_empty() {
            return Err(Error::Usage("no adapters to write: the model was built without".into()));
        }
        let mut tensors = BTreeMap::new();
        for ((component, module), pair) in self.pairs.iter().filter(|((of, _), _)| only.is_none_or(|only| only == *of)) {
            let name = |role: Role| Key { dialect, component: *component, module: module.clone(), role }.name();
            for (role, tensor) in [(Role::Down, &pair.down), (Role::Up, &pair.up)] {
                tensors.insert(name(role), tensor.contiguous()?.to_dtype(self.number_type.0)?);
            }
            if dialect == Dialect::Kohya {
                tensors.insert(name(Role::Alpha), Tensor::new(pair.alpha as f32, &Device::Cpu)?);
            }
        }
        Ok(tensors)
    }

    /// The file's metadata without what a dialect makes anew.
    fn kept_metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.metadata.clone();
        metadata.retain(|key, _| key != METADATA && !OF_KOHYA.contains(&key.as_str()));
        metadata.insert("format".into(), "pt".into());
        metadata
    }

    /// Kohya's name of the base and whether it is a version 2, told by the width of the text that the U-Net looks at.
    fn base_version(&self) -> Option<(&'static str, &'static str, &'static str)> {
        let reads_text = |module: &str| module.ends_with("attn2.to_k") || module.ends_with("attn2.to_v");
        let (_, pair) = self.of(Component::Unet).find(|((_, module), _)| reads_text(module))?;
        match pair.down.dims()[1] {
            768 => Some(("sd_v1", "False", "stable-diffusion-v1/lora")),
            1024 => Some(("sd_v2", "True", "stable-diffusion-v2-512/lora")),
            _ => None,
        }
    }
}
