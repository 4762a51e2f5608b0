//! Convolution straight from padded planes: every kernel tap is a window into the pixels (see [`super::plane`]), sums stay in
//! registers while all taps pass, and nothing is laid out twice.

use super::op::{Backward, Direction, InputAndWeight, Sizes};
use super::plane::{LANES, Plane};
use crate::nn::cpu::{self, CORRELATE, SLIDE_ROWS};
use rayon::prelude::*;

/// Values of a row of sums that are computed before they are copied to the result.
const STRIP: usize = 4096;
/// Values after which the next windows are taken in the weight gradient.
const BLOCK: usize = 4096;

/// Longest weight: beyond it, what other methods save in products is more than what this one saves in copies.
const MAX_WEIGHT: usize = 1 << 17;

/// The method applies, and is the fastest (measured): plain kernels on maps that are wide enough for the zeros between their rows not
/// to count, with some channels or a stride, which takes the place of channels.
pub fn wins(sizes: &Sizes, direction: Direction) -> bool {
    let enough = match direction {
        Direction::Forward => sizes.out_channels >= SLIDE_ROWS,
        Direction::Backward => true,
    };
    let weight = sizes.out_channels * sizes.in_channels * sizes.area();
    let plain = sizes.spec.groups == 1 && sizes.spec.dilation == 1 && sizes.area() > 1;
    plain
        && enough
        && (sizes.in_channels >= 16 || sizes.spec.stride > 1)
        && sizes.out_width >= 24
        && sizes.out_height >= 8
        && weight <= MAX_WEIGHT
}

/// A matrix (rows, taps) by blocks of [`SLIDE_ROWS`] rows, zeros below the last: block by block the taps, each with its rows.
struct Kernels {
    values: Vec<[f32; SLIDE_ROWS]>,
    taps: usize,
}

impl Kernels {
    /// `row(r)` gives the taps of row r one after the other.
    fn new<I: Iterator<Item = f32>>(rows: usize, taps: usize, row: impl Fn(usize) -> I + Sync) -> Self {
        let mut values = vec![[0.0; SLIDE_ROWS]; rows.div_ceil(SLIDE_ROWS) * taps];
        values.par_chunks_mut(taps.max(1)).enumerate().for_each(|(block, values)| {
            for (r, place) in (block * SLIDE_ROWS..rows).zip(0..SLIDE_ROWS) {
                values.iter_mut().zip(row(r)).for_each(|(values, value)| values[place] = value);
            }
        });
        Self { values, taps }
    }

    fn block(&self, block: usize) -> &[[f32; SLIDE_ROWS]] {
        &self.values[block * self.taps..][..self.taps]
    }
}

/// Runs `work(image, block, planes)` for blocks of [`SLIDE_ROWS`] planes of every image, in parallel.
fn for_each_block(
    out: &mut [f32],
    channels: usize,
    plane: usize,
    work: impl Fn(usize, usize, &mut [f32], &mut Vec<f32>) + Sync + Send,
) {
    let blocks: Vec<_> = out
        .chunks_mut(channels * plane)
        .enumerate()
        .flat_map(|(image, out)| out.chunks_mut(SLIDE_ROWS * plane).enumerate().map(move |(block, out)| (image, block, out)))
        .collect();
    blocks.into_par_iter().for_each_init(Vec::new, |scratch, (image, block, out)| work(image, block, out, scratch));
}

/// All input planes, padded: (B, C, padded length).
fn padded(plane: &Plane, xs: &[f32]) -> Vec<f32> {
    let (count, in_plane) = (plane.sizes.batch * plane.sizes.in_channels, plane.sizes.in_plane());
    cpu::fill_chunks(count * plane.padded_len(), plane.padded_len(), |i, out| plane.load(&xs[i * in_plane..][..in_plane], out))
}

/// All planes of output gradients behind as many zeros as the kernel reaches: (B, O, length).
fn widened(plane: &Plane, gradient: &[f32]) -> Vec<f32> {
    let (count, out_plane) = (plane.sizes.batch * plane.sizes.out_channels, plane.sizes.out_plane());
    let length = plane.gradient_len(plane.reach());
    cpu::fill_chunks(count * length, length, |i, out| {
        plane.load_gradient(&gradient[i * out_plane..][..out_plane], plane.reach(), out);
    })
}

/// # Shapes
/// `xs` (B, C, H, W), `weight` (O, C, kh, kw), `bias` (O) or (B·O) → (B, O, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let plane = Plane::new(sizes);
    let (inputs, length, out_plane) = (sizes.in_channels, plane.padded_len(), sizes.out_plane());
    let padded = padded(&plane, xs);
    let offsets = windows(inputs, length, &plane.offsets);
    let kernels = Kernels::new(sizes.out_channels, offsets.len(), |r| weight[r * offsets.len()..].iter().copied());
    let mut out = vec![0.0; sizes.batch * sizes.out_channels * out_plane];
    for_each_block(&mut out, sizes.out_channels, out_plane, |image, block, out, sums| {
        let source = &padded[image * inputs * length..][..inputs * length];
        let rows = strip_rows(&plane);
        for first in (0..sizes.out_height).step_by(rows) {
            let rows = rows.min(sizes.out_height - first);
            let count = ((rows - 1) * plane.pitch + sizes.out_width).next_multiple_of(LANES);
            sums.resize(SLIDE_ROWS * count, 0.0);
            cpu::slide_rows(kernels.block(block), &offsets, &source[first * plane.pitch..], sums, count, count);
            for (r, (out, sums)) in out.chunks_exact_mut(out_plane).zip(sums.chunks_exact(count)).enumerate() {
                let channel = image * sizes.out_channels + block * SLIDE_ROWS + r;
                let bias = bias.map_or(0.0, |bias| bias[channel % bias.len()]);
                let lines = out[first * sizes.out_width..][..rows * sizes.out_width].chunks_exact_mut(sizes.out_width);
                for (line, sums) in lines.zip(sums.chunks(plane.pitch)) {
                    line.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum + bias);
                }
            }
        }
    });
    out
}

/// Output rows computed at a time: one where the padding between rows is worth leaving out.
fn strip_rows(plane: &Plane) -> usize {
    let width = plane.sizes.out_width.next_multiple_of(LANES);
    if width + width / 8 < plane.pitch { 1 } else { (STRIP / plane.pitch).max(1) }
}

/// Where the windows of all taps of all planes start.
fn windows(planes: usize, length: usize, taps: &[usize]) -> Vec<usize> {
    (0..planes).flat_map(|plane| taps.iter().map(move |tap| plane * length + tap)).collect()
}

/// See [`forward`] for shapes.
pub fn backward(sizes: &Sizes, given: &Backward) -> InputAndWeight {
    let Backward { xs, weight, gradient, wanted } = *given;
    let plane = Plane::new(sizes);
    let wide = widened(&plane, gradient);
    let for_xs = wanted.0.then(|| input_gradient(&plane, weight, &wide));
    (for_xs, wanted.1.then(|| weight_gradient(&plane, &padded(&plane, xs), &wide)))
}

fn input_gradient(plane: &Plane, weight: &[f32], wide: &[f32]) -> Vec<f32> {
    let sizes = plane.sizes;
    let (inputs, outputs, area) = (sizes.in_channels, sizes.out_channels, sizes.area());
    if inputs < SLIDE_ROWS && sizes.spec.stride > 1 {
        return input_gradient_of_few(plane, weight, wide);
    }
    let (front, length) = (plane.reach(), plane.gradient_len(plane.reach()));
    // Pixel j of a phase gets what the outputs j − offset took from it.
    let phases: Vec<_> = (0..sizes.spec.stride.pow(2))
        .map(|phase| {
            let taps: Vec<usize> = (0..area).filter(|tap| plane.taps[*tap].0 == phase).collect();
            let starts: Vec<usize> = taps.iter().map(|tap| front - plane.taps[*tap].1).collect();
            let kernels = Kernels::new(inputs, outputs * taps.len(), |c| {
                let taps = &taps;
                (0..outputs).flat_map(move |o| taps.iter().map(move |tap| weight[(o * inputs + c) * area + tap]))
            });
            (kernels, windows(outputs, length, &starts))
        })
        .collect();
    let mut out = vec![0.0; sizes.batch * inputs * sizes.in_plane()];
    for_each_block(&mut out, inputs, sizes.in_plane(), |image, block, out, pixels| {
        let source = &wide[image * outputs * length..][..outputs * length];
        pixels.resize(SLIDE_ROWS * plane.padded_len(), 0.0);
        for (phase, (kernels, offsets)) in phases.iter().enumerate() {
            let pixels = &mut pixels[phase * plane.phase_len()..];
            cpu::slide_rows(kernels.block(block), offsets, source, pixels, plane.padded_len(), plane.phase_len());
        }
        for (out, pixels) in out.chunks_exact_mut(sizes.in_plane()).zip(pixels.chunks_exact(plane.padded_len())) {
            plane.store(pixels, out);
        }
    });
    out
}

/// For fewer channels than a block has rows: all phases of all channels are rows of one matrix, with zeros for the taps a phase lacks.
fn input_gradient_of_few(plane: &Plane, weight: &[f32], wide: &[f32]) -> Vec<f32> {
    let sizes = plane.sizes;
    let (inputs, outputs, area) = (sizes.in_channels, sizes.out_channels, sizes.area());
    let (front, length, phases) = (plane.reach(), plane.gradient_len(plane.reach()), sizes.spec.stride.pow(2));
    let mut distances: Vec<usize> = plane.taps.iter().map(|tap| tap.1).collect();
    distances.sort_unstable();
    distances.dedup();
    let starts: Vec<usize> = distances.iter().map(|distance| front - distance).collect();
    let offsets = windows(outputs, length, &starts);
    let kernels = Kernels::new(inputs * phases, offsets.len(), |row| {
        let (c, phase, distances) = (row / phases, row % phases, &distances);
        let tap = move |distance: &usize| plane.taps.iter().position(|tap| *tap == (phase, *distance));
        let of = move |o: usize, tap: Option<usize>| tap.map_or(0.0, |tap| weight[(o * inputs + c) * area + tap]);
        (0..outputs).flat_map(move |o| distances.iter().map(move |distance| of(o, tap(distance))))
    });
    let rows = phases * plane.phase_len();
    let mut pixels = vec![0.0; sizes.batch * inputs * rows];
    for_each_block(&mut pixels, inputs * phases, plane.phase_len(), |image, block, out, sums| {
        sums.resize(SLIDE_ROWS * plane.phase_len(), 0.0);
        let source = &wide[image * outputs * length..][..outputs * length];
        cpu::slide_rows(kernels.block(block), &offsets, source, sums, plane.phase_len(), plane.phase_len());
        out.copy_from_slice(&sums[..out.len()]);
    });
    let in_plane = sizes.in_plane();
    cpu::fill_chunks(sizes.batch * inputs * in_plane, in_plane, |i, out| plane.store(&pixels[i * rows..][..rows], out))
}

fn weight_gradient(plane: &Plane, padded: &[f32], wide: &[f32]) -> Vec<f32> {
    let sizes = plane.sizes;
    let (inputs, outputs) = (sizes.in_channels, sizes.out_channels);
    let (front, length) = (plane.reach(), plane.gradient_len(plane.reach()));
    let offsets = windows(inputs, plane.padded_len(), &plane.offsets);
    let mut out = vec![0.0; outputs * offsets.len()];
    out.par_chunks_mut(CORRELATE.0 * offsets.len()).enumerate().for_each(|(group, out)| {
        for image in 0..sizes.batch {
            let source = &padded[image * inputs * plane.padded_len()..];
            for start in (0..plane.out_len()).step_by(BLOCK) {
                let count = BLOCK.min(plane.out_len() - start);
                let row = |r: usize| {
                    // Beyond the last channel: any row, its sums are not kept.
                    let channel = (group * CORRELATE.0 + r).min(outputs - 1);
                    &wide[(image * outputs + channel) * length + front + start..][..count]
                };
                add_products(std::array::from_fn(row), &source[start..], &offsets, out);
            }
        }
    });
    out
}

/// Adds the products of a few rows of output gradients with all windows: `out` (rows, windows).
fn add_products(rows: [&[f32]; CORRELATE.0], source: &[f32], offsets: &[usize], out: &mut [f32]) {
    for first in (0..offsets.len()).step_by(CORRELATE.1) {
        let window = |q: usize| offsets[(first + q).min(offsets.len() - 1)];
        let mut sums = [[0.0; CORRELATE.1]; CORRELATE.0];
        cpu::correlate_rows(rows, source, &std::array::from_fn(window), &mut sums);
        for (out, sums) in out.chunks_exact_mut(offsets.len()).zip(sums) {
            out[first..].iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ConvSpec;
    use crate::nn::conv::plain_sum;

    /// Inputs, outputs, kernel, stride, padding, dilation.
    type Case = ([usize; 4], usize, (usize, usize), usize, usize, usize);

    fn sizes((xs, outputs, kernel, stride, padding, dilation): Case) -> Sizes {
        let spec = ConvSpec { stride, padding, dilation, groups: 1 };
        Sizes::new(&xs, &[outputs, xs[1], kernel.0, kernel.1], spec).unwrap()
    }

    #[test]
    fn results_and_gradients_are_those_of_the_plain_sum() {
        let cases = [
            ([2, 5, 17, 20], 9, (3, 3), 1, 1, 1),
            ([1, 16, 9, 70], 19, (3, 3), 1, 0, 1),
            ([2, 4, 33, 30], 8, (3, 3), 2, 1, 1),
            ([1, 3, 29, 35], 6, (7, 7), 4, 3, 1),
            ([3, 2, 8, 9], 3, (2, 3), 1, 2, 1),
            ([1, 6, 16, 16], 5, (2, 2), 2, 0, 1),
            ([1, 4, 20, 31], 7, (3, 3), 1, 6, 6),
            ([1, 4, 20, 31], 7, (3, 1), 3, 4, 2),
            // More output rows than are computed at a time, and longer than a block of the weight gradient.
            ([1, 2, 70, 90], 3, (3, 3), 1, 1, 1),
        ];
        for case in cases {
            plain_sum::check(&sizes(case), forward, backward);
        }
    }

    #[test]
    fn an_image_has_the_same_bits_alone_and_in_a_batch() {
        plain_sum::check_batch(&sizes(([3, 20, 21, 26], 27, (3, 3), 1, 1, 1)), forward);
        plain_sum::check_batch(&sizes(([3, 3, 41, 53], 12, (7, 7), 4, 3, 1)), forward);
    }

    #[test]
    fn results_have_the_same_bits_for_any_number_of_threads() {
        plain_sum::check_threads(&sizes(([2, 20, 30, 34], 27, (3, 3), 1, 1, 1)), forward, backward);
        plain_sum::check_threads(&sizes(([2, 3, 41, 53], 12, (7, 7), 4, 3, 1)), forward, backward);
    }
}
