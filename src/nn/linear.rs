//! Linear layers, embeddings, and low-rank adapters on linear layers.

use super::{Builder, Init};
use crate::base::Result;
use candle_core::{Result as TensorResult, Tensor};

/// `xs · weightᵀ + bias`. The gradient of a frozen weight is never computed.
///
/// # Shapes
/// `xs` (…, in), `weight` (out, in), `bias` (out) → (…, out)
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> TensorResult<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let mut shape = xs.dims().to_vec();
    let rows = xs.elem_count() / in_features;
    let ys = xs.reshape((rows, in_features))?.matmul(&weight.t()?)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    };
    let last = shape.len() - 1;
    shape[last] = out_features;
    ys.reshape(shape)
}

/// Which linear layers get a low-rank adapter, and how it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterPlan {
    /// Rank r of the update.
    pub rank: usize,
    /// The update is multiplied by `alpha / rank`.
    pub alpha: f32,
    /// A layer is adapted when its dotted name ends with one of these, e.g. `to_q` or `to_out.0`.
    pub targets: Vec<String>,
}

impl AdapterPlan {
    /// True when the layer at `path` is adapted.
    pub fn covers(&self, path: &str) -> bool {
        self.targets.iter().any(|t| path == t || path.strip_suffix(t.as_str()).is_some_and(|rest| rest.ends_with('.')))
    }
}

/// Low-rank update `scale · up(down(x))` of a linear layer.
///
/// # Source
/// LoRA, equation 3. Starts at zero: `down` normal with std 1/r, `up` zero.
#[derive(Debug, Clone)]
pub struct Adapter {
    down: Tensor,
    up: Tensor,
    scale: f64,
}

impl Adapter {
    /// An adapter from its two matrices.
    ///
    /// # Shapes
    /// `down` (r, in), `up` (out, r)
    pub fn new(down: Tensor, up: Tensor, scale: f64) -> Self {
        Self { down, up, scale }
    }

    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        linear(&linear(xs, &self.down, None)?, &self.up, None)? * self.scale
    }
}

/// A linear layer with optional bias and optional low-rank adapter.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// With bias; PyTorch's default initialisation.
    pub fn new(in_features: usize, out_features: usize, builder: &Builder) -> Result<Self> {
        let bound = 1.0 / (in_features as f32).sqrt();
        Self::with_init(in_features, out_features, builder, Init::FanInUniform, Some(Init::Uniform { bound }))
    }

    /// Without bias.
    pub fn no_bias(in_features: usize, out_features: usize, builder: &Builder) -> Result<Self> {
        Self::with_init(in_features, out_features, builder, Init::FanInUniform, None)
    }

    /// With chosen initial values; `bias: None` builds a layer without bias.
    pub fn with_init(
        in_features: usize,
        out_features: usize,
        builder: &Builder,
        weight: Init,
        bias: Option<Init>,
    ) -> Result<Self> {
        Ok(Self {
            weight: builder.get(&[out_features, in_features], "weight", weight)?,
            bias: bias.map(|init| builder.get(&[out_features], "bias", init)).transpose()?,
            adapter: Self::adapter(in_features, out_features, builder)?,
        })
    }

    fn adapter(in_features: usize, out_features: usize, builder: &Builder) -> Result<Option<Adapter>> {
        let Some(plan) = builder.adapters().filter(|plan| plan.covers(builder.path())) else { return Ok(None) };
        let place = builder.pp("lora");
        let std = 1.0 / plan.rank as f32;
        let down = place.get_adapter(&[plan.rank, in_features], "down.weight", Init::Normal { std })?;
        let up = place.get_adapter(&[out_features, plan.rank], "up.weight", Init::Zeros)?;
        Ok(Some(Adapter::new(down, up, f64::from(plan.alpha) / plan.rank as f64)))
    }

    /// # Shapes
    /// `xs` (…, in) → (…, out)
    pub fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let ys = linear(xs, &self.weight, self.bias.as_ref())?;
        match &self.adapter {
            Some(adapter) => ys + adapter.forward(xs)?,
            None => Ok(ys),
        }
    }
}

/// A table of vectors, looked up by integer.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// `entries` vectors of `dim` values, drawn with `init`.
    pub fn new(entries: usize, dim: usize, builder: &Builder, init: Init) -> Result<Self> {
        Ok(Self { weight: builder.get(&[entries, dim], "weight", init)? })
    }

    /// # Shapes
    /// `ids` (…) u32 → (…, dim)
    pub fn forward(&self, ids: &Tensor) -> TensorResult<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.weight.dim(1)?);
        self.weight.index_select(&ids.flatten_all()?, 0)?.reshape(shape)
    }
}
