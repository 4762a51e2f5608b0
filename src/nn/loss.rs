//! Losses.

use super::cpu::{self, CHUNK, vectorised};
use super::graph::{self, Reads};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::OnceLock;

/// Pixels of one image whose losses are computed together: their sums over classes stay in the first-level cache.
const PIXELS: usize = 1024;

/// Weighted cross-entropy of per-pixel logits, averaged over **all** pixels, ignored ones included. Labels and weights
/// are constants: no gradient reaches them.
///
/// # Shapes
/// `logits` (B, K, H, W), `labels` (B, H, W) u32 where values ≥ K are ignored (`ignore_index`), `weights` (B, H, W) f32 → scalar
///
/// # Source
/// mmseg's cross-entropy as DAFormer uses it: ignored pixels give 0 and still count in the mean.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let (batch, _, height, width) = logits.dims4()?;
    let fits = |t: &Tensor| t.dims() == [batch, height, width];
    if logits.elem_count() == 0 || !fits(labels) || weights.is_some_and(|weights| !fits(weights)) {
        bail!("cross_entropy: logits {:?}, labels {:?}, weights {:?}", logits.shape(), labels.shape(), weights.map(Tensor::shape))
    }
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        let weights =
            weights.map_or_else(|| Tensor::ones(labels.dims(), DType::F32, logits.device()), |w| w.to_dtype(DType::F32))?;
        return super::cuda::cross_entropy(logits, &labels.to_dtype(DType::U32)?, &weights);
    }
    let labels = labels.flatten_all()?.to_dtype(DType::U32)?.to_vec1()?;
    let weights = weights.map(|weights| weights.flatten_all()?.to_vec1()).transpose()?;
    graph::apply1(&logits.contiguous()?, Reads::Arguments, CrossEntropy { labels, weights, log_sums: OnceLock::new() })
}

/// One loss; remembers log Σ exp of every pixel for the backward pass.
struct CrossEntropy {
    labels: Vec<u32>,
    weights: Option<Vec<f32>>,
    log_sums: OnceLock<Vec<f32>>,
}

/// Some pixels of one image: logits of class k are at `k · stride`.
#[derive(Clone, Copy)]
struct Pixels<'a> {
    logits: &'a [f32],
    stride: usize,
    classes: usize,
    labels: &'a [u32],
    /// Index of the first pixel in labels and weights.
    start: usize,
}

impl Pixels<'_> {
    #[inline(always)]
    fn class(&self, k: usize) -> &[f32] {
        &self.logits[k * self.stride..][..self.labels.len()]
    }
}

vectorised! {
    /// The largest logit of every pixel, and Σ e^(logit − largest).
    fn normalisers(pixels: Pixels, largest: &mut [f32], sums: &mut [f32]) {
        largest.copy_from_slice(pixels.class(0));
        for k in 1..pixels.classes {
            for (largest, x) in largest.iter_mut().zip(pixels.class(k)) {
                *largest = if *x > *largest { *x } else { *largest };
            }
        }
        for k in 0..pixels.classes {
            for ((sum, x), largest) in sums.iter_mut().zip(pixels.class(k)).zip(largest.iter()) {
                *sum += cpu::exp(x - largest);
            }
        }
    }
}

vectorised! {
    /// Probability of one class times `factor`, pixel by pixel.
    fn probabilities(xs: &[f32], log_sums: &[f32], factor: f32, out: &mut [f32]) {
        for ((out, x), log_sum) in out.iter_mut().zip(xs).zip(log_sums) {
            *out = cpu::exp(x - log_sum) * factor;
        }
    }
}

impl CrossEntropy {
    /// Weight of a pixel with label `label`, 0 when it is ignored.
    fn weight(&self, pixel: usize, classes: usize) -> f32 {
        let valid = (self.labels[pixel] as usize) < classes;
        if valid { self.weights.as_ref().map_or(1.0, |weights| weights[pixel]) } else { 0.0 }
    }

    /// Σ weight · loss over some pixels, and their log Σ exp.
    fn total(&self, pixels: Pixels) -> (f64, Vec<f32>) {
        let count = pixels.labels.len();
        let (mut log_sums, mut sums) = (vec![0.0; count], vec![0.0; count]);
        normalisers(pixels, &mut log_sums, &mut sums);
        let mut total = 0.0;
        for (i, (log_sum, sum)) in log_sums.iter_mut().zip(sums).enumerate() {
            *log_sum += sum.ln();
            let weight = self.weight(pixels.start + i, pixels.classes);
            if weight != 0.0 {
                total += f64::from((*log_sum - pixels.class(pixels.labels[i] as usize)[i]) * weight);
            }
        }
        (total, log_sums)
    }

    /// Gradient of `factor · Σ weight · loss` for the logits of one class in one image. `first` is the image's first pixel.
    fn class_gradient(&self, xs: &[f32], log_sums: &[f32], first: usize, class: (usize, usize), factor: f32, out: &mut [f32]) {
        let (class, classes) = class;
        probabilities(xs, log_sums, factor, out);
        for (i, out) in out.iter_mut().enumerate() {
            let hit = if self.labels[first + i] as usize == class { factor } else { 0.0 };
            *out = (*out - hit) * self.weight(first + i, classes);
        }
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = cpu::values(storage, layout)?;
        let (batch, classes, height, width) = layout.shape().dims4()?;
        let plane = height * width;
        let pieces: Vec<(usize, usize)> =
            (0..batch).flat_map(|image| (0..plane).step_by(PIXELS).map(move |start| (image, start))).collect();
        let total = |(image, start): (usize, usize)| {
            let labels = &self.labels[image * plane + start..image * plane + plane.min(start + PIXELS)];
            let logits = &logits[image * classes * plane + start..];
            self.total(Pixels { logits, stride: plane, classes, labels, start: image * plane + start })
        };
        let (totals, log_sums): (Vec<f64>, Vec<Vec<f32>>) = pieces.into_par_iter().map(total).unzip();
        let mean = totals.iter().sum::<f64>() / (batch * plane) as f64;
        // Only this call writes: an operation value is applied once.
        let _ = self.log_sums.set(log_sums.concat());
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, arg: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let logits = cpu::read(arg)?;
        let logits = &*logits;
        let Some(log_sums) = self.log_sums.get() else { bail!("cross_entropy: backward without forward") };
        let (batch, classes, height, width) = arg.dims4()?;
        let plane = height * width;
        let factor = gradient.to_scalar::<f32>()? / (batch * plane) as f32;
        let out = cpu::fill_chunks(logits.len(), plane, |i, out| {
            let (image, class) = (i / classes, i % classes);
            let log_sums = &log_sums[image * plane..(image + 1) * plane];
            self.class_gradient(&logits[i * plane..(i + 1) * plane], log_sums, image * plane, (class, classes), factor, out);
        });
        cpu::tensor(out, arg.shape()).map(Some)
    }
}

/// Mean squared error over all values. # Shapes: equal → scalar
pub fn mse(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    if prediction.dims() != target.dims() {
        bail!("mse: {:?} against {:?}", prediction.shape(), target.shape())
    }
    #[cfg(feature = "cuda")]
    if prediction.device().is_cuda() {
        return super::cuda::mse(prediction, target);
    }
    graph::apply2(&prediction.contiguous()?, &target.contiguous()?, Reads::Arguments, SquaredError)
}

struct SquaredError;

vectorised! {
    fn squared_distance(xs: &[f32], ys: &[f32]) -> f64 {
        cpu::sum_pairs(xs, ys, |x, y| (x - y) * (x - y))
    }
}

vectorised! {
    fn scaled_difference(xs: &[f32], ys: &[f32], scale: f32, out: &mut [f32]) {
        for ((out, x), y) in out.iter_mut().zip(xs).zip(ys) {
            *out = scale * (x - y);
        }
    }
}

impl CustomOp2 for SquaredError {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (xs, ys) = (cpu::values(s1, l1)?, cpu::values(s2, l2)?);
        let totals: Vec<f64> = xs.par_chunks(CHUNK).zip(ys.par_chunks(CHUNK)).map(|(x, y)| squared_distance(x, y)).collect();
        let mean = totals.iter().sum::<f64>() / xs.len() as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, y) = (cpu::read(xs)?, cpu::read(ys)?);
        let scale = 2.0 * gradient.to_scalar::<f32>()? / x.len() as f32;
        let difference = |a: &[f32], b: &[f32]| {
            let out = cpu::fill_chunks(a.len(), CHUNK, |i, out| scaled_difference(&a[i * CHUNK..], &b[i * CHUNK..], scale, out));
            cpu::tensor(out, xs.shape())
        };
        Ok((xs.track_op().then(|| difference(&x, &y)).transpose()?, ys.track_op().then(|| difference(&y, &x)).transpose()?))
    }
}
