//! Depthwise convolution: every input channel has its own kernels.
//!
//! A padded plane is stored phase by phase (pixels whose row and column have the same remainder modulo the stride lie
//! together). Then every kernel tap is a constant distance in memory, for any stride and dilation, and a convolution is
//! one sliding sum over a flat slice. Gradients are sliding sums of the same kind.

use super::op::Sizes;
use crate::nn::cpu;
use rayon::prelude::*;

/// Values computed at once; lengths of sliding sums are rounded up to it.
const LANES: usize = 32;

/// Values of a plane after which the next tap is taken, so that both operands stay in the first-level cache.
const BLOCK: usize = 2048;

/// How one padded plane lies in memory.
struct Plane<'a> {
    sizes: &'a Sizes,
    /// Length of a row of a phase; outputs are computed with the same row length.
    pitch: usize,
    /// Rows of a phase.
    rows: usize,
    /// Per kernel tap: phase, and distance inside the phase.
    taps: Vec<(usize, usize)>,
}

impl<'a> Plane<'a> {
    fn new(sizes: &'a Sizes) -> Self {
        let (stride, dilation) = (sizes.spec.stride, sizes.spec.dilation);
        let pitch = sizes.out_width + dilation * (sizes.kernel_width - 1) / stride;
        let rows = sizes.out_height + dilation * (sizes.kernel_height - 1) / stride;
        let tap = |i: usize| {
            let (y, x) = (i / sizes.kernel_width * dilation, i % sizes.kernel_width * dilation);
            ((y % stride) * stride + x % stride, (y / stride) * pitch + x / stride)
        };
        Self { sizes, pitch, rows, taps: (0..sizes.area()).map(tap).collect() }
    }

    /// Values of one phase, rounded up.
    fn phase_len(&self) -> usize {
        (self.pitch * self.rows).next_multiple_of(LANES)
    }

    /// Largest distance inside a phase.
    fn reach(&self) -> usize {
        self.taps.iter().map(|tap| tap.1).max().unwrap_or(0)
    }

    /// Length of a buffer for outputs, row by row with `pitch`, rounded up.
    fn out_len(&self) -> usize {
        ((self.sizes.out_height - 1) * self.pitch + self.sizes.out_width).next_multiple_of(LANES)
    }

    /// Stretches of outputs worth computing: everything, or row by row when rows are long and padding is wide.
    fn stretches(&self) -> (usize, usize, usize) {
        let width = self.sizes.out_width.next_multiple_of(LANES);
        if width < self.pitch { (self.sizes.out_height, self.pitch, width) } else { (1, 0, self.out_len()) }
    }

    /// Every (input row, phase row and column phase, input columns, first column of the phase).
    fn for_each_line(&self, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let (stride, padding) = (self.sizes.spec.stride, self.sizes.spec.padding);
        for y in 0..self.sizes.height {
            let row = (y + padding) / stride;
            if row >= self.rows {
                break;
            }
            for phase_x in 0..stride {
                // First input column of this phase: column c of the phase is input column c · stride + phase_x − padding.
                let column = padding.saturating_sub(phase_x).div_ceil(stride);
                let x = column * stride + phase_x - padding;
                let phase = ((y + padding) % stride) * stride + phase_x;
                if x < self.sizes.width && column < self.pitch {
                    let count = (self.sizes.width - x).div_ceil(stride).min(self.pitch - column);
                    visit(y * self.sizes.width + x, phase * self.phase_len() + row * self.pitch + column, count, stride);
                }
            }
        }
    }

    /// Lays out a plane of inputs; `padded` must be cleared where it was never written.
    fn load(&self, xs: &[f32], padded: &mut Vec<f32>) {
        let stride = self.sizes.spec.stride;
        padded.resize(stride * stride * self.phase_len() + 2 * LANES, 0.0);
        self.for_each_line(|from, to, count, stride| {
            let target = &mut padded[to..to + count];
            if stride == 1 {
                target.copy_from_slice(&xs[from..from + count]);
            } else {
                for (target, x) in target.iter_mut().zip(xs[from..].iter().step_by(stride)) {
                    *target = *x;
                }
            }
        });
    }

    /// Takes a plane of inputs out of its padded layout.
    fn store(&self, padded: &[f32], xs: &mut [f32]) {
        self.for_each_line(|to, from, count, stride| {
            for (x, value) in xs[to..].iter_mut().step_by(stride).zip(&padded[from..from + count]) {
                *x = *value;
            }
        });
    }

    /// Lays out a plane of output gradients with `front` zeros before it and enough behind it.
    fn load_gradient(&self, gradient: &[f32], front: usize, wide: &mut Vec<f32>) {
        wide.resize(front + self.phase_len() + 2 * LANES, 0.0);
        for (y, row) in gradient.chunks_exact(self.sizes.out_width).enumerate() {
            wide[front + y * self.pitch..][..row.len()].copy_from_slice(row);
        }
    }
}

cpu::vectorised! {
    /// `out[j] += Σ weight · source[j + offset]` over the taps (offset, weight). The length is a multiple of LANES.
    fn slide(source: &[f32], taps: &[(usize, f32)], out: &mut [f32]) {
        for (block, out) in out.chunks_exact_mut(LANES).enumerate() {
            let mut sums = [0f32; LANES];
            sums.copy_from_slice(out);
            for (offset, weight) in taps {
                let source = &source[block * LANES + offset..][..LANES];
                for (sum, x) in sums.iter_mut().zip(source) {
                    *sum += weight * x;
                }
            }
            out.copy_from_slice(&sums);
        }
    }
}

cpu::vectorised! {
    /// `sums[t] += Σ gradient[j] · source[j + offset of tap t]`
    fn correlate(source: &[f32], gradient: &[f32], offsets: &[usize], sums: &mut [f64]) {
        for (block, gradient) in gradient.chunks(BLOCK).enumerate() {
            for (sum, offset) in sums.iter_mut().zip(offsets) {
                *sum += cpu::dot(gradient, &source[block * BLOCK + offset..][..gradient.len()]);
            }
        }
    }
}

/// # Shapes
/// `xs` (B, C, H, W), `weight` (C·m, 1, kh, kw), `bias` (C·m) → (B, C·m, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let plane = Plane::new(sizes);
    let (area, multiplier) = (sizes.area(), sizes.out_channels / sizes.in_channels);
    let (rows, step, length) = plane.stretches();
    let mut out = vec![0.0; sizes.batch * sizes.out_channels * sizes.out_plane()];
    out.par_chunks_mut(sizes.out_plane()).enumerate().for_each_init(
        || (Vec::new(), Vec::new()),
        |(padded, wide), (i, out)| {
            plane.load(&xs[i / multiplier * sizes.in_plane()..], padded);
            let channel = i % sizes.out_channels;
            let kernel = &weight[channel * area..(channel + 1) * area];
            let taps: Vec<_> = plane.taps.iter().zip(kernel).map(|(t, w)| (t.0 * plane.phase_len() + t.1, *w)).collect();
            wide.clear();
            wide.resize(plane.out_len().max((rows - 1) * step + length), bias.map_or(0.0, |bias| bias[channel]));
            for row in 0..rows {
                let at = row * step;
                slide(&padded[at..], &taps, &mut wide[at..at + length]);
            }
            for (row, out) in wide.chunks(plane.pitch).zip(out.chunks_exact_mut(sizes.out_width)) {
                out.copy_from_slice(&row[..out.len()]);
            }
        },
    );
    out
}

/// Gradients of inputs and weight, each only when `wanted`. See [`forward`] for shapes.
pub fn backward(
    sizes: &Sizes,
    xs: &[f32],
    weight: &[f32],
    gradient: &[f32],
    wanted: (bool, bool),
) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
    let plane = Plane::new(sizes);
    let for_xs = wanted.0.then(|| input_gradient(&plane, weight, gradient));
    (for_xs, wanted.1.then(|| weight_gradient(&plane, xs, gradient)))
}

fn input_gradient(plane: &Plane, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
    let sizes = plane.sizes;
    let (area, multiplier) = (sizes.area(), sizes.out_channels / sizes.in_channels);
    let (front, phases) = (plane.reach(), sizes.spec.stride * sizes.spec.stride);
    let mut out = vec![0.0; sizes.batch * sizes.in_channels * sizes.in_plane()];
    out.par_chunks_mut(sizes.in_plane()).enumerate().for_each_init(
        || (Vec::new(), Vec::new()),
        |(wide, padded), (i, out)| {
            padded.clear();
            padded.resize(phases * plane.phase_len(), 0.0);
            for output in i * multiplier..(i + 1) * multiplier {
                plane.load_gradient(&gradient[output * sizes.out_plane()..][..sizes.out_plane()], front, wide);
                let kernel = &weight[output % sizes.out_channels * area..][..area];
                for (phase, target) in padded.chunks_exact_mut(plane.phase_len()).enumerate() {
                    // Pixel j of a phase gets what the outputs j − offset took from it.
                    let own = plane.taps.iter().zip(kernel).filter(|(tap, _)| tap.0 == phase);
                    let taps: Vec<_> = own.map(|(tap, w)| (front - tap.1, *w)).collect();
                    slide(wide, &taps, target);
                }
            }
            plane.store(padded, out);
        },
    );
    out
}

fn weight_gradient(plane: &Plane, xs: &[f32], gradient: &[f32]) -> Vec<f32> {
    let sizes = plane.sizes;
    let multiplier = sizes.out_channels / sizes.in_channels;
    let offsets: Vec<usize> = plane.taps.iter().map(|(phase, offset)| phase * plane.phase_len() + offset).collect();
    let mut out = vec![0.0; sizes.out_channels * sizes.area()];
    out.par_chunks_mut(sizes.area()).enumerate().for_each_init(
        || (Vec::new(), Vec::new()),
        |(padded, wide), (channel, out)| {
            let mut sums = vec![0f64; sizes.area()];
            for image in 0..sizes.batch {
                plane.load(&xs[(image * sizes.in_channels + channel / multiplier) * sizes.in_plane()..], padded);
                let g = &gradient[(image * sizes.out_channels + channel) * sizes.out_plane()..][..sizes.out_plane()];
                plane.load_gradient(g, 0, wide);
                correlate(padded, &wide[..plane.out_len()], &offsets, &mut sums);
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum as f32;
            }
        },
    );
    out
}
