//! Layer norm and group norm: every row is normalised by its own mean and variance.

use crate::nn::activation::{silu_slope, silu_value};
use crate::nn::cpu::{self, CHUNK, Gradients3, vectorised};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

/// Mean and 1/√(variance + eps) of a row, in two passes: the mean of squares minus the squared mean would cancel.
#[inline(always)]
fn statistics(row: &[f32], eps: f64) -> (f32, f32) {
    let count = row.len() as f64;
    let mean = (cpu::sum(row, |x| x) / count) as f32;
    let variance = cpu::sum(row, |x| (x - mean) * (x - mean)) / count;
    (mean, (1.0 / (variance + eps).sqrt()) as f32)
}

/// Normalisation over the last dimension. Arguments: inputs (…, D), weight (D), bias (D).
pub struct LayerNormOp {
    eps: f64,
    /// Mean and scale of every row, from the forward pass: for short rows they are most of the work.
    rows: OnceLock<Vec<(f32, f32)>>,
}

vectorised! {
    /// Returns mean and scale.
    fn normalise_row(row: &[f32], weight: &[f32], bias: &[f32], eps: f64, out: &mut [f32]) -> (f32, f32) {
        let (mean, scale) = statistics(row, eps);
        for (((out, x), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
            *out = (x - mean) * scale * w + b;
        }
        (mean, scale)
    }
}

vectorised! {
    /// Gradient of one row, of which mean and scale are known, into `out`; adds to the gradients of weight and bias.
    fn row_gradient(
        row: &[f32],
        known: (f32, f32),
        weight: &[f32],
        g: &[f32],
        out: &mut [f32],
        for_weight: &mut [f32],
        for_bias: &mut [f32],
    ) {
        let (mean, scale) = known;
        // Equal lengths, told once: with a check for each index the loop would not use vectors.
        let n = row.len();
        let (weight, g, out) = (&weight[..n], &g[..n], &mut out[..n]);
        let (for_weight, for_bias) = (&mut for_weight[..n], &mut for_bias[..n]);
        for i in 0..n {
            for_weight[i] += g[i] * ((row[i] - mean) * scale);
            for_bias[i] += g[i];
            out[i] = g[i] * weight[i];
        }
        let count = row.len() as f64;
        let (shift, along) = cpu::sum_both(out, row, |g, x| (g, g * ((x - mean) * scale)));
        let (shift, along) = ((shift / count) as f32, (along / count) as f32);
        for (out, x) in out.iter_mut().zip(row) {
            *out = scale * (*out - shift - (x - mean) * scale * along);
        }
    }
}

impl LayerNormOp {
    pub fn new(eps: f64) -> Self {
        Self { eps, rows: OnceLock::new() }
    }

    /// # Errors
    /// When weight and bias of so many values do not fit the inputs.
    pub fn check(dims: &[usize], weight: usize, bias: usize) -> Result<()> {
        if dims.last() != Some(&weight) || bias != weight {
            bail!("layer norm over {weight} features: inputs {dims:?}, bias {bias}")
        }
        Ok(())
    }
}

impl CustomOp3 for LayerNormOp {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (xs, weight, bias) = (cpu::values(s1, l1)?, cpu::values(s2, l2)?, cpu::values(s3, l3)?);
        let width = weight.len();
        Self::check(l1.dims(), width, bias.len())?;
        let (out, rows) = cpu::fill_chunks_map(xs.len(), width, |i, out| {
            normalise_row(&xs[i * width..(i + 1) * width], weight, bias, self.eps, out)
        });
        // An operation is applied once.
        self.rows.get_or_init(|| rows);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, bias: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Gradients3> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (x, w, g) = (cpu::read(xs)?, cpu::read(weight)?, cpu::read(&gradient)?);
        let (x, w, g, width) = (&*x, &*w, &*g, w.len());
        let Some(known) = self.rows.get() else { bail!("layer norm: a backward pass without a forward pass") };
        let per_chunk = (CHUNK / width).max(32);
        let chunk = per_chunk * width;
        let (for_xs, shares) = cpu::fill_chunks_map(x.len(), chunk, |i, out| {
            let mut share = vec![0.0; 2 * width];
            let (for_weight, for_bias) = share.split_at_mut(width);
            let rows = x[i * chunk..].chunks_exact(width).zip(g[i * chunk..].chunks_exact(width)).zip(&known[i * per_chunk..]);
            for (out, ((x, g), known)) in out.chunks_exact_mut(width).zip(rows) {
                row_gradient(x, *known, w, g, out, for_weight, for_bias);
            }
            share
        });
        let mut for_weight = cpu::column_sums(&shares.concat(), 2 * width);
        let for_bias = for_weight.split_off(width);
        Ok((
            xs.track_op().then(|| cpu::tensor(for_xs, xs.shape())).transpose()?,
            weight.track_op().then(|| cpu::tensor(for_weight, weight.shape())).transpose()?,
            bias.track_op().then(|| cpu::tensor(for_bias, bias.shape())).transpose()?,
        ))
    }
}

/// Normalisation over groups of channels, optionally followed by SiLU. Arguments: inputs (B, C, …), weight (C), bias (C).
pub struct GroupNormOp {
    pub groups: usize,
    pub eps: f64,
    pub silu: bool,
}

vectorised! {
    /// One group: `row` is (channels of the group, pixels).
    fn normalise_group(row: &[f32], weight: &[f32], bias: &[f32], eps: f64, silu: bool, out: &mut [f32]) {
        let (mean, scale) = statistics(row, eps);
        let plane = row.len() / weight.len();
        for (i, (out, row)) in out.chunks_exact_mut(plane).zip(row.chunks_exact(plane)).enumerate() {
            let (w, b) = (weight[i] * scale, bias[i]);
            if silu {
                for (out, x) in out.iter_mut().zip(row) {
                    *out = silu_value((x - mean) * w + b);
                }
            } else {
                for (out, x) in out.iter_mut().zip(row) {
                    *out = (x - mean) * w + b;
                }
            }
        }
    }
}

vectorised! {
    /// Gradient of one group into `out`; returns the gradients of its weights, then of its biases.
    fn group_gradient(row: &[f32], weight: &[f32], bias: &[f32], g: &[f32], eps: f64, silu: bool, out: &mut [f32]) -> Vec<f64> {
        let (mean, scale) = statistics(row, eps);
        let (plane, channels) = (row.len() / weight.len(), weight.len());
        let mut sums = vec![0f64; 2 * channels];
        let (mut shift, mut along) = (0f64, 0f64);
        for c in 0..channels {
            let (row, g, out) = (&row[c * plane..][..plane], &g[c * plane..][..plane], &mut out[c * plane..][..plane]);
            if silu {
                for ((out, x), g) in out.iter_mut().zip(row).zip(g) {
                    *out = g * silu_slope((x - mean) * scale * weight[c] + bias[c]);
                }
            } else {
                out.copy_from_slice(g);
            }
            let total = cpu::sum(out, |x| x);
            let normed = cpu::sum_pairs(out, row, |g, x| g * ((x - mean) * scale));
            (sums[c], sums[channels + c]) = (normed, total);
            shift += total * f64::from(weight[c]);
            along += normed * f64::from(weight[c]);
        }
        let (shift, along) = ((shift / row.len() as f64) as f32, (along / row.len() as f64) as f32);
        for c in 0..channels {
            for (out, x) in out[c * plane..][..plane].iter_mut().zip(&row[c * plane..][..plane]) {
                *out = scale * (*out * weight[c] - shift - (x - mean) * scale * along);
            }
        }
        sums
    }
}

impl GroupNormOp {
    /// Channels per group, values per group.
    pub fn sizes(&self, dims: &[usize], weight: usize, bias: usize) -> Result<(usize, usize)> {
        let channels = dims.get(1).copied().unwrap_or(0);
        if channels == 0 || channels % self.groups != 0 || (weight, bias) != (channels, channels) || dims.contains(&0) {
            bail!("group norm with {} groups: inputs {dims:?}, weight {weight}, bias {bias}", self.groups)
        }
        let per_group = channels / self.groups;
        Ok((per_group, per_group * dims[2..].iter().product::<usize>()))
    }
}

impl CustomOp3 for GroupNormOp {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (xs, weight, bias) = (cpu::values(s1, l1)?, cpu::values(s2, l2)?, cpu::values(s3, l3)?);
        let (channels, len) = self.sizes(l1.dims(), weight.len(), bias.len())?;
        let out = cpu::fill_chunks(xs.len(), len, |i, out| {
            let own = i % self.groups * channels..(i % self.groups + 1) * channels;
            normalise_group(&xs[i * len..(i + 1) * len], &weight[own.clone()], &bias[own], self.eps, self.silu, out);
        });
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, bias: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Gradients3> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (x, w, b, g) = (cpu::read(xs)?, cpu::read(weight)?, cpu::read(bias)?, cpu::read(&gradient)?);
        let (x, w, b, g) = (&*x, &*w, &*b, &*g);
        let (channels, len) = self.sizes(xs.dims(), w.len(), b.len())?;
        let (for_xs, shares) = cpu::fill_chunks_map(x.len(), len, |i, out| {
            let own = i % self.groups * channels..(i % self.groups + 1) * channels;
            let (x, g) = (&x[i * len..(i + 1) * len], &g[i * len..(i + 1) * len]);
            group_gradient(x, &w[own.clone()], &b[own], g, self.eps, self.silu, out)
        });
        let total = |part: usize| -> Vec<f32> {
            let sum = |c: usize| {
                let groups = shares.iter().skip(c / channels).step_by(self.groups);
                groups.map(|share| share[part * channels + c % channels]).sum::<f64>() as f32
            };
            (0..w.len()).map(sum).collect()
        };
        Ok((
            xs.track_op().then(|| cpu::tensor(for_xs, xs.shape())).transpose()?,
            weight.track_op().then(|| cpu::tensor(total(0), weight.shape())).transpose()?,
            bias.track_op().then(|| cpu::tensor(total(1), bias.shape())).transpose()?,
        ))
    }
}
