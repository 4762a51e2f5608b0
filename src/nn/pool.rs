//! Pooling.

use super::cpu::vectorised;
use super::graph::{self, Reads};
use super::{ConvSpec, cpu};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

/// Maximum over `kernel`×`kernel` windows; `spec` gives stride and padding (padded places never win, at most half the
/// kernel). The gradient goes to the first of equal maxima.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, H', W') as for a convolution
pub fn max_pool2d(xs: &Tensor, kernel: usize, spec: ConvSpec) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    let fits = |size: usize| size > 0 && size + 2 * spec.padding >= kernel && height * width <= u32::MAX as usize;
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
    let out = (out(height), out(width));
    graph::apply1(
        &xs.contiguous()?,
        Reads::Shapes,
        MaxPool { kernel, spec, size: (height, width), out, winners: OnceLock::new() },
    )
}

/// One max pooling of planes of `size` to planes of `out`.
struct MaxPool {
    kernel: usize,
    spec: ConvSpec,
    size: (usize, usize),
    out: (usize, usize),
    /// Where the maxima of every plane come from, for the backward pass.
    winners: OnceLock<Vec<Vec<u32>>>,
}

impl MaxPool {
    /// The maxima of a plane into `out`; returns the input position of each.
    fn plane(&self, xs: &[f32], out: &mut [f32]) -> Vec<u32> {
        let (width, ConvSpec { stride, padding, .. }) = (self.size.1, self.spec);
        let mut from = vec![0u32; out.len()];
        // Every stride-th value of a padded row together, so that neighbours in a row of results are neighbours here.
        let length = (width + 2 * padding).div_ceil(stride);
        let mut phases = vec![f32::NEG_INFINITY; stride * length];
        for (y, (best, from)) in out.chunks_exact_mut(self.out.1).zip(from.chunks_exact_mut(self.out.1)).enumerate() {
            let top = (y * stride).saturating_sub(padding);
            best.fill(f32::NEG_INFINITY);
            for (x, from) in from.iter_mut().enumerate() {
                *from = (top * width + (x * stride).saturating_sub(padding)) as u32;
            }
            for row in top..(y * stride + self.kernel - padding).min(self.size.0) {
                for (x, value) in xs[row * width..(row + 1) * width].iter().enumerate() {
                    let place = x + padding;
                    phases[place % stride * length + place / stride] = *value;
                }
                for tap in 0..self.kernel {
                    let values = &phases[tap % stride * length + tap / stride..][..self.out.1];
                    // Wraps where the padding would win, which it never does.
                    let first = ((row * width + tap) as u32).wrapping_sub(padding as u32);
                    challenge(values, first, stride as u32, best, from);
                }
            }
        }
        from
    }
}

vectorised! {
    /// One tap of a row of windows: value i, at position `first + i · stride`, replaces a smaller best value. NaN wins, as in PyTorch.
    fn challenge(values: &[f32], first: u32, stride: u32, best: &mut [f32], from: &mut [u32]) {
        for (i, (x, (best, from))) in values.iter().zip(best.iter_mut().zip(from)).enumerate() {
            let wins = *x > *best || x.is_nan();
            *best = if wins { *x } else { *best };
            *from = if wins { first.wrapping_add(i as u32 * stride) } else { *from };
        }
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
        let (out, winners) = cpu::fill_chunks_map(batch * channels * out_plane, out_plane, |i, out| {
            self.plane(&xs[i * height * width..(i + 1) * height * width], out)
        });
        self.winners.get_or_init(|| winners);
        Ok((CpuStorage::F32(out), (batch, channels, self.out.0, self.out.1).into()))
    }

    fn bwd(&self, arg: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let g = cpu::read(&gradient)?;
        let Some(winners) = self.winners.get() else { bail!("max_pool2d: a backward pass without a forward pass") };
        let (plane, out_plane) = (self.size.0 * self.size.1, self.out.0 * self.out.1);
        let g = &*g;
        let out = cpu::fill_chunks(arg.elem_count(), plane, |i, out| {
            for (source, g) in winners[i].iter().zip(&g[i * out_plane..]) {
                out[*source as usize] += g;
            }
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}
