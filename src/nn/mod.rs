//! Layers and operations with true gradients, and the store their parameters live in.
//!
//! Stock candle cuts or falsifies the gradient of several operations (layer norm, softmax over the last dimension,
//! pooling, resizing); everything trainable here is built from this folder only. Letters: `B` batch, `C` channels,
//! `H W` pixels, `N` tokens, `D` features.

mod activation;
mod attention;
mod conv;
mod cpu;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod cuda;
mod init;
mod linear;
mod loss;
mod norm;
mod params;
mod pass;
mod pool;
mod recompute;
mod resize;
pub mod self_test;

pub use activation::{geglu, gelu, quick_gelu, relu, relu6, silu, softmax};
pub use attention::{attention, join_heads, split_heads};
pub use conv::{Conv2d, ConvSpec, conv2d};
#[cfg(feature = "cuda")]
pub use cuda::allow_tf32;
pub use init::Init;
pub use linear::{Adapter, AdapterPlan, Embedding, Linear, linear};
pub use loss::{cross_entropy, mse};
pub use norm::{BatchNorm2d, GroupNorm, LayerNorm};
pub use params::{Builder, Kind, Param, ParamStore, Report};
pub use pass::Pass;
pub use pool::max_pool2d;
pub use recompute::{Recompute, backward_from};
pub use resize::{resize_bilinear, resize_nearest};
