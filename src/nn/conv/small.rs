//! Convolution of planes of few pixels: as in [`super::columns`], with the pixels of several images side by side in one product.
//!
//! A product is the faster the more columns it has, and the lowest levels of small networks have 8 or 32 pixels an image. Products that
//! have too few are filled up with zeros, so that an image has the same bits alone and in any batch. Pointwise convolutions, which
//! need no copies the other way, are left to it.

use super::columns::{ColumnTap, LEAST_PIXELS, PARTIAL_VALUES, add_tap, copy_taps, for_each};
use super::op::{Backward, InputAndWeight, Sizes};
use crate::nn::cpu::{self, Matrix, Threads};
use std::ops::Range;

/// Columns of a product at best: twice what its kernels of full width take at once.
const PRODUCT_PIXELS: usize = 128;
/// Planes of at least that many pixels make products of their own that are wide enough.
const ENOUGH_PIXELS: usize = LEAST_PIXELS - 1;

/// The method applies, and saves time.
pub fn wins(sizes: &Sizes) -> bool {
    sizes.spec.groups == 1 && sizes.area() > 1 && sizes.out_plane() < ENOUGH_PIXELS
}

/// How the images of a batch are cut into runs whose pixels go into one product.
struct Runs<'a> {
    sizes: &'a Sizes,
    /// Images of a run, no more than a product of full speed needs; the last run may have fewer.
    images: usize,
}

impl<'a> Runs<'a> {
    fn new(sizes: &'a Sizes) -> Self {
        let plane = sizes.out_plane().max(1);
        Self { sizes, images: (PRODUCT_PIXELS / plane).max(LEAST_PIXELS.div_ceil(plane)) }
    }

    fn count(&self) -> usize {
        self.sizes.batch.div_ceil(self.images)
    }

    /// Length of a kernel of one output channel.
    fn depth(&self) -> usize {
        self.sizes.in_channels * self.sizes.area()
    }

    /// Columns of a product of so many images.
    fn width(&self, images: usize) -> usize {
        (images * self.sizes.out_plane()).max(LEAST_PIXELS)
    }

    /// The part of a run among the values of a batch, `image` values an image.
    fn part(&self, run: usize, image: usize) -> Range<usize> {
        run * self.images * image..self.sizes.batch.min((run + 1) * self.images) * image
    }

    /// Values of all inputs of a run.
    fn inputs(&self) -> usize {
        self.images * self.sizes.in_channels * self.sizes.in_plane()
    }

    /// Values of all outputs of a run.
    fn outputs(&self) -> usize {
        self.images * self.sizes.out_channels * self.sizes.out_plane()
    }

    /// Outputs lie where inputs do.
    fn keeps_size(&self) -> bool {
        let sizes = self.sizes;
        sizes.spec.stride == 1 && (sizes.out_height, sizes.out_width) == (sizes.height, sizes.width)
    }

    /// The pixels under all taps, (depth, width); `xs` are the inputs of one run.
    fn columns(&self, xs: &[f32], columns: &mut Vec<f32>) {
        let sizes = self.sizes;
        let width = self.width(xs.len() / (sizes.in_channels * sizes.in_plane()));
        columns.clear();
        columns.resize(self.depth() * width, 0.0);
        let taps: Vec<_> = (0..sizes.kernel_width).map(|kx| ColumnTap::new(sizes, kx)).collect();
        let mut phases = Vec::new();
        for (i, plane) in xs.chunks_exact(sizes.in_plane()).enumerate() {
            let (image, channel) = (i / sizes.in_channels, i % sizes.in_channels);
            let rows = &mut columns[channel * sizes.area() * width..][..sizes.area() * width];
            if self.keeps_size() {
                for (tap, row) in rows.chunks_exact_mut(width).enumerate() {
                    Shift::new(sizes, tap).copy(plane, &mut row[image * plane.len()..][..plane.len()]);
                }
                continue;
            }
            copy_taps(sizes, plane, &taps, &(0..sizes.out_height), (rows, width, image * sizes.out_plane()), &mut phases);
        }
    }

    /// Images side by side: `gradient` (images, O, H', W') → (O, width).
    fn side_by_side(&self, gradient: &[f32]) -> Vec<f32> {
        let plane = self.sizes.out_plane();
        let width = self.width(gradient.len() / (self.sizes.out_channels * plane));
        let mut out = vec![0.0; self.sizes.out_channels * width];
        for (i, values) in gradient.chunks_exact(plane).enumerate() {
            let (image, channel) = (i / self.sizes.out_channels, i % self.sizes.out_channels);
            out[channel * width + image * plane..][..plane].copy_from_slice(values);
        }
        out
    }

    /// One thread a run, or all threads for the products of one run after the other.
    fn threads(&self) -> Threads {
        let partial = self.count() * self.sizes.out_channels * self.depth();
        if self.count() > 1 && partial <= PARTIAL_VALUES { Threads::One } else { Threads::All }
    }
}

/// How the pixels under one tap of a convolution that keeps the size lie against the plane: as one piece, but for the columns that came
/// around the edge.
struct Shift {
    /// Where the piece starts in the plane and among the pixels under the tap.
    plane: usize,
    tap: usize,
    /// Its length.
    len: usize,
    /// Columns from outside the plane, in every row of `width`.
    outside: Range<usize>,
    width: usize,
}

impl Shift {
    fn new(sizes: &Sizes, tap: usize) -> Self {
        let (plane, width) = (sizes.in_plane(), sizes.width);
        let along = |k: usize| (k * sizes.spec.dilation) as isize - sizes.spec.padding as isize;
        let (down, right) = (along(tap / sizes.kernel_width), along(tap % sizes.kernel_width));
        let offset = down * width as isize + right;
        let (skip, far) = (offset.unsigned_abs().min(plane), right.unsigned_abs().min(width));
        let (start, tap) = if offset < 0 { (0, skip) } else { (skip, 0) };
        let outside = if right < 0 { 0..far } else { width - far..width };
        Self { plane: start, tap, len: plane - skip, outside, width }
    }

    /// The pixels under the tap, zeros outside.
    fn copy(&self, plane: &[f32], out: &mut [f32]) {
        out[..self.tap].fill(0.0);
        out[self.tap..][..self.len].copy_from_slice(&plane[self.plane..][..self.len]);
        out[self.tap + self.len..].fill(0.0);
        self.clear_outside(out);
    }

    /// Adds values under the tap, of which those outside are cleared, to the pixels they came from.
    fn add_back(&self, values: &mut [f32], plane: &mut [f32]) {
        self.clear_outside(values);
        let values = &values[self.tap..][..self.len];
        plane[self.plane..].iter_mut().zip(values).for_each(|(pixel, value)| *pixel += value);
    }

    fn clear_outside(&self, values: &mut [f32]) {
        if !self.outside.is_empty() {
            values.chunks_exact_mut(self.width).for_each(|row| row[self.outside.clone()].fill(0.0));
        }
    }
}

/// # Shapes
/// `xs` (B, C, H, W), `weight` (O, C, kh, kw), `bias` (O) or (B·O) → (B, O, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let runs = Runs::new(sizes);
    let (depth, plane) = (runs.depth(), sizes.out_plane());
    let kernel = Matrix::rows(weight, depth);
    let mut out = cpu::zeros(sizes.batch * sizes.out_channels * plane);
    let compute = |(run, out): (usize, &mut [f32]), threads: Threads, columns: &mut Vec<f32>| {
        runs.columns(&xs[runs.part(run, sizes.in_channels * sizes.in_plane())], columns);
        let width = columns.len() / depth;
        let mut product = vec![0.0; sizes.out_channels * width];
        let size = (sizes.out_channels, width, depth);
        cpu::gemm(size, kernel, Matrix::rows(columns, width), &mut product, width, false, 1.0, threads);
        for (i, out) in out.chunks_exact_mut(plane).enumerate() {
            let (image, channel) = (i / sizes.out_channels, i % sizes.out_channels);
            let bias = bias.map_or(0.0, |bias| bias[(run * runs.images * sizes.out_channels + i) % bias.len()]);
            let product = &product[channel * width + image * plane..][..plane];
            out.iter_mut().zip(product).for_each(|(out, product)| *out = product + bias);
        }
    };
    let threads = if runs.count() > 1 { Threads::One } else { Threads::All };
    let parts = out.chunks_mut(runs.outputs().max(1)).enumerate().collect();
    for_each(threads, parts, Vec::new, |part, columns| compute(part, threads, columns));
    out
}

/// See [`forward`] for shapes.
pub fn backward(sizes: &Sizes, given: &Backward) -> InputAndWeight {
    let runs = Runs::new(sizes);
    backward_by(&runs, given, runs.threads())
}

fn backward_by(runs: &Runs, given: &Backward, threads: Threads) -> InputAndWeight {
    let Backward { xs, weight, wanted, .. } = *given;
    let mut for_xs = cpu::zeros(if wanted.0 { xs.len() } else { 0 });
    // One partial gradient for each run, summed in their order below.
    let copies = if threads == Threads::One { runs.count() } else { 1 };
    let mut partial = cpu::zeros(if wanted.1 { copies * weight.len() } else { 0 });
    let mut targets_x = for_xs.chunks_mut(runs.inputs());
    if threads == Threads::One {
        let mut targets_w = partial.chunks_mut(weight.len());
        let parts: Vec<_> = (0..runs.count()).map(|run| (run, targets_x.next(), targets_w.next())).collect();
        for_each(threads, parts, Vec::new, |(run, for_xs, for_weight), columns| {
            run_backward(runs, run, given, (for_xs, for_weight), columns, threads);
        });
    } else {
        let columns = &mut Vec::new();
        for run in 0..runs.count() {
            let for_weight = wanted.1.then_some(&mut partial[..]);
            run_backward(runs, run, given, (targets_x.next(), for_weight), columns, threads);
        }
    }
    let for_weight = wanted.1.then(|| cpu::sum_of_parts(partial, weight.len()));
    (wanted.0.then_some(for_xs), for_weight)
}

/// Adds the gradients of one run to the targets that are there.
fn run_backward(
    runs: &Runs,
    run: usize,
    given: &Backward,
    (for_xs, for_weight): (Option<&mut [f32]>, Option<&mut [f32]>),
    columns: &mut Vec<f32>,
    threads: Threads,
) {
    let (sizes, depth) = (runs.sizes, runs.depth());
    let gradient = runs.side_by_side(&given.gradient[runs.part(run, sizes.out_channels * sizes.out_plane())]);
    let width = gradient.len() / sizes.out_channels;
    let g = Matrix::rows(&gradient, width);
    if let Some(out) = for_weight {
        runs.columns(&given.xs[runs.part(run, sizes.in_channels * sizes.in_plane())], columns);
        let columns = Matrix::rows(columns, width).t();
        cpu::gemm((sizes.out_channels, depth, width), g, columns, out, depth, true, 1.0, threads);
    }
    let Some(out) = for_xs else { return };
    columns.resize(depth * width, 0.0);
    let kernel = Matrix::rows(given.weight, depth).t();
    cpu::gemm((depth, width, sizes.out_channels), kernel, g, columns, width, false, 1.0, threads);
    for (i, plane) in out.chunks_exact_mut(sizes.in_plane()).enumerate() {
        let (image, channel) = (i / sizes.in_channels, i % sizes.in_channels);
        let rows = columns[channel * sizes.area() * width..].chunks_exact_mut(width).take(sizes.area());
        for (tap, row) in rows.enumerate() {
            let row = &mut row[image * sizes.out_plane()..][..sizes.out_plane()];
            match runs.keeps_size() {
                true => Shift::new(sizes, tap).add_back(row, plane),
                false => add_tap(sizes, row, tap, &(0..sizes.out_height), plane),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ConvSpec;
    use crate::nn::conv::plain_sum;

    /// With stride, with dilation, of one pixel, of one image; batches that leave the last run short.
    fn cases() -> Vec<Sizes> {
        let spec = |stride, padding, dilation| ConvSpec { stride, padding, dilation, groups: 1 };
        let cases = [
            ([19, 8, 2, 4], [6, 8, 3, 3], spec(1, 1, 1)),
            ([5, 7, 4, 8], [9, 7, 3, 3], spec(1, 1, 1)),
            ([13, 6, 8, 9], [5, 6, 3, 3], spec(2, 1, 1)),
            ([70, 5, 3, 3], [4, 5, 3, 3], spec(1, 0, 1)),
            ([1, 9, 7, 5], [3, 9, 3, 3], spec(1, 2, 2)),
            ([4, 3, 2, 3], [5, 3, 5, 5], spec(1, 2, 1)),
            ([4, 3, 2, 3], [5, 3, 3, 3], spec(1, 4, 4)),
        ];
        cases.iter().map(|(shape, kernel, spec)| Sizes::new(shape, kernel, *spec).unwrap()).collect()
    }

    #[test]
    fn results_and_gradients_are_those_of_the_plain_sum() {
        for sizes in cases() {
            assert!(wins(&sizes));
            plain_sum::check(&sizes, forward, backward);
        }
    }

    #[test]
    fn an_image_has_the_same_bits_alone_and_in_a_batch() {
        cases().iter().for_each(|sizes| plain_sum::check_batch(sizes, forward));
        let large = Sizes::new(&[5, 320, 5, 7], &[64, 320, 3, 3], ConvSpec { padding: 1, ..ConvSpec::default() }).unwrap();
        plain_sum::check_batch(&large, forward);
    }

    #[test]
    fn results_have_the_same_bits_for_any_number_of_threads() {
        cases().iter().for_each(|sizes| plain_sum::check_threads(sizes, forward, backward));
    }

    /// As with weights so large that no partial gradients are kept.
    #[test]
    fn runs_one_after_the_other_give_the_same_gradients() {
        let one_by_one = |sizes: &Sizes, given: &Backward| backward_by(&Runs::new(sizes), given, Threads::All);
        cases().iter().for_each(|sizes| plain_sum::check(sizes, forward, one_by_one));
        assert!(cases().iter().any(|sizes| Runs::new(sizes).count() > 1));
    }
}
