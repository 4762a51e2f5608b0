//! Latent diffusion: noise levels, solvers and model folders. Networks live in `models`.
//!
//! Read [`noise_schedule`] first (the constants that everything shares), then [`sampler`].

pub mod folder;
pub mod noise_schedule;
pub mod sampler;

pub use noise_schedule::{NoiseConfig, NoiseSchedule, PredictionType};
pub use sampler::{Sampler, SamplerKind};
