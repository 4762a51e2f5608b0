//! Operations as sequences of kernels, forward and backward. Nothing here knows what runs them.

mod attention;
mod loss;
mod maps;
mod norm;
mod optimizer;
mod sampling;

pub use attention::{AttentionGiven, AttentionSizes};
pub use loss::CrossEntropyInputs;
pub use maps::{PoolSizes, ResizeSizes};
pub use norm::{PlaneNorm, PlaneNormInputs};
pub use optimizer::AdamWFactors;
pub use sampling::{DeformableInputs, DeformableSizes, PointSizes};

use super::machine::{BLOCK, Kernels, Machine, Source, args};
use candle_core::Result;

/// Rows of a matrix whose column sums are computed together, at least.
const ROWS: usize = 64;

/// Parts that column sums of long matrices are cut into, about.
const PARTS: usize = 256;

impl<M: Machine> Kernels<'_, M> {
    /// The activation number `activation` of `count` values.
    pub fn activation(&self, xs: &M::Buffer, count: usize, activation: usize) -> Result<M::Buffer> {
        let out = self.values(count)?;
        self.threads(Source::Activation, "activation", count, args![xs, &out, count, activation])?;
        Ok(out)
    }

    /// Gradient of [`Self::activation`].
    pub fn activation_gradient(
        &self,
        xs: &M::Buffer,
        gradient: &M::Buffer,
        count: usize,
        activation: usize,
    ) -> Result<M::Buffer> {
        let out = self.values(count)?;
        self.threads(Source::Activation, "activation_gradient", count, args![xs, gradient, &out, count, activation])?;
        Ok(out)
    }

    /// `xs` (rows, 2·width) → (rows, width)
    pub fn geglu(&self, xs: &M::Buffer, rows: usize, width: usize) -> Result<M::Buffer> {
        let count = rows * width;
        let out = self.values(count)?;
        self.threads(Source::Activation, "geglu", count, args![xs, &out, count, width])?;
        Ok(out)
    }

    /// Gradient of [`Self::geglu`].
    pub fn geglu_gradient(&self, xs: &M::Buffer, gradient: &M::Buffer, rows: usize, width: usize) -> Result<M::Buffer> {
        let (count, out) = (rows * width, self.values(2 * rows * width)?);
        self.threads(Source::Activation, "geglu_gradient", count, args![xs, gradient, &out, count, width])?;
        Ok(out)
    }

    /// Softmax of rows.
    pub fn softmax(&self, xs: &M::Buffer, rows: usize, width: usize) -> Result<M::Buffer> {
        let out = self.values(rows * width)?;
        self.warps(Source::Activation, "softmax", rows, args![xs, &out, rows, width])?;
        Ok(out)
    }

    /// Gradient of [`Self::softmax`] from its result.
    pub fn softmax_gradient(&self, result: &M::Buffer, gradient: &M::Buffer, rows: usize, width: usize) -> Result<M::Buffer> {
        let out = self.values(rows * width)?;
        self.warps(Source::Activation, "softmax_gradient", rows, args![result, gradient, &out, rows, width])?;
        Ok(out)
    }

    /// Adds `bias` (channels) to `out` (…, channels, size).
    pub fn add_bias(&self, out: &M::Buffer, bias: &M::Buffer, count: usize, channels: usize, size: usize) -> Result<()> {
        self.threads(Source::Reduce, "add_bias", count, args![out, bias, count, size, channels])
    }

    /// Sums over the rows of `xs` (rows, width): (width) in f32.
    pub fn column_sums(&self, xs: &M::Buffer, rows: usize, width: usize) -> Result<M::Buffer> {
        let (per_share, parts) = shares_of(rows);
        let shares = self.floats(parts * width)?;
        let grid = [width.div_ceil(BLOCK), parts];
        self.blocks(Source::Reduce, "column_shares", grid, args![xs, &shares, rows, width, per_share])?;
        self.column_totals(&shares, parts, width)
    }

    /// Sums over the rows of f32 `xs` (rows, width), one thread a column.
    fn column_totals(&self, xs: &M::Buffer, rows: usize, width: usize) -> Result<M::Buffer> {
        let out = self.floats(width)?;
        self.threads(Source::Reduce, "column_totals", width, args![xs, &out, rows, width])?;
        Ok(out)
    }

    /// Sums over batch and positions of `xs` (batch, channels, size): (channels) in f32.
    pub fn channel_sums(&self, xs: &M::Buffer, batch: usize, channels: usize, size: usize) -> Result<M::Buffer> {
        let sums = self.floats(batch * channels)?;
        self.blocks(Source::Reduce, "plane_sums", [batch * channels, 1], args![xs, &sums, size])?;
        self.column_totals(&sums, batch, channels)
    }
}

/// How many rows share a partial sum, and how many partial sums there are.
fn shares_of(rows: usize) -> (usize, usize) {
    let per_share = rows.div_ceil(PARTS).max(ROWS);
    (per_share, rows.div_ceil(per_share))
}
