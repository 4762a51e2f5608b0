//! Globs over relative paths with `/`; `*` stays within a folder, `**` does not, case does not matter.

use crate::base::{Error, Result};
use globset::{GlobBuilder, GlobMatcher};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The `images` glob of a descriptor.
#[derive(Debug, Clone)]
pub(super) struct ImageGlob {
    pub pattern: String,
    matcher: GlobMatcher,
    /// The leading folders without wildcards.
    pub fixed: PathBuf,
    /// What stands before and after the last `*` of the file name, extension included.
    around_star: (String, String),
}

impl ImageGlob {
    pub fn new(pattern: &str, origin: &Path) -> Result<Self> {
        let pattern = pattern.trim_start_matches("./");
        let (folders, file) = pattern.rsplit_once('/').unwrap_or(("", pattern));
        let fixed = folders.split('/').take_while(|folder| !is_glob(folder)).collect();
        let (before, after) = file.rsplit_once('*').unwrap_or(("", ""));
        let literal = |part: &str| if is_glob(part) { String::new() } else { part.to_string() };
        let around_star = (literal(before), literal(after));
        Ok(Self { pattern: pattern.into(), matcher: glob(pattern, origin)?, fixed, around_star })
    }

    pub fn matches(&self, relative: &str) -> bool {
        self.matcher.is_match(relative)
    }

    /// What the last `*` of the glob stands for in a file name; the stem if there is no such part.
    pub fn last_star<'a>(&self, name: &'a str) -> &'a str {
        let stem = || name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let (before, after) = &self.around_star;
        if after.is_empty() {
            return stem();
        }
        name.strip_prefix(before.as_str()).and_then(|rest| rest.strip_suffix(after.as_str())).unwrap_or_else(stem)
    }

    /// Everything a line of a split list may call the picture: path or name, below the root or the fixed folders, with and
    /// without extension, or the part that the last `*` stands for.
    pub fn names<'a>(&self, relative: &'a str) -> BTreeSet<&'a str> {
        let name = relative.rsplit('/').next().unwrap_or(relative);
        let fixed = format!("{}/", slashed(&self.fixed));
        let below = relative.strip_prefix(fixed.as_str()).unwrap_or(relative);
        let stem = |path: &'a str| path.rsplit_once('.').map_or(path, |(stem, _)| stem);
        [relative, below, name].into_iter().flat_map(|path| [path, stem(path)]).chain([self.last_star(name)]).collect()
    }
}

pub(super) fn glob(pattern: &str, origin: &Path) -> Result<GlobMatcher> {
    let compiled = GlobBuilder::new(pattern).literal_separator(true).case_insensitive(true).build();
    let glob = compiled.map_err(|e| Error::data(origin, "a glob", e.to_string(), "use `*`, `**`, `?`, `[a-z]`, `{a,b}`"))?;
    Ok(glob.compile_matcher())
}

pub(super) fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// What is not UTF-8 gets a stand-in, with which the file is not found: it is reported by whoever reads it, and counted.
pub(super) fn slashed(path: impl AsRef<Path>) -> String {
    path.as_ref().components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}
