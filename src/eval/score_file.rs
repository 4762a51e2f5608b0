//! Scores on disk, beside the run they belong to:
//!
//! ```text
//! RUN/scores/camvid-val.json      scores, confusion matrix, what was scored and how
//! RUN/scores/camvid-val/          a few pictures: 0-photo.jpg, 0-prediction.jpg, 0-label.jpg, 1-photo.jpg, …
//! ```

use super::{ConfusionMatrix, Scores};
use crate::base::{Error, Result, clock};
use crate::io::{self, atomic};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Folder within a run.
pub const FOLDER: &str = "scores";
const VERSION: u32 = 1;

/// What one evaluation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreFile {
    /// Version of this layout.
    pub format_version: u32,
    /// What was scored.
    pub subject: Subject,
    /// Seconds since 1970.
    pub time: u64,
    /// BLAKE3 hash of the segmenter's file, in hex.
    pub segmenter: String,
    /// The scores, as `--json` prints them.
    pub scores: Scores,
    /// Colours of the classes.
    pub palette: Vec<[u8; 3]>,
    /// Pixels by label (row) and prediction (column).
    pub confusion: Vec<Vec<u64>>,
    /// Some of the scored pictures.
    pub pictures: Vec<ScoredPicture>,
}

/// What was scored and how; scores of the same subject can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Name of the data set.
    pub dataset: String,
    /// Its folder.
    pub root: PathBuf,
    /// The split; none for all pictures.
    pub split: Option<String>,
    /// `whole`, or `slide WINDOW STRIDE`; behind it `, ensemble SHARE` where one was asked for.
    pub inference: String,
}

/// One picture; files are relative to the run's `scores` folder, at most 640 pixels long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoredPicture {
    /// File name without extension in the data set.
    pub stem: String,
    /// The photo.
    pub photo: String,
    /// The prediction in class colours over the photo.
    pub prediction: String,
    /// The label in class colours over the photo.
    pub label: String,
}

/// A picture that is still to be written.
#[derive(Debug, Clone)]
pub struct ExamplePicture {
    /// File name without extension in the data set.
    pub stem: String,
    /// JPEG files: photo, prediction and label.
    pub files: [Vec<u8>; 3],
}

impl Subject {
    /// For people: `camvid (photos/dusk), val, slide 1024 512`.
    pub fn title(&self) -> String {
        let folder = if self.is_default_root() { String::new() } else { format!(" ({})", self.root.display()) };
        let split = self.split.as_ref().map_or(", all images".into(), |split| format!(", {split}"));
        let inference = if self.inference == "whole" { String::new() } else { format!(", {}", self.inference) };
        format!("{}{folder}{split}{inference}", self.dataset)
    }

    fn is_default_root(&self) -> bool {
        self.root.file_name().is_some_and(|name| name == self.dataset.as_str())
    }

    /// The name of its file: data set, folder where that is called otherwise, split, kind of inference.
    fn stem(&self) -> String {
        let root = self.root.file_name().filter(|_| !self.is_default_root()).map(|name| name.to_string_lossy().into_owned());
        let inference = (self.inference != "whole").then(|| self.inference.clone());
        let parts = [Some(self.dataset.clone()), root, self.split.clone(), inference];
        let stem = parts.into_iter().flatten().collect::<Vec<_>>().join("-");
        stem.chars().map(|c| if c.is_alphanumeric() || "-_".contains(c) { c } else { '-' }).collect()
    }
}

/// The matrix as rows of counts.
pub fn rows(matrix: &ConfusionMatrix) -> Vec<Vec<u64>> {
    let classes = 0..matrix.num_classes();
    classes.clone().map(|label| classes.clone().map(|prediction| matrix.count(label, prediction)).collect()).collect()
}

impl ScoreFile {
    /// A record of this version, now, without pictures.
    pub fn new(subject: Subject, segmenter: String, scores: Scores, palette: Vec<[u8; 3]>, matrix: &ConfusionMatrix) -> Self {
        let (time, confusion) = (clock::now() as u64, rows(matrix));
        Self { format_version: VERSION, subject, time, segmenter, scores, palette, confusion, pictures: Vec::new() }
    }

    /// Writes the pictures, then the file, into the `scores` folder of `run`; the same subject's earlier file is replaced.
    /// Returns the file's path.
    ///
    /// # Errors
    /// [`Error::Io`]; no half-written file is left.
    pub fn write(mut self, run: &Path, pictures: &[ExamplePicture]) -> Result<PathBuf> {
        let folder = run.join(FOLDER);
        let name = free_name(&folder, &self.subject);
        self.pictures.clear();
        for (number, picture) in pictures.iter().enumerate() {
            let [photo, prediction, label] = ["photo", "prediction", "label"].map(|kind| format!("{name}/{number}-{kind}.jpg"));
            for (file, bytes) in [&photo, &prediction, &label].into_iter().zip(&picture.files) {
                atomic::write(&folder.join(file), bytes)?;
            }
            self.pictures.push(ScoredPicture { stem: picture.stem.clone(), photo, prediction, label });
        }
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&self)
            .map_err(|e| Error::environment(format!("scores are no JSON: {e}"), "report this as a defect"))?;
        atomic::write(&path, format!("{text}\n").as_bytes())?;
        Ok(path)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Data`] for other files and other versions.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |found: String| Error::data(path, "scores written by `datum evaluate`", found, "evaluate the run again");
        let value: Value = serde_json::from_str(&io::read_text(path)?).map_err(|e| failed(e.to_string()))?;
        match value.get("format_version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => serde_json::from_value(value).map_err(|e| failed(e.to_string())),
            Some(version) => Err(failed(format!("version {version}"))),
            None => Err(failed("no `format_version`".into())),
        }
    }

    /// All that a run holds, by file name, and the errors of those that cannot be read.
    pub fn read_all(run: &Path) -> (Vec<Self>, Vec<Error>) {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(run.join(FOLDER))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        paths.sort();
        let (mut found, mut broken) = (Vec::new(), Vec::new());
        for path in paths {
            match Self::read(&path) {
                Ok(file) => found.push(file),
                Err(error) => broken.push(error),
            }
        }
        (found, broken)
    }
}

/// The subject's name, with a number where another subject has it.
fn free_name(folder: &Path, subject: &Subject) -> String {
    let stem = subject.stem();
    let names = std::iter::once(stem.clone()).chain((2u32..).map(|number| format!("{stem}-{number}")));
    let is_free = |name: &String| {
        let path = folder.join(format!("{name}.json"));
        !path.exists() || ScoreFile::read(&path).is_ok_and(|file| file.subject == *subject)
    };
    names.into_iter().find(is_free).unwrap_or(stem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::LabelMap;

    fn subject(root: &str, split: Option<&str>) -> Subject {
        Subject { dataset: "camvid".into(), root: root.into(), split: split.map(String::from), inference: "whole".into() }
    }

    fn file(subject: Subject) -> ScoreFile {
        let map = |ids: &[u8]| LabelMap { height: 1, width: ids.len(), ids: ids.to_vec() };
        let mut matrix = ConfusionMatrix::new(3);
        matrix.add(&map(&[0, 1, 1]), &map(&[0, 0, 1])).unwrap();
        let names = ["a", "b", "c"].map(String::from);
        ScoreFile::new(subject, "ab".into(), Scores::new(&matrix, &names, 1), vec![[1, 2, 3]; 3], &matrix)
    }

    #[test]
    fn scores_are_read_as_written() {
        let run = tempfile::tempdir().unwrap();
        let picture = ExamplePicture { stem: "0001".into(), files: [vec![1], vec![2], vec![3]] };
        let path = file(subject("photos/dusk", Some("val"))).write(run.path(), &[picture]).unwrap();
        assert!(path.ends_with("scores/camvid-dusk-val.json"));
        let read = ScoreFile::read(&path).unwrap();
        assert_eq!(read.confusion, [[1, 1, 0], [0, 1, 0], [0, 0, 0]]);
        assert_eq!(read.scores, file(subject("", None)).scores);
        assert_eq!(std::fs::read(run.path().join(FOLDER).join(&read.pictures[0].label)).unwrap(), [3]);
        assert_eq!(read.subject.title(), "camvid (photos/dusk), val");
    }

    #[test]
    fn subjects_keep_apart_and_their_own_file_is_replaced() {
        let run = tempfile::tempdir().unwrap();
        for root in ["a/camvid", "b/camvid", "a/camvid", "a/dusk"] {
            file(subject(root, None)).write(run.path(), &[]).unwrap();
        }
        let (found, broken) = ScoreFile::read_all(run.path());
        let roots: Vec<_> = found.iter().map(|file| file.subject.root.display().to_string()).collect();
        assert_eq!((roots, broken.len()), (["b/camvid", "a/dusk", "a/camvid"].map(String::from).to_vec(), 0));
    }

    #[test]
    fn other_versions_and_torn_files_are_refused() {
        let run = tempfile::tempdir().unwrap();
        let path = file(subject("camvid", None)).write(run.path(), &[]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [text.replace("\"format_version\": 1", "\"format_version\": 2"), text[..50].into(), "{}".into()] {
            std::fs::write(&path, broken).unwrap();
            let (found, errors) = ScoreFile::read_all(run.path());
            assert_eq!((found.len(), errors.len(), errors[0].exit_code()), (0, 1, 3));
        }
    }
}
