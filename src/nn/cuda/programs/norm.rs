//! Layer norm over rows, and what group and batch norm share: statistics of sets of planes.

use super::super::machine::{BLOCK, Kernels, Machine, Source, args};
use super::shares_of;
use candle_core::Result;

/// A normalisation of maps (batch, channels, size) by statistics that sets of planes share.
#[derive(Debug, Clone, Copy)]
pub struct PlaneNorm {
    batch: usize,
    channels: usize,
    size: usize,
    /// Number of sets.
    pub sets: usize,
    /// Planes of a set.
    planes: usize,
    /// Distance of the planes of a set: 1, or the channels where each channel is a set.
    stride: usize,
    eps: f32,
    silu: bool,
    /// The statistics are those of the inputs, so the gradient also flows through them.
    of_set: bool,
}

impl PlaneNorm {
    /// Every group of channels of each image is a set.
    pub fn group(batch: usize, channels: usize, size: usize, groups: usize, eps: f64, silu: bool) -> Self {
        let (sets, planes) = (batch * groups, channels / groups);
        Self { batch, channels, size, sets, planes, stride: 1, eps: eps as f32, silu, of_set: true }
    }

    /// Every channel of the whole batch is a set.
    pub fn batch(batch: usize, channels: usize, size: usize, eps: f64, of_batch: bool) -> Self {
        Self {
            batch,
            channels,
            size,
            sets: channels,
            planes: batch,
            stride: channels,
            eps: eps as f32,
            silu: false,
            of_set: of_batch,
        }
    }

    fn count(&self) -> usize {
        self.batch * self.channels * self.size
    }
}

/// What a normalisation of planes is given.
pub struct PlaneNormInputs<'a, B> {
    pub xs: &'a B,
    pub mean: &'a B,
    pub variance: &'a B,
    pub weight: &'a B,
    pub bias: &'a B,
}

impl<M: Machine> Kernels<'_, M> {
    /// Of rows of `width` values.
    pub fn layer_norm(
        &self,
        xs: &M::Buffer,
        weight: &M::Buffer,
        bias: &M::Buffer,
        (rows, width): (usize, usize),
        eps: f64,
    ) -> Result<M::Buffer> {
        let out = self.values(rows * width)?;
        self.warps(Source::Norm, "layer_norm", rows, args![xs, weight, bias, &out, rows, width, eps as f32])?;
        Ok(out)
    }

    /// Gradient of [`Self::layer_norm`] for the inputs; for weight and then bias (2 · width) in f32.
    pub fn layer_norm_gradient(
        &self,
        xs: &M::Buffer,
        weight: &M::Buffer,
        gradient: &M::Buffer,
        (rows, width): (usize, usize),
        eps: f64,
    ) -> Result<(M::Buffer, M::Buffer)> {
        let (for_xs, stats) = (self.values(rows * width)?, self.floats(2 * rows)?);
        let args = args![xs, weight, gradient, &stats, &for_xs, rows, width, eps as f32];
        self.warps(Source::Norm, "layer_norm_gradient", rows, args)?;
        let (per_share, parts) = shares_of(rows);
        let shares = self.floats(2 * parts * width)?;
        let grid = [width.div_ceil(BLOCK), parts];
        self.blocks(Source::Norm, "layer_norm_shares", grid, args![xs, gradient, &stats, &shares, rows, width, per_share])?;
        Ok((for_xs, self.column_totals(&shares, parts, 2 * width)?))
    }

    /// Mean and biased variance of every set.
    pub fn plane_statistics(&self, xs: &M::Buffer, norm: PlaneNorm) -> Result<(M::Buffer, M::Buffer)> {
        let PlaneNorm { sets, planes, stride, size, .. } = norm;
        let (moments, mean, variance) = (self.floats(2 * sets * planes)?, self.floats(sets)?, self.floats(sets)?);
        self.blocks(Source::Norm, "plane_moments", [sets * planes, 1], args![xs, &moments, size])?;
        let args = args![&moments, &mean, &variance, sets, planes, stride, size];
        self.threads(Source::Norm, "combine_moments", sets, args)?;
        Ok((mean, variance))
    }

    /// With given statistics.
    pub fn plane_norm(&self, given: &PlaneNormInputs<M::Buffer>, norm: PlaneNorm) -> Result<M::Buffer> {
        let PlaneNormInputs { xs, mean, variance, weight, bias } = *given;
        let PlaneNorm { channels, size, planes, stride, eps, silu, .. } = norm;
        let (count, out) = (norm.count(), self.values(norm.count())?);
        let silu = usize::from(silu);
        let args = args![xs, mean, variance, weight, bias, &out, count, size, channels, planes, stride, eps, silu];
        self.threads(Source::Norm, "plane_norm", count, args)?;
        Ok(out)
    }

    /// Gradient of [`Self::plane_norm`] for the inputs; for weight and then bias (2 · channels) in f32.
    pub fn plane_norm_gradient(
        &self,
        given: &PlaneNormInputs<M::Buffer>,
        gradient: &M::Buffer,
        norm: PlaneNorm,
    ) -> Result<(M::Buffer, M::Buffer)> {
        let PlaneNormInputs { xs, mean, variance, weight, bias } = *given;
        let PlaneNorm { batch, channels, size, sets, planes, stride, eps, .. } = norm;
        let (silu, of_set, count) = (usize::from(norm.silu), usize::from(norm.of_set), norm.count());
        let (sums, means) = (self.floats(2 * batch * channels)?, self.floats(2 * sets)?);
        let args = args![xs, gradient, mean, variance, weight, bias, &sums, size, channels, planes, stride, eps, silu];
        self.blocks(Source::Norm, "plane_norm_sums", [batch * channels, 1], args)?;
        let args = args![&sums, weight, &means, sets, size, channels, planes, stride];
        self.threads(Source::Norm, "plane_norm_means", sets, args)?;
        let out = self.values(count)?;
        let args = args![
            xs, gradient, mean, variance, weight, bias, &means, &out, count, size, channels, planes, stride, eps, silu, of_set
        ];
        self.threads(Source::Norm, "plane_norm_gradient", count, args)?;
        Ok((out, self.column_totals(&sums, batch, 2 * channels)?))
    }
}
