//! The manifest of a generated data set: one JSON record a line, appended after each image is safely on disk.

use super::hash;
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How one image was made: enough to make it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationFacts {
    /// Number of the image within its set.
    pub index: u64,
    /// What the image was to show.
    pub prompt: String,
    /// What it was not to show; empty for nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// Seed of this very image.
    pub seed: u64,
    /// Sampling steps.
    pub steps: usize,
    /// Weight of the prompt.
    pub guidance_scale: f64,
    /// Sampling method by its name on the command line, e.g. `pndm`.
    pub scheduler: String,
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
    /// Hash of the model's weights, adapters included, in hex.
    pub model_hash: String,
    /// What took the place of noise from the seed: hashes of given latents and of the initial photo; empty for nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub start: String,
}

/// One line of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// File name, relative to the manifest's folder.
    pub file: String,
    /// BLAKE3 hash of the file, in hex.
    pub blake3: String,
    /// How it was made.
    #[serde(flatten)]
    pub facts: GenerationFacts,
}

/// A manifest open for appending. One process at a time: give every shard a manifest of its own.
#[derive(Debug)]
pub struct Manifest {
    path: PathBuf,
    file: File,
    records: Vec<ImageRecord>,
    dropped: Option<usize>,
}

impl Manifest {
    /// Opens or begins the manifest at `path`. A last line that a killed run left half-written is cut off; see
    /// [`Self::dropped_bytes`].
    ///
    /// # Errors
    /// A file that cannot be written, or a whole line that is not a record.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let (records, whole) = parse(path, &bytes)?;
        let dropped = bytes.len() - whole;
        if dropped > 0 {
            file.set_len(whole as u64).map_err(failed)?;
            file.seek(SeekFrom::End(0)).map_err(failed)?;
        }
        Ok(Self { path: path.into(), file, records, dropped: (dropped > 0).then_some(dropped) })
    }

    /// Length of the half-written line that [`Self::open`] cut off, for a message to the user.
    pub fn dropped_bytes(&self) -> Option<usize> {
        self.dropped
    }

    /// All records in the order of writing.
    pub fn records(&self) -> &[ImageRecord] {
        &self.records
    }

    /// The newest record of image `index`, when its file is still there with the same content.
    pub fn intact(&self, index: u64) -> Option<&ImageRecord> {
        let record = self.records.iter().rev().find(|record| record.facts.index == index)?;
        let file = self.path.parent().unwrap_or(Path::new(".")).join(&record.file);
        (hash::file(&file).ok()? == record.blake3).then_some(record)
    }

    /// Leaves out the records that `keep` refuses; the file is replaced in one piece.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file is whole then.
    pub fn retain(&mut self, keep: impl Fn(&ImageRecord) -> bool) -> Result<()> {
        let failed = |e: std::io::Error| Error::io(&self.path, e);
        if self.records.iter().all(&keep) {
            return Ok(());
        }
        self.records.retain(keep);
        let mut lines = Vec::new();
        for record in &self.records {
            serde_json::to_writer(&mut lines, record).map_err(|e| failed(e.into()))?;
            lines.push(b'\n');
        }
        super::atomic::write(&self.path, &lines)?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(failed)?;
        Ok(())
    }

    /// Appends one record and hands it to the system in one piece.
    ///
    /// # Errors
    /// [`Error::Io`], e.g. with a full disk.
    pub fn append(&mut self, record: ImageRecord) -> Result<()> {
        let failed = |e| Error::io(&self.path, e);
        let mut line = serde_json::to_vec(&record).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.sync_data()).map_err(failed)?;
        self.records.push(record);
        Ok(())
    }
}

/// The records of the manifest at `path`, and the length of a half-written last line, if there is one.
///
/// # Errors
/// A missing file, or a whole line that is not a record.
pub fn read(path: &Path) -> Result<(Vec<ImageRecord>, Option<usize>)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let (records, whole) = parse(path, &bytes)?;
    Ok((records, (whole < bytes.len()).then_some(bytes.len() - whole)))
}

/// Records, and the length of the lines they fill. A line counts once its line feed is there.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<ImageRecord>, usize)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut records = Vec::new();
    for (number, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        records.push(serde_json::from_slice(line).map_err(|e| {
            let next = "remove that line; its image is then generated again";
            Error::data(path, "one image record a line", format!("line {}: {e}", number + 1), next)
        })?);
    }
    Ok((records, whole))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn facts(index: u64) -> GenerationFacts {
        GenerationFacts {
            index,
            prompt: "a photo of sks cars, \"quoted\": naïve".into(),
            negative_prompt: String::new(),
            seed: 7 + index,
            steps: 50,
            guidance_scale: 7.5,
            scheduler: "pndm".into(),
            height: 512,
            width: 768,
            model_hash: "ab12".into(),
            start: String::new(),
        }
    }

    fn record(index: u64, hash: &str) -> ImageRecord {
        ImageRecord { file: format!("im_{index}_p0.png"), blake3: hash.into(), facts: facts(index) }
    }

    #[test]
    fn a_killed_run_loses_at_most_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/manifest.jsonl");
        let mut manifest = Manifest::open(&path).unwrap();
        for index in 0..3 {
            manifest.append(record(index, "00")).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        let ends: Vec<usize> = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut manifest = Manifest::open(&path).unwrap();
            let kept = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(manifest.records(), (0..kept as u64).map(|i| record(i, "00")).collect::<Vec<_>>());
            let at_an_end = cut == 0 || ends.contains(&cut);
            assert_eq!(manifest.dropped_bytes().is_none(), at_an_end);
            if cut % 97 == 0 {
                manifest.append(record(9, "00")).unwrap();
                assert_eq!(read(&path).unwrap(), (manifest.records().to_vec(), None));
            }
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.jsonl");
        std::fs::write(&path, "\n{\"file\": 1}\n").unwrap();
        let message = Manifest::open(&path).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }

    #[test]
    fn intact_means_same_content() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::open(&dir.path().join("manifest.jsonl")).unwrap();
        let image = dir.path().join("im_0_p0.png");
        std::fs::write(&image, b"one").unwrap();
        manifest.append(record(0, &hash::file(&image).unwrap())).unwrap();
        assert!(manifest.intact(0).is_some() && manifest.intact(1).is_none());
        manifest.append(record(1, "00")).unwrap();
        manifest.retain(|record| record.facts.index == 0).unwrap();
        manifest.append(record(2, "00")).unwrap();
        let indices = |records: &[ImageRecord]| records.iter().map(|r| r.facts.index).collect::<Vec<_>>();
        assert_eq!(indices(&read(&dir.path().join("manifest.jsonl")).unwrap().0), [0, 2]);
        assert_eq!(indices(manifest.records()), [0, 2]);
        std::fs::write(&image, b"two").unwrap();
        assert!(manifest.intact(0).is_none());
    }
}
