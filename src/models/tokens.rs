//! Feature maps as lists of tokens, and back.

use crate::nn::Linear;
use candle_core::{Result, Tensor};

/// A linear layer on every pixel.
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, D, H, W)
pub(crate) fn per_pixel(layer: &Linear, xs: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    tokens_to_map(&layer.forward(&map_to_tokens(xs)?)?, (height, width))
}

/// # Shapes
/// (B, C, H, W) → (B, H·W, C), contiguous
pub(crate) fn map_to_tokens(xs: &Tensor) -> Result<Tensor> {
    xs.flatten_from(2)?.transpose(1, 2)?.contiguous()
}

/// # Shapes
/// (B, H·W, C) and `grid` (H, W) → (B, C, H, W)
pub(crate) fn tokens_to_map(xs: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
    let (batch, _, channels) = xs.dims3()?;
    xs.transpose(1, 2)?.reshape((batch, channels, grid.0, grid.1))
}
