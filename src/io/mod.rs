//! The only folder that opens files (and, in `hub`, sockets).

pub mod atomic;
pub mod gguf;
pub mod hash;
pub mod hub;
pub mod images;
pub mod manifest;
pub mod png_text;
pub mod text;
pub mod thumbnail;
pub mod tokenizer;
pub mod weights;

use crate::base::{Error, Result};
use std::path::Path;

/// Reads a text file.
///
/// # Errors
/// [`Error::Io`] for files that can't be read or are not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, e))
}
