//! The one error type of the library. Every message says what was expected, what was found and what to do next.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result with the library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command could not do what was asked. The variant decides the exit code ([`Error::exit_code`]).
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Arguments, options or recipe values that make no sense.
    #[error("{0}")]
    Usage(String),
    /// A file or folder that is not what it has to be.
    #[error("expected {expected}, found {found}: {}\n  next: {next}", path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
        /// What the user can do about it.
        next: String,
    },
    /// Something outside the data is missing: weights, a device, disk space, permission.
    #[error("{what}\n  next: {next}")]
    Environment {
        /// What is missing.
        what: String,
        /// What the user can do about it.
        next: String,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}{}", path.display(), io_hint(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Ctrl-C; the state is saved.
    #[error("interrupted; the state is saved\n  next: {resume}")]
    Interrupted {
        /// How to go on.
        resume: String,
    },
    /// The command finished, but a gate such as `--fail-under` did not hold.
    #[error("{0}")]
    Gate(String),
    /// A tensor operation failed: a shape or type that the checks before it should have caught.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The message, as with [`Display`](fmt::Display): what a `main` that returns an error prints is for people.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// A [`Error::Data`] from its four parts.
    pub fn data(path: impl AsRef<Path>, expected: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Data { path: path.as_ref().into(), expected: expected.into(), found: found.into(), next: next.into() }
    }

    /// A [`Error::Environment`] from its two parts.
    pub fn environment(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Environment { what: what.into(), next: next.into() }
    }

    /// A [`Error::Io`]; use as `.map_err(|e| Error::io(path, e))`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), source }
    }

    /// The process exit code: 1 gate failed, 2 usage, 3 bad data, 4 environment, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Gate(_) => 1,
            Self::Usage(_) => 2,
            Self::Data { .. } | Self::Tensor(_) => 3,
            Self::Io { source, .. } if is_wrong_path(source.kind()) => 3,
            Self::Io { .. } => 4,
            Self::Environment { .. } => 4,
            Self::Interrupted { .. } => 130,
        }
    }
}

/// True if another path or file helps, false if it is the machine that refuses.
fn is_wrong_path(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::*;
    matches!(kind, NotFound | InvalidData | IsADirectory | NotADirectory | AlreadyExists)
}

fn io_hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::*;
    match source.kind() {
        NotFound => "\n  next: check the path",
        IsADirectory => "\n  next: name a file, not a folder",
        NotADirectory => "\n  next: a part of the path is a file; name a folder instead",
        AlreadyExists => "\n  next: choose another path, or remove what is there",
        PermissionDenied | ReadOnlyFilesystem => "\n  next: choose a folder you may write to, e.g. with `--output`",
        StorageFull | QuotaExceeded => {
            "\n  next: free disk space and go on with the same `--output`, and with `--resume latest` where the command has it; \
             finished files are kept"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_explained_for_commands_with_and_without_resume() {
        for kind in [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded] {
            let error = Error::io("out/x.png", kind.into());
            assert_eq!(error.exit_code(), 4);
            let message = error.to_string();
            assert!(
                message.contains("the same `--output`") && message.contains("where the command has it; finished"),
                "{message}"
            );
        }
    }

    #[test]
    fn wrong_paths_are_bad_data_with_a_next_step() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = [
            (std::fs::read(folder.path()).map(drop), "name a file, not a folder"),
            (std::fs::create_dir_all(file.join("below")), "name a folder instead"),
            (std::fs::create_dir_all(&file), "choose another path"),
            (std::fs::read(folder.path().join("none")).map(drop), "check the path"),
        ];
        for (result, next) in refused {
            let error = Error::io("x", result.unwrap_err());
            let message = error.to_string();
            assert!(error.exit_code() == 3 && message.contains("\n  next: ") && message.contains(next), "{message}");
        }
        assert_eq!(Error::io("x", std::io::ErrorKind::PermissionDenied.into()).exit_code(), 4);
    }
}
