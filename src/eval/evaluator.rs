//! Scoring a network on a data set.

use super::{ConfusionMatrix, Inference, Scores};
use crate::base::progress::Progress;
use crate::base::{Error, Result, interrupt};
use crate::data::transforms::keep_ratio_size;
use crate::data::{Compare, Dataset, Example, Loader, Normalize, Sample, resize};
use crate::io::images::{self, RgbImage};
use crate::labels::LabelMap;
use crate::nn::resize_bilinear;
use candle_core::{Device, Tensor};

/// How pictures become label maps at test time.
#[derive(Debug, Clone)]
pub struct Evaluator {
    /// What the picture is scaled to before the network; none keeps its size.
    pub resize: Option<Resize>,
    /// Whole pictures or windows.
    pub inference: Inference,
    /// Normalisation of the network's input.
    pub normalize: Normalize,
    /// Where the network runs.
    pub device: Device,
}

/// The size that pictures are shown to a network in. Their aspect is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The largest that fits a frame (height, width), bilinear without antialiasing: mmsegmentation's tests.
    Frame((usize, usize)),
    /// That short side and any long side, bilinear with antialiasing: detectron2's tests.
    ShortSide(usize),
}

impl Resize {
    fn apply(self, image: &RgbImage) -> RgbImage {
        let size = (image.height, image.width);
        match self {
            Self::Frame(frame) => resize::bilinear(image, keep_ratio_size(size, frame)),
            Self::ShortSide(side) => {
                let scale = side as f64 / size.0.min(size.1) as f64;
                let scaled = |length: usize| (length as f64 * scale + 0.5) as usize;
                resize::antialiased(image, (scaled(size.0), scaled(size.1)))
            }
        }
    }
}

/// What an evaluation found.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The scores.
    pub scores: Scores,
    /// The counts behind them.
    pub matrix: ConfusionMatrix,
    /// Pictures that could not be decoded and were left out.
    pub unreadable: u64,
}

impl Evaluator {
    /// The label map of one picture, at its own size: resize, normalise, logits, bilinear to the original size, argmax.
    pub fn predict(
        &self,
        image: &RgbImage,
        model: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<LabelMap> {
        label_map(&self.logits(image, model)?.0, (image.height, image.width))
    }

    /// What the network says about a picture, and the size it was shown.
    fn logits(
        &self,
        image: &RgbImage,
        model: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<(Tensor, (usize, usize))> {
        let resized = self.resize.map(|resize| resize.apply(image));
        let input = resized.as_ref().unwrap_or(image);
        let shown = (input.height, input.width);
        let images = self.normalize.apply(input, shown, &self.device)?.unsqueeze(0)?;
        Ok((self.inference.logits(&images, model)?, shown))
    }

    /// Whether predictions are compared at the size that the network is shown.
    fn compares_resized(&self, dataset: &Dataset) -> bool {
        matches!(self.resize, Some(Resize::ShortSide(_))) && dataset.compare == Compare::Resized
    }

    /// Scores `model` on a split (none: all pictures). `each` receives every prediction, e.g. to write it.
    ///
    /// # Errors
    /// [`Error::Data`] for unlabelled sets, broken labels, or if no picture can be read; single broken pictures are warned
    /// about and counted. [`Error::Interrupted`] after Ctrl-C.
    pub fn evaluate(
        &self,
        dataset: &Dataset,
        split: Option<&str>,
        model: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
        progress: &dyn Progress,
        each: impl FnMut(&Sample, &RgbImage, &LabelMap) -> Result<()>,
    ) -> Result<Evaluation> {
        self.evaluate_samples(dataset, dataset.samples(split)?, model, progress, each)
    }

    /// [`Self::evaluate`] on chosen pictures of a data set.
    pub fn evaluate_samples(
        &self,
        dataset: &Dataset,
        samples: Vec<Sample>,
        model: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
        progress: &dyn Progress,
        mut each: impl FnMut(&Sample, &RgbImage, &LabelMap) -> Result<()>,
    ) -> Result<Evaluation> {
        let total = samples.len() as u64;
        let loading = (dataset.clone(), samples.clone());
        let load = move |index: u64| loading.0.load(&loading.1[index as usize]);
        let mut matrix = ConfusionMatrix::new(dataset.classes.len());
        let (mut scored, mut unreadable) = (0, Vec::new());
        let resized = self.compares_resized(dataset);
        let scores = if resized { Scores::of_labelled } else { Scores::new };
        progress.stage("evaluate", total, 0);
        for (index, loaded) in Loader::new(0..total, 1, 2, load)?.enumerate() {
            if interrupt::requested() {
                return Err(Error::Interrupted { resume: "run the same command again".into() });
            }
            match loaded {
                Err(error) if is_undecodable(&error, &samples[index]) => unreadable.push(error),
                Err(error) => return Err(error),
                Ok(Example { image, label }) => {
                    let (logits, shown) = self.logits(&image, model)?;
                    let prediction = label_map(&logits, (image.height, image.width))?;
                    match label {
                        Some(label) if resized => {
                            matrix.add(&label_map(&logits, shown)?, &resize::nearest_middle(&label, shown))?;
                        }
                        Some(label) => matrix.add(&prediction, &label)?,
                        None => {}
                    }
                    scored += 1;
                    each(&samples[index], &image, &prediction)?;
                }
            }
            progress.step(index as u64 + 1, "");
        }
        progress.end();
        finish(dataset, matrix, scored, unreadable, scores, progress)
    }
}

/// Logits at another size, bilinear, and their argmax.
fn label_map(logits: &Tensor, size: (usize, usize)) -> candle_core::Result<LabelMap> {
    LabelMap::from_logits(&resize_bilinear(logits, size, false)?).map_err(|e| candle_core::Error::Msg(e.to_string()))
}

/// Turns counts into scores, after the warning about pictures that were left out.
pub(super) fn finish(
    dataset: &Dataset,
    matrix: ConfusionMatrix,
    scored: u64,
    unreadable: Vec<Error>,
    scores: impl Fn(&ConfusionMatrix, &[String], u64) -> Scores,
    progress: &dyn Progress,
) -> Result<Evaluation> {
    if let Some(line) = images::unreadable_line(&unreadable, scored as usize + unreadable.len()) {
        if scored == 0 {
            return Err(Error::data(&dataset.root, "readable images", line, "replace them"));
        }
        progress.warn(&line);
    }
    let scores = scores(&matrix, &dataset.classes.names, scored);
    Ok(Evaluation { scores, matrix, unreadable: unreadable.len() as u64 })
}

/// Only a broken picture may be left out; a label of another size may not.
fn is_undecodable(error: &Error, sample: &Sample) -> bool {
    matches!(error, Error::Data { path, .. } | Error::Io { path, .. } if *path == sample.image)
}
