//! Initial values of parameters.

use crate::base::Rng;
use candle_core::{Device, Result, Tensor};

/// How a new parameter is filled. Fans follow PyTorch: `fan_in` = product of all but the first dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// The same number everywhere.
    Constant {
        /// The number.
        value: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Normal with mean 0, redrawn outside ±2 (absolute, as in timm).
    TruncatedNormal {
        /// Standard deviation before truncation.
        std: f32,
    },
    /// Uniform in ±bound.
    Uniform {
        /// Largest absolute value.
        bound: f32,
    },
    /// PyTorch's default of `Linear` and `Conv2d` weights: uniform ±1/√fan_in.
    FanInUniform,
    /// Uniform ±√(6/(fan_in + fan_out)), fan_out = out · kernel area.
    XavierUniform,
    /// Offsets of deformable attention, (heads · levels · points · 2): head h looks in direction 2π·h/heads, scaled to
    /// touch the unit square, its point p (from 1) p pixels away.
    SamplingOffsets {
        /// Number of directions.
        heads: usize,
        /// Points of each level.
        points: usize,
    },
    /// Normal with std √(2/fan_out), fan_out = out · kernel area / groups.
    KaimingFanOut {
        /// Groups of the convolution.
        groups: usize,
    },
}

impl Init {
    /// A tensor of `shape` filled from `rng`.
    pub fn draw(self, shape: &[usize], rng: &mut Rng, device: &Device) -> Result<Tensor> {
        let fan_in: usize = shape.iter().skip(1).product();
        let mut filled = |mut draw: Box<dyn FnMut(&mut Rng) -> f32>| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw(rng)).collect();
            Tensor::from_vec(values, shape, device)
        };
        match self {
            Self::Zeros => Tensor::zeros(shape, candle_core::DType::F32, device),
            Self::Ones => Tensor::ones(shape, candle_core::DType::F32, device),
            Self::Constant { value } => Tensor::full(value, shape, device),
            Self::Normal { std } => filled(Box::new(move |rng| std * rng.normal())),
            Self::TruncatedNormal { std } => filled(Box::new(move |rng| {
                loop {
                    let value = std * rng.normal();
                    if value.abs() <= 2.0 {
                        return value;
                    }
                }
            })),
            Self::Uniform { bound } => filled(Box::new(move |rng| rng.uniform_in(-bound, bound))),
            Self::FanInUniform => {
                let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
                filled(Box::new(move |rng| rng.uniform_in(-bound, bound)))
            }
            Self::XavierUniform => {
                let area: usize = shape.iter().skip(2).product();
                let bound = (6.0 / (fan_in + shape[0] * area).max(1) as f32).sqrt();
                filled(Box::new(move |rng| rng.uniform_in(-bound, bound)))
            }
            Self::SamplingOffsets { heads, points } => {
                let per_head = shape.iter().product::<usize>() / heads;
                let value = |i: usize| {
                    let angle = std::f64::consts::TAU * (i / per_head) as f64 / heads as f64;
                    let (sine, cosine) = angle.sin_cos();
                    let along = if i.is_multiple_of(2) { cosine } else { sine };
                    (along / sine.abs().max(cosine.abs()) * (i / 2 % points + 1) as f64) as f32
                };
                Tensor::from_vec((0..shape.iter().product()).map(value).collect::<Vec<f32>>(), shape, device)
            }
            Self::KaimingFanOut { groups } => {
                let area: usize = shape.iter().skip(2).product();
                let std = (2.0 / (shape[0] * area / groups).max(1) as f32).sqrt();
                filled(Box::new(move |rng| std * rng.normal()))
            }
        }
    }
}
