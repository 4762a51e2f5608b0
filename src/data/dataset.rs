//! Data sets: where pictures and labels lie, what the label numbers mean, which pictures belong to a split.
//!
//! A data set is described by a TOML file. Placeholders of its `labels`: `{stem}` is the image's file name without
//! extension, `{name}` the file name, `{dir}` the image's folder below the part of the `images` glob that has no
//! wildcard, `{*}` what the last `*` of that glob stands for.

use super::descriptor::{Compare, Descriptor, SHIPPED};
use super::glob::{ImageGlob, glob, is_glob, slashed};
use super::transforms::Example;
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt, suggest};
use crate::io::{self, images};
use crate::labels::{Classes, IdMap, LabelMap, list_ids};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// The glob of plain folders.
const ANY_IMAGE: &str = "**/*.{png,jpg,jpeg,webp}";

/// Where names are looked up: user files `NAME.toml` and roots `NAME/` in these folders, first match wins.
#[derive(Debug, Clone)]
pub struct Search {
    /// Usually the value of `DATUM_DATASETS`, then `datasets`.
    pub folders: Vec<PathBuf>,
}

impl Search {
    /// `configured` (the value of `DATUM_DATASETS`), then `./datasets`.
    pub fn new(configured: Option<PathBuf>) -> Self {
        Self { folders: configured.into_iter().chain([PathBuf::from("datasets")]).collect() }
    }

    /// All known names, sorted: shipped ones and the user's.
    pub fn names(&self) -> Vec<String> {
        let mut names: BTreeSet<String> = SHIPPED.iter().map(|(name, _)| (*name).into()).collect();
        for entry in self.folders.iter().filter_map(|folder| folder.read_dir().ok()).flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "toml") {
                names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
            }
        }
        names.into_iter().collect()
    }
}

/// One picture of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The image file.
    pub image: PathBuf,
    /// Where its label has to be; none in unlabelled sets. The file need not exist until it is loaded.
    pub label: Option<PathBuf>,
    /// File name without extension.
    pub stem: String,
}

/// A described folder of pictures.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Its name: that of the descriptor or of the folder.
    pub name: String,
    /// The folder that everything is relative to.
    pub root: PathBuf,
    /// Classes; empty for plain folders.
    pub classes: Classes,
    /// What the numbers in label files mean.
    pub id_map: IdMap,
    /// The file's number for "no class"; train ids always use 255.
    pub ignore_index: u16,
    /// Split name → list file or glob.
    pub splits: BTreeMap<String, String>,
    /// Where segmenters that are shown a fixed short side are compared.
    pub compare: Compare,
    images: ImageGlob,
    labels: Option<String>,
    descriptor_folder: Option<PathBuf>,
}

impl Dataset {
    /// Opens `NAME`, `NAME=ROOT`, a path to a dataset TOML (also with `=ROOT`), or a plain folder of unlabelled pictures.
    ///
    /// # Errors
    /// [`Error::Data`] for unknown names, broken descriptors and roots that don't exist.
    pub fn open(spec: &str, search: &Search) -> Result<Self> {
        let find = |name: &str| find(name, search);
        let folder = Path::new(spec);
        if let Some((name, root)) = spec.split_once('=').filter(|_| !folder.is_dir()) {
            let descriptor = find(name)?.ok_or_else(|| unknown(name, search))?;
            return Self::described(name, descriptor, Some(root.into()), search);
        }
        match find(spec)? {
            Some(descriptor) => Self::described(spec, descriptor, None, search),
            None if folder.is_dir() => Self::from_folder(folder),
            None if folder.exists() || folder.components().count() > 1 => {
                let found = if folder.exists() { "a file" } else { "nothing there" };
                let next = "check the path; names without `/` are looked up as data sets";
                Err(Error::data(folder, "a folder of images or a dataset `.toml`", found, next))
            }
            None => Err(unknown(spec, search)),
        }
    }

    /// The classes of a data set, by its name or TOML file; its pictures need not be there.
    ///
    /// # Errors
    /// [`Error::Data`] for unknown names, broken descriptors and data sets without classes.
    pub fn class_table(spec: &str, search: &Search) -> Result<Classes> {
        let descriptor = find(spec, search)?.ok_or_else(|| unknown(spec, search))?;
        let classes = descriptor.classes()?;
        match classes.is_empty() {
            true => Err(descriptor.wrong("`classes`", "none", "list them, in train-id order")),
            false => Ok(classes),
        }
    }

    /// All pictures below `folder`, unlabelled.
    ///
    /// # Errors
    /// None today; a glob that doesn't compile would be one.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let canonical = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        let name = canonical.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            name,
            root: folder.into(),
            classes: Classes::default(),
            id_map: IdMap::TrainIds { num_classes: 0, ignore_index: 255 },
            ignore_index: 255,
            splits: BTreeMap::new(),
            compare: Compare::default(),
            images: ImageGlob::new(ANY_IMAGE, folder)?,
            labels: None,
            descriptor_folder: None,
        })
    }

    fn described(spec: &str, descriptor: Descriptor, root: Option<PathBuf>, search: &Search) -> Result<Self> {
        let name = Path::new(spec.trim_end_matches(".toml")).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(pattern) = &descriptor.images else {
            let next = "add e.g. `images = \"images/*.png\"`";
            return Err(descriptor.wrong("the key `images`", "none", next));
        };
        let images = ImageGlob::new(pattern, &descriptor.origin)?;
        let root = match root.or_else(|| own_root(&descriptor)) {
            Some(root) => root,
            None => default_root(&name, &descriptor, &images, search)?,
        };
        if !root.is_dir() {
            let next = format!("give the right folder, e.g. `{name}=FOLDER`");
            return Err(Error::data(&root, format!("the root folder of data set `{name}`"), "no folder", next));
        }
        let classes = descriptor.classes()?;
        Ok(Self {
            id_map: descriptor.id_map(classes.len())?,
            ignore_index: descriptor.ignore_index(),
            splits: descriptor.splits(),
            compare: descriptor.compare(),
            labels: descriptor.labels.clone(),
            descriptor_folder: descriptor.folder.clone(),
            name,
            root,
            classes,
            images,
        })
    }

    /// True if the description says where labels are.
    pub fn has_labels(&self) -> bool {
        self.labels.is_some()
    }

    /// What the last `*` of the `images` glob stands for in a sample's name: its name without a suffix that all share.
    pub fn short_name<'a>(&self, sample: &'a Sample) -> &'a str {
        self.images.last_star(sample.image.file_name().and_then(|name| name.to_str()).unwrap_or(&sample.stem))
    }

    /// The first of `preferred` that this data set has (a list file must exist); none stands for all pictures.
    pub fn first_split<'a>(&self, preferred: &[&'a str]) -> Option<&'a str> {
        let there =
            |split: &&&str| self.splits.get(**split).is_some_and(|value| is_glob(value) || self.list_file(value).is_file());
        preferred.iter().find(there).copied()
    }

    /// The pictures of a split, or all, sorted by path.
    ///
    /// # Errors
    /// [`Error::Data`] for unknown splits, missing list files, listed pictures that are not there, and no picture at all.
    pub fn samples(&self, split: Option<&str>) -> Result<Vec<Sample>> {
        let all = self.all_images()?;
        let chosen = match split {
            None => all,
            Some(split) => self.choose(split, all)?,
        };
        Ok(chosen.into_iter().map(|relative| self.sample(&relative)).collect())
    }

    /// [`Self::samples`] without those whose file is no whole picture; warns about them with their number.
    ///
    /// # Errors
    /// As [`Self::samples`]; [`Error::Data`] if no picture is readable.
    pub fn readable_samples(&self, split: Option<&str>, progress: &dyn Progress) -> Result<Vec<Sample>> {
        self.usable(split, progress, |sample| images::inspect(&sample.image).map(drop))
    }

    /// [`Self::readable_samples`] without those whose label is no whole picture of the same size, such as some of GTA's; warns about
    /// them, too.
    ///
    /// # Errors
    /// As [`Self::readable_samples`].
    pub fn labelled_samples(&self, split: Option<&str>, progress: &dyn Progress) -> Result<Vec<Sample>> {
        self.usable(split, progress, |sample| {
            let size = images::inspect(&sample.image)?;
            // A label that is not there is a mistake in the description, and said when it is loaded.
            match sample.label.as_deref().filter(|label| label.is_file()) {
                Some(label) => check_sizes(sample, size, images::inspect(label)?),
                None => Ok(()),
            }
        })
    }

    fn usable(&self, split: Option<&str>, progress: &dyn Progress, check: impl Fn(&Sample) -> Result<()>) -> Result<Vec<Sample>> {
        let samples = self.samples(split)?;
        let total = samples.len();
        let mut unreadable = Vec::new();
        let mut readable = Vec::with_capacity(total);
        for sample in samples {
            if interrupt::requested() {
                return Err(Error::Interrupted { resume: "run the same command again".into() });
            }
            match check(&sample) {
                Ok(()) => readable.push(sample),
                Err(error) => unreadable.push(error),
            }
        }
        let warning = images::unreadable_line(&unreadable, total);
        match warning {
            Some(warning) if readable.is_empty() => Err(Error::data(&self.root, "readable images", warning, "replace them")),
            Some(warning) => {
                progress.warn(&warning);
                Ok(readable)
            }
            None => Ok(readable),
        }
    }

    /// The picture of a sample, without its label.
    ///
    /// # Errors
    /// Those of [`images::read_rgb`].
    pub fn load_image(&self, sample: &Sample) -> Result<Example> {
        Ok(Example { image: images::read_rgb(&sample.image)?, label: None })
    }

    /// Picture and label.
    ///
    /// # Errors
    /// [`Error::Data`] for missing labels, ids out of range, and a label of another size than its picture; only errors about
    /// the picture itself carry its path.
    pub fn load(&self, sample: &Sample) -> Result<Example> {
        let mut example = self.load_image(sample)?;
        let label = self.load_label(sample)?;
        check_sizes(sample, example.size(), (label.height, label.width))?;
        example.label = Some(label);
        Ok(example)
    }

    /// The label of a sample in train ids.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none or if it holds ids that the data set doesn't know.
    pub fn load_label(&self, sample: &Sample) -> Result<LabelMap> {
        let Some(path) = &sample.label else {
            let next = "use a labelled data set, or give `labels` in its TOML";
            return Err(Error::data(&self.root, "labels", format!("the unlabelled data set `{}`", self.name), next));
        };
        if !path.exists() {
            let expected = format!("the label of {}", sample.image.display());
            return Err(Error::data(path, expected, "no file", "check `labels` in the dataset's TOML"));
        }
        let raw = images::read_label(path)?;
        self.id_map.apply(raw.height, raw.width, &raw.pixels).map_err(|wrong| {
            let range = match self.classes.len() {
                0 => "no classes at all".to_string(),
                n => format!("ids 0 to {} or {}", n - 1, self.ignore_index),
            };
            let next = "map the ids with `[id_map]` in the dataset's TOML, or correct `ignore_index`";
            Error::data(path, format!("{range} in labels of `{}`", self.name), list_ids(&wrong), next)
        })
    }

    /// Relative paths with `/`, sorted.
    fn all_images(&self) -> Result<Vec<String>> {
        let start = self.root.join(&self.images.fixed);
        let files = if start.is_dir() { images::list(&start)? } else { Vec::new() };
        let relative = |path: &PathBuf| path.strip_prefix(&self.root).ok().map(slashed);
        let found: Vec<String> = files.iter().filter_map(relative).filter(|path| self.images.matches(path)).collect();
        if found.is_empty() {
            let (expected, next) = match self.images.pattern.as_str() {
                ANY_IMAGE => ("a folder with images (png, jpg, jpeg, webp)".into(), "check the path".into()),
                glob => {
                    let next = format!("check the folder, or `images` in the description of `{}`", self.name);
                    (format!("images that match `{glob}`"), next)
                }
            };
            return Err(Error::data(&self.root, expected, "none", next));
        }
        Ok(found)
    }

    fn choose(&self, split: &str, all: Vec<String>) -> Result<Vec<String>> {
        let Some(value) = self.splits.get(split) else {
            let known: Vec<&String> = self.splits.keys().collect();
            let next = if known.is_empty() { "leave `--split` out".into() } else { suggest::hint(split, &known) };
            let expected = format!("a split of data set `{}`", self.name);
            return Err(Error::data(&self.root, expected, format!("`{split}`"), next));
        };
        let (lines, origin) = match is_glob(value) {
            true => (vec![value.clone()], self.root.clone()),
            false => {
                let path = self.list_file(value);
                if !path.is_file() {
                    let next = "create it with one image stem a line, or choose another `--split`";
                    return Err(Error::data(&path, format!("the list of split `{split}`"), "no file", next));
                }
                (lines_of(&path)?, path)
            }
        };
        self.select(&lines, &all, &origin, split)
    }

    /// Every line must name or match at least one picture.
    fn select(&self, lines: &[String], all: &[String], origin: &Path, split: &str) -> Result<Vec<String>> {
        let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, path) in all.iter().enumerate() {
            for name in self.images.names(path) {
                by_name.entry(name).or_default().push(index);
            }
        }
        let (mut chosen, mut missing) = (BTreeSet::new(), Vec::new());
        let named = |name: &str| by_name.get(name.trim_start_matches("./"));
        // Records name pictures from other folders on than the root.
        let recorded = |name| std::iter::successors(Some(name), |name: &&str| Some(name.split_once('/')?.1)).find_map(named);
        for line in lines {
            let matches = match is_glob(line) {
                false if is_records(origin) => recorded(line).cloned().unwrap_or_default(),
                false => named(line).cloned().unwrap_or_default(),
                true => {
                    let glob = glob(line, origin)?;
                    (0..all.len()).filter(|&index| glob.is_match(&all[index])).collect()
                }
            };
            if matches.is_empty() {
                missing.push(line.as_str());
            }
            chosen.extend(matches);
        }
        if chosen.is_empty() || !missing.is_empty() {
            let count = missing.len();
            let few = missing.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let found = if lines.is_empty() { "an empty list".into() } else { format!("{count} without image, e.g. {few}") };
            let expected = format!("images of `{}` for every line of split `{split}`", self.name);
            return Err(Error::data(origin, expected, found, "correct the list, or add the images"));
        }
        Ok(chosen.into_iter().map(|index| all[index].clone()).collect())
    }

    fn sample(&self, relative: &str) -> Sample {
        let path = Path::new(relative);
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let (stem, name) = (text(path.file_stem()), text(path.file_name()));
        let below = path.parent().and_then(|dir| dir.strip_prefix(&self.images.fixed).ok()).map(slashed).unwrap_or_default();
        let label = self.labels.as_ref().map(|pattern| {
            let file = pattern
                .replace("{dir}", if below.is_empty() { "." } else { &below })
                .replace("{*}", self.images.last_star(&name))
                .replace("{stem}", &stem)
                .replace("{name}", &name);
            tidy(&self.root.join(file))
        });
        Sample { image: self.root.join(relative), label, stem }
    }

    /// A list file lies in the root, or beside the TOML.
    fn list_file(&self, value: &str) -> PathBuf {
        let in_root = self.root.join(value);
        let beside = self.descriptor_folder.as_ref().map(|folder| folder.join(value)).filter(|path| path.is_file());
        if in_root.is_file() { in_root } else { beside.unwrap_or(in_root) }
    }
}

/// True for lists of records with a `file_name`, as detectron2's users write them: those of CLOUDS and Mask2Former.
fn is_records(list: &Path) -> bool {
    list.extension().is_some_and(|extension| extension == "json")
}

/// The names or globs of a list.
fn lines_of(list: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Record {
        file_name: String,
    }
    let text = io::read_text(list)?;
    if is_records(list) {
        let records: Vec<Record> = serde_json::from_str(&text).map_err(|e| {
            let next = "give a list of objects with `file_name`, or a text with one image stem a line";
            Error::data(list, "a list of pictures in JSON", e.to_string(), next)
        })?;
        return Ok(records.into_iter().map(|record| record.file_name).collect());
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(String::from).collect())
}

/// Sizes (h, w) of a picture and its label.
fn check_sizes(sample: &Sample, (height, width): (usize, usize), label: (usize, usize)) -> Result<()> {
    if label == (height, width) {
        return Ok(());
    }
    Err(Error::data(
        sample.label.as_ref().unwrap_or(&sample.image),
        format!("a label of {width}x{height} like its image (width x height)"),
        format!("{}x{}", label.1, label.0),
        format!("check that it belongs to {}", sample.image.display()),
    ))
}

/// Without `.` and `a/..`, so that messages are readable.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if matches!(tidy.components().next_back(), Some(Component::Normal(_))) => {
                tidy.pop();
            }
            Component::CurDir if !tidy.as_os_str().is_empty() => {}
            other => tidy.push(other),
        }
    }
    tidy
}

fn own_root(descriptor: &Descriptor) -> Option<PathBuf> {
    let root = descriptor.root.clone()?;
    Some(match &descriptor.folder {
        Some(folder) => folder.join(root),
        None => root,
    })
}

/// The folder of a user's TOML if it holds the images, else `NAME` in the search folders.
fn default_root(name: &str, descriptor: &Descriptor, images: &ImageGlob, search: &Search) -> Result<PathBuf> {
    let any_folder = images.fixed.as_os_str().is_empty();
    let beside = descriptor.folder.iter().filter(|folder| match any_folder {
        true => !search.folders.contains(folder),
        false => folder.join(&images.fixed).is_dir(),
    });
    let named: Vec<PathBuf> = search.folders.iter().map(|folder| folder.join(name)).collect();
    beside.chain(&named).find(|folder| folder.is_dir()).cloned().ok_or_else(|| {
        let tried = named.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        let labels = descriptor.labels.as_deref().map_or(String::new(), |labels| format!("\n    {name}/{labels}"));
        let next = format!(
            "give it as `{name}=FOLDER`, or set `DATUM_DATASETS` to the folder that holds `{name}`:\n    {name}/{}{labels}\n  \
             without any data: `datum demo`, `clouds demo`",
            images.pattern
        );
        let expected = format!("the root folder of data set `{name}` with `{}`", images.pattern);
        Error::data(named.last().cloned().unwrap_or_default(), expected, format!("none (tried {tried})"), next)
    })
}

/// The descriptor of a name or TOML file.
fn find(name: &str, search: &Search) -> Result<Option<Descriptor>> {
    match name.ends_with(".toml") {
        true => Descriptor::from_file(Path::new(name), search).map(Some),
        false => Descriptor::named(name, search),
    }
}

fn unknown(name: &str, search: &Search) -> Error {
    let names = search.names();
    let next = format!("{} (a folder of images or a dataset `.toml` also works)", suggest::hint(name, &names));
    Error::data(name, "a data set", "an unknown name", next)
}
