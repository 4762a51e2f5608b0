//! One self-contained HTML page: no network, no files beside it. The parts are functions from plain values to markup;
//! `maud` escapes every text they are given.
//!
//! [`page`] is the frame; [`table`], [`chart`], [`pictures`] and [`matrix`] are what it holds. Nothing here knows what a run is.

pub mod chart;
pub mod matrix;
pub mod page;
pub mod pictures;
pub mod table;
pub mod thin;

pub use maud::{Markup, html};
