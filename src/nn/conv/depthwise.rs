//! Depthwise convolution: every input channel has its own kernels; one sliding sum a plane, see [`super::plane`].

use super::op::{Backward, InputAndWeight, Sizes};
use super::plane::{LANES, Plane, copy};
use crate::nn::cpu;
use rayon::prelude::*;

/// Values of a plane after which the next tap is taken, so that both operands stay in the first-level cache.
const BLOCK: usize = 2048;

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

cpu::vectorised! {
    fn load(plane: &Plane, xs: &[f32], padded: &mut [f32]) {
        plane.load(xs, padded);
    }
}

cpu::vectorised! {
    fn store(plane: &Plane, padded: &[f32], xs: &mut [f32]) {
        plane.store(padded, xs);
    }
}

cpu::vectorised! {
    fn load_gradient(plane: &Plane, gradient: &[f32], front: usize, wide: &mut [f32]) {
        plane.load_gradient(gradient, front, wide);
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
    padded.resize(plane.padded_len(), 0.0);
    load(plane, xs, padded);
    taps.clear();
    taps.extend(plane.offsets.iter().zip(kernel).map(|(offset, weight)| (*offset, *weight)));
    let width = plane.sizes.out_width;
    if width >= cpu::SLIDE_PLANE {
        return cpu::slide_plane(taps, padded, plane.pitch, bias, out, width);
    }
    let (rows, step, length) = plane.stretches();
    wide.clear();
    wide.resize(plane.out_len().max((rows - 1) * step + length), bias);
    for row in 0..rows {
        let at = row * step;
        slide(&padded[at..], taps, &mut wide[at..at + length]);
    }
    for (row, out) in wide.chunks(plane.pitch).zip(out.chunks_exact_mut(width)) {
        copy(&row[..out.len()], out);
    }
}

/// The gradient of one plane of inputs where each has one output and the stride is 1, so that inputs are a sliding sum of outputs.
fn plain_input_gradient(plane: &Plane, gradient: &[f32], kernel: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
    let Scratch { wide, taps, .. } = scratch;
    let (front, padding) = (plane.reach(), plane.sizes.spec.padding);
    wide.resize(plane.gradient_len(front), 0.0);
    load_gradient(plane, gradient, front, wide);
    taps.clear();
    taps.extend(plane.taps.iter().zip(kernel).map(|(tap, weight)| (front + padding * (plane.pitch + 1) - tap.1, *weight)));
    cpu::slide_plane(taps, wide, plane.pitch, 0.0, out, plane.sizes.width);
}

/// Adds what one plane of output gradients gives to the padded plane of input gradients.
fn input_gradient_plane(plane: &Plane, gradient: &[f32], kernel: &[f32], scratch: &mut Scratch) {
    let Scratch { padded, wide, taps } = scratch;
    let front = plane.reach();
    wide.resize(plane.gradient_len(front), 0.0);
    load_gradient(plane, gradient, front, wide);
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
    padded.resize(plane.padded_len(), 0.0);
    load(plane, xs, padded);
    wide.resize(plane.gradient_len(0), 0.0);
    load_gradient(plane, gradient, 0, wide);
    correlate(padded, &wide[..plane.out_len()], &plane.offsets, sums);
}

/// # Shapes
/// `xs` (B, C, H, W), `weight` (C·m, 1, kh, kw), `bias` (C·m) or (B·C·m) → (B, C·m, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let plane = Plane::new(sizes);
    let (area, multiplier) = (sizes.area(), sizes.out_channels / sizes.in_channels);
    let len = sizes.batch * sizes.out_channels * sizes.out_plane();
    let fill = |scratch: &mut Scratch, i: usize, out: &mut [f32]| {
        let channel = i % sizes.out_channels;
        let kernel = &weight[channel * area..(channel + 1) * area];
        let bias = bias.map_or(0.0, |bias| bias[i % bias.len()]);
        forward_plane(&plane, &xs[i / multiplier * sizes.in_plane()..], kernel, bias, scratch, out);
    };
    cpu::fill_chunks_with(len, sizes.out_plane(), Scratch::default, fill).0
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
    let plain = phases * multiplier == 1 && sizes.width >= cpu::SLIDE_PLANE;
    let len = sizes.batch * sizes.in_channels * sizes.in_plane();
    let fill = |scratch: &mut Scratch, i: usize, out: &mut [f32]| {
        let of = |output: usize| {
            let kernel = &weight[output % sizes.out_channels * area..][..area];
            (&gradient[output * sizes.out_plane()..][..sizes.out_plane()], kernel)
        };
        if plain {
            let (gradient, kernel) = of(i);
            return plain_input_gradient(plane, gradient, kernel, scratch, out);
        }
        scratch.padded.clear();
        scratch.padded.resize(phases * plane.phase_len(), 0.0);
        for output in i * multiplier..(i + 1) * multiplier {
            let (gradient, kernel) = of(output);
            input_gradient_plane(plane, gradient, kernel, scratch);
        }
        store(plane, &scratch.padded, out);
    };
    cpu::fill_chunks_with(len, sizes.in_plane(), Scratch::default, fill).0
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ConvSpec;
    use crate::nn::conv::plain_sum;

    /// Channels, kernels of each, size, kernel (all square), padding, stride, dilation: planes for vectors and narrower ones.
    fn cases() -> Vec<Sizes> {
        let cases = [
            (5, 1, (17, 21), 3, 1, 1, 1),
            (3, 1, (9, 16), 7, 3, 1, 1),
            (3, 2, (20, 37), 3, 1, 1, 1),
            (2, 1, (40, 41), 3, 6, 1, 6),
            (3, 1, (33, 46), 3, 1, 2, 1),
            (3, 1, (33, 47), 5, 2, 2, 1),
            (3, 1, (70, 70), 3, 1, 4, 1),
            (4, 1, (8, 8), 3, 1, 1, 1),
            (4, 1, (16, 30), 7, 3, 2, 1),
            (2, 1, (30, 33), 5, 0, 1, 1),
            (2, 1, (18, 20), 3, 3, 1, 1),
        ];
        let sizes = |(channels, multiplier, (height, width), kernel, padding, stride, dilation)| {
            let spec = ConvSpec { stride, padding, dilation, groups: channels };
            Sizes::new(&[2, channels, height, width], &[channels * multiplier, 1, kernel, kernel], spec).unwrap()
        };
        cases.map(sizes).to_vec()
    }

    #[test]
    fn results_and_gradients_are_those_of_the_definition() {
        cases().iter().for_each(|sizes| plain_sum::check(sizes, forward, backward));
    }

    #[test]
    fn an_image_has_the_same_bits_alone_and_in_a_batch() {
        cases().iter().for_each(|sizes| plain_sum::check_batch(sizes, forward));
    }
}
