//! How well images and captions find each other, and how well a text tells which images show a thing.

use crate::base::Result;
use crate::models::clip::unit;
use crate::nn::linear;
use candle_core::Tensor;

/// Pairs that are compared with each other.
pub const CANDIDATES: usize = 32;

/// How often the best match is the right one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Retrieval {
    /// Images whose best caption of the group is their own (or reads the same).
    pub image_to_text: usize,
    /// Captions whose best image is their own (or one with the same caption).
    pub text_to_image: usize,
    /// Pairs.
    pub pairs: usize,
    /// Right answers to expect from guessing, of either kind.
    pub by_chance: f64,
}

impl Retrieval {
    /// Counts one group: all its images against all its captions.
    ///
    /// # Shapes
    /// `images`, `texts` (B, D), any length; `captions` B
    pub fn add(&mut self, images: &Tensor, texts: &Tensor, captions: &[String]) -> Result<()> {
        let products = linear(&unit(images)?, &unit(texts)?, None)?.to_vec2::<f32>()?; // (image, text)
        for (i, caption) in captions.iter().enumerate() {
            let column: Vec<f32> = products.iter().map(|row| row[i]).collect();
            let right = |values: &[f32]| best(values).is_some_and(|found| captions[found] == *caption);
            self.image_to_text += usize::from(right(&products[i]));
            self.text_to_image += usize::from(right(&column));
            self.by_chance += captions.iter().filter(|other| *other == caption).count() as f64 / captions.len() as f64;
        }
        self.pairs += captions.len();
        Ok(())
    }

    /// A count as a share of all pairs.
    pub fn share(&self, count: f64) -> f64 {
        count / self.pairs.max(1) as f64
    }
}

/// The place of the largest value, the first of equal ones.
fn best(values: &[f32]) -> Option<usize> {
    (0..values.len()).reduce(|best, i| if values[i] > values[best] { i } else { best })
}

/// The area under the ROC curve: how often an image with the thing scores higher than one without; ½ by chance. None when one
/// kind is missing.
pub fn area_under_curve(scores: &[f32], present: &[bool]) -> Option<f64> {
    let of = |wanted: bool| scores.iter().zip(present).filter(move |(_, p)| **p == wanted).map(|(score, _)| *score);
    let (with, without): (Vec<f32>, Vec<f32>) = (of(true).collect(), of(false).collect());
    let wins = |a: f32| without.iter().map(|&b| if a > b { 1.0 } else { 0.5 * f64::from(u8::from(a == b)) }).sum::<f64>();
    let pairs = with.len() * without.len();
    (pairs > 0).then(|| with.iter().map(|&a| wins(a)).sum::<f64>() / pairs as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn best_matches_are_counted_both_ways() {
        let tensor = |rows: [[f32; 2]; 3]| Tensor::new(&rows, &Device::Cpu).unwrap();
        let images = tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]);
        let texts = tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 3.0]]);
        let mut found = Retrieval::default();
        let captions = ["a", "b", "c"].map(String::from);
        found.add(&images, &texts, &captions).unwrap();
        // Image 0 is nearest to text 1, image 1 to text 2, image 2 to text 0; text 0 to image 0, 1 to 0, 2 to 1.
        assert_eq!((found.image_to_text, found.text_to_image, found.pairs), (0, 1, 3));
        assert!((found.by_chance - 1.0).abs() < 1e-12);
        let mut same = Retrieval::default();
        same.add(&images, &texts, &["a", "a", "c"].map(String::from)).unwrap();
        assert_eq!((same.image_to_text, same.text_to_image), (1, 2));
        assert!((same.by_chance - 5.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_area_is_the_share_of_pairs_in_order() {
        let present = [true, false, true, false];
        assert_eq!(area_under_curve(&[0.9, 0.1, 0.5, 0.5], &present), Some(0.875));
        assert_eq!(area_under_curve(&[0.5; 4], &present), Some(0.5));
        assert_eq!(area_under_curve(&[0.5; 4], &[true; 4]), None);
    }
}
