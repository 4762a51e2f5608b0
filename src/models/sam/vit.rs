//! SAM's image encoder: a plain vision transformer with window attention, four blocks of global attention, and relative
//! positions in each.

use super::blocks::{Activation, Mlp, Neck, attend, from_windows, to_windows};
use crate::base::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init, LayerNorm, Linear, attention, join_heads};
use candle_core::{D, Result as TensorResult, Tensor};

/// Most features of a query with which relative positions are computed as such.
const FEW: usize = 64;
/// Side of a patch in pixels.
pub(super) const PATCH: usize = 16;

/// Sizes of the encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VitConfig {
    /// Features of a token.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Blocks that attend to the whole image.
    pub global: Vec<usize>,
    /// Side of the windows of the other blocks, in tokens.
    pub window: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Vit {
    patches: Conv2d,
    positions: Tensor,
    blocks: Vec<Block>,
    neck: Neck,
}

impl Vit {
    /// `grid` is the side of the image in tokens.
    pub(super) fn new(config: &VitConfig, grid: usize, outputs: usize, builder: &Builder) -> Result<Self> {
        let spec = ConvSpec { stride: PATCH, ..ConvSpec::default() };
        let block = |i: usize| {
            let window = if config.global.contains(&i) { None } else { Some(config.window) };
            Block::new(config, window, grid, &builder.pp("blocks").pp(i))
        };
        Ok(Self {
            patches: Conv2d::new(3, config.dim, PATCH, spec, &builder.pp("patch_embed").pp("proj"))?,
            positions: builder.get(&[1, grid, grid, config.dim], "pos_embed", Init::Zeros)?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            neck: Neck::new(config.dim, outputs, &builder.pp("neck"))?,
        })
    }

    /// (B, 3, 16·g, 16·g) → (B, 256, g, g)
    pub(super) fn forward(&self, images: &Tensor) -> TensorResult<Tensor> {
        let mut xs = self.patches.forward(images)?.permute((0, 2, 3, 1))?.broadcast_add(&self.positions)?; // (B, g, g, C)
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        self.neck.forward(&xs.permute((0, 3, 1, 2))?.contiguous()?)
    }
}

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
    /// Side of the windows; none for the whole image.
    window: Option<usize>,
}

impl Block {
    fn new(config: &VitConfig, window: Option<usize>, grid: usize, builder: &Builder) -> Result<Self> {
        let dim = config.dim;
        let norm = |name: &str| LayerNorm::new(dim, 1e-6, &builder.pp(name));
        Ok(Self {
            norm1: norm("norm1")?,
            attention: Attention::new(dim, config.heads, window.unwrap_or(grid), &builder.pp("attn"))?,
            norm2: norm("norm2")?,
            mlp: Mlp::new(&[dim, 4 * dim, dim], &["lin1", "lin2"], Activation::Gelu, &builder.pp("mlp"))?,
            window,
        })
    }

    /// (B, H, W, C) → same
    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let (_, height, width, _) = xs.dims4()?;
        let normed = self.norm1.forward(xs)?;
        let attended = match self.window {
            Some(size) => {
                let windows = self.attention.forward(&to_windows(&normed, size)?)?;
                from_windows(&windows, size, (height, width))?
            }
            None => self.attention.forward(&normed)?.reshape(xs.shape())?,
        };
        let xs = (xs + attended)?;
        &xs + self.mlp.forward(&self.norm2.forward(&xs)?)?
    }
}

/// Self-attention over a square of tokens; the scores of a query depend on how many rows and columns a key is away.
#[derive(Debug)]
struct Attention {
    qkv: Linear,
    out: Linear,
    rows: Tensor,
    columns: Tensor,
    heads: usize,
}

impl Attention {
    fn new(dim: usize, heads: usize, side: usize, builder: &Builder) -> Result<Self> {
        let relative = |name: &str| builder.get(&[2 * side - 1, dim / heads], name, Init::Zeros);
        Ok(Self {
            qkv: Linear::new(dim, 3 * dim, &builder.pp("qkv"))?,
            out: Linear::new(dim, dim, &builder.pp("proj"))?,
            rows: relative("rel_pos_h")?,
            columns: relative("rel_pos_w")?,
            heads,
        })
    }

    /// (B, S, S, C) → (B, S·S, C)
    fn forward(&self, xs: &Tensor) -> TensorResult<Tensor> {
        let (batch, side, _, dim) = xs.dims4()?;
        let (tokens, head) = (side * side, dim / self.heads);
        let qkv = self.qkv.forward(&xs.reshape((batch, tokens, dim))?)?.reshape((batch, tokens, 3, self.heads, head))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous(); // (B, heads, N, d)
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let (by_row, by_column) = self.relative(&q, side)?; // (B, heads, N, S) each
        let scaled = (&q * (1.0 / (head as f64).sqrt()))?;
        if side <= head && head + 2 * side <= FEW {
            return self.out.forward(&join_heads(&as_features(&scaled, [&k, &v], [&by_row, &by_column])?)?);
        }
        let bias = |start: usize, len: usize| {
            let rows = by_row.narrow(2, start, len)?.unsqueeze(D::Minus1)?; // (B, heads, len, S, 1)
            let columns = by_column.narrow(2, start, len)?.unsqueeze(3)?; // (B, heads, len, 1, S)
            rows.broadcast_add(&columns)?.reshape((batch, self.heads, len, tokens))
        };
        self.out.forward(&join_heads(&attend(&scaled, &k, &v, bias)?)?)
    }

    /// What each query makes of each row and of each column: (B, heads, N, S) twice.
    ///
    /// # Source
    /// MViTv2, section 4.1: decomposed relative positions; the unscaled query is used.
    fn relative(&self, q: &Tensor, side: usize) -> TensorResult<(Tensor, Tensor)> {
        let (batch, heads, tokens, head) = q.dims4()?;
        // Line i of the table holds the distances of place i to all others: i − k + S − 1 for k from 0.
        let distances: Vec<u32> = (0..side).flat_map(|i| (0..side).map(move |k| (i + side - 1 - k) as u32)).collect();
        let distances = Tensor::new(distances, q.device())?;
        let table = |embeddings: &Tensor| {
            embeddings.index_select(&distances, 0)?.reshape((side, side, head))?.transpose(1, 2)?.contiguous() // (S, d, S)
        };
        let grid = q.reshape((batch * heads, side, side, head))?;
        // One product for each row of queries, then one for each column.
        let by_row =
            grid.transpose(0, 1)?.contiguous()?.reshape((side, batch * heads * side, head))?.matmul(&table(&self.rows)?)?;
        let by_row = by_row.reshape((side, batch * heads, side, side))?.transpose(0, 1)?.contiguous()?;
        let by_column = grid.permute((2, 0, 1, 3))?.contiguous()?.reshape((side, batch * heads * side, head))?;
        let by_column = by_column.matmul(&table(&self.columns)?)?.reshape((side, batch * heads, side, side))?;
        let by_column = by_column.permute((1, 2, 0, 3))?.contiguous()?;
        let shape = (batch, heads, tokens, side);
        Ok((by_row.reshape(shape)?, by_column.reshape(shape)?))
    }
}

/// Attention with relative positions as further features, so that there is no matrix of scores: what a query makes of a row is
/// multiplied by 1 for keys in that row, by 0 for others. Worth it for few features; ViT-B's encoder takes 1.2 times as long this way.
///
/// # Shapes
/// `q`, `k`, `v` (B, heads, S·S, d), `by_row` and `by_column` (B, heads, S·S, S) → (B, heads, S·S, d)
fn as_features(q: &Tensor, [k, v]: [&Tensor; 2], [by_row, by_column]: [&Tensor; 2]) -> TensorResult<Tensor> {
    let (batch, heads, tokens, head) = q.dims4()?;
    let side = by_row.dim(3)?;
    let of_token = |token: usize| (0..2 * side).map(move |i| if i < side { i == token / side } else { i - side == token % side });
    let places: Vec<f32> = (0..tokens).flat_map(of_token).map(|here| f32::from(u8::from(here))).collect();
    let places = Tensor::from_vec(places, (1, 1, tokens, 2 * side), q.device())?.to_dtype(q.dtype())?;
    let places = places.broadcast_as((batch, heads, tokens, 2 * side))?.contiguous()?;
    let alone = |xs: Tensor| xs.contiguous()?.reshape((batch * heads, tokens, head + 2 * side));
    let q = alone(Tensor::cat(&[q, by_row, by_column], 3)?)?;
    let k = alone(Tensor::cat(&[k, &places], 3)?)?;
    let v = alone(v.pad_with_zeros(3, 0, 2 * side)?)?;
    attention(&q, &k, &v, 1, 1.0, false)?.narrow(2, 0, head)?.contiguous()?.reshape((batch, heads, tokens, head))
}
