//! Low-rank adapter files: the diffusers layout, read and written, and merging into base weights.
//!
//! Inside the program an adapter is two tensors `MODULE.lora.down.weight` (r, in) and `MODULE.lora.up.weight` (out, r)
//! beside the weights of its network, where `MODULE` is the dotted name of the adapted layer. Other file layouts join
//! `NAMES`.

use crate::base::{Error, Result, device};
use crate::io::weights::{self, TensorSource};
use crate::nn::ParamStore;
use candle_core::{Result as TensorResult, Tensor};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Name of the file that diffusers looks for in a folder.
pub const FILE_NAME: &str = "pytorch_lora_weights.safetensors";

/// Metadata key with the adapter's settings as JSON.
const METADATA: &str = "lora_adapter_metadata";

/// The network that an adapter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The denoising U-Net.
    Unet,
    /// The CLIP text encoder.
    TextEncoder,
}

impl Component {
    /// Its folder in a pipeline, and its prefix in adapter files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
        }
    }
}

/// How the keys of a file layout are built: prefix, module, then the suffix of the down or up matrix.
struct Names {
    component: Component,
    prefix: &'static str,
    down: &'static str,
    up: &'static str,
}

/// The layouts that are read. The first row of each component is the one that is written.
const NAMES: [Names; 2] = [
    Names { component: Component::Unet, prefix: "unet.", down: ".lora.down.weight", up: ".lora.up.weight" },
    Names {
        component: Component::TextEncoder,
        prefix: "text_encoder.",
        down: ".lora_linear_layer.down.weight",
        up: ".lora_linear_layer.up.weight",
    },
];

/// The adapter of one layer: W + (alpha / r) · up · down.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// (r, in), or (r, in, 1, 1) on a 1×1 convolution.
    pub down: Tensor,
    /// (out, r), or (out, r, 1, 1).
    pub up: Tensor,
    /// Numerator of the scale.
    pub alpha: f64,
}

impl LoraPair {
    /// Rank r.
    pub fn rank(&self) -> usize {
        self.down.dims().first().copied().unwrap_or(0)
    }

    /// alpha / r.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }

    /// The adapted weight `weight + multiplier · alpha/r · up · down`.
    ///
    /// # Shapes
    /// `weight` (out, in) or (out, in, 1, 1) → the same
    ///
    /// # Source
    /// LoRA, equation 3.
    pub fn merged(&self, weight: &Tensor, multiplier: f64) -> TensorResult<Tensor> {
        let matrix = |t: &Tensor| t.reshape((t.dim(0)?, t.elem_count() / t.dim(0)?.max(1)))?.to_dtype(weight.dtype());
        let update = (matrix(&self.up)?.matmul(&matrix(&self.down)?)? * (multiplier * self.scale()))?;
        weight + update.reshape(weight.shape())?
    }

    /// True when both halves are matrices of one rank.
    fn is_whole(&self) -> bool {
        match (self.down.dims(), self.up.dims()) {
            ([_, inputs, ..], [outputs, ..]) => self.fits(&[*outputs, *inputs]),
            _ => false,
        }
    }

    /// True when the pair belongs on a weight of this shape.
    fn fits(&self, weight: &[usize]) -> bool {
        let (down, up) = (self.down.dims(), self.up.dims());
        let one_by_one = |dims: &[usize]| dims.len() == 2 || (dims.len() == 4 && dims[2..] == [1, 1]);
        [down, up, weight].into_iter().all(one_by_one)
            && self.rank() > 0
            && (down[1], up[0], up[1]) == (weight[1], weight[0], down[0])
    }
}

/// All adapters of a file.
#[derive(Debug, Clone, Default)]
pub struct Lora {
    /// Where they come from, for messages.
    pub origin: PathBuf,
    /// By network and dotted module name.
    pub pairs: BTreeMap<(Component, String), LoraPair>,
    /// String metadata of the file.
    pub metadata: BTreeMap<String, String>,
}

impl Lora {
    /// Reads an adapter file, or the one in a folder.
    ///
    /// # Errors
    /// A file of another layout, unknown keys, half pairs, kinds of adapters that are not low-rank pairs. All of them
    /// are listed.
    pub fn read(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join(FILE_NAME) } else { path.into() };
        let source = weights::open(&path)?;
        // Files other than safetensors have no metadata.
        let metadata = weights::read_metadata(&path).unwrap_or_default();
        let settings = settings(&path, &metadata)?;
        let mut halves: BTreeMap<(Component, String), [Option<Tensor>; 2]> = BTreeMap::new();
        let mut wrong = Vec::new();
        for key in source.shapes().into_keys() {
            match parse_key(&key) {
                Some((component, module, half)) => {
                    halves.entry((component, module)).or_default()[half] = Some(source.load(&key, &device::current())?);
                }
                None => wrong.push(format!("unknown key {key}")),
            }
        }
        let mut pairs = BTreeMap::new();
        for ((component, module), halves) in halves {
            let [Some(down), Some(up)] = halves else {
                wrong.push(format!("half a pair for {}.{module}", component.name()));
                continue;
            };
            let alpha = alpha(&settings, component, &module).unwrap_or(down.dims().first().copied().unwrap_or(0) as f64);
            let pair = LoraPair { down, up, alpha };
            if !pair.is_whole() {
                wrong.push(format!("{}.{module}: shapes {:?} and {:?}", component.name(), pair.down.dims(), pair.up.dims()));
                continue;
            }
            pairs.insert((component, module), pair);
        }
        if pairs.is_empty() && wrong.is_empty() {
            wrong.push("no tensors".into());
        }
        complain(&path, "an adapter in diffusers layout", wrong)?;
        Ok(Self { origin: path, pairs, metadata })
    }

    /// The adapters of a network's store, trained with `alpha`.
    ///
    /// # Errors
    /// Half pairs.
    pub fn add_store(&mut self, component: Component, store: &ParamStore, alpha: f64) -> Result<()> {
        for (name, var) in store.weights() {
            let Some(module) = name.strip_suffix(".lora.down.weight") else { continue };
            let up = store.get(&format!("{module}.lora.up.weight"));
            let up = up.ok_or_else(|| Error::Usage(format!("half an adapter for {}.{module}", component.name())))?;
            let pair = LoraPair { down: var.as_detached_tensor(), up: up.as_detached_tensor(), alpha };
            self.pairs.insert((component, module.into()), pair);
        }
        Ok(())
    }

    /// Writes the file that diffusers reads, atomically. Where alpha differs from the rank, the settings say so.
    ///
    /// # Errors
    /// No adapters, or a file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if self.pairs.is_empty() {
            return Err(Error::Usage("no adapters to write: the model was built without".into()));
        }
        let mut tensors = BTreeMap::new();
        for ((component, module), pair) in &self.pairs {
            for names in NAMES.iter().filter(|names| names.component == *component).take(1) {
                tensors.insert(format!("{}{module}{}", names.prefix, names.down), pair.down.contiguous()?);
                tensors.insert(format!("{}{module}{}", names.prefix, names.up), pair.up.contiguous()?);
            }
        }
        let mut metadata = self.metadata.clone();
        metadata.insert("format".into(), "pt".into());
        metadata.remove(METADATA);
        if self.pairs.values().any(|pair| pair.alpha != pair.rank() as f64) {
            metadata.insert(METADATA.into(), Value::Object(self.settings()).to_string());
        }
        weights::save(path, &tensors, &metadata)
    }

    /// Settings as peft's configuration, under the component's prefix.
    fn settings(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        for component in [Component::Unet, Component::TextEncoder] {
            let pairs: Vec<(&String, &LoraPair)> =
                self.pairs.iter().filter(|((c, _), _)| *c == component).map(|((_, module), pair)| (module, pair)).collect();
            let Some((_, first)) = pairs.first() else { continue };
            let pattern = |differs: &dyn Fn(&LoraPair) -> bool, value: &dyn Fn(&LoraPair) -> Value| -> Map<String, Value> {
                let those = pairs.iter().filter(|(_, pair)| differs(pair));
                // Matched as the end of a name, so that it fits text encoders with and without the outermost name.
                those.map(|(module, pair)| (module.trim_start_matches("text_model.").to_string(), value(pair))).collect()
            };
            let ranks = pattern(&|pair| pair.rank() != first.rank(), &|pair| pair.rank().into());
            let alphas = pattern(&|pair| pair.alpha != first.alpha, &|pair| pair.alpha.into());
            let targets: BTreeSet<&str> = pairs.iter().map(|(module, _)| local_name(module)).collect();
            let targets: Vec<Value> = targets.into_iter().map(Value::from).collect();
            for (key, value) in [
                ("r", first.rank().into()),
                ("lora_alpha", first.alpha.into()),
                ("rank_pattern", ranks.into()),
                ("alpha_pattern", alphas.into()),
                ("target_modules", targets.into()),
            ] {
                settings.insert(format!("{}.{key}", component.name()), value);
            }
        }
        settings
    }

    /// Copies the adapters of `component` into a store that was built with adapters of scale `scale`. Where the file's
    /// scale differs, the difference goes into the up matrix.
    ///
    /// # Errors
    /// Lists every missing, unexpected and misshaped tensor.
    pub fn load_into(&self, component: Component, store: &ParamStore, scale: f64) -> Result<()> {
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        for ((_, module), pair) in self.of(component) {
            let factor = pair.scale() / scale;
            let up = if factor == 1.0 { pair.up.clone() } else { (&pair.up * factor)? };
            tensors.insert(format!("{module}.lora.down.weight"), pair.down.clone());
            tensors.insert(format!("{module}.lora.up.weight"), up);
        }
        store.select(|name| name.contains(".lora.")).load(&tensors).map_err(|e| match e {
            Error::Data { expected, found, next, .. } => Error::Data { path: self.origin.clone(), expected, found, next },
            other => other,
        })
    }

    /// Merges the adapters of `component` into base weights named `MODULE.weight`, `multiplier` times.
    ///
    /// # Errors
    /// Lists every adapter without a layer to belong to; then nothing is changed.
    pub fn merge(&self, component: Component, base: &mut BTreeMap<String, Tensor>, multiplier: f64) -> Result<()> {
        let mut merged = BTreeMap::new();
        let mut wrong = Vec::new();
        for ((_, module), pair) in self.of(component) {
            let name = format!("{module}.weight");
            match base.get(&name) {
                Some(weight) if pair.fits(weight.dims()) => drop(merged.insert(name, pair.merged(weight, multiplier)?)),
                Some(weight) => wrong.push(format!("{name} of shape {:?}", weight.dims())),
                None => wrong.push(format!("no layer {module}")),
            }
        }
        complain(&self.origin, &format!("adapters of this {}", component.name()), wrong)?;
        base.extend(merged);
        Ok(())
    }

    fn of(&self, component: Component) -> impl Iterator<Item = (&(Component, String), &LoraPair)> {
        self.pairs.iter().filter(move |((c, _), _)| *c == component)
    }
}

/// Network, module and half (0 down, 1 up) of a file's key.
fn parse_key(key: &str) -> Option<(Component, String, usize)> {
    NAMES.iter().find_map(|names| {
        let rest = key.strip_prefix(names.prefix)?;
        let (module, half) = match (rest.strip_suffix(names.down), rest.strip_suffix(names.up)) {
            (Some(module), _) => (module, 0),
            (_, Some(module)) => (module, 1),
            _ => return None,
        };
        // Recent transformers drop the outermost name of the text encoder.
        let bare = names.component == Component::TextEncoder && module.starts_with("encoder.");
        Some((names.component, if bare { format!("text_model.{module}") } else { module.into() }, half))
    })
}

/// The name of a layer within its block: `to_q`, `to_out.0`.
fn local_name(module: &str) -> &str {
    let numbered = module.rsplit('.').next().is_some_and(|last| last.parse::<usize>().is_ok());
    let dots = module.rmatch_indices('.').nth(usize::from(numbered));
    dots.map_or(module, |(at, _)| &module[at + 1..])
}

/// The settings that a file carries, if any.
fn settings(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Map<String, Value>> {
    let Some(text) = metadata.get(METADATA) else { return Ok(Map::new()) };
    let wrong = |found: String| Error::data(path, "adapter settings in the file's metadata", found, "export the adapter again");
    let settings: Map<String, Value> = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
    for component in [Component::Unet, Component::TextEncoder] {
        for kind in ["use_dora", "use_rslora"] {
            if settings.get(&format!("{}.{kind}", component.name())) == Some(&Value::Bool(true)) {
                return Err(wrong(format!("the unsupported kind `{kind}`")));
            }
        }
    }
    Ok(settings)
}

/// Alpha of a module: its own, else that of the network; `None` when the file does not say.
fn alpha(settings: &Map<String, Value>, component: Component, module: &str) -> Option<f64> {
    let own = settings.get(&format!("{}.alpha_pattern", component.name())).and_then(Value::as_object);
    let matches = |key: &str| module == key || module.strip_suffix(key).is_some_and(|rest| rest.ends_with('.'));
    let own = own.and_then(|pattern| pattern.iter().find(|(key, _)| matches(key.trim_start_matches('^'))));
    own.map(|(_, value)| value).or_else(|| settings.get(&format!("{}.lora_alpha", component.name())))?.as_f64()
}

/// An error that lists everything wrong, if anything is.
fn complain(path: &Path, expected: &str, wrong: Vec<String>) -> Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    let more = if wrong.len() > 20 { ", …" } else { "" };
    let found = format!("{} problems: {}{more}", wrong.len(), wrong[..wrong.len().min(20)].join(", "));
    Err(Error::data(path, expected, found, "check that the adapter was made for this model"))
}
