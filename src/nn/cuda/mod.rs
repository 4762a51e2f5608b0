//! The operations on an NVIDIA GPU: our own kernels, compiled when they are first used, and libraries for convolutions and
//! matrix products.
//!
//! What a kernel computes and in which order kernels run ([`programs`]) does not know the GPU: the tests run the same
//! sources on the processor and compare them with the operations there.

mod machine;
mod programs;

#[cfg(test)]
mod emulator;
#[cfg(test)]
mod tests;
