//! From classes and masks of queries to scores of pixels.

use super::Prediction;
use crate::nn::{resize_bilinear_rows, sigmoid, softmax};
use candle_core::{Result, Tensor};

/// Rows of the result computed at once: the masks never exist at full size.
const BAND: usize = 64;

/// Score of each class at each pixel: `Σ softmax(logits)·sigmoid(mask)` over the queries, masks resized to `size`.
/// "No object" is left out. The largest score names the class.
///
/// # Shapes
/// `prediction` of (B, Q, K + 1) and (B, Q, h, w) → (B, K, H, W) for `size` (H, W), without gradient
///
/// # Source
/// MaskFormer, section 3.4, semantic inference.
pub fn semantic_scores(prediction: &Prediction, size: (usize, usize)) -> Result<Tensor> {
    let (batch, queries, classes) = prediction.logits.dims3()?;
    let probabilities = softmax(&prediction.logits.detach())?.narrow(2, 0, classes - 1)?;
    let probabilities = probabilities.transpose(1, 2)?.contiguous()?; // (B, K, Q)
    let masks = prediction.masks.detach();
    let band = |start: usize| -> Result<Tensor> {
        let rows = start..(start + BAND).min(size.0);
        let count = rows.len();
        let inside = sigmoid(&resize_bilinear_rows(&masks, size, rows)?)?.reshape((batch, queries, count * size.1))?;
        probabilities.matmul(&inside)?.reshape((batch, classes - 1, count, size.1))
    };
    Tensor::cat(&(0..size.0).step_by(BAND).map(band).collect::<Result<Vec<_>>>()?, 2)
}
