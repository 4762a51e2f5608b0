//! Adapts semantic segmenters to places nobody labelled.
pub mod base;
pub mod cli;
pub mod io;
pub mod nn;
pub mod report;
pub mod train;
