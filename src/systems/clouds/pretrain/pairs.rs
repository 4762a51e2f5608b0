//! Images with captions: what one step sees, and the pairs that are held out.

use super::config::ClipPretrainConfig;
use crate::base::progress::Progress;
use crate::base::{Error, Result, Rng, device};
use crate::data::{Loader, Normalize};
use crate::io::images::RgbImage;
use crate::io::tokenizer::Tokenizer;
use crate::models::clip::{self, STREET_CLASSES, class_prompts};
use crate::systems::clouds::clip_file::token_ids;
use crate::systems::clouds::train::ColorJitter;
use crate::systems::shared::photos::{PhotoSettings, Photos};
use crate::systems::shared::segmenter_file::normalize;
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// Of four photos at most one is held out.
const LARGEST_HELD_OUT: usize = 4;

/// Pairs of a step.
#[derive(Debug)]
pub struct PairBatch {
    /// (B, 3, H, W) f32, normalised.
    pub images: Tensor,
    /// (B, T) u32 token ids; row i belongs to image i.
    pub ids: Tensor,
}

/// Makes the batch of each step; cheap to clone for threads.
#[derive(Clone)]
pub struct Pairs(Arc<Inner>);

struct Inner {
    photos: Photos,
    tokenizer: Tokenizer,
    learned: Vec<usize>,
    held_out: Vec<usize>,
    normalize: Normalize,
    config: ClipPretrainConfig,
}

impl Pairs {
    /// Opens the photos and learns the vocabulary from their captions and the prompts for street classes.
    ///
    /// # Errors
    /// Fewer photos with captions than a batch needs; a vocabulary that is too small.
    pub fn open(config: &ClipPretrainConfig, progress: &dyn Progress) -> Result<Self> {
        let ClipPretrainConfig { images, captions, size, flip, .. } = config;
        let photos =
            Photos::open(&PhotoSettings { images, captions, template: None, size: *size, flip: *flip, labels: None }, progress)?;
        let held_out = evenly(photos.len(), config.validation_images.min(photos.len() / LARGEST_HELD_OUT));
        let learned: Vec<usize> = (0..photos.len()).filter(|index| held_out.binary_search(index).is_err()).collect();
        if learned.len() < config.batch_size {
            let found = format!("{}, of them {} held out", photos.len(), held_out.len());
            let expected = format!("at least {} photos with captions to learn from", config.batch_size);
            return Err(Error::data(images, expected, found, "give more photos, or a smaller batch_size or validation_images"));
        }
        let mut texts = photos.vocabulary();
        texts.extend(class_prompts(STREET_CLASSES.concat()));
        let tokenizer = Tokenizer::train(&texts, config.model.vocabulary, config.model.text_length)?;
        progress.say(&format!("pairs: {} to learn from, {} held out", learned.len(), held_out.len()));
        let normalize = normalize(clip::NORMALIZATION);
        Ok(Self(Arc::new(Inner { photos, tokenizer, learned, held_out, normalize, config: config.clone() })))
    }

    /// Text → token ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// Number of pairs that are held out.
    pub fn held_out_count(&self) -> usize {
        self.0.held_out.len()
    }

    /// Held-out pairs from `start` on, at most `count`: whole images (B, 3, H, W) with the first caption of each.
    pub fn held_out(&self, start: usize, count: usize) -> Result<(Tensor, Vec<String>)> {
        let inner = &self.0;
        let indices = &inner.held_out[start..inner.held_out.len().min(start + count)];
        let images = indices.iter().map(|&index| inner.tensor(&inner.photos.whole(index, false)?)).collect::<Result<Vec<_>>>()?;
        let captions = indices.iter().map(|&index| inner.photos.captions(index)[0].clone()).collect();
        Ok((Tensor::stack(&images, 0)?.to_device(&device::current())?, captions))
    }

    /// Batches of the steps from `first` on, prepared ahead.
    pub fn loader(&self, first: u64) -> Result<Loader<PairBatch>> {
        let (pairs, workers) = (self.clone(), self.0.config.workers);
        Loader::new(first..self.0.config.steps, workers, 2 * workers, move |step| pairs.make(step))
    }

    /// The batch of a step.
    ///
    /// # Randomness
    /// See [`Pairs::choice`]; then for each pair the share of the sides, the part, the mirror, the colours.
    pub fn make(&self, step: u64) -> Result<PairBatch> {
        let inner = &self.0;
        let (indices, captions): (Vec<usize>, Vec<String>) = self.choice(step).into_iter().unzip();
        let image = |(item, index): (usize, usize)| {
            let mut rng = Rng::stream(inner.config.seed, "clip image", &[step, item as u64]);
            let share = rng.uniform_in(inner.config.least_share, 1.0);
            let mut image = inner.photos.random_part(index, share, &mut rng)?;
            jitter(inner.config.color_jitter, &mut rng).apply(&mut image);
            inner.tensor(&image)
        };
        let images = indices.into_iter().enumerate().map(image).collect::<Result<Vec<_>>>()?;
        let images = Tensor::stack(&images, 0)?.to_device(&device::current())?;
        Ok(PairBatch { images, ids: token_ids(&inner.tokenizer, &captions)? })
    }

    /// Photos and captions of a step. All photos have their turn before one comes again, and none is twice in a step; what does
    /// not fill a batch at the end of a round is left out. Two photos of a step have the same caption only if one of them has
    /// no other.
    ///
    /// # Randomness
    /// The order of a round; for each pair, the order of its captions.
    pub fn choice(&self, step: u64) -> Vec<(usize, String)> {
        let Inner { photos, learned, config, .. } = &*self.0;
        let size = config.batch_size;
        let steps = (learned.len() / size) as u64;
        let mut order = learned.clone();
        Rng::stream(config.seed, "clip round", &[step / steps]).shuffle(&mut order);
        let mut chosen: Vec<(usize, String)> = Vec::with_capacity(size);
        let start = (step % steps) as usize * size;
        for (item, &index) in order[start..start + size].iter().enumerate() {
            let mut captions: Vec<&String> = photos.captions(index).iter().collect();
            Rng::stream(config.seed, "clip caption", &[step, item as u64]).shuffle(&mut captions);
            let is_new = |text: &&&String| chosen.iter().all(|(_, other)| other != **text);
            let caption = captions.iter().find(is_new).unwrap_or(&captions[0]).to_string();
            chosen.push((index, caption));
        }
        chosen
    }
}

impl Inner {
    fn tensor(&self, image: &RgbImage) -> Result<Tensor> {
        Ok(self.normalize.apply(image, (image.height, image.width), &Device::Cpu)?)
    }
}

/// `count` of `total` numbers, evenly taken.
fn evenly(total: usize, count: usize) -> Vec<usize> {
    (0..count).map(|i| (2 * i + 1) * total / (2 * count)).collect()
}

/// Light changes of colour: the hue stays, for captions may name light and weather.
///
/// # Randomness
/// The order; then whether and how much brightness, contrast and saturation.
fn jitter(strength: f32, rng: &mut Rng) -> ColorJitter {
    let contrast_first = rng.below(2) == 1;
    let mut change = |scale: f32, middle: f32| {
        let (applies, change) = (rng.below(2) == 1, rng.uniform_in(-strength, strength));
        (applies && strength > 0.0).then_some(middle + scale * change)
    };
    let (brightness, contrast, saturation) = (change(128.0, 0.0), change(1.0, 1.0), change(1.0, 1.0));
    ColorJitter { brightness, contrast_first, contrast, saturation, hue: None }
}
