//! Convolution of planes of few pixels: as in [`super::columns`], with the pixels of several images side by side in one product.
//!
//! A product is the faster the more columns it has, and the lowest levels of small networks have 8 or 32 pixels an image. Products are
//! filled up with zeros to one width, so that an image has the same bits alone and in any batch.

use super::columns::{ColumnTap, LEAST_PIXELS, OWN_VALUES, PARTIAL_VALUES, add_tap, copy_taps};
use super::op::{Backward, InputAndWeight, Sizes};
use crate::nn::cpu::{self, Matrix, Threads};
use rayon::prelude::*;

/// Planes of at least that many pixels make products of their own that are wide enough.
const ENOUGH_PIXELS: usize = LEAST_PIXELS - 1;

/// The method applies, and saves time.
pub fn wins(sizes: &Sizes) -> bool {
    sizes.spec.groups == 1 && sizes.out_plane() < ENOUGH_PIXELS
}

/// How the images of a batch are cut into runs whose pixels go into one product.
struct Runs<'a> {
    sizes: &'a Sizes,
    /// Images of a run; the last may have fewer. Depends on the sizes of one image alone.
    images: usize,
}

impl<'a> Runs<'a> {
    fn new(sizes: &'a Sizes) -> Self {
        let plane = sizes.out_plane().max(1);
        let depth = sizes.in_channels * sizes.area();
        Self { sizes, images: (OWN_VALUES / (depth * plane).max(1)).max(LEAST_PIXELS.div_ceil(plane)) }
    }

    fn count(&self) -> usize {
        self.sizes.batch.div_ceil(self.images)
    }

    /// Length of a kernel of one output channel.
    fn depth(&self) -> usize {
        self.sizes.in_channels * self.sizes.area()
    }

    /// Columns of a product.
    fn width(&self) -> usize {
        self.images * self.sizes.out_plane()
    }

    /// Values of all inputs of a run.
    fn inputs(&self) -> usize {
        self.images * self.sizes.in_channels * self.sizes.in_plane()
    }

    /// Values of all outputs of a run.
    fn outputs(&self) -> usize {
        self.images * self.sizes.out_channels * self.sizes.out_plane()
    }

    /// The pixels under all taps, (depth, width); `xs` are the inputs of one run.
    fn columns(&self, xs: &[f32], columns: &mut Vec<f32>) {
        let (sizes, width) = (self.sizes, self.width());
        columns.clear();
        columns.resize(self.depth() * width, 0.0);
        let taps: Vec<_> = (0..sizes.kernel_width).map(|kx| ColumnTap::new(sizes, kx)).collect();
        let mut phases = Vec::new();
        for (i, plane) in xs.chunks_exact(sizes.in_plane()).enumerate() {
            let (image, channel) = (i / sizes.in_channels, i % sizes.in_channels);
            let rows = &mut columns[channel * sizes.area() * width..][..sizes.area() * width];
            copy_taps(sizes, plane, &taps, &(0..sizes.out_height), (rows, width, image * sizes.out_plane()), &mut phases);
        }
    }

    /// Images side by side: `gradient` (images, O, H', W') → (O, width).
    fn side_by_side(&self, gradient: &[f32]) -> Vec<f32> {
        let (plane, width) = (self.sizes.out_plane(), self.width());
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

/// # Shapes
/// `xs` (B, C, H, W), `weight` (O, C, kh, kw), `bias` (O) or (B·O) → (B, O, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let runs = Runs::new(sizes);
    let (depth, width, plane) = (runs.depth(), runs.width(), sizes.out_plane());
    let kernel = Matrix::rows(weight, depth);
    let mut out = cpu::zeros(sizes.batch * sizes.out_channels * plane);
    let compute = |(run, out): (usize, &mut [f32]), threads: Threads, columns: &mut Vec<f32>| {
        let xs = &xs[run * runs.inputs()..];
        runs.columns(&xs[..xs.len().min(runs.inputs())], columns);
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
    if runs.count() > 1 {
        let parts = out.par_chunks_mut(runs.outputs()).enumerate();
        parts.for_each_init(Vec::new, |columns, part| compute(part, Threads::One, columns));
    } else {
        out.chunks_mut(runs.outputs().max(1)).enumerate().for_each(|part| compute(part, Threads::All, &mut Vec::new()));
    }
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
        parts.into_par_iter().for_each_init(Vec::new, |columns, (run, for_xs, for_weight)| {
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
    let (sizes, depth, width) = (runs.sizes, runs.depth(), runs.width());
    let part = |values: &'_ [f32], len: usize| run * len..values.len().min((run + 1) * len);
    let gradient = runs.side_by_side(&given.gradient[part(given.gradient, runs.outputs())]);
    let g = Matrix::rows(&gradient, width);
    if let Some(out) = for_weight {
        runs.columns(&given.xs[part(given.xs, runs.inputs())], columns);
        let columns = Matrix::rows(columns, width).t();
        cpu::gemm((sizes.out_channels, depth, width), g, columns, out, depth, true, 1.0, threads);
    }
    let Some(out) = for_xs else { return };
    columns.resize(depth * width, 0.0);
    let kernel = Matrix::rows(given.weight, depth).t();
    cpu::gemm((depth, width, sizes.out_channels), kernel, g, columns, width, false, 1.0, threads);
    for (i, plane) in out.chunks_exact_mut(sizes.in_plane()).enumerate() {
        let (image, channel) = (i / sizes.in_channels, i % sizes.in_channels);
        let rows = columns[channel * sizes.area() * width..].chunks_exact(width).take(sizes.area());
        for (tap, row) in rows.enumerate() {
            let row = &row[image * sizes.out_plane()..][..sizes.out_plane()];
            add_tap(sizes, row, tap, &(0..sizes.out_height), plane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ConvSpec;
    use crate::nn::conv::plain_sum;

    /// 1×1, 3×3, with stride, with dilation, of one pixel, of one image; batches that leave the last run short.
    fn cases() -> Vec<Sizes> {
        let spec = |stride, padding, dilation| ConvSpec { stride, padding, dilation, groups: 1 };
        let cases = [
            ([19, 8, 2, 4], [6, 8, 1, 1], spec(1, 0, 1)),
            ([5, 7, 4, 8], [9, 7, 3, 3], spec(1, 1, 1)),
            ([13, 6, 8, 9], [5, 6, 3, 3], spec(2, 1, 1)),
            ([70, 5, 3, 3], [4, 5, 3, 3], spec(1, 0, 1)),
            ([1, 9, 7, 5], [3, 9, 3, 3], spec(1, 2, 2)),
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
