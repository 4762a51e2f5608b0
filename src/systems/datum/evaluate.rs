//! `datum evaluate` and `datum predict`.

use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::data::{Dataset, Sample};
use crate::eval::{self, Evaluation, ExamplePicture, Format, Inference, ScoreFile, Subject};
use crate::io::images::{self, RgbImage};
use crate::io::{hash, thumbnail};
use crate::labels::{Classes, IdMap, LabelMap, overlay};
use crate::systems::shared::segmenter_file::{self, Segmenter};
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Pictures that a run keeps of an evaluation.
const KEPT: usize = 6;
/// Their longer side in pixels at most.
const KEPT_SIDE: usize = 640;
const OPACITY: f32 = 0.5;

/// How a segmenter is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// At once or in windows.
    pub inference: Inference,
    /// See [`Segmenter::open_with`].
    pub ensemble: Option<f64>,
}

/// Scores a trained segmenter on a labelled data set. `each_to` receives colour overlays of every picture. A run folder keeps
/// the scores and a few pictures; where it cannot be written, that is a warning.
///
/// # Errors
/// Those of [`Segmenter::open`] and [`eval::Evaluator::evaluate`]; overlays that would replace files of the data set or each
/// other.
pub fn checkpoint(
    path: &Path,
    dataset: &Dataset,
    split: Option<&str>,
    asked: Asked,
    each_to: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Evaluation> {
    let overlays = each_to.map(|folder| overlays(dataset, split, folder)).transpose()?.unwrap_or_default();
    let segmenter = Segmenter::open_with(path, asked.ensemble)?;
    segmenter.fits(dataset, path)?;
    let model = |images: &Tensor| segmenter.scores(images);
    let mut examples = if is_run(path) { Examples::new(dataset, split)? } else { Examples::default() };
    let each = |sample: &Sample, image: &RgbImage, prediction: &LabelMap| {
        examples.see(dataset, sample, image, prediction)?;
        let Some(path) = overlays.get(&sample.image) else { return Ok(()) };
        eval::write_prediction(path, image, prediction, &dataset.classes, &dataset.id_map, Format::Color { opacity: OPACITY })
    };
    let evaluation = segmenter.evaluator(asked.inference).evaluate(dataset, split, &model, progress, each)?;
    if is_run(path) {
        let subject = subject(dataset, split, asked);
        if let Err(error) = keep(path, subject, dataset, &evaluation, &examples.pictures) {
            progress.warn(&format!("the scores were not written into the run: {error}"));
        }
    }
    Ok(evaluation)
}

/// The file that the overlay of each picture goes to: its name, with its folders before it where two would be the same.
///
/// # Errors
/// Those of [`outputs`]. Pictures and labels of all splits stay as they are.
fn overlays(dataset: &Dataset, split: Option<&str>, folder: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let samples = dataset.samples(split)?;
    let distinct = samples.iter().map(|sample| &sample.stem).collect::<BTreeSet<_>>().len() == samples.len();
    let name = |image: &Path| match image.strip_prefix(&dataset.root) {
        Ok(below) if !distinct => below.to_path_buf(),
        _ => PathBuf::from(image.file_name().unwrap_or_default()),
    };
    let files: Vec<_> = samples.into_iter().map(|sample| (sample.image.clone(), name(&sample.image))).collect();
    let all = dataset.samples(None)?;
    let own = all.iter().flat_map(|sample| std::iter::once(&sample.image).chain(&sample.label));
    let paths = outputs(&files, own, folder, "--overlays")?;
    Ok(files.into_iter().map(|(image, _)| image).zip(paths).collect())
}

/// True for run folders; a folder with nothing but a segmenter stays as it is.
pub fn is_run(path: &Path) -> bool {
    path.join("recipe.toml").is_file()
}

fn subject(dataset: &Dataset, split: Option<&str>, asked: Asked) -> Subject {
    let root = dataset.root.canonicalize().unwrap_or_else(|_| dataset.root.clone());
    let mut inference = match asked.inference {
        Inference::Whole => "whole".to_string(),
        Inference::Slide { window, stride } => format!("slide {} {}", window.0, stride.0),
    };
    if let Some(alpha) = asked.ensemble {
        inference += &format!(", ensemble {alpha}");
    }
    Subject { dataset: dataset.name.clone(), root, split: split.map(String::from), inference }
}

fn keep(run: &Path, subject: Subject, dataset: &Dataset, found: &Evaluation, pictures: &[ExamplePicture]) -> Result<()> {
    let segmenter = hash::file(&segmenter_file::locate(run))?;
    let palette = dataset.classes.palette.clone();
    ScoreFile::new(subject, segmenter, found.scores.clone(), palette, &found.matrix).write(run, pictures).map(|_| ())
}

/// A few pictures, evenly taken, the same ones for every segmenter.
#[derive(Default)]
struct Examples {
    wanted: BTreeSet<PathBuf>,
    pictures: Vec<ExamplePicture>,
}

impl Examples {
    fn new(dataset: &Dataset, split: Option<&str>) -> Result<Self> {
        let samples = dataset.samples(split)?;
        let count = KEPT.min(samples.len());
        let wanted = (0..count).map(|i| samples[(2 * i + 1) * samples.len() / (2 * count)].image.clone()).collect();
        Ok(Self { wanted, pictures: Vec::new() })
    }

    fn see(&mut self, dataset: &Dataset, sample: &Sample, image: &RgbImage, prediction: &LabelMap) -> Result<()> {
        if !self.wanted.contains(&sample.image) {
            return Ok(());
        }
        let palette = &dataset.classes.palette;
        let label = overlay(image, &dataset.load_label(sample)?, palette, OPACITY);
        let prediction = overlay(image, prediction, palette, OPACITY);
        let jpeg = |picture: RgbImage| thumbnail::jpeg(&thumbnail::shrink(picture, KEPT_SIDE), 82);
        let files = [jpeg(image.clone())?, jpeg(prediction)?, jpeg(label)?];
        self.pictures.push(ExamplePicture { stem: sample.stem.clone(), files });
        Ok(())
    }
}

/// Segments pictures; `inputs` are files and folders. Returns how many were written and how many could not be read.
///
/// # Errors
/// No readable picture; interruption.
pub fn predict(
    checkpoint: &Path,
    inputs: &[PathBuf],
    output: &Path,
    format: Format,
    ensemble: Option<f64>,
    progress: &dyn Progress,
) -> Result<(u64, u64)> {
    let segmenter = Segmenter::open_with(checkpoint, ensemble)?;
    let mut classes = Classes::new(segmenter.header.classes.clone());
    classes.palette = segmenter.header.palette.clone();
    let model = |images: &Tensor| segmenter.scores(images);
    let id_map = IdMap::TrainIds { num_classes: classes.len(), ignore_index: 255 };
    let evaluator = segmenter.evaluator(Inference::Whole);
    let files = files(inputs)?;
    let outputs = outputs(&files, files.iter().map(|(file, _)| file), output, "--output")?;
    let (mut written, mut unreadable) = (0, Vec::new());
    progress.stage("predict", files.len() as u64, 0);
    for (index, ((file, _), path)) in files.iter().zip(&outputs).enumerate() {
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: "run the same command again".into() });
        }
        match images::read_rgb(file) {
            Err(error) if inputs.iter().any(|input| input == file) => return Err(error),
            Err(error) => unreadable.push(error),
            Ok(image) => {
                let prediction = evaluator.predict(&image, &model)?;
                eval::write_prediction(path, &image, &prediction, &classes, &id_map, format)?;
                written += 1;
            }
        }
        progress.step(index as u64 + 1, "");
    }
    progress.end();
    if let Some(line) = images::unreadable_line(&unreadable, files.len()) {
        if written == 0 {
            return Err(Error::data(&inputs[0], "readable images", line, "replace them"));
        }
        progress.warn(&line);
    }
    Ok((written, unreadable.len() as u64))
}

/// The picture files with the names of their outputs (relative to their folder).
fn files(inputs: &[PathBuf]) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = Vec::new();
    for input in inputs {
        if input.is_dir() {
            let inside: Vec<PathBuf> = images::list(input)?.into_iter().filter(|path| images::is_image(path)).collect();
            if inside.is_empty() {
                images::scan(input)?;
            }
            files.extend(inside.iter().map(|path| (path.clone(), path.strip_prefix(input).unwrap_or(path).to_path_buf())));
        } else {
            files.push((input.clone(), PathBuf::from(input.file_name().unwrap_or_default())));
        }
    }
    Ok(files)
}

/// The file each result goes to. `own` are files that have to stay as they are, `option` is how the folder was given.
///
/// # Errors
/// Two pictures of one name, and results that would replace one of `own`.
fn outputs<'a>(
    files: &[(PathBuf, PathBuf)],
    own: impl Iterator<Item = &'a PathBuf>,
    folder: &Path,
    option: &str,
) -> Result<Vec<PathBuf>> {
    let own: BTreeSet<PathBuf> = own.filter_map(|file| file.canonicalize().ok()).collect();
    let mut taken: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    let mut outputs = Vec::with_capacity(files.len());
    for (file, name) in files {
        let path = folder.join(name).with_extension("png");
        let show = |path: &Path| path.display().to_string();
        if path.canonicalize().is_ok_and(|path| own.contains(&path)) {
            return Err(Error::Usage(format!(
                "{} would be overwritten\n  next: choose another folder as `{option}`",
                show(&path)
            )));
        }
        if let Some(other) = taken.insert(path.clone(), file).filter(|other| *other != file.as_path()) {
            let (one, two) = (show(other), show(file));
            let next = "rename one of them, or segment them into different folders";
            return Err(Error::Usage(format!("{one} and {two} have the same name\n  next: {next}")));
        }
        outputs.push(path);
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Search;

    /// Pictures that need not be readable, with a label each.
    fn dataset(root: &Path, images: &[&str]) -> Dataset {
        for path in images.iter().map(|image| format!("images/{image}")).chain(["labels/a.png".into(), "set.toml".into()]) {
            crate::io::atomic::write(&root.join(path), b"").unwrap();
        }
        let text = "images = 'images/**/*'\nlabels = 'labels/{stem}.png'\nclasses = ['a']\n[splits]\none = 'images/one/*'";
        std::fs::write(root.join("set.toml"), text).unwrap();
        Dataset::open(&root.join("set.toml").display().to_string(), &Search { folders: Vec::new() }).unwrap()
    }

    /// Overlays below `out`, relative to it.
    fn names(root: &Path, dataset: &Dataset, split: Option<&str>) -> Vec<String> {
        let out = root.join("out");
        let paths = overlays(dataset, split, &out).unwrap();
        paths.values().map(|path| path.strip_prefix(&out).unwrap().display().to_string()).collect()
    }

    #[test]
    fn overlays_of_one_name_lie_in_folders() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let dataset = dataset(root, &["one/a.jpg", "two/a.png", "two/b.1.png"]);
        assert_eq!(names(root, &dataset, None), ["images/one/a.png", "images/two/a.png", "images/two/b.1.png"]);
        assert_eq!(names(root, &dataset, Some("one")), ["a.png"]);
        std::fs::write(root.join("images/one/a.png"), "").unwrap();
        let message = overlays(&dataset, None, &root.join("out")).unwrap_err().to_string();
        assert!(message.contains("one/a.jpg and ") && message.contains("one/a.png have the same name"), "{message}");
    }

    #[test]
    fn overlays_never_replace_files_of_the_data_set() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let dataset = dataset(root, &["one/a.png", "two/a.png"]);
        let refused = |split: Option<&str>, inside: &str| {
            let error = overlays(&dataset, split, &root.join(inside)).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let message = error.to_string();
            assert!(message.contains("would be overwritten") && message.contains("`--overlays`"), "{message}");
        };
        refused(None, "");
        refused(Some("one"), "images/one");
        // A picture of another split, and a label.
        refused(Some("one"), "images/two");
        refused(Some("one"), "labels");
        assert_eq!(names(root, &dataset, Some("one")), ["a.png"]);
    }
}
