//! Batch norm: every channel is normalised by the statistics of the batch, or by given ones.

use crate::base::group::Share;
use crate::nn::cpu::{self, CHUNK, Gradients3, vectorised};
use crate::nn::graph::Reads;
use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Normalisation per channel with `mean` and `variance`, and what lies outside 0…`ceiling` cut off where there is one: ReLU, or ReLU6.
/// As one operation the engine keeps one tensor less for each. Arguments: inputs (B, C, …), weight (C), bias (C).
pub struct BatchNormOp {
    pub mean: Vec<f32>,
    pub variance: Vec<f32>,
    pub eps: f64,
    /// The statistics are those of the rows that this share of a batch and the others have, so the gradient also flows through them.
    pub of_batch: Option<Share>,
    pub ceiling: Option<f32>,
}

/// Mean and biased variance per channel, over the rows of all shares. `xs` (B, C, …), any layout, as many rows in each share.
pub fn batch_statistics(xs: &Tensor, share: &Share) -> Result<(Vec<f32>, Vec<f32>)> {
    let xs = xs.detach().contiguous()?;
    let (channels, plane) = sizes(xs.dims())?;
    let values = cpu::read(&xs)?;
    let values = &*values;
    let count = (values.len() / channels) as f64;
    let means = |sum: &(dyn Fn(usize, &[f32]) -> f64 + Sync)| {
        let of_channel = |c: usize| values.chunks_exact(plane).skip(c).step_by(channels).map(|plane| sum(c, plane)).sum::<f64>();
        let own = (0..channels).into_par_iter().map(|c| of_channel(c) / count).collect();
        Ok::<Vec<f32>, Error>(share.group().mean_of(own)?.into_iter().map(|mean| mean as f32).collect())
    };
    let mean = means(&|_, plane| plane_sum(plane))?;
    let variance = means(&|c, plane| plane_squares(plane, mean[c]))?;
    Ok((mean, variance))
}

/// Channels, and values of one channel of one image.
fn sizes(dims: &[usize]) -> Result<(usize, usize)> {
    if dims.len() < 2 || dims.contains(&0) {
        bail!("batch norm of inputs {dims:?}")
    }
    Ok((dims[1], dims[2..].iter().product()))
}

vectorised! {
    fn plane_sum(plane: &[f32]) -> f64 {
        cpu::sum(plane, |x| x)
    }
}

vectorised! {
    fn plane_squares(plane: &[f32], mean: f32) -> f64 {
        cpu::sum(plane, |x| (x - mean) * (x - mean))
    }
}

vectorised! {
    /// (Σ g, Σ g·(x − mean))
    fn plane_products(plane: &[f32], g: &[f32], mean: f32) -> (f64, f64) {
        (cpu::sum(g, |g| g), cpu::sum_pairs(g, plane, |g, x| g * (x - mean)))
    }
}

vectorised! {
    /// `out = a·g + b·(x − mean) + c`
    fn combine(plane: &[f32], g: &[f32], mean: f32, a: f32, b: f32, c: f32, out: &mut [f32]) {
        for ((out, x), g) in out.iter_mut().zip(plane).zip(g) {
            *out = a * g + b * (x - mean) + c;
        }
    }
}

vectorised! {
    fn scale_shift(plane: &[f32], mean: f32, scale: f32, shift: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(plane) {
            *out = (x - mean) * scale + shift;
        }
    }
}

vectorised! {
    /// Not a number stays that.
    fn cut(values: &mut [f32], ceiling: f32) {
        for x in values {
            *x = if *x < 0.0 { 0.0 } else if *x > ceiling { ceiling } else { *x };
        }
    }
}

vectorised! {
    /// The gradient where the result was not cut off.
    fn let_through(result: &[f32], g: &[f32], ceiling: f32, out: &mut [f32]) {
        for ((out, r), g) in out.iter_mut().zip(result).zip(g) {
            *out = if *r > 0.0 && *r < ceiling { *g } else { 0.0 };
        }
    }
}

impl BatchNormOp {
    /// 1/√(variance + eps) of a channel.
    fn scale(&self, channel: usize) -> f64 {
        1.0 / (f64::from(self.variance[channel]) + self.eps).sqrt()
    }

    /// What was cut off is told by the result.
    pub fn reads(&self) -> Reads {
        if self.ceiling.is_some() { Reads::Everything } else { Reads::Arguments }
    }

    /// The gradient of what was cut to `result`.
    fn before_cut(&self, result: &Tensor, gradient: Tensor) -> Result<Tensor> {
        let Some(ceiling) = self.ceiling else { return Ok(gradient) };
        let (r, g) = (cpu::read(result)?, cpu::read(&gradient)?);
        let (r, g) = (&*r, &*g);
        let out = cpu::fill_chunks(r.len(), CHUNK, |i, out| {
            let range = i * CHUNK..i * CHUNK + out.len();
            let_through(&r[range.clone()], &g[range], ceiling, out);
        });
        cpu::tensor(out, result.shape())
    }
}

impl CustomOp3 for BatchNormOp {
    fn name(&self) -> &'static str {
        "batch-norm"
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
        let (channels, plane) = sizes(l1.dims())?;
        if [weight.len(), bias.len(), self.mean.len(), self.variance.len()] != [channels; 4] {
            bail!("batch norm of {} channels: inputs {:?}", weight.len(), l1.dims())
        }
        let out = cpu::fill_chunks(xs.len(), plane, |i, out| {
            let c = i % channels;
            let scale = (f64::from(weight[c]) * self.scale(c)) as f32;
            scale_shift(&xs[i * plane..(i + 1) * plane], self.mean[c], scale, bias[c], out);
            if let Some(ceiling) = self.ceiling {
                cut(out, ceiling);
            }
        });
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, bias: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Gradients3> {
        let gradient = self.before_cut(result, cpu::contiguous_gradient(gradient)?)?;
        let (x, w, g) = (cpu::read(xs)?, cpu::read(weight)?, cpu::read(&gradient)?);
        let (x, w, g) = (&*x, &*w, &*g);
        let (channels, plane) = sizes(xs.dims())?;
        let planes = |c: usize| x.chunks_exact(plane).zip(g.chunks_exact(plane)).skip(c).step_by(channels);
        let products = |c: usize| {
            let sums = planes(c).map(|(x, g)| plane_products(x, g, self.mean[c]));
            sums.fold((0f64, 0f64), |a, b| (a.0 + b.0, a.1 + b.1))
        };
        let sums: Vec<(f64, f64)> = (0..channels).into_par_iter().map(products).collect();
        let means = match &self.of_batch {
            // Batch statistics: a · (g − mean g − (x − mean) · scale² · mean of g·(x − mean)).
            Some(share) => {
                let count = (x.len() / channels) as f64;
                share.group().mean_of(sums.iter().flat_map(|sum| [sum.0 / count, sum.1 / count]).collect())?
            }
            None => vec![0.0; 2 * channels],
        };
        let for_xs = || {
            let out = cpu::fill_chunks(x.len(), plane, |i, out| {
                let c = i % channels;
                let (scale, total, along) = (self.scale(c), means[2 * c], means[2 * c + 1]);
                let a = f64::from(w[c]) * scale;
                let (b, shift) = (-a * scale * scale * along, -a * total);
                let range = i * plane..(i + 1) * plane;
                combine(&x[range.clone()], &g[range], self.mean[c], a as f32, b as f32, shift as f32, out);
            });
            cpu::tensor(out, xs.shape())
        };
        let for_weight = || {
            let values = sums.iter().enumerate().map(|(c, sum)| (sum.1 * self.scale(c)) as f32).collect();
            cpu::tensor(values, weight.shape())
        };
        let for_bias = || cpu::tensor(sums.iter().map(|sum| sum.0 as f32).collect(), bias.shape());
        Ok((
            xs.track_op().then(for_xs).transpose()?,
            weight.track_op().then(for_weight).transpose()?,
            bias.track_op().then(for_bias).transpose()?,
        ))
    }
}
