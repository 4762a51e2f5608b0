//! The places where a strategy plugs in: how a labelled view is scored, extra losses, changed pseudo-labels.

use super::{Mixed, PseudoLabels, StepBatch, Switches};
use crate::base::group::Share;
use crate::base::{Result, Rng};
use crate::models::segmenter::Segmenter;
use crate::nn::{Pass, cross_entropy, resize_bilinear};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Numbers of one step by log key.
pub type Metrics = BTreeMap<String, f32>;

/// Losses to be added up, with the keys they are logged under.
#[derive(Debug, Default)]
pub struct Losses {
    losses: Vec<(String, Tensor)>,
    facts: Metrics,
}

impl Losses {
    /// Adds a scalar loss, logged under `key`.
    pub fn add(&mut self, key: impl Into<String>, loss: Tensor) {
        self.losses.push((key.into(), loss));
    }

    /// Logs a number that is no loss.
    pub fn note(&mut self, key: impl Into<String>, value: f32) {
        self.facts.insert(key.into(), value);
    }

    /// Takes over `other`, with every loss times `weight` and every key below `prefix.` (unless that is empty).
    pub fn absorb(&mut self, prefix: &str, weight: f64, other: Self) -> Result<()> {
        let full = |key: String| if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        for (key, loss) in other.losses {
            let loss = if weight == 1.0 { loss } else { (loss * weight)? };
            self.losses.push((full(key), loss));
        }
        self.facts.extend(other.facts.into_iter().map(|(key, value)| (full(key), value)));
        Ok(())
    }

    /// The sum of the losses, `None` without any; the numbers to log, losses included.
    pub fn finish(self) -> Result<(Option<Tensor>, Metrics)> {
        let mut metrics = self.facts;
        let mut total: Option<Tensor> = None;
        for (key, loss) in self.losses {
            metrics.insert(key, loss.to_scalar()?);
            total = Some(match total {
                Some(sum) => (sum + loss)?,
                None => loss,
            });
        }
        Ok((total, metrics))
    }
}

/// Images with labels, to be scored.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    /// (B, 3, H, W) normalised.
    pub images: &'a Tensor,
    /// (B, H, W) u32, values ≥ K are ignored.
    pub labels: &'a Tensor,
    /// (B, H, W), 1 everywhere when absent.
    pub weights: Option<&'a Tensor>,
}

/// A scored view: the losses with their graph, and the encoder outputs other losses may look at.
#[derive(Debug, Default)]
pub struct Scored {
    /// Encoder outputs, finest first.
    pub features: Vec<Tensor>,
    /// Keys as in `decode.loss_seg`.
    pub losses: Losses,
}

/// How a labelled view of the student is scored: [`WholeImage`], or HRDA's context and detail crop.
pub trait Supervision<S>: Send + Sync {
    /// Runs the student in training mode and computes its losses. The view holds the rows of `share`.
    ///
    /// # Randomness
    /// Whatever it takes from `rng` (dropout, drop-path, crops).
    fn score(&self, student: &S, view: Labelled<'_>, rng: Rng, share: &Share) -> Result<Scored>;
}

/// Cross-entropy of the logits, resized to the labels' size.
#[derive(Debug, Clone, Copy, Default)]
pub struct WholeImage;

impl<S: Segmenter> Supervision<S> for WholeImage {
    fn score(&self, student: &S, view: Labelled<'_>, rng: Rng, share: &Share) -> Result<Scored> {
        let pass = Pass::train(rng).of(share);
        let features = student.features(view.images, &pass)?;
        let logits = student.head(&features, &pass)?;
        let (_, height, width) = view.labels.dims3()?;
        let logits = resize_bilinear(&logits, (height, width), false)?;
        let mut losses = Losses::default();
        losses.add("decode.loss_seg", cross_entropy(&logits, view.labels, view.weights)?);
        losses.note("decode.acc_seg", accuracy(&logits, view.labels)?);
        Ok(Scored { features, losses })
    }
}

/// Where in the step a loss is computed. Losses of one stage share a backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// On the source images; `features` are the student's.
    Source,
    /// On the mixed images; `features` are the student's.
    Mixed,
    /// After both, with a forward pass of its own; no features.
    Separate,
}

/// What a loss may look at: all of it are the rows of one share of the batch.
pub struct Context<'a, S> {
    /// The network in training.
    pub student: &'a S,
    /// How labelled views are scored, for losses that make views of their own.
    pub supervision: &'a dyn Supervision<S>,
    /// Which rows these are. A forward pass is [`Pass::of`] it; sums over all rows go through its group.
    pub share: &'a Share,
    /// The images of the step.
    pub batch: &'a StepBatch,
    /// The student's encoder outputs in this stage, finest first.
    pub features: &'a [Tensor],
    /// The teacher's labels; none in [`Stage::Source`].
    pub pseudo: Option<&'a PseudoLabels>,
    /// The mixed images; none in [`Stage::Source`].
    pub mixed: Option<&'a Mixed>,
    /// Which augmentations this step uses, where there are any.
    pub switches: Option<Switches>,
    /// Number of the step, from 0.
    pub iteration: u64,
    /// Seed of the run.
    pub seed: u64,
}

impl<S> Context<'_, S> {
    /// The random stream of this step for one purpose.
    pub fn rng(&self, purpose: &str) -> Rng {
        Rng::stream(self.seed, purpose, &[self.iteration])
    }
}

/// A loss besides the supervised ones.
pub trait LossTerm<S>: Send + Sync {
    /// Prefix of its log keys, e.g. `src`.
    fn name(&self) -> &str;
    /// Factor in the objective; logged losses include it.
    fn weight(&self) -> f64;
    /// When it is computed.
    fn stage(&self) -> Stage;
    /// Unweighted losses; empty when there is nothing to compare in this batch.
    fn compute(&self, context: &Context<'_, S>) -> Result<Losses>;
}

/// Changes pseudo-labels before they are mixed. Weights stay as they are.
pub trait TargetRelabeler: Send + Sync {
    /// New labels of the target images.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W) normalised, `labels` (B, H, W) u32 → as `labels`
    fn relabel(&mut self, iteration: u64, images: &Tensor, labels: &Tensor) -> Result<Tensor>;
}

/// Most probable class and its probability for every pixel; of equal classes the first.
///
/// # Shapes
/// `logits` (B, K, H, W) → two lists in the order (B, H, W)
pub(super) fn classify(logits: &Tensor) -> candle_core::Result<(Vec<u32>, Vec<f32>)> {
    let (_, classes, height, width) = logits.dims4()?;
    let values: Vec<f32> = logits.detach().flatten_all()?.to_vec1()?;
    let plane = height * width;
    let mut labels = vec![0; values.len() / classes];
    let mut confidence = vec![0f32; labels.len()];
    labels.par_chunks_mut(width).zip(confidence.par_chunks_mut(width)).enumerate().for_each(|(row, (label, confidence))| {
        let first = row / height * classes * plane + row % height * width;
        let class_row = |class: usize| &values[first + class * plane..][..width];
        let mut best = class_row(0).to_vec();
        for class in 1..classes {
            for ((value, best), label) in class_row(class).iter().zip(&mut best).zip(label.iter_mut()) {
                if value > best {
                    (*best, *label) = (*value, class as u32);
                }
            }
        }
        for class in 0..classes {
            for ((value, best), sum) in class_row(class).iter().zip(&best).zip(confidence.iter_mut()) {
                *sum += (value - best).exp();
            }
        }
        confidence.iter_mut().for_each(|sum| *sum = sum.recip());
    });
    Ok((labels, confidence))
}

/// Right pixels in percent of **all** pixels: ignored ones count as wrong.
///
/// # Shapes
/// `logits` (B, K, H, W), `labels` (B, H, W) u32
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<f32> {
    let (predicted, _) = classify(logits)?;
    let labels: Vec<u32> = labels.flatten_all()?.to_vec1()?;
    let right = predicted.iter().zip(&labels).filter(|(p, l)| p == l).count();
    Ok(100.0 * right as f32 / labels.len() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn keys_get_their_prefix_and_losses_their_weight() {
        let mut inner = Losses::default();
        inner.add("loss", Tensor::new(3f32, &Device::Cpu).unwrap());
        inner.note("fact", 7.0);
        let mut outer = Losses::default();
        outer.add("own", Tensor::new(1f32, &Device::Cpu).unwrap());
        outer.absorb("mix", 0.5, inner).unwrap();
        let (total, metrics) = outer.finish().unwrap();
        assert_eq!(total.unwrap().to_scalar::<f32>().unwrap(), 2.5);
        let expected = [("mix.fact", 7.0), ("mix.loss", 1.5), ("own", 1.0)];
        assert_eq!(metrics, expected.map(|(key, value)| (key.to_string(), value)).into());
    }

    #[test]
    fn confidence_is_the_largest_softmax_probability() {
        // Two images, three classes, one row of two pixels.
        let logits = [[1.0f32, 0.0, 2.0, 0.0, 3.0, 0.0], [0.0, 5.0, 0.0, 4.0, 0.0, 3.0]].concat();
        let logits = Tensor::from_vec(logits, (2, 3, 1, 2), &Device::Cpu).unwrap();
        let (labels, confidence) = classify(&logits).unwrap();
        assert_eq!(labels, [2, 0, 0, 0]);
        let third = 1.0 / 3.0;
        for (found, expected) in confidence.iter().zip([0.665_240_94, third, third, 0.665_240_94]) {
            assert!((found - expected).abs() < 1e-6, "{confidence:?}");
        }
    }

    #[test]
    fn all_ignored_labels_give_zero_loss_and_zero_gradient() {
        let logits = Var::from_tensor(&Rng::stream(0, "l", &[]).normal_tensor(&[1, 3, 4, 4], &Device::Cpu).unwrap()).unwrap();
        let labels = Tensor::full(255u32, (1, 4, 4), &Device::Cpu).unwrap();
        let loss = cross_entropy(logits.as_tensor(), &labels, None).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
        let gradients = loss.backward().unwrap();
        let gradient = gradients.get(&logits).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(gradient, 0.0);
        assert_eq!(accuracy(&logits, &labels).unwrap(), 0.0);
    }
}
