//! Sums, joins and scales of tensors, whose gradients cost no more than themselves.

use super::cpu;
use super::graph::{self, Reads};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

/// Whether these are for operations of ours: others are left to the engine.
fn is_ours(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32)
}

/// `a + b`, of the same shape.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !is_ours(&[a, b]) || a.shape() != b.shape() {
        return a + b;
    }
    graph::apply2(&a.contiguous()?, &b.contiguous()?, Reads::Shapes, Sum)
}

struct Sum;

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (cpu::values(s1, l1)?, cpu::values(s2, l2)?);
        let out = cpu::fill_chunks(a.len(), cpu::CHUNK, |i, out| {
            let range = i * cpu::CHUNK..i * cpu::CHUNK + out.len();
            out.iter_mut().zip(a[range.clone()].iter().zip(&b[range])).for_each(|(out, (a, b))| *out = a + b);
        });
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.clone()), Some(gradient.clone())))
    }
}

/// `a` and `b` one behind the other along axis 1: of (B, C, …) and (B, D, …) makes (B, C + D, …).
pub fn join_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !is_ours(&[a, b]) {
        return Tensor::cat(&[a, b], 1);
    }
    if a.rank() < 2 || a.rank() != b.rank() || a.dims()[0] != b.dims()[0] || a.dims()[2..] != b.dims()[2..] {
        bail!("channels of {:?} and {:?} cannot be joined", a.shape(), b.shape())
    }
    graph::apply2(&a.contiguous()?, &b.contiguous()?, Reads::Shapes, JoinChannels)
}

struct JoinChannels;

impl CustomOp2 for JoinChannels {
    fn name(&self) -> &'static str {
        "join-channels"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (cpu::values(s1, l1)?, cpu::values(s2, l2)?);
        let mut dims = l1.dims().to_vec();
        let items = dims[0].max(1);
        let (first, second) = (a.len() / items, b.len() / items);
        let out = cpu::fill_chunks(a.len() + b.len(), (first + second).max(1), |i, out| {
            out[..first].copy_from_slice(&a[i * first..(i + 1) * first]);
            out[first..].copy_from_slice(&b[i * second..(i + 1) * second]);
        });
        dims[1] += l2.dims()[1];
        Ok((CpuStorage::F32(out), Shape::from(dims)))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (first, second) = (a.dims()[1], b.dims()[1]);
        let part = |start, count| gradient.narrow(1, start, count)?.contiguous();
        Ok((a.track_op().then(|| part(0, first)).transpose()?, b.track_op().then(|| part(first, second)).transpose()?))
    }
}

/// Every value times the number of its channel, the last axis.
///
/// # Shapes
/// `xs` (…, C), `scale` (C) → as `xs`
pub fn scale_channels(xs: &Tensor, scale: &Tensor) -> Result<Tensor> {
    if !is_ours(&[xs, scale]) {
        return xs.broadcast_mul(&scale.to_dtype(xs.dtype())?);
    }
    if scale.dims() != &xs.dims()[xs.rank().saturating_sub(1)..] {
        bail!("scale_channels: {:?} by {:?}", xs.shape(), scale.shape())
    }
    graph::apply2(&xs.contiguous()?, &scale.contiguous()?, Reads::Arguments, ScaleChannels)
}

struct ScaleChannels;

impl ScaleChannels {
    fn product(xs: &[f32], scale: &[f32]) -> Vec<f32> {
        let rows = (cpu::CHUNK / scale.len().max(1)).max(1) * scale.len();
        cpu::fill_chunks(xs.len(), rows, |i, out| {
            for (out, xs) in out.chunks_exact_mut(scale.len()).zip(xs[i * rows..].chunks_exact(scale.len())) {
                out.iter_mut().zip(xs.iter().zip(scale)).for_each(|(out, (x, scale))| *out = x * scale);
            }
        })
    }
}

impl CustomOp2 for ScaleChannels {
    fn name(&self) -> &'static str {
        "scale-channels"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(Self::product(cpu::values(s1, l1)?, cpu::values(s2, l2)?)), l1.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, scale: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (x, factors, g) = (cpu::read(xs)?, cpu::read(scale)?, cpu::read(&gradient)?);
        let for_xs = || cpu::tensor(Self::product(&g, &factors), xs.shape());
        let for_scale = || {
            let products = cpu::fill_chunks(g.len(), cpu::CHUNK, |i, out| {
                let range = i * cpu::CHUNK..i * cpu::CHUNK + out.len();
                out.iter_mut().zip(x[range.clone()].iter().zip(&g[range])).for_each(|(out, (x, g))| *out = x * g);
            });
            cpu::tensor(cpu::column_sums(&products, factors.len()), scale.shape())
        };
        Ok((xs.track_op().then(for_xs).transpose()?, scale.track_op().then(for_scale).transpose()?))
    }
}

/// As many equal parts of `xs`, in the order of memory, as there are factors, each times its own. Factors are constants; their `shape` is one
/// that broadcasts to that of `xs`.
pub(super) fn scale_parts(xs: &Tensor, factors: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    if !is_ours(&[xs]) {
        return xs.broadcast_mul(&Tensor::from_vec(factors, shape, xs.device())?.to_dtype(xs.dtype())?);
    }
    graph::apply1(&xs.contiguous()?, Reads::Shapes, ScaleParts(factors))
}

struct ScaleParts(Vec<f32>);

impl ScaleParts {
    fn product(&self, xs: &[f32]) -> Vec<f32> {
        let part = (xs.len() / self.0.len().max(1)).max(1);
        let parts = (cpu::CHUNK / part).max(1);
        cpu::fill_chunks(xs.len(), parts * part, |i, out| {
            for (j, (out, xs)) in out.chunks_mut(part).zip(xs[i * parts * part..].chunks(part)).enumerate() {
                let factor = self.0[i * parts + j];
                out.iter_mut().zip(xs).for_each(|(out, x)| *out = x * factor);
            }
        })
    }
}

impl CustomOp1 for ScaleParts {
    fn name(&self) -> &'static str {
        "scale-parts"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.product(cpu::values(storage, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        cpu::tensor(self.product(&cpu::read(&gradient)?), gradient.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::nn::{Pass, backward_from, recording};
    use candle_core::{Device, Var};

    fn draw(shape: &[usize], name: &str) -> Var {
        Var::from_tensor(&Rng::stream(1, name, &[]).normal_tensor(shape, &Device::Cpu).unwrap()).unwrap()
    }

    /// Values and gradients of `ours` are those of `theirs`, an operation of the engine; also of `narrow` values and views.
    fn same(args: &[Var], ours: impl Fn(&[Tensor]) -> Result<Tensor>, theirs: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let tracked: Vec<Tensor> = args.iter().map(|arg| arg.as_tensor().clone()).collect();
        let run = |op: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
            let out = recording(|| op(&tracked)).unwrap();
            let up = Rng::stream(2, "up", &[]).normal_tensor(out.dims(), &Device::Cpu).unwrap();
            let store = backward_from(&[(&out, up)]).unwrap();
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (out.dims().to_vec(), values(&out), args.iter().map(|arg| values(store.get(arg).unwrap())).collect::<Vec<_>>())
        };
        let (dims, out, gradients) = run(&ours);
        let (expected_dims, expected, expected_gradients) = run(&theirs);
        assert_eq!((dims, out), (expected_dims, expected));
        for (found, expected) in gradients.iter().flatten().zip(expected_gradients.iter().flatten()) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} {expected}");
        }
        let narrow: Vec<Tensor> = tracked.iter().map(|arg| arg.to_dtype(DType::BF16).unwrap()).collect();
        let rounded =
            |out: Result<Tensor>| out.unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(rounded(ours(&narrow)), rounded(theirs(&narrow)));
    }

    #[test]
    fn sums_joins_and_scales_are_those_of_the_engine() {
        for shape in [&[3, 5, 7, 11][..], &[2, 1, 1, 1], &[1, 3, 90, 100]] {
            let (a, b) = (draw(shape, "a"), draw(shape, "b"));
            same(&[a.clone(), b.clone()], |x| add(&x[0], &x[1]), |x| &x[0] + &x[1]);
            same(std::slice::from_ref(&a), |x| add(&x[0], &x[0]), |x| &x[0] + &x[0]);
            let mut wider = shape.to_vec();
            wider[1] += 2;
            let wider = draw(&wider, "wider");
            same(&[a.clone(), wider], |x| join_channels(&x[0], &x[1]), |x| Tensor::cat(&[&x[0], &x[1]], 1));
            let scale = draw(&shape[3..], "scale");
            same(&[a, scale], |x| scale_channels(&x[0], &x[1]), |x| x[0].broadcast_mul(&x[1]));
        }
        let (a, b) = (draw(&[2, 3, 4], "a"), draw(&[2, 4, 3], "b"));
        same(&[a, b], |x| add(&x[0], &x[1].transpose(1, 2)?), |x| &x[0] + x[1].transpose(1, 2)?);
        assert!(join_channels(&draw(&[2, 3, 4], "a"), &draw(&[2, 3, 5], "b")).unwrap_err().to_string().contains("joined"));
        assert!(scale_channels(&draw(&[2, 3], "a"), &draw(&[2], "b")).unwrap_err().to_string().contains("scale_channels"));
        assert!(add(&draw(&[2, 3], "a"), &draw(&[2], "b")).is_err());
    }

    #[test]
    fn parts_are_scaled_in_their_order() {
        for shape in [[2, 3, 4, 5], [2, 2, 100, 100], [3, 1, 1, 1]] {
            let factors: Vec<f32> = (0..shape[0] * shape[1]).map(|i| i as f32 * 0.5).collect();
            let mask = Tensor::from_vec(factors.clone(), (shape[0], shape[1], 1, 1), &Device::Cpu).unwrap();
            let xs = draw(&shape, "xs").as_detached_tensor();
            let (found, expected) = (scale_parts(&xs, factors, mask.dims()).unwrap(), xs.broadcast_mul(&mask).unwrap());
            assert_eq!((found - expected).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        }
        let xs = draw(&[4, 6, 2, 2], "xs");
        let dropped = |xs: &Tensor| Pass::train(Rng::stream(0, "drop", &[])).drop_path(xs, 0.5);
        same(
            &[xs],
            |x| dropped(&x[0]),
            |x| {
                let mask = (dropped(&x[0].ones_like()?.detach())?.narrow(1, 0, 1)?.narrow(2, 0, 1)?).narrow(3, 0, 1)?;
                x[0].broadcast_mul(&mask.to_dtype(x[0].dtype())?)
            },
        );
    }
}
