//! Fingerprints of files.

use crate::base::{Error, Result};
use std::path::Path;

/// BLAKE3 of a file's content, as 64 hexadecimal digits.
pub fn file(path: &Path) -> Result<String> {
    let failed = |e| Error::io(path, e);
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path).map_err(failed)?).map_err(failed)?;
    Ok(hasher.finalize().to_hex().to_string())
}
