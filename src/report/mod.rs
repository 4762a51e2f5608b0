//! Showing what happened: TensorBoard event files and tables for terminals.

pub mod tensorboard;
pub mod terminal;
