//! TensorBoard event files: scalars and PNG pictures.
//!
//! An event file is a sequence of TFRecords (length, masked CRC of the length, data, masked CRC of the data), each an
//! `Event` protocol buffer. Only the few fields we write are encoded here.

use crate::base::metrics::{Metrics, Sink};
use crate::base::{Error, Result, clock};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// An event file that grows. Records reach the file at once, so that TensorBoard shows a running training.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder`, for a run that goes on after `done` steps (0 for a new run). TensorBoard then drops what
    /// earlier files of the folder hold about later steps.
    pub fn create(folder: &Path, done: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let (path, file) = unused(folder)?;
        let mut events = Self { path, file };
        events.write(&event(0, &bytes(3, b"brain.Event:2")))?;
        if done > 0 {
            let started = varint(1, 1); // SessionLog.status = START
            events.write(&event(done + 1, &bytes(7, &started)))?;
        }
        Ok(events)
    }

    /// Adds a picture.
    ///
    /// # Errors
    /// `png` is no PNG file.
    pub fn image(&mut self, step: u64, tag: &str, png: &[u8]) -> Result<()> {
        let header = png.get(..24).filter(|header| header.starts_with(b"\x89PNG\r\n\x1a\n"));
        let header = header.ok_or_else(|| Error::data(tag, "a PNG picture", "other bytes", "report this as a defect"))?;
        let size = |at: usize| u64::from(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
        let picture = [varint(1, size(20)), varint(2, size(16)), varint(3, 3), bytes(4, png)].concat();
        self.summary(step, &[bytes(1, &[bytes(1, tag.as_bytes()), bytes(4, &picture)].concat())])
    }

    fn summary(&mut self, step: u64, values: &[Vec<u8>]) -> Result<()> {
        self.write(&event(step, &bytes(5, &values.concat())))
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat();
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, e))
    }
}

/// Opens an event file in `folder` for a training that goes on after so many steps: what a training stage asks for.
pub fn sinks(folder: std::path::PathBuf) -> impl Fn(u64) -> Result<Vec<Box<dyn Sink>>> {
    move |done| Ok(vec![Box::new(EventFile::create(&folder, done)?) as Box<dyn Sink>])
}

impl Sink for EventFile {
    fn record(&mut self, step: u64, metrics: &Metrics) -> Result<()> {
        let scalar = |(tag, value): (&String, &f64)| {
            let value = [vec![2 << 3 | 5], (*value as f32).to_le_bytes().to_vec()].concat();
            bytes(1, &[bytes(1, tag.as_bytes()), value].concat())
        };
        self.summary(step, &metrics.iter().map(scalar).collect::<Vec<_>>())
    }
}

/// TensorBoard reads the files of a folder in the order of their names, which begin with the time.
fn unused(folder: &Path) -> Result<(PathBuf, File)> {
    let seconds = clock::now() as u64;
    let mut number = 0;
    loop {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.datum.{number}"));
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(Error::io(&path, e)),
        }
    }
}

/// `Event` with wall time (1), step (2) and `content`.
fn event(step: u64, content: &[u8]) -> Vec<u8> {
    let seconds = clock::now();
    [&[1 << 3 | 1], &seconds.to_le_bytes()[..], &varint(2, step), content].concat()
}

/// A field with an integer.
fn varint(field: u8, value: u64) -> Vec<u8> {
    [vec![field << 3], leb128(value)].concat()
}

/// A field with text, bytes or a message.
fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
    [vec![field << 3 | 2], leb128(content.len() as u64), content.to_vec()].concat()
}

fn leb128(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// The CRC that TFRecords carry: rotated and shifted, so that a CRC of data with CRCs inside stays useful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_gives_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// Splits a file into records, checking both CRCs.
    fn records(mut content: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !content.is_empty() {
            let length = u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
            assert_eq!(content[8..12], masked_crc(&content[..8]).to_le_bytes());
            let data = &content[12..12 + length];
            assert_eq!(content[12 + length..16 + length], masked_crc(data).to_le_bytes());
            records.push(data.to_vec());
            content = &content[16 + length..];
        }
        records
    }

    #[test]
    fn records_hold_the_bytes_of_the_protocol() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path(), 4).unwrap();
        events.record(300, &Metrics::from([("loss".into(), 0.5)])).unwrap();
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x05\0\0\0\x03".to_vec();
        png.push(9);
        events.image(5, "sample", &png).unwrap();
        assert_eq!(events.image(5, "sample", b"GIF").unwrap_err().exit_code(), 3);
        let records = records(&fs::read(&events.path).unwrap());
        // After the wall time (9 bytes): step, then the content.
        let content: Vec<&[u8]> = records.iter().map(|record| &record[9..]).collect();
        assert_eq!(content[0], [&[0x10, 0, 0x1a, 13], &b"brain.Event:2"[..]].concat());
        assert_eq!(content[1], [0x10, 5, 0x3a, 2, 0x08, 1]);
        let half = 0.5f32.to_le_bytes();
        assert_eq!(content[2], [&[0x10, 0xac, 0x02, 0x2a, 13, 0x0a, 11, 0x0a, 4], &b"loss"[..], &[0x15], &half].concat());
        let picture = [&[0x08, 3, 0x10, 5, 0x18, 3, 0x22, 25], &png[..]].concat();
        let value = [&[0x0a, 6], &b"sample"[..], &[0x22, 33], &picture].concat();
        assert_eq!(content[3], [&[0x10, 5, 0x2a, 45, 0x0a, 43], &value[..]].concat());
    }

    #[test]
    fn files_of_one_second_get_names_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..2).map(|_| EventFile::create(dir.path(), 0).unwrap().path).collect();
        assert!(paths[0] < paths[1]);
    }
}
