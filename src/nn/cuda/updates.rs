//! Updates of parameters on the GPU, in place and without waiting for it.

use super::device::Gpu;
use super::programs::AdamWFactors;
use candle_core::{DType, Result, Tensor};

/// A parameter with what moves it, all f32: moments are (2, …).
pub struct AdamWStep<'a> {
    pub parameter: &'a Tensor,
    pub moments: &'a Tensor,
    pub gradient: &'a Tensor,
    pub factors: AdamWFactors,
}

/// Two f32 on the GPU: the L2 norm over all `gradients` together, and the factor that clips it to `limit`.
pub fn gradient_norm<'a>(gradients: impl Iterator<Item = &'a Tensor>, limit: Option<f64>) -> Result<Option<Tensor>> {
    let gradients = gradients.map(|g| g.to_dtype(DType::F32)?.contiguous()).collect::<Result<Vec<_>>>()?;
    let Some(first) = gradients.first() else { return Ok(None) };
    let gpu = Gpu::of(first)?;
    let inputs = gradients.iter().map(|g| Ok((gpu.input(g, DType::F32)?, g.elem_count()))).collect::<Result<Vec<_>>>()?;
    Ok(Some(gpu.kernels(first)?.clip(&inputs, limit.unwrap_or(0.0) as f32)?.tensor(2)?))
}

/// One AdamW step of one parameter; `norm` is what [`gradient_norm`] gave.
pub fn adamw(step: &AdamWStep, norm: &Tensor) -> Result<()> {
    let gradient = step.gradient.contiguous()?;
    let gpu = Gpu::of(step.parameter)?;
    let input = |tensor| gpu.input(tensor, DType::F32);
    let (parameter, moments) = (input(step.parameter)?, input(step.moments)?);
    let count = step.parameter.elem_count();
    let kernels = gpu.kernels(step.parameter)?;
    kernels.adamw(&parameter, &moments, &gpu.input(&gradient, DType::F32)?, &gpu.input(norm, DType::F32)?, count, &step.factors)
}

/// `average ← decay · average + (1 − decay) · latest`, f32.
pub fn running_average(average: &Tensor, latest: &Tensor, decay: f64) -> Result<()> {
    let latest = latest.contiguous()?;
    let gpu = Gpu::of(average)?;
    let (to, from) = (gpu.input(average, DType::F32)?, gpu.input(&latest, DType::F32)?);
    gpu.kernels(average)?.running_average(&to, &from, average.elem_count(), decay)
}
