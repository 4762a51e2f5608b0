//! Label maps and what their numbers mean. Train ids are 0…C−1 and [`IGNORE`]; label ids are what a dataset's files hold.

mod classes;
mod components;
mod id_map;
mod label_map;
mod overlay;

pub use classes::Classes;
pub use components::{components, erode, touching};
pub use id_map::{IdMap, list_ids};
pub use label_map::{IGNORE, LabelMap};
pub use overlay::{colorize, overlay};
