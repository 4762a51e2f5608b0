//! A data set as plain folders that every tool reads.

use super::{Dataset, Sample};
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::io::{atomic, images};
use crate::labels::IGNORE;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What [`prepare`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The TOML that describes the folders.
    pub descriptor: PathBuf,
    /// Pictures in the folders.
    pub images: usize,
    /// Those that were not there before.
    pub made: usize,
}

/// Writes `images/`, `labels/` with train ids, and `NAME.toml` below `output`. Names are the stems of the pictures, with their
/// folders before them where two would be the same.
///
/// # Errors
/// Those of [`Dataset::samples`] and [`Dataset::load_label`], a folder that cannot be written, interruption. What was written
/// until then is whole, and kept by the next run.
pub fn prepare(dataset: &Dataset, split: Option<&str>, output: &Path, progress: &dyn Progress) -> Result<Prepared> {
    let samples = dataset.samples(split)?;
    let names = names(dataset, &samples)?;
    let descriptor = output.join(format!("{}.toml", dataset.name));
    let folder = |name: &str| fs::create_dir_all(output.join(name)).map_err(|e| Error::io(output.join(name), e));
    folder("images")?;
    if dataset.has_labels() {
        folder("labels")?;
    }
    let mut made = 0;
    progress.stage("prepare", samples.len() as u64, 0);
    for (index, (sample, name)) in samples.iter().zip(&names).enumerate() {
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: "run the same command again".into() });
        }
        made += usize::from(write(dataset, sample, name, output)?);
        progress.step(index as u64 + 1, "");
    }
    progress.end();
    atomic::write(&descriptor, toml(dataset).as_bytes())?;
    Ok(Prepared { descriptor, images: samples.len(), made })
}

/// Writes what is missing of one sample; true if anything was.
fn write(dataset: &Dataset, sample: &Sample, name: &str, output: &Path) -> Result<bool> {
    let suffix = sample.image.extension().map(|suffix| suffix.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (image, label) = (output.join(format!("images/{name}.{suffix}")), output.join(format!("labels/{name}.png")));
    if image.exists() && (!dataset.has_labels() || label.exists()) {
        return Ok(false);
    }
    if dataset.has_labels() {
        let map = dataset.load_label(sample)?;
        images::write_palette_png(&label, (map.height, map.width), &map.ids, &dataset.classes.palette, &[])?;
    }
    if !image.exists() {
        fs::hard_link(&sample.image, &image).or_else(|_| copy(&sample.image, &image))?;
    }
    Ok(true)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    atomic::write(to, &fs::read(from).map_err(|e| Error::io(from, e))?)
}

/// Stems; relative paths with `_` for `/` when stems are not distinct.
///
/// # Errors
/// Names that are the same even so.
fn names(dataset: &Dataset, samples: &[Sample]) -> Result<Vec<String>> {
    let distinct = |names: &[String]| {
        let mut seen = BTreeMap::new();
        names.iter().enumerate().find_map(|(index, name)| seen.insert(name.clone(), index).map(|before| (before, index)))
    };
    let stems: Vec<String> = samples.iter().map(|sample| sample.stem.clone()).collect();
    if distinct(&stems).is_none() {
        return Ok(stems);
    }
    let long = |sample: &Sample| {
        let path = sample.image.strip_prefix(&dataset.root).unwrap_or(&sample.image).with_extension("");
        path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("_")
    };
    let names: Vec<String> = samples.iter().map(long).collect();
    match distinct(&names) {
        None => Ok(names),
        Some((one, two)) => {
            let found = format!("{} and {}", samples[one].image.display(), samples[two].image.display());
            Err(Error::data(&dataset.root, "pictures with names of their own", found, "rename one of them"))
        }
    }
}

/// The description of the written folders.
fn toml(dataset: &Dataset) -> String {
    let classes = &dataset.classes;
    let mut table = toml::Table::new();
    table.insert("images".into(), "images/*".into());
    if dataset.has_labels() {
        table.insert("labels".into(), "labels/{stem}.png".into());
        table.insert("classes".into(), classes.names.clone().into());
        table.insert("ignore_index".into(), i64::from(IGNORE).into());
        let colors = classes.palette.iter().map(|color| color.iter().map(|&value| i64::from(value)).collect::<Vec<_>>());
        table.insert("palette".into(), colors.map(toml::Value::from).collect::<Vec<_>>().into());
        let things: Vec<String> = classes.thing_ids().into_iter().map(|id| classes.names[id].clone()).collect();
        if !things.is_empty() {
            table.insert("things".into(), things.into());
        }
    }
    format!("# {} with train ids.\n{table}", dataset.name)
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
}
