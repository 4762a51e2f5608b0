//! Linear layers, embeddings, and low-rank adapters on linear layers.

use super::cpu::{self, Gradients3, Matrix, Threads};
use super::graph::{self, Reads};
use super::{Builder, Init};
use crate::base::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result as TensorResult, Shape, Tensor, bail};
use std::borrow::Cow;

/// `xs · weightᵀ + bias`. The gradient of a frozen weight is never computed.
///
/// # Shapes
/// `xs` (…, in), `weight` (out, in), `bias` (out) → (…, out)
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> TensorResult<Tensor> {
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        let shape = result_shape(xs.dims(), weight.dims(), bias.map(Tensor::elem_count))?;
        return super::cuda::linear(&xs, &weight, bias, shape);
    }
    if cpu::is_narrow(&xs) {
        return cpu::rounded([&xs, &weight.to_dtype(xs.dtype())?], |[xs, weight]| linear(xs, weight, bias));
    }
    match bias {
        Some(bias) => graph::apply3(&xs, &weight, &bias.contiguous()?, Reads::Arguments, Product),
        None => graph::apply2(&xs, &weight, Reads::Arguments, Product),
    }
}

/// (…, out), when `xs` (…, in), `weight` (out, in) and a bias of so many values belong together.
fn result_shape(xs: &[usize], weight: &[usize], bias: Option<usize>) -> TensorResult<Shape> {
    match (xs.split_last(), weight) {
        (Some((last, rest)), [out_features, in_features]) if last == in_features && bias.is_none_or(|b| b == *out_features) => {
            Ok([rest, &[*out_features]].concat().into())
        }
        _ => bail!("linear: inputs {xs:?}, weight {weight:?}, bias {bias:?}"),
    }
}

/// Up to that many rows the inputs are the smaller factor of [`linear`].
const FEW_ROWS: usize = 128;

/// Products with so few results or fewer are computed as dot products by the matrix library.
const LEAST_PRODUCT: usize = 256;

/// The operation behind [`linear`], with two or three arguments.
struct Product;

impl Product {
    fn forward(xs: (&[f32], &Layout), weight: (&[f32], &Layout), bias: Option<&[f32]>) -> TensorResult<(CpuStorage, Shape)> {
        let (out_features, in_features) = weight.1.shape().dims2()?;
        let shape = result_shape(xs.1.dims(), weight.1.dims(), bias.map(<[f32]>::len))?;
        let rows = xs.0.len() / in_features.max(1);
        let (a, b) = (Matrix::rows(xs.0, in_features), Matrix::rows(weight.0, in_features).t());
        let wide = Self::is_wide(out_features, in_features);
        let out = if (1..=FEW_ROWS).contains(&rows) && !(wide && cpu::bf16_chosen()) {
            Self::few_rows((rows, out_features, in_features), xs.0, b, bias)
        } else {
            let mut out = match bias {
                Some(bias) => cpu::fill_chunks(rows * out_features, out_features, |_, row| row.copy_from_slice(bias)),
                None => cpu::zeros(rows * out_features),
            };
            let size = (rows, out_features, in_features);
            cpu::product(size, a, b, &mut out, out_features, bias.is_some(), 1.0, Threads::All, wide);
            out
        };
        Ok((CpuStorage::F32(out), shape))
    }

    /// Enough features for the matrix unit, see [`cpu::product`].
    fn is_wide(out_features: usize, in_features: usize) -> bool {
        out_features.min(in_features) >= cpu::tiles::SIDE
    }

    /// The product turned around, `bᵀ·aᵀ`: the larger factor, here the weight, is then read as it lies in memory, while the
    /// other way round it would be copied into another order first. A row has the same bits alone and among any others.
    fn few_rows((rows, width, depth): (usize, usize, usize), xs: &[f32], b: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
        // Products of very few values are summed in another order: rows of zeros keep them out of that.
        let padded = rows.max(2).max(LEAST_PRODUCT / width.max(1) + 1);
        let mut padded_xs = Cow::Borrowed(xs);
        if padded > rows {
            padded_xs.to_mut().resize(padded * depth, 0.0);
        }
        let mut turned = cpu::fill_chunks(padded * width, padded, |i, out| out.fill(bias.map_or(0.0, |bias| bias[i])));
        let a = Matrix::rows(&padded_xs, depth);
        cpu::gemm((width, padded, depth), b.t(), a.t(), &mut turned, padded, bias.is_some(), 1.0, Threads::All);
        cpu::fill_chunks(rows * width, width, |row, out| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = turned[i * padded + row];
            }
        })
    }

    /// Gradients of inputs and weight, each only when it is wanted.
    fn backward(xs: &Tensor, weight: &Tensor, gradient: &[f32]) -> TensorResult<(Option<Tensor>, Option<Tensor>)> {
        let (out_features, in_features) = weight.dims2()?;
        let rows = xs.elem_count() / in_features.max(1);
        let (g, wide) = (Matrix::rows(gradient, out_features), Self::is_wide(out_features, in_features));
        let for_xs = || {
            let mut out = cpu::zeros(rows * in_features);
            let weight_values = cpu::read(weight)?;
            let b = Matrix::rows(&weight_values, in_features);
            cpu::product((rows, in_features, out_features), g, b, &mut out, in_features, false, 1.0, Threads::All, wide);
            cpu::tensor(out, xs.shape())
        };
        let for_weight = || {
            let mut out = cpu::zeros(out_features * in_features);
            let xs_values = cpu::read(xs)?;
            let b = Matrix::rows(&xs_values, in_features);
            cpu::product((out_features, in_features, rows), g.t(), b, &mut out, in_features, false, 1.0, Threads::All, wide);
            cpu::tensor(out, weight.shape())
        };
        Ok((xs.track_op().then(for_xs).transpose()?, weight.track_op().then(for_weight).transpose()?))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> TensorResult<(CpuStorage, Shape)> {
        Self::forward((cpu::values(s1, l1)?, l1), (cpu::values(s2, l2)?, l2), None)
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, gradient: &Tensor) -> TensorResult<(Option<Tensor>, Option<Tensor>)> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        Self::backward(xs, weight, &cpu::read(&gradient)?)
    }
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        Self::forward((cpu::values(s1, l1)?, l1), (cpu::values(s2, l2)?, l2), Some(cpu::values(s3, l3)?))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, bias: &Tensor, _: &Tensor, gradient: &Tensor) -> TensorResult<Gradients3> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let g = cpu::read(&gradient)?;
        let (for_xs, for_weight) = Self::backward(xs, weight, &g)?;
        let for_bias = || cpu::tensor(cpu::column_sums(&g, bias.elem_count()), bias.shape());
        Ok((for_xs, for_weight, bias.track_op().then(for_bias).transpose()?))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use candle_core::Device;

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        for (depth, width) in [(48, 192), (320, 1280), (1280, 320), (700, 3), (64, 64), (16, 16)] {
            let mut rng = Rng::stream(0, "rows", &[]);
            let mut draw = |shape: &[usize]| rng.normal_tensor(shape, &Device::Cpu).unwrap();
            let (xs, weight, bias) = (draw(&[200, depth]), draw(&[width, depth]), draw(&[width]));
            for bias in [Some(&bias), None] {
                let whole = linear(&xs, &weight, bias).unwrap().to_vec2::<f32>().unwrap();
                for rows in [1, 2, 3, 8, 77, 128, 129] {
                    let part = linear(&xs.narrow(0, 0, rows).unwrap(), &weight, bias).unwrap().to_vec2::<f32>().unwrap();
                    assert!(part == whole[..rows], "{rows} rows, {depth} to {width}");
                }
            }
        }
    }
}
