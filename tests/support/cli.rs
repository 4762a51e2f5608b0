//! Runs the `datum` program in a temporary folder with small drawn photos.
#![allow(dead_code)]

use datum::io::images::{RgbImage, write_gray_png, write_png};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// (height, width) of the drawn photos.
pub const SIZE: (usize, usize) = (32, 48);

/// Settings of a tiny pretraining.
pub const PRETRAIN: &str = "pretrain --images photos --set size.height=32 --set size.width=48 \
    --set vae.channels=[8,8] --set vae.norm_groups=4 --set vae.crop=32 --set vae.batch_size=1 \
    --set unet.channels=[8,16] --set unet.attention=[false,true] --set unet.norm_groups=4 --set unet.heads=2 \
    --set unet.text_width=16 --set unet.text_layers=1 --set unet.vocabulary=600 --set unet.batch_size=1";

/// A tiny personalisation.
pub const PERSONALIZE: &str = "personalize photos/p0.png --base base --resolution 32 --crop-size 32";

/// A tiny adaptation.
pub const ADAPT: &str = "adapt --source set.toml --encoder mit-b0 --batch-size 1 --workers 1 --set decoder_channels=8 \
    --set crop.height=32 --set crop.width=32 --set source_size.height=32 --set source_size.width=48 --set warmup=0 \
    --set rare_class_min_pixels=1 --set self_training.margin_top=0 --set self_training.margin_bottom=0";

/// A folder with `photos/` (4 photos), `set.toml` (the same ones with labels of 3 classes) and `base/` (a tiny Stable
/// Diffusion, trained once for all tests).
pub struct Sandbox {
    folder: tempfile::TempDir,
}

/// What a command did.
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Sandbox {
    pub fn new() -> Self {
        static BASE: OnceLock<BTreeMap<PathBuf, Vec<u8>>> = OnceLock::new();
        let sandbox = Self::without_base();
        let base = BASE.get_or_init(|| {
            let sandbox = Self::without_base();
            sandbox.ok(&format!("{PRETRAIN} --set vae.steps=3 --set unet.steps=3 --output base"));
            sandbox.contents("base/model")
        });
        for (path, bytes) in base {
            sandbox.write(&format!("base/model/{}", path.display()), bytes);
        }
        sandbox
    }

    fn without_base() -> Self {
        let sandbox = Self { folder: tempfile::tempdir().unwrap() };
        for index in 0..4 {
            let (image, label) = draw(index);
            write_png(&sandbox.path(&format!("photos/p{index}.png")), &image, &[]).unwrap();
            write_png(&sandbox.path(&format!("set/images/p{index}.png")), &image, &[]).unwrap();
            write_gray_png(&sandbox.path(&format!("set/labels/p{index}.png")), SIZE, &label, &[]).unwrap();
        }
        sandbox.write("set.toml", DATASET.as_bytes());
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// All files below a folder with their bytes.
    pub fn contents(&self, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let root = self.path(folder);
        let files = walkdir::WalkDir::new(&root).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
        files.map(|file| (file.path().strip_prefix(&root).unwrap().to_path_buf(), std::fs::read(file.path()).unwrap())).collect()
    }

    /// Names of all files.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        self.contents("").into_keys().collect()
    }

    /// `program` with only the environment a test wants.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.folder.path());
        command.env("RAYON_NUM_THREADS", "1").env("HF_HUB_OFFLINE", "1");
        command
    }

    /// The program with the words of `line` as arguments.
    pub fn datum(&self, line: &str) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_datum"));
        command.args(line.split_whitespace());
        command
    }

    pub fn run(&self, line: &str) -> Outcome {
        outcome(&mut self.datum(line))
    }

    /// Runs a command that has to succeed.
    pub fn ok(&self, line: &str) -> Outcome {
        let outcome = self.run(line);
        assert_eq!(outcome.status.code(), Some(0), "datum {line}\n{}", outcome.stderr);
        outcome
    }

    /// Runs a command that has to end with `code`, an error of `parts`, and nothing on standard output.
    pub fn fails(&self, line: &str, code: i32, parts: &[&str]) -> Outcome {
        let outcome = self.run(line);
        outcome.failed(line, code, parts);
        outcome
    }

    /// Starts a command and waits until `file` is there; the command must still be running.
    pub fn started(&self, line: &str, file: &str) -> Child {
        let mut child = self.datum(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        while !std::fs::metadata(self.path(file)).is_ok_and(|file| file.is_dir() || file.len() > 0) {
            if child.try_wait().unwrap().is_some() || start.elapsed() > Duration::from_secs(60) {
                let output = child.wait_with_output().unwrap();
                panic!("datum {line}: no {file}\n{}", String::from_utf8_lossy(&output.stderr));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }

    /// Starts a command and kills it the hard way as soon as `file` is there.
    pub fn killed(&self, line: &str, file: &str) {
        let mut child = self.started(line, file);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "datum {line} ended before it was killed");
    }
}

impl Outcome {
    pub fn failed(&self, line: &str, code: i32, parts: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "datum {line}\n{}", self.stderr);
        assert_eq!(self.stdout, "", "datum {line}");
        for part in parts {
            assert!(self.stderr.contains(part), "datum {line}: `{part}` is not in\n{}", self.stderr);
        }
    }
}

/// Runs to the end. No command may ever panic.
pub fn outcome(command: &mut Command) -> Outcome {
    checked(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Waits for the end of a started command.
pub fn checked(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let outcome = Outcome { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(!outcome.stderr.contains("panicked at"), "{}", outcome.stderr);
    outcome
}

const DATASET: &str = r#"
root = "set"
images = "images/*.png"
labels = "labels/{stem}.png"
classes = ["sky", "road", "car"]
"#;

/// A street: sky, road, and a car that differs from photo to photo.
pub fn draw(index: usize) -> (RgbImage, Vec<u8>) {
    let (height, width) = SIZE;
    let horizon = 12 + 3 * index;
    let (mut pixels, mut label) = (Vec::new(), Vec::new());
    for y in 0..height {
        for x in 0..width {
            let is_car = (horizon - 4..horizon + 6).contains(&y) && (5 + 6 * index..15 + 6 * index).contains(&x);
            let class = if is_car { 2 } else { u8::from(y >= horizon) };
            let color = [[100, 150, 230], [90, 90, 90], [200, 40, 40]][usize::from(class)];
            let texture = ((7 * x + 13 * y + 5 * index) % 17) as u8;
            pixels.extend(color.map(|value: u8| value + texture));
            label.push(class);
        }
    }
    (RgbImage { height, width, pixels }, label)
}

/// The lines of a file.
pub fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_string).collect()
}
