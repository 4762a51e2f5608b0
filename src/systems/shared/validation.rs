//! Scores during the training, for its curve.

use super::segmenter_file::{self, Header, Segmenter};
use crate::base::metrics::Metrics;
use crate::base::progress::Silent;
use crate::base::{Error, Result};
use crate::data::{Dataset, Sample, Search};
use crate::eval::{Evaluator, Inference};
use crate::nn::ParamStore;
use candle_core::Tensor;

/// What to score.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Labelled data set; empty: none.
    pub dataset: &'a str,
    /// Its split; empty: `val` where there is one.
    pub split: &'a str,
    /// Steps between scores.
    pub steps: u64,
    /// Images, evenly taken; 0: all.
    pub images: usize,
}

/// A labelled set and when it is scored.
pub struct Validation {
    dataset: Dataset,
    samples: Vec<Sample>,
    evaluator: Evaluator,
    header: Header,
    steps: u64,
}

impl Validation {
    /// What the settings ask for; none without a data set.
    ///
    /// # Errors
    /// A set that cannot be opened, without labels, or with other classes.
    pub fn new(wanted: Wanted, header: &Header, search: &Search) -> Result<Option<Self>> {
        if wanted.dataset.is_empty() {
            return Ok(None);
        }
        let dataset = Dataset::open(wanted.dataset, search)?;
        if !dataset.has_labels() || dataset.classes.len() != header.classes.len() {
            let expected = format!("a labelled data set of {} classes, to score on", header.classes.len());
            let found = format!("{} classes", dataset.classes.len());
            return Err(Error::data(&dataset.root, expected, found, "choose another one as --validation"));
        }
        let split = match wanted.split {
            "" => dataset.first_split(&["val"]),
            split => Some(split),
        };
        let all = dataset.samples(split)?;
        let count = match wanted.images {
            0 => all.len(),
            images => images.min(all.len()),
        };
        let samples = (0..count).map(|i| all[(2 * i + 1) * all.len() / (2 * count)].clone()).collect();
        let evaluator = segmenter_file::evaluator(header, Inference::Whole);
        Ok(Some(Self { dataset, samples, evaluator, header: header.clone(), steps: wanted.steps }))
    }

    /// `validation.mIoU`, `validation.mAcc` and `validation.aAcc` (0…1) when `done` steps are a multiple of the interval.
    ///
    /// A requested stop leaves them out, so that the state can be saved at once.
    pub fn after(&self, done: u64, parameters: &ParamStore) -> Result<Metrics> {
        if !done.is_multiple_of(self.steps) {
            return Ok(Metrics::new());
        }
        let segmenter = Segmenter::view(&self.header, parameters)?;
        let model = |images: &Tensor| segmenter.scores(images);
        let scored = self.evaluator.evaluate_samples(&self.dataset, self.samples.clone(), &model, &Silent, |_, _, _| Ok(()));
        let scores = match scored {
            Ok(evaluation) => evaluation.scores,
            Err(Error::Interrupted { .. }) => return Ok(Metrics::new()),
            Err(error) => return Err(error),
        };
        let named = [("validation.mIoU", scores.miou), ("validation.mAcc", scores.macc), ("validation.aAcc", scores.aacc)];
        Ok(named.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect())
    }
}
