//! The loop that every training runs in: numbers of steps, checkpoints, logs, progress, Ctrl-C.

use super::checkpoint::Checkpointer;
use super::guard;
use crate::base::group::{self, Group};
use crate::base::metrics::{Metrics, Sink};
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use candle_core::Tensor;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;

/// A training, seen by the loop.
pub trait Training {
    /// Does the step with number `step` (from 0) and returns its numbers, `loss` among them. All randomness must come
    /// from streams of the step number, so that a resumed training draws the same.
    fn step(&mut self, step: u64) -> Result<Metrics>;

    /// Everything that [`Training::step`] depends on and changes.
    fn snapshot(&self) -> Result<Snapshot>;

    /// What is due once `done` steps are done: evaluation, sample pictures. Its numbers join those of the step. Only the main
    /// one of several processes is asked; the others wait.
    fn after(&mut self, done: u64) -> Result<Metrics> {
        let _ = done;
        Ok(Metrics::new())
    }
}

/// The content of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Tensor files by name; `weights` is the one that is kept longest.
    pub parts: Vec<(&'static str, BTreeMap<String, Tensor>)>,
    /// Small facts.
    pub state: Value,
}

/// Runs a [`Training`].
pub struct Driver<'a> {
    /// Name of the stage, for the progress display.
    pub name: &'a str,
    /// Where checkpoints go.
    pub checkpointer: &'a Checkpointer,
    /// A checkpoint is written each time this many steps are done, and at the end. 0: only at the end.
    pub checkpoint_every: u64,
    /// Where the numbers of each step go.
    pub sinks: Vec<&'a mut dyn Sink>,
    /// What a person sees.
    pub progress: &'a dyn Progress,
    /// Asked after each step whether to save and stop; [`interrupt::requested`] in programs.
    pub stop: &'a dyn Fn() -> bool,
    /// Processes that run this loop together: numbers are averaged, all stop when one is to, the main one writes checkpoints.
    pub group: &'a dyn Group,
}

impl<'a> Driver<'a> {
    /// With Ctrl-C as the reason to stop and no sinks.
    pub fn new(name: &'a str, checkpointer: &'a Checkpointer, checkpoint_every: u64, progress: &'a dyn Progress) -> Self {
        let group = group::current();
        Self { name, checkpointer, checkpoint_every, sinks: Vec::new(), progress, stop: &interrupt::requested, group }
    }

    /// Runs the steps of `steps`; its start is the number of steps done before (0, or that of the checkpoint).
    ///
    /// # Errors
    /// Those of the training; numbers that are not finite; [`Error::Interrupted`] after a requested stop, when the
    /// checkpoint is written.
    pub fn run(&mut self, steps: Range<u64>, training: &mut dyn Training) -> Result<()> {
        self.progress.stage(self.name, steps.end, steps.start);
        let result = self.run_steps(steps, training);
        self.progress.end();
        result
    }

    fn run_steps(&mut self, steps: Range<u64>, training: &mut dyn Training) -> Result<()> {
        for step in steps.clone() {
            let done = step + 1;
            let mut metrics = self.mean(training.step(step)?)?;
            guard::finite(done, &metrics)?;
            if self.group.is_main() {
                match training.after(done) {
                    // A stop in the middle of it, e.g. of a sample picture: the state is saved below.
                    Err(Error::Interrupted { .. }) => {}
                    more => metrics.extend(more?),
                }
            }
            for sink in &mut self.sinks {
                sink.record(done, &metrics)?;
            }
            self.progress.step(done, &note(&metrics));
            let stop = self.group.any((self.stop)())? && done < steps.end;
            let due = self.checkpoint_every > 0 && done.is_multiple_of(self.checkpoint_every);
            if (stop || due || done == steps.end) && self.group.is_main() {
                self.save(done, training)?;
            }
            if stop {
                self.group.wait()?; // a process that ends would take the one that saves along
                let resume = format!("run the same command again with `--resume latest` to go on after step {done}");
                return Err(Error::Interrupted { resume });
            }
        }
        Ok(())
    }

    /// The mean of each number over the processes, which have the same ones.
    fn mean(&self, metrics: Metrics) -> Result<Metrics> {
        let (names, values): (Vec<String>, Vec<f64>) = metrics.into_iter().unzip();
        Ok(names.into_iter().zip(self.group.mean_of(values)?).collect())
    }

    fn save(&self, done: u64, training: &dyn Training) -> Result<()> {
        let snapshot = training.snapshot()?;
        let parts: Vec<_> = snapshot.parts.iter().map(|(name, tensors)| (*name, tensors)).collect();
        self.checkpointer.save(done, &parts, &snapshot.state).map(|_| ())
    }
}

fn note(metrics: &Metrics) -> String {
    metrics.get("loss").map_or(String::new(), |loss| format!("loss {loss:.4}"))
}
