//! Layer, group and batch normalisation.

mod batch;
mod rows;

use super::graph::{self, Reads};
use super::{Builder, Init, Pass, cpu};
use crate::base::Result;
use crate::base::group::Share;
use batch::{BatchNormOp, batch_statistics};
use candle_core::{Result as TensorResult, Tensor, Var};
use rows::LayerNormOp;

pub(super) use rows::GroupNormOp;

/// Normalisation over the last dimension, with weight and bias.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Over `dim` features.
    pub fn new(dim: usize, eps: f64, builder: &Builder) -> Result<Self> {
        Ok(Self { weight: builder.get(&[dim], "weight", Init::Ones)?, bias: builder.get(&[dim], "bias", Init::Zeros)?, eps })
    }

    /// # Shapes
    /// `xs` (…, D) → same
    pub fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        layer_norm(xs, &self.weight, &self.bias, self.eps)
    }
}

/// The operation of [`LayerNorm`]. # Shapes: `xs` (…, D), `weight` and `bias` (D)
pub(super) fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> TensorResult<Tensor> {
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        LayerNormOp::check(xs.dims(), weight.elem_count(), bias.elem_count())?;
        return super::cuda::layer_norm(xs, weight, bias, eps);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| layer_norm(xs, weight, bias, eps));
    }
    graph::apply3(&xs.contiguous()?, weight, bias, Reads::Arguments, LayerNormOp::new(eps))
}

/// The operation of [`GroupNorm`]. # Shapes: `xs` (B, C, …), `weight` and `bias` (C)
pub(super) fn group_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, op: GroupNormOp) -> TensorResult<Tensor> {
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        op.sizes(xs.dims(), weight.elem_count(), bias.elem_count())?;
        return super::cuda::group_norm(xs, weight, bias, op.groups, op.eps, op.silu);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| group_norm(xs, weight, bias, op));
    }
    graph::apply3(&xs.contiguous()?, weight, bias, Reads::Arguments, op)
}

/// The operation of [`BatchNorm2d`] with the statistics of the batch, cut off to 0…`ceiling` where there is one.
///
/// # Shapes
/// `xs` (B, C, …), `weight` and `bias` (C)
pub(super) fn batch_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, ceiling: Option<f32>) -> TensorResult<Tensor> {
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        let statistics = super::cuda::batch_statistics(xs)?;
        return cut(super::cuda::batch_norm(xs, weight, bias, statistics, eps, true)?, ceiling);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| batch_norm(xs, weight, bias, eps, ceiling));
    }
    let share = Share::whole();
    let (mean, variance) = batch_statistics(xs, &share)?;
    let op = BatchNormOp { mean, variance, eps, of_batch: Some(share), ceiling };
    graph::apply3(&xs.contiguous()?, weight, bias, op.reads(), op)
}

/// The activation of a norm as an operation of its own.
#[cfg(feature = "cuda")]
fn cut(normed: Tensor, ceiling: Option<f32>) -> TensorResult<Tensor> {
    match ceiling {
        None => Ok(normed),
        Some(RELU6) => super::relu6(&normed),
        Some(_) => super::relu(&normed),
    }
}

/// Where ReLU6 cuts off.
const RELU6: f32 = 6.0;

/// Normalisation over groups of channels, with weight and bias per channel, optionally followed by SiLU in one operation.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// `groups` must divide `channels`.
    pub fn new(groups: usize, channels: usize, eps: f64, builder: &Builder) -> Result<Self> {
        let weight = builder.get(&[channels], "weight", Init::Ones)?;
        Ok(Self { weight, bias: builder.get(&[channels], "bias", Init::Zeros)?, groups, eps })
    }

    /// # Shapes
    /// `xs` (B, C, …) → same
    pub fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        self.apply(xs, false)
    }

    /// The norm followed by SiLU.
    ///
    /// # Shapes
    /// `xs` (B, C, …) → same
    pub fn forward_silu(&self, xs: &Tensor) -> TensorResult<Tensor> {
        self.apply(xs, true)
    }

    fn apply(&self, xs: &Tensor, silu: bool) -> TensorResult<Tensor> {
        group_norm(xs, &self.weight, &self.bias, GroupNormOp { groups: self.groups, eps: self.eps, silu })
    }
}

/// Batch normalisation of feature maps, with running statistics.
#[derive(Debug, Clone)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    eps: f64,
    momentum: f64,
}

impl BatchNorm2d {
    /// PyTorch's defaults: eps 1e-5, momentum 0.1.
    pub fn new(channels: usize, builder: &Builder) -> Result<Self> {
        Self::with_eps(channels, 1e-5, 0.1, builder)
    }

    /// With chosen eps and momentum (share of the batch's statistics in the running ones).
    pub fn with_eps(channels: usize, eps: f64, momentum: f64, builder: &Builder) -> Result<Self> {
        Ok(Self {
            weight: builder.get(&[channels], "weight", Init::Ones)?,
            bias: builder.get(&[channels], "bias", Init::Zeros)?,
            running_mean: builder.buffer(&[channels], "running_mean", Init::Zeros)?,
            running_var: builder.buffer(&[channels], "running_var", Init::Ones)?,
            eps,
            momentum,
        })
    }

    /// Uses batch statistics (and updates the running ones, with the unbiased variance) when the pass says so: on the CPU those of all
    /// shares and processes that compute the batch together.
    ///
    /// # Shapes
    /// `xs` (B, C, H, W) → same
    ///
    /// # Errors
    /// Batch statistics of a single value per channel: its norm is 0 whatever it is, and nothing would be learnt.
    pub fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        self.apply(xs, pass, None)
    }

    /// [`Self::forward`] and ReLU, with gradient 0 at 0.
    pub fn forward_relu(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        self.apply(xs, pass, Some(f32::INFINITY))
    }

    /// [`Self::forward`] and ReLU6, with gradient 0 at both bends.
    pub fn forward_relu6(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        self.apply(xs, pass, Some(RELU6))
    }

    fn apply(&self, xs: &Tensor, pass: &Pass, ceiling: Option<f32>) -> TensorResult<Tensor> {
        let of_batch = pass.uses_batch_statistics();
        let share = pass.share();
        let own = xs.elem_count() / self.weight.elem_count();
        let count = if xs.device().is_cpu() { own * share.group().size() } else { own };
        if of_batch && count == 1 {
            return Err(candle_core::Error::Msg(
                "batch normalisation of one value per channel\n  next: use larger crops, or more images a step".into(),
            ));
        }
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            return cut(self.forward_on_gpu(xs, of_batch, count)?, ceiling);
        }
        if cpu::is_narrow(xs) {
            return cpu::rounded([xs], |[xs]| self.apply(xs, pass, ceiling));
        }
        let (mean, variance) = if of_batch {
            let (mean, variance) = batch_statistics(xs, share)?;
            if share.notes() {
                self.record(&mean, &variance, count)?;
            }
            (mean, variance)
        } else {
            (self.running_mean.to_vec1()?, self.running_var.to_vec1()?)
        };
        let op = BatchNormOp { mean, variance, eps: self.eps, of_batch: of_batch.then(|| share.clone()), ceiling };
        graph::apply3(&xs.contiguous()?, &self.weight, &self.bias, op.reads(), op)
    }

    /// The same without values that leave the GPU: nothing waits for it.
    #[cfg(feature = "cuda")]
    fn forward_on_gpu(&self, xs: &Tensor, of_batch: bool, count: usize) -> TensorResult<Tensor> {
        if xs.dim(1)? != self.weight.elem_count() {
            candle_core::bail!("batch norm of {} channels: inputs {:?}", self.weight.elem_count(), xs.dims())
        }
        let statistics = if of_batch {
            let (mean, variance) = super::cuda::batch_statistics(xs)?;
            let unbiased = count as f64 / (count - 1) as f64;
            for (running, new, share) in
                [(&self.running_mean, &mean, self.momentum), (&self.running_var, &variance, self.momentum * unbiased)]
            {
                running.set(&((running.as_detached_tensor() * (1.0 - self.momentum))? + (new * share)?)?)?;
            }
            (mean, variance)
        } else {
            (self.running_mean.as_detached_tensor(), self.running_var.as_detached_tensor())
        };
        super::cuda::batch_norm(xs, &self.weight, &self.bias, statistics, self.eps, of_batch)
    }

    /// Moves the running statistics towards those of a batch of `count` values per channel.
    fn record(&self, mean: &[f32], variance: &[f32], count: usize) -> TensorResult<()> {
        let unbiased = count as f64 / (count.max(2) - 1) as f64;
        let blend = |running: &Var, new: &[f32], factor: f64| -> TensorResult<()> {
            let share = self.momentum * factor;
            let old = running.to_vec1::<f32>()?;
            let mixed: Vec<f32> = old
                .iter()
                .zip(new)
                .map(|(o, n)| (f64::from(*o) * (1.0 - self.momentum) + f64::from(*n) * share) as f32)
                .collect();
            running.set(&Tensor::from_vec(mixed, new.len(), running.device())?)
        };
        blend(&self.running_mean, mean, 1.0)?;
        blend(&self.running_var, variance, unbiased)
    }
}
