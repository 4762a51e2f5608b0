//! Dataset files (TOML): parsing, inheritance, shipped ones.

use super::dataset::Search;
use crate::base::{Error, Result, suggest};
use crate::io;
use crate::labels::{Classes, IGNORE, IdMap};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

macro_rules! shipped {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../../datasets/", $name, ".toml")))),*] };
}

/// Name and text of the descriptors in the package's `datasets` folder.
pub(super) const SHIPPED: [(&str, &str); 9] =
    shipped!["acdc", "bdd100k", "camvid", "cityscapes", "dark-zurich", "gta", "mapillary", "street", "synthia"];

const KEYS: [&str; 11] =
    ["extends", "root", "images", "labels", "classes", "ignore_index", "palette", "things", "id_map", "splits", "compare"];

/// Where segmenters that are shown photos of a fixed short side (those of CLOUDS) are compared with the labels.
///
/// # Source
/// The evaluators that CLOUDS uses: cityscapesScripts, and detectron2's `SemSegEvaluator` for the other data sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// At the photo's own size, as all other segmenters.
    #[default]
    Original,
    /// At the size that they are shown; means leave out classes that no label has.
    Resized,
}

/// One dataset file as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Descriptor {
    extends: Option<String>,
    pub root: Option<PathBuf>,
    pub images: Option<String>,
    pub labels: Option<String>,
    classes: Option<Vec<String>>,
    ignore_index: Option<u16>,
    palette: Option<Vec<[u8; 3]>>,
    things: Option<Vec<String>>,
    id_map: Option<BTreeMap<String, u8>>,
    splits: Option<BTreeMap<String, String>>,
    compare: Option<Compare>,
    /// Where it comes from: a path, or `camvid.toml (shipped)`.
    #[serde(skip)]
    pub origin: PathBuf,
    /// The folder of the file; none for shipped ones.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
}

/// The classes of a shipped data set.
///
/// # Errors
/// None for names that are shipped; other names have no classes.
pub fn classes_of(name: &str) -> Result<Classes> {
    let nowhere = Search { folders: Vec::new() };
    Descriptor::named(name, &nowhere)?.unwrap_or_default().classes()
}

impl Descriptor {
    /// Reads a user's file and what it extends.
    pub fn from_file(path: &Path, search: &Search) -> Result<Self> {
        Self::from_file_at(path, search, 0)
    }

    /// Finds `name` among the user's files, then the shipped ones.
    pub fn named(name: &str, search: &Search) -> Result<Option<Self>> {
        Self::named_at(name, search, 0)
    }

    fn from_file_at(path: &Path, search: &Search, depth: usize) -> Result<Self> {
        let text = io::read_text(path)?;
        let folder = path.parent().map(|p| if p.as_os_str().is_empty() { PathBuf::from(".") } else { p.to_path_buf() });
        Self::parse(&text, path, folder, search, depth)
    }

    fn named_at(name: &str, search: &Search, depth: usize) -> Result<Option<Self>> {
        let file = format!("{name}.toml");
        if let Some(path) = search.folders.iter().map(|folder| folder.join(&file)).find(|path| path.is_file()) {
            return Self::from_file_at(&path, search, depth).map(Some);
        }
        let Some((_, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) else { return Ok(None) };
        Self::parse(text, Path::new(&format!("{file} (shipped)")), None, search, depth).map(Some)
    }

    fn parse(text: &str, origin: &Path, folder: Option<PathBuf>, search: &Search, depth: usize) -> Result<Self> {
        let wrong = |found: String| Error::data(origin, "a dataset file", found, "see the shipped files in `datasets/`");
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string().trim_end().into()))?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let found = format!("the unknown key `{key}`");
            return Err(Error::data(origin, "a dataset file", found, suggest::hint(key, &KEYS)));
        }
        let mut own: Self = serde_path_to_error::deserialize(table)
            .map_err(|e| wrong(format!("a wrong value in `{}`: {}", e.path(), e.inner().message())))?;
        own.origin = origin.into();
        own.folder = folder;
        match own.extends.clone() {
            Some(base) => own.extend(&base, search, depth),
            None => Ok(own),
        }
    }

    /// Takes from `base` what is not given here. New classes make the base's ids and colours meaningless.
    fn extend(mut self, base: &str, search: &Search, depth: usize) -> Result<Self> {
        if depth > 8 {
            let next = "remove one `extends`";
            return Err(Error::data(&self.origin, "a chain of `extends` that ends", "a circle", next));
        }
        // A user's `camvid.toml` may extend the shipped one.
        let same_name = self.origin.file_stem().is_some_and(|stem| stem == base);
        let nowhere = Search { folders: Vec::new() };
        let Some(base) = Self::named_at(base, if same_name { &nowhere } else { search }, depth + 1)? else {
            let found = format!("`extends = \"{base}\"`");
            return Err(Error::data(&self.origin, "a known dataset name", found, suggest::hint(base, &search.names())));
        };
        if self.classes.is_none() {
            self.palette = self.palette.or(base.palette);
            self.things = self.things.or(base.things);
            self.id_map = self.id_map.or(base.id_map);
            self.classes = base.classes;
        }
        self.ignore_index = self.ignore_index.or(base.ignore_index);
        self.splits = self.splits.or(base.splits);
        self.compare = self.compare.or(base.compare);
        if self.images.is_none() {
            self.images = base.images;
            self.labels = self.labels.or(base.labels);
        }
        Ok(self)
    }

    /// The class table, checked.
    pub fn classes(&self) -> Result<Classes> {
        let mut classes = Classes::new(self.classes.clone().unwrap_or_default());
        if classes.len() > usize::from(IGNORE) {
            return Err(self.wrong("at most 255 `classes`", format!("{}", classes.len()), "merge some"));
        }
        if let Some(palette) = &self.palette {
            if palette.len() != classes.len() {
                let expected = format!("a `palette` of {} colours, one per class", classes.len());
                return Err(self.wrong(expected, format!("{}", palette.len()), "give one [R, G, B] per class"));
            }
            classes.palette = palette.clone();
        }
        for thing in self.things.iter().flatten() {
            let Some(id) = classes.train_id(thing) else {
                let found = format!("`{thing}`, which is no class");
                return Err(self.wrong("names of classes in `things`", found, suggest::hint(thing, &classes.names)));
            };
            classes.things[id] = true;
        }
        Ok(classes)
    }

    /// The way from file ids to train ids, checked. An empty or missing table means that files hold train ids.
    pub fn id_map(&self, num_classes: usize) -> Result<IdMap> {
        let mut table = BTreeMap::new();
        for (key, &train_id) in self.id_map.iter().flatten() {
            let Ok(file_id) = key.parse::<u16>() else {
                let next = "write `FILE_ID = TRAIN_ID`, e.g. `7 = 0`";
                return Err(self.wrong("file ids from 0 to 65535 in `id_map`", format!("`{key}`"), next));
            };
            if usize::from(train_id) >= num_classes && train_id != IGNORE {
                let expected = format!("train ids below {num_classes} (the number of classes) or 255 in `id_map`");
                return Err(self.wrong(expected, format!("`{key} = {train_id}`"), "correct it or add the class"));
            }
            table.insert(file_id, train_id);
        }
        if table.is_empty() {
            return Ok(IdMap::TrainIds { num_classes, ignore_index: self.ignore_index() });
        }
        Ok(IdMap::Table(table))
    }

    /// The file's number for "no class".
    pub fn ignore_index(&self) -> u16 {
        self.ignore_index.unwrap_or(u16::from(IGNORE))
    }

    pub fn compare(&self) -> Compare {
        self.compare.unwrap_or_default()
    }

    pub fn splits(&self) -> BTreeMap<String, String> {
        self.splits.clone().unwrap_or_default()
    }

    pub fn wrong(&self, expected: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Error {
        Error::data(&self.origin, expected, found, next)
    }
}
