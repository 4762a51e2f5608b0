//! Adapts semantic segmenters to places nobody labelled.
pub mod base;
pub mod data;
pub mod eval;
pub mod io;
pub mod labels;
pub mod nn;
