//! Training without knowing what is trained: gradients, optimiser, schedules, checks, checkpoints, run folders and the
//! loop that ties them. Networks, losses and data come from the caller.
//!
//! Reading order: [`Gradients`], [`optim`], [`schedule`], [`guard`], then [`checkpoint`], [`run_dir`], [`driver`].

pub mod checkpoint;
pub mod driver;
pub mod ema;
mod gradients;
pub mod guard;
mod micro_batches;
pub mod optim;
pub mod run_dir;
pub mod schedule;
pub mod stage;

pub use gradients::Gradients;
pub use micro_batches::{MicroBatches, Numbers};
