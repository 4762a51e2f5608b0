//! What a training of Segment Anything sees: photos, changed, and prompts for pieces of their label maps.

use super::config::SamPretrainConfig;
use crate::base::progress::Progress;
use crate::base::{Error, Result, Rng};
use crate::data::resize::antialiased;
use crate::io::images::RgbImage;
use crate::labels::{IGNORE, LabelMap, components};
use crate::systems::clouds::pretrain::evenly;
use crate::systems::clouds::refine::class_masks;
use crate::systems::clouds::sam_masks::{PicturePrompts, Point, encoder_input};
use crate::systems::clouds::train::ColorJitter;
use crate::systems::shared::photos::{LabelSettings, PhotoSettings, Photos};
use std::iter::repeat_n;

/// Of so many photos at most one is held out.
const LARGEST_HELD_OUT: usize = 4;
/// Photos tried until one has a piece that is large enough.
const TRIES: usize = 50;
/// Farthest that a stray point is from its piece, in pixels of the photo.
const STRAY_REACH: f64 = 16.0;

/// Photos with label maps, some of them held out.
pub struct Examples {
    photos: Photos,
    learned: Vec<usize>,
    held_out: Vec<usize>,
    config: SamPretrainConfig,
    /// Of the encoder's image.
    side: usize,
}

/// A photo and pieces of it to ask for.
pub struct Asked {
    /// The encoder's image, three planes.
    pub planes: Vec<f32>,
    /// (height, width) of the photo.
    pub size: (usize, usize),
    /// What of the encoder's image the photo takes up.
    pub seen: (usize, usize),
    /// Points on each piece.
    pub points: PicturePrompts,
    /// The box around each, moved a little.
    pub boxes: PicturePrompts,
    /// The pieces at the size of masks, 0 or 1, row-major.
    pub targets: Vec<Vec<f32>>,
    /// Train ids at the size of masks, 255 where there is none.
    pub classes: Vec<u8>,
}

impl Examples {
    /// # Errors
    /// Unusable photos or label maps, too few of them.
    pub fn open(config: &SamPretrainConfig, side: usize, progress: &dyn Progress) -> Result<Self> {
        let labels = LabelSettings { folder: &config.labels, classes: config.label_classes };
        let SamPretrainConfig { images, size, flip, .. } = config;
        let settings = PhotoSettings { images, captions: "", template: Some(""), size: *size, flip: *flip, labels: Some(labels) };
        let photos = Photos::open(&settings, progress)?;
        let held_out = evenly(photos.len(), config.validation_images.min(photos.len() / LARGEST_HELD_OUT));
        let learned: Vec<usize> = (0..photos.len()).filter(|index| held_out.binary_search(index).is_err()).collect();
        if learned.is_empty() {
            return Err(Error::data(images, "photos to learn from", "none", "check `--images`"));
        }
        Ok(Self { photos, learned, held_out, config: config.clone(), side })
    }

    /// Number of photos that are held out.
    pub fn held_out_count(&self) -> usize {
        self.held_out.len()
    }

    /// A random photo, changed.
    ///
    /// # Randomness
    /// The photo, its mirror, its pieces (photos without any are drawn again), its changes, the prompts.
    ///
    /// # Errors
    /// Photos that cannot be read, or none of many drawn ones with a piece that is large enough.
    pub fn random(&self, mut rng: Rng) -> Result<Asked> {
        for _ in 0..TRIES {
            let index = self.learned[rng.below(self.learned.len())];
            let example = self.photos.example(index, self.photos.draw_flip(&mut rng))?;
            let Some(label) = &example.label else { continue };
            let pieces = self.pieces(label);
            if pieces.is_empty() {
                continue;
            }
            let mut image = example.image;
            self.degrade(&mut image, &mut rng);
            let count = self.point_count(&mut rng);
            return Ok(self.asked(&image, label, &pieces, count, &mut rng));
        }
        let expected = format!("label maps with connected pieces of more than {} pixels", self.config.min_area);
        Err(Error::data(&self.config.labels, expected, "none in many of them", "give a smaller min_area"))
    }

    /// A held-out photo as it is, with the most points; none without pieces.
    pub fn held_out(&self, index: usize) -> Result<Option<Asked>> {
        let example = self.photos.example(self.held_out[index], false)?;
        let mut rng = Rng::stream(self.config.seed, "sam held out", &[index as u64]);
        let Some(label) = &example.label else { return Ok(None) };
        let pieces = self.pieces(label);
        let asked = || self.asked(&example.image, label, &pieces, self.config.points, &mut rng);
        Ok((!pieces.is_empty()).then(asked))
    }

    /// Connected pieces of the classes, as pixel numbers.
    fn pieces(&self, label: &LabelMap) -> Vec<Vec<usize>> {
        let all = class_masks(label).into_values().flat_map(|mask| components(&mask, label.width));
        all.filter(|piece| piece.len() > self.config.min_area).collect()
    }

    fn point_count(&self, rng: &mut Rng) -> usize {
        let most = self.config.points;
        if rng.below(2) == 0 { most } else { 1 + 2 * rng.below(most.div_ceil(2)) }
    }

    fn degrade(&self, image: &mut RgbImage, rng: &mut Rng) {
        if rng.uniform() < self.config.degrade {
            ColorJitter::draw(rng).apply(image);
        }
        if rng.uniform() < self.config.degrade {
            let factor = rng.uniform_in(1.0, 3.0);
            let (height, width) = (image.height, image.width);
            let smaller = |length: usize| ((length as f32 / factor) as usize).max(1);
            *image = antialiased(&antialiased(image, (smaller(height), smaller(width))), (height, width));
        }
        if rng.uniform() < self.config.degrade {
            let spread = rng.uniform_in(0.0, 12.0);
            image.pixels.iter_mut().for_each(|value| *value = (f32::from(*value) + spread * rng.normal()).round() as u8);
        }
    }

    fn asked(&self, image: &RgbImage, label: &LabelMap, pieces: &[Vec<usize>], count: usize, rng: &mut Rng) -> Asked {
        let (planes, seen) = encoder_input(image, self.side);
        let size = (image.height, image.width);
        let cells = cells(label, seen, self.side);
        let classes = cells.iter().map(|at| at.map_or(IGNORE, |at| label.ids[at])).collect();
        let (mut points, mut boxes, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        // Large pieces more often, since most of a label map is theirs: by the square root of their areas.
        let lots: Vec<usize> = pieces.iter().enumerate().flat_map(|(i, piece)| repeat_n(i, piece.len().isqrt())).collect();
        for _ in 0..self.config.prompts {
            let piece = &pieces[lots[rng.below(lots.len())]];
            points.push(self.points(piece, size, count, rng));
            boxes.push(around(piece, size, rng));
            targets.push(target(piece, label.ids.len(), &cells));
        }
        let points = PicturePrompts { points, boxes: Vec::new() };
        Asked { planes, size, seen, points, boxes: PicturePrompts { points: Vec::new(), boxes }, targets, classes }
    }

    /// Points on a piece, half of the time on a part of it; some stray.
    fn points(&self, piece: &[usize], (height, width): (usize, usize), count: usize, rng: &mut Rng) -> Vec<Point> {
        let place = |at: usize| ((at % width) as f64, (at / width) as f64);
        let middle = place(piece[rng.below(piece.len())]);
        let reach = if rng.below(2) == 0 { f64::from(rng.uniform_in(6.0, 48.0)) } else { f64::INFINITY };
        let near = |at: &usize| (place(*at).0 - middle.0).hypot(place(*at).1 - middle.1) <= reach;
        let part: Vec<usize> = piece.iter().copied().filter(near).collect();
        (0..count)
            .map(|_| {
                let (mut x, mut y) = place(part[rng.below(part.len())]);
                if rng.uniform() < self.config.stray {
                    let mut step = || f64::from(rng.uniform_in(-1.0, 1.0)) * STRAY_REACH;
                    (x, y) = (
                        (x + step()).round().clamp(0.0, (width - 1) as f64),
                        (y + step()).round().clamp(0.0, (height - 1) as f64),
                    );
                }
                Point { x, y, inside: true }
            })
            .collect()
    }
}

/// The box around a piece, each side moved by up to a tenth of the box's sides (as in Segment Anything's training).
fn around(piece: &[usize], (height, width): (usize, usize), rng: &mut Rng) -> [f64; 4] {
    let range = |of: &dyn Fn(usize) -> usize| {
        let (mut low, mut high) = (usize::MAX, 0);
        piece.iter().for_each(|at| (low, high) = (low.min(of(*at)), high.max(of(*at))));
        (low as f64, (high + 1) as f64)
    };
    let ((left, right), (top, bottom)) = (range(&|at| at % width), range(&|at| at / width));
    let mut moved =
        |value: f64, side: f64, end: usize| (value + 0.1 * side * f64::from(rng.uniform_in(-1.0, 1.0))).clamp(0.0, end as f64);
    let (across, down) = (right - left, bottom - top);
    [moved(left, across, width), moved(top, down, height), moved(right, across, width), moved(bottom, down, height)]
}

/// The pixels of a label map, as numbers, in which the middles of a mask's cells lie; none beyond the photo. A cell is 4 pixels of the
/// encoder's image.
fn cells(label: &LabelMap, seen: (usize, usize), side: usize) -> Vec<Option<usize>> {
    let cells = side / 4;
    let from = |cell: usize, seen: usize, size: usize| {
        let middle = 4 * cell + 2;
        (middle < seen).then(|| middle * size / seen)
    };
    let cell = |at: usize| {
        let row = from(at / cells, seen.0, label.height)?;
        let column = from(at % cells, seen.1, label.width)?;
        Some(row * label.width + column)
    };
    (0..cells * cells).map(cell).collect()
}

/// 1 for the cells on a piece.
fn target(piece: &[usize], pixels: usize, cells: &[Option<usize>]) -> Vec<f32> {
    let mut on = vec![false; pixels];
    piece.iter().for_each(|at| on[*at] = true);
    cells.iter().map(|at| f32::from(u8::from(at.is_some_and(|at| on[at])))).collect()
}
