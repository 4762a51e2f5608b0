//! Quantised models in GGUF files.

use crate::base::{Error, Result};
use candle_core::quantized::gguf_file::{Content, Value};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// An open GGUF file: its table of contents, and where the tensors are read from.
pub struct GgufFile {
    path: PathBuf,
    /// Metadata and the places of tensors.
    pub content: Content,
    /// The file.
    pub reader: BufReader<File>,
}

impl GgufFile {
    /// Opens a file and reads its table of contents.
    ///
    /// # Errors
    /// A missing file, or one of another format.
    pub fn open(path: &Path) -> Result<Self> {
        let mut reader = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
        let content = Content::read(&mut reader).map_err(|e| {
            Error::data(
                path,
                "a GGUF file",
                first_line(&e),
                "give a file that ends with .gguf; download it again if it was cut short",
            )
        })?;
        Ok(Self { path: path.into(), content, reader })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.content.metadata.get(key)?.to_string().ok().map(String::as_str)
    }

    /// A count or an id of the metadata.
    pub fn number(&self, key: &str) -> Option<u32> {
        let value = self.content.metadata.get(key)?;
        match value {
            Value::I32(value) => u32::try_from(*value).ok(),
            value => value.to_u64().ok().and_then(|value| u32::try_from(value).ok()),
        }
    }
}

/// What candle says, without the backtrace that may follow.
pub fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}
