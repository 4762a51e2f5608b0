//! Pooling.

use super::{ConvSpec, cpu, graph};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// Maximum over `kernel`×`kernel` windows; `spec` gives stride and padding (padded places never win, at most half the
/// kernel). The gradient goes to the first of equal maxima.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, H', W') as for a convolution
pub fn max_pool2d(xs: &Tensor, kernel: usize, spec: ConvSpec) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    let fits = |size: usize| size > 0 && size + 2 * spec.padding >= kernel;
    if kernel == 0 || spec.stride == 0 || 2 * spec.padding > kernel || !fits(height) || !fits(width) || spec.dilation != 1 {
        bail!("max_pool2d: inputs {:?} with kernel {kernel} and {spec:?}", xs.shape())
    }
    let out = |size: usize| (size + 2 * spec.padding - kernel) / spec.stride + 1;
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        return super::cuda::max_pool2d(xs, (out(height), out(width)), kernel, spec.stride, spec.padding);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| max_pool2d(xs, kernel, spec));
    }
    graph::apply1(&xs.contiguous()?, MaxPool { kernel, spec, size: (height, width), out: (out(height), out(width)) })
}

/// One max pooling of planes of `size` to planes of `out`.
struct MaxPool {
    kernel: usize,
    spec: ConvSpec,
    size: (usize, usize),
    out: (usize, usize),
}

impl MaxPool {
    /// The winning input position of every window of a plane, in order; an output row at a time, tap by tap.
    fn for_each_winner(&self, xs: &[f32], mut visit: impl FnMut(usize, usize)) {
        let (width, ConvSpec { stride, padding, .. }) = (self.size.1, self.spec);
        let (mut best, mut from) = (vec![0.0; self.out.1], vec![0; self.out.1]);
        for y in 0..self.out.0 {
            let top = (y * stride).saturating_sub(padding);
            best.fill(f32::NEG_INFINITY);
            for (x, from) in from.iter_mut().enumerate() {
                *from = top * width + (x * stride).saturating_sub(padding);
            }
            for row in top..(y * stride + self.kernel - padding).min(self.size.0) {
                for tap in 0..self.kernel {
                    let start = padding.saturating_sub(tap).div_ceil(stride).min(self.out.1);
                    let end = (width + padding).saturating_sub(tap).div_ceil(stride).clamp(start, self.out.1);
                    let first = (row * width + start * stride + tap).saturating_sub(padding);
                    challenge(xs, first, stride, &mut best[start..end], &mut from[start..end]);
                }
            }
            for (x, from) in from.iter().enumerate() {
                visit(y * self.out.1 + x, *from);
            }
        }
    }
}

/// One tap of a row of windows: value `first + i · stride` replaces a smaller best value i. NaN wins, as in PyTorch.
fn challenge(xs: &[f32], first: usize, stride: usize, best: &mut [f32], from: &mut [usize]) {
    let positions = (first..xs.len()).step_by(stride);
    for ((position, best), from) in positions.zip(best).zip(from) {
        let x = xs[position];
        let wins = x > *best || x.is_nan();
        *best = if wins { x } else { *best };
        *from = if wins { position } else { *from };
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = cpu::values(storage, layout)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let out_plane = self.out.0 * self.out.1;
        let out = cpu::fill_chunks(batch * channels * out_plane, out_plane, |i, out| {
            let xs = &xs[i * height * width..(i + 1) * height * width];
            self.for_each_winner(xs, |target, source| out[target] = xs[source]);
        });
        Ok((CpuStorage::F32(out), (batch, channels, self.out.0, self.out.1).into()))
    }

    fn bwd(&self, arg: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (xs, g) = (cpu::read(arg)?, cpu::read(&gradient)?);
        let (xs, g) = (&*xs, &*g);
        let (plane, out_plane) = (self.size.0 * self.size.1, self.out.0 * self.out.1);
        let out = cpu::fill_chunks(xs.len(), plane, |i, out| {
            let g = &g[i * out_plane..(i + 1) * out_plane];
            self.for_each_winner(&xs[i * plane..(i + 1) * plane], |target, source| out[source] += g[target]);
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}
