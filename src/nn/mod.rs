//! Layers and operations with true gradients, and the store their parameters live in.
//!
//! Stock candle cuts or falsifies the gradient of several operations (layer norm, softmax over the last dimension,
//! pooling, resizing); everything trainable here is built from this folder only. Letters: `B` batch, `C` channels,
//! `H W` pixels, `N` tokens, `D` features.

mod activation;
mod attention;
mod combine;
mod conv;
mod cpu;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod cuda;
mod deformable;
mod graph;
mod init;
mod linear;
mod loss;
mod mask_loss;
mod norm;
mod params;
mod pass;
mod points;
mod pool;
mod recompute;
mod resize;
pub mod self_test;
mod swap;

pub(crate) use activation::sigmoid_of;
pub use activation::{geglu, gelu, quick_gelu, relu, relu6, sigmoid, silu, softmax};
pub use attention::{attention, attention_with_bias, join_heads, split_heads};
pub use combine::{add, join_channels, scale_channels};
pub use conv::{Conv2d, ConvSpec, conv2d};
pub(crate) use cpu::vectorised;
pub use cpu::{allow_bf16, bf16_available, bf16_chosen};
#[cfg(feature = "cuda")]
pub use cuda::allow_tf32;
pub use deformable::deformable_attention;
pub use graph::{backward, backward_from, recording};
pub use init::Init;
pub use linear::{Adapter, AdapterPlan, Embedding, Linear, linear};
pub use loss::{cross_entropy, mse};
pub use mask_loss::mask_losses;
pub(crate) use mask_loss::softplus;
pub use norm::{BatchNorm2d, GroupNorm, LayerNorm};
pub use params::{Builder, Kind, Param, ParamStore, Report};
pub use pass::Pass;
pub use points::{sample_masks, sample_points};
pub use pool::max_pool2d;
pub use recompute::Recompute;
pub use resize::{resize_bilinear, resize_bilinear_rows, resize_nearest};
pub use swap::swap_axes;
