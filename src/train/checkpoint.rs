//! Checkpoints: folders that hold everything to go on, there whole or not at all.
//!
//! ```text
//! checkpoints/step-004000/
//!   weights.safetensors    parameters and buffers under their published names: usable on its own
//!   optimizer.safetensors  and whatever else the training names
//!   state.json             format version, step, identity of the run, length and hash of each file, the training's state
//! ```
//! A folder is complete when it holds `state.json`. Older checkpoints are thinned out to their weights.

use crate::base::progress::Progress;
use crate::base::{Error, Result};
use crate::io::weights::SafetensorsFile;
use crate::io::{atomic, hash, weights};
use candle_core::Tensor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Version of the folder's layout and of `state.json`. Other versions are refused.
pub const FORMAT_VERSION: u32 = 1;

const STATE_FILE: &str = "state.json";
const PARTIAL: &str = ".partial-";
/// The part that stays when a checkpoint is thinned out.
pub(super) const WEIGHTS: &str = "weights";

/// Where to go on from, as given to `--resume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest complete checkpoint of the run.
    Latest,
    /// A checkpoint folder, or a run folder (then its newest checkpoint).
    Path(PathBuf),
}

impl std::str::FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(if text == "latest" { Self::Latest } else { Self::Path(text.into()) })
    }
}

/// What `state.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format_version: u32,
    step: u64,
    identity: BTreeMap<String, Value>,
    parts: BTreeMap<String, Part>,
    state: Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    bytes: u64,
    blake3: String,
}

/// Writes and finds the checkpoints of one run. One process at a time: hold the run folder's lock.
#[derive(Debug, Clone)]
pub struct Checkpointer {
    folder: PathBuf,
    keep: usize,
    identity: BTreeMap<String, Value>,
}

impl Checkpointer {
    /// Checkpoints live in `folder`. The newest `keep` (at least 1) stay complete. `identity` holds the recipe's values
    /// that a checkpoint must share to be continued, such as sizes of the network, method and seed.
    pub fn new(folder: impl Into<PathBuf>, keep: usize, identity: BTreeMap<String, Value>) -> Self {
        Self { folder: folder.into(), keep: keep.max(1), identity }
    }

    /// Writes the checkpoint of `step`: each part becomes `NAME.safetensors`, `state` goes to `state.json` (numbers that
    /// must come back bit for bit belong into tensors). The folder appears under its name once everything is on disk.
    ///
    /// # Errors
    /// A full disk or missing rights; earlier checkpoints are untouched then.
    pub fn save(&self, step: u64, parts: &[(&str, &BTreeMap<String, Tensor>)], state: &impl Serialize) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        self.remove_leftovers()?;
        let target = self.folder.join(folder_name(step));
        let failed = |e| Error::io(&target, e);
        let temporary = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&self.folder).map_err(failed)?;
        let mut files = BTreeMap::new();
        for (name, tensors) in parts {
            let path = temporary.path().join(file_name(name));
            let metadata = BTreeMap::from([("format".into(), "pt".into()), ("step".into(), step.to_string())]);
            weights::save(&path, tensors, &metadata)?;
            let bytes = fs::metadata(&path).map_err(failed)?.len();
            files.insert(name.to_string(), Part { bytes, blake3: hash::file(&path)? });
        }
        let state = to_value(state)?;
        let manifest = Manifest { format_version: FORMAT_VERSION, step, identity: self.identity.clone(), parts: files, state };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| failed(e.into()))?;
        atomic::write(&temporary.path().join(STATE_FILE), &text)?;
        publish(temporary, &target).map_err(failed)?;
        self.thin_out(step)?;
        Ok(target)
    }

    /// Steps with a complete checkpoint, ascending.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps: Vec<u64> =
            self.folders()?.into_iter().filter(|(_, f)| f.join(STATE_FILE).exists()).map(|(s, _)| s).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The complete checkpoint of one step.
    ///
    /// # Errors
    /// Missing, damaged, of another format version, or of a run with another identity.
    pub fn load(&self, step: u64) -> Result<Checkpoint> {
        self.open(&self.folder.join(folder_name(step)))
    }

    /// The newest checkpoint that is whole. Damaged ones are passed over with a warning. None when there is none at all.
    ///
    /// # Errors
    /// A checkpoint of another format version or identity, and when all checkpoints are damaged.
    pub fn latest(&self, progress: &dyn Progress) -> Result<Option<Checkpoint>> {
        let steps = self.steps()?;
        let mut damage = None;
        for &step in steps.iter().rev() {
            match Checkpoint::open(&self.folder.join(folder_name(step))) {
                Ok(checkpoint) => return self.accept(checkpoint).map(Some),
                Err(Problem::Refused(error)) => return Err(error),
                Err(Problem::Damaged(error)) => {
                    progress.warn(&format!("checkpoint of step {step} is damaged and is passed over: {error}"));
                    damage = Some(error);
                }
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// The checkpoint that `--resume` names.
    ///
    /// # Errors
    /// As [`Self::load`]; also when there is nothing to resume.
    pub fn resume(&self, from: &Resume, progress: &dyn Progress) -> Result<Checkpoint> {
        let nothing = |folder: &Path| {
            Error::data(folder, "a complete checkpoint", "none", "start without `--resume`, or name a checkpoint folder")
        };
        match from {
            Resume::Latest => self.latest(progress)?.ok_or_else(|| nothing(&self.folder)),
            Resume::Path(path) if path.join("checkpoints").is_dir() => {
                let other = Self { folder: path.join("checkpoints"), ..self.clone() };
                other.latest(progress)?.ok_or_else(|| nothing(path))
            }
            Resume::Path(path) => self.open(path),
        }
    }

    fn open(&self, folder: &Path) -> Result<Checkpoint> {
        match Checkpoint::open(folder) {
            Ok(checkpoint) => self.accept(checkpoint),
            Err(Problem::Damaged(error) | Problem::Refused(error)) => Err(error),
        }
    }

    /// Compares the identities.
    fn accept(&self, checkpoint: Checkpoint) -> Result<Checkpoint> {
        let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        flatten("", &json!(self.identity), &mut ours);
        flatten("", &json!(checkpoint.manifest.identity), &mut theirs);
        let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
        let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let differences: Vec<String> = names
            .into_iter()
            .filter(|name| ours.get(*name) != theirs.get(*name))
            .map(|name| format!("`{name}` was {}, now {}", show(theirs.get(name)), show(ours.get(name))))
            .collect();
        if differences.is_empty() {
            return Ok(checkpoint);
        }
        Err(Error::data(
            &checkpoint.folder,
            "a checkpoint of the same recipe",
            differences.join("; "),
            "resume with the values the run was started with (its recipe.toml), or start a new run",
        ))
    }

    /// Step folders, complete or not.
    fn folders(&self) -> Result<Vec<(u64, PathBuf)>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        let step = |path: PathBuf| Some((path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?, path));
        Ok(entries.filter_map(|entry| step(entry.ok()?.path())).collect())
    }

    /// Reduces checkpoints to their weights: all but the newest `keep` up to `step`. Later ones go too: they are damaged
    /// or of a future that was given up by resuming earlier.
    fn thin_out(&self, step: u64) -> Result<()> {
        let steps = self.steps()?;
        let past = steps.partition_point(|&other| other <= step);
        let kept = past.saturating_sub(self.keep)..past;
        for (_, &step) in steps.iter().enumerate().filter(|(index, _)| !kept.contains(index)) {
            self.reduce(&self.folder.join(folder_name(step)))?;
        }
        Ok(())
    }

    /// `state.json` goes first, so that a half-done reduction is not taken for a complete checkpoint.
    fn reduce(&self, folder: &Path) -> Result<()> {
        let failed = |e| Error::io(folder, e);
        fs::remove_file(folder.join(STATE_FILE)).map_err(failed)?;
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.file_name() != Some(file_name(WEIGHTS).as_ref()) {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Removes what a killed process left half-written.
    fn remove_leftovers(&self) -> Result<()> {
        let failed = |e| Error::io(&self.folder, e);
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// A complete checkpoint whose files were found undamaged.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    manifest: Manifest,
}

/// Why a folder cannot be used: passed over, or a reason to stop.
enum Problem {
    Damaged(Error),
    Refused(Error),
}

impl Checkpoint {
    /// Number of steps done.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of its tensor files.
    pub fn part(&self, name: &str) -> Result<SafetensorsFile> {
        if !self.manifest.parts.contains_key(name) {
            let next = "resume with the recipe the checkpoint was written with";
            return Err(Error::data(&self.folder, format!("a part `{name}`"), "none of that name", next));
        }
        SafetensorsFile::open(&self.folder.join(file_name(name)))
    }

    /// The training's own state.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.manifest.state.clone()).map_err(|e| damaged(&self.folder, e.to_string()))
    }

    fn open(folder: &Path) -> std::result::Result<Self, Problem> {
        let path = folder.join(STATE_FILE);
        let text = fs::read(&path).map_err(|e| Problem::Damaged(Error::io(&path, e)))?;
        let broken = |found: String| Problem::Damaged(damaged(&path, found));
        let value: Value = serde_json::from_slice(&text).map_err(|e| broken(e.to_string()))?;
        match value.get("format_version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(FORMAT_VERSION) => {}
            Some(version) => {
                return Err(Problem::Refused(Error::data(
                    &path,
                    format!("a checkpoint of format version {FORMAT_VERSION}"),
                    format!("version {version}"),
                    "finish the run with the program version that wrote it (environment.json names it); weights.safetensors works on its own",
                )));
            }
            None => return Err(broken("no `format_version`".into())),
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(|e| broken(e.to_string()))?;
        for (name, part) in &manifest.parts {
            let file = folder.join(file_name(name));
            let length = fs::metadata(&file).map_err(|e| Problem::Damaged(Error::io(&file, e)))?.len();
            if length != part.bytes {
                return Err(Problem::Damaged(damaged(&file, format!("{length} bytes instead of {}", part.bytes))));
            }
            if hash::file(&file).map_err(Problem::Damaged)? != part.blake3 {
                return Err(Problem::Damaged(damaged(&file, "other bytes than were written".into())));
            }
        }
        Ok(Self { folder: folder.into(), manifest })
    }
}

fn damaged(path: &Path, found: String) -> Error {
    Error::data(path, "an undamaged checkpoint", found, "resume from an earlier checkpoint by naming its folder")
}

fn to_value(state: &impl Serialize) -> Result<Value> {
    serde_json::to_value(state)
        .map_err(|e| Error::environment(format!("the training's state cannot be written: {e}"), "report this as a defect"))
}

fn folder_name(step: u64) -> String {
    format!("step-{step:06}")
}

fn file_name(part: &str) -> String {
    format!("{part}.safetensors")
}

/// Moves the finished folder to its name, replacing what is there (a thinned-out checkpoint of the same step).
fn publish(temporary: tempfile::TempDir, target: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))?;
    }
    let parent = target.parent().unwrap_or(Path::new("."));
    if target.exists() {
        let old = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent)?;
        fs::rename(target, old.path().join("old"))?;
        fs::rename(temporary.path(), target)?;
    } else {
        fs::rename(temporary.path(), target)?;
    }
    let _ = temporary.keep(); // it has another name now
    #[cfg(unix)]
    fs::File::open(parent)?.sync_all()?;
    Ok(())
}

/// The leaves of `value` by dotted key.
fn flatten(key: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    let Value::Object(table) = value else {
        into.insert(key.into(), value.clone());
        return;
    };
    for (name, value) in table {
        flatten(&if key.is_empty() { name.clone() } else { format!("{key}.{name}") }, value, into);
    }
}
