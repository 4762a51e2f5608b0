//! The confusion matrix.

use crate::labels::LabelMap;

/// Counts pixels by label and prediction over any number of pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfusionMatrix {
    num_classes: usize,
    /// `[label · (C + 1) + prediction]`; column C holds predictions that are no class.
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// An empty matrix.
    pub fn new(num_classes: usize) -> Self {
        Self { num_classes, counts: vec![0; num_classes * (num_classes + 1)] }
    }

    /// Number of classes.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// Adds one picture. Pixels whose label is no class (ignored) don't count; a prediction that is no class counts as
    /// wrong.
    ///
    /// # Errors
    /// If the sizes differ.
    pub fn add(&mut self, prediction: &LabelMap, label: &LabelMap) -> candle_core::Result<()> {
        if (prediction.height, prediction.width) != (label.height, label.width) {
            candle_core::bail!(
                "the prediction has {}x{} pixels, the label {}x{}",
                prediction.width,
                prediction.height,
                label.width,
                label.height
            );
        }
        for (&predicted, &label) in prediction.ids.iter().zip(&label.ids) {
            let (predicted, label) = (usize::from(predicted).min(self.num_classes), usize::from(label));
            if label < self.num_classes {
                self.counts[label * (self.num_classes + 1) + predicted] += 1;
            }
        }
        Ok(())
    }

    /// Adds the counts of a matrix over the same classes.
    pub fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.num_classes, other.num_classes);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// Pixels labelled `label` that were predicted as `prediction`.
    pub fn count(&self, label: usize, prediction: usize) -> u64 {
        self.counts[label * (self.num_classes + 1) + prediction]
    }

    /// Pixels with this label.
    pub fn labelled(&self, class: usize) -> u64 {
        self.counts[class * (self.num_classes + 1)..][..=self.num_classes].iter().sum()
    }

    /// Pixels with this prediction (and any label).
    pub fn predicted(&self, class: usize) -> u64 {
        (0..self.num_classes).map(|label| self.count(label, class)).sum()
    }
}
