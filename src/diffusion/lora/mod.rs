//! Low-rank adapters: read from the files of all common tools, merged into base weights, written for other tools.
//!
//! Inside the program an adapter is two tensors `MODULE.lora.down.weight` (r, in) and `MODULE.lora.up.weight` (out, r)
//! beside the weights of its network, where `MODULE` is the dotted name of the adapted layer.

mod effect;
mod keys;
mod read;
mod settings;
mod write;

pub use effect::Effect;
pub use keys::Dialect;
pub use read::FILE_NAME;

use crate::base::{Error, Result};
use crate::nn::ParamStore;
use candle_core::{DType, Result as TensorResult, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

/// The adapter of one layer: W + (alpha / r) · up · down.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// (r, in), or (r, in, k, k) on a convolution.
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

    /// What it adds to a weight, `alpha/r · up · down` as a matrix.
    ///
    /// # Shapes
    /// → (out, in), or (out, in·k·k)
    pub fn update(&self) -> TensorResult<Tensor> {
        let matrix = |t: &Tensor| t.reshape((t.dim(0)?, t.elem_count() / t.dim(0)?.max(1)))?.to_dtype(DType::F32);
        matrix(&self.up)?.matmul(&matrix(&self.down)?)? * self.scale()
    }

    /// The adapted weight `weight + multiplier · alpha/r · up · down`.
    ///
    /// # Shapes
    /// `weight` (out, in) or (out, in, k, k) → the same
    ///
    /// # Source
    /// LoRA, equation 3.
    pub fn merged(&self, weight: &Tensor, multiplier: f64) -> TensorResult<Tensor> {
        weight + (self.update()? * multiplier)?.reshape(weight.shape())?.to_dtype(weight.dtype())?
    }

    /// True when both halves have one rank.
    fn is_whole(&self) -> bool {
        match (self.down.dims(), self.up.dims()) {
            ([_, inputs, kernel @ ..], [outputs, _, ..]) => self.fits(&[&[*outputs, *inputs], kernel].concat()),
            _ => false,
        }
    }

    /// True when the pair belongs on a weight of this shape. A matrix may stand for a 1×1 convolution, and the other way round.
    pub fn fits(&self, weight: &[usize]) -> bool {
        let (down, up) = (self.down.dims(), self.up.dims());
        let kernel = |dims: &[usize]| if dims.len() == 2 { [1, 1] } else { [dims[2], dims[3]] };
        [down, up, weight].iter().all(|dims| matches!(dims.len(), 2 | 4))
            && self.rank() > 0
            && (down[1], up[0], up[1]) == (weight[1], weight[0], down[0])
            && (kernel(down), kernel(up)) == (kernel(weight), [1, 1])
    }
}

/// Type of a file's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberType(pub DType);

impl Default for NumberType {
    fn default() -> Self {
        Self(DType::F32)
    }
}

/// All adapters of a file.
#[derive(Debug, Clone, Default)]
pub struct Lora {
    /// Where they come from, for messages.
    pub origin: PathBuf,
    /// How the file names them.
    pub dialect: Dialect,
    /// Type of the numbers in the file, which written ones get too; in memory they are f32.
    pub number_type: NumberType,
    /// By network and dotted module name.
    pub pairs: BTreeMap<(Component, String), LoraPair>,
    /// String metadata of the file.
    pub metadata: BTreeMap<String, String>,
}

impl Lora {
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

    /// The adapters of one network.
    pub fn of(&self, component: Component) -> impl Iterator<Item = (&(Component, String), &LoraPair)> {
        self.pairs.iter().filter(move |((c, _), _)| *c == component)
    }
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
