//! Pseudo-labels with the outlines of Segment Anything: points on the teacher's regions in, masks with clean borders out.

use super::automatic_masks::{Annotation, AutomaticMasksConfig};
use crate::base::{Error, Result, Rng};
use crate::io::images::RgbImage;
use crate::labels::{IGNORE, LabelMap, components, erode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Which pixels of a region may become points.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// All.
    #[default]
    Random,
    /// Those nearer than 10 pixels to the centroid of its largest piece; erosion can break a region into pieces.
    Center,
    /// Those of the piece whose first pixel, row by row, is the last. The published name promises another one.
    LargestComponent,
}

/// Pixels that [`Selection::Center`] reaches around a centroid.
const CENTER_RADIUS: f64 = 10.0;

impl Selection {
    /// Which of the pixels `left` of a region, row by row in a picture of `width` with `count` pixels, may become points.
    fn candidates(self, left: Vec<usize>, width: usize, count: usize) -> Vec<usize> {
        if self == Self::Random {
            return left;
        }
        let mut alone = vec![false; count];
        left.iter().for_each(|at| alone[*at] = true);
        let mut pieces = components(&alone, width);
        if self == Self::LargestComponent {
            return pieces.pop().unwrap_or_default();
        }
        // Of equals the first.
        let Some(largest) = pieces.into_iter().rev().max_by_key(Vec::len) else { return Vec::new() };
        let place = |at: usize| [(at % width) as f64, (at / width) as f64];
        let center = [0, 1].map(|axis| largest.iter().map(|at| place(*at)[axis]).sum::<f64>() / largest.len() as f64);
        let near = |at: &usize| (place(*at)[0] - center[0]).hypot(place(*at)[1] - center[1]) < CENTER_RADIUS;
        largest.into_iter().filter(near).collect()
    }

    /// Fewest candidates that `points` are drawn from: the published code wants one more of a choice.
    fn least(self, points: usize) -> usize {
        if self == Self::Random { points } else { points + 1 }
    }
}

/// How a pseudo-label is refined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefineConfig {
    /// Regions must have more pixels than this.
    pub min_area: usize,
    /// Side of the square that regions are eroded with before points are drawn; 0: they are not.
    pub erosion: usize,
    /// Points on each region.
    pub points: usize,
    /// Which of its pixels may become points.
    pub selection: Selection,
    /// Whether pixels in several masks are taken out of all of them.
    pub remove_intersections: bool,
    /// Whether the masks are asked for again, with the first answers as prompts.
    pub second_pass: bool,
}

impl RefineConfig {
    /// # Errors
    /// Values that nothing can be done with.
    pub fn validate(&self) -> Result<()> {
        if self.points == 0 {
            return Err(Error::Usage("`points` is 0: no region could be asked for\n  next: give at least 1".into()));
        }
        if self.erosion > 0 && self.erosion.is_multiple_of(2) {
            let next = "give an odd number of pixels, or 0 for none";
            return Err(Error::Usage(format!(
                "`erosion` is {}: a square has a middle only if its side is odd\n  next: {next}",
                self.erosion
            )));
        }
        Ok(())
    }
}

impl Default for RefineConfig {
    fn default() -> Self {
        Self {
            min_area: 5000,
            erosion: 0,
            points: 5,
            selection: Selection::Random,
            remove_intersections: true,
            second_pass: false,
        }
    }
}

/// Points (x, y) on one region of a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionPrompt {
    /// Train id of the region.
    pub class: u8,
    /// Different pixels of it.
    pub points: Vec<(usize, usize)>,
    /// All its pixels, row by row, before erosion.
    pub pixels: Vec<usize>,
}

/// Draws the outlines of what is in a picture.
pub trait MaskProposer {
    /// For people: which one it is.
    fn name(&self) -> String;

    /// One mask (row-major, pixels of the picture) for each prompt; all prompts have the same number of points. With
    /// `second_pass` the answers are asked for again with the first ones as prompts, where the proposer can.
    fn masks(&self, image: &RgbImage, prompts: &[RegionPrompt], second_pass: bool) -> Result<Vec<Vec<bool>>>;

    /// Masks of everything in a picture, without any prompt.
    fn everything(&self, image: &RgbImage, config: &AutomaticMasksConfig) -> Result<Vec<Annotation>>;
}

/// One mask for each class (row-major); pixels in none of them belong to no class.
pub type ClassMasks = BTreeMap<u8, Vec<bool>>;

/// The masks of a pseudo-label as it is.
pub fn class_masks(label: &LabelMap) -> ClassMasks {
    let classes: BTreeSet<u8> = label.ids.iter().copied().filter(|id| *id != IGNORE).collect();
    classes.into_iter().map(|class| (class, label.ids.iter().map(|id| *id == class).collect())).collect()
}

/// Points on every region that is large enough: classes in ascending order, the regions of each row by row.
///
/// # Source
/// CLOUDS, `SELECTION_MODE`: pixels of a region drawn without replacement; regions with too few pixels left give no prompt.
///
/// # Randomness
/// `points` draws for each prompt, in the order of the result.
pub fn region_prompts(label: &LabelMap, config: &RefineConfig, rng: &mut Rng) -> Vec<RegionPrompt> {
    let mut prompts = Vec::new();
    for (class, mask) in class_masks(label) {
        for mut region in components(&mask, label.width) {
            if region.len() <= config.min_area {
                continue;
            }
            let pixels = region.clone();
            if config.erosion > 1 {
                let mut alone = vec![false; mask.len()];
                region.iter().for_each(|at| alone[*at] = true);
                let left = erode(&alone, label.width, config.erosion);
                region.retain(|at| left[*at]);
            }
            region = config.selection.candidates(region, label.width, mask.len());
            if config.points == 0 || region.len() < config.selection.least(config.points) {
                continue;
            }
            // The first steps of a shuffle draw without replacement.
            for i in 0..config.points {
                let other = i + rng.below(region.len() - i);
                region.swap(i, other);
            }
            let points = region[..config.points].iter().map(|at| (at % label.width, at / label.width)).collect();
            prompts.push(RegionPrompt { class, points, pixels });
        }
    }
    prompts
}

/// One mask for each class from one for each prompt.
///
/// # Source
/// CLOUDS, section 3.3: pixels claimed by several masks, also of one class, go to none (`RM_INTERSECTION`); then the union of each
/// class.
pub fn union(prompts: &[RegionPrompt], mut masks: Vec<Vec<bool>>, remove_intersections: bool) -> ClassMasks {
    if remove_intersections {
        let pixels = masks.first().map_or(0, Vec::len);
        for at in 0..pixels {
            if masks.iter().filter(|mask| mask[at]).count() > 1 {
                masks.iter_mut().for_each(|mask| mask[at] = false);
            }
        }
    }
    let mut united = ClassMasks::new();
    for (prompt, mask) in prompts.iter().zip(masks) {
        match united.get_mut(&prompt.class) {
            Some(whole) => whole.iter_mut().zip(mask).for_each(|(whole, there)| *whole |= there),
            None => drop(united.insert(prompt.class, mask)),
        }
    }
    united
}

/// The refined masks of a pseudo-label. Classes without a region that is large enough disappear; a pseudo-label without any such
/// region stays as it is.
///
/// # Randomness
/// As [`region_prompts`].
pub fn refine(
    proposer: &dyn MaskProposer,
    image: &RgbImage,
    label: &LabelMap,
    config: &RefineConfig,
    rng: &mut Rng,
) -> Result<ClassMasks> {
    let prompts = region_prompts(label, config, rng);
    if prompts.is_empty() {
        return Ok(class_masks(label));
    }
    let masks = proposer.masks(image, &prompts, config.second_pass)?;
    Ok(union(&prompts, masks, config.remove_intersections))
}

/// The label map of refined masks. Where masks overlap, the class that `teacher` sees wins if it is one of theirs, else the first;
/// pixels of no mask become [`IGNORE`], or stay as `teacher` sees them with `keep`.
pub fn label_of(masks: &ClassMasks, teacher: &LabelMap, keep: bool) -> LabelMap {
    let mut ids = if keep { teacher.ids.clone() } else { vec![IGNORE; teacher.ids.len()] };
    for (class, mask) in masks.iter().rev() {
        ids.iter_mut().zip(mask).filter(|(_, there)| **there).for_each(|(id, _)| *id = *class);
    }
    for (at, own) in teacher.ids.iter().enumerate() {
        if masks.get(own).is_some_and(|mask| mask[at]) {
            ids[at] = *own;
        }
    }
    LabelMap { ids, ..*teacher }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 columns: class 1 in the upper 50 rows, class 0 in the 50 below but for a square of class 2, 10 ignored pixels.
    fn label() -> LabelMap {
        let id = |at: usize| match (at / 100, at % 100) {
            (99, x) if x >= 90 => IGNORE,
            (0..=49, _) => 1,
            (60..=69, 10..=19) => 2,
            _ => 0,
        };
        LabelMap { height: 100, width: 100, ids: (0..10_000).map(id).collect() }
    }

    fn prompts(config: &RefineConfig) -> Vec<RegionPrompt> {
        region_prompts(&label(), config, &mut Rng::stream(3, "test", &[]))
    }

    #[test]
    fn regions_must_be_larger_than_the_least_area() {
        let classes = |min_area| {
            let config = RefineConfig { min_area, ..RefineConfig::default() };
            prompts(&config).iter().map(|prompt| prompt.class).collect::<Vec<_>>()
        };
        assert_eq!(classes(99), [0, 1, 2]);
        assert_eq!(classes(100), [0, 1]);
        assert_eq!(classes(4999), [1]);
        assert!(classes(5000).is_empty(), "exactly 5000 pixels are not more than 5000");
    }

    #[test]
    fn points_are_different_pixels_of_their_region() {
        let config = RefineConfig { min_area: 10, ..RefineConfig::default() };
        for prompt in prompts(&config) {
            assert_eq!(prompt.points.iter().collect::<BTreeSet<_>>().len(), 5);
            assert!(prompt.points.iter().all(|(x, y)| label().ids[y * 100 + x] == prompt.class));
        }
        assert_eq!(prompts(&config), prompts(&config));
        // A square of 10 is one of 4 after erosion by 7: all of it, or nothing.
        let config = RefineConfig { min_area: 10, erosion: 7, points: 16, ..config };
        let square = prompts(&config).pop().unwrap();
        assert_eq!((square.class, square.points.iter().collect::<BTreeSet<_>>().len()), (2, 16));
        assert!(square.points.iter().all(|(x, y)| (13..17).contains(x) && (63..67).contains(y)));
        assert_eq!((square.pixels.len(), square.pixels[0]), (100, 6010), "the whole region, row by row");
        assert!(prompts(&RefineConfig { points: 17, ..config }).iter().all(|prompt| prompt.class != 2));
    }

    #[test]
    fn points_may_come_from_the_middle_or_from_the_last_piece() {
        // Two squares of 6 and 8 that a line of one pixel joins, in a picture of 24x12: erosion by 3 leaves 4x4 and 6x6.
        let square =
            |at: usize, x: usize, y: usize, side: usize| (x..x + side).contains(&(at % 24)) && (y..y + side).contains(&(at / 24));
        let there = |at| square(at, 2, 4, 6) || square(at, 12, 2, 8) || (at / 24 == 5 && (8..12).contains(&(at % 24)));
        let label = |there: &dyn Fn(usize) -> bool| LabelMap {
            height: 12,
            width: 24,
            ids: (0..288).map(|at| if there(at) { 3 } else { IGNORE }).collect(),
        };
        let places = |selection, points, label: &LabelMap| {
            let config = RefineConfig { min_area: 10, erosion: 3, points, selection, ..RefineConfig::default() };
            let prompts = region_prompts(label, &config, &mut Rng::stream(5, "test", &[]));
            prompts.into_iter().flat_map(|prompt| prompt.points).collect::<Vec<_>>()
        };
        let within = |points: &[(usize, usize)], x: usize, y: usize, side: usize| {
            points.iter().all(|at| square(at.1 * 24 + at.0, x, y, side))
        };
        let dumbbell = label(&there);
        // All 36 pixels of the larger piece are near its middle; the smaller one begins further down.
        let center = places(Selection::Center, 35, &dumbbell);
        assert!(center.len() == 35 && within(&center, 13, 3, 6), "{center:?}");
        let last = places(Selection::LargestComponent, 15, &dumbbell);
        assert!(last.len() == 15 && within(&last, 3, 5, 4), "{last:?}");
        // One more candidate than points is needed, but with `random`.
        assert!(
            places(Selection::Center, 36, &dumbbell).is_empty() && places(Selection::LargestComponent, 16, &dumbbell).is_empty()
        );
        assert_eq!(places(Selection::Random, 52, &dumbbell).len(), 52);
        // Of a long stripe only the middle: columns 1 to 22 after erosion, centroid 11.5, half of them nearer than 10.
        let stripe = places(Selection::Center, 19, &label(&|at| at / 24 < 3));
        assert!(stripe.len() == 19 && stripe.iter().all(|(x, y)| (2..=21).contains(x) && *y == 1), "{stripe:?}");
        assert!(places(Selection::Center, 20, &label(&|at| at / 24 < 3)).is_empty());
    }

    #[test]
    fn shared_pixels_go_to_nobody_and_classes_unite() {
        let prompt = |class| RegionPrompt { class, points: vec![], pixels: vec![] };
        let masks = |rows: [&str; 3]| rows.map(|row| row.chars().map(|c| c == '#').collect::<Vec<_>>()).to_vec();
        let given = masks(["##....", ".##...", "...##."]);
        let order = [prompt(4), prompt(7), prompt(4)];
        let row =
            |masks: &ClassMasks, class: u8| masks[&class].iter().map(|there| if *there { '#' } else { '.' }).collect::<String>();
        let apart = union(&order, given.clone(), true);
        assert_eq!((row(&apart, 4).as_str(), row(&apart, 7).as_str()), ("#..##.", "..#..."));
        let all = union(&order, given, false);
        assert_eq!((row(&all, 4).as_str(), row(&all, 7).as_str()), ("##.##.", ".##..."));
        // As a label: the teacher decides where masks overlap, and may keep what is in none.
        let teacher = LabelMap { height: 1, width: 6, ids: vec![7, 7, 7, 4, 4, 9] };
        let ids = |masks: &ClassMasks, keep| label_of(masks, &teacher, keep).ids;
        assert_eq!(ids(&all, false), [4, 7, 7, 4, 4, IGNORE]);
        assert_eq!(ids(&apart, true), [4, 7, 7, 4, 4, 9]);
        // Masks of one class that overlap lose what they share, too.
        assert_eq!(row(&union(&[prompt(1), prompt(1)], masks(["##", ".#", ""])[..2].to_vec(), true), 1), "#.");
    }
}
