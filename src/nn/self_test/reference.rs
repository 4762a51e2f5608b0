//! The formulas, from candle's primitives whose gradients are right. Slow; any float type.

use crate::nn::ConvSpec;
use candle_core::{D, DType, Result, Tensor};

/// One value per channel, or per image and channel, for maps (B, C, H, W).
fn per_channel(xs: &Tensor) -> Result<Tensor> {
    let images = if xs.rank() == 2 { xs.dim(0)? } else { 1 };
    xs.reshape((images, xs.elem_count() / images, 1, 1))
}

/// Candle's own convolution is right for these sizes (stride 2 wants height and width of one parity).
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: &Tensor, spec: ConvSpec) -> Result<Tensor> {
    let ConvSpec { stride, padding, dilation, groups } = spec;
    xs.conv2d(weight, padding, stride, dilation, groups)?.broadcast_add(&per_channel(bias)?)
}

pub fn linear(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    xs.broadcast_matmul(&weight.t()?)?.broadcast_add(bias)
}

pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    let raised = xs.broadcast_sub(&xs.max_keepdim(D::Minus1)?.detach())?.exp()?;
    raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)
}

/// See [`crate::nn::attention`] for shapes.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64, causal: bool) -> Result<Tensor> {
    let (queries, keys) = (q.dim(1)?, k.dim(1)?);
    let hidden = (0..queries * keys).map(|i| if causal && i % keys > i / keys { -1e30 } else { 0.0 });
    attention_with_bias(q, k, v, &Tensor::from_iter(hidden, q.device())?.reshape((1, queries, keys))?, heads, scale)
}

/// `bias` (B or 1, queries, keys) of any type.
pub fn attention_with_bias(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let split = |xs: &Tensor| {
        let (batch, tokens, width) = xs.dims3()?;
        xs.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()
    };
    let scores = (split(q)?.matmul(&split(k)?.t()?)? * scale)?;
    let mixed = softmax(&scores.broadcast_add(&bias.to_dtype(q.dtype())?.unsqueeze(1)?)?)?.matmul(&split(v)?)?;
    mixed.transpose(1, 2)?.reshape(q.shape())
}

/// What every one of `size` pixels of an axis gives to a bilinear sample at `xs` (…): (…, size).
fn tent(xs: &Tensor, size: usize) -> Result<Tensor> {
    let pixels = Tensor::arange(0u32, size as u32, xs.device())?.to_dtype(xs.dtype())?;
    let distance = xs.unsqueeze(D::Minus1)?.broadcast_sub(&pixels)?.abs()?;
    distance.affine(-1.0, 1.0)?.relu()
}

/// Weights of all pixels of a map for samples at (`x`, `y`), both (…): (…, H·W).
fn bilinear_weights(x: &Tensor, y: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let rows = tent(y, height)?.unsqueeze(D::Minus1)?; // (…, H, 1)
    let columns = tent(x, width)?.unsqueeze(x.rank())?; // (…, 1, W)
    rows.broadcast_mul(&columns)?.flatten_from(x.rank())
}

/// See [`crate::nn::deformable_attention`].
pub fn deformable_attention(
    value: &Tensor,
    offsets: &Tensor,
    weights: &Tensor,
    levels: &[(usize, usize)],
    references: &[f32],
) -> Result<Tensor> {
    let (batch, _, heads, dim) = value.dims4()?;
    let queries = references.len() / 2;
    let references = Tensor::from_slice(references, (1, queries, 1, 1, 2), value.device())?.to_dtype(value.dtype())?;
    let (mut start, mut sum) = (0, Tensor::zeros((batch, heads, queries, dim), value.dtype(), value.device())?);
    for (level, &(height, width)) in levels.iter().enumerate() {
        let place = |axis: usize, size: usize| {
            let offsets = offsets.narrow(3, level, 1)?.squeeze(3)?.narrow(4, axis, 1)?.squeeze(4)?; // (B, Q, heads, P)
            let start = (references.narrow(4, axis, 1)?.squeeze(4)? * size as f64)?;
            offsets.broadcast_add(&(start - 0.5)?)
        };
        let pixels = bilinear_weights(&place(0, width)?, &place(1, height)?, (height, width))?; // (B, Q, heads, P, H·W)
        let weights = weights.narrow(3, level, 1)?.squeeze(3)?.unsqueeze(4)?;
        let pixels = pixels.broadcast_mul(&weights)?.sum(3)?.transpose(1, 2)?.contiguous()?; // (B, heads, Q, H·W)
        let value = value.narrow(1, start, height * width)?.transpose(1, 2)?.contiguous()?; // (B, heads, H·W, d)
        sum = (sum + pixels.matmul(&value)?)?;
        start += height * width;
    }
    sum.transpose(1, 2)?.reshape((batch, queries, heads * dim))
}

/// See [`crate::nn::sample_points`]; every map has points of its own.
pub fn sample_points(maps: &Tensor, points: &[f32]) -> Result<Tensor> {
    let (count, height, width) = maps.dims3()?;
    let points = Tensor::from_slice(points, (count, points.len() / count / 2, 2), maps.device())?.to_dtype(maps.dtype())?;
    let place = |axis: usize, size: usize| (points.narrow(2, axis, 1)?.squeeze(2)? * size as f64)? - 0.5;
    let pixels = bilinear_weights(&place(0, width)?, &place(1, height)?, (height, width))?; // (M, P, H·W)
    pixels.matmul(&maps.reshape((count, height * width, 1))?)?.squeeze(2)
}

/// See [`crate::nn::mask_losses`].
pub fn mask_losses(logits: &Tensor, targets: &[f32]) -> Result<Tensor> {
    let targets = Tensor::from_slice(targets, logits.shape(), logits.device())?.to_dtype(logits.dtype())?;
    let cross_entropy = ((logits.exp()? + 1.0)?.log()? - (logits * &targets)?)?.mean(1)?;
    let inside = ((logits.neg()?.exp()? + 1.0)?).recip()?;
    let above = ((&inside * &targets)?.sum(1)? * 2.0)? + 1.0;
    let below = (inside.sum(1)? + targets.sum(1)?)? + 1.0;
    Tensor::stack(&[cross_entropy, above?.div(&below?)?.affine(-1.0, 1.0)?], 1)
}

pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    let cumulative = (((xs * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    xs * cumulative
}

/// `x · sigmoid(slope · x)`
pub fn gated_by_itself(xs: &Tensor, slope: f64) -> Result<Tensor> {
    xs * (((xs * -slope)?.exp()? + 1.0)?.recip()?)
}

pub fn geglu(xs: &Tensor) -> Result<Tensor> {
    let half = xs.dim(D::Minus1)? / 2;
    xs.narrow(D::Minus1, 0, half)? * gelu(&xs.narrow(D::Minus1, half, half)?)?
}

/// Over the last dimension, without weight and bias.
fn normalised(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}

pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    normalised(xs, eps)?.broadcast_mul(weight)?.broadcast_add(bias)
}

pub fn group_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let rows = xs.reshape((xs.dim(0)?, groups, xs.elem_count() / xs.dim(0)? / groups))?;
    let normed = normalised(&rows, eps)?.reshape(xs.shape())?;
    normed.broadcast_mul(&per_channel(weight)?)?.broadcast_add(&per_channel(bias)?)
}

pub fn batch_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    let rows = xs.transpose(0, 1)?.reshape((channels, batch * height * width))?;
    let normed = normalised(&rows, eps)?.reshape((channels, batch, height, width))?.transpose(0, 1)?;
    normed.broadcast_mul(&per_channel(weight)?)?.broadcast_add(&per_channel(bias)?)
}

/// Weights of a resize along one axis: (to, from).
fn interpolation(from: usize, to: usize, align_corners: bool, like: &Tensor) -> Result<Tensor> {
    let mut weights = vec![0f64; to * from];
    for target in 0..to {
        let source = match align_corners {
            true => target as f64 * (from - 1) as f64 / (to - 1).max(1) as f64,
            false => ((target as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0),
        };
        let low = (source as usize).min(from - 1);
        weights[target * from + low] += 1.0 - (source - low as f64);
        weights[target * from + (low + 1).min(from - 1)] += source - low as f64;
    }
    Tensor::from_vec(weights, (to, from), like.device())?.to_dtype(like.dtype())
}

pub fn bilinear(xs: &Tensor, size: (usize, usize), align_corners: bool) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    let rows = interpolation(height, size.0, align_corners, xs)?;
    let columns = interpolation(width, size.1, align_corners, xs)?;
    rows.broadcast_matmul(&xs.broadcast_matmul(&columns.t()?)?)
}

pub fn nearest(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    let sources = |from: usize, to: usize| Tensor::from_iter((0..to).map(|t| (t * from / to) as u32), xs.device());
    xs.index_select(&sources(height, size.0)?, 2)?.index_select(&sources(width, size.1)?, 3)
}

pub fn max_pool2d(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    let wall = |b, c, h, w| Tensor::ones((b, c, h, w), xs.dtype(), xs.device())? * -1e30;
    let side = wall(batch, channels, height, padding)?;
    let wide = Tensor::cat(&[&side, xs, &side], 3)?;
    let edge = wall(batch, channels, padding, width + 2 * padding)?;
    let padded = Tensor::cat(&[&edge, &wide, &edge], 2)?;
    let taps = |size: usize, tap: usize| {
        let count = (size + 2 * padding - kernel) / stride + 1;
        Tensor::from_iter((0..count).map(|i| (i * stride + tap) as u32), xs.device())
    };
    let mut best: Option<Tensor> = None;
    for tap in 0..kernel * kernel {
        let rows = padded.index_select(&taps(height, tap / kernel)?, 2)?;
        let here = rows.index_select(&taps(width, tap % kernel)?, 3)?;
        best = Some(match best {
            Some(best) => best.maximum(&here)?,
            None => here,
        });
    }
    best.map_or_else(|| xs.zeros_like(), Ok)
}

/// Labels (B, H, W) without a class count as 0.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let valid = labels.lt(logits.dim(1)? as u32)?;
    let chosen = labels.mul(&valid.to_dtype(DType::U32)?)?.unsqueeze(1)?;
    let weights = (weights.to_dtype(logits.dtype())? * valid.to_dtype(logits.dtype())?)?;
    let log_sums = logits.log_sum_exp(1)?;
    let losses = (log_sums - logits.gather(&chosen, 1)?.squeeze(1)?)?;
    (losses * weights)?.mean_all()
}
