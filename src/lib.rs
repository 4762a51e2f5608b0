//! Adapts semantic segmenters to places nobody labelled.
pub mod base;
pub mod diffusion;
pub mod io;
pub mod models;
pub mod nn;
pub mod prompting;
pub mod train;
