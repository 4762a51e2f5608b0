//! A number for every channel of every image, added to all its pixels.

use super::cpu::{self, vectorised};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `xs + shift` with one number for each plane. `broadcast_add` of both would keep the numbers as planes, and their gradient too.
///
/// # Shapes
/// `xs` (B, C, …), `shift` (B, C) → as `xs`
pub fn shift_planes(xs: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let dims = xs.dims();
    if dims.len() < 2 || shift.dims() != &dims[..2] || xs.elem_count() == 0 || shift.dtype() != xs.dtype() {
        bail!("shift_planes: inputs {dims:?} in {:?}, shift {:?} in {:?}", xs.dtype(), shift.dims(), shift.dtype())
    }
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        let ones = vec![1; dims.len() - 2];
        return xs.broadcast_add(&shift.reshape([&dims[..2], &ones].concat())?);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs, shift], |[xs, shift]| shift_planes(xs, shift));
    }
    xs.contiguous()?.apply_op2(&shift.contiguous()?, ShiftPlanes)
}

struct ShiftPlanes;

vectorised! {
    fn add(xs: &[f32], number: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(xs) {
            *out = x + number;
        }
    }
}

vectorised! {
    fn total(xs: &[f32]) -> f32 {
        cpu::sum(xs, |x| x) as f32
    }
}

impl CustomOp2 for ShiftPlanes {
    fn name(&self) -> &'static str {
        "shift-planes"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (xs, shift) = (cpu::values(s1, l1)?, cpu::values(s2, l2)?);
        let plane = xs.len() / shift.len();
        let out = cpu::fill_chunks(xs.len(), plane, |i, out| add(&xs[i * plane..(i + 1) * plane], shift[i], out));
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, shift: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let for_shift = || {
            let g = cpu::read(&gradient)?;
            cpu::tensor(g.par_chunks_exact(g.len() / shift.elem_count()).map(total).collect(), shift.shape())
        };
        let for_shift = shift.track_op().then(for_shift).transpose()?;
        Ok((xs.track_op().then_some(gradient), for_shift))
    }
}
