//! The command line: the only folder that reads flags, environment variables and the terminal.

pub mod common;
pub mod progress;
pub mod recipe;
pub mod suggest;
