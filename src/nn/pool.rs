//! Pooling.

use super::ConvSpec;
use candle_core::{Result, Tensor};

/// Maximum over `kernel`×`kernel` windows; `spec` gives stride and padding (padded places never win).
///
/// # Shapes
/// `xs` (B, C, H, W) → (B, C, H', W') as for a convolution
pub fn max_pool2d(xs: &Tensor, kernel: usize, spec: ConvSpec) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    let out = |size: usize| (size + 2 * spec.padding - kernel) / spec.stride + 1;
    let low = xs.min_all()?.to_scalar::<f32>()?.min(0.0) as f64;
    let padded = (xs - low)?.pad_with_zeros(2, spec.padding, spec.padding + spec.stride)?.pad_with_zeros(
        3,
        spec.padding,
        spec.padding + spec.stride,
    )?;
    let mut best: Option<Tensor> = None;
    for ky in 0..kernel {
        for kx in 0..kernel {
            let pick = |start: usize, count: usize| {
                let indices: Vec<u32> = (0..count).map(|i| (start + i * spec.stride) as u32).collect();
                Tensor::from_vec(indices, count, xs.device())
            };
            let view = padded.index_select(&pick(ky, out(height))?, 2)?.index_select(&pick(kx, out(width))?, 3)?;
            best = Some(match best {
                Some(best) => best.maximum(&view)?,
                None => view,
            });
        }
    }
    best.ok_or_else(|| candle_core::Error::Msg("max_pool2d with an empty kernel".into()))? + low
}
