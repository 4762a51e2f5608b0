//! Summaries of tensors, as golden files of this project store them: norm, largest absolute value, scalar product with
//! `image(name)`, 16 evenly spaced values.
#![allow(dead_code)]

use crate::fill::image;
use candle_core::Tensor;

/// The summary of `tensor`; `name` picks the weights of the product.
pub fn summary(name: &str, tensor: &Tensor) -> Vec<f64> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    let weights: Vec<f32> = image(name, &[values.len()]).to_vec1().unwrap();
    let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let max = values.iter().fold(0f64, |max, v| max.max(f64::from(v.abs())));
    let dot = values.iter().zip(&weights).map(|(v, w)| f64::from(*v) * f64::from(*w)).sum();
    let picked = (0..16).map(|i| f64::from(values[i * (values.len() - 1) / 15]));
    [norm, max, dot].into_iter().chain(picked).collect()
}

/// The largest error: norms and products relative to the norm, values relative to the largest one; neither is taken to be
/// smaller than `floor`.
pub fn error(found: &[f64], expected: &[f32], floor: f64) -> f64 {
    let (norm, max) = (f64::from(expected[0]).max(floor), f64::from(expected[1]).max(floor));
    let relative = |i: usize| (found[i] - f64::from(expected[i])).abs() / if i == 0 || i == 2 { norm } else { max };
    (0..found.len()).map(relative).fold(0.0, f64::max)
}
