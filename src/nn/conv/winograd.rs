//! 3×3 convolution with stride 1 by Winograd's minimal filtering F(2×2, 3×3): 16 products for four outputs instead of 36.
//!
//! Inputs are cut into tiles of 4×4 pixels, two apart. Tiles and kernels are transformed; the convolution is then 16 matrix
//! products over channels, one for each of the 16 values of a tile; what comes out is transformed into 2×2 outputs. Tiles of
//! several rows and images are handled together. Gradients are sums of the same kind: of the inputs a convolution with the
//! turned kernels, of the kernels a matrix product over tiles.
//!
//! # Source
//! Lavin and Gray, "Fast algorithms for convolutional neural networks", section 4.1, with its matrices A, B and G.

use super::op::{Backward, Direction, InputAndWeight, Sizes};
use crate::nn::cpu::{self, Matrix, Threads};
use rayon::prelude::*;
use std::ops::Range;

/// Values of a tile.
const TILE: usize = 16;
/// Tiles that are transformed at once.
const LANES: usize = 16;
/// Transformed values of all tiles that are handled together, for the wider side (8 MB).
const CHUNK_VALUES: usize = 2 << 20;

/// Tiles times channels of the narrower side from which on the method saves more than its transforms cost (measured).
const WORTHWHILE: usize = 1 << 16;
/// The same of gradients, for which the other methods do more.
const WORTHWHILE_BACKWARD: usize = 1 << 15;

/// The method applies, and saves time. Forward, the number of images does not count, so that an image has the same bits alone and
/// in any batch.
pub fn wins(sizes: &Sizes, direction: Direction) -> bool {
    let (images, least) = match direction {
        Direction::Forward => (1, WORTHWHILE),
        Direction::Backward => (sizes.batch, WORTHWHILE_BACKWARD),
    };
    let tiles = images * sizes.out_height.div_ceil(2) * sizes.out_width.div_ceil(2);
    applies(sizes) && tiles >= 64 && tiles * sizes.in_channels.min(sizes.out_channels) >= least
}

fn applies(sizes: &Sizes) -> bool {
    let spec = sizes.spec;
    let plain = spec.stride == 1 && spec.dilation == 1 && spec.groups == 1 && spec.padding <= 2;
    plain && (sizes.kernel_height, sizes.kernel_width) == (3, 3)
}

/// Planes of one size.
#[derive(Clone, Copy)]
struct Planes {
    channels: usize,
    height: usize,
    width: usize,
}

impl Planes {
    fn len(&self) -> usize {
        self.height * self.width
    }
}

/// How planes are cut into tiles.
#[derive(Clone, Copy)]
struct Grid {
    batch: usize,
    inputs: Planes,
    outputs: Planes,
    padding: usize,
    /// Tiles of one plane.
    rows: usize,
    columns: usize,
}

impl Grid {
    fn new(batch: usize, inputs: Planes, outputs: Planes, padding: usize) -> Self {
        let (rows, columns) = (outputs.height.div_ceil(2), outputs.width.div_ceil(2));
        Self { batch, inputs, outputs, padding, rows, columns }
    }

    fn of(sizes: &Sizes) -> Self {
        let inputs = Planes { channels: sizes.in_channels, height: sizes.height, width: sizes.width };
        let outputs = Planes { channels: sizes.out_channels, height: sizes.out_height, width: sizes.out_width };
        Self::new(sizes.batch, inputs, outputs, sizes.spec.padding)
    }

    /// Ranges of tile rows, counted over all images, that are handled together.
    fn chunks(&self) -> Vec<Range<usize>> {
        let widest = self.inputs.channels.max(self.outputs.channels);
        let (all, rows) = (self.batch * self.rows, (CHUNK_VALUES / (TILE * widest * self.columns)).max(1));
        // Of about the same length, so that the last is no leftover.
        let rows = all.div_ceil(all.div_ceil(rows));
        (0..all).step_by(rows).map(|start| start..(start + rows).min(all)).collect()
    }

    /// Distance of the values of one kind in transformed tiles. Not a power of two, and with room for a last group of lanes.
    fn pitch(&self, chunk: &Range<usize>) -> usize {
        (chunk.len() * self.columns).next_multiple_of(LANES) + LANES
    }

    /// Length of one line of even (or odd) columns, with room for a last group of lanes.
    fn line(&self) -> usize {
        self.columns.next_multiple_of(LANES) + LANES
    }
}

/// Transformed kernels G g Gᵀ: value f of outputs o and inputs c at `(16·o + f)·inputs + c`.
struct Kernels {
    values: Vec<f32>,
    inputs: usize,
}

impl Kernels {
    /// `weight` (O, C, 3, 3)
    fn new(weight: &[f32], inputs: usize) -> Self {
        let values = cpu::fill_chunks(weight.len() / 9 * TILE, TILE * inputs, |o, out| {
            transform_kernels(&weight[o * inputs * 9..][..inputs * 9], out, inputs);
        });
        Self { values, inputs }
    }

    /// Value f as a matrix (outputs, inputs).
    fn kind(&self, f: usize) -> Matrix<'_> {
        Matrix::rows(&self.values[f * self.inputs..], TILE * self.inputs)
    }

    /// Value f of the kernels turned by half a turn, as a matrix (inputs, outputs): rows and columns 0 and 3 of a transformed
    /// kernel change places.
    fn turned_kind(&self, f: usize) -> Matrix<'_> {
        let turn = |i: usize| [3, 1, 2, 0][i];
        self.kind(4 * turn(f / 4) + turn(f % 4)).t()
    }
}

type Lane = [f32; LANES];

#[inline(always)]
fn lane(values: &[f32], at: usize) -> Lane {
    let mut out = [0.0; LANES];
    out.copy_from_slice(&values[at..at + LANES]);
    out
}

#[inline(always)]
fn both(a: Lane, b: Lane, f: impl Fn(f32, f32) -> f32) -> Lane {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn plus(a: Lane, b: Lane) -> Lane {
    both(a, b, |a, b| a + b)
}

#[inline(always)]
fn minus(a: Lane, b: Lane) -> Lane {
    both(a, b, |a, b| a - b)
}

/// Bᵀ d along one axis.
#[inline(always)]
fn spread(d: [Lane; 4]) -> [Lane; 4] {
    [minus(d[0], d[2]), plus(d[1], d[2]), minus(d[2], d[1]), minus(d[1], d[3])]
}

/// A g along one axis.
#[inline(always)]
fn widen(g: [Lane; 2]) -> [Lane; 4] {
    [g[0], plus(g[0], g[1]), minus(g[0], g[1]), minus([0.0; LANES], g[1])]
}

/// Aᵀ m along one axis.
#[inline(always)]
fn gather(m: [Lane; 4]) -> [Lane; 2] {
    [plus(plus(m[0], m[1]), m[2]), minus(minus(m[1], m[2]), m[3])]
}

/// G g along one axis.
#[inline(always)]
fn expand(g: [Lane; 3]) -> [Lane; 4] {
    let ends = plus(g[0], g[2]);
    let half = |x: Lane| both(x, [0.5; LANES], |a, b| a * b);
    [g[0], half(plus(ends, g[1])), half(minus(ends, g[1])), g[2]]
}

/// Gᵀ u along one axis.
#[inline(always)]
fn contract(u: [Lane; 4]) -> [Lane; 3] {
    let half = |x: Lane| both(x, [0.5; LANES], |a, b| a * b);
    let (sum, difference) = (half(plus(u[1], u[2])), half(minus(u[1], u[2])));
    [plus(u[0], sum), difference, plus(sum, u[3])]
}

cpu::vectorised! {
    /// `kernels` (count, 9) → `out` (16, count).
    fn transform_kernels(kernels: &[f32], out: &mut [f32], count: usize) {
        for start in (0..count).step_by(LANES) {
            let width = LANES.min(count - start);
            let mut taps = [[0.0; LANES]; 9];
            for (j, kernel) in kernels[9 * start..9 * (start + width)].as_chunks::<9>().0.iter().enumerate() {
                for (tap, value) in taps.iter_mut().zip(kernel) {
                    tap[j] = *value;
                }
            }
            let columns: [[Lane; 4]; 3] = std::array::from_fn(|x| expand([taps[x], taps[3 + x], taps[6 + x]]));
            for y in 0..4 {
                let row = expand([columns[0][y], columns[1][y], columns[2][y]]);
                for (x, values) in row.into_iter().enumerate() {
                    out[(4 * y + x) * count + start..][..width].copy_from_slice(&values[..width]);
                }
            }
        }
    }
}

cpu::vectorised! {
    /// The transposed map: value f of `sums` starts at `f · step`; `out` (count, 9).
    fn transform_kernel_gradients(sums: &[f32], step: usize, out: &mut [f32]) {
        let count = out.len() / 9;
        for start in (0..count).step_by(LANES) {
            let width = LANES.min(count - start);
            let values: [Lane; TILE] = std::array::from_fn(|f| {
                let mut lane = [0.0; LANES];
                lane[..width].copy_from_slice(&sums[f * step + start..][..width]);
                lane
            });
            let columns: [[Lane; 3]; 4] = std::array::from_fn(|x| contract([values[x], values[4 + x], values[8 + x], values[12 + x]]));
            let rows: [[Lane; 3]; 3] = std::array::from_fn(|y| contract([columns[0][y], columns[1][y], columns[2][y], columns[3][y]]));
            for (j, out) in out[9 * start..9 * (start + width)].as_chunks_mut::<9>().0.iter_mut().enumerate() {
                *out = std::array::from_fn(|i| rows[i / 3][i % 3][j]);
            }
        }
    }
}

cpu::vectorised! {
    /// Bᵀ d B of one row of tiles. `lines` (4, 2, length): of four pixel rows the even and the odd columns; `out` (16, pitch).
    fn transform_inputs(lines: &[f32], length: usize, columns: usize, out: &mut [f32], pitch: usize) {
        for x in (0..columns).step_by(LANES) {
            let rows: [[Lane; 4]; 4] = std::array::from_fn(|y| {
                let (even, odd) = (&lines[2 * y * length..], &lines[(2 * y + 1) * length..]);
                spread([lane(even, x), lane(odd, x), lane(even, x + 1), lane(odd, x + 1)])
            });
            for i in 0..4 {
                let column = spread([rows[0][i], rows[1][i], rows[2][i], rows[3][i]]);
                for (y, values) in column.into_iter().enumerate() {
                    out[(4 * y + i) * pitch + x..][..LANES].copy_from_slice(&values);
                }
            }
        }
    }
}

cpu::vectorised! {
    /// A g Aᵀ of one row of tiles. `lines` (2, 2, length); `out` (16, pitch).
    fn transform_gradients(lines: &[f32], length: usize, columns: usize, out: &mut [f32], pitch: usize) {
        for x in (0..columns).step_by(LANES) {
            let rows: [[Lane; 4]; 2] = std::array::from_fn(|y| {
                widen([lane(&lines[2 * y * length..], x), lane(&lines[(2 * y + 1) * length..], x)])
            });
            for i in 0..4 {
                for (y, values) in widen([rows[0][i], rows[1][i]]).into_iter().enumerate() {
                    out[(4 * y + i) * pitch + x..][..LANES].copy_from_slice(&values);
                }
            }
        }
    }
}

cpu::vectorised! {
    /// Aᵀ m A of one row of tiles: `lines` (2, 2·length), two rows of outputs. Value f of the tiles starts at `f · step`.
    fn transform_outputs(products: &[f32], step: usize, columns: usize, bias: f32, lines: &mut [f32], length: usize) {
        for x in (0..columns).step_by(LANES) {
            let rows: [[Lane; 2]; 4] = std::array::from_fn(|i| {
                gather(std::array::from_fn(|y| lane(&products[(4 * y + i) * step..], x)))
            });
            for y in 0..2 {
                let pair = gather([rows[0][y], rows[1][y], rows[2][y], rows[3][y]]);
                let line = &mut lines[2 * (y * length + x)..][..2 * LANES];
                for (i, out) in line.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    *out = [pair[0][i] + bias, pair[1][i] + bias];
                }
            }
        }
    }
}

/// Even and odd columns of a row that starts `padding` pixels before the plane; zeros outside.
fn split(row: Option<&[f32]>, padding: usize, lines: &mut [f32]) {
    let (even, odd) = lines.split_at_mut(lines.len() / 2);
    even.fill(0.0);
    odd.fill(0.0);
    let Some(row) = row else { return };
    // Pixel x is column x + padding of the padded row.
    let (first, rest) = if padding.is_multiple_of(2) { (even, odd) } else { (odd, even) };
    let (start, next) = (padding / 2, padding.div_ceil(2));
    for (out, x) in first[start..].iter_mut().zip(row.iter().step_by(2)) {
        *out = *x;
    }
    for (out, x) in rest[next..].iter_mut().zip(row.iter().skip(1).step_by(2)) {
        *out = *x;
    }
}

/// Tiles of a chunk, transformed: channel by channel the 16 values of all tiles, (channels, 16, pitch). A row of tiles covers
/// `height` pixel rows from `2·row − padding` on.
fn tiles(
    grid: &Grid,
    (planes, padding, height): (Planes, usize, usize),
    xs: &[f32],
    chunk: &Range<usize>,
    transform: fn(&[f32], usize, usize, &mut [f32], usize),
) -> Vec<f32> {
    let (pitch, length) = (grid.pitch(chunk), grid.line());
    cpu::fill_chunks(planes.channels * TILE * pitch, TILE * pitch, |channel, out| {
        let mut lines = vec![0.0; height * 2 * length];
        for (i, row) in chunk.clone().enumerate() {
            let plane = &xs[(row / grid.rows * planes.channels + channel) * planes.len()..][..planes.len()];
            for (y, lines) in lines.chunks_exact_mut(2 * length).enumerate() {
                let pixel_row = (2 * (row % grid.rows) + y).checked_sub(padding).filter(|y| *y < planes.height);
                split(pixel_row.map(|y| &plane[y * planes.width..][..planes.width]), padding, lines);
            }
            transform(&lines, length, grid.columns, &mut out[i * grid.columns..], pitch);
        }
    })
}

/// One kind of values of transformed tiles as a matrix (channels, tiles).
fn kind(tiles: &[f32], f: usize, pitch: usize) -> Matrix<'_> {
    Matrix::rows(&tiles[f * pitch..], TILE * pitch)
}

/// `kernels(f)`: value f of the transformed kernels as a matrix (outputs, inputs).
fn convolve<'k>(grid: &Grid, xs: &[f32], kernels: impl Fn(usize) -> Matrix<'k> + Sync, bias: Option<&[f32]>) -> Vec<f32> {
    let (inputs, outputs) = (grid.inputs, grid.outputs);
    let mut out = cpu::zeros(grid.batch * outputs.channels * outputs.len());
    for chunk in grid.chunks() {
        let (pitch, count) = (grid.pitch(&chunk), chunk.len() * grid.columns);
        let tiles = tiles(grid, (inputs, grid.padding, 4), xs, &chunk, transform_inputs);
        let mut products = cpu::zeros(TILE * outputs.channels * pitch);
        products.par_chunks_mut(outputs.channels * pitch).enumerate().for_each(|(f, out)| {
            let sizes = (outputs.channels, count, inputs.channels);
            cpu::gemm(sizes, kernels(f), kind(&tiles, f, pitch), out, pitch, false, 1.0, Threads::One);
        });
        out.par_chunks_mut(outputs.len()).enumerate().for_each_init(
            || vec![0.0; 4 * grid.line()],
            |lines, (i, plane)| {
                let (image, channel) = (i / outputs.channels, i % outputs.channels);
                let own = chunk.start.max(image * grid.rows)..chunk.end.min((image + 1) * grid.rows);
                for row in own {
                    let at = channel * pitch + (row - chunk.start) * grid.columns;
                    let (step, bias) = (outputs.channels * pitch, bias.map_or(0.0, |bias| bias[i % bias.len()]));
                    transform_outputs(&products[at..], step, grid.columns, bias, lines, grid.line());
                    let pixels = plane[2 * (row - image * grid.rows) * outputs.width..].chunks_mut(outputs.width).take(2);
                    for (pixels, line) in pixels.zip(lines.chunks_exact(2 * grid.line())) {
                        pixels.copy_from_slice(&line[..outputs.width]);
                    }
                }
            },
        );
    }
    out
}

/// # Shapes
/// `xs` (B, C, H, W), `weight` (O, C, 3, 3), `bias` (O) or (B·O) → (B, O, H', W')
pub fn forward(sizes: &Sizes, xs: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let kernels = Kernels::new(weight, sizes.in_channels);
    convolve(&Grid::of(sizes), xs, |f| kernels.kind(f), bias)
}

/// See [`forward`] for shapes.
pub fn backward(sizes: &Sizes, given: &Backward) -> InputAndWeight {
    let Backward { xs, weight, gradient, wanted } = *given;
    let grid = Grid::of(sizes);
    let for_xs = || {
        let kernels = Kernels::new(weight, sizes.in_channels);
        let back = Grid::new(grid.batch, grid.outputs, grid.inputs, 2 - grid.padding);
        convolve(&back, gradient, |f| kernels.turned_kind(f), None)
    };
    (wanted.0.then(for_xs), wanted.1.then(|| weight_gradient(&grid, xs, gradient)))
}

fn weight_gradient(grid: &Grid, xs: &[f32], gradient: &[f32]) -> Vec<f32> {
    let (inputs, outputs) = (grid.inputs.channels, grid.outputs.channels);
    let mut sums = cpu::zeros(TILE * outputs * inputs);
    for chunk in grid.chunks() {
        let (pitch, count) = (grid.pitch(&chunk), chunk.len() * grid.columns);
        let from = tiles(grid, (grid.inputs, grid.padding, 4), xs, &chunk, transform_inputs);
        let to = tiles(grid, (grid.outputs, 0, 2), gradient, &chunk, transform_gradients);
        sums.par_chunks_mut(outputs * inputs).enumerate().for_each(|(f, out)| {
            let (to, from) = (kind(&to, f, pitch), kind(&from, f, pitch).t());
            cpu::gemm((outputs, inputs, count), to, from, out, inputs, true, 1.0, Threads::One);
        });
    }
    cpu::fill_chunks(outputs * inputs * 9, inputs * 9, |o, out| {
        transform_kernel_gradients(&sums[o * inputs..], outputs * inputs, out);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ConvSpec;
    use crate::nn::conv::plain_sum::{self, normal};

    #[test]
    fn results_and_gradients_are_those_of_the_plain_sum() {
        for (shape, outputs, padding) in [([2, 33, 17, 20], 40, 1), ([1, 40, 18, 19], 32, 0), ([3, 32, 9, 11], 32, 2)] {
            let spec = ConvSpec { padding, ..ConvSpec::default() };
            let sizes = Sizes::new(&shape, &[outputs, shape[1], 3, 3], spec).unwrap();
            assert!(applies(&sizes));
            plain_sum::check(&sizes, forward, backward);
        }
    }

    #[test]
    fn an_image_has_the_same_bits_alone_and_in_a_batch() {
        let spec = ConvSpec { padding: 1, ..ConvSpec::default() };
        plain_sum::check_batch(&Sizes::new(&[3, 40, 21, 26], &[48, 40, 3, 3], spec).unwrap(), forward);
    }

    #[test]
    fn results_have_the_same_bits_for_any_number_of_threads() {
        let spec = ConvSpec { padding: 1, ..ConvSpec::default() };
        plain_sum::check_threads(&Sizes::new(&[2, 32, 30, 34], &[48, 32, 3, 3], spec).unwrap(), forward, backward);
    }

    #[test]
    fn chunks_of_tile_rows_give_the_same_as_one() {
        let planes = |channels| Planes { channels, height: 1000, width: 64 };
        let grid = Grid::new(2, planes(64), planes(64), 1);
        let chunks = grid.chunks();
        assert!(chunks.len() > 1, "{chunks:?}");
        let spec = ConvSpec { padding: 1, ..ConvSpec::default() };
        let sizes = Sizes::new(&[2, 64, 1000, 64], &[64, 64, 3, 3], spec).unwrap();
        let (xs, weight) = (normal("xs", 2 * 64 * 64_000), normal("weight", 64 * 64 * 9));
        let all = forward(&sizes, &xs, &weight, None);
        // The middle rows of the second image, which lie in a chunk of their own kind, computed alone.
        let rows = 400..420;
        let cut: Vec<f32> = (0..64).flat_map(|c| xs[((64 + c) * 1000 + rows.start - 1) * 64..][..22 * 64].to_vec()).collect();
        let sizes = Sizes::new(&[1, 64, 22, 64], &[64, 64, 3, 3], spec).unwrap();
        let alone = forward(&sizes, &cut, &weight, None);
        for c in 0..64 {
            let (a, b) = (&all[((64 + c) * 1000 + rows.start) * 64..][..20 * 64], &alone[(c * 22 + 1) * 64..][..20 * 64]);
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4), "channel {c}");
        }
    }
}
