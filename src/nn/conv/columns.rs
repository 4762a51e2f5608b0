//! Convolution as a matrix product: the pixels under every kernel tap are laid out as rows ("columns" of the classic
//! im2col), for a few output rows at a time so that the buffer stays small. A 1×1 kernel with stride 1 needs no copy.

use super::op::{Backward, InputAndWeight, Sizes};
use crate::nn::cpu::{self, Matrix, Threads};
use rayon::prelude::*;
use std::ops::Range;

/// Largest column buffer in values when all threads work on one image (8 MB, so that it stays in the last-level cache); a
/// single output row may exceed it.
const SHARED_VALUES: usize = 2 << 20;
/// The same when every thread works on an image of its own (half a second-level cache).
const OWN_VALUES: usize = 96 << 10;
/// Pixels of a tile at least: products with fewer columns are cut along their depth in another way, and then sums would depend on
/// how an image is cut, which depends on the number of images.
pub(super) const LEAST_PIXELS: usize = 65;
/// Partial weight gradients, one for each image, may hold that many values.
pub(super) const PARTIAL_VALUES: usize = 16 << 20;

/// One group of one image: what a matrix product is about.
struct Job<'a> {
    sizes: &'a Sizes,
    in_channels: usize,
    out_channels: usize,
    /// Who computes the products: one thread an image and group, or all threads one after the other.
    threads: Threads,
}

impl<'a> Job<'a> {
    fn new(sizes: &'a Sizes) -> Self {
        let groups = sizes.spec.groups;
        let (in_channels, out_channels) = (sizes.in_channels / groups, sizes.out_channels / groups);
        // Depends on sizes alone, so that results do not depend on the number of threads.
        let partial = sizes.batch * groups * out_channels * in_channels * sizes.area();
        let own = sizes.batch * groups > 1 && partial <= PARTIAL_VALUES;
        Self { sizes, in_channels, out_channels, threads: if own { Threads::One } else { Threads::All } }
    }

    /// How channels of one image are worked on by [`for_each`]: one after the other where a thread owns the image.
    fn inner(&self) -> Threads {
        match self.threads {
            Threads::One => Threads::All,
            Threads::All => Threads::One,
        }
    }

    /// Length of a kernel of one output channel.
    fn depth(&self) -> usize {
        self.in_channels * self.sizes.area()
    }

    /// The columns of an image are the image itself.
    fn is_pointwise(&self) -> bool {
        self.sizes.area() == 1 && self.sizes.spec.stride == 1 && self.sizes.spec.padding == 0
    }

    /// The ranges of output rows worked on at a time.
    fn tiles(&self) -> Vec<Range<usize>> {
        let height = self.sizes.out_height;
        let values = if self.threads == Threads::One { OWN_VALUES } else { SHARED_VALUES };
        let least = LEAST_PIXELS.div_ceil(self.sizes.out_width);
        let rows = if self.is_pointwise() { height } else { (values / (self.depth() * self.sizes.out_width)).max(least) };
        // Of about the same length, so that the last is no leftover.
        let rows = height.div_ceil((height / rows.clamp(1, height)).max(1));
        (0..height).step_by(rows).map(|start| start..(start + rows).min(height)).collect()
    }

    /// For every image and group: (image, group).
    fn pieces(&self) -> impl Iterator<Item = (usize, usize)> {
        let groups = self.sizes.spec.groups;
        (0..self.sizes.batch * groups).map(move |i| (i / groups, i % groups))
    }

    fn input_start(&self, (image, group): (usize, usize)) -> usize {
        (image * self.sizes.in_channels + group * self.in_channels) * self.sizes.in_plane()
    }

    fn output_start(&self, (image, group): (usize, usize)) -> usize {
        (image * self.sizes.out_channels + group * self.out_channels) * self.sizes.out_plane()
    }

    fn weight_start(&self, (_, group): (usize, usize)) -> usize {
        group * self.out_channels * self.depth()
    }

    /// A buffer for the columns of any tile.
    fn buffer(&self, tiles: &[Range<usize>]) -> Vec<f32> {
        let rows = if self.is_pointwise() { 0 } else { tiles.first().map_or(0, Range::len) };
        vec![0.0; rows * self.depth() * self.sizes.out_width]
    }
}

/// # Shapes
/// `xs` (B, C, H, W), `weight` (O, C/groups, kh, kw), `bias` (O) or (B·O) → (B, O, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let job = Job::new(sizes);
    let (plane, depth, tiles) = (sizes.out_plane(), job.depth(), job.tiles());
    let mut out = match bias {
        Some(bias) => cpu::fill_chunks(sizes.batch * sizes.out_channels * plane, plane, |i, chunk| {
            chunk.fill(bias[i % bias.len()]);
        }),
        None => cpu::zeros(sizes.batch * sizes.out_channels * plane),
    };
    let compute = |piece: (usize, usize), out: &mut [f32], buffer: &mut [f32]| {
        let xs = &xs[job.input_start(piece)..];
        let kernel = Matrix::rows(&weight[job.weight_start(piece)..], depth);
        for tile in &tiles {
            let (start, count) = (tile.start * sizes.out_width, tile.len() * sizes.out_width);
            let columns = columns_of(&job, xs, tile, buffer);
            let out = &mut out[start..];
            cpu::gemm((job.out_channels, count, depth), kernel, columns, out, plane, bias.is_some(), 1.0, job.threads);
        }
    };
    let pieces: Vec<_> = job.pieces().zip(out.chunks_mut(job.out_channels * plane)).collect();
    for_each(job.threads, pieces, || job.buffer(&tiles), |(piece, out), buffer| compute(piece, out, buffer));
    out
}

/// Runs `work` for every item. [`Threads::One`]: one thread an item, each thread with a buffer of its own; [`Threads::All`]:
/// one item after the other.
pub(super) fn for_each<T: Send, B: Send>(
    threads: Threads,
    items: Vec<T>,
    buffer: impl Fn() -> B + Sync + Send,
    work: impl Fn(T, &mut B) + Sync,
) {
    match threads {
        Threads::One => items.into_par_iter().for_each_init(buffer, |buffer, item| work(item, buffer)),
        Threads::All => {
            let mut buffer = buffer();
            items.into_iter().for_each(|item| work(item, &mut buffer));
        }
    }
}

/// See [`forward`] for shapes.
pub fn backward(sizes: &Sizes, given: &Backward) -> InputAndWeight {
    let Backward { xs, weight, wanted, .. } = *given;
    let job = Job::new(sizes);
    let tiles = job.tiles();
    let images = Images { job: &job, tiles: &tiles, given };
    let mut for_xs = cpu::zeros(if wanted.0 { xs.len() } else { 0 });
    let group = job.out_channels * job.depth();
    // One partial gradient for each image and group; summed in the order of images below.
    let copies = if job.threads == Threads::One { sizes.batch } else { 1 };
    let mut partial = cpu::zeros(if wanted.1 { copies * weight.len() } else { 0 });
    let mut targets_x = for_xs.chunks_mut(job.in_channels * sizes.in_plane());
    let mut targets_w = partial.chunks_mut(group);
    match job.threads {
        Threads::One => {
            let items: Vec<_> = job.pieces().map(|piece| (piece, targets_x.next(), targets_w.next())).collect();
            for_each(
                job.threads,
                items,
                || job.buffer(&tiles),
                |(piece, for_xs, for_weight), buffer| {
                    images.backward(piece, for_xs, for_weight, buffer);
                },
            );
        }
        Threads::All => {
            let mut buffer = job.buffer(&tiles);
            let mut weights: Vec<_> = targets_w.collect();
            for piece in job.pieces() {
                let for_weight = weights.get_mut(piece.1).map(|target| &mut **target);
                images.backward(piece, targets_x.next(), for_weight, &mut buffer);
            }
        }
    }
    let for_weight = wanted.1.then(|| cpu::sum_of_parts(partial, weight.len()));
    (wanted.0.then_some(for_xs), for_weight)
}

/// The arguments of [`backward`], by image and group.
struct Images<'a> {
    job: &'a Job<'a>,
    tiles: &'a [Range<usize>],
    given: &'a Backward<'a>,
}

impl Images<'_> {
    /// Adds the gradients of one image and group to the targets that are there.
    fn backward(
        &self,
        piece: (usize, usize),
        mut for_xs: Option<&mut [f32]>,
        mut for_weight: Option<&mut [f32]>,
        buffer: &mut [f32],
    ) {
        let (job, sizes) = (self.job, self.job.sizes);
        let (plane, depth) = (sizes.out_plane(), job.depth());
        for tile in self.tiles {
            let (start, count) = (tile.start * sizes.out_width, tile.len() * sizes.out_width);
            let g = Matrix::rows(&self.given.gradient[job.output_start(piece) + start..], plane);
            if let Some(out) = &mut for_weight {
                let columns = columns_of(job, &self.given.xs[job.input_start(piece)..], tile, buffer);
                cpu::gemm((job.out_channels, depth, count), g, columns.t(), out, depth, true, 1.0, job.threads);
            }
            if let Some(out) = &mut for_xs {
                let kernel = Matrix::rows(&self.given.weight[job.weight_start(piece)..], depth).t();
                let target = if job.is_pointwise() { &mut **out } else { &mut buffer[..depth * count] };
                cpu::gemm((depth, count, job.out_channels), kernel, g, target, count, false, 1.0, job.threads);
                if !job.is_pointwise() {
                    add_columns(job, buffer, tile, out);
                }
            }
        }
    }
}

/// The columns of one tile of output rows: (depth, tile rows · W').
fn columns_of<'a>(job: &Job, xs: &'a [f32], tile: &Range<usize>, buffer: &'a mut [f32]) -> Matrix<'a> {
    let sizes = job.sizes;
    let count = tile.len() * sizes.out_width;
    if job.is_pointwise() {
        return Matrix::rows(xs, count);
    }
    let buffer = &mut buffer[..job.depth() * count];
    let channels: Vec<_> = buffer.chunks_mut(sizes.area() * count).enumerate().collect();
    let taps: Vec<_> = (0..sizes.kernel_width).map(|kx| ColumnTap::new(sizes, kx)).collect();
    for_each(job.inner(), channels, Vec::new, |(channel, rows), phases| {
        let plane = &xs[channel * sizes.in_plane()..][..sizes.in_plane()];
        copy_taps(sizes, plane, &taps, tile, (rows, count, 0), phases);
    });
    Matrix::rows(buffer, count)
}

/// Output positions whose tap at `offset` falls inside the input, and the input position of the first of them.
fn inside(sizes: &Sizes, offset: usize, size: usize, out: usize) -> (Range<usize>, usize) {
    let (stride, padding) = (sizes.spec.stride, sizes.spec.padding);
    let start = padding.saturating_sub(offset).div_ceil(stride).min(out);
    let end = (size + padding).saturating_sub(offset).div_ceil(stride).clamp(start, out);
    (start..end, (start * stride + offset).saturating_sub(padding))
}

/// Lays out the pixels under all taps of one channel: `rows` (kh·kw, pitch), of which tile rows · W' values from `first` on are
/// written. With a stride, the pixels of an input row that lie one stride apart are brought together once, and then every tap is a copy.
pub(super) fn copy_taps(
    sizes: &Sizes,
    plane: &[f32],
    taps: &[ColumnTap],
    tile: &Range<usize>,
    (rows, pitch, first): (&mut [f32], usize, usize),
    phases: &mut Vec<f32>,
) {
    let (out_width, stride) = (sizes.out_width, sizes.spec.stride);
    let phase = sizes.width.div_ceil(stride);
    phases.resize(if stride > 1 { stride * phase } else { 0 }, 0.0);
    for (ky, rows) in rows.chunks_exact_mut(taps.len() * pitch).enumerate() {
        for (i, y) in tile.clone().enumerate() {
            let source = sizes.source_row(y, ky).map(|source| &plane[source * sizes.width..][..sizes.width]);
            if let Some(line) = source.filter(|_| stride > 1) {
                deinterleave(line, stride, phases);
            }
            for (tap, row) in taps.iter().zip(rows.chunks_exact_mut(pitch)) {
                let out = &mut row[first + i * out_width..][..out_width];
                let Some(line) = source.filter(|_| !tap.columns.is_empty()) else {
                    out.fill(0.0);
                    continue;
                };
                let from =
                    if stride > 1 { &phases[tap.first % stride * phase + tap.first / stride..] } else { &line[tap.first..] };
                out[..tap.columns.start].fill(0.0);
                out[tap.columns.end..].fill(0.0);
                out[tap.columns.clone()].copy_from_slice(&from[..tap.columns.len()]);
            }
        }
    }
}

cpu::vectorised! {
    /// Values i, i + stride, i + 2·stride, … of a line go into row i of `phases` (stride, ⌈length / stride⌉).
    fn deinterleave(line: &[f32], stride: usize, phases: &mut [f32]) {
        match stride {
            2 => split::<2>(line, phases),
            4 => split::<4>(line, phases),
            _ => {
                for (i, phase) in phases.chunks_exact_mut(line.len().div_ceil(stride)).enumerate() {
                    phase.iter_mut().zip(line[i..].iter().step_by(stride)).for_each(|(out, x)| *out = *x);
                }
            }
        }
    }
}

/// [`deinterleave`] for a stride the compiler knows.
#[inline(always)]
fn split<const STRIDE: usize>(line: &[f32], phases: &mut [f32]) {
    let (groups, rest) = line.as_chunks::<STRIDE>();
    for (i, phase) in phases.chunks_exact_mut(line.len().div_ceil(STRIDE)).enumerate() {
        for (out, group) in phase.iter_mut().zip(groups) {
            *out = group[i];
        }
        if let (Some(x), Some(out)) = (rest.get(i), phase.get_mut(groups.len())) {
            *out = *x;
        }
    }
}

/// Adds the columns of one tile back to the pixels they came from. `out` (C/groups, H, W).
fn add_columns(job: &Job, columns: &[f32], tile: &Range<usize>, out: &mut [f32]) {
    let sizes = job.sizes;
    let count = tile.len() * sizes.out_width;
    let channels: Vec<_> = out.chunks_mut(sizes.in_plane()).enumerate().collect();
    for_each(
        job.inner(),
        channels,
        || (),
        |(channel, plane), ()| {
            let rows = &columns[channel * sizes.area() * count..][..sizes.area() * count];
            for (tap, row) in rows.chunks_exact(count).enumerate() {
                add_tap(sizes, row, tap, tile, plane);
            }
        },
    );
}

/// Adds the values under one tap, (tile rows · W'), to the pixels they came from.
pub(super) fn add_tap(sizes: &Sizes, row: &[f32], tap: usize, tile: &Range<usize>, plane: &mut [f32]) {
    let (ky, kx) = (tap / sizes.kernel_width, tap % sizes.kernel_width);
    let (ColumnTap { columns, first }, stride) = (ColumnTap::new(sizes, kx), sizes.spec.stride);
    if columns.is_empty() {
        return;
    }
    for (y, xs) in tile.clone().zip(row.chunks_exact(sizes.out_width)) {
        let Some(target) = sizes.source_row(y, ky) else { continue };
        let line = &mut plane[target * sizes.width + first..(target + 1) * sizes.width];
        let xs = &xs[columns.clone()];
        if stride == 1 {
            line.iter_mut().zip(xs).for_each(|(out, x)| *out += x);
        } else {
            line.iter_mut().step_by(stride).zip(xs).for_each(|(out, x)| *out += x);
        }
    }
}

/// Where the taps of one kernel column read.
pub(super) struct ColumnTap {
    /// Output columns for which it falls inside the input.
    columns: Range<usize>,
    /// The input column of the first of them.
    first: usize,
}

impl ColumnTap {
    pub(super) fn new(sizes: &Sizes, kx: usize) -> Self {
        let (columns, first) = inside(sizes, kx * sizes.spec.dilation, sizes.width, sizes.out_width);
        Self { columns, first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ConvSpec;
    use crate::nn::conv::plain_sum;

    #[test]
    fn an_image_has_the_same_bits_alone_and_in_a_batch() {
        for (shape, outputs, kernel) in
            [([3, 64, 20, 20], 64, 3), ([2, 320, 15, 20], 64, 3), ([2, 96, 9, 70], 40, 5), ([3, 700, 6, 5], 30, 1)]
        {
            let spec = ConvSpec { padding: kernel / 2, ..ConvSpec::default() };
            plain_sum::check_batch(&Sizes::new(&shape, &[outputs, shape[1], kernel, kernel], spec).unwrap(), forward);
        }
    }
}
