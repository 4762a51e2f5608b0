//! All randomness of the project: counter-based streams that depend on a seed and on what they are for, never on thread
//! count, batch size or order of calls.

use super::group;
use candle_core::{Device, Tensor};
use rand::{Rng as _, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// One stream of random numbers. Equal seed, purpose and indices give equal draws on every machine.
#[derive(Debug, Clone)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream of `seed` for one purpose and item, e.g. `Rng::stream(7, "latents", &[image_index])`.
    pub fn stream(seed: u64, purpose: &str, indices: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(purpose.as_bytes());
        for index in indices {
            hasher.update(&index.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        self.0.random::<f32>()
    }

    /// Uniform in [low, high).
    pub fn uniform_in(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Uniform integer in [0, n). `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f32 {
        StandardNormal.sample(&mut self.0)
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// A new stream seeded from this one.
    pub fn fork(&mut self) -> Self {
        Self(ChaCha8Rng::seed_from_u64(self.0.next_u64()))
    }

    /// As [`Self::normal_tensor`] for the items of a batch (B, …) when several processes train: the draws are made for the batch
    /// of all of them, and the rows of this process's items are kept.
    pub fn normal_items(&mut self, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        let width = shape[1..].iter().product();
        Tensor::from_vec(group::current().own_rows(shape[0], width, || self.normal()), shape, device)
    }

    /// Tensor of standard normal draws in row-major order.
    pub fn normal_tensor(&mut self, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.normal()).collect();
        Tensor::from_vec(values, shape, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_everything_they_are_named_after() {
        let draw = |seed, purpose, index: u64| Rng::stream(seed, purpose, &[index]).uniform();
        assert_eq!(draw(1, "a", 0), draw(1, "a", 0));
        assert_ne!(draw(1, "a", 0), draw(2, "a", 0));
        assert_ne!(draw(1, "a", 0), draw(1, "b", 0));
        assert_ne!(draw(1, "a", 0), draw(1, "a", 1));
    }

    #[test]
    fn normal_draws_have_unit_moments() {
        let mut rng = Rng::stream(0, "moments", &[]);
        let draws: Vec<f32> = (0..20_000).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f32>() / 20_000.0;
        let var = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.03, "mean {mean}, variance {var}");
    }
}
