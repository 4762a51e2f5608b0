//! Feature maps as lists of tokens, and back.

use crate::nn::{Linear, swap_axes};
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
    let (batch, channels, height, width) = xs.dims4()?;
    swap_axes(xs, [batch, channels, height * width, 1], (batch, height * width, channels))
}

/// # Shapes
/// (B, H·W, C) and `grid` (H, W) → (B, C, H, W), contiguous
pub(crate) fn tokens_to_map(xs: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
    let (batch, tokens, channels) = xs.dims3()?;
    swap_axes(xs, [batch, tokens, channels, 1], (batch, channels, grid.0, grid.1))
}
