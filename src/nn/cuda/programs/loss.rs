//! Losses in f32: single values, or two for each mask.

use super::super::machine::{BLOCK, Kernels, Machine, Source, args};
use candle_core::Result;

/// Blocks that share the work of a sum, at most.
pub const SUM_BLOCKS: usize = 512;

/// What a cross-entropy is given: logits (images, classes, size), labels and weights (images, size).
pub struct CrossEntropyInputs<'a, B> {
    pub logits: &'a B,
    pub labels: &'a B,
    pub weights: &'a B,
    pub images: usize,
    pub classes: usize,
    pub size: usize,
}

impl<M: Machine> Kernels<'_, M> {
    /// The loss, and log Σ exp of every pixel.
    pub fn cross_entropy(&self, given: &CrossEntropyInputs<M::Buffer>) -> Result<(M::Buffer, M::Buffer)> {
        let CrossEntropyInputs { logits, labels, weights, images, classes, size } = *given;
        let pixels = images * size;
        let (blocks, log_sums) = (pixels.div_ceil(BLOCK), self.floats(pixels)?);
        let shares = self.floats(blocks)?;
        let args = args![logits, labels, weights, &log_sums, &shares, pixels, classes, size];
        self.threads(Source::Loss, "cross_entropy", pixels, args)?;
        Ok((self.mean_of_shares(&shares, blocks, pixels)?, log_sums))
    }

    /// Gradient of [`Self::cross_entropy`] for the logits.
    pub fn cross_entropy_gradient(
        &self,
        given: &CrossEntropyInputs<M::Buffer>,
        log_sums: &M::Buffer,
        gradient: &M::Buffer,
    ) -> Result<M::Buffer> {
        let CrossEntropyInputs { logits, labels, weights, images, classes, size } = *given;
        let count = images * classes * size;
        let out = self.values(count)?;
        let args = args![logits, labels, weights, log_sums, gradient, &out, count, classes, size, images * size];
        self.threads(Source::Loss, "cross_entropy_gradient", count, args)?;
        Ok(out)
    }

    fn mean_of_shares(&self, shares: &M::Buffer, count: usize, divisor: usize) -> Result<M::Buffer> {
        let out = self.floats(1)?;
        self.blocks(Source::Loss, "mean_of_shares", [1, 1], args![shares, &out, count, divisor as f32])?;
        Ok(out)
    }

    /// Mean of (x − y)².
    pub fn squared_error(&self, xs: &M::Buffer, ys: &M::Buffer, count: usize) -> Result<M::Buffer> {
        let blocks = count.div_ceil(BLOCK).min(SUM_BLOCKS);
        let shares = self.floats(blocks)?;
        self.blocks(Source::Loss, "squared_error", [blocks, 1], args![xs, ys, &shares, count])?;
        self.mean_of_shares(&shares, blocks, count)
    }

    /// Gradient of [`Self::squared_error`] for `xs`; turn the arguments round for `ys`.
    pub fn squared_error_gradient(
        &self,
        xs: &M::Buffer,
        ys: &M::Buffer,
        gradient: &M::Buffer,
        count: usize,
    ) -> Result<M::Buffer> {
        let out = self.values(count)?;
        self.threads(Source::Loss, "squared_error_gradient", count, args![xs, ys, gradient, &out, count])?;
        Ok(out)
    }

    /// Cross-entropy and Dice loss of every row of `logits` (masks, points): (masks, 2) in f32. `targets` are f32.
    pub fn mask_losses(&self, logits: &M::Buffer, targets: &M::Buffer, masks: usize, points: usize) -> Result<M::Buffer> {
        let out = self.floats(2 * masks)?;
        self.blocks(Source::Loss, "mask_losses", [masks, 1], args![logits, targets, &out, points])?;
        Ok(out)
    }

    /// Gradient of [`Self::mask_losses`] for the logits; `gradient` (masks, 2) is f32.
    pub fn mask_losses_gradient(
        &self,
        logits: &M::Buffer,
        targets: &M::Buffer,
        gradient: &M::Buffer,
        masks: usize,
        points: usize,
    ) -> Result<M::Buffer> {
        let out = self.values(masks * points)?;
        self.blocks(Source::Loss, "mask_losses_gradient", [masks, 1], args![logits, targets, gradient, &out, points])?;
        Ok(out)
    }
}
