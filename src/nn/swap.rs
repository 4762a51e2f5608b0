//! Swapping two axes.

use super::cpu::{self, vectorised};
use super::graph::{self, Reads};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::mem::MaybeUninit;

/// Rows that are written together where single values move: what is read of one line of memory belongs to that many.
const ROWS: usize = 16;

/// Swaps the middle axes of `sizes`: (outer, a, b, inner) → (outer, b, a, inner), told as `shape`. The result is contiguous.
///
/// One copy in each direction. As reshape, transpose and copy the engine would keep three tensors and three gradients.
///
/// # Shapes
/// `xs` of outer·a·b·inner values → `shape`, of as many
pub fn swap_axes(xs: &Tensor, sizes: [usize; 4], shape: impl Into<Shape>) -> Result<Tensor> {
    let (shape, [_, a, b, _]) = (shape.into(), sizes);
    if sizes.iter().product::<usize>() != xs.elem_count() || shape.elem_count() != xs.elem_count() {
        bail!("swap_axes: {:?} as {sizes:?} to {shape:?}", xs.shape())
    }
    if a == 1 || b == 1 || xs.elem_count() == 0 {
        return xs.contiguous()?.reshape(shape);
    }
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        return xs.reshape(&sizes[..])?.transpose(1, 2)?.contiguous()?.reshape(shape);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| swap_axes(xs, sizes, shape));
    }
    graph::apply1(&xs.contiguous()?, Reads::Shapes, Swap { sizes, shape })
}

struct Swap {
    sizes: [usize; 4],
    shape: Shape,
}

/// The values of (outer, a, b, inner) in the order of (outer, b, a, inner).
#[allow(unsafe_code)]
pub fn swapped(xs: &[f32], [_, a, b, inner]: [usize; 4]) -> Vec<f32> {
    let (row, rows) = (a * inner, if inner < ROWS { ROWS } else { 1 });
    cpu::write_chunks(xs.len(), rows * row, |chunk, out| {
        let mut rest = &mut *out;
        let mut next = chunk * rows;
        while !rest.is_empty() {
            let (outer, j) = (next / b, next % b);
            let count = (b - j).min(rest.len() / row);
            let (part, others) = rest.split_at_mut(count * row);
            let from = &xs[outer * b * row..(outer + 1) * b * row];
            if inner == 1 {
                turn(&from[j..], b, count, part, a);
            } else {
                move_rows(&from[j * inner..], [a, b, inner], count, part);
            }
            (rest, next) = (others, next + count);
        }
        // SAFETY: in `turn` or `move_rows`, (k, i) ran over all `count` rows of all a pieces of every part, which is all of the chunk.
        unsafe { out.assume_init_mut() }
    })
}

/// `out[(k·a + i)·inner…] = from[(i·b + k)·inner…]`, `inner` values each, for all i < `a`, k < `count`.
fn move_rows(from: &[f32], [a, b, inner]: [usize; 3], count: usize, out: &mut [MaybeUninit<f32>]) {
    for i in 0..a {
        for (k, values) in from[i * b * inner..][..count * inner].chunks_exact(inner).enumerate() {
            for (out, x) in out[(k * a + i) * inner..][..inner].iter_mut().zip(values) {
                out.write(*x);
            }
        }
    }
}

vectorised! {
    /// `out[k·a + i] = from[i·pitch + k]` for all i < `a`, k < `count` ≤ [`ROWS`]: by square tiles, so that lines of memory are read and
    /// written whole.
    fn turn(from: &[f32], pitch: usize, count: usize, out: &mut [MaybeUninit<f32>], a: usize) {
        for first in (0..a).step_by(ROWS) {
            let width = ROWS.min(a - first);
            let mut tile = [[0f32; ROWS]; ROWS];
            for i in 0..width {
                for (k, x) in from[(first + i) * pitch..][..count].iter().enumerate() {
                    tile[k][i] = *x;
                }
            }
            for (k, row) in tile.iter().enumerate().take(count) {
                for (out, x) in out[k * a + first..][..width].iter_mut().zip(row) {
                    out.write(*x);
                }
            }
        }
    }
}

impl CustomOp1 for Swap {
    fn name(&self) -> &'static str {
        "swap-axes"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(swapped(cpu::values(storage, layout)?, self.sizes)), self.shape.clone()))
    }

    fn bwd(&self, arg: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let [outer, a, b, inner] = self.sizes;
        cpu::tensor(swapped(&cpu::read(&gradient)?, [outer, b, a, inner]), arg.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::nn::backward_from;
    use candle_core::{Device, Var};

    #[test]
    fn values_and_gradients_move_as_in_a_transpose() {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for sizes in [[2, 3, 5, 1], [1, 37, 70, 1], [3, 70, 37, 1], [2, 5, 7, 40], [2, 1, 7, 3], [2, 7, 1, 3], [4, 9, 11, 5]] {
            let [outer, a, b, inner] = sizes;
            let mut rng = Rng::stream(0, "swap", &[]);
            let mut draw = || rng.normal_tensor(&[outer * a * b * inner], &Device::Cpu).unwrap();
            let (xs, gradient) = (Var::from_tensor(&draw()).unwrap(), draw());
            let plain = |xs: &Tensor, sizes: [usize; 4]| xs.reshape(&sizes[..]).unwrap().transpose(1, 2).unwrap();
            let out = swap_axes(&xs, sizes, (outer * b, a * inner)).unwrap();
            assert_eq!(values(&out), values(&plain(&xs, sizes)), "{sizes:?}");
            let store = backward_from(&[(&out, gradient.reshape(out.shape()).unwrap())]).unwrap();
            assert_eq!(values(store.get(&xs).unwrap()), values(&plain(&gradient, [outer, b, a, inner])), "{sizes:?}");
        }
        assert!(swap_axes(&Tensor::zeros(6, candle_core::DType::F32, &Device::Cpu).unwrap(), [1, 2, 2, 1], 4).is_err());
    }
}
