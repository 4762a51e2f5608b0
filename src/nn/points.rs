//! Values of maps between their pixels: bilinear sampling at points, zero outside the map.

use super::cpu;
use super::graph::{self, Reads};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// The four pixels around a point, with their weights, and what the weights' slopes need.
#[derive(Clone, Copy)]
pub(super) struct Corners {
    /// Indices of the pixels (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1) in a map; `None` outside.
    pub at: [Option<usize>; 4],
    /// Position between the pixels, 0…1, of rows and of columns.
    pub fraction: (f32, f32),
}

impl Corners {
    /// Around (`x`, `y`) of a map of `size` (H, W); pixel centres lie at whole numbers.
    #[inline(always)]
    pub fn new(x: f32, y: f32, size: (usize, usize)) -> Self {
        let (left, top) = (x.floor(), y.floor());
        // Conversion saturates, so that far points stay outside; NaN stays NaN in the weights.
        let (column, row) = (left as i64, top as i64);
        let (height, width) = (size.0 as i64, size.1 as i64);
        let inside = |row: i64, column: i64| {
            ((0..height).contains(&row) && (0..width).contains(&column)).then_some((row * width + column) as usize)
        };
        let (below, right) = (row.saturating_add(1), column.saturating_add(1));
        Self {
            at: [inside(row, column), inside(row, right), inside(below, column), inside(below, right)],
            fraction: (y - top, x - left),
        }
    }

    /// Around a point of the unit square, whose corners are those of the map's outer pixels (`align_corners` false).
    #[inline(always)]
    pub fn of_unit(point: &[f32], size: (usize, usize)) -> Self {
        Self::new(point[0] * size.1 as f32 - 0.5, point[1] * size.0 as f32 - 0.5, size)
    }

    /// Weights of the four pixels.
    #[inline(always)]
    pub fn weights(&self) -> [f32; 4] {
        let (y, x) = self.fraction;
        [(1.0 - y) * (1.0 - x), (1.0 - y) * x, y * (1.0 - x), y * x]
    }

    /// `Σ weight · value` over the pixels that exist.
    #[inline(always)]
    pub fn blend(&self, value: impl Fn(usize) -> f32) -> f32 {
        let terms = self.at.iter().zip(self.weights()).map(|(at, weight)| at.map_or(0.0, |at| weight * value(at)));
        terms.sum()
    }
}

/// Bilinear samples of maps at points, zero outside. Each map has its own points, or all share `per_map` points. Points are
/// constants; the gradient goes to the maps.
///
/// # Shapes
/// `maps` (M, H, W), `points` M · P or P pairs (x, y), P = `per_map` → (M, P)
///
/// # Range
/// Points in 0…1; (0, 0) is the outer corner of the first pixel.
///
/// # Source
/// PointRend's `point_sample`: PyTorch's `grid_sample` at 2·point − 1, `align_corners` false.
pub fn sample_points(maps: &Tensor, points: Vec<f32>, per_map: usize) -> Result<Tensor> {
    let (count, height, width) = maps.dims3()?;
    if !fits(count, &points, per_map) || height * width == 0 {
        bail!("sample_points: maps {:?}, {per_map} points each, {} coordinates", maps.shape(), points.len())
    }
    #[cfg(feature = "cuda")]
    if maps.device().is_cuda() {
        return super::cuda::sample_points(maps, &points, per_map);
    }
    graph::apply1(&maps.contiguous()?, Reads::Shapes, SamplePoints { points, per_map, size: (height, width) })
}

/// [`sample_points`] of masks of 0 and 1, without gradient.
///
/// # Shapes
/// `masks` M times H · W with `size` (H, W), `points` M · P or P pairs (x, y), P = `per_map` → M · P
///
/// # Errors
/// Other sizes than these.
pub fn sample_masks(masks: &[&[u8]], size: (usize, usize), points: &[f32], per_map: usize) -> Result<Vec<f32>> {
    if !fits(masks.len(), points, per_map) || masks.iter().any(|mask| mask.len() != size.0 * size.1) {
        bail!("sample_masks: {} masks, {size:?}, {per_map} points each, {} coordinates", masks.len(), points.len())
    }
    Ok(cpu::fill_chunks(masks.len() * per_map, per_map, |i, out| {
        let own = own_points(points, per_map, i);
        for (out, point) in out.iter_mut().zip(own.chunks_exact(2)) {
            *out = Corners::of_unit(point, size).blend(|at| f32::from(masks[i][at]));
        }
    }))
}

fn fits(count: usize, points: &[f32], per_map: usize) -> bool {
    per_map > 0 && (points.len() == 2 * per_map || points.len() == 2 * per_map * count)
}

/// The points of map `index`.
fn own_points(points: &[f32], per_map: usize, index: usize) -> &[f32] {
    let start = if points.len() == 2 * per_map { 0 } else { 2 * per_map * index };
    &points[start..start + 2 * per_map]
}

struct SamplePoints {
    points: Vec<f32>,
    per_map: usize,
    size: (usize, usize),
}

impl CustomOp1 for SamplePoints {
    fn name(&self) -> &'static str {
        "sample-points"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let maps = cpu::values(storage, layout)?;
        let (count, height, width) = layout.shape().dims3()?;
        let out = cpu::fill_chunks(count * self.per_map, self.per_map, |i, out| {
            let map = &maps[i * height * width..(i + 1) * height * width];
            for (out, point) in out.iter_mut().zip(own_points(&self.points, self.per_map, i).chunks_exact(2)) {
                *out = Corners::of_unit(point, self.size).blend(|at| map[at]);
            }
        });
        Ok((CpuStorage::F32(out), (count, self.per_map).into()))
    }

    fn bwd(&self, arg: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let g = cpu::read(&gradient)?;
        let g = &*g;
        let out = cpu::fill_chunks(arg.elem_count(), self.size.0 * self.size.1, |i, out| {
            let points = own_points(&self.points, self.per_map, i).chunks_exact(2);
            for (point, g) in points.zip(&g[i * self.per_map..(i + 1) * self.per_map]) {
                let corners = Corners::of_unit(point, self.size);
                for (at, weight) in corners.at.iter().zip(corners.weights()) {
                    if let Some(at) = at {
                        out[*at] += weight * g;
                    }
                }
            }
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}
