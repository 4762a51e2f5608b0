//! How a forward pass behaves: which random layers are on, and where batch norm takes its statistics from.

use super::combine::scale_parts;
use crate::base::Rng;
use crate::base::group::Share;
use candle_core::{Result, Tensor};
use std::cell::RefCell;

/// The mode of one forward pass, handed down through the layers that care.
#[derive(Debug)]
pub struct Pass {
    batch_statistics: bool,
    draws: Option<RefCell<Rng>>,
    share: Share,
}

impl Pass {
    /// Inference: running statistics, nothing random.
    pub fn eval() -> Self {
        Self { batch_statistics: false, draws: None, share: Share::whole() }
    }

    /// Training: batch statistics (running ones are updated), dropout and drop-path drawn from `rng`, item by item, for the batch
    /// of all processes.
    pub fn train(rng: Rng) -> Self {
        Self { batch_statistics: true, draws: Some(RefCell::new(rng)), share: Share::whole() }
    }

    /// Batch statistics without dropout and drop-path: how the self-training teacher predicts.
    pub fn statistics_only() -> Self {
        Self { batch_statistics: true, draws: None, share: Share::whole() }
    }

    /// The pass of one share of the batch: draws are those of its rows, statistics those of all.
    pub fn of(self, share: &Share) -> Self {
        Self { share: share.clone(), ..self }
    }

    /// The share of the batch this pass is of.
    pub(super) fn share(&self) -> &Share {
        &self.share
    }

    /// True when batch norm uses (and records) the statistics of the batch.
    pub fn uses_batch_statistics(&self) -> bool {
        self.batch_statistics
    }

    /// Stochastic depth: zeroes whole items of the batch with probability `rate`, scales the others by 1/(1 − rate).
    ///
    /// # Shapes
    /// `xs` (B, …) → same
    pub fn drop_path(&self, xs: &Tensor, rate: f32) -> Result<Tensor> {
        let batch = xs.dim(0)?;
        let mut shape = vec![1; xs.rank()];
        shape[0] = batch;
        self.drop(xs, rate, &shape)
    }

    /// Channel dropout: zeroes whole channels with probability `rate`, scales the others by 1/(1 − rate).
    ///
    /// # Shapes
    /// `xs` (B, C, H, W) → same
    pub fn dropout2d(&self, xs: &Tensor, rate: f32) -> Result<Tensor> {
        let (batch, channels, _, _) = xs.dims4()?;
        self.drop(xs, rate, &[batch, channels, 1, 1])
    }

    /// Plain dropout of single values.
    pub fn dropout(&self, xs: &Tensor, rate: f32) -> Result<Tensor> {
        self.drop(xs, rate, xs.dims())
    }

    fn drop(&self, xs: &Tensor, rate: f32, mask_shape: &[usize]) -> Result<Tensor> {
        let Some(draws) = self.draws.as_ref().filter(|_| rate > 0.0) else { return Ok(xs.clone()) };
        let keep = 1.0 - rate;
        let mut draws = draws.borrow_mut();
        let width = mask_shape[1..].iter().product();
        let draw = || if draws.uniform() < keep { 1.0 / keep } else { 0.0 };
        let mask: Vec<f32> = self.share.group().own_rows(mask_shape[0], width, draw);
        scale_parts(xs, mask, mask_shape)
    }
}
