//! Models by hub id, through the cache that Python's tools share. The only place that opens sockets for files.
//!
//! The cache is looked up first; the network is used for what is missing, and never when offline. Environment variables
//! are read here by name through a function, so that the command line decides where they come from.

use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use hf_hub::api::tokio::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A model on the hub: `org/name` or `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    /// `org/name`.
    pub name: String,
    /// Branch, tag or commit; `main` unless given.
    pub revision: String,
}

impl std::str::FromStr for ModelId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let word = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && part.chars().all(known) && !part.contains("..") && !part.starts_with('.')
        };
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() == 2 && parts.into_iter().all(word) && revision.split('/').all(word) {
            return Ok(Self { name: name.into(), revision: revision.into() });
        }
        Err(Error::Usage(format!("expected a hub id such as `org/name` or `org/name@revision`, found `{text}`")))
    }
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.name, self.revision)
    }
}

/// Where models come from.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The shared cache: a folder of `models--ORG--NAME`.
    pub cache: PathBuf,
    /// Address of the hub or of a mirror, without a slash at the end.
    pub endpoint: String,
    /// Access token, if any.
    pub token: Option<String>,
    /// Never open a socket.
    pub offline: bool,
}

impl HubSettings {
    /// From environment variables, with the same meaning as in Python: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let user = get("HOME").or_else(|| get("USERPROFILE")).map_or_else(|| PathBuf::from("."), PathBuf::from);
        let path = |text: String| text.strip_prefix("~/").map_or_else(|| PathBuf::from(&text), |rest| user.join(rest));
        let home = get("HF_HOME")
            .map(path)
            .unwrap_or_else(|| get("XDG_CACHE_HOME").map_or_else(|| user.join(".cache"), path).join("huggingface"));
        let token_file = get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), path);
        let token = get("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok()).map(|token| token.trim().to_string());
        let yes = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Self {
            cache: get("HF_HUB_CACHE").or_else(|| get("HUGGINGFACE_HUB_CACHE")).map_or_else(|| home.join("hub"), path),
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()).trim_end_matches('/').into(),
            token: token.filter(|token| !token.is_empty()),
            offline: get("HF_HUB_OFFLINE").or_else(|| get("TRANSFORMERS_OFFLINE")).is_some_and(yes),
        }
    }
}

/// Which files of a model are needed.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Of each group the first file that exists is taken; one has to.
    pub required: Vec<Vec<String>>,
    /// Taken along where they exist.
    pub optional: Vec<String>,
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Folder that holds the files.
    pub folder: PathBuf,
    /// Commit hash of what it holds.
    pub revision: String,
    /// The wanted files that are there, relative to the folder.
    pub files: Vec<String>,
}

/// The model's files: from the cache when every required one is there, else downloaded (and resumed where an earlier
/// download stopped). Blocks; not to be called from asynchronous code.
///
/// # Errors
/// [`Error::Environment`] when the model cannot be had, naming what would work; [`Error::Interrupted`] on Ctrl-C.
pub fn fetch(id: &ModelId, wanted: &Wanted, settings: &HubSettings, progress: &dyn Progress) -> Result<Snapshot> {
    if let Some(snapshot) = cached(id, wanted, settings) {
        return Ok(snapshot);
    }
    if settings.offline {
        return Err(unavailable(id, settings, "offline (`HF_HUB_OFFLINE`), and not in the cache"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| unavailable(id, settings, &e.to_string()))?;
    runtime.block_on(download(id, wanted, settings, progress))
}

/// What the cache holds of a model, when that is all that is required.
pub fn cached(id: &ModelId, wanted: &Wanted, settings: &HubSettings) -> Option<Snapshot> {
    let model = settings.cache.join(Repo::model(id.name.clone()).folder_name());
    let named = std::fs::read_to_string(model.join("refs").join(&id.revision)).ok();
    let revision = named.map_or_else(|| id.revision.clone(), |hash| hash.trim().to_string());
    let folder = model.join("snapshots").join(&revision);
    let files = choose(wanted, |file| folder.join(file).is_file()).ok()?;
    Some(Snapshot { folder, revision, files })
}

/// The files to take out of those that exist.
///
/// # Errors
/// The first required group of which none exists.
fn choose(wanted: &Wanted, exists: impl Fn(&str) -> bool) -> std::result::Result<Vec<String>, &[String]> {
    let mut files = Vec::new();
    for group in &wanted.required {
        files.push(group.iter().find(|file| exists(file)).ok_or(group.as_slice())?.clone());
    }
    files.extend(wanted.optional.iter().filter(|file| exists(file)).cloned());
    Ok(files)
}

async fn download(id: &ModelId, wanted: &Wanted, settings: &HubSettings, progress: &dyn Progress) -> Result<Snapshot> {
    let failed = |e: ApiError| explain(id, settings, e);
    let cache = Cache::new(settings.cache.clone());
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_max_files(4)
        .build()
        .map_err(failed)?;
    let named = |revision: &str| Repo::with_revision(id.name.clone(), RepoType::Model, revision.into());
    progress.say(&format!("asking {} for {id}", settings.endpoint));
    let info = api.repo(named(&id.revision)).info().await.map_err(failed)?;
    if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(unavailable(id, settings, "the server's answer has no commit hash"));
    }
    let files = choose(wanted, |file| info.siblings.iter().any(|sibling| sibling.rfilename == file))
        .map_err(|group| unavailable(id, settings, &format!("the model has no file {}", group.join(" or "))))?;
    // All files of one commit, whatever happens to the branch meanwhile.
    let folder = cache.repo(named(&info.sha)).pointer_path(&info.sha);
    for file in files.iter().filter(|file| !folder.join(file).is_file()) {
        transfer(&api, named(&info.sha), file, progress, &failed).await?;
    }
    cache.repo(named(&id.revision)).create_ref(&info.sha).map_err(|e| Error::io(&settings.cache, e))?;
    cached(id, wanted, settings).ok_or_else(|| unavailable(id, settings, "the server delivered files of another commit"))
}

/// Bytes so far and in all, shared with the tasks that receive them.
#[derive(Clone, Default)]
struct Counter(Arc<(AtomicUsize, AtomicUsize)>);

impl hf_hub::api::tokio::Progress for Counter {
    async fn init(&mut self, size: usize, _: &str) {
        self.0.1.store(size, Ordering::Relaxed);
    }
    async fn update(&mut self, size: usize) {
        self.0.0.fetch_add(size, Ordering::Relaxed);
    }
    async fn finish(&mut self) {}
}

/// One file, with two more attempts that go on where the connection broke.
async fn transfer(api: &Api, repo: Repo, file: &str, progress: &dyn Progress, failed: &impl Fn(ApiError) -> Error) -> Result<()> {
    let repo = api.repo(repo);
    let mut retries = [1, 2].into_iter().map(Duration::from_secs);
    loop {
        let counter = Counter::default();
        let mut work = std::pin::pin!(repo.download_with_progress(file, counter.clone()));
        let mut staged = false;
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
            if interrupt::requested() {
                return Err(Error::Interrupted { resume: "run the same command again".into() });
            }
            let (done, size) = (counter.0.0.load(Ordering::Relaxed), counter.0.1.load(Ordering::Relaxed));
            if size > 0 && !std::mem::replace(&mut staged, true) {
                progress.stage(&format!("downloading {file} (bytes)"), size as u64, 0);
            }
            if staged {
                progress.step(done as u64, "");
            }
        };
        if staged {
            progress.end();
        }
        match (result, retries.next()) {
            (Ok(_), _) => return Ok(()),
            (Err(ApiError::RequestError(e)), Some(pause)) if e.status().is_none() => {
                progress.warn(&format!("{file}: {e}; trying again"));
                tokio::time::sleep(pause).await;
            }
            (Err(e), _) => return Err(failed(e)),
        }
    }
}

/// A failure of the hub's client in our words.
fn explain(id: &ModelId, settings: &HubSettings, error: ApiError) -> Error {
    let why = match &error {
        ApiError::IoError(e) => return Error::io(&settings.cache, std::io::Error::new(e.kind(), e.to_string())),
        ApiError::LockAcquisition(path) => format!("another process is downloading it ({} is locked)", path.display()),
        ApiError::RequestError(e) => match e.status().map(|status| status.as_u16()) {
            Some(401 | 403) => "it does not exist, or needs an accepted licence and a token in `HF_TOKEN`".into(),
            Some(404) => "no such model or revision".into(),
            Some(429) => "the server asks for fewer requests; wait a few minutes".into(),
            Some(status) => format!("the server answered with status {status}"),
            None => format!("the server cannot be reached ({})", root_cause(e)),
        },
        other => other.to_string(),
    };
    unavailable(id, settings, &why)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The model cannot be had; what can be done instead.
fn unavailable(id: &ModelId, settings: &HubSettings, why: &str) -> Error {
    let cache: &Path = &settings.cache;
    Error::environment(
        format!("cannot get {id} from {}: {why}", settings.endpoint),
        format!(
            "give `nano` (the small model inside the program) or a folder in diffusers layout in its place (`--base`, and `--model` \
             when generating), or set `HF_HUB_CACHE` or `HF_HOME` to a cache that holds the model (now {})",
            cache.display()
        ),
    )
}
