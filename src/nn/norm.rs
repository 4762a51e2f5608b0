//! Layer, group and batch normalisation.

use super::{Builder, Init, Pass};
use crate::base::Result;
use candle_core::{D, DType, Result as TensorResult, Tensor, Var};

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
        let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        normed.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

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
        let (batch, channels) = (xs.dim(0)?, xs.dim(1)?);
        let rows = xs.reshape((batch, self.groups, ()))?;
        let centred = rows.broadcast_sub(&rows.mean_keepdim(2)?)?;
        let variance = centred.sqr()?.mean_keepdim(2)?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?.reshape(xs.shape())?;
        let mut per_channel = vec![1; xs.rank()];
        per_channel[1] = channels;
        normed.broadcast_mul(&self.weight.reshape(per_channel.clone())?)?.broadcast_add(&self.bias.reshape(per_channel)?)
    }

    /// The norm followed by SiLU.
    ///
    /// # Shapes
    /// `xs` (B, C, …) → same
    pub fn forward_silu(&self, xs: &Tensor) -> TensorResult<Tensor> {
        super::silu(&self.forward(xs)?)
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

    /// Uses batch statistics (and updates the running ones, with the unbiased variance) when the pass says so.
    ///
    /// # Shapes
    /// `xs` (B, C, H, W) → same
    pub fn forward(&self, xs: &Tensor, pass: &Pass) -> TensorResult<Tensor> {
        let per_channel = |t: &Tensor| t.reshape((1, (), 1, 1));
        let (mean, var) = if pass.uses_batch_statistics() {
            let mean = xs.mean((0, 2, 3))?;
            let var = xs.broadcast_sub(&per_channel(&mean)?)?.sqr()?.mean((0, 2, 3))?;
            self.record(&mean.detach(), &var.detach(), xs.elem_count() / xs.dim(1)?)?;
            (mean, var)
        } else {
            (self.running_mean.as_detached_tensor(), self.running_var.as_detached_tensor())
        };
        let scale = (&self.weight / (var + self.eps)?.sqrt()?)?;
        let shift = (&self.bias - (mean * &scale)?)?;
        xs.broadcast_mul(&per_channel(&scale)?)?.broadcast_add(&per_channel(&shift)?)
    }

    fn record(&self, mean: &Tensor, var: &Tensor, count: usize) -> TensorResult<()> {
        let unbiased = count as f64 / (count.max(2) - 1) as f64;
        let blend = |old: &Var, new: Tensor| -> TensorResult<()> {
            let mixed = ((old.as_detached_tensor() * (1.0 - self.momentum))? + (new * self.momentum)?)?;
            old.set(&mixed.to_dtype(DType::F32)?)
        };
        blend(&self.running_mean, mean.clone())?;
        blend(&self.running_var, (var * unbiased)?)
    }
}
