//! Adapter files of all dialects, read.

use super::keys::{Key, Role};
use super::settings::{self, Settings};
use super::{Component, Dialect, Lora, LoraPair, NumberType, complain};
use crate::base::{Error, Result, device};
use crate::io::weights::{self, SafetensorsFile, TensorSource};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the file that diffusers looks for in a folder.
pub const FILE_NAME: &str = "pytorch_lora_weights.safetensors";
/// Names of files that may be an adapter's, in a folder, in this order.
const NAMES: [&str; 4] = [FILE_NAME, "pytorch_lora_weights.bin", "adapter_model.safetensors", "adapter_model.bin"];

/// Ends of keys whose adapters are of another kind.
const OTHER_KINDS: [(&str, &str); 5] = [
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".hada_w1_a", "LoHa"),
    (".lokr_w1", "LoKr"),
    (".lora_mid.weight", "LoCon in three parts"),
];

/// The tensors of one layer.
#[derive(Default)]
struct Parts {
    down: Option<Tensor>,
    up: Option<Tensor>,
    alpha: Option<f64>,
}

impl Lora {
    /// Reads an adapter file of any dialect, or those in a folder: the file of diffusers or of peft, or folders `unet` and
    /// `text_encoder` with one of peft each.
    ///
    /// # Errors
    /// Keys of no dialect, half pairs, kinds of adapters that are not low-rank pairs (all of them are listed); a file of peft without
    /// its settings.
    pub fn read(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return read_file(path);
        }
        let file = |folder: &Path| NAMES.iter().map(|name| folder.join(name)).find(|file| file.is_file());
        if let Some(file) = file(path) {
            return read_file(&file);
        }
        let folders = [Component::Unet, Component::TextEncoder].map(|component| path.join(component.name()));
        let parts: Vec<Self> =
            folders.iter().filter_map(|folder| file(folder)).map(|file| read_file(&file)).collect::<Result<_>>()?;
        let whole = parts.into_iter().reduce(|mut all, part| {
            all.pairs.extend(part.pairs);
            all.metadata.extend(part.metadata);
            all
        });
        let whole = whole.ok_or_else(|| {
            Error::data(path, format!("an adapter: {}", NAMES.join(", ")), "none of them", "name the adapter's file itself")
        })?;
        Ok(Self { origin: path.into(), ..whole })
    }
}

fn read_file(path: &Path) -> Result<Lora> {
    let source = weights::open(path)?;
    // Files other than safetensors have neither.
    let (metadata, number_type) =
        SafetensorsFile::open(path).map_or((BTreeMap::new(), DType::F32), |file| (file.metadata(), file.number_type()));
    let (layers, dialect, wrong) = layers(source.as_ref())?;
    let config = peft_config(path, dialect, &layers)?;
    let settings = match &config {
        Some(file) => settings::of_peft(file)?,
        None => settings::of_metadata(path, &metadata)?,
    };
    let mut lora = Lora { origin: path.into(), dialect, number_type: NumberType(number_type), metadata, ..Lora::default() };
    lora.collect(layers, &settings, wrong)?;
    Ok(lora)
}

type Layers = BTreeMap<(Component, String), Parts>;

/// The tensors by layer, the first key's dialect, and what is wrong with the others.
fn layers(source: &dyn TensorSource) -> Result<(Layers, Dialect, Vec<String>)> {
    let (mut layers, mut dialect, mut wrong) = (Layers::new(), None, Vec::new());
    for key in source.shapes().into_keys() {
        let Some(Key { dialect: of_key, component, module, role }) = Key::parse(&key) else {
            let kind = OTHER_KINDS.iter().find(|(end, _)| key.ends_with(end));
            wrong.push(kind.map_or_else(|| format!("unknown key {key}"), |(_, kind)| format!("{key}: {kind} is not supported")));
            continue;
        };
        dialect.get_or_insert(of_key);
        let tensor = source.load(&key, &device::current())?;
        let parts = layers.entry((component, module)).or_default();
        match role {
            Role::Down => parts.down = Some(tensor),
            Role::Up => parts.up = Some(tensor),
            Role::Alpha if tensor.elem_count() == 1 => {
                parts.alpha = Some(f64::from(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?[0]));
            }
            Role::Alpha => wrong.push(format!("{key} is not one number")),
        }
    }
    Ok((layers, dialect.unwrap_or_default(), wrong))
}

/// The settings beside a file of peft. Without them nobody knows alpha.
fn peft_config(path: &Path, dialect: Dialect, layers: &Layers) -> Result<Option<PathBuf>> {
    if dialect != Dialect::Peft || layers.is_empty() {
        return Ok(None);
    }
    let config = path.with_file_name(settings::PEFT_CONFIG);
    if config.is_file() {
        return Ok(Some(config));
    }
    Err(Error::data(&config, "the settings of peft beside its weights (they hold alpha)", "no file", "copy the whole folder"))
}

impl Lora {
    fn collect(&mut self, layers: Layers, settings: &Settings, mut wrong: Vec<String>) -> Result<()> {
        for ((component, module), parts) in layers {
            let place = format!("{}.{module}", component.name());
            let (Some(down), Some(up)) = (parts.down, parts.up) else {
                wrong.push(format!("half a pair for {place}"));
                continue;
            };
            let rank = down.dims().first().copied().unwrap_or(0);
            let alpha = parts.alpha.or_else(|| settings.alpha(component, &module)).unwrap_or(rank as f64);
            let pair = LoraPair { down, up, alpha };
            if pair.is_whole() && alpha.is_finite() {
                self.pairs.insert((component, module), pair);
            } else {
                wrong.push(format!("{place}: shapes {:?} and {:?}, alpha {alpha}", pair.down.dims(), pair.up.dims()));
            }
        }
        if self.pairs.is_empty() && wrong.is_empty() {
            wrong.push("no tensors".into());
        }
        complain(&self.origin, "an adapter of diffusers, peft or kohya", wrong)
    }
}
