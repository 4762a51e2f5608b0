//! Street scenes drawn by program, with exact labels: data for tests, demonstrations and for models that have to be trained
//! where no photo may be used.
//!
//! A scene is laid out in metres ([`Scene::new`]) and then seen by a camera in some light and weather ([`Scene::render`]). Read
//! `ground` (the street itself) and `layout` (what stands on it) first, then `render` (how a picture comes about). The parts:
//!
//! | file | for |
//! |---|---|
//! | `ground`, `layout`, `traffic`, `roadside` | where everything is |
//! | `buildings`, `plants`, `vehicles`, `people`, `furniture` | the shapes of things |
//! | `model`, `raster` | primitives and what each sample of the picture sees |
//! | `material`, `surface`, `facade`, `bodywork`, `signs` | what surfaces look like |
//! | `look`, `light`, `effects` | sun, sky, lamps, fog, rain, snow, the camera |
//! | `focus` | scenes about one kind of thing |
//! | `caption` | sentences for text-to-image training |
//!
//! Label maps come from the same samples as the picture. They hold Cityscapes train ids and are the same for every look.
//! All numbers are exact to the bit on every machine: see `math`. Writing folders of scenes is in [`street_set`](super::street_set).

mod bodywork;
mod buildings;
mod caption;
mod effects;
mod facade;
pub(super) mod focus;
mod furniture;
mod ground;
mod layout;
mod light;
mod look;
mod material;
mod math;
mod model;
mod people;
mod plants;
mod raster;
mod render;
mod roadside;
mod signs;
mod surface;
mod traffic;
mod vehicles;

pub use layout::Scene;
pub use look::Look;
pub use render::Rendered;
