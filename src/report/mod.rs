//! Showing what happened: TensorBoard event files, tables for terminals, and the parts of HTML pages.

pub mod html;
pub mod tensorboard;
pub mod terminal;
