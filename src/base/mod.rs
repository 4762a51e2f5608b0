//! What every other folder needs and that needs nothing of ours: errors, randomness, time, interruption, progress sinks,
//! processes that work together.

pub mod clock;
pub mod device;
pub mod error;
pub mod group;
pub mod heap;
pub mod interrupt;
pub mod metrics;
pub mod progress;
pub mod rng;
pub mod suggest;
pub mod threads;

pub use error::{Error, Result};
pub use rng::Rng;
