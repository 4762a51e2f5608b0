//! The run folder: one per run of a command, never overwritten, used by one process at a time.
//!
//! ```text
//! runs/2026-11-21_personalize_target_1/
//!   recipe.toml        every value and where it came from
//!   environment.json   program version, machine, threads, hashes of inputs
//!   metrics.jsonl      numbers of each step; the same bytes for interrupted-and-resumed and uninterrupted runs, but for scores
//!                      on the way that a stop left out
//!   log.jsonl          stages with wall-clock times and peak memory
//!   checkpoints/       see the module `checkpoint`
//!   scores/            what `evaluate` found, see `eval::score_file`
//!   report.html        all of this as a page
//! ```

use crate::base::metrics::{Metrics, Sink};
use crate::base::{Error, Result, clock, device, group, heap};
use crate::io::atomic;
use crate::nn;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

const LOCK_FILE: &str = ".lock";
const RECIPE_FILE: &str = "recipe.toml";
const ENVIRONMENT_FILE: &str = "environment.json";
const LOG_FILE: &str = "log.jsonl";
/// The page about the run; see `datum report`.
pub const REPORT_FILE: &str = "report.html";

/// A run folder held by this process, or by the main one of several that train together: the others write nothing into it. The
/// lock ends with the value; a numbered folder in which nothing was done goes with it.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    numbered: bool,
    lock: Option<File>,
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.numbered && self.is_untouched().unwrap_or(false) {
            // Best effort: what cannot be removed does no harm.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl RunDir {
    /// Makes `output`, or else the next free `ROOT/DATE_LABEL_N`. A run that ended before it did anything, such as one with a
    /// wrong path, may be started again in the same folder.
    ///
    /// # Errors
    /// `output` exists and is not empty.
    pub fn create(output: Option<&Path>, root: &Path, label: &str) -> Result<Self> {
        Self::of_all(|| Self::create_alone(output, root, label))
    }

    /// The folder that the main process makes or opens, for every process.
    fn of_all(of_main: impl FnOnce() -> Result<Self>) -> Result<Self> {
        let group = group::current();
        if group.size() == 1 {
            return of_main();
        }
        if group.is_main() {
            let run = of_main()?;
            group.from_main(run.path.as_os_str().as_encoded_bytes())?;
            return Ok(run);
        }
        let path = String::from_utf8(group.from_main(&[])?)
            .map_err(|_| Error::Usage("several processes need a run folder whose name is UTF-8".into()))?;
        Ok(Self { path: path.into(), numbered: false, lock: None })
    }

    /// Whether this process writes into the folder.
    pub fn is_written(&self) -> bool {
        self.lock.is_some()
    }

    fn create_alone(output: Option<&Path>, root: &Path, label: &str) -> Result<Self> {
        let Some(output) = output else { return Self::numbered(root, label) };
        fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
        let run = Self::lock(output)?;
        if !run.is_untouched()? {
            return Err(Error::Usage(format!(
                "`--output` {} is not empty\n  next: choose another folder, or go on with the run that is there: `--resume latest` \
                 where the command has it",
                output.display()
            )));
        }
        Ok(run)
    }

    fn numbered(root: &Path, label: &str) -> Result<Self> {
        fs::create_dir_all(root).map_err(|e| Error::io(root, e))?;
        let stem = format!("{}_{}", today(), file_safe(label));
        for number in 1u64.. {
            let path = root.join(format!("{stem}_{number}"));
            match fs::create_dir(&path) {
                Ok(()) => {
                    let mut run = Self::lock(&path)?;
                    run.numbered = true;
                    return Ok(run);
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(&path, e)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// True while nothing but settings, the log and a report of them has been written.
    fn is_untouched(&self) -> Result<bool> {
        let entries = fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, e))?;
        let settings =
            |name: OsString| [LOCK_FILE, RECIPE_FILE, ENVIRONMENT_FILE, LOG_FILE, REPORT_FILE].iter().any(|file| name == *file);
        Ok(entries.filter_map(|entry| entry.ok()).all(|entry| settings(entry.file_name())))
    }

    /// Goes on in an existing run folder.
    ///
    /// # Errors
    /// There is no run in it, or another process holds it.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join(RECIPE_FILE).exists() {
            let next = "check the path, or start a new run without `--resume`";
            return Err(Error::data(path, format!("a run folder (with {RECIPE_FILE})"), "no run", next));
        }
        Self::of_all(|| Self::lock(path))
    }

    /// The newest run under `root` whose label is `verb` or starts with `VERB_`.
    pub fn newest(root: &Path, verb: &str) -> Option<PathBuf> {
        Self::newest_of(root, verb, |_| true)
    }

    /// The newest such run that `wanted` accepts.
    pub fn newest_of(root: &Path, verb: &str, wanted: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let prefix = format!("{}_", file_safe(verb));
        let candidate = |path: PathBuf| {
            let (date, label) = path.file_name()?.to_str()?.split_once('_')?;
            let written = fs::metadata(path.join(RECIPE_FILE)).ok()?.modified().ok()?;
            (label.starts_with(&prefix) && wanted(&path)).then(|| (date.to_string(), written, path.clone()))
        };
        fs::read_dir(root).ok()?.filter_map(|entry| candidate(entry.ok()?.path())).max().map(|(_, _, path)| path)
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join(LOCK_FILE);
        let failed = |e| Error::io(&file, e);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.into(), numbered: false, lock: Some(lock) }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::environment(
                format!("another process works in {}", path.display()),
                "wait for it or stop it, or choose another folder with `--output`",
            )),
            Err(fs::TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Writes `recipe.toml`: the resolved recipe with the origin of each value.
    pub fn write_recipe(&self, text: &str) -> Result<()> {
        atomic::write(&self.path.join(RECIPE_FILE), text.as_bytes())
    }

    /// Writes `environment.json`. `inputs` are names or paths with their hashes.
    pub fn write_environment(&self, inputs: &BTreeMap<String, String>) -> Result<()> {
        let facts = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "system": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            "processes": group::current().size(),
            "threads": rayon::current_num_threads(),
            "processors": std::thread::available_parallelism().map_or(1, usize::from),
            "cpu_features": cpu_features(),
            "device": device::name(&device::current()),
            "dtype": if nn::bf16_chosen() { "bf16" } else { device::current_dtype().as_str() },
            "inputs": inputs,
        });
        atomic::write(&self.path.join(ENVIRONMENT_FILE), format!("{facts:#}\n").as_bytes())
    }

    /// Opens `metrics.jsonl` for a run that goes on after `done` steps (0 for a new run).
    pub fn metrics(&self, done: u64) -> Result<MetricsLog> {
        MetricsLog::open(&self.path.join("metrics.jsonl"), done)
    }

    /// Adds a record to `log.jsonl`: the event, the time, the peak memory so far, and `facts` (an object).
    pub fn log(&self, event: &str, facts: Value) -> Result<()> {
        if !self.is_written() {
            return Ok(());
        }
        let mut record = json!({ "time": clock::now() as u64, "event": event });
        if let Some(bytes) = heap::peak_memory() {
            record["peak_memory_mib"] = (bytes >> 20).into();
        }
        if let (Some(record), Value::Object(facts)) = (record.as_object_mut(), facts) {
            record.extend(facts);
        }
        append(&self.path.join(LOG_FILE), &record)
    }

    /// Runs a stage and logs how long it took, also when it failed.
    pub fn timed<T>(&self, stage: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work();
        let seconds = (start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        let logged = self.log("stage", json!({ "stage": stage, "seconds": seconds, "ok": result.is_ok() }));
        let value = result?; // the stage's own error matters more than that of the log
        logged.map(|()| value)
    }
}

/// `metrics.jsonl`: one record for each step, in order.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens for appending after step `done`. Records of later steps (of a run that was stopped after its last
    /// checkpoint) and a torn last line are cut off, so that a resumed run's file equals an uninterrupted one's.
    pub fn open(path: &Path, done: u64) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        let text = fs::read_to_string(path).map_err(failed)?;
        let step = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let kept: usize = whole.take_while(|line| step(line).is_some_and(|step| step <= done)).map(str::len).sum();
        // Appending alone does not give the right to truncate on every system.
        OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(kept as u64)).map_err(failed)?;
        Ok(Self { path: path.into(), file })
    }
}

impl Sink for MetricsLog {
    fn record(&mut self, step: u64, metrics: &Metrics) -> Result<()> {
        let mut record = json!({ "step": step });
        if let Some(record) = record.as_object_mut() {
            record.extend(metrics.iter().map(|(name, value)| (name.clone(), json!(value))));
        }
        self.file.write_all(format!("{record}\n").as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

fn append(path: &Path, record: &Value) -> Result<()> {
    let write = || OpenOptions::new().create(true).append(true).open(path)?.write_all(format!("{record}\n").as_bytes());
    write().map_err(|e| Error::io(path, e))
}

/// Today's date (UTC) as YYYY-MM-DD.
fn today() -> String {
    clock::date(clock::now() as u64 / 86_400)
}

fn file_safe(label: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    label.chars().map(safe).collect()
}

fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx", std::is_x86_feature_detected!("avx")),
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("amx_bf16", nn::bf16_available()),
        ];
        found.extend(known.iter().filter(|(_, there)| *there).map(|(name, _)| *name));
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        found.push("neon");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_numbered_and_locked() {
        let root = tempfile::tempdir().unwrap();
        let first = RunDir::create(None, root.path(), "personalize_my photo").unwrap();
        let second = RunDir::create(None, root.path(), "personalize_my photo").unwrap();
        assert!(first.path().ends_with(format!("{}_personalize_my-photo_1", today())));
        assert!(second.path().ends_with(format!("{}_personalize_my-photo_2", today())));
        assert!(RunDir::newest(root.path(), "personalize").is_none(), "a run without recipe is not a run yet");
        second.write_recipe("").unwrap();
        assert_eq!(RunDir::newest(root.path(), "personalize").as_deref(), Some(second.path()));
        let error = RunDir::open(second.path()).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        let path = second.path().to_path_buf();
        MetricsLog::open(&path.join("metrics.jsonl"), 0).unwrap();
        drop(second);
        RunDir::open(&path).unwrap();
    }

    #[test]
    fn a_numbered_folder_in_which_nothing_was_done_goes() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(None, root.path(), "adapt").unwrap();
        run.write_recipe("").unwrap();
        let path = run.path().to_path_buf();
        drop(run);
        assert!(!path.exists());
        let named = RunDir::create(Some(&path), root.path(), "adapt").unwrap();
        drop(named);
        assert!(path.exists(), "a folder that the user named stays");
    }

    #[test]
    fn an_output_folder_with_content_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let output = root.path().join("mine");
        drop(RunDir::create(Some(&output), root.path(), "x").unwrap());
        drop(RunDir::create(Some(&output), root.path(), "x").unwrap());
        fs::write(output.join("thesis.txt"), "").unwrap();
        let error = RunDir::create(Some(&output), root.path(), "x").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().ends_with("`--resume latest` where the command has it"), "{error}");
    }

    #[test]
    fn metrics_are_cut_back_to_the_resumed_step() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 1..=4 {
            log.record(step, &Metrics::from([("loss".into(), 0.5)])).unwrap();
        }
        log.file.write_all(b"{\"step\":5,\"lo").unwrap();
        let mut log = MetricsLog::open(&path, 2).unwrap();
        log.record(3, &Metrics::from([("loss".into(), 0.25)])).unwrap();
        let lines = "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n{\"step\":3,\"loss\":0.25}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), lines);
    }

    #[test]
    fn stages_are_logged_with_their_outcome() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(None, root.path(), "x").unwrap();
        run.timed("good", || Ok(())).unwrap();
        run.timed("bad", || Err::<(), _>(Error::Usage("no".into()))).unwrap_err();
        run.write_environment(&BTreeMap::from([("target.png".into(), "ab".into())])).unwrap();
        let log = fs::read_to_string(run.path().join("log.jsonl")).unwrap();
        let records: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.iter().map(|r| r["ok"].as_bool().unwrap()).collect::<Vec<_>>(), [true, false]);
    }
}
