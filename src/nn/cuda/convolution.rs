//! Convolutions: depthwise ones by our own kernels, all others by cuDNN. The bias is added by a kernel.

use super::device::{Buffer, Given, Gpu, Gradients, with_gradient};
use crate::nn::conv::Sizes;
use candle_core::{DType, Result, Tensor};

/// `xs` (B, C, H, W), `weight` (O, C/groups, kh, kw) in the type of the inputs or f32, `bias` (O) or (B, O) f32.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, sizes: Sizes) -> Result<Tensor> {
    let weight = &weight.to_dtype(xs.dtype())?;
    let out = forward(xs, weight, bias, &sizes)?;
    let shape = (sizes.batch, sizes.out_channels, sizes.out_height, sizes.out_width);
    let args: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
    with_gradient("conv2d", &args, out, shape, move |given| backward(given, &sizes))
}

fn is_depthwise(sizes: &Sizes) -> bool {
    sizes.spec.groups == sizes.in_channels && sizes.spec.groups > 1
}

fn forward(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, sizes: &Sizes) -> Result<Buffer<'static>> {
    // Depthwise kernels add the bias that images share themselves.
    let (fused, added) =
        if is_depthwise(sizes) && bias.is_some_and(|bias| bias.rank() == 1) { (bias, None) } else { (None, bias) };
    let out = if is_depthwise(sizes) {
        let none = Tensor::zeros(sizes.out_channels, DType::F32, xs.device())?;
        let gpu = Gpu::of(xs)?;
        let bias = gpu.input(fused.unwrap_or(&none), DType::F32)?;
        let (x, w) = (gpu.input(xs, xs.dtype())?, gpu.input(weight, xs.dtype())?);
        gpu.kernels(xs)?.depthwise(&x, &w, &bias, sizes)?.detached()?
    } else {
        library::forward(xs, weight, sizes)?
    };
    if let Some(bias) = added {
        let gpu = Gpu::of(xs)?;
        let (images, channels) = biases(bias, sizes);
        let len = images * channels * sizes.out_plane();
        gpu.kernels(xs)?.add_bias(&out, &gpu.input(bias, DType::F32)?, len, channels, sizes.out_plane())?;
    }
    Ok(out)
}

/// Over how many images a bias repeats, and how many numbers it has: numbers of each image are those of as many channels.
fn biases(bias: &Tensor, sizes: &Sizes) -> (usize, usize) {
    (sizes.batch * sizes.out_channels / bias.elem_count().max(1), bias.elem_count())
}

fn backward(given: &Given, sizes: &Sizes) -> Result<Gradients> {
    let ([xs, weight], gradient) = ([given.args[0], given.args[1]], given.gradient);
    let gpu = Gpu::of(xs)?;
    let (kernels, g) = (gpu.kernels(xs)?, gpu.input(gradient, xs.dtype())?);
    let (for_xs, for_weight) = if is_depthwise(sizes) {
        let (x, w) = (gpu.input(xs, xs.dtype())?, gpu.input(weight, xs.dtype())?);
        let for_xs = xs.track_op().then(|| kernels.depthwise_input_gradient(&w, &g, sizes)).transpose()?;
        (for_xs, weight.track_op().then(|| kernels.depthwise_weight_gradient(&x, &g, sizes)).transpose()?)
    } else {
        let for_xs = xs.track_op().then(|| library::input_gradient(weight, gradient, sizes)).transpose()?;
        (for_xs, weight.track_op().then(|| library::weight_gradient(xs, gradient, sizes)).transpose()?)
    };
    let mut found = vec![
        for_xs.map(|found| found.tensor(xs.shape())).transpose()?,
        for_weight.map(|found| found.tensor(weight.shape())).transpose()?,
    ];
    if let Some(bias) = given.args.get(2) {
        let (images, channels) = biases(bias, sizes);
        let sums = || kernels.channel_sums(&g, images, channels, sizes.out_plane())?.tensor(bias.shape());
        found.push(bias.track_op().then(sums).transpose()?);
    }
    Ok(found)
}

#[cfg(feature = "cudnn")]
use super::cudnn as library;

/// Without cuDNN there is nothing to compute other convolutions with.
#[cfg(not(feature = "cudnn"))]
mod library {
    use super::{Buffer, Sizes};
    use candle_core::{Result, Tensor, bail};

    pub fn forward(_: &Tensor, _: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
        missing(sizes)
    }

    pub fn input_gradient(_: &Tensor, _: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
        missing(sizes)
    }

    pub fn weight_gradient(_: &Tensor, _: &Tensor, sizes: &Sizes) -> Result<Buffer<'static>> {
        missing(sizes)
    }

    fn missing(sizes: &Sizes) -> Result<Buffer<'static>> {
        bail!("conv2d of {:?} on the GPU needs a build with the feature `cudnn`", sizes.spec)
    }
}
