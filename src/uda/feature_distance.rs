//! Feature distance: on thing classes, the student's encoder stays near the one trained on ImageNet.

use super::{Context, LossTerm, Losses, Stage};
use crate::base::Result;
use crate::models::segmenter::Segmenter;
use crate::nn::Pass;
use candle_core::{Result as TensorResult, Tensor};
use serde::{Deserialize, Serialize};

/// Settings of [`FeatureDistance`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeatureDistanceConfig {
    /// Factor in the objective.
    pub weight: f64,
    /// Train ids of countable objects. The default names Cityscapes' ten.
    pub thing_classes: Vec<u32>,
    /// A feature cell takes part when one thing class covers at least this share of it.
    pub min_ratio: f32,
}

impl Default for FeatureDistanceConfig {
    fn default() -> Self {
        Self { weight: 0.005, thing_classes: vec![6, 7, 11, 12, 13, 14, 15, 16, 17, 18], min_ratio: 0.75 }
    }
}

/// Mean Euclidean distance between the student's last encoder output and that of a frozen ImageNet encoder, over the
/// cells of the source images that show a thing.
///
/// # Source
/// DAFormer, section 3.3, equations 7 to 10. A batch without things adds nothing (the published code logs NaN).
pub struct FeatureDistance<S> {
    imagenet: S,
    config: FeatureDistanceConfig,
}

impl<S: Segmenter> FeatureDistance<S> {
    /// `imagenet` has the student's architecture and must have been built frozen; only its encoder is used.
    pub fn new(imagenet: S, config: FeatureDistanceConfig) -> Self {
        Self { imagenet, config }
    }
}

impl<S: Segmenter> LossTerm<S> for FeatureDistance<S> {
    fn name(&self) -> &str {
        "src"
    }

    fn weight(&self) -> f64 {
        self.config.weight
    }

    fn stage(&self) -> Stage {
        Stage::Source
    }

    fn compute(&self, context: &Context<'_, S>) -> Result<Losses> {
        let mut losses = Losses::default();
        let Some(features) = context.features.last() else { return Ok(losses) };
        let (_, _, rows, columns) = features.dims4()?;
        let cells = thing_cells(&context.batch.labels, (rows, columns), &self.config)?;
        let chosen = cells.iter().filter(|&&cell| cell).count();
        // The same mean over the cells of all shares and processes.
        let count = context.share.group().mean_of(vec![chosen as f64])?[0];
        if count > 0.0 {
            let frozen = self.imagenet.features(&context.batch.images, &Pass::eval())?;
            if let Some(reference) = frozen.last() {
                losses.add("loss_imnet_feat_dist", distance(features, &reference.detach(), &cells, count)?);
            }
        }
        Ok(losses)
    }
}

/// Sum over the chosen cells of the Euclidean distance over channels, divided by `count`, their number.
///
/// # Shapes
/// `features`, `reference` (B, C, h, w), `cells` B·h·w → scalar
pub fn distance(features: &Tensor, reference: &Tensor, cells: &[bool], count: f64) -> TensorResult<Tensor> {
    let (batch, _, rows, columns) = features.dims4()?;
    let squares = (features - reference)?.sqr()?.sum(1)?; // (B, h, w)
    // Where both agree the root has no derivative; PyTorch's norm takes 0 there, and so do we.
    let mask = Tensor::from_iter(cells.iter().map(|&c| u8::from(c)), features.device())?.reshape((batch, rows, columns))?;
    let mask = (mask * squares.gt(0f32)?)?;
    let roots = mask.where_cond(&squares, &squares.ones_like()?)?.sqrt()?;
    let chosen = mask.where_cond(&roots, &roots.zeros_like()?)?;
    chosen.sum_all()? / count
}

/// True for the cells of the feature grid in which the most frequent label is a thing and covers at least `min_ratio`.
///
/// # Shapes
/// `labels` (B, H, W) u32 → B·h·w, row-major
fn thing_cells(labels: &Tensor, grid: (usize, usize), config: &FeatureDistanceConfig) -> TensorResult<Vec<bool>> {
    let (_, height, width) = labels.dims3()?;
    let ids: Vec<u32> = labels.flatten_all()?.to_vec1()?;
    let is_thing = |label: Option<u32>| label.is_some_and(|label| config.thing_classes.contains(&label));
    let maps = ids.chunks(height * width);
    let cells = maps.flat_map(|map| downscale_labels(map, (height, width), grid, config.min_ratio));
    Ok(cells.map(is_thing).collect())
}

/// The most frequent label of every cell where it covers at least `min_ratio`, else `None`. Ignored pixels (255) count
/// as one more label, which never wins over an equal one. Cells are `size / grid` pixels, rounded outwards.
///
/// # Shapes
/// `map` (H, W) → h·w, row-major
pub fn downscale_labels(
    map: &[u32],
    size: (usize, usize),
    grid: (usize, usize),
    min_ratio: f32,
) -> impl Iterator<Item = Option<u32>> {
    let span = |i: usize, pixels: usize, cells: usize| i * pixels / cells..((i + 1) * pixels).div_ceil(cells);
    (0..grid.0 * grid.1).map(move |cell| {
        let (rows, columns) = (span(cell / grid.1, size.0, grid.0), span(cell % grid.1, size.1, grid.1));
        let area = rows.len() * columns.len();
        let mut counts = [0usize; 256];
        for y in rows {
            map[y * size.1..][columns.clone()].iter().for_each(|&label| counts[label.min(255) as usize] += 1);
        }
        // The last maximum of the reversed order is the lowest label.
        let (label, count) = counts.iter().enumerate().rev().max_by_key(|(_, count)| **count)?;
        (label != 255 && *count as f32 / area as f32 >= min_ratio).then_some(label as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn labels_shrink_by_majority() {
        let map = [[13, 13, 255, 255], [13, 7, 255, 0], [11, 11, 0, 0], [11, 12, 0, 0]].concat();
        let small: Vec<_> = downscale_labels(&map, (4, 4), (2, 2), 0.75).collect();
        assert_eq!(small, [Some(13), None, Some(11), Some(0)]);
    }

    #[test]
    fn a_tie_goes_to_the_lower_class_and_ignored_pixels_never_win_one() {
        let shrink = |map: [u32; 4]| downscale_labels(&map, (2, 2), (1, 1), 0.5).next().unwrap();
        assert_eq!(shrink([7, 7, 3, 3]), Some(3));
        assert_eq!(shrink([255, 255, 3, 3]), Some(3));
        assert_eq!(shrink([255, 255, 255, 3]), None);
    }

    #[test]
    fn sizes_need_not_divide() {
        let map = vec![4u32; 5 * 7];
        assert!(downscale_labels(&map, (5, 7), (2, 3), 0.75).all(|label| label == Some(4)));
    }

    #[test]
    fn equal_features_have_distance_zero_and_no_nan_in_the_gradient() {
        let same = Tensor::ones((1, 3, 1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let features = Var::from_tensor(&same).unwrap();
        let loss = distance(features.as_tensor(), &same, &[true, false], 1.0).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
        let gradients = loss.backward().unwrap();
        let gradient: Vec<f32> = gradients.get(&features).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(gradient.iter().all(|g| *g == 0.0), "{gradient:?}");
    }
}
