//! A data set as plain folders that every tool reads.

use super::glob::is_glob;
use super::rare_class::{ClassStatistics, STATISTICS_FILES};
use super::{Compare, Dataset, Sample};
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::io::{self, atomic, hash, images};
use crate::labels::IGNORE;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Parts of the output.
const IMAGES: &str = "images";
const LABELS: &str = "labels";
const SPLITS: &str = "splits";

/// What [`prepare`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The TOML that describes the folders.
    pub descriptor: PathBuf,
    /// Pictures in the folders.
    pub images: usize,
    /// Those that were not there before, or not from the present files.
    pub made: usize,
}

/// Writes `images/`, `labels/` with train ids, `splits/` with a list for each split that has pictures in there, DAFormer's statistics
/// of classes, and `NAME.toml` below `output`. Names are the stems of the pictures, with their folders before them where two of the data set would be the
/// same, so that splits may follow each other.
///
/// # Errors
/// Those of [`Dataset::samples`] and [`Dataset::load_label`], files of another origin in the way, a folder that cannot be
/// written, interruption. What was written until then is whole, and kept by the next run.
pub fn prepare(dataset: &Dataset, split: Option<&str>, output: &Path, progress: &dyn Progress) -> Result<Prepared> {
    let samples = dataset.samples(split)?;
    let all = dataset.samples(None)?;
    let descriptor = output.join(format!("{}.toml", dataset.name));
    check_output(dataset, &all, output, &descriptor)?;
    let names = names(dataset, &all)?;
    let folder = |name: &str| fs::create_dir_all(output.join(name)).map_err(|e| Error::io(output.join(name), e));
    folder(IMAGES)?;
    if dataset.has_labels() {
        folder(LABELS)?;
    }
    let mut made = 0;
    progress.stage("prepare", samples.len() as u64, 0);
    for (index, sample) in samples.iter().enumerate() {
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: "run the same command again".into() });
        }
        let name = names.get(&sample.image).unwrap_or(&sample.stem);
        made += usize::from(write(dataset, sample, name, output)?);
        progress.step(index as u64 + 1, "");
    }
    progress.end();
    let lists = lists(dataset, &names, output);
    // Before the lists: where there is a description, they are ours.
    atomic::write(&descriptor, toml(dataset, lists.keys()).as_bytes())?;
    for (split, lines) in &lists {
        atomic::write(&output.join(list_file(split)), lines.as_bytes())?;
    }
    if dataset.has_labels() {
        statistics(dataset, &all, &names, output)?.write(output)?;
    }
    Ok(Prepared { descriptor, images: samples.len(), made })
}

/// Refuses folders where something of the user's would be replaced.
fn check_output(dataset: &Dataset, all: &[Sample], output: &Path, descriptor: &Path) -> Result<()> {
    let refuse = |what: String| Err(Error::Usage(format!("{what}\n  next: choose an empty folder as `--output`")));
    let real = |path: &Path| path.canonicalize().ok();
    if real(output).is_some_and(|output| real(&dataset.root) == Some(output)) {
        return refuse(format!("{} is the folder of data set `{}` itself", output.display(), dataset.name));
    }
    let folders: Vec<PathBuf> = [IMAGES, LABELS].iter().filter_map(|name| real(&output.join(name))).collect();
    let mut files = all.iter().flat_map(|sample| std::iter::once(&sample.image).chain(&sample.label));
    if let Some(own) = files.find(|file| real(file).is_some_and(|file| folders.iter().any(|folder| file.starts_with(folder)))) {
        return refuse(format!("{} belongs to data set `{}` itself", own.display(), dataset.name));
    }
    match descriptor.exists() {
        true if !is_written(&dataset.name, &io::read_text(descriptor)?) => refuse(format!(
            "{} would be overwritten; it was not written by `dataset prepare`, or changed since",
            descriptor.display()
        )),
        true => Ok(()),
        false => {
            let mut ours = std::iter::once(&SPLITS).chain(&STATISTICS_FILES).map(|name| output.join(name));
            ours.find(|path| path.exists()).map_or(Ok(()), |path| {
                let (path, descriptor) = (path.display(), descriptor.display());
                refuse(format!("{path} would be overwritten; no {descriptor} tells where it is from"))
            })
        }
    }
}

/// Pixels of each class in the written labels, of the pictures of split `train` where there are some: what DAFormer's sampling of rare
/// classes reads.
fn statistics(dataset: &Dataset, all: &[Sample], names: &BTreeMap<PathBuf, String>, output: &Path) -> Result<ClassStatistics> {
    let written = |samples: &[Sample]| -> Vec<(String, PathBuf)> {
        let named = samples.iter().filter_map(|sample| names.get(&sample.image));
        let files = named.map(|name| format!("{LABELS}/{name}.png")).map(|file| (file.clone(), output.join(file)));
        files.filter(|(_, path)| path.exists()).collect()
    };
    let trained = dataset.samples(Some("train")).map(|samples| written(&samples)).unwrap_or_default();
    ClassStatistics::count(if trained.is_empty() { written(all) } else { trained })
}

fn image_file(sample: &Sample, name: &str, output: &Path) -> PathBuf {
    let suffix = sample.image.extension().map(|suffix| suffix.to_string_lossy().to_lowercase()).unwrap_or_default();
    output.join(format!("{IMAGES}/{name}.{suffix}"))
}

/// Writes what is missing or out of date of one sample; true if anything was.
///
/// # Errors
/// Another picture in its place: it may be the user's.
fn write(dataset: &Dataset, sample: &Sample, name: &str, output: &Path) -> Result<bool> {
    let image = image_file(sample, name, output);
    let has_image = image.exists();
    if has_image && !is_same(&sample.image, &image)? {
        let expected = format!("the same picture as {}", sample.image.display());
        return Err(Error::data(&image, expected, "another one", "remove it, or choose an empty folder as `--output`"));
    }
    let label = output.join(format!("{LABELS}/{name}.png"));
    let labelled = sample.label.as_ref().map_or(Ok(false), |source| write_label(dataset, sample, source, &label))?;
    if !has_image {
        // A link to a link would not find its target from here.
        let source = fs::canonicalize(&sample.image);
        source.and_then(|source| fs::hard_link(source, &image)).or_else(|_| copy(&sample.image, &image))?;
    }
    Ok(labelled || !has_image)
}

/// Writes a label with train ids, unless it is there from the same file with the same ids; true if it was written.
///
/// # Errors
/// Those of [`Dataset::load_label`]; a label of another origin in its place.
fn write_label(dataset: &Dataset, sample: &Sample, source: &Path, path: &Path) -> Result<bool> {
    if path.exists() {
        let text: BTreeMap<String, String> = images::read_png_text(path)?.into_iter().collect();
        if text.get("dataset") != Some(&dataset.name) {
            let expected = format!("a label that `dataset prepare` wrote for `{}`", dataset.name);
            return Err(Error::data(path, expected, "another one", "remove it, or choose an empty folder as `--output`"));
        }
        if text.get("source") == Some(&fingerprint(dataset, source)?) {
            return Ok(false);
        }
    }
    let map = dataset.load_label(sample)?;
    let text = [("dataset".to_string(), dataset.name.clone()), ("source".to_string(), fingerprint(dataset, source)?)];
    images::write_palette_png(path, (map.height, map.width), &map.ids, &dataset.classes.palette, &text)?;
    Ok(true)
}

/// Of all that a written label depends on.
fn fingerprint(dataset: &Dataset, source: &Path) -> Result<String> {
    let text = format!("{:?} {:?} {}", dataset.id_map, dataset.classes.palette, hash::file(source)?);
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

/// True for files of the same content; links are not read.
fn is_same(one: &Path, two: &Path) -> Result<bool> {
    let metadata = |path: &Path| fs::metadata(path).map_err(|e| Error::io(path, e));
    let (a, b) = (metadata(one)?, metadata(two)?);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
            return Ok(true);
        }
    }
    Ok(a.len() == b.len() && hash::file(one)? == hash::file(two)?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    atomic::write(to, &fs::read(from).map_err(|e| Error::io(from, e))?)
}

/// The name of each picture: stems; relative paths with `_` for `/` when stems are not distinct.
///
/// # Errors
/// Names that are the same even so.
fn names(dataset: &Dataset, samples: &[Sample]) -> Result<BTreeMap<PathBuf, String>> {
    let same = |names: &[String]| {
        let mut seen = BTreeMap::new();
        names.iter().enumerate().find_map(|(index, name)| seen.insert(name.clone(), index).map(|before| (before, index)))
    };
    let long = |sample: &Sample| {
        let path = sample.image.strip_prefix(&dataset.root).unwrap_or(&sample.image).with_extension("");
        path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("_")
    };
    let mut names: Vec<String> = samples.iter().map(|sample| sample.stem.clone()).collect();
    if same(&names).is_some() {
        names = samples.iter().map(long).collect();
    }
    if let Some((one, two)) = same(&names) {
        let found = format!("{} and {}", samples[one].image.display(), samples[two].image.display());
        return Err(Error::data(&dataset.root, "pictures with names of their own", found, "rename one of them"));
    }
    Ok(samples.iter().map(|sample| sample.image.clone()).zip(names).collect())
}

/// The list of each split, of the pictures that are in `output`; one name a line.
fn lists(dataset: &Dataset, names: &BTreeMap<PathBuf, String>, output: &Path) -> BTreeMap<String, String> {
    let line = |sample: &Sample| {
        let name = names.get(&sample.image).filter(|name| image_file(sample, name, output).exists())?;
        // Readers of lists take such names for patterns or comments.
        let plain = !is_glob(name) && !name.starts_with('#');
        Some(if plain { format!("{name}\n") } else { format!("{IMAGES}/{}.*\n", globset::escape(name)) })
    };
    let list = |split: &String| {
        // A split without a list or pictures, as in a part of a data set, has none here either.
        let samples = dataset.samples(Some(split)).unwrap_or_default();
        (split.clone(), samples.iter().filter_map(line).collect::<String>())
    };
    dataset.splits.keys().map(list).filter(|(_, lines)| !lines.is_empty()).collect()
}

fn list_file(split: &str) -> String {
    format!("{SPLITS}/{split}.txt")
}

/// The description of the written folders.
fn toml<'a>(dataset: &Dataset, splits: impl Iterator<Item = &'a String>) -> String {
    let classes = &dataset.classes;
    let mut table = toml::Table::new();
    table.insert("images".into(), format!("{IMAGES}/*").into());
    if dataset.has_labels() {
        table.insert("labels".into(), format!("{LABELS}/{{stem}}.png").into());
        table.insert("classes".into(), classes.names.clone().into());
        table.insert("ignore_index".into(), i64::from(IGNORE).into());
        let colors = classes.palette.iter().map(|color| color.iter().map(|&value| i64::from(value)).collect::<Vec<_>>());
        table.insert("palette".into(), colors.map(toml::Value::from).collect::<Vec<_>>().into());
        let things: Vec<String> = classes.thing_ids().into_iter().map(|id| classes.names[id].clone()).collect();
        if !things.is_empty() {
            table.insert("things".into(), things.into());
        }
        if dataset.compare == Compare::Resized {
            table.insert("compare".into(), "resized".into());
        }
    }
    let splits: toml::Table = splits.map(|split| (split.clone(), list_file(split).into())).collect();
    if !splits.is_empty() {
        table.insert("splits".into(), toml::Value::Table(splits));
    }
    let table = table.to_string();
    format!("{}\n{table}", first_line(&dataset.name, &table))
}

/// Holds a fingerprint of what follows, so that a later run can tell whether someone changed it.
fn first_line(name: &str, table: &str) -> String {
    format!("# {name} with train ids, written by `dataset prepare` ({}).", &blake3::hash(table.as_bytes()).to_hex()[..16])
}

/// True for the text of a description as [`toml`] wrote it.
fn is_written(name: &str, text: &str) -> bool {
    text.split_once('\n').is_some_and(|(first, table)| first == first_line(name, table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::progress::Silent;
    use crate::data::Search;
    use crate::io::images::RgbImage;

    /// Two folders with a picture of the same name each; file id 7 is class b.
    fn tree(root: &Path) -> Dataset {
        for (folder, id) in [("one", 7), ("two", 3)] {
            let image = RgbImage { height: 2, width: 3, pixels: vec![id * 10; 18] };
            fs::create_dir_all(root.join(folder)).unwrap();
            images::write_png(&root.join(folder).join("a.png"), &image, &[]).unwrap();
            images::write_gray_png(&root.join(folder).join("a_label.png"), (2, 3), &[id; 6], &[]).unwrap();
        }
        let text =
            "images = \"*/a.png\"\nlabels = \"{dir}/a_label.png\"\nclasses = [\"a\", \"b\"]\nthings = [\"b\"]\n[id_map]\n7 = 1\n";
        fs::write(root.join("set.toml"), text).unwrap();
        Dataset::open(&root.join("set.toml").display().to_string(), &Search { folders: Vec::new() }).unwrap()
    }

    #[test]
    fn the_written_folders_are_the_same_data_set_in_train_ids() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = tree(folder.path());
        let output = folder.path().join("out");
        let first = prepare(&dataset, None, &output, &Silent).unwrap();
        assert_eq!((first.images, first.made), (2, 2));
        let again = prepare(&dataset, None, &output, &Silent).unwrap();
        assert_eq!((again.images, again.made), (2, 0));
        let written = Dataset::open(&first.descriptor.display().to_string(), &Search { folders: Vec::new() }).unwrap();
        assert_eq!(written.classes, dataset.classes);
        let (old, new) = (dataset.samples(None).unwrap(), written.samples(None).unwrap());
        assert_eq!(new.iter().map(|sample| sample.stem.as_str()).collect::<Vec<_>>(), ["one_a", "two_a"]);
        for (old, new) in old.iter().zip(&new) {
            let (old, new) = (dataset.load(old).unwrap(), written.load(new).unwrap());
            assert_eq!((old.image, old.label), (new.image, new.label));
        }
        let raw = images::read_label(&output.join("labels/one_a.png")).unwrap();
        assert_eq!(raw.pixels, [1; 6]);
    }

    fn open(path: &Path) -> Dataset {
        Dataset::open(&path.display().to_string(), &Search { folders: Vec::new() }).unwrap()
    }

    #[test]
    fn labels_are_made_anew_when_their_source_or_ids_change() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = tree(folder.path());
        let (output, set) = (folder.path().join("out"), folder.path().join("set.toml"));
        let made = |dataset: &Dataset| prepare(dataset, None, &output, &Silent).unwrap().made;
        let ids = |name: &str| images::read_label(&output.join(name)).unwrap().pixels;
        assert_eq!(made(&dataset), 2);
        let text = fs::read_to_string(&set).unwrap();
        fs::write(&set, text.replace("7 = 1", "7 = 0")).unwrap();
        assert_eq!((made(&open(&set)), made(&open(&set))), (2, 0));
        assert_eq!(ids("labels/one_a.png"), [0; 6]);
        images::write_gray_png(&folder.path().join("two/a_label.png"), (2, 3), &[7; 6], &[]).unwrap();
        assert_eq!((made(&open(&set)), made(&open(&set))), (1, 0));
        assert_eq!(ids("labels/two_a.png"), [0; 6]);
    }

    #[test]
    fn files_of_another_origin_are_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let dataset = tree(root);
        let message = |output: &Path| prepare(&dataset, None, output, &Silent).unwrap_err().to_string();
        assert!(message(root).contains("the folder of data set `set` itself"), "{}", message(root));
        assert!(!root.join(IMAGES).exists());

        let output = root.join("out");
        prepare(&dataset, None, &output, &Silent).unwrap();
        let description = fs::read_to_string(output.join("set.toml")).unwrap();
        fs::write(output.join("set.toml"), format!("{description}# mine\n")).unwrap();
        assert!(message(&output).contains("set.toml would be overwritten"), "{}", message(&output));
        fs::write(output.join("set.toml"), description).unwrap();
        images::write_gray_png(&output.join("labels/one_a.png"), (2, 3), &[1; 6], &[]).unwrap();
        assert!(message(&output).contains("a label that `dataset prepare` wrote for `set`"), "{}", message(&output));
        fs::remove_file(output.join("labels/one_a.png")).unwrap();
        atomic::write(&output.join("images/two_a.png"), b"another picture").unwrap();
        assert!(message(&output).contains("the same picture as"), "{}", message(&output));

        // Pictures where prepared ones would go, though the root is another folder.
        let text = "root = '..'\nimages = 'own/images/*.png'\n";
        atomic::write(&root.join("sets/other.toml"), text.as_bytes()).unwrap();
        fs::create_dir_all(root.join("own")).unwrap();
        fs::rename(root.join("one"), root.join("own/images")).unwrap();
        let other = open(&root.join("sets/other.toml"));
        let refused = prepare(&other, None, &root.join("own"), &Silent).unwrap_err().to_string();
        assert!(refused.contains("belongs to data set `other` itself"), "{refused}");
    }

    #[test]
    fn splits_become_lists_of_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (output, set) = (folder.path().join("out"), folder.path().join("set.toml"));
        tree(folder.path());
        let splits = "[splits]\ntrain = 'one/*'\nval = 'two/*'\nboth = '*/*'\nnone = 'three/*'\nlost = 'lost.txt'\n";
        fs::write(&set, format!("{}{splits}", fs::read_to_string(&set).unwrap())).unwrap();
        let dataset = open(&set);
        let written = |split: Option<&str>| open(&prepare(&dataset, split, &output, &Silent).unwrap().descriptor);
        let stems = |dataset: &Dataset, split: &str| -> Vec<String> {
            dataset.samples(Some(split)).unwrap().into_iter().map(|sample| sample.stem).collect()
        };
        let first = written(Some("train"));
        assert_eq!(first.splits.keys().collect::<Vec<_>>(), ["both", "train"]);
        assert_eq!((stems(&first, "train"), stems(&first, "both")), (vec!["one_a".to_string()], vec!["one_a".to_string()]));
        let second = written(Some("val"));
        assert_eq!(second.splits.keys().collect::<Vec<_>>(), ["both", "train", "val"]);
        assert_eq!((stems(&second, "val"), stems(&second, "both").len()), (vec!["two_a".to_string()], 2));
        assert_eq!(fs::read_to_string(output.join("splits/train.txt")).unwrap(), "one_a\n");
        let counted = fs::read_to_string(output.join("samples_with_class.json")).unwrap();
        assert_eq!(counted.split_whitespace().collect::<String>(), r#"{"1":[["labels/one_a.png",6]]}"#);
        fs::remove_file(output.join("set.toml")).unwrap();
        let refused = prepare(&dataset, None, &output, &Silent).unwrap_err().to_string();
        assert!(refused.contains("splits would be overwritten"), "{refused}");
    }

    #[test]
    fn names_that_lists_would_misread_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let image = RgbImage { height: 1, width: 1, pixels: vec![1, 2, 3] };
        for name in ["a[1]", "#b", "c"] {
            images::write_png(&folder.path().join(format!("in/{name}.png")), &image, &[]).unwrap();
        }
        fs::write(folder.path().join("set.toml"), "images = 'in/*.png'\n[splits]\nall = 'in/*'").unwrap();
        let dataset = open(&folder.path().join("set.toml"));
        let written = open(&prepare(&dataset, None, &folder.path().join("out"), &Silent).unwrap().descriptor);
        assert_eq!(written.samples(Some("all")).unwrap().len(), 3);
    }
}
