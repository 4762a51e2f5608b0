//! Updates of f32 parameters in place.

use super::super::machine::{BLOCK, Kernels, Machine, Source, args};
use super::loss::SUM_BLOCKS;
use candle_core::Result;

/// The factors of one AdamW step, see `train::optim`.
#[derive(Debug, Clone, Copy)]
pub struct AdamWFactors {
    /// 1 − learning rate · weight decay.
    pub keep: f32,
    pub beta1: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    /// √(1 − β2^k)
    pub root_correction2: f32,
    pub epsilon: f32,
    /// learning rate / (1 − β1^k)
    pub step_size: f32,
}

impl<M: Machine> Kernels<'_, M> {
    /// The L2 norm over all of `gradients` (with their lengths), and the factor that clips it to `limit` (none for 0).
    pub fn clip(&self, gradients: &[(M::Buffer, usize)], limit: f32) -> Result<M::Buffer> {
        let blocks = |len: usize| len.div_ceil(BLOCK).min(SUM_BLOCKS);
        let total = gradients.iter().map(|(_, len)| blocks(*len)).sum();
        let (shares, norm) = (self.floats(total)?, self.floats(2)?);
        let mut start = 0;
        for (gradient, len) in gradients {
            let args = args![gradient, &shares, start, *len];
            self.blocks(Source::Optimizer, "square_shares", [blocks(*len), 1], args)?;
            start += blocks(*len);
        }
        self.blocks(Source::Optimizer, "clip", [1, 1], args![&shares, &norm, total, limit])?;
        Ok(norm)
    }

    /// One AdamW step of `count` values; `moments` (2, count). `norm` is what [`Self::clip`] gave.
    pub fn adamw(
        &self,
        parameter: &M::Buffer,
        moments: &M::Buffer,
        gradient: &M::Buffer,
        norm: &M::Buffer,
        count: usize,
        f: &AdamWFactors,
    ) -> Result<()> {
        let args = args![
            parameter,
            moments,
            gradient,
            norm,
            count,
            f.keep,
            f.beta1,
            f.one_minus_beta1,
            f.beta2,
            f.one_minus_beta2,
            f.root_correction2,
            f.epsilon,
            f.step_size
        ];
        self.threads(Source::Optimizer, "adamw", count, args)
    }

    /// `average ← decay · average + (1 − decay) · latest`
    pub fn running_average(&self, average: &M::Buffer, latest: &M::Buffer, count: usize, decay: f64) -> Result<()> {
        let args = args![average, latest, count, decay as f32, (1.0 - decay) as f32];
        self.threads(Source::Optimizer, "running_average", count, args)
    }
}
