//! The one error type of the library. Every message says what was expected, what was found and what to do next.

use std::path::{Path, PathBuf};

/// Result with the library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command could not do what was asked. The variant decides the exit code ([`Error::exit_code`]).
#[derive(Debug, thiserror::Error)]
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
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData => 3,
                _ => 4,
            },
            Self::Environment { .. } => 4,
            Self::Interrupted { .. } => 130,
        }
    }
}

fn io_hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::*;
    match source.kind() {
        NotFound => "\n  next: check the path",
        PermissionDenied | ReadOnlyFilesystem => "\n  next: choose a folder you may write to, e.g. with `--output`",
        StorageFull | QuotaExceeded => "\n  next: free disk space and run again with `--resume latest`; finished files are kept",
        _ => "",
    }
}
