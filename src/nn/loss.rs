//! Losses.

use candle_core::{DType, Result, Tensor};

/// Weighted cross-entropy of per-pixel logits, averaged over **all** pixels, ignored ones included.
///
/// # Shapes
/// `logits` (B, K, H, W), `labels` (B, H, W) u32 where values ≥ K are ignored (`ignore_index`), `weights` (B, H, W) f32 → scalar
///
/// # Source
/// mmseg's cross-entropy as DAFormer uses it: ignored pixels give 0 and still count in the mean.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let classes = logits.dim(1)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?;
    let valid = labels.lt(classes as u32)?;
    let safe = valid.where_cond(labels, &labels.zeros_like()?)?;
    let picked = shifted.gather(&safe.unsqueeze(1)?.contiguous()?, 1)?;
    let losses = ((log_sum - picked)?.squeeze(1)? * valid.to_dtype(DType::F32)?)?;
    let losses = match weights {
        Some(weights) => (losses * weights)?,
        None => losses,
    };
    losses.mean_all()
}

/// Mean squared error over all values. # Shapes: equal → scalar
pub fn mse(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    (prediction - target)?.sqr()?.mean_all()
}
