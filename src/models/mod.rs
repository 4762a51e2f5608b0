//! Networks: parameters in, tensors through. No files, no data sets, no training, no randomness but what a [`Pass`]
//! brings. Read [`segmenter`] first: it says how encoders and decoders fit together.
//!
//! [`Pass`]: crate::nn::Pass

pub mod clip;
mod conv_module;
pub mod daformer_head;
pub mod efficientnet;
pub mod mask2former;
pub mod mit;
mod packed_attention;
mod projected_attention;
pub mod sam;
pub mod segformer_head;
pub mod segmenter;
pub mod stable_diffusion;
mod tokens;
