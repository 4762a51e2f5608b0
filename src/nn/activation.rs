//! Activations and softmax.

use candle_core::{D, Result, Tensor};

/// GELU, exact (error function). # Shapes: any → same
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    xs.gelu_erf()
}

/// `x · sigmoid(1.702 x)`, CLIP's GELU. # Shapes: any → same
pub fn quick_gelu(xs: &Tensor) -> Result<Tensor> {
    xs * sigmoid(&(xs * 1.702)?)?
}

/// `x · sigmoid(x)`. # Shapes: any → same
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    xs * sigmoid(xs)?
}

fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    (xs.neg()?.exp()? + 1.0)?.recip()
}

/// max(x, 0). # Shapes: any → same
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    xs.relu()
}

/// min(max(x, 0), 6). # Shapes: any → same
pub fn relu6(xs: &Tensor) -> Result<Tensor> {
    xs.clamp(0.0, 6.0)
}

/// Gated GELU: the last dimension is split in halves (h, g) → `h · gelu(g)`.
///
/// # Shapes
/// `xs` (…, 2D) → (…, D)
pub fn geglu(xs: &Tensor) -> Result<Tensor> {
    let halves = xs.chunk(2, D::Minus1)?;
    &halves[0] * gelu(&halves[1].contiguous()?)?
}

/// Softmax over the last dimension. # Shapes: (…, N) → same
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    let shifted = xs.broadcast_sub(&xs.max_keepdim(D::Minus1)?.detach())?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
}
