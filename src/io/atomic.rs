//! Files that are there whole or not at all.

use crate::base::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes `bytes` to a temporary name beside `path`, then renames it into place. Missing parent folders are made. Two writers
/// of one path at a time are an error of one of them.
///
/// # Errors
/// [`Error::Io`] with the final path; nothing is left under that path by a failed write.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Like [`write()`], for writers that produce their bytes piece by piece.
pub fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut std::io::BufWriter<&mut std::fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    let failed = |source| Error::io(path, source);
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed)?;
    // One temporary name a file, so that what a killed process left behind is gone when its work is done again.
    let mut name = std::ffi::OsString::from(".partial-");
    name.push(path.file_name().unwrap_or_default());
    match std::fs::remove_file(parent.join(&name)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let mut file = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempfile_in(parent).map_err(failed)?;
    {
        let mut buffered = std::io::BufWriter::new(file.as_file_mut());
        fill(&mut buffered).and_then(|()| buffered.flush()).map_err(failed)?;
    }
    file.as_file().sync_all().map_err(failed)?;
    set_default_permissions(&file).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Temporary files are private; what we publish gets the usual permissions.
fn set_default_permissions(file: &tempfile::NamedTempFile) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    let _ = file;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/file.txt");
        super::write(&path, b"old").unwrap();
        let full_disk = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = super::write_with(&path, |file| {
            std::io::Write::write_all(file, b"half")?;
            Err(full_disk())
        });
        assert_eq!(error.unwrap_err().exit_code(), 4);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.txt");
        std::fs::write(dir.path().join(".partial-file.txt"), b"half").unwrap();
        super::write(&path, b"whole").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
