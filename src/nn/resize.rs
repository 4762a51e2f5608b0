//! Resizing of feature maps, one axis at a time.

use super::cpu::{self, vectorised};
use super::graph::{self, Reads};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::ops::Range;

/// Bilinear, without antialiasing, clamped at the border. `align_corners` as in PyTorch.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, size.0, size.1)
pub fn resize_bilinear(xs: &Tensor, size: (usize, usize), align_corners: bool) -> Result<Tensor> {
    let (height, width) = check(xs, size)?;
    if (height, width) == size {
        return Ok(xs.clone());
    }
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        return super::cuda::resize(xs, size, if align_corners { 2 } else { 1 });
    }
    let axis = |from, to| Axis::bilinear(from, to, align_corners);
    resize(xs, axis(height, size.0), axis(width, size.1))
}

/// Some rows of what [`resize_bilinear`] gives, the same bits, for maps that are too large as a whole. On a GPU without gradient.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, `rows`, size.1)
pub fn resize_bilinear_rows(xs: &Tensor, size: (usize, usize), rows: Range<usize>) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    if rows.end > size.0 {
        bail!("rows {rows:?} of a resize to {} rows", size.0)
    }
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        return super::cuda::resize_rows(xs, size, rows);
    }
    let mut all = Axis::bilinear(height, size.0, false);
    all.taps = all.taps[rows].to_vec();
    resize(xs, all, Axis::bilinear(width, size.1, false))
}

/// Nearest: `source = ⌊target · (from / to)⌋`, computed in f32 as PyTorch does.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, size.0, size.1)
pub fn resize_nearest(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (height, width) = check(xs, size)?;
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        return super::cuda::resize(xs, size, 0);
    }
    resize(xs, Axis::nearest(height, size.0), Axis::nearest(width, size.1))
}

/// Height and width of maps that can be resized.
fn check(xs: &Tensor, size: (usize, usize)) -> Result<(usize, usize)> {
    let (_, _, height, width) = xs.dims4()?;
    if [height, width, size.0, size.1].contains(&0) {
        bail!("resize of {:?} to {}×{}", xs.shape(), size.0, size.1)
    }
    Ok((height, width))
}

fn resize(xs: &Tensor, rows: Axis, columns: Axis) -> Result<Tensor> {
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| resize(xs, rows, columns));
    }
    graph::apply1(&xs.contiguous()?, Reads::Shapes, Resize { rows, columns })
}

/// Where one target pixel of an axis comes from: `(1 − share) · source[low] + share · source[high]`.
#[derive(Clone, Copy)]
struct Tap {
    low: usize,
    high: usize,
    share: f32,
}

/// One axis of a resize.
struct Axis {
    from: usize,
    taps: Vec<Tap>,
}

impl Axis {
    fn bilinear(from: usize, to: usize, align_corners: bool) -> Self {
        let scale = match (align_corners, to) {
            (true, 0 | 1) => 0.0,
            (true, _) => from.saturating_sub(1) as f32 / (to - 1) as f32,
            (false, _) => from as f32 / to as f32,
        };
        let tap = |target: usize| {
            let source = if align_corners { target as f32 * scale } else { ((target as f32 + 0.5) * scale - 0.5).max(0.0) };
            let low = (source as usize).min(from.saturating_sub(1));
            Tap { low, high: (low + 1).min(from.saturating_sub(1)), share: (source - low as f32).clamp(0.0, 1.0) }
        };
        Self { from, taps: (0..to).map(tap).collect() }
    }

    fn nearest(from: usize, to: usize) -> Self {
        let scale = from as f32 / to as f32;
        let tap = |target: usize| {
            let low = ((target as f32 * scale) as usize).min(from.saturating_sub(1));
            Tap { low, high: low, share: 0.0 }
        };
        Self { from, taps: (0..to).map(tap).collect() }
    }
}

/// A resize whose weights factor into rows and columns.
struct Resize {
    rows: Axis,
    columns: Axis,
}

vectorised! {
    fn blend(low: &[f32], high: &[f32], share: f32, out: &mut [f32]) {
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            *out = (1.0 - share) * low + share * high;
        }
    }
}

vectorised! {
    fn add_scaled(xs: &[f32], scale: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(xs) {
            *out += scale * x;
        }
    }
}

impl Resize {
    /// Stretches the needed input rows first, then blends them: `xs` (H, W) → `out` (H', W').
    fn plane(&self, xs: &[f32], out: &mut [f32]) {
        let (width, columns) = (self.columns.from, &self.columns.taps);
        // The two stretched rows in use, with their input rows; targets go through the input in order.
        let mut rows = [(usize::MAX, vec![0.0; columns.len()]), (usize::MAX, vec![0.0; columns.len()])];
        for (tap, out) in self.rows.taps.iter().zip(out.chunks_exact_mut(columns.len())) {
            if rows[0].0 != tap.low && rows[1].0 == tap.low {
                rows.swap(0, 1);
            }
            for (slot, source) in [(0, tap.low), (1, tap.high)] {
                if rows[slot].0 != source {
                    rows[slot].0 = source;
                    let line = &xs[source * width..(source + 1) * width];
                    for (value, tap) in rows[slot].1.iter_mut().zip(columns) {
                        *value = (1.0 - tap.share) * line[tap.low] + tap.share * line[tap.high];
                    }
                }
            }
            if tap.share == 0.0 { out.copy_from_slice(&rows[0].1) } else { blend(&rows[0].1, &rows[1].1, tap.share, out) }
        }
    }

    /// The transposed map: `gradient` (H', W') → `out` (H, W), which starts as zeros.
    fn plane_gradient(&self, gradient: &[f32], out: &mut [f32]) {
        let (width, columns) = (self.columns.from, &self.columns.taps);
        let mut stretched = vec![0.0; self.rows.from * columns.len()];
        for (tap, g) in self.rows.taps.iter().zip(gradient.chunks_exact(columns.len())) {
            for (source, share) in [(tap.low, 1.0 - tap.share), (tap.high, tap.share)] {
                if share != 0.0 {
                    add_scaled(g, share, &mut stretched[source * columns.len()..(source + 1) * columns.len()]);
                }
            }
        }
        for (line, out) in stretched.chunks_exact(columns.len()).zip(out.chunks_exact_mut(width)) {
            for (g, tap) in line.iter().zip(columns) {
                out[tap.low] += (1.0 - tap.share) * g;
                out[tap.high] += tap.share * g;
            }
        }
    }
}

impl CustomOp1 for Resize {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = cpu::values(storage, layout)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let (out_height, out_width) = (self.rows.taps.len(), self.columns.taps.len());
        let out = cpu::fill_chunks(batch * channels * out_height * out_width, out_height * out_width, |i, out| {
            self.plane(&xs[i * height * width..(i + 1) * height * width], out);
        });
        Ok((CpuStorage::F32(out), (batch, channels, out_height, out_width).into()))
    }

    fn bwd(&self, arg: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let g = cpu::read(&gradient)?;
        let g = &*g;
        let (_, _, out_height, out_width) = result.dims4()?;
        let (plane, out_plane) = (self.rows.from * self.columns.from, out_height * out_width);
        let out = cpu::fill_chunks(arg.elem_count(), plane, |i, out| {
            self.plane_gradient(&g[i * out_plane..(i + 1) * out_plane], out);
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}
