//! The operations on an NVIDIA GPU: our own kernels, compiled when they are first used, and libraries for convolutions and
//! matrix products.
//!
//! What a kernel computes and in which order kernels run ([`programs`]) does not know the GPU: the tests run the same
//! sources on the processor and compare them with the operations there.

#[cfg(feature = "cuda")]
mod convolution;
#[cfg(feature = "cudnn")]
mod cudnn;
#[cfg(feature = "cuda")]
mod device;
mod machine;
#[cfg(feature = "cuda")]
mod ops;
mod programs;
#[cfg(feature = "cuda")]
mod sampling;
#[cfg(feature = "cuda")]
mod updates;

#[cfg(feature = "cuda")]
pub use {
    convolution::conv2d,
    device::allow_tf32,
    ops::{
        activation, attention, batch_norm, batch_statistics, cross_entropy, geglu, group_norm, layer_norm, linear, mask_losses,
        max_pool2d, mse, resize, resize_rows, softmax,
    },
    programs::{AdamWFactors, AttentionSizes, DeformableSizes},
    sampling::{deformable_attention, sample_points},
    updates::{AdamWStep, adamw, gradient_norm, running_average},
};

#[cfg(test)]
mod emulator;
#[cfg(test)]
mod tests;
