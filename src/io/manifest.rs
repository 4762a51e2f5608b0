//! The manifest of a data set in the making: one JSON record a line, appended when the files of an item are safely on disk.

use super::hash;
use crate::base::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
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
    /// Seeds before it that gave a blank picture.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redraws: u32,
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

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Digits of the hashes in [`GenerationFacts::start`].
pub const START_DIGITS: usize = 16;

impl GenerationFacts {
    /// The first [`START_DIGITS`] digits of the BLAKE3 hash of the photo the image was painted from.
    pub fn photo(&self) -> Option<&str> {
        self.start.split(' ').skip_while(|word| *word != "photo").nth(1)
    }
}

/// One line of a manifest: an item of the set and its files.
pub trait Record: Serialize + DeserializeOwned {
    /// Number of the item within its set.
    fn index(&self) -> u64;

    /// Its files, relative to the manifest's folder, each with the BLAKE3 hash of its content in hex.
    fn files(&self) -> Vec<(&str, &str)>;
}

/// The record of a generated image.
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

impl Record for ImageRecord {
    fn index(&self) -> u64 {
        self.facts.index
    }

    fn files(&self) -> Vec<(&str, &str)> {
        vec![(&self.file, &self.blake3)]
    }
}

/// A manifest open for appending. One process at a time: give every shard a manifest of its own.
#[derive(Debug)]
pub struct Manifest<R = ImageRecord> {
    path: PathBuf,
    file: File,
    records: Vec<R>,
    /// Where in `records` the newest one of an item is.
    newest: HashMap<u64, usize>,
    dropped: Option<usize>,
}

impl<R: Record> Manifest<R> {
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
        let newest = newest(&records);
        Ok(Self { path: path.into(), file, records, newest, dropped: (dropped > 0).then_some(dropped) })
    }

    /// Length of the half-written line that [`Self::open`] cut off, for a message to the user.
    pub fn dropped_bytes(&self) -> Option<usize> {
        self.dropped
    }

    /// All records in the order of writing.
    pub fn records(&self) -> &[R] {
        &self.records
    }

    /// The newest record of item `index`, when its files are still there with the same content.
    pub fn intact(&self, index: u64) -> Option<&R> {
        let record = &self.records[*self.newest.get(&index)?];
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let same = |(file, digest): (&str, &str)| hash::file(&folder.join(file)).is_ok_and(|found| found == digest);
        record.files().into_iter().all(same).then_some(record)
    }

    /// Leaves out the records that `keep` refuses; the file is replaced in one piece.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file is whole then.
    pub fn retain(&mut self, keep: impl Fn(&R) -> bool) -> Result<()> {
        if self.records.iter().all(&keep) {
            return Ok(());
        }
        self.records.retain(keep);
        self.rewrite()
    }

    /// Leaves out records that newer ones of the same item replaced, and orders the others by item, so that interrupted and
    /// uninterrupted runs end with the same bytes.
    ///
    /// # Errors
    /// As [`Self::retain`].
    pub fn sort(&mut self) -> Result<()> {
        if self.records.is_sorted_by(|a, b| a.index() < b.index()) {
            return Ok(());
        }
        // A stable sort keeps the order of writing within an item; the last one counts.
        self.records.sort_by_key(R::index);
        self.records.reverse();
        self.records.dedup_by_key(|record| record.index());
        self.records.reverse();
        self.rewrite()
    }

    fn rewrite(&mut self) -> Result<()> {
        self.newest = newest(&self.records);
        let failed = |e: std::io::Error| Error::io(&self.path, e);
        super::atomic::write(&self.path, &json_lines(&self.records).map_err(failed)?)?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(failed)?;
        Ok(())
    }

    /// Appends one record and hands it to the system in one piece.
    ///
    /// # Errors
    /// [`Error::Io`], e.g. with a full disk.
    pub fn append(&mut self, record: R) -> Result<()> {
        self.append_all(vec![record])
    }

    /// Like [`Self::append`] for several, which are on disk together.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_all(&mut self, records: Vec<R>) -> Result<()> {
        let failed = |e| Error::io(&self.path, e);
        let lines = json_lines(&records).map_err(failed)?;
        self.file.write_all(&lines).and_then(|()| self.file.sync_data()).map_err(failed)?;
        for record in records {
            self.newest.insert(record.index(), self.records.len());
            self.records.push(record);
        }
        Ok(())
    }
}

fn newest<R: Record>(records: &[R]) -> HashMap<u64, usize> {
    records.iter().enumerate().map(|(at, record)| (record.index(), at)).collect()
}

/// One JSON value a line.
pub fn json_lines<T: Serialize>(values: &[T]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for value in values {
        serde_json::to_writer(&mut bytes, value)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// The records of the manifest at `path`, and the length of a half-written last line, if there is one.
///
/// # Errors
/// A missing file, or a whole line that is not a record.
pub fn read<R: Record>(path: &Path) -> Result<(Vec<R>, Option<usize>)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let (records, whole) = parse(path, &bytes)?;
    Ok((records, (whole < bytes.len()).then_some(bytes.len() - whole)))
}

/// Records, and the length of the lines they fill. A line counts once its line feed is there.
fn parse<R: Record>(path: &Path, bytes: &[u8]) -> Result<(Vec<R>, usize)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut records = Vec::new();
    for (number, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        records.push(serde_json::from_slice(line).map_err(|e| {
            let next = "remove that line; its files are then made again";
            Error::data(path, "one record a line", format!("line {}: {e}", number + 1), next)
        })?);
    }
    Ok((records, whole))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn facts(index: u64) -> GenerationFacts {
        GenerationFacts {
            redraws: 0,
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
        let message = Manifest::<ImageRecord>::open(&path).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }

    #[test]
    fn sorting_keeps_the_newest_record_of_an_item() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.jsonl");
        let mut manifest = Manifest::open(&path).unwrap();
        manifest.append_all([(2, "a"), (0, "b"), (2, "c"), (1, "d")].map(|(index, hash)| record(index, hash)).into()).unwrap();
        manifest.sort().unwrap();
        assert_eq!(manifest.records(), [record(0, "b"), record(1, "d"), record(2, "c")]);
        assert_eq!(read(&path).unwrap(), (manifest.records().to_vec(), None));
        manifest.append(record(3, "e")).unwrap();
        assert_eq!(read::<ImageRecord>(&path).unwrap().0.len(), 4, "appending goes on in the new file");
    }

    #[test]
    fn the_photo_an_image_came_from_is_told() {
        let starting = |start: &str| GenerationFacts { start: start.into(), ..facts(0) };
        assert_eq!(starting("latents 00ff photo 12ab strength 0.3 style 77 bandwidth 1").photo(), Some("12ab"));
        assert_eq!(starting("photo 12ab strength 0.3").photo(), Some("12ab"));
        assert_eq!(starting("latents 00ff").photo(), None);
        assert_eq!(starting("").photo(), None);
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
