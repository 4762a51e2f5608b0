//! Ranks and alphas that stand beside the tensors: peft's configuration, in a file of its own or in diffusers' metadata.

use super::{Component, Lora, LoraPair};
use crate::base::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Metadata key of diffusers with the adapter's settings as JSON.
pub(super) const METADATA: &str = "lora_adapter_metadata";
/// Peft's file of settings.
pub(super) const PEFT_CONFIG: &str = "adapter_config.json";
/// A longer file is not one.
const LONGEST: u64 = 1 << 24;

/// Settings of an adapter, keys with the network's name before them as diffusers writes them.
pub(super) struct Settings(Map<String, Value>);

/// The settings in a file's metadata, if any.
pub(super) fn of_metadata(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Settings> {
    let wrong = |found: String| Error::data(path, "adapter settings in the file's metadata", found, "export the adapter again");
    let settings = match metadata.get(METADATA) {
        Some(text) => serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?,
        None => Map::new(),
    };
    Settings(settings).checked(wrong)
}

/// The settings in peft's file.
pub(super) fn of_peft(path: &Path) -> Result<Settings> {
    let wrong = |found: String| Error::data(path, "settings of a LoRA as peft writes them", found, "save the adapter again");
    let length = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if length > LONGEST {
        return Err(wrong(format!("{length} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let settings: Map<String, Value> = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if settings.get("peft_type").is_some_and(|kind| kind != "LORA") {
        return Err(wrong(format!("peft_type {}", settings["peft_type"])));
    }
    let named = |component: Component| {
        let of = |(key, value): (&String, &Value)| (format!("{}.{key}", component.name()), value.clone());
        settings.iter().map(of).collect::<Vec<_>>()
    };
    Settings([Component::Unet, Component::TextEncoder].map(named).concat().into_iter().collect()).checked(wrong)
}

impl Settings {
    fn checked(self, wrong: impl Fn(String) -> Error) -> Result<Self> {
        for component in [Component::Unet, Component::TextEncoder] {
            for kind in ["use_dora", "use_rslora"] {
                if self.0.get(&format!("{}.{kind}", component.name())) == Some(&Value::Bool(true)) {
                    return Err(wrong(format!("the unsupported kind `{kind}`")));
                }
            }
        }
        Ok(self)
    }

    /// Alpha of a module: its own, else that of the network; `None` when nothing says.
    pub(super) fn alpha(&self, component: Component, module: &str) -> Option<f64> {
        let own = self.0.get(&format!("{}.alpha_pattern", component.name())).and_then(Value::as_object);
        let matches = |key: &str| module == key || module.strip_suffix(key).is_some_and(|rest| rest.ends_with('.'));
        let own = own.and_then(|pattern| pattern.iter().find(|(key, _)| matches(key.trim_start_matches('^'))));
        own.map(|(_, value)| value).or_else(|| self.0.get(&format!("{}.lora_alpha", component.name())))?.as_f64()
    }
}

/// The settings of one network's adapters, in peft's words; none without adapters.
pub(super) fn of_pairs(lora: &Lora, component: Component) -> Option<Map<String, Value>> {
    let pairs: Vec<(&String, &LoraPair)> = lora.of(component).map(|((_, module), pair)| (module, pair)).collect();
    let (_, first) = pairs.first()?;
    let pattern = |differs: &dyn Fn(&LoraPair) -> bool, value: &dyn Fn(&LoraPair) -> Value| -> Map<String, Value> {
        let those = pairs.iter().filter(|(_, pair)| differs(pair));
        // Matched as the end of a name, so that it fits text encoders with and without the outermost name.
        those.map(|(module, pair)| (module.trim_start_matches("text_model.").to_string(), value(pair))).collect()
    };
    let targets: BTreeSet<&str> = pairs.iter().map(|(module, _)| local_name(module)).collect();
    let settings = json!({
        "r": first.rank(),
        "lora_alpha": first.alpha,
        "rank_pattern": pattern(&|pair| pair.rank() != first.rank(), &|pair| pair.rank().into()),
        "alpha_pattern": pattern(&|pair| pair.alpha != first.alpha, &|pair| pair.alpha.into()),
        "target_modules": targets,
    });
    settings.as_object().cloned()
}

/// The name of a layer within its block: `to_q`, `to_out.0`.
fn local_name(module: &str) -> &str {
    let numbered = module.rsplit('.').next().is_some_and(|last| last.parse::<usize>().is_ok());
    let dots = module.rmatch_indices('.').nth(usize::from(numbered));
    dots.map_or(module, |(at, _)| &module[at + 1..])
}
