//! Scaled dot-product attention.

use super::softmax;
use candle_core::{Result, Tensor};

/// `softmax(q·kᵀ·scale)·v` per head; `causal` hides later keys from earlier queries.
///
/// # Shapes
/// `q` (B, heads, N, d), `k` and `v` (B, heads, M, d) → (B, heads, N, d)
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, causal: bool) -> Result<Tensor> {
    let scores = (q.contiguous()?.matmul(&k.transpose(2, 3)?.contiguous()?)? * f64::from(scale))?;
    let scores = if causal {
        let (n, m) = (q.dim(2)?, k.dim(2)?);
        let mask: Vec<f32> = (0..n * m).map(|i| if i % m > i / m { f32::NEG_INFINITY } else { 0.0 }).collect();
        scores.broadcast_add(&Tensor::from_vec(mask, (n, m), q.device())?)?
    } else {
        scores
    };
    softmax(&scores)?.matmul(&v.contiguous()?)
}

/// # Shapes
/// (B, N, heads·d) → (B, heads, N, d), contiguous
pub fn split_heads(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, dim) = xs.dims3()?;
    xs.reshape((batch, tokens, heads, dim / heads))?.transpose(1, 2)?.contiguous()
}

/// # Shapes
/// (B, heads, N, d) → (B, N, heads·d)
pub fn join_heads(xs: &Tensor) -> Result<Tensor> {
    let (batch, heads, tokens, dim) = xs.dims4()?;
    xs.transpose(1, 2)?.reshape((batch, tokens, heads * dim))
}
