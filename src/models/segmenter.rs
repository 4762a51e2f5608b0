//! What every segmenter can do.

use crate::nn::Pass;
use candle_core::{Result, Tensor};

/// Predicts a class per pixel.
pub trait Segmenter {
    /// Encoder outputs, finest first. # Shapes: (B, 3, H, W) → maps of strides 4, 8, 16, 32
    fn features(&self, images: &Tensor, pass: &Pass) -> Result<Vec<Tensor>>;
    /// Class logits of encoder outputs. # Shapes: → (B, K, H/4, W/4)
    fn head(&self, features: &[Tensor], pass: &Pass) -> Result<Tensor>;
    /// Class logits of images. # Shapes: (B, 3, H, W) → (B, K, H/4, W/4)
    fn forward(&self, images: &Tensor, pass: &Pass) -> Result<Tensor> {
        self.head(&self.features(images, pass)?, pass)
    }
}
