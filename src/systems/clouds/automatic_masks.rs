//! Masks of everything in a picture: a grid of points is asked for, what is doubtful or there already is dropped.
//!
//! # Source
//! Kirillov et al., "Segment Anything", 2023, section 5 and appendix B; names and defaults are those of the published generator.

use super::run_lengths::RunLengths;
use super::sam_masks::{EncodedImage, PicturePrompts, Point};
use crate::base::{Error, Result};
use crate::io::images::RgbImage;
use crate::labels::{IGNORE, touching};
use crate::models::sam::{MASK_THRESHOLD, Sam};
use crate::nn::Pass;
use serde::{Deserialize, Serialize};

/// Points asked for at once; bounds memory and never changes a result.
const BATCH: usize = 256;
/// Masks that end this many pixels or less from the border of a crop are cut off by it.
const NEAR: f32 = 20.0;

/// How masks are made and chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutomaticMasksConfig {
    /// Points along each side of the grid.
    pub points_per_side: usize,
    /// Masks with a lower predicted IoU are dropped; 0: none.
    pub pred_iou_thresh: f64,
    /// Masks that change more with the threshold of their logits are dropped; 0: none.
    pub stability_score_thresh: f64,
    /// How far that threshold is moved up and down.
    pub stability_score_offset: f64,
    /// Of masks whose boxes overlap more than this (IoU), the one of greatest predicted IoU stays.
    pub box_nms_thresh: f64,
    /// Rounds with crops of the picture, of 4, 16, … crops.
    pub crop_n_layers: usize,
    /// The same as `box_nms_thresh` between crops; masks of smaller crops stay.
    pub crop_nms_thresh: f64,
    /// Part of the picture's short side that crops overlap by.
    pub crop_overlap_ratio: f64,
    /// The grid of each round with crops has this many times fewer points along a side.
    pub crop_n_points_downscale_factor: usize,
    /// Holes and islands of fewer pixels are removed; 0: none.
    pub min_mask_region_area: usize,
}

impl Default for AutomaticMasksConfig {
    fn default() -> Self {
        Self {
            points_per_side: 32,
            pred_iou_thresh: 0.88,
            stability_score_thresh: 0.95,
            stability_score_offset: 1.0,
            box_nms_thresh: 0.7,
            crop_n_layers: 0,
            crop_nms_thresh: 0.7,
            crop_overlap_ratio: 512.0 / 1500.0,
            crop_n_points_downscale_factor: 1,
            min_mask_region_area: 0,
        }
    }
}

impl AutomaticMasksConfig {
    /// # Errors
    /// Values that nothing can be done with.
    pub fn validate(&self) -> Result<()> {
        let last = self.crop_n_points_downscale_factor.checked_pow(self.crop_n_layers.min(8) as u32).unwrap_or(0);
        if self.points_per_side == 0 || last == 0 || self.points_per_side / last == 0 {
            return Err(Error::Usage("no points in the grid\n  next: give `points_per_side` a larger value".into()));
        }
        if self.crop_n_layers > 8 || !(0.0..1.0).contains(&self.crop_overlap_ratio) {
            return Err(Error::Usage("expected `crop_n_layers` of at most 8, `crop_overlap_ratio` from 0 to below 1".into()));
        }
        Ok(())
    }
}

/// A mask with what is known of it, in the layout of the published generator.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Annotation {
    /// The mask.
    pub segmentation: RunLengths,
    /// Its number of pixels.
    pub area: usize,
    /// Left, top, and the distances to the last column and row.
    pub bbox: [usize; 4],
    /// What the model expects its IoU to be; none without a model.
    pub predicted_iou: Option<f32>,
    /// The point (x, y) it comes from; none without a model.
    pub point_coords: Vec<[f64; 2]>,
    /// IoU of the masks by a higher and a lower threshold; none without a model.
    pub stability_score: Option<f32>,
    /// The crop it comes from: left, top, width, height.
    pub crop_box: [usize; 4],
}

impl Annotation {
    /// A mask that no model made.
    pub fn plain(segmentation: RunLengths) -> Self {
        let [height, width] = segmentation.size;
        Self {
            area: segmentation.area(),
            bbox: extent(segmentation.corners()),
            segmentation,
            predicted_iou: None,
            point_coords: Vec::new(),
            stability_score: None,
            crop_box: [0, 0, width, height],
        }
    }
}

fn extent([left, top, right, bottom]: [usize; 4]) -> [usize; 4] {
    [left, top, right - left, bottom - top]
}

/// A mask that passed the filters.
struct Candidate {
    mask: RunLengths,
    /// Left, top, right, bottom.
    corners: [usize; 4],
    quality: f32,
    stability: f32,
    point: [f64; 2],
    crop: Crop,
}

/// A part of a picture: left, top, right, bottom (exclusive), and the round it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crop {
    corners: [usize; 4],
    layer: usize,
}

impl Crop {
    fn area(&self) -> f32 {
        let [left, top, right, bottom] = self.corners;
        ((right - left) * (bottom - top)) as f32
    }
}

/// Masks of everything in `image`, in the order of their predicted IoU, crop by crop, the whole picture first; with several crops
/// in the order of the crops from the smallest to the largest.
///
/// # Errors
/// Settings without a point.
pub fn automatic_masks(sam: &Sam, image: &RgbImage, config: &AutomaticMasksConfig, pass: &Pass) -> Result<Vec<Annotation>> {
    config.validate()?;
    let crops = crops((image.height, image.width), config);
    let mut found = Vec::new();
    for crop in &crops {
        found.extend(of_crop(sam, image, *crop, config, pass)?);
    }
    if crops.len() > 1 {
        let scores: Vec<f32> = found.iter().map(|one: &Candidate| 1.0 / one.crop.area()).collect();
        found = suppressed(found, &scores, config.crop_nms_thresh);
    }
    if config.min_mask_region_area > 0 {
        found = without_small_regions(found, config);
    }
    let finish = |one: Candidate| {
        let [left, top, right, bottom] = one.crop.corners;
        Annotation {
            area: one.mask.area(),
            segmentation: one.mask,
            bbox: extent(one.corners),
            predicted_iou: Some(one.quality),
            point_coords: vec![one.point],
            stability_score: Some(one.stability),
            crop_box: [left, top, right - left, bottom - top],
        }
    };
    Ok(found.into_iter().map(finish).collect())
}

/// The whole picture, then each round of overlapping crops, column by column.
fn crops((height, width): (usize, usize), config: &AutomaticMasksConfig) -> Vec<Crop> {
    let mut crops = vec![Crop { corners: [0, 0, width, height], layer: 0 }];
    for layer in 1..=config.crop_n_layers {
        let sides = 1usize << layer;
        let overlap = (config.crop_overlap_ratio * height.min(width) as f64 * (2.0 / sides as f64)) as usize;
        let side = |length: usize| (overlap * (sides - 1) + length).div_ceil(sides);
        let (tall, wide) = (side(height), side(width));
        for (i, j) in (0..sides * sides).map(|at| (at / sides, at % sides)) {
            let (left, top) = ((wide - overlap) * i, (tall - overlap) * j);
            // Rounding up may push the last crops of a tiny picture out of it.
            if left < width && top < height {
                crops.push(Crop { corners: [left, top, (left + wide).min(width), (top + tall).min(height)], layer });
            }
        }
    }
    crops
}

fn cut(image: &RgbImage, [left, top, right, bottom]: [usize; 4]) -> RgbImage {
    let row = |y: usize| &image.pixels[3 * (y * image.width + left)..3 * (y * image.width + right)];
    RgbImage { height: bottom - top, width: right - left, pixels: (top..bottom).flat_map(row).copied().collect() }
}

/// The candidates of one crop, in pixels of the picture, duplicates removed.
fn of_crop(sam: &Sam, image: &RgbImage, crop: Crop, config: &AutomaticMasksConfig, pass: &Pass) -> Result<Vec<Candidate>> {
    let part = cut(image, crop.corners);
    let encoded = EncodedImage::new(sam, &part, pass)?;
    let sides = config.points_per_side / config.crop_n_points_downscale_factor.pow(crop.layer as u32);
    let step = |i: usize, length: usize| (i as f64 + 0.5) / sides as f64 * length as f64;
    let places: Vec<[f64; 2]> = (0..sides * sides).map(|i| [step(i % sides, part.width), step(i / sides, part.height)]).collect();
    let mut found = Vec::new();
    for batch in places.chunks(BATCH) {
        let points = batch.iter().map(|[x, y]| vec![Point { x: *x, y: *y, inside: true }]).collect();
        let (logits, qualities) = encoded.ask(&PicturePrompts { points, boxes: Vec::new() }, true)?;
        for (i, (place, qualities)) in batch.iter().zip(qualities.to_vec2::<f32>()?).enumerate() {
            for (answer, quality) in qualities.into_iter().enumerate() {
                if config.pred_iou_thresh > 0.0 && quality <= config.pred_iou_thresh as f32 {
                    continue;
                }
                let logits = encoded.logits(&logits.narrow(0, i, 1)?.narrow(1, answer, 1)?)?;
                let [x, y] = *place;
                let point = [x + crop.corners[0] as f64, y + crop.corners[1] as f64];
                found.extend(candidate(&logits, quality, point, crop, (image.height, image.width), config));
            }
        }
    }
    let scores: Vec<f32> = found.iter().map(|one| one.quality).collect();
    Ok(suppressed(found, &scores, config.box_nms_thresh))
}

/// The candidate that the logits of a crop make, if it is stable and not cut off.
fn candidate(
    logits: &[f32],
    quality: f32,
    point: [f64; 2],
    crop: Crop,
    size: (usize, usize),
    config: &AutomaticMasksConfig,
) -> Option<Candidate> {
    let above = |threshold: f32| logits.iter().filter(|logit| **logit > threshold).count() as f32;
    let offset = config.stability_score_offset as f32;
    let stability = above(MASK_THRESHOLD + offset) / above(MASK_THRESHOLD - offset);
    // A mask without any pixel has no score, and no place either.
    if config.stability_score_thresh > 0.0 && (stability.is_nan() || stability < config.stability_score_thresh as f32) {
        return None;
    }
    let [left, top, right, bottom] = crop.corners;
    let inner = RunLengths::of_mask(
        &logits.iter().map(|logit| *logit > MASK_THRESHOLD).collect::<Vec<_>>(),
        (bottom - top, right - left),
    );
    let found = inner.corners();
    let corners = [found[0] + left, found[1] + top, found[2] + left, found[3] + top];
    let whole = [0, 0, size.1, size.0];
    let near = |a: usize, b: usize| (a as f32 - b as f32).abs() <= NEAR;
    if (0..4).any(|i| near(corners[i], crop.corners[i]) && !near(corners[i], whole[i])) {
        return None;
    }
    let mask = if crop.corners == whole { inner } else { placed(&inner, crop, size) };
    Some(Candidate { mask, corners, quality, stability, point, crop })
}

/// The mask of a crop as one of the picture.
fn placed(inner: &RunLengths, crop: Crop, size: (usize, usize)) -> RunLengths {
    let [left, top, right, bottom] = crop.corners;
    let mut mask = vec![false; size.0 * size.1];
    for (y, row) in (top..bottom).zip(inner.mask().chunks(right - left)) {
        mask[y * size.1 + left..y * size.1 + right].copy_from_slice(row);
    }
    RunLengths::of_mask(&mask, size)
}

fn suppressed(found: Vec<Candidate>, scores: &[f32], threshold: f64) -> Vec<Candidate> {
    let boxes: Vec<[f32; 4]> = found.iter().map(|one| one.corners.map(|value| value as f32)).collect();
    let mut found: Vec<Option<Candidate>> = found.into_iter().map(Some).collect();
    non_maximum_suppression(&boxes, scores, threshold).into_iter().filter_map(|at| found[at].take()).collect()
}

/// Numbers of the boxes (left, top, right, bottom) that stay, best first, of equals in their order: a box goes when it overlaps a
/// better one that stays by more than `threshold` (IoU).
pub fn non_maximum_suppression(boxes: &[[f32; 4]], scores: &[f32], threshold: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let area = |[left, top, right, bottom]: [f32; 4]| (right - left) * (bottom - top);
    let overlaps = |a: [f32; 4], b: [f32; 4]| {
        let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
        let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
        // Boxes without area overlap nothing: 0/0 is not above any threshold.
        f64::from(width * height / (area(a) + area(b) - width * height)) > threshold
    };
    let mut kept: Vec<usize> = Vec::new();
    for at in order {
        if !kept.iter().any(|better| overlaps(boxes[*better], boxes[at])) {
            kept.push(at);
        }
    }
    kept
}

/// Fills small holes and removes small islands, then duplicates once more: untouched masks stay before touched ones.
fn without_small_regions(mut found: Vec<Candidate>, config: &AutomaticMasksConfig) -> Vec<Candidate> {
    let mut scores = Vec::with_capacity(found.len());
    for one in &mut found {
        let [height, width] = one.mask.size;
        let cleaned = cleaned(one.mask.mask(), width, config.min_mask_region_area);
        scores.push(if cleaned.is_none() { 1.0 } else { 0.0 });
        if let Some(mask) = cleaned {
            one.mask = RunLengths::of_mask(&mask, (height, width));
            one.corners = one.mask.corners();
        }
    }
    suppressed(found, &scores, config.box_nms_thresh.max(config.crop_nms_thresh))
}

/// A mask without holes and islands of fewer than `least` pixels (which touch at sides or corners), if it has such; of islands
/// that are all small the largest stays.
fn cleaned(mut mask: Vec<bool>, width: usize, least: usize) -> Option<Vec<bool>> {
    let outside: Vec<bool> = mask.iter().map(|there| !there).collect();
    let holes: Vec<_> = touching(&outside, width).into_iter().filter(|hole| hole.len() < least).collect();
    holes.iter().flatten().for_each(|at| mask[*at] = true);
    let islands = touching(&mask, width);
    let largest = islands.iter().map(Vec::len).max().unwrap_or(0);
    let first_largest = islands.iter().position(|island| island.len() == largest);
    let small: Vec<_> = (0..islands.len()).filter(|at| islands[*at].len() < least).collect();
    for at in small.iter().filter(|at| Some(**at) != first_largest) {
        islands[*at].iter().for_each(|at| mask[*at] = false);
    }
    (!holes.is_empty() || !small.is_empty()).then_some(mask)
}

/// A number for each pixel: that of the smallest of the first 255 masks (by area, largest first) that covers it, [`IGNORE`] where
/// there is none. For pictures of masks.
pub fn stacked(masks: &[Annotation], size: (usize, usize)) -> Vec<u8> {
    let mut order: Vec<&Annotation> = masks.iter().collect();
    order.sort_by_key(|one| std::cmp::Reverse(one.area));
    let mut numbers = vec![IGNORE; size.0 * size.1];
    for (number, one) in order.iter().enumerate() {
        let number = (number % usize::from(IGNORE)) as u8;
        one.segmentation.mask().iter().zip(&mut numbers).filter(|(there, _)| **there).for_each(|(_, at)| *at = number);
    }
    numbers
}
