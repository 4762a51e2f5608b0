//! Data sets, augmentation and loading. Read [`dataset`] first (what the pictures are), then [`transforms`] (what happens to
//! them) and [`loader`] (how they arrive in time).

mod check;
pub mod dataset;
mod descriptor;
pub mod fourier;
mod glob;
pub mod loader;
pub mod rare_class;
pub mod resize;
pub mod transforms;

pub use check::{Check, check};
pub use dataset::{Dataset, Sample, Search};
pub use loader::{Batch, Loader};
pub use transforms::{Example, Item, Normalize, Pipeline};
