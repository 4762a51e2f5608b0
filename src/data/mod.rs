//! Data sets, augmentation and loading. Read [`dataset`] first (what the pictures are), then [`transforms`] (what happens to
//! them) and [`loader`] (how they arrive in time). [`street`] draws scenes of its own, [`street_set`] writes folders of them.

mod check;
pub mod color_transfer;
pub mod dataset;
mod descriptor;
pub mod fourier;
mod glob;
pub mod loader;
mod prepare;
pub mod rare_class;
pub mod resize;
mod sheet;
pub mod street;
pub mod street_set;
pub mod transforms;

pub use check::{Check, check};
pub use dataset::{Dataset, Sample, Search};
pub use descriptor::{Compare, classes_of};
pub use loader::{Batch, Loader};
pub use prepare::{Prepared, prepare};
pub use sheet::{sheet, stack};
pub use street_set::StreetSet;
pub use transforms::{Example, Item, Normalize, Pipeline};
