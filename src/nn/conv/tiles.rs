//! Convolution with factors rounded to bf16, on the matrix unit ([`crate::nn::allow_bf16`]). Nothing is copied per kernel tap: tiles
//! are read from padded planes, and a tap is a distance in memory, as in [`super::plane`].
//!
//! Forward, channels are summed: two planes are interleaved. For the gradient of the weight, pixels are summed: planes lie as they
//! are, and of the gradient two pixels are interleaved.

use super::op::{Backward, InputAndWeight, Sizes};
use crate::nn::cpu;
use crate::nn::cpu::tiles::{self, BLOCK, Block, DEPTH, Factors, SIDE, Step, Tiles};
use rayon::prelude::*;

/// Room behind the last plane: tiles at the end reach beyond it.
const ROOM: usize = BLOCK;

/// Stride 1, and enough channels to fill tiles with.
pub fn wins(sizes: &Sizes) -> bool {
    let spec = sizes.spec;
    cpu::bf16_chosen()
        && (spec.groups, spec.stride) == (1, 1)
        && sizes.kernel_height == sizes.kernel_width
        && spec.padding <= spec.dilation * (sizes.kernel_height - 1)
        && sizes.in_channels >= SIDE
        && sizes.out_channels >= SIDE
        && sizes.out_plane() >= SIDE
}

/// How the padded planes of one side lie: pixel (y, x) of the result reads (y, x) of a padded plane under the first tap.
struct Padded {
    channels: usize,
    height: usize,
    width: usize,
    padding: usize,
    /// Of a padded row.
    pitch: usize,
    /// Of a padded plane.
    len: usize,
}

impl Padded {
    fn new(channels: usize, (height, width): (usize, usize), padding: usize) -> Self {
        let pitch = width + 2 * padding;
        Self { channels, height, width, padding, pitch, len: pitch * (height + 2 * padding) }
    }

    /// Channels rounded up.
    fn depth(&self) -> usize {
        self.channels.next_multiple_of(DEPTH)
    }

    /// Where rows of pixels lie in a padded plane.
    fn rows(&self) -> impl Iterator<Item = usize> {
        (0..self.height).map(|y| (y + self.padding) * self.pitch + self.padding)
    }

    fn plane<'a>(&self, xs: &'a [f32], image: usize, channel: usize) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let plane = self.height * self.width;
        xs[(image * self.channels + channel) * plane..][..plane].chunks_exact(self.width)
    }

    /// Planes in pairs, interleaved: (batch, depth/2, len, 2).
    fn interleaved(&self, xs: &[f32], batch: usize) -> Vec<u16> {
        let pairs = self.depth() / 2;
        let zeros = vec![0.0; self.width];
        cpu::fill_chunks(batch * pairs * self.len * 2 + 2 * ROOM, self.len * 2, |index, out: &mut [u16]| {
            let (image, channel) = (index / pairs, index % pairs * 2);
            if image >= batch || channel >= self.channels {
                return;
            }
            let mut second = (channel + 1 < self.channels).then(|| self.plane(xs, image, channel + 1));
            for (first, at) in self.plane(xs, image, channel).zip(self.rows()) {
                let second = second.as_mut().and_then(Iterator::next).unwrap_or(&zeros);
                tiles::interleave(first, second, &mut out[2 * at..][..2 * self.width]);
            }
        })
    }

    /// Planes as they are: (batch, depth, len).
    fn plain(&self, xs: &[f32], batch: usize) -> Vec<u16> {
        let depth = self.depth();
        cpu::fill_chunks(batch * depth * self.len + ROOM + DEPTH, self.len, |index, out: &mut [u16]| {
            let (image, channel) = (index / depth, index % depth);
            if image < batch && channel < self.channels {
                let rows = self.plane(xs, image, channel).zip(self.rows());
                rows.for_each(|(row, at)| tiles::narrow(row, &mut out[at..][..self.width]));
            }
        })
    }
}

/// 16 pixels of the result: where they start in a padded plane, and (first, count, target) of those that are kept.
struct Spot {
    source: usize,
    pieces: Vec<(usize, usize, usize)>,
}

/// Tiles that cover a result of `height` rows, in padded rows of `pitch`: row by row, or across rows where that takes fewer.
fn spots((height, width): (usize, usize), pitch: usize) -> Vec<Spot> {
    let across = ((height - 1) * pitch + width).div_ceil(SIDE);
    if height * width.div_ceil(SIDE) <= across {
        let spot = |y: usize, x: usize| Spot { source: y * pitch + x, pieces: vec![(0, SIDE.min(width - x), y * width + x)] };
        return (0..height).flat_map(|y| (0..width).step_by(SIDE).map(move |x| spot(y, x))).collect();
    }
    let piece = |source: usize, y: usize| {
        let (start, end) = (source.max(y * pitch), (source + SIDE).min(y * pitch + width));
        (start < end && y < height).then(|| (start - source, end - start, y * width + start - y * pitch))
    };
    let spot = |source: usize| Spot {
        source,
        pieces: (source / pitch..=(source + SIDE - 1) / pitch).filter_map(|y| piece(source, y)).collect(),
    };
    (0..across).map(|tile| spot(tile * SIDE)).collect()
}

/// A convolution as sums over channels and taps.
struct Sum<'a> {
    padded: Padded,
    /// Of the result.
    size: (usize, usize),
    outputs: usize,
    batch: usize,
    taps: &'a [usize],
}

impl Sum<'_> {
    /// `kernel(first, rows)` fills the weights of up to 16 outputs from the first on, each (taps, channels rounded up).
    fn run(&self, xs: &[f32], kernel: impl Fn(usize, &mut [u16]) + Sync, bias: Option<&[f32]>) -> Vec<f32> {
        let (depth, plane) = (self.padded.depth(), self.size.0 * self.size.1);
        let a_pitch = self.taps.len() * depth;
        let mut weights = vec![0; self.outputs.next_multiple_of(BLOCK) * a_pitch];
        let used = &mut weights[..self.outputs * a_pitch];
        used.par_chunks_mut(SIDE * a_pitch).enumerate().for_each(|(index, rows)| kernel(index * SIDE, rows));
        let inputs = self.padded.interleaved(xs, self.batch);
        let step = |tap: usize, part: usize| [tap * depth + part * DEPTH, 2 * (part * SIDE * self.padded.len + self.taps[tap])];
        let steps: Vec<Step> = (0..self.taps.len()).flat_map(|tap| (0..depth / DEPTH).map(move |part| step(tap, part))).collect();
        let spots = spots(self.size, self.padded.pitch);
        let each = if self.outputs.is_multiple_of(BLOCK) { BLOCK } else { self.outputs };
        cpu::fill_chunks(self.batch * self.outputs * plane, each * plane, |index, out| {
            for (part, out) in out.chunks_mut(BLOCK * plane).enumerate() {
                let row = index * each + part * BLOCK;
                let (image, first) = (row / self.outputs, row % self.outputs);
                let (a, b) = (&weights[first * a_pitch..], &inputs[image * depth * self.padded.len..]);
                let biases: Vec<f32> =
                    (row..row + out.len() / plane).map(|row| bias.map_or(0.0, |bias| bias[row % bias.len()])).collect();
                Tiles::with(|unit| {
                    let mut block = [0.0; BLOCK * BLOCK];
                    for pair in spots.chunks(2) {
                        let other = pair.last().map_or(0, |spot| spot.source - pair[0].source);
                        let b = &b[2 * pair[0].source..];
                        let factors = Factors { a, a_pitch, b, b_pitch: 2 * self.padded.len, b_other: 2 * other };
                        unit.block(factors, &steps, &mut block);
                        store(&block, pair, out, plane, &biases);
                    }
                });
            }
        })
    }
}

/// Takes the pixels of two spots out of a block.
fn store(block: &Block, spots: &[Spot], out: &mut [f32], plane: usize, biases: &[f32]) {
    for ((row, out), bias) in block.chunks_exact(BLOCK).zip(out.chunks_exact_mut(plane)).zip(biases) {
        for (spot, values) in spots.iter().zip(row.chunks_exact(SIDE)) {
            for &(first, count, target) in &spot.pieces {
                out[target..][..count].iter_mut().zip(&values[first..]).for_each(|(out, x)| *out = x + bias);
            }
        }
    }
}

/// Distances of the taps in a padded plane.
fn taps(sizes: &Sizes, pitch: usize) -> Vec<usize> {
    let dilation = sizes.spec.dilation;
    (0..sizes.area()).map(|tap| (tap / sizes.kernel_width * pitch + tap % sizes.kernel_width) * dilation).collect()
}

/// # Shapes
/// `xs` (B, C, H, W), `weight` (O, C, kh, kw), `bias` (O) or (B·O) → (B, O, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let padded = Padded::new(sizes.in_channels, (sizes.height, sizes.width), sizes.spec.padding);
    let (depth, area, each) = (padded.depth(), sizes.area(), sizes.in_channels * sizes.area());
    let kernel = |first: usize, rows: &mut [u16]| {
        let mut line = vec![0; each];
        for (i, row) in rows.chunks_exact_mut(area * depth).enumerate() {
            tiles::narrow(&weight[(first + i) * each..][..each], &mut line);
            for (channel, taps) in line.chunks_exact(area).enumerate() {
                taps.iter().enumerate().for_each(|(tap, x)| row[tap * depth + channel] = *x);
            }
        }
    };
    let taps = taps(sizes, padded.pitch);
    let size = (sizes.out_height, sizes.out_width);
    Sum { padded, size, outputs: sizes.out_channels, batch: sizes.batch, taps: &taps }.run(xs, kernel, bias)
}

/// See [`forward`] for shapes.
pub fn backward(sizes: &Sizes, given: &Backward) -> InputAndWeight {
    (given.wanted.0.then(|| for_inputs(sizes, given)), given.wanted.1.then(|| for_weight(sizes, given)))
}

/// The convolution of the gradient with the kernel turned around.
fn for_inputs(sizes: &Sizes, given: &Backward) -> Vec<f32> {
    let (channels, area, dilation) = (sizes.in_channels, sizes.area(), sizes.spec.dilation);
    let padding = dilation * (sizes.kernel_height - 1) - sizes.spec.padding;
    let padded = Padded::new(sizes.out_channels, (sizes.out_height, sizes.out_width), padding);
    let depth = padded.depth();
    let kernel = |first: usize, rows: &mut [u16]| {
        let mut line = vec![0; rows.len() / depth];
        for output in 0..sizes.out_channels {
            tiles::narrow(&given.weight[(output * channels + first) * area..][..line.len()], &mut line);
            for (row, taps) in rows.chunks_exact_mut(area * depth).zip(line.chunks_exact(area)) {
                taps.iter().rev().enumerate().for_each(|(tap, x)| row[tap * depth + output] = *x);
            }
        }
    };
    let taps = taps(sizes, padded.pitch);
    let size = (sizes.height, sizes.width);
    Sum { padded, size, outputs: channels, batch: sizes.batch, taps: &taps }.run(given.gradient, kernel, None)
}

/// Sums over the pixels of all images, in their order.
fn for_weight(sizes: &Sizes, given: &Backward) -> Vec<f32> {
    let padded = Padded::new(sizes.in_channels, (sizes.height, sizes.width), sizes.spec.padding);
    let (taps, area, depth) = (taps(sizes, padded.pitch), sizes.area(), padded.depth());
    let columns = sizes.out_channels.next_multiple_of(BLOCK);
    let inputs = padded.plain(given.xs, sizes.batch);
    let pixels = ((sizes.out_height - 1) * padded.pitch + sizes.out_width).next_multiple_of(DEPTH);
    let gradient = pixel_pairs(sizes, given.gradient, padded.pitch, pixels, columns);
    let steps: Vec<Step> = (0..pixels / DEPTH).map(|part| [part * DEPTH, part * SIDE * 2 * columns]).collect();
    // Blocks of 32 channels by taps.
    let sums = cpu::fill_chunks(depth * area * columns, BLOCK * columns, |index, sums| {
        let (first, tap) = (index / area * BLOCK, taps[index % area]);
        Tiles::with(|unit| {
            let mut block = [0.0; BLOCK * BLOCK];
            for image in 0..sizes.batch {
                let a = &inputs[(image * depth + first) * padded.len + tap..];
                for column in (0..columns).step_by(BLOCK) {
                    let b = &gradient[image * pixels * columns + 2 * column..];
                    let factors = Factors { a, a_pitch: padded.len, b, b_pitch: 2 * columns, b_other: 2 * SIDE };
                    unit.block(factors, &steps, &mut block);
                    for (row, sums) in block.chunks_exact(BLOCK).zip(sums.chunks_exact_mut(columns)) {
                        sums[column..][..BLOCK].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                    }
                }
            }
        });
    });
    let each = sizes.in_channels * area;
    let at = |channel: usize, tap: usize| ((channel / BLOCK * area + tap) * BLOCK + channel % BLOCK) * columns;
    cpu::fill_chunks(sizes.out_channels * each, SIDE * each, |index, out| {
        // By tiles, so that what is written stays in the cache.
        let mut tile = [[0.0; SIDE]; SIDE];
        for start in (0..each).step_by(SIDE) {
            let width = SIDE.min(each - start);
            for (i, column) in (start..start + width).zip(&mut tile) {
                column.copy_from_slice(&sums[at(i / area, i % area) + index * SIDE..][..SIDE]);
            }
            for (row, out) in out.chunks_exact_mut(each).enumerate() {
                out[start..][..width].iter_mut().zip(&tile).for_each(|(out, column)| *out = column[row]);
            }
        }
    })
}

/// The gradient in padded rows of `pitch`, two pixels interleaved: (batch, pixels/2, columns, 2).
fn pixel_pairs(sizes: &Sizes, gradient: &[f32], pitch: usize, pixels: usize, columns: usize) -> Vec<u16> {
    let (plane, width) = (sizes.out_plane(), sizes.out_width);
    cpu::fill_chunks(sizes.batch * pixels * columns + 2 * BLOCK, pixels * columns, |image, out: &mut [u16]| {
        if image >= sizes.batch {
            return;
        }
        let mut lines = vec![0; SIDE * pixels];
        for first in (0..sizes.out_channels).step_by(SIDE) {
            let count = SIDE.min(sizes.out_channels - first);
            for (channel, line) in lines.chunks_exact_mut(pixels).enumerate().take(count) {
                let plane = &gradient[(image * sizes.out_channels + first + channel) * plane..][..plane];
                for (y, row) in plane.chunks_exact(width).enumerate() {
                    tiles::narrow(row, &mut line[y * pitch..][..width]);
                }
            }
            for (pair, out) in out.chunks_exact_mut(2 * columns).enumerate() {
                for (channel, out) in out[2 * first..][..2 * count].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    out.copy_from_slice(&lines[channel * pixels + 2 * pair..][..2]);
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ConvSpec;
    use crate::nn::conv::plain_sum;

    /// Batch, channels, height, width; outputs, kernel; padding, dilation.
    const CASES: [([usize; 4], usize, usize, usize, usize); 6] = [
        ([2, 33, 6, 32], 40, 3, 1, 1),
        ([3, 64, 5, 7], 64, 3, 1, 1),
        ([1, 20, 9, 20], 17, 1, 0, 1),
        ([2, 16, 8, 16], 96, 3, 1, 1),
        ([1, 35, 11, 13], 16, 3, 2, 2),
        ([2, 16, 9, 10], 16, 5, 0, 1),
    ];

    fn cases() -> impl Iterator<Item = Sizes> {
        CASES.into_iter().map(|(shape, outputs, kernel, padding, dilation)| {
            let spec = ConvSpec { padding, dilation, ..ConvSpec::default() };
            Sizes::new(&shape, &[outputs, shape[1], kernel, kernel], spec).unwrap()
        })
    }

    #[test]
    fn results_and_gradients_are_those_of_rounded_arguments() {
        if !tiles::bf16_available() {
            return eprintln!("skipped: this processor has no matrix unit");
        }
        let round = |x| f32::from_bits(u32::from(tiles::rounded(x)) << 16);
        cases().for_each(|sizes| plain_sum::check_with(&sizes, round, forward, backward));
    }

    #[test]
    fn an_image_has_the_same_bits_alone_and_in_a_batch_and_for_any_number_of_threads() {
        if !tiles::bf16_available() {
            return eprintln!("skipped: this processor has no matrix unit");
        }
        for sizes in cases() {
            plain_sum::check_batch(&sizes, forward);
            plain_sum::check_threads(&sizes, forward, backward);
        }
    }

    #[test]
    fn spots_cover_every_pixel_once() {
        for (height, width, pitch) in [(4, 32, 34), (5, 7, 9), (3, 20, 22), (1, 17, 17), (6, 16, 18), (9, 5, 13)] {
            let mut seen = vec![0; height * width];
            for spot in spots((height, width), pitch) {
                for (first, count, target) in spot.pieces {
                    assert!(first + count <= SIDE);
                    for i in 0..count {
                        let at = spot.source + first + i;
                        assert_eq!(target + i, at / pitch * width + at % pitch);
                        seen[target + i] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|count| *count == 1), "{height} {width} {pitch}");
        }
    }
}
