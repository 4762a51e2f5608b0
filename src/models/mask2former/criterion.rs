//! The losses: each prediction's queries are matched with the targets, then classes and masks are compared.

use super::Prediction;
use super::matcher::{CostWeights, assign, costs};
use crate::base::{Error, Result};
use crate::labels::LabelMap;
use crate::nn::{cross_entropy, mask_losses, sample_masks, sample_points};
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::collections::BTreeSet;

/// The classes of one image and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// (H, W) of the masks: that of the network's input, padding included.
    pub size: (usize, usize),
    /// Train id of each mask.
    pub labels: Vec<u32>,
    /// T · H · W values 0 or 1, mask after mask. Pixels of no mask are negatives of all.
    pub masks: Vec<u8>,
}

impl Target {
    /// One mask for each class below `num_classes` that occurs, in ascending order. Ignored pixels belong to none.
    pub fn from_label_map(map: &LabelMap, num_classes: usize) -> Self {
        let present: BTreeSet<u8> = map.ids.iter().copied().filter(|id| usize::from(*id) < num_classes).collect();
        let masks = present.iter().flat_map(|class| map.ids.iter().map(move |id| u8::from(id == class))).collect();
        Self { size: (map.height, map.width), labels: present.into_iter().map(u32::from).collect(), masks }
    }

    /// The masks one by one.
    pub(super) fn planes(&self) -> Vec<&[u8]> {
        self.masks.chunks_exact((self.size.0 * self.size.1).max(1)).collect()
    }

    fn check(&self, size: (usize, usize), num_classes: usize) -> Result<()> {
        let fits = self.size == size && self.masks.len() == self.labels.len() * size.0 * size.1;
        if fits && self.labels.iter().all(|label| (*label as usize) < num_classes) {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "targets of one batch need masks of one size ({size:?}) and train ids below {num_classes}; found {:?}, {} values, {:?}",
            self.size,
            self.masks.len(),
            self.labels
        )))
    }
}

/// Weights and numbers of points.
#[derive(Debug, Clone, PartialEq)]
pub struct CriterionConfig {
    /// K, without "no object".
    pub num_classes: usize,
    /// Weight of the class in the loss and in the matching.
    pub class_weight: f64,
    /// Weight of the masks' cross-entropy.
    pub mask_weight: f64,
    /// Weight of the masks' Dice loss.
    pub dice_weight: f64,
    /// Weight of "no object" against the other classes.
    pub no_object: f32,
    /// Points per mask.
    pub points: usize,
    /// That many times `points` candidates are drawn for the uncertain points.
    pub oversample: f64,
    /// Share of the points that are the most uncertain candidates; the others are drawn anew.
    pub importance: f64,
}

impl Default for CriterionConfig {
    /// Of the published configurations.
    fn default() -> Self {
        Self {
            num_classes: 19,
            class_weight: 2.0,
            mask_weight: 5.0,
            dice_weight: 5.0,
            no_object: 0.1,
            points: 12_544,
            oversample: 3.0,
            importance: 0.75,
        }
    }
}

/// The losses of one prediction, not weighted. Scalars.
#[derive(Debug, Clone)]
pub struct LayerLosses {
    /// Cross-entropy of the classes.
    pub class: Tensor,
    /// Binary cross-entropy of the masks.
    pub mask: Tensor,
    /// Dice loss of the masks.
    pub dice: Tensor,
}

/// The losses of all predictions, in their order.
#[derive(Debug, Clone)]
pub struct Losses {
    /// One entry per prediction; the last is that of the answer.
    pub layers: Vec<LayerLosses>,
    weights: [f64; 3],
}

impl Losses {
    /// The weighted sum over all predictions: what is minimised. A scalar.
    pub fn total(&self) -> candle_core::Result<Tensor> {
        let mut terms = Vec::with_capacity(3 * self.layers.len());
        for layer in &self.layers {
            for (loss, weight) in [&layer.class, &layer.mask, &layer.dice].into_iter().zip(self.weights) {
                terms.push((loss * weight)?);
            }
        }
        Tensor::stack(&terms, 0)?.sum_all()
    }

    /// Names as the published logs have them (`loss_ce`, `loss_mask`, `loss_dice`; earlier layers with `_0`, `_1`, …) and
    /// values, not weighted.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let mut named = Vec::with_capacity(3 * self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let end = if i + 1 == self.layers.len() { String::new() } else { format!("_{i}") };
            for (name, loss) in [("loss_ce", &layer.class), ("loss_mask", &layer.mask), ("loss_dice", &layer.dice)] {
                named.push((format!("{name}{end}"), loss.clone()));
            }
        }
        named
    }
}

/// A query of an image and the target it answers for.
#[derive(Debug, Clone, Copy)]
struct Pair {
    image: usize,
    query: usize,
    target: usize,
}

/// Computes the losses.
///
/// # Source
/// Mask2Former, sections 3.2 and 3.3: set prediction with losses on sampled points, every layer supervised.
#[derive(Debug, Clone)]
pub struct Criterion {
    config: CriterionConfig,
}

impl Criterion {
    /// # Errors
    /// No points, or shares out of range.
    pub fn new(config: CriterionConfig) -> Result<Self> {
        if config.points == 0 || config.oversample < 1.0 || !(0.0..=1.0).contains(&config.importance) {
            return Err(Error::Usage(format!(
                "a criterion needs points, `oversample` at least 1 and `importance` in 0…1, found {}, {}, {}",
                config.points, config.oversample, config.importance
            )));
        }
        Ok(Self { config })
    }

    /// The losses of all `predictions` against the targets of the images.
    ///
    /// # Randomness
    /// `draw(n)` gives n uniform numbers in 0…1. It is asked for the last prediction first, then for the others in order: the
    /// points of the matching of every image (2·P each); then, if there are pairs, the candidates of all pairs
    /// (2·P·`oversample` each) and their random points. That is the order of the published code.
    ///
    /// # Errors
    /// Targets that do not fit, and predictions that are no numbers.
    pub fn losses(
        &self,
        predictions: &[Prediction],
        targets: &[Target],
        draw: &mut dyn FnMut(usize) -> Vec<f32>,
    ) -> Result<Losses> {
        let size = targets.first().map_or((0, 0), |target| target.size);
        targets.iter().try_for_each(|target| target.check(size, self.config.num_classes))?;
        if predictions.iter().any(|prediction| prediction.logits.dims().first() != Some(&targets.len())) {
            return Err(Error::Usage(format!("{} targets for predictions of another number of images", targets.len())));
        }
        let count = targets.iter().map(|target| target.labels.len()).sum::<usize>().max(1) as f64;
        let mut layers = Vec::with_capacity(predictions.len());
        if let Some((last, others)) = predictions.split_last() {
            let answer = self.layer(last, targets, count, draw)?;
            for prediction in others {
                layers.push(self.layer(prediction, targets, count, draw)?);
            }
            layers.push(answer);
        }
        let CriterionConfig { class_weight, mask_weight, dice_weight, .. } = self.config;
        Ok(Losses { layers, weights: [class_weight, mask_weight, dice_weight] })
    }

    fn layer(
        &self,
        prediction: &Prediction,
        targets: &[Target],
        count: f64,
        draw: &mut dyn FnMut(usize) -> Vec<f32>,
    ) -> Result<LayerLosses> {
        let pairs = self.matching(prediction, targets, draw)?;
        let class = self.class_loss(&prediction.logits, targets, &pairs)?;
        if pairs.is_empty() {
            let zero = class.zeros_like()?;
            return Ok(LayerLosses { class, mask: zero.clone(), dice: zero });
        }
        let sums = (self.mask_sums(&prediction.masks, targets, &pairs, draw)? / count)?; // (2)
        Ok(LayerLosses { class, mask: sums.get(0)?, dice: sums.get(1)? })
    }

    fn matching(
        &self,
        prediction: &Prediction,
        targets: &[Target],
        draw: &mut dyn FnMut(usize) -> Vec<f32>,
    ) -> Result<Vec<Pair>> {
        let CriterionConfig { class_weight: class, mask_weight: mask, dice_weight: dice, points, .. } = self.config;
        let mut pairs = Vec::new();
        for (image, target) in targets.iter().enumerate() {
            let places = draw(2 * points);
            if target.labels.is_empty() {
                continue;
            }
            let (logits, masks) = (prediction.logits.get(image)?, prediction.masks.get(image)?);
            let costs = costs(&logits, &masks, target, places, CostWeights { class, mask, dice })?;
            let found = assign(&costs, logits.dim(0)?, target.labels.len())?;
            pairs.extend(found.into_iter().map(|(query, target)| Pair { image, query, target }));
        }
        Ok(pairs)
    }

    /// Weighted cross-entropy of all queries, "no object" for those without a target; divided by the sum of weights.
    fn class_loss(&self, logits: &Tensor, targets: &[Target], pairs: &[Pair]) -> Result<Tensor> {
        let (batch, queries, _) = logits.dims3()?;
        let mut labels = vec![self.config.num_classes as u32; batch * queries];
        let mut weights = vec![self.config.no_object; batch * queries];
        for pair in pairs {
            labels[pair.image * queries + pair.query] = targets[pair.image].labels[pair.target];
            weights[pair.image * queries + pair.query] = 1.0;
        }
        let share = weights.len() as f64 / weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
        let labels = Tensor::from_vec(labels, (batch, 1, queries), logits.device())?;
        let weights = Tensor::from_vec(weights, (batch, 1, queries), logits.device())?;
        let logits = logits.transpose(1, 2)?.unsqueeze(2)?; // (B, K + 1, 1, Q)
        Ok((cross_entropy(&logits, &labels, Some(&weights))? * share)?)
    }

    /// Cross-entropy and Dice loss, each summed over the pairs. # Shapes: `masks` (B, Q, h, w) → (2)
    fn mask_sums(
        &self,
        masks: &Tensor,
        targets: &[Target],
        pairs: &[Pair],
        draw: &mut dyn FnMut(usize) -> Vec<f32>,
    ) -> Result<Tensor> {
        let queries = masks.dim(1)?;
        let ids: Vec<u32> = pairs.iter().map(|pair| (pair.image * queries + pair.query) as u32).collect();
        let ids = Tensor::from_vec(ids, pairs.len(), masks.device())?;
        let matched = masks.flatten_to(1)?.index_select(&ids, 0)?; // (M, h, w)
        let points = self.points(&matched, draw)?;
        let (size, count) = (targets[pairs[0].image].size, self.config.points);
        let planes: Vec<Vec<&[u8]>> = targets.iter().map(Target::planes).collect();
        let wanted: Vec<&[u8]> = pairs.iter().map(|pair| planes[pair.image][pair.target]).collect();
        let wanted = sample_masks(&wanted, size, &points, count)?;
        Ok(mask_losses(&sample_points(&matched, points, count)?, wanted)?.sum(0)?)
    }

    /// Points of each matched mask: the most uncertain of many candidates (smallest absolute logit), then random ones.
    ///
    /// # Shapes
    /// `masks` (M, h, w) → M · P pairs (x, y)
    fn points(&self, masks: &Tensor, draw: &mut dyn FnMut(usize) -> Vec<f32>) -> Result<Vec<f32>> {
        let CriterionConfig { points, oversample, importance, .. } = self.config;
        let count = masks.dim(0)?;
        let candidates = (points as f64 * oversample) as usize;
        let uncertain = (points as f64 * importance) as usize;
        let drawn = draw(2 * candidates * count);
        let logits = sample_points(&masks.detach(), drawn.clone(), candidates)?.to_dtype(DType::F32)?;
        let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let random = draw(2 * (points - uncertain) * count);
        let of_mask = |i: usize| {
            let (own, at) = (&logits[i * candidates..(i + 1) * candidates], &drawn[2 * i * candidates..]);
            let mut order: Vec<usize> = (0..candidates).collect();
            if uncertain < candidates {
                order.select_nth_unstable_by(uncertain, |a, b| own[*a].abs().total_cmp(&own[*b].abs()).then(a.cmp(b)));
            }
            let chosen = order[..uncertain].iter().flat_map(|c| [at[2 * c], at[2 * c + 1]]);
            let others = &random[2 * i * (points - uncertain)..2 * (i + 1) * (points - uncertain)];
            chosen.chain(others.iter().copied()).collect::<Vec<f32>>()
        };
        Ok((0..count).into_par_iter().flat_map_iter(of_mask).collect())
    }
}
