//! Diffusion: the noising process, samplers and low-rank adapter files. Networks live in `models`.
//!
//! Read [`noise_schedule`] first (the constants that everything shares), then [`sampler`].

pub mod lora;
pub mod noise_schedule;
pub mod sampler;

pub use lora::{Component, Lora, LoraPair};
pub use noise_schedule::{NoiseConfig, NoiseSchedule, PredictionType};
pub use sampler::{Sampler, SamplerKind};
