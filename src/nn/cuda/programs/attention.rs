//! Scaled dot-product attention.

use super::super::machine::{Kernels, Machine, Source, args};
use candle_core::{Result, bail};

/// Rows and columns of a tile of scores (TILE of the kernels).
const TILE: usize = 64;

/// Sizes of one attention: queries (heads, queries, dim), keys and values (heads, keys, dim).
#[derive(Debug, Clone, Copy)]
pub struct AttentionSizes {
    /// Heads of all images.
    pub heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
    pub scale: f32,
    pub causal: bool,
    /// Heads of one image; they share a bias.
    pub sharing: usize,
}

impl AttentionSizes {
    /// The kernels hold sums of `dim` values in registers, so they exist for a few widths.
    fn source(&self) -> Result<Source> {
        match self.dim.div_ceil(TILE) {
            1 => Ok(Source::Attention(1)),
            2 => Ok(Source::Attention(2)),
            3 => Ok(Source::Attention(3)),
            4..=8 => Ok(Source::Attention(8)),
            _ => bail!("attention: heads of {} dimensions; the kernels take at most 512", self.dim),
        }
    }
}

/// Queries, keys and values.
pub type Qkv<'a, B> = [&'a B; 3];

/// What the backward pass has besides the arguments.
pub struct AttentionGiven<'a, B> {
    /// As in the forward pass.
    pub bias: Option<&'a B>,
    pub gradient: &'a B,
    /// Log Σ exp of every score row, from the forward pass.
    pub log_sums: &'a B,
    /// Σ result · gradient of every row.
    pub means: &'a B,
}

impl<M: Machine> Kernels<'_, M> {
    /// The result, and log Σ exp of every score row in f32. `bias` (images, queries, keys) is f32 and finite.
    pub fn attention(
        &self,
        [q, k, v]: Qkv<M::Buffer>,
        bias: Option<&M::Buffer>,
        sizes: AttentionSizes,
    ) -> Result<(M::Buffer, M::Buffer)> {
        let AttentionSizes { heads, queries, keys, dim, scale, causal, sharing } = sizes;
        let (out, log_sums) = (self.values(heads * queries * dim)?, self.floats(heads * queries)?);
        // Without a bias, any pointer will do.
        let (bias, sharing) = bias.map_or((&log_sums, 0), |bias| (bias, sharing));
        let args = args![q, k, v, bias, &out, &log_sums, queries, keys, dim, scale, usize::from(causal), sharing];
        self.blocks(sizes.source()?, "attention", [queries.div_ceil(TILE), heads], args)?;
        Ok((out, log_sums))
    }

    /// Σ result · gradient of every row of queries.
    pub fn attention_means(&self, result: &M::Buffer, gradient: &M::Buffer, sizes: AttentionSizes) -> Result<M::Buffer> {
        let rows = sizes.heads * sizes.queries;
        let means = self.floats(rows)?;
        self.warps(sizes.source()?, "attention_means", rows, args![result, gradient, &means, rows, sizes.dim])?;
        Ok(means)
    }

    /// The gradient of queries (0), keys (1) or values (2).
    pub fn attention_gradient(
        &self,
        [q, k, v]: Qkv<M::Buffer>,
        given: &AttentionGiven<M::Buffer>,
        sizes: AttentionSizes,
        wanted: usize,
    ) -> Result<M::Buffer> {
        let AttentionSizes { heads, queries, keys, dim, scale, causal, sharing } = sizes;
        let AttentionGiven { bias, gradient, log_sums, means } = *given;
        let (bias, sharing) = bias.map_or((log_sums, 0), |bias| (bias, sharing));
        let (rows, columns) = if wanted == 0 { (queries, keys) } else { (keys, queries) };
        // See the kernel for these roles.
        let (a, b, a_slope, b_slope, factor) = match wanted {
            0 => (q, k, gradient, v, k),
            1 => (k, q, v, gradient, q),
            _ => (k, q, v, gradient, gradient),
        };
        let out = self.values(heads * rows * dim)?;
        let causal = usize::from(causal);
        let args = args![
            a, b, a_slope, b_slope, factor, bias, log_sums, means, &out, rows, columns, dim, scale, causal, sharing, wanted
        ];
        self.blocks(sizes.source()?, "attention_gradient", [rows.div_ceil(TILE), heads], args)?;
        Ok(out)
    }
}
