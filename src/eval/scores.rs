//! Scores from a confusion matrix.

use super::ConfusionMatrix;
use serde::{Deserialize, Serialize};

/// Classes that SYNTHIA lacks; without them its benchmark has 16.
const NOT_IN_SYNTHIA: [&str; 3] = ["terrain", "truck", "train"];
/// Left out as well in the 13-class benchmark.
const NOT_IN_13: [&str; 3] = ["wall", "fence", "pole"];

/// One class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// Its name.
    pub name: String,
    /// Intersection over union, 0…1; none if it is neither labelled nor predicted, or not labelled where that is the rule.
    pub iou: Option<f64>,
    /// Share of its labelled pixels that were found, 0…1; none if it is not labelled.
    pub acc: Option<f64>,
}

/// Scores of a data set, 0…1. Serialises to the object that `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Mean IoU over the classes that have one.
    #[serde(rename = "mIoU")]
    pub miou: Option<f64>,
    /// Mean accuracy over the classes that have one.
    #[serde(rename = "mAcc")]
    pub macc: Option<f64>,
    /// Share of right pixels among the labelled ones.
    #[serde(rename = "aAcc")]
    pub aacc: Option<f64>,
    /// The mean IoU of SYNTHIA's benchmark: 16 of the Cityscapes classes; only for those classes.
    #[serde(rename = "mIoU16", default, skip_serializing_if = "Option::is_none")]
    pub miou16: Option<f64>,
    /// The same without wall, fence and pole.
    #[serde(rename = "mIoU13", default, skip_serializing_if = "Option::is_none")]
    pub miou13: Option<f64>,
    /// In train-id order.
    pub classes: Vec<ClassScore>,
    /// Number of scored pictures.
    pub images: u64,
}

impl Scores {
    /// IoU = TP / (TP + FP + FN), accuracy = TP / labelled, both per class over all pictures together.
    ///
    /// # Source
    /// mmsegmentation's `mIoU` metric; means leave out absent classes.
    pub fn new(matrix: &ConfusionMatrix, names: &[String], images: u64) -> Self {
        Self::with(matrix, names, images, |_| true)
    }

    /// [`Self::new`], with no IoU for classes that no label has, however often they are predicted.
    ///
    /// # Source
    /// detectron2's `SemSegEvaluator`.
    pub fn of_labelled(matrix: &ConfusionMatrix, names: &[String], images: u64) -> Self {
        Self::with(matrix, names, images, |id| matrix.labelled(id) > 0)
    }

    fn with(matrix: &ConfusionMatrix, names: &[String], images: u64, counts: impl Fn(usize) -> bool) -> Self {
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let class = |id: usize| {
            let (hit, labelled) = (matrix.count(id, id), matrix.labelled(id));
            let union = labelled + matrix.predicted(id) - hit;
            let name = names.get(id).cloned().unwrap_or_else(|| format!("class {id}"));
            ClassScore { name, iou: ratio(hit, union).filter(|_| counts(id)), acc: ratio(hit, labelled) }
        };
        let num_classes = matrix.num_classes();
        let classes: Vec<ClassScore> = (0..num_classes).map(class).collect();
        let hits = (0..num_classes).map(|id| matrix.count(id, id)).sum();
        let labelled = (0..num_classes).map(|id| matrix.labelled(id)).sum();
        let is_cityscapes = classes.len() == 19
            && NOT_IN_SYNTHIA.iter().chain(&NOT_IN_13).all(|name| classes.iter().any(|class| class.name == *name));
        let without = |left_out: &[&str]| {
            let kept = classes.iter().filter(|class| !left_out.contains(&class.name.as_str()));
            if is_cityscapes { mean(kept.map(|class| class.iou)) } else { None }
        };
        Self {
            miou: mean(classes.iter().map(|class| class.iou)),
            macc: mean(classes.iter().map(|class| class.acc)),
            aacc: ratio(hits, labelled),
            miou16: without(&NOT_IN_SYNTHIA),
            miou13: without(&[NOT_IN_SYNTHIA, NOT_IN_13].concat()),
            classes,
            images,
        }
    }
}

/// Over the values there are; none without any.
pub(super) fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let present: Vec<f64> = values.flatten().collect();
    (!present.is_empty()).then(|| present.iter().sum::<f64>() / present.len() as f64)
}
