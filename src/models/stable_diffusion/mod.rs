//! The three networks of Stable Diffusion 1.x and 2.x, trainable: U-Net, autoencoder and text encoder.
//!
//! Read [`config`] first, then [`UNet`], [`Vae`] and [`TextEncoder`]. Parameter names are those of the published
//! diffusers folders; reading and writing such folders is `diffusion::folder`. Letters: `B` batch, `h w` latent
//! pixels (an eighth of the image), `T` prompt positions, `D` width of the text encoder.

mod blocks;
pub mod config;
mod text;
mod transformer;
mod unet;
mod vae;

pub use config::{SchedulerConfig, TextConfig, UNetConfig, VaeConfig};
pub use text::TextEncoder;
pub use unet::UNet;
pub use vae::{Moments, Vae};
