//! ClassMix: half of the source classes are pasted over the target image.

use super::PseudoLabels;
use crate::base::Rng;
use crate::base::group::{self, Share};
use candle_core::{Result, Tensor};
use std::collections::BTreeSet;

/// Training images made of a target image with source pixels pasted over it.
#[derive(Debug, Clone)]
pub struct Mixed {
    /// (B, 3, H, W).
    pub images: Tensor,
    /// (B, H, W) u32: source labels where pasted, pseudo-labels elsewhere.
    pub labels: Tensor,
    /// (B, H, W): 1 where pasted, the pseudo-label's weight elsewhere.
    pub weights: Tensor,
    /// (B, H, W) u8: 1 where pasted.
    pub mask: Tensor,
}

impl Mixed {
    /// The rows of a share.
    pub(super) fn rows(&self, share: &Share) -> Result<Self> {
        Ok(Self {
            images: share.rows(&self.images)?,
            labels: share.rows(&self.labels)?,
            weights: share.rows(&self.weights)?,
            mask: share.rows(&self.mask)?,
        })
    }
}

/// The values in `labels`, sorted. `ignore_index` counts as a class of its own, as in the published code.
///
/// # Shapes
/// any, u32
pub fn classes_present(labels: &Tensor) -> Result<Vec<u32>> {
    let classes: BTreeSet<u32> = labels.flatten_all()?.to_vec1()?.into_iter().collect();
    Ok(classes.into_iter().collect())
}

/// ⌈n/2⌉ of `classes`, without replacement, sorted.
///
/// # Randomness
/// One shuffle of all classes.
pub fn choose_half(classes: &[u32], rng: &mut Rng) -> Vec<u32> {
    let mut chosen = classes.to_vec();
    rng.shuffle(&mut chosen);
    chosen.truncate(classes.len().div_ceil(2));
    chosen.sort_unstable();
    chosen
}

/// 1 where the label of image n is in `chosen[n]`.
///
/// # Shapes
/// `labels` (B, H, W) u32, `chosen` B lists → (B, H, W) u8
pub fn paste_mask(labels: &Tensor, chosen: &[Vec<u32>]) -> Result<Tensor> {
    let (batch, height, width) = labels.dims3()?;
    let ids: Vec<u32> = labels.flatten_all()?.to_vec1()?;
    let pasted: Vec<u8> = ids
        .chunks(height * width)
        .zip(chosen)
        .flat_map(|(image, chosen)| image.iter().map(|id| u8::from(chosen.binary_search(id).is_ok())))
        .collect();
    Tensor::from_vec(pasted, (batch, height, width), labels.device())
}

/// Source over target where `mask` is 1.
///
/// # Shapes
/// `mask` (B, H, W) u8, images (B, 3, H, W), `source_labels` (B, H, W) u32
pub fn paste(
    mask: Tensor,
    source_images: &Tensor,
    source_labels: &Tensor,
    target_images: &Tensor,
    pseudo: &PseudoLabels,
) -> Result<Mixed> {
    let over_channels = mask.unsqueeze(1)?.broadcast_as(source_images.shape())?.contiguous()?;
    Ok(Mixed {
        images: over_channels.where_cond(source_images, target_images)?,
        labels: mask.where_cond(source_labels, &pseudo.labels)?,
        weights: mask.where_cond(&pseudo.weights.ones_like()?, &pseudo.weights)?,
        mask,
    })
}

/// Mixes image n of the source with image n of the target; every image draws its own half of the classes that occur
/// anywhere in the batch of source labels, that of all processes.
///
/// # Source
/// ClassMix, section 3.2, in DACS's cross-domain form.
///
/// # Randomness
/// One [`choose_half`] per image, in order.
pub fn class_mix(
    source_images: &Tensor,
    source_labels: &Tensor,
    target_images: &Tensor,
    pseudo: &PseudoLabels,
    rng: &mut Rng,
) -> Result<Mixed> {
    let group = group::current();
    let classes = group.union(&classes_present(source_labels)?)?;
    let chosen = group.own_rows(source_labels.dim(0)?, 1, || choose_half(&classes, rng));
    paste(paste_mask(source_labels, &chosen)?, source_images, source_labels, target_images, pseudo)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn every_class_is_chosen_equally_often() {
        let classes = [0, 2, 8, 11, 13, 18, 255];
        let mut counts = [0; 7];
        for draw in 0..7000 {
            let chosen = choose_half(&classes, &mut Rng::stream(3, "class mix", &[draw]));
            assert_eq!(chosen.len(), 4);
            for (count, class) in counts.iter_mut().zip(classes) {
                *count += u32::from(chosen.contains(&class));
            }
        }
        // 4/7 of 7000 draws; standard deviation 41.
        assert!(counts.iter().all(|count| count.abs_diff(4000) < 170), "{counts:?}");
    }

    #[test]
    fn half_is_rounded_up() {
        for (n, expected) in [(1, 1), (2, 1), (3, 2), (6, 3)] {
            let classes: Vec<u32> = (0..n).collect();
            assert_eq!(choose_half(&classes, &mut Rng::stream(0, "half", &[])).len(), expected);
        }
    }

    #[test]
    fn images_labels_and_weights_come_from_the_same_side() {
        // Pixel values tell where they come from: source 100 + label, target 200 + label.
        let labels = |offset: u32| Tensor::from_iter((0..2 * 6 * 5).map(|i| (i * 7 + offset) % 5), &Device::Cpu).unwrap();
        let (source, target) = (labels(0).reshape((2, 6, 5)).unwrap(), labels(3).reshape((2, 6, 5)).unwrap());
        let image = |labels: &Tensor, base: f64| {
            let plane = (labels.to_dtype(DType::F32).unwrap() + base).unwrap().unsqueeze(1).unwrap();
            plane.broadcast_as((2, 3, 6, 5)).unwrap().contiguous().unwrap()
        };
        let weights = Tensor::full(0.25f32, (2, 6, 5), &Device::Cpu).unwrap();
        let pseudo = PseudoLabels { labels: target.clone(), weights, confident_share: 0.25 };
        let mut rng = Rng::stream(1, "class mix", &[]);
        let mixed = class_mix(&image(&source, 100.0), &source, &image(&target, 200.0), &pseudo, &mut rng).unwrap();
        let flat = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (labels, weights, mask) = (flat(&mixed.labels), flat(&mixed.weights), flat(&mixed.mask));
        for channel in 0..3 {
            let pixels = flat(&mixed.images.narrow(1, channel, 1).unwrap());
            for i in 0..labels.len() {
                let (base, weight) = if mask[i] == 1.0 { (100.0, 1.0) } else { (200.0, 0.25) };
                assert_eq!((pixels[i], weights[i]), (base + labels[i], weight));
            }
        }
        assert!(mask.contains(&0.0) && mask.contains(&1.0));
    }
}
