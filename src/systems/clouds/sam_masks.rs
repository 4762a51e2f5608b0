//! Masks of a picture from points on it: Segment Anything between pixels of the picture and pixels of its own.

use super::refine::MaskProposer;
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

impl MaskProposer for SamMasks {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn masks(&self, image: &RgbImage, points: &[Vec<(usize, usize)>], second_pass: bool) -> Result<Vec<Vec<bool>>> {
        let pass = if self.batch_statistics { Pass::statistics_only() } else { Pass::eval() };
        let best = EncodedImage::new(&self.sam, image, &pass)?.best_masks(points, second_pass)?;
        Ok(best.into_iter().map(|best| best.mask).collect())
    }
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
    /// Resizes the picture so that its long side is the encoder's (Pillow's bilinear filter), normalises, pads, encodes.
    pub fn new(sam: &'a Sam, image: &RgbImage, pass: &Pass) -> Result<Self> {
        let side = sam.image_size();
        let scale = side as f64 / image.height.max(image.width) as f64;
        let scaled = |length: usize| (length as f64 * scale + 0.5) as usize;
        let seen = (scaled(image.height), scaled(image.width));
        let small = antialiased(image, seen);
        let mut planes = vec![0f32; 3 * side * side];
        for (at, value) in small.pixels.iter().enumerate() {
            let (pixel, channel) = (at / 3, at % 3);
            let place = (channel * side + pixel / seen.1) * side + pixel % seen.1;
            planes[place] = (f32::from(*value) - NORMALIZATION.mean[channel]) / NORMALIZATION.std[channel];
        }
        let embedding = sam.encode(&Tensor::from_vec(planes, (1, 3, side, side), &device::current())?, pass)?;
        Ok(Self { sam, embedding, size: (image.height, image.width), seen })
    }

    /// For each list of foreground points (x, y) in pixels of the picture, the mask of the three that the model expects to fit best
    /// (of equals the first). All lists are of one length. With `second_pass` the masks are asked for again with the first answers
    /// as mask prompts.
    pub fn best_masks(&self, points: &[Vec<(usize, usize)>], second_pass: bool) -> Result<Vec<BestMask>> {
        let Some(count) = points.first().map(Vec::len) else { return Ok(Vec::new()) };
        let ratio = (self.seen.1 as f64 / self.size.1 as f64, self.seen.0 as f64 / self.size.0 as f64);
        let place = |&(x, y): &(usize, usize)| [(x as f64 * ratio.0) as f32, (y as f64 * ratio.1) as f32];
        let coordinates: Vec<f32> = points.iter().flatten().flat_map(place).collect();
        let coordinates = Tensor::from_vec(coordinates, (points.len(), count, 2), self.embedding.device())?;
        let labels = Tensor::ones((points.len(), count), coordinates.dtype(), self.embedding.device())?;
        let mut prompts = Prompts { points: Some((coordinates, labels)), ..Prompts::default() };
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
            let mask = self.mask(&logits.narrow(0, i, 1)?.narrow(1, *answer, 1)?)?;
            Ok(BestMask { mask, quality: *quality, answer: *answer })
        };
        chosen.iter().enumerate().map(finish).collect()
    }

    /// Logits (1, 1, 4g, 4g) to pixels of the picture: up to the encoder's size, padding off, to the picture's size, threshold.
    fn mask(&self, logits: &Tensor) -> Result<Vec<bool>> {
        let side = self.sam.image_size();
        let large = resize_bilinear(logits, (side, side), false)?;
        let inside = large.narrow(2, 0, self.seen.0)?.narrow(3, 0, self.seen.1)?.contiguous()?;
        let logits: Vec<f32> = resize_bilinear(&inside, self.size, false)?.flatten_all()?.to_vec1()?;
        Ok(logits.into_iter().map(|logit| logit > MASK_THRESHOLD).collect())
    }
}

/// Place and value of the greatest of each row; of equals the first.
fn best(quality: &Tensor) -> candle_core::Result<Vec<(usize, f32)>> {
    let places: Vec<u32> = quality.argmax(D::Minus1)?.to_vec1()?;
    let rows: Vec<Vec<f32>> = quality.to_vec2()?;
    Ok(places.into_iter().zip(rows).map(|(place, row)| (place as usize, row[place as usize])).collect())
}
