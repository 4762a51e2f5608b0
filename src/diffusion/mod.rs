//! Latent diffusion: noise levels, solvers, the training objective, model folders, and prompts to pictures.
//!
//! Read [`noise_schedule`] first, then [`denoising`] (training) or [`sampler`] and [`text_to_image`] (generation).

pub mod denoising;
pub mod folder;
pub mod footprint;
pub mod lora;
pub mod model;
pub mod nano;
pub mod noise_schedule;
pub mod packed;
pub mod sampler;
pub mod text_to_image;

pub use lora::{Component, Lora, LoraPair};
pub use noise_schedule::{NoiseConfig, NoiseSchedule, PredictionType};
pub use sampler::{Sampler, SamplerKind};
