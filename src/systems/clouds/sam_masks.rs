//! Masks of a picture from points and boxes on it: Segment Anything between pixels of the picture and pixels of its own.

use super::automatic_masks::{Annotation, AutomaticMasksConfig, automatic_masks};
use super::refine::{MaskProposer, RegionPrompt};
use crate::base::group::Share;
use crate::base::{Result, device};
use crate::data::resize::antialiased;
use crate::io::images::RgbImage;
use crate::models::sam::{MASK_THRESHOLD, NORMALIZATION, Prompts, Sam};
use crate::nn::{Pass, resize_bilinear};
use candle_core::{D, Tensor};

/// Segment Anything as a proposer of masks: each picture is encoded once, all points are asked for together.
#[derive(Debug)]
pub struct SamMasks {
    /// The network.
    pub sam: Sam,
    /// Its file, for people.
    pub name: String,
    /// Batch norms of MobileSAM use the statistics of the picture, as CLOUDS' published code does, not the stored ones.
    pub batch_statistics: bool,
}

impl SamMasks {
    fn pass(&self) -> Pass {
        if self.batch_statistics { Pass::statistics_only().of(&Share::alone()) } else { Pass::eval() }
    }
}

impl MaskProposer for SamMasks {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn masks(&self, image: &RgbImage, prompts: &[RegionPrompt], second_pass: bool) -> Result<Vec<Vec<bool>>> {
        let point = |(x, y): &(usize, usize)| Point { x: *x as f64, y: *y as f64, inside: true };
        let points = prompts.iter().map(|prompt| prompt.points.iter().map(point).collect()).collect();
        let given = PicturePrompts { points, boxes: Vec::new() };
        let best = EncodedImage::new(&self.sam, image, &self.pass())?.best_masks(&given, second_pass)?;
        Ok(best.into_iter().map(|best| best.mask).collect())
    }

    fn everything(&self, image: &RgbImage, config: &AutomaticMasksConfig) -> Result<Vec<Annotation>> {
        automatic_masks(&self.sam, image, config, &self.pass())
    }
}

/// A place on a picture, in its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// From the left.
    pub x: f64,
    /// From the top.
    pub y: f64,
    /// Whether the mask holds it, or must not.
    pub inside: bool,
}

/// What to segment in a picture, for B masks at once: points, boxes, or both.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PicturePrompts {
    /// For each mask the same number of points; empty without points.
    pub points: Vec<Vec<Point>>,
    /// Left, top, right and bottom for each mask, in pixels of the picture; empty without boxes.
    pub boxes: Vec<[f64; 4]>,
}

/// A picture that was encoded once, for any number of prompts.
#[derive(Debug)]
pub struct EncodedImage<'a> {
    sam: &'a Sam,
    embedding: Tensor,
    /// (height, width) of the picture.
    size: (usize, usize),
    /// The same as the encoder sees it, without padding.
    seen: (usize, usize),
}

/// One mask and what the model thinks of it.
#[derive(Debug, Clone)]
pub struct BestMask {
    /// Pixels of the picture, row-major.
    pub mask: Vec<bool>,
    /// Predicted IoU.
    pub quality: f32,
    /// Which of the three answers it is.
    pub answer: usize,
}

impl<'a> EncodedImage<'a> {
    /// Encodes what [`encoder_input`] makes of the picture.
    pub fn new(sam: &'a Sam, image: &RgbImage, pass: &Pass) -> Result<Self> {
        let side = sam.image_size();
        let (planes, seen) = encoder_input(image, side);
        let embedding = sam.encode(&Tensor::from_vec(planes, (1, 3, side, side), &device::current())?, pass)?;
        Ok(Self { sam, embedding, size: (image.height, image.width), seen })
    }

    /// Logits and predicted IoU of each prompt's answers: three, or one without `multimask`.
    ///
    /// # Shapes
    /// → (B, 3 or 1, 4g, 4g), see [`Self::logits`], and (B, 3 or 1)
    pub fn ask(&self, prompts: &PicturePrompts, multimask: bool) -> Result<(Tensor, Tensor)> {
        Ok(self.sam.decode(&self.embedding, &self.placed(prompts)?, multimask)?)
    }

    /// For each prompt the mask of the three that the model expects to fit best (of equals the first). With `second_pass` the
    /// masks are asked for again with the first answers as mask prompts.
    pub fn best_masks(&self, prompts: &PicturePrompts, second_pass: bool) -> Result<Vec<BestMask>> {
        if prompts.points.is_empty() && prompts.boxes.is_empty() {
            return Ok(Vec::new());
        }
        let mut prompts = self.placed(prompts)?;
        let (mut logits, mut quality) = self.sam.decode(&self.embedding, &prompts, true)?;
        if second_pass {
            let chosen = best(&quality)?;
            let one = |(i, (answer, _)): (usize, &(usize, f32))| logits.narrow(0, i, 1)?.narrow(1, *answer, 1);
            let masks = chosen.iter().enumerate().map(one).collect::<candle_core::Result<Vec<_>>>()?;
            prompts.masks = Some(Tensor::cat(&masks, 0)?);
            (logits, quality) = self.sam.decode(&self.embedding, &prompts, true)?;
        }
        let chosen = best(&quality)?;
        let finish = |(i, (answer, quality)): (usize, &(usize, f32))| {
            let logits = self.logits(&logits.narrow(0, i, 1)?.narrow(1, *answer, 1)?)?;
            let mask = logits.into_iter().map(|logit| logit > MASK_THRESHOLD).collect();
            Ok(BestMask { mask, quality: *quality, answer: *answer })
        };
        chosen.iter().enumerate().map(finish).collect()
    }

    /// Logits (1, 1, 4g, 4g) for the pixels of the picture, row-major: up to the encoder's size, padding off, to the picture's
    /// size.
    pub fn logits(&self, logits: &Tensor) -> Result<Vec<f32>> {
        let side = self.sam.image_size();
        let large = resize_bilinear(logits, (side, side), false)?;
        let inside = large.narrow(2, 0, self.seen.0)?.narrow(3, 0, self.seen.1)?.contiguous()?;
        Ok(resize_bilinear(&inside, self.size, false)?.flatten_all()?.to_vec1()?)
    }

    fn placed(&self, prompts: &PicturePrompts) -> Result<Prompts> {
        prompts.placed(self.size, self.seen)
    }
}

/// A picture as the encoder sees it: resized so that its long side is the encoder's `side` (Pillow's bilinear filter), normalised,
/// zeros at the bottom and right. Three planes, and the (height, width) without the zeros.
pub fn encoder_input(image: &RgbImage, side: usize) -> (Vec<f32>, (usize, usize)) {
    let scale = side as f64 / image.height.max(image.width) as f64;
    // A line of pixels stays one, however long.
    let scaled = |length: usize| ((length as f64 * scale + 0.5) as usize).max(1);
    let seen = (scaled(image.height), scaled(image.width));
    let small = antialiased(image, seen);
    let mut planes = vec![0f32; 3 * side * side];
    for (at, value) in small.pixels.iter().enumerate() {
        let (pixel, channel) = (at / 3, at % 3);
        let place = (channel * side + pixel / seen.1) * side + pixel % seen.1;
        planes[place] = (f32::from(*value) - NORMALIZATION.mean[channel]) / NORMALIZATION.std[channel];
    }
    (planes, seen)
}

impl PicturePrompts {
    /// In pixels of the encoder's image, in which a picture of `size` takes up `seen`, each (height, width).
    pub fn placed(&self, size: (usize, usize), seen: (usize, usize)) -> Result<Prompts> {
        let ratio = [seen.1 as f64 / size.1 as f64, seen.0 as f64 / size.0 as f64];
        let device = &device::current();
        let mut placed = Prompts::default();
        if let Some(first) = self.points.first() {
            let shape = (self.points.len(), first.len());
            let points = || self.points.iter().flatten();
            let places = points().flat_map(|point| [(point.x * ratio[0]) as f32, (point.y * ratio[1]) as f32]).collect();
            let inside = points().map(|point| f32::from(u8::from(point.inside))).collect();
            let coordinates = Tensor::from_vec::<_, f32>(places, (shape.0, shape.1, 2), device)?;
            placed.points = Some((coordinates, Tensor::from_vec::<_, f32>(inside, shape, device)?));
        }
        if !self.boxes.is_empty() {
            let corner = |(at, value): (usize, &f64)| (value * ratio[at % 2]) as f32;
            let corners: Vec<f32> = self.boxes.iter().flat_map(|corners| corners.iter().enumerate().map(corner)).collect();
            placed.boxes = Some(Tensor::from_vec(corners, (self.boxes.len(), 4), device)?);
        }
        Ok(placed)
    }
}

/// Place and value of the greatest of each row; of equals the first.
fn best(quality: &Tensor) -> candle_core::Result<Vec<(usize, f32)>> {
    let places: Vec<u32> = quality.argmax(D::Minus1)?.to_vec1()?;
    let rows: Vec<Vec<f32>> = quality.to_vec2()?;
    Ok(places.into_iter().zip(rows).map(|(place, row)| (place as usize, row[place as usize])).collect())
}
