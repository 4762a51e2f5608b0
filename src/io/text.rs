//! Small text files that people write.

use crate::base::{Error, Result};
use std::path::Path;

/// Longest text that is read: far above any list a person keeps, far below what a mistaken path may hold.
const MAX_BYTES: u64 = 64 << 20;

/// The text of a UTF-8 file, without byte order mark.
///
/// # Errors
/// A missing file, a folder, another encoding, more than 64 MiB.
pub fn read_text(path: &Path) -> Result<String> {
    let found = |what: String| Error::data(path, "a text file in UTF-8", what, "check the path, or save the file as UTF-8");
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if metadata.is_dir() {
        return Err(found("a folder".into()));
    }
    if metadata.len() > MAX_BYTES {
        return Err(found(format!("{} bytes", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = String::from_utf8(bytes).map_err(|e| found(format!("bytes that are not text ({})", e.utf8_error())))?;
    Ok(text.strip_prefix('\u{feff}').map(Into::into).unwrap_or(text))
}
