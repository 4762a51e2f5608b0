//! The numbers of a step, and where they go.

use super::Result;
use std::collections::BTreeMap;

/// Named numbers of one step, sorted by name. The name `loss` is the one progress displays show.
pub type Metrics = BTreeMap<String, f64>;

/// Receives the numbers of every step: a file, TensorBoard, a test.
pub trait Sink {
    /// `step` steps are done; `metrics` belong to the last of them.
    fn record(&mut self, step: u64, metrics: &Metrics) -> Result<()>;
}
