//! Deformable attention, and samples of maps at points.

use super::super::machine::{BLOCK, Kernels, Machine, Source, args};
use candle_core::Result;

/// Pixels a block of the gradients owns (SPAN of the kernels).
const SPAN: usize = BLOCK;

/// Dimensions of a head a block of the values' gradient owns (DIMS of the kernels).
const DIMS: usize = 32;

/// Sizes of a deformable attention: values (images, tokens, heads, dim), weights (images, queries, heads, levels, points).
#[derive(Debug, Clone)]
pub struct DeformableSizes {
    pub images: usize,
    pub tokens: usize,
    pub queries: usize,
    pub heads: usize,
    pub dim: usize,
    pub points: usize,
    /// Height and width of every level.
    pub levels: Vec<(usize, usize)>,
}

impl DeformableSizes {
    /// Height, width and first token of every level, one after the other, as the kernels want them.
    pub fn shapes(&self) -> Vec<u32> {
        let mut start = 0;
        let shape = |&(height, width): &(usize, usize)| {
            let shape = [height as u32, width as u32, start as u32];
            start += height * width;
            shape
        };
        self.levels.iter().flat_map(shape).collect()
    }

    fn samples(&self) -> usize {
        self.images * self.queries * self.heads * self.levels.len() * self.points
    }
}

/// What a deformable attention is given: values in the kernels' type, `shapes` as [`DeformableSizes::shapes`], the rest f32.
pub struct DeformableInputs<'a, B> {
    pub value: &'a B,
    pub offsets: &'a B,
    pub weights: &'a B,
    pub references: &'a B,
    pub shapes: &'a B,
}

/// Samples of maps: `points` holds `per_map` pairs for each map, or for all.
#[derive(Debug, Clone, Copy)]
pub struct PointSizes {
    pub maps: usize,
    pub height: usize,
    pub width: usize,
    pub per_map: usize,
    /// Every map has points of its own.
    pub own: bool,
}

impl<M: Machine> Kernels<'_, M> {
    /// Multi-scale deformable attention: (images, queries, heads, dim).
    pub fn deformable(&self, given: &DeformableInputs<M::Buffer>, sizes: &DeformableSizes) -> Result<M::Buffer> {
        let DeformableInputs { value, offsets, weights, references, shapes } = *given;
        let DeformableSizes { images, tokens, queries, heads, dim, points, ref levels } = *sizes;
        let count = images * queries * heads * dim;
        let out = self.values(count)?;
        let levels = levels.len();
        let args = args![value, offsets, weights, references, shapes, &out, count, tokens, queries, heads, dim, levels, points];
        self.threads(Source::Sampling, "deformable", count, args)?;
        Ok(out)
    }

    /// Gradients of [`Self::deformable`] for offsets and weights, in f32.
    pub fn deformable_slopes(
        &self,
        given: &DeformableInputs<M::Buffer>,
        gradient: &M::Buffer,
        sizes: &DeformableSizes,
    ) -> Result<(M::Buffer, M::Buffer)> {
        let DeformableInputs { value, offsets, weights, references, shapes } = *given;
        let DeformableSizes { tokens, queries, heads, dim, points, ref levels, .. } = *sizes;
        let (count, levels) = (sizes.samples(), levels.len());
        let (for_offsets, for_weights) = (self.floats(2 * count)?, self.floats(count)?);
        let args = args![
            value,
            offsets,
            weights,
            references,
            shapes,
            gradient,
            &for_offsets,
            &for_weights,
            count,
            tokens,
            queries,
            heads,
            dim,
            levels,
            points
        ];
        self.warps(Source::Sampling, "deformable_slopes", count, args)?;
        Ok((for_offsets, for_weights))
    }

    /// Gradient of [`Self::deformable`] for the values.
    pub fn deformable_value_gradient(
        &self,
        given: &DeformableInputs<M::Buffer>,
        gradient: &M::Buffer,
        sizes: &DeformableSizes,
    ) -> Result<M::Buffer> {
        let DeformableInputs { offsets, weights, references, shapes, .. } = *given;
        let DeformableSizes { images, tokens, queries, heads, dim, points, ref levels } = *sizes;
        let out = self.values(images * tokens * heads * dim)?;
        for (level, (height, width)) in levels.iter().enumerate() {
            let spans = (height * width).div_ceil(SPAN);
            let grid = [spans * dim.div_ceil(DIMS), images * heads];
            let levels = levels.len();
            let args = args![
                offsets, weights, references, shapes, gradient, &out, level, spans, tokens, queries, heads, dim, levels, points
            ];
            self.blocks(Source::Sampling, "deformable_value_gradient", grid, args)?;
        }
        Ok(out)
    }

    /// Bilinear samples of `maps` (maps, height, width) at `points` in f32: (maps, per_map).
    pub fn sample_points(&self, maps: &M::Buffer, points: &M::Buffer, sizes: PointSizes) -> Result<M::Buffer> {
        let PointSizes { per_map, height, width, own, .. } = sizes;
        let count = sizes.maps * per_map;
        let out = self.values(count)?;
        let args = args![maps, points, &out, count, per_map, usize::from(own), height, width];
        self.threads(Source::Sampling, "sample_points", count, args)?;
        Ok(out)
    }

    /// Gradient of [`Self::sample_points`] for the maps.
    pub fn sample_points_gradient(&self, points: &M::Buffer, gradient: &M::Buffer, sizes: PointSizes) -> Result<M::Buffer> {
        let PointSizes { maps, per_map, height, width, own } = sizes;
        let out = self.values(maps * height * width)?;
        let args = args![points, gradient, &out, per_map, usize::from(own), height, width];
        self.blocks(Source::Sampling, "sample_points_gradient", [(height * width).div_ceil(SPAN), maps], args)?;
        Ok(out)
    }
}
