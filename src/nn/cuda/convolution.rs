//! Convolutions: depthwise ones by our own kernels, all others by cuDNN. The bias is added by a kernel.

use super::device::{Buffer, Given, Gpu, Gradients, with_gradient};
use crate::nn::conv::Sizes;
use candle_core::{DType, Result, Tensor};

/// `xs` (B, C, H, W), `weight` (O, C/groups, kh, kw) in the type of the inputs or f32, `bias` (O) f32.
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
    let out = if is_depthwise(sizes) {
        let none = Tensor::zeros(sizes.out_channels, DType::F32, xs.device())?;
        let gpu = Gpu::of(xs)?;
        let bias = gpu.input(bias.unwrap_or(&none), DType::F32)?;
        let (x, w) = (gpu.input(xs, xs.dtype())?, gpu.input(weight, xs.dtype())?);
        return gpu.kernels(xs)?.depthwise(&x, &w, &bias, sizes)?.detached();
    } else {
        library::forward(xs, weight, sizes)?
    };
    if let Some(bias) = bias {
        let gpu = Gpu::of(xs)?;
        let (channels, plane) = (sizes.out_channels, sizes.out_plane());
        gpu.kernels(xs)?.add_bias(&out, &gpu.input(bias, DType::F32)?, sizes.batch * channels * plane, channels, plane)?;
    }
    Ok(out)
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
        let sums = || kernels.channel_sums(&g, sizes.batch, sizes.out_channels, sizes.out_plane())?.tensor(bias.shape());
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
