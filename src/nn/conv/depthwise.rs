//! Depthwise convolution: every input channel has its own kernels.
//!
//! A padded plane is stored phase by phase (pixels whose row and column have the same remainder modulo the stride lie
//! together). Then every kernel tap is a constant distance in memory, for any stride and dilation, and a convolution is
//! one sliding sum over a flat slice. Gradients are sliding sums of the same kind.

use super::op::{Backward, InputAndWeight, Sizes};
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
    /// Per kernel tap: distance in the whole padded plane.
    offsets: Vec<usize>,
    lines: Vec<Line>,
}

/// Pixels of one input row that lie side by side in a phase.
struct Line {
    /// Index of the first in the plane of inputs; the next ones are a stride apart.
    input: usize,
    /// Index of the first in the padded plane.
    padded: usize,
    count: usize,
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
        let taps = (0..sizes.area()).map(tap).collect();
        let mut plane = Self { sizes, pitch, rows, taps, offsets: Vec::new(), lines: Vec::new() };
        plane.offsets = plane.taps.iter().map(|(phase, offset)| phase * plane.phase_len() + offset).collect();
        plane.lines = plane.lines();
        plane
    }

    /// The lines of all input rows that are read.
    fn lines(&self) -> Vec<Line> {
        let (stride, padding, sizes) = (self.sizes.spec.stride, self.sizes.spec.padding, self.sizes);
        let line = |y: usize, phase_x: usize| {
            let row = (y + padding) / stride;
            // First input column of this phase: column c of the phase is input column c · stride + phase_x − padding.
            let column = padding.saturating_sub(phase_x).div_ceil(stride);
            let x = column * stride + phase_x - padding;
            let phase = ((y + padding) % stride) * stride + phase_x;
            (row < self.rows && x < sizes.width && column < self.pitch).then(|| Line {
                input: y * sizes.width + x,
                padded: phase * self.phase_len() + row * self.pitch + column,
                count: (sizes.width - x).div_ceil(stride).min(self.pitch - column),
            })
        };
        (0..sizes.height).flat_map(|y| (0..stride).filter_map(move |phase| line(y, phase))).collect()
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

    /// Lays out a plane of inputs; `padded` must be cleared where it was never written.
    #[inline(always)]
    fn load(&self, xs: &[f32], padded: &mut Vec<f32>) {
        let stride = self.sizes.spec.stride;
        padded.resize(stride * stride * self.phase_len() + 2 * LANES, 0.0);
        for line in &self.lines {
            let target = &mut padded[line.padded..][..line.count];
            if stride == 1 {
                copy(&xs[line.input..][..line.count], target);
            } else {
                target.iter_mut().zip(xs[line.input..].iter().step_by(stride)).for_each(|(target, x)| *target = *x);
            }
        }
    }

    /// Takes a plane of inputs out of its padded layout.
    #[inline(always)]
    fn store(&self, padded: &[f32], xs: &mut [f32]) {
        let stride = self.sizes.spec.stride;
        for line in &self.lines {
            let source = &padded[line.padded..][..line.count];
            if stride == 1 {
                copy(source, &mut xs[line.input..][..line.count]);
            } else {
                xs[line.input..].iter_mut().step_by(stride).zip(source).for_each(|(x, value)| *x = *value);
            }
        }
    }

    /// Lays out a plane of output gradients with `front` zeros before it and enough behind it.
    #[inline(always)]
    fn load_gradient(&self, gradient: &[f32], front: usize, wide: &mut Vec<f32>) {
        wide.resize(front + self.phase_len() + 2 * LANES, 0.0);
        for (y, row) in gradient.chunks_exact(self.sizes.out_width).enumerate() {
            copy(row, &mut wide[front + y * self.pitch..][..row.len()]);
        }
    }
}

/// Copies short rows without a call.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to_rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = *from);
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

/// What a thread needs for one plane after the other.
#[derive(Default)]
struct Scratch {
    padded: Vec<f32>,
    wide: Vec<f32>,
    taps: Vec<(usize, f32)>,
}

fn forward_plane(plane: &Plane, xs: &[f32], kernel: &[f32], bias: f32, scratch: &mut Scratch, out: &mut [f32]) {
    let Scratch { padded, wide, taps } = scratch;
    plane.load(xs, padded);
    taps.clear();
    taps.extend(plane.offsets.iter().zip(kernel).map(|(offset, weight)| (*offset, *weight)));
    let (rows, step, length) = plane.stretches();
    wide.clear();
    wide.resize(plane.out_len().max((rows - 1) * step + length), bias);
    for row in 0..rows {
        let at = row * step;
        slide(&padded[at..], taps, &mut wide[at..at + length]);
    }
    for (row, out) in wide.chunks(plane.pitch).zip(out.chunks_exact_mut(plane.sizes.out_width)) {
        copy(&row[..out.len()], out);
    }
}

/// Adds what one plane of output gradients gives to the padded plane of input gradients.
fn input_gradient_plane(plane: &Plane, gradient: &[f32], kernel: &[f32], scratch: &mut Scratch) {
    let Scratch { padded, wide, taps } = scratch;
    let front = plane.reach();
    plane.load_gradient(gradient, front, wide);
    for (phase, target) in padded.chunks_exact_mut(plane.phase_len()).enumerate() {
        // Pixel j of a phase gets what the outputs j − offset took from it.
        taps.clear();
        let own = plane.taps.iter().zip(kernel).filter(|(tap, _)| tap.0 == phase);
        taps.extend(own.map(|(tap, weight)| (front - tap.1, *weight)));
        slide(wide, taps, target);
    }
}

/// Adds the products of one plane of inputs and one of output gradients to the sums of the taps.
fn weight_gradient_plane(plane: &Plane, xs: &[f32], gradient: &[f32], scratch: &mut Scratch, sums: &mut [f64]) {
    let Scratch { padded, wide, .. } = scratch;
    plane.load(xs, padded);
    plane.load_gradient(gradient, 0, wide);
    correlate(padded, &wide[..plane.out_len()], &plane.offsets, sums);
}

/// # Shapes
/// `xs` (B, C, H, W), `weight` (C·m, 1, kh, kw), `bias` (C·m) → (B, C·m, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let plane = Plane::new(sizes);
    let (area, multiplier) = (sizes.area(), sizes.out_channels / sizes.in_channels);
    let mut out = vec![0.0; sizes.batch * sizes.out_channels * sizes.out_plane()];
    out.par_chunks_mut(sizes.out_plane()).enumerate().for_each_init(Scratch::default, |scratch, (i, out)| {
        let channel = i % sizes.out_channels;
        let kernel = &weight[channel * area..(channel + 1) * area];
        let bias = bias.map_or(0.0, |bias| bias[channel]);
        forward_plane(&plane, &xs[i / multiplier * sizes.in_plane()..], kernel, bias, scratch, out);
    });
    out
}

/// See [`forward`] for shapes.
pub fn backward(sizes: &Sizes, given: &Backward) -> InputAndWeight {
    let Backward { xs, weight, gradient, wanted } = *given;
    let plane = Plane::new(sizes);
    let for_xs = wanted.0.then(|| input_gradient(&plane, weight, gradient));
    (for_xs, wanted.1.then(|| weight_gradient(&plane, xs, gradient)))
}

fn input_gradient(plane: &Plane, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
    let sizes = plane.sizes;
    let (area, multiplier) = (sizes.area(), sizes.out_channels / sizes.in_channels);
    let phases = sizes.spec.stride * sizes.spec.stride;
    let mut out = vec![0.0; sizes.batch * sizes.in_channels * sizes.in_plane()];
    out.par_chunks_mut(sizes.in_plane()).enumerate().for_each_init(Scratch::default, |scratch, (i, out)| {
        scratch.padded.clear();
        scratch.padded.resize(phases * plane.phase_len(), 0.0);
        for output in i * multiplier..(i + 1) * multiplier {
            let gradient = &gradient[output * sizes.out_plane()..][..sizes.out_plane()];
            let kernel = &weight[output % sizes.out_channels * area..][..area];
            input_gradient_plane(plane, gradient, kernel, scratch);
        }
        plane.store(&scratch.padded, out);
    });
    out
}

fn weight_gradient(plane: &Plane, xs: &[f32], gradient: &[f32]) -> Vec<f32> {
    let sizes = plane.sizes;
    let multiplier = sizes.out_channels / sizes.in_channels;
    let mut out = vec![0.0; sizes.out_channels * sizes.area()];
    out.par_chunks_mut(sizes.area()).enumerate().for_each_init(
        || (Scratch::default(), vec![0f64; sizes.area()]),
        |(scratch, sums), (channel, out)| {
            sums.fill(0.0);
            for image in 0..sizes.batch {
                let xs = &xs[(image * sizes.in_channels + channel / multiplier) * sizes.in_plane()..];
                let gradient = &gradient[(image * sizes.out_channels + channel) * sizes.out_plane()..][..sizes.out_plane()];
                weight_gradient_plane(plane, xs, gradient, scratch, sums);
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum as f32);
        },
    );
    out
}
