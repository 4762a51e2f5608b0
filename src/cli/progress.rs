//! What a person sees on standard error while a command works.

use crate::base::progress::Progress;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A moving bar.
    Bar,
    /// A line at each tenth of a stage: for files and pipes.
    Lines,
    /// Chosen facts and warnings, no progress.
    Facts,
    /// Warnings only.
    Warnings,
}

impl Style {
    /// A bar on terminals, lines elsewhere, less with `--quiet` and `--no-progress`.
    pub fn choose(quiet: bool, no_progress: bool) -> Self {
        match (quiet, no_progress, std::io::stderr().is_terminal()) {
            (true, ..) => Self::Warnings,
            (_, true, _) => Self::Facts,
            (_, _, true) => Self::Bar,
            _ => Self::Lines,
        }
    }
}

/// The stage that runs now.
struct Stage {
    name: String,
    total: u64,
    /// Steps done before this process began.
    before: u64,
    started: Instant,
    /// Tenths that have had their line.
    tenths: u64,
    bar: Option<ProgressBar>,
}

/// The one owner of the progress display of a command.
pub struct Bar {
    style: Style,
    stage: Mutex<Option<Stage>>,
    out: Mutex<Box<dyn Write + Send>>,
}

impl Bar {
    /// On standard error.
    pub fn new(style: Style) -> Self {
        Self::writing_to(style, Box::new(std::io::stderr()))
    }

    fn writing_to(style: Style, out: Box<dyn Write + Send>) -> Self {
        Self { style, stage: Mutex::new(None), out: Mutex::new(out) }
    }

    /// Prints a line above the bar. What standard error does not take is lost: there is nowhere left to say so.
    fn line(&self, line: &str) {
        let print = || {
            let _ = writeln!(lock(&self.out), "{line}");
        };
        match lock(&self.stage).as_ref().and_then(|stage| stage.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Progress for Bar {
    fn stage(&self, name: &str, total: u64, done: u64) {
        self.end();
        let bar = (self.style == Style::Bar).then(|| new_bar(name, total, done));
        let tenths = tenths(done, total);
        let stage = Stage { name: name.into(), total, before: done, started: Instant::now(), tenths, bar };
        *lock(&self.stage) = Some(stage);
    }

    fn step(&self, done: u64, note: &str) {
        let mut guard = lock(&self.stage);
        let Some(stage) = guard.as_mut() else { return };
        if let Some(bar) = &stage.bar {
            bar.set_message(note.to_string());
            bar.set_position(done);
        }
        let reached = tenths(done, stage.total);
        if self.style != Style::Lines || reached <= stage.tenths {
            return;
        }
        stage.tenths = reached;
        let line = describe(stage, done, note);
        drop(guard);
        self.line(&line);
    }

    fn end(&self) {
        if let Some(bar) = lock(&self.stage).take().and_then(|stage| stage.bar) {
            // An abandoned bar stays visible with its last numbers.
            bar.abandon();
        }
    }

    fn say(&self, line: &str) {
        if self.style != Style::Warnings {
            self.line(line);
        }
    }

    fn warn(&self, line: &str) {
        self.line(&format!("warning: {line}"));
    }
}

/// A panic in another thread leaves nothing here that could be wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn tenths(done: u64, total: u64) -> u64 {
    (10 * done).checked_div(total).unwrap_or(10)
}

/// `NAME 40/400 (10 %), 2.1 steps/s, 3m left, NOTE`
fn describe(stage: &Stage, done: u64, note: &str) -> String {
    let seconds = stage.started.elapsed().as_secs_f64();
    let rate = done.saturating_sub(stage.before) as f64 / seconds.max(1e-9);
    let percent = (100 * done).checked_div(stage.total).unwrap_or(100);
    let mut line = format!("{} {done}/{} ({percent} %), {}", stage.name, stage.total, speed(rate));
    if done < stage.total {
        let left = Duration::from_secs_f64((stage.total - done) as f64 / rate.max(1e-9));
        let _ = write!(line, ", {} left", indicatif::HumanDuration(left));
    }
    if !note.is_empty() {
        let _ = write!(line, ", {note}");
    }
    line
}

/// Steps per second, or seconds per step when they are slow.
fn speed(rate: f64) -> String {
    match rate {
        rate if rate >= 1.0 => format!("{rate:.1} steps/s"),
        rate if rate > 0.0 => format!("{:.1} s/step", 1.0 / rate),
        _ => "no step yet".into(),
    }
}

fn new_bar(name: &str, total: u64, done: u64) -> ProgressBar {
    let template = "{prefix} {bar:24.cyan/dim} {pos}/{len} · {speed} · {eta} left · {msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let speed = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{}", speed(state.per_sec()));
    };
    let bar = ProgressBar::new(total).with_prefix(name.to_string()).with_style(style.with_key("speed", speed));
    bar.set_position(done);
    bar.reset_eta();
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn output(style: Style) -> Vec<String> {
        let out = Shared::default();
        let bar = Bar::writing_to(style, Box::new(out.clone()));
        bar.say("base: nano");
        bar.stage("train", 200, 50);
        (51..=200).for_each(|done| bar.step(done, "loss 0.5"));
        bar.end();
        bar.step(201, "after the end");
        bar.warn("odd file");
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_string).collect()
    }

    #[test]
    fn pipes_get_a_line_per_tenth() {
        let lines = output(Style::Lines);
        assert_eq!(lines.len(), 2 + 8, "{lines:#?}");
        assert!(lines[1].starts_with("train 60/200 (30 %), ") && lines[1].ends_with(", loss 0.5"), "{lines:#?}");
        assert!(lines[8].starts_with("train 200/200 (100 %)") && !lines[8].contains("left"), "{lines:#?}");
        assert!(lines.iter().all(|line| !line.contains('\u{1b}')));
    }

    #[test]
    fn less_is_shown_when_less_is_asked_for() {
        assert_eq!(output(Style::Facts), ["base: nano", "warning: odd file"]);
        assert_eq!(output(Style::Warnings), ["warning: odd file"]);
    }

    #[test]
    fn slow_steps_are_told_in_seconds() {
        assert_eq!([speed(2.5), speed(0.05), speed(0.0)], ["2.5 steps/s", "20.0 s/step", "no step yet"]);
    }

    #[test]
    fn the_template_is_valid() {
        new_bar("train", 10, 5).abandon();
        let template = "{prefix} {bar:24.cyan/dim} {pos}/{len} · {speed} · {eta} left · {msg}";
        ProgressStyle::with_template(template).unwrap();
    }
}
