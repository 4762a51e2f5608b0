//! Where long work reports to. The programs plug in a bar for terminals; tests and pipes plug in [`Silent`].

/// Receives the progress of one command. Implementations decide what a person sees.
pub trait Progress: Send + Sync {
    /// A stage begins: its name and number of steps (`done` of them are already behind us after a resume).
    fn stage(&self, name: &str, total: u64, done: u64);
    /// `done` steps of the stage are finished; `note` holds the facts of the moment, e.g. `loss 0.412`.
    fn step(&self, done: u64, note: &str);
    /// The stage is over.
    fn end(&self);
    /// A line for the user that stays on the screen (what was chosen, where a file lies).
    fn say(&self, line: &str);
    /// A line about something the user may want to act on.
    fn warn(&self, line: &str);
}

/// Drops everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: u64, _: u64) {}
    fn step(&self, _: u64, _: &str) {}
    fn end(&self) {}
    fn say(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}
