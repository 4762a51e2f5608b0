//! Data sets, transforms and sampling.

pub mod fourier;
pub mod rare_class;
