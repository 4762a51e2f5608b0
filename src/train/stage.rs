//! One training stage of a run: resume, checkpoints, metrics and progress around a [`Training`].

use super::checkpoint::{Checkpoint, Checkpointer, Resume, WEIGHTS};
use super::driver::{Driver, Training};
use super::gradients::with_values;
use super::run_dir::{MetricsLog, RunDir};
use crate::base::metrics::Sink;
use crate::base::progress::Progress;
use crate::base::{Error, Result, group};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A training that can go on from a checkpoint of its own.
pub trait Resumable: Training {
    /// Takes back what [`Training::snapshot`] gave.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()>;
}

/// How a stage runs.
pub struct Stage<'a> {
    /// The run it belongs to.
    pub run: &'a RunDir,
    /// Shown to the user.
    pub name: &'a str,
    /// Below `checkpoints/`; empty for the only stage of a run.
    pub folder: &'a str,
    /// Length in steps.
    pub steps: u64,
    /// Full state every so many steps.
    pub checkpointing_steps: u64,
    /// Full states that are kept.
    pub keep: usize,
    /// Values that a checkpoint must share to be continued.
    pub identity: BTreeMap<String, Value>,
    /// Where to go on from.
    pub resume: Option<&'a Resume>,
    /// What a person sees.
    pub progress: &'a dyn Progress,
    /// Opens further places that the numbers of each step go to, for a run that goes on after so many steps.
    pub sinks: &'a dyn Fn(u64) -> Result<Vec<Box<dyn Sink>>>,
}

/// What a checkpoint must share with the run that goes on from it: all settings but those named `free`.
///
/// # Errors
/// Settings that are no table.
pub fn identity(settings: &impl Serialize, free: &[&str]) -> Result<BTreeMap<String, Value>> {
    let Value::Object(mut values) = serde_json::to_value(settings).map_err(|e| Error::Usage(e.to_string()))? else {
        return Err(Error::Usage("a recipe is a table of values".into()));
    };
    values.retain(|name, _| !free.contains(&name.as_str()));
    Ok(values.into_iter().collect())
}

impl Stage<'_> {
    /// Where the stage's checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        if self.folder.is_empty() { self.run.checkpoints() } else { self.run.checkpoints().join(self.folder) }
    }

    /// Runs the stage from its newest checkpoint (when resuming) to its end.
    ///
    /// # Errors
    /// As [`Driver::run`]; nothing to resume.
    pub fn train(&self, training: &mut dyn Resumable) -> Result<()> {
        let checkpointer = Checkpointer::new(self.checkpoints(), self.keep, self.full_identity());
        let mut done = 0;
        let checkpoint = match self.resume {
            None => None,
            // A later stage has no checkpoint yet when an earlier one was stopped.
            Some(Resume::Latest) => checkpointer.latest(self.progress)?,
            Some(path) => Some(checkpointer.resume(path, self.progress)?),
        };
        if let Some(checkpoint) = checkpoint {
            training.restore(&checkpoint)?;
            done = checkpoint.step();
            self.progress.say(&format!("{}: goes on after step {done} of {}", self.name, self.steps));
        }
        let group = group::current();
        if group.size() > 1 {
            group.check_same("what the training starts from", &self.digest(done, training)?)?;
        }
        if done >= self.steps {
            return Ok(());
        }
        let name = if self.folder.is_empty() { "metrics.jsonl".into() } else { format!("metrics-{}.jsonl", self.folder) };
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if group.is_main() {
            sinks.push(Box::new(MetricsLog::open(&self.run.path().join(name), done)?));
            sinks.extend((self.sinks)(done)?);
        }
        let mut driver = Driver::new(self.name, &checkpointer, self.checkpointing_steps, self.progress);
        for sink in &mut sinks {
            driver.sinks.push(sink.as_mut());
        }
        self.run.timed(self.name, || driver.run(done..self.steps, training))
    }

    /// The number of processes is part of the batch's size.
    fn full_identity(&self) -> BTreeMap<String, Value> {
        let mut identity = self.identity.clone();
        let size = group::current().size();
        if size > 1 {
            identity.insert("processes".into(), size.into());
        }
        identity
    }

    /// Differs where settings, step or weights do.
    fn digest(&self, done: u64, training: &dyn Resumable) -> Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{} {done} {:?}", self.steps, self.full_identity()).as_bytes());
        for (part, tensors) in training.snapshot()?.parts {
            for (name, tensor) in tensors.iter().filter(|_| part == WEIGHTS) {
                hasher.update(name.as_bytes());
                with_values(tensor, |values| {
                    for value in values {
                        hasher.update(&value.to_le_bytes());
                    }
                })?;
            }
        }
        Ok(*hasher.finalize().as_bytes())
    }
}
