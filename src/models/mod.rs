//! Networks, and nothing but networks: no files, no training, no hidden randomness.

pub mod stable_diffusion;
