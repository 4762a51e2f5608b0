//! The operations of `nn` for tensors on the GPU. Shapes were checked by the callers, which they share with the processor.

use super::device::{Buffer, Given, Gpu, with_gradient};
use super::machine::Kernels;
use super::programs::{AttentionGiven, AttentionSizes, CrossEntropyInputs, PlaneNorm, PlaneNormInputs, PoolSizes, ResizeSizes};
use candle_core::backend::BackendStorage;
use candle_core::{DType, Result, Shape, Storage, Tensor, bail};
use std::ops::Range;

/// Kernels and values of one argument, for operations with no other.
struct Unary<'k, 'a> {
    kernels: Kernels<'k, Gpu<'a>>,
    xs: Buffer<'a>,
}

/// An operation with one argument whose gradient is computed from argument, result and gradient.
fn unary<F, B>(name: &'static str, xs: &Tensor, shape: impl Into<Shape>, forward: F, backward: B) -> Result<Tensor>
where
    F: for<'a> Fn(&Unary<'_, 'a>) -> Result<Buffer<'a>>,
    B: for<'a> Fn(&Unary<'_, 'a>, &Buffer<'a>, &Buffer<'a>) -> Result<Buffer<'a>> + Send + Sync + 'static,
{
    let (xs, dtype) = (&xs.contiguous()?, xs.dtype());
    let gpu = Gpu::of(xs)?;
    let out = forward(&Unary { kernels: gpu.kernels(xs)?, xs: gpu.input(xs, dtype)? })?;
    with_gradient(name, &[xs], out, shape, move |given| {
        let xs = given.args[0];
        let gpu = Gpu::of(xs)?;
        let unary = Unary { kernels: gpu.kernels(xs)?, xs: gpu.input(xs, dtype)? };
        let result = gpu.input(given.result, given.result.dtype())?;
        let found = backward(&unary, &result, &gpu.input(given.gradient, given.gradient.dtype())?)?;
        Ok(vec![Some(found.tensor(xs.shape())?)])
    })
}

/// The activation number `kind` of the kernels.
pub fn activation(xs: &Tensor, name: &'static str, kind: usize) -> Result<Tensor> {
    let count = xs.elem_count();
    unary(
        name,
        xs,
        xs.shape(),
        |a| a.kernels.activation(&a.xs, count, kind),
        move |a, _, gradient| a.kernels.activation_gradient(&a.xs, gradient, count, kind),
    )
}

/// `xs` (…, 2·width) → `shape` (…, width)
pub fn geglu(xs: &Tensor, shape: Shape, width: usize) -> Result<Tensor> {
    let rows = shape.elem_count() / width.max(1);
    unary(
        "geglu",
        xs,
        shape,
        |a| a.kernels.geglu(&a.xs, rows, width),
        move |a, _, gradient| a.kernels.geglu_gradient(&a.xs, gradient, rows, width),
    )
}

/// Over the last dimension.
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    let width = xs.dims().last().copied().unwrap_or(1);
    let rows = xs.elem_count() / width.max(1);
    unary(
        "softmax",
        xs,
        xs.shape(),
        |a| a.kernels.softmax(&a.xs, rows, width),
        move |a, result, gradient| a.kernels.softmax_gradient(result, gradient, rows, width),
    )
}

/// `mode`: 0 nearest, 1 bilinear, 2 bilinear with aligned corners.
pub fn resize(xs: &Tensor, out: (usize, usize), mode: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    let sizes = ResizeSizes { planes: batch * channels, size: (height, width), out, mode };
    unary(
        "resize",
        xs,
        (batch, channels, out.0, out.1),
        |a| a.kernels.resize(&a.xs, sizes),
        move |a, _, gradient| a.kernels.resize_gradient(gradient, sizes),
    )
}

/// Some rows of a bilinear [`resize`], without gradient.
pub fn resize_rows(xs: &Tensor, out: (usize, usize), rows: Range<usize>) -> Result<Tensor> {
    if xs.track_op() {
        bail!("resize_bilinear_rows has no gradient on the GPU; detach the maps, or use resize_bilinear")
    }
    let xs = xs.contiguous()?;
    let (batch, channels, height, width) = xs.dims4()?;
    let sizes = ResizeSizes { planes: batch * channels, size: (height, width), out, mode: 1 };
    let (gpu, shape) = (Gpu::of(&xs)?, (batch, channels, rows.len(), out.1));
    gpu.kernels(&xs)?.resize_rows(&gpu.input(&xs, xs.dtype())?, sizes, rows)?.tensor(shape)
}

/// To maps of `out`.
pub fn max_pool2d(xs: &Tensor, out: (usize, usize), kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    let sizes = PoolSizes { planes: batch * channels, size: (height, width), out, kernel, stride, padding };
    unary(
        "max-pool2d",
        xs,
        (batch, channels, out.0, out.1),
        |a| a.kernels.max_pool(&a.xs, sizes),
        move |a, _, gradient| a.kernels.max_pool_gradient(&a.xs, gradient, sizes),
    )
}

/// `labels` (pixels of all images) u32, `weights` (same) f32.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (logits, labels, weights) = (&logits.contiguous()?, labels.detach().contiguous()?, weights.detach().contiguous()?);
    let (images, classes, height, width) = logits.dims4()?;
    let size = height * width;
    let gpu = Gpu::of(logits)?;
    let inputs = CrossEntropyInputs {
        logits: &gpu.input(logits, logits.dtype())?,
        labels: &gpu.input(&labels, DType::U32)?,
        weights: &gpu.input(&weights, DType::F32)?,
        images,
        classes,
        size,
    };
    let (loss, log_sums) = gpu.kernels(logits)?.cross_entropy(&inputs)?;
    let log_sums = log_sums.tensor(images * size)?;
    let (labels, weights) = (labels.clone(), weights.clone());
    with_gradient("cross-entropy", &[logits], loss, (), move |given| {
        let logits = given.args[0];
        let gpu = Gpu::of(logits)?;
        let inputs = CrossEntropyInputs {
            logits: &gpu.input(logits, logits.dtype())?,
            labels: &gpu.input(&labels, DType::U32)?,
            weights: &gpu.input(&weights, DType::F32)?,
            images,
            classes,
            size,
        };
        let (log_sums, gradient) = (gpu.input(&log_sums, DType::F32)?, gpu.input(given.gradient, DType::F32)?);
        let found = gpu.kernels(logits)?.cross_entropy_gradient(&inputs, &log_sums, &gradient)?;
        Ok(vec![Some(found.tensor(logits.shape())?)])
    })
}

/// `logits` (masks, points), `targets` as many → (masks, 2) f32
pub fn mask_losses(logits: &Tensor, targets: &[f32]) -> Result<Tensor> {
    let logits = &logits.contiguous()?;
    let (masks, points) = logits.dims2()?;
    let targets = Tensor::from_slice(targets, targets.len(), logits.device())?;
    let gpu = Gpu::of(logits)?;
    let inputs = (gpu.input(logits, logits.dtype())?, gpu.input(&targets, DType::F32)?);
    let losses = gpu.kernels(logits)?.mask_losses(&inputs.0, &inputs.1, masks, points)?.detached()?;
    let constant = targets.clone();
    with_gradient("mask-losses", &[logits], losses, (masks, 2), move |given| {
        let logits = given.args[0];
        let gpu = Gpu::of(logits)?;
        let (xs, targets) = (gpu.input(logits, logits.dtype())?, gpu.input(&constant, DType::F32)?);
        let gradient = gpu.input(given.gradient, DType::F32)?;
        let found = gpu.kernels(logits)?.mask_losses_gradient(&xs, &targets, &gradient, masks, points)?;
        Ok(vec![Some(found.tensor(logits.shape())?)])
    })
}

/// Mean of (x − y)² over tensors of one shape.
pub fn mse(xs: &Tensor, ys: &Tensor) -> Result<Tensor> {
    let (xs, ys, dtype, count) = (&xs.contiguous()?, &ys.contiguous()?, xs.dtype(), xs.elem_count());
    let gpu = Gpu::of(xs)?;
    let loss = gpu.kernels(xs)?.squared_error(&gpu.input(xs, dtype)?, &gpu.input(ys, dtype)?, count)?;
    with_gradient("mse", &[xs, ys], loss, (), move |given| {
        let gpu = Gpu::of(given.args[0])?;
        let gradient = gpu.input(given.gradient, DType::F32)?;
        let towards = |a: &Tensor, b: &Tensor| -> Result<Option<Tensor>> {
            if !a.track_op() {
                return Ok(None);
            }
            let gpu = Gpu::of(a)?;
            let (from, to) = (gpu.input(a, dtype)?, gpu.input(b, dtype)?);
            let found = gpu.kernels(a)?.squared_error_gradient(&from, &to, &gradient, count)?;
            Ok(Some(found.tensor(a.shape())?))
        };
        let [xs, ys] = [given.args[0], given.args[1]];
        Ok(vec![towards(xs, ys)?, towards(ys, xs)?])
    })
}

/// Rows (weight, bias) of a buffer of 2 · `width` values, where wanted.
fn weight_and_bias(found: Buffer, given: &Given) -> Result<[Option<Tensor>; 2]> {
    let (weight, bias) = (given.args[1], given.args[2]);
    let both = found.tensor((2, weight.elem_count()))?;
    Ok([weight.track_op().then(|| both.get(0)).transpose()?, bias.track_op().then(|| both.get(1)).transpose()?])
}

/// `weight` and `bias` (width) f32.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (xs, dtype, width) = (&xs.contiguous()?, xs.dtype(), weight.elem_count());
    let sizes = (xs.elem_count() / width.max(1), width);
    let gpu = Gpu::of(xs)?;
    let (w, b) = (gpu.input(weight, DType::F32)?, gpu.input(bias, DType::F32)?);
    let out = gpu.kernels(xs)?.layer_norm(&gpu.input(xs, dtype)?, &w, &b, sizes, eps)?;
    with_gradient("layer-norm", &[xs, weight, bias], out, xs.shape(), move |given| {
        let [xs, weight] = [given.args[0], given.args[1]];
        let gpu = Gpu::of(xs)?;
        let (x, w, g) = (gpu.input(xs, dtype)?, gpu.input(weight, DType::F32)?, gpu.input(given.gradient, dtype)?);
        let (for_xs, rest) = gpu.kernels(xs)?.layer_norm_gradient(&x, &w, &g, sizes, eps)?;
        let [for_weight, for_bias] = weight_and_bias(rest, given)?;
        Ok(vec![Some(for_xs.tensor(xs.shape())?), for_weight, for_bias])
    })
}

/// Inputs (B, C, …) as batch, channels and values of a plane.
fn planes(xs: &Tensor) -> (usize, usize, usize) {
    let dims = xs.dims();
    (dims[0], dims[1], dims[2..].iter().product())
}

/// Statistics of the inputs, not kept: the backward pass computes them again.
pub fn group_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, silu: bool) -> Result<Tensor> {
    let xs = &xs.contiguous()?;
    let (batch, channels, size) = planes(xs);
    let norm = PlaneNorm::group(batch, channels, size, groups, eps, silu);
    plane_norm("group-norm", [xs, weight, bias], norm, None)
}

/// With given statistics (C) f32; `of_batch` says that they are those of the inputs.
pub fn batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    statistics: (Tensor, Tensor),
    eps: f64,
    of_batch: bool,
) -> Result<Tensor> {
    let xs = &xs.contiguous()?;
    let (batch, channels, size) = planes(xs);
    plane_norm("batch-norm", [xs, weight, bias], PlaneNorm::batch(batch, channels, size, eps, of_batch), Some(statistics))
}

/// Mean and biased variance of every channel of `xs` (B, C, …): (C) f32 each.
pub fn batch_statistics(xs: &Tensor) -> Result<(Tensor, Tensor)> {
    let xs = &xs.detach().contiguous()?;
    let (batch, channels, size) = planes(xs);
    let gpu = Gpu::of(xs)?;
    let norm = PlaneNorm::batch(batch, channels, size, 0.0, true);
    let (mean, variance) = gpu.kernels(xs)?.plane_statistics(&gpu.input(xs, xs.dtype())?, norm)?;
    Ok((mean.tensor(channels)?, variance.tensor(channels)?))
}

/// A normalisation of planes with `given` statistics, or those of the inputs.
fn plane_norm(name: &'static str, args: [&Tensor; 3], norm: PlaneNorm, given: Option<(Tensor, Tensor)>) -> Result<Tensor> {
    let statistics = plane_statistics(args[0], norm, given.clone())?;
    let out = with_plane_inputs(args, &statistics, |gpu, inputs| gpu.kernels(args[0])?.plane_norm(inputs, norm))?;
    with_gradient(name, &args, out, args[0].shape(), move |back| {
        let args = [back.args[0], back.args[1], back.args[2]];
        let statistics = plane_statistics(args[0], norm, given.clone())?;
        let (for_xs, rest) = with_plane_inputs(args, &statistics, |gpu, inputs| {
            let gradient = gpu.input(back.gradient, args[0].dtype())?;
            gpu.kernels(args[0])?.plane_norm_gradient(inputs, &gradient, norm)
        })?;
        let [for_weight, for_bias] = weight_and_bias(rest, back)?;
        Ok(vec![Some(for_xs.tensor(args[0].shape())?), for_weight, for_bias])
    })
}

/// `given` statistics, or those of the inputs.
fn plane_statistics(xs: &Tensor, norm: PlaneNorm, given: Option<(Tensor, Tensor)>) -> Result<(Tensor, Tensor)> {
    if let Some(given) = given {
        return Ok(given);
    }
    let gpu = Gpu::of(xs)?;
    let (mean, variance) = gpu.kernels(xs)?.plane_statistics(&gpu.input(xs, xs.dtype())?, norm)?;
    Ok((mean.tensor(norm.sets)?, variance.tensor(norm.sets)?))
}

fn with_plane_inputs<'a, R>(
    [xs, weight, bias]: [&'a Tensor; 3],
    (mean, variance): &'a (Tensor, Tensor),
    run: impl FnOnce(&Gpu<'a>, &PlaneNormInputs<Buffer<'a>>) -> Result<R>,
) -> Result<R> {
    let gpu = Gpu::of(xs)?;
    let inputs = PlaneNormInputs {
        xs: &gpu.input(xs, xs.dtype())?,
        mean: &gpu.input(mean, DType::F32)?,
        variance: &gpu.input(variance, DType::F32)?,
        weight: &gpu.input(weight, DType::F32)?,
        bias: &gpu.input(bias, DType::F32)?,
    };
    run(&gpu, &inputs)
}

/// `q` (B, heads, queries, d), `k` and `v` (B, heads, keys, d), `bias` (B, queries, keys), a constant.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, sizes: AttentionSizes) -> Result<Tensor> {
    let (q, k, v, dtype) = (&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, q.dtype());
    let bias = bias.map(|bias| bias.detach().to_dtype(DType::F32)?.contiguous()).transpose()?;
    let gpu = Gpu::of(q)?;
    let inputs = [&gpu.input(q, dtype)?, &gpu.input(k, dtype)?, &gpu.input(v, dtype)?];
    let added = bias.as_ref().map(|bias| gpu.input(bias, DType::F32)).transpose()?;
    let (out, log_sums) = gpu.kernels(q)?.attention(inputs, added.as_ref(), sizes)?;
    let (out, log_sums) = (out.detached()?, log_sums.tensor(sizes.heads * sizes.queries)?);
    let bias = bias.clone();
    with_gradient("attention", &[q, k, v], out, q.shape(), move |given| {
        let [q, k, v] = [given.args[0], given.args[1], given.args[2]];
        let gpu = Gpu::of(q)?;
        let inputs = [&gpu.input(q, dtype)?, &gpu.input(k, dtype)?, &gpu.input(v, dtype)?];
        let (kernels, gradient) = (gpu.kernels(q)?, gpu.input(given.gradient, dtype)?);
        let means = kernels.attention_means(&gpu.input(given.result, dtype)?, &gradient, sizes)?;
        let added = bias.as_ref().map(|bias| gpu.input(bias, DType::F32)).transpose()?;
        let log_sums = gpu.input(&log_sums, DType::F32)?;
        let back = AttentionGiven { bias: added.as_ref(), gradient: &gradient, log_sums: &log_sums, means: &means };
        let wanted = given.args.iter().enumerate().map(|(i, arg)| match arg.track_op() {
            true => Ok(Some(kernels.attention_gradient(inputs, &back, sizes, i)?.tensor(arg.shape())?)),
            false => Ok(None),
        });
        wanted.collect()
    })
}

/// The product of two matrices; strides may be those of a transpose.
fn product(a: &Tensor, b: &Tensor) -> Result<Buffer<'static>> {
    let ((m, k), (_, n)) = (a.dims2()?, b.dims2()?);
    let ((left, left_layout), (right, right_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    match (&*left, &*right) {
        (Storage::Cuda(left), Storage::Cuda(right)) => {
            Buffer::own(left.matmul(right, (1, m, n, k), left_layout, right_layout)?)
        }
        _ => bail!("linear: arguments on the GPU and on the processor"),
    }
}

/// `xs` (…, in) · `weight`ᵀ (in, out) + `bias` (out) f32 → `shape` (…, out)
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, shape: Shape) -> Result<Tensor> {
    let weight = &weight.to_dtype(xs.dtype())?;
    let (out_features, in_features) = weight.dims2()?;
    let rows = xs.elem_count() / in_features.max(1);
    let out = product(&xs.reshape((rows, in_features))?, &weight.t()?)?;
    let args: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
    if let Some(bias) = bias {
        let gpu = Gpu::of(xs)?;
        gpu.kernels(xs)?.add_bias(&out, &gpu.input(bias, DType::F32)?, rows * out_features, out_features, 1)?;
    }
    with_gradient("linear", &args, out, shape, move |given| {
        let [xs, weight] = [given.args[0], given.args[1]];
        let gradient = given.gradient.reshape((rows, out_features))?;
        let for_xs = || gradient.matmul(&weight.detach())?.reshape(xs.shape());
        let for_weight = || gradient.t()?.matmul(&xs.detach().reshape((rows, in_features))?);
        let for_bias = || -> Result<Tensor> {
            let gpu = Gpu::of(&gradient)?;
            let sums = gpu.kernels(&gradient)?.column_sums(&gpu.input(&gradient, gradient.dtype())?, rows, out_features)?;
            sums.tensor(out_features)
        };
        let mut found = vec![xs.track_op().then(for_xs).transpose()?, weight.track_op().then(for_weight).transpose()?];
        found.extend(given.args.get(2).map(|bias| bias.track_op().then(for_bias).transpose()).transpose()?);
        Ok(found)
    })
}
