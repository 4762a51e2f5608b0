//! Models by hub id, against a small server on this machine that answers as the hub does.

use datum::base::progress::Silent;
use datum::io::hub::{HubSettings, ModelId, Wanted, cached, fetch};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";
const MODEL: &str = "lab/street-diffusion";

/// Heads of all requests so far.
type Log = Arc<Mutex<Vec<String>>>;

struct Hub {
    endpoint: String,
    log: Log,
    _runtime: tokio::runtime::Runtime,
}

impl Hub {
    /// Serves `files` of [`MODEL`]; the first `broken` answers with file contents stop in the middle.
    fn start(files: BTreeMap<String, Vec<u8>>, broken: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Log::default();
        let (files, broken) = (Arc::new(files), Arc::new(Mutex::new(broken)));
        let seen = log.clone();
        runtime.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (files, seen, broken) = (files.clone(), seen.clone(), broken.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = socket.read_u8().await else { return };
                        head.push(byte);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let mut answer = respond(&head, &files);
                    seen.lock().unwrap().push(head);
                    {
                        let mut broken = broken.lock().unwrap();
                        if *broken > 0 && answer.len() > 10_000 {
                            *broken -= 1;
                            answer.truncate(answer.len() / 2);
                        }
                    }
                    socket.write_all(&answer).await.ok();
                });
            }
        });
        Self { endpoint, log, _runtime: runtime }
    }

    fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }
}

fn respond(head: &str, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let path = head.split_whitespace().nth(1).unwrap();
    let not_found = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
    let info = format!("/api/models/{MODEL}/revision/");
    if let Some(revision) = path.strip_prefix(&info) {
        if revision != "main" && revision != SHA {
            return not_found;
        }
        let siblings: Vec<String> = files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}")).collect();
        let body = format!("{{\"sha\": \"{SHA}\", \"siblings\": [{}]}}", siblings.join(", "));
        let length = body.len();
        return format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").into_bytes();
    }
    let file = path.strip_prefix(&format!("/{MODEL}/resolve/{SHA}/"));
    let Some((name, bytes)) = file.and_then(|file| files.get_key_value(file)) else { return not_found };
    let range = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_string));
    let range = range.expect("the hub's client asks for ranges");
    let (start, stop) = range.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let stop = stop.parse::<usize>().unwrap().min(bytes.len() - 1);
    let etag = blake3::hash(name.as_bytes()).to_hex();
    let mut answer = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{stop}/{}\r\n\
         ETag: \"{etag}\"\r\nX-Repo-Commit: {SHA}\r\nConnection: close\r\n\r\n",
        stop - start + 1,
        bytes.len()
    )
    .into_bytes();
    answer.extend_from_slice(&bytes[start..=stop]);
    answer
}

fn files() -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([
        ("model_index.json".into(), b"{}".to_vec()),
        ("unet/weights.bin".into(), (0..50_000_u32).map(|i| (i % 251) as u8).collect()),
        ("safety_checker/model.bin".into(), vec![1; 10]),
        ("README.md".into(), b"# not wanted".to_vec()),
    ])
}

fn wanted() -> Wanted {
    let group = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    Wanted {
        required: vec![group(&["model_index.json"]), group(&["unet/weights.safetensors", "unet/weights.bin"])],
        optional: group(&["safety_checker/model.bin", "feature_extractor/config.json"]),
    }
}

fn settings(cache: &Path, endpoint: &str) -> HubSettings {
    HubSettings { cache: cache.into(), endpoint: endpoint.into(), token: Some("secret".into()), offline: false }
}

fn model() -> ModelId {
    MODEL.parse().unwrap()
}

#[test]
fn downloads_once_and_then_lives_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(files(), 0);
    let settings = settings(dir.path(), &hub.endpoint);
    let snapshot = fetch(&model(), &wanted(), &settings, &Silent).unwrap();
    assert_eq!(snapshot.revision, SHA);
    assert_eq!(snapshot.files, ["model_index.json", "unet/weights.bin", "safety_checker/model.bin"]);
    for file in &snapshot.files {
        assert_eq!(std::fs::read(snapshot.folder.join(file)).unwrap(), files()[file], "{file}");
    }
    assert!(!snapshot.folder.join("README.md").exists());
    // The layout that Python's tools read.
    let shared = dir.path().join("models--lab--street-diffusion");
    assert_eq!(snapshot.folder, shared.join("snapshots").join(SHA));
    assert_eq!(std::fs::read_to_string(shared.join("refs/main")).unwrap(), SHA);
    for head in hub.log.lock().unwrap().iter() {
        assert!(head.to_ascii_lowercase().contains("authorization: bearer secret"), "{head}");
    }
    // Again, with the server gone; by branch and by commit; also offline.
    let before = hub.requests();
    drop(hub);
    assert_eq!(fetch(&model(), &wanted(), &settings, &Silent).unwrap(), snapshot);
    let by_commit: ModelId = format!("{MODEL}@{SHA}").parse().unwrap();
    assert_eq!(cached(&by_commit, &wanted(), &settings).unwrap(), snapshot);
    let offline = HubSettings { offline: true, ..settings };
    assert_eq!(fetch(&by_commit, &wanted(), &offline, &Silent).unwrap(), snapshot);
    assert!(before >= 4);
}

#[test]
fn offline_opens_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(files(), 0);
    let offline = HubSettings { offline: true, ..settings(dir.path(), &hub.endpoint) };
    let error = fetch(&model(), &wanted(), &offline, &Silent).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let message = error.to_string();
    for part in ["offline", "lab/street-diffusion@main", "`nano`", "a folder", "HF_HUB_CACHE"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(hub.requests(), 0);
}

#[test]
fn a_broken_connection_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(files(), 1);
    let snapshot = fetch(&model(), &wanted(), &settings(dir.path(), &hub.endpoint), &Silent).unwrap();
    assert_eq!(std::fs::read(snapshot.folder.join("unet/weights.bin")).unwrap(), files()["unet/weights.bin"]);
}

#[test]
fn what_cannot_be_had_says_what_would_work() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(files(), 0);
    let here = settings(dir.path(), &hub.endpoint);
    for id in ["lab/other", "lab/street-diffusion@v9"] {
        let error = fetch(&id.parse().unwrap(), &wanted(), &here, &Silent).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("no such model or revision") && error.to_string().contains("`nano`"), "{error}");
    }
    let more = Wanted { required: vec![vec!["vae/a".into(), "vae/b".into()]], ..wanted() };
    let error = fetch(&model(), &more, &here, &Silent).unwrap_err();
    assert!(error.to_string().contains("no file vae/a or vae/b"), "{error}");
    drop(hub);
    let error = fetch(&model(), &wanted(), &here, &Silent).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[test]
fn ids_are_checked() {
    let id: ModelId = "CompVis/stable-diffusion-v1-4@refs/pr/1".parse().unwrap();
    assert_eq!((id.name.as_str(), id.revision.as_str()), ("CompVis/stable-diffusion-v1-4", "refs/pr/1"));
    for wrong in ["nano", "a/b/c", "a/", "../b", "a/b@", "a/b@../../x", "a b/c", ""] {
        assert_eq!(wrong.parse::<ModelId>().unwrap_err().exit_code(), 2, "{wrong}");
    }
}

#[test]
fn variables_mean_what_they_mean_in_python() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap().to_string();
    let from = |pairs: &[(&str, &str)]| {
        let all: BTreeMap<String, String> = pairs.iter().map(|(k, v)| (k.to_string(), v.replace("HOME", &home))).collect();
        HubSettings::from_variables(|name| all.get(name).cloned())
    };
    let plain = from(&[("HOME", "HOME")]);
    assert_eq!(plain.cache, dir.path().join(".cache/huggingface/hub"));
    assert_eq!((plain.endpoint.as_str(), plain.token, plain.offline), ("https://huggingface.co", None, false));
    assert_eq!(from(&[("HOME", "HOME"), ("XDG_CACHE_HOME", "HOME/x")]).cache, dir.path().join("x/huggingface/hub"));
    assert_eq!(from(&[("HOME", "HOME"), ("HF_HOME", "~/hf")]).cache, dir.path().join("hf/hub"));
    assert_eq!(from(&[("HF_HOME", "HOME/hf"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
    assert_eq!(from(&[("HF_ENDPOINT", "https://mirror/")]).endpoint, "https://mirror");
    for (value, offline) in [("1", true), ("true", true), ("0", false), ("", false)] {
        assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
    }
    std::fs::create_dir_all(dir.path().join("hf")).unwrap();
    std::fs::write(dir.path().join("hf/token"), "filed\n").unwrap();
    assert_eq!(from(&[("HF_HOME", "HOME/hf")]).token.as_deref(), Some("filed"));
    assert_eq!(from(&[("HF_HOME", "HOME/hf"), ("HF_TOKEN", " given ")]).token.as_deref(), Some("given"));
}
