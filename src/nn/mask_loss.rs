//! Losses of binary masks given as logits at sampled points.

use super::activation::sigmoid_of;
use super::cpu;
use super::graph::{self, Reads};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Per mask: the mean binary cross-entropy over its points, and the Dice loss
/// `1 − (2·Σ s·t + 1) / (Σ s + Σ t + 1)` with `s = sigmoid(logit)`. Targets are constants.
///
/// # Shapes
/// `logits` (M, P), `targets` M · P values in 0…1 → (M, 2)
///
/// # Source
/// MaskFormer, equation 1, with Mask2Former's losses on points (section 3.3).
pub fn mask_losses(logits: &Tensor, targets: Vec<f32>) -> Result<Tensor> {
    let (masks, points) = logits.dims2()?;
    if targets.len() != masks * points || points == 0 {
        bail!("mask_losses: logits {:?}, {} targets", logits.shape(), targets.len())
    }
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        return super::cuda::mask_losses(logits, &targets);
    }
    graph::apply1(&logits.contiguous()?, Reads::Arguments, MaskLosses { targets, points })
}

/// `log(1 + eˣ)` without overflow.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    x.max(0.0) + cpu::exp(-x.abs()).ln_1p()
}

struct MaskLosses {
    targets: Vec<f32>,
    points: usize,
}

/// Sums over the points of one mask.
struct Sums {
    cross_entropy: f64,
    overlap: f64,
    size: f64,
}

impl Sums {
    fn new(logits: &[f32], targets: &[f32]) -> Self {
        let mut sums = Self { cross_entropy: 0.0, overlap: 0.0, size: 0.0 };
        for (x, t) in logits.iter().zip(targets) {
            let s = sigmoid_of(*x);
            sums.cross_entropy += f64::from(softplus(*x) - x * t);
            sums.overlap += f64::from(s * t);
            sums.size += f64::from(s + t);
        }
        sums
    }
}

impl CustomOp1 for MaskLosses {
    fn name(&self) -> &'static str {
        "mask-losses"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = cpu::values(storage, layout)?;
        let (masks, points) = layout.shape().dims2()?;
        let of_mask = |(logits, targets)| {
            let sums = Sums::new(logits, targets);
            let dice = 1.0 - (2.0 * sums.overlap + 1.0) / (sums.size + 1.0);
            [(sums.cross_entropy / points as f64) as f32, dice as f32]
        };
        let rows: Vec<[f32; 2]> = logits.par_chunks(points).zip(self.targets.par_chunks(points)).map(of_mask).collect();
        Ok((CpuStorage::F32(rows.concat()), (masks, 2).into()))
    }

    fn bwd(&self, arg: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (logits, g) = (cpu::read(arg)?, cpu::read(&gradient)?);
        let (logits, g) = (&*logits, &*g);
        let points = self.points;
        let out = cpu::fill_chunks(logits.len(), points, |i, out| {
            let range = i * points..(i + 1) * points;
            let (logits, targets) = (&logits[range.clone()], &self.targets[range]);
            let sums = Sums::new(logits, targets);
            let (above, below) = (2.0 * sums.overlap + 1.0, sums.size + 1.0);
            let for_cross_entropy = g[2 * i] / points as f32;
            // d dice / ds = −2t / below + above / below²
            let (along_target, constant) = ((-2.0 / below) as f32, (above / (below * below)) as f32);
            for ((out, x), t) in out.iter_mut().zip(logits).zip(targets) {
                let s = sigmoid_of(*x);
                *out = for_cross_entropy * (s - t) + g[2 * i + 1] * (along_target * t + constant) * s * (1.0 - s);
            }
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}
