//! Activations and softmax, each one pass forward and one pass backward.

use super::cpu::{self, CHUNK, vectorised};
use super::graph::{self, Reads};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// A function of one value and its derivative.
trait Activation: Send + Sync + 'static {
    const NAME: &'static str;
    /// Its number among the kernels of the GPU.
    #[cfg(feature = "cuda")]
    const KERNEL: usize;
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

/// An activation as an operation on tensors.
struct Map<A>(PhantomData<A>);

fn map<A: Activation>(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        return super::cuda::activation(xs, A::NAME, A::KERNEL);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| map::<A>(xs));
    }
    graph::apply1(&xs.contiguous()?, Reads::Arguments, Map::<A>(PhantomData))
}

vectorised! {
    /// As many values as `out` has.
    fn values_of[A: Activation](xs: &[f32], out: &mut [MaybeUninit<f32>], _activation: PhantomData<A>) {
        let xs = &xs[..out.len()];
        for (out, x) in out.iter_mut().zip(xs) {
            out.write(A::value(*x));
        }
    }
}

vectorised! {
    /// As many values as `out` has.
    fn slopes_times[A: Activation](xs: &[f32], gradient: &[f32], out: &mut [MaybeUninit<f32>], _activation: PhantomData<A>) {
        let (xs, gradient) = (&xs[..out.len()], &gradient[..out.len()]);
        for ((out, x), g) in out.iter_mut().zip(xs).zip(gradient) {
            out.write(g * A::slope(*x));
        }
    }
}

#[allow(unsafe_code)]
impl<A: Activation> CustomOp1 for Map<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = cpu::values(storage, layout)?;
        let out = cpu::write_chunks(xs.len(), CHUNK, |i, out| {
            values_of(&xs[i * CHUNK..], out, self.0);
            // SAFETY: all values were just written.
            unsafe { out.assume_init_mut() }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, arg: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let (xs, g) = (cpu::read(arg)?, cpu::read(&gradient)?);
        let (xs, g) = (&*xs, &*g);
        let out = cpu::write_chunks(xs.len(), CHUNK, |i, out| {
            slopes_times(&xs[i * CHUNK..], &g[i * CHUNK..], out, self.0);
            // SAFETY: all values were just written.
            unsafe { out.assume_init_mut() }
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
pub fn sigmoid_of(x: f32) -> f32 {
    1.0 / (1.0 + cpu::exp(-x))
}

/// Normal distribution: (Φ(x), φ(x)). Φ to 1e-7, in the lower tail relatively to about 1e-4.
///
/// # Source
/// Abramowitz and Stegun 7.1.26.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let t = 1.0 / x.abs().mul_add(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2, 1.0);
    let tail = cpu::exp(-0.5 * x * x);
    let p = cpu::polynomial(t, [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6]);
    let lower = 0.5 * p * t * tail;
    (if x < 0.0 { lower } else { 1.0 - lower }, 0.398_942_3 * tail)
}

struct Gelu;

impl Activation for Gelu {
    const NAME: &'static str = "gelu";
    #[cfg(feature = "cuda")]
    const KERNEL: usize = 0;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal(x).0
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let (cumulative, density) = normal(x);
        cumulative + x * density
    }
}

struct QuickGelu;

impl Activation for QuickGelu {
    const NAME: &'static str = "quick-gelu";
    #[cfg(feature = "cuda")]
    const KERNEL: usize = 1;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid_of(1.702 * x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid_of(1.702 * x);
        s + 1.702 * x * s * (1.0 - s)
    }
}

struct Silu;

impl Activation for Silu {
    const NAME: &'static str = "silu";
    #[cfg(feature = "cuda")]
    const KERNEL: usize = 2;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        silu_value(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        silu_slope(x)
    }
}

/// `x · sigmoid(x)`, for operations that fuse it.
#[inline(always)]
pub(super) fn silu_value(x: f32) -> f32 {
    x * sigmoid_of(x)
}

/// Derivative of [`silu_value`].
#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid_of(x);
    s + x * s * (1.0 - s)
}

struct Sigmoid;

impl Activation for Sigmoid {
    const NAME: &'static str = "sigmoid";
    #[cfg(feature = "cuda")]
    const KERNEL: usize = 5;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        sigmoid_of(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid_of(x);
        s * (1.0 - s)
    }
}

struct Relu;

impl Activation for Relu {
    const NAME: &'static str = "relu";
    #[cfg(feature = "cuda")]
    const KERNEL: usize = 3;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // This way round NaN stays NaN.
        if x < 0.0 { 0.0 } else { x }
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

struct Relu6;

impl Activation for Relu6 {
    const NAME: &'static str = "relu6";
    #[cfg(feature = "cuda")]
    const KERNEL: usize = 4;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.clamp(0.0, 6.0)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 }
    }
}

/// GELU, exact (error function). # Shapes: any → same
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    map::<Gelu>(xs)
}

/// `x · sigmoid(1.702 x)`, CLIP's GELU. # Shapes: any → same
pub fn quick_gelu(xs: &Tensor) -> Result<Tensor> {
    map::<QuickGelu>(xs)
}

/// `x · sigmoid(x)`. # Shapes: any → same
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    map::<Silu>(xs)
}

/// `1 / (1 + e⁻ˣ)`. # Shapes: any → same
pub fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    map::<Sigmoid>(xs)
}

/// max(x, 0), with gradient 0 at 0. # Shapes: any → same
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    map::<Relu>(xs)
}

/// min(max(x, 0), 6), with gradient 0 at both bends. # Shapes: any → same
pub fn relu6(xs: &Tensor) -> Result<Tensor> {
    map::<Relu6>(xs)
}

/// Gated GELU: the last dimension is split in halves (h, g) → `h · gelu(g)`.
///
/// # Shapes
/// `xs` (…, 2D) → (…, D)
pub fn geglu(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        let (shape, width) = halved(xs.dims())?;
        return super::cuda::geglu(xs, shape, width);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| geglu(xs));
    }
    graph::apply1(&xs.contiguous()?, Reads::Arguments, Geglu)
}

struct Geglu;

/// The shape with half the last dimension, and that half.
fn halved(dims: &[usize]) -> Result<(Shape, usize)> {
    match dims.split_last() {
        Some((last, rest)) if last % 2 == 0 => Ok(([rest, &[last / 2]].concat().into(), last / 2)),
        _ => bail!("geglu needs an even last dimension, found {dims:?}"),
    }
}

vectorised! {
    fn gated(row: &[f32], out: &mut [f32]) {
        let (h, g) = row.split_at(out.len());
        for ((out, h), g) in out.iter_mut().zip(h).zip(g) {
            *out = h * Gelu::value(*g);
        }
    }
}

vectorised! {
    fn gated_gradient(row: &[f32], gradient: &[f32], out: &mut [f32]) {
        let (h, g) = row.split_at(gradient.len());
        let (out_h, out_g) = out.split_at_mut(gradient.len());
        for i in 0..gradient.len() {
            let (cumulative, density) = normal(g[i]);
            out_h[i] = gradient[i] * g[i] * cumulative;
            out_g[i] = gradient[i] * h[i] * (cumulative + g[i] * density);
        }
    }
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = cpu::values(storage, layout)?;
        let (shape, width) = halved(layout.dims())?;
        let out = cpu::fill_chunks(xs.len() / 2, width, |i, out| gated(&xs[2 * i * width..2 * (i + 1) * width], out));
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(&self, arg: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let width = result.dim(candle_core::D::Minus1)?;
        let (xs, g) = (cpu::read(arg)?, cpu::read(&gradient)?);
        let (xs, g) = (&*xs, &*g);
        let out = cpu::fill_chunks(xs.len(), 2 * width, |i, out| {
            gated_gradient(&xs[2 * i * width..2 * (i + 1) * width], &g[i * width..(i + 1) * width], out);
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}

/// Softmax over the last dimension. # Shapes: (…, N) → same
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if xs.device().is_cuda() {
        return super::cuda::softmax(xs);
    }
    if cpu::is_narrow(xs) {
        return cpu::rounded([xs], |[xs]| softmax(xs));
    }
    graph::apply1(&xs.contiguous()?, Reads::Everything, Softmax)
}

struct Softmax;

vectorised! {
    fn softmax_row(row: &[f32], out: &mut [f32]) {
        let largest = cpu::max(row);
        out.copy_from_slice(row);
        let scale = 1.0 / cpu::exp_shifted(out, largest);
        for out in out.iter_mut() {
            *out *= scale;
        }
    }
}

vectorised! {
    fn softmax_gradient(probabilities: &[f32], gradient: &[f32], out: &mut [f32]) {
        let mean = cpu::dot(probabilities, gradient) as f32;
        for ((out, p), g) in out.iter_mut().zip(probabilities).zip(gradient) {
            *out = p * (g - mean);
        }
    }
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = cpu::values(storage, layout)?;
        let width = layout.dims().last().copied().unwrap_or(1);
        let out = cpu::fill_chunks(xs.len(), width, |i, out| softmax_row(&xs[i * width..(i + 1) * width], out));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, arg: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = cpu::contiguous_gradient(gradient)?;
        let width = arg.dims().last().copied().unwrap_or(1);
        let (ps, g) = (cpu::read(result)?, cpu::read(&gradient)?);
        let (ps, g) = (&*ps, &*g);
        let out = cpu::fill_chunks(ps.len(), width, |i, out| {
            softmax_gradient(&ps[i * width..(i + 1) * width], &g[i * width..(i + 1) * width], out);
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}
