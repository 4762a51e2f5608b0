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
    /// Photos to learn from, by group.
    learned: Vec<Vec<usize>>,
    held_out: Vec<usize>,
    normalize: Normalize,
    config: ClipPretrainConfig,
}

impl Pairs {
    /// Opens the photos. Without a `tokenizer`, learns the vocabulary from their captions and the prompts for street classes.
    ///
    /// # Errors
    /// Fewer photos with captions than a batch needs; a vocabulary that is too small.
    pub fn open(config: &ClipPretrainConfig, tokenizer: Option<Tokenizer>, progress: &dyn Progress) -> Result<Self> {
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
        let count = learned.len();
        let learned = groups(&photos, learned, &config.group_words);
        if config.group_share > 0.0 && learned.iter().all(|group| config.group_steps(group.len()) == 0) {
            let most = learned.iter().map(Vec::len).max().unwrap_or_default();
            let least = (config.batch_size as f32 / config.group_share).ceil();
            let expected = format!("a group of at least {least} photos");
            let next = "give fewer group_words, a smaller batch_size, or group_share = 0";
            return Err(Error::data(captions, expected, format!("at most {most} in one"), next));
        }
        let learn = || {
            let mut texts = photos.vocabulary();
            texts.extend(class_prompts(STREET_CLASSES.concat()));
            Tokenizer::train(&texts, config.model.vocabulary, config.model.text_length)
        };
        let tokenizer = tokenizer.map_or_else(learn, Ok)?;
        progress.say(&format!("pairs: {count} to learn from, {} held out", held_out.len()));
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
    /// not fill a batch at the end of a round, or of a group, is left out. Two photos of a step have the same caption only if one of
    /// them has no other.
    ///
    /// # Randomness
    /// The order of a round: of each group, of the rest, of the steps; for each pair, the order of its captions.
    pub fn choice(&self, step: u64) -> Vec<(usize, String)> {
        let Inner { photos, config, .. } = &*self.0;
        let (round, place) = self.round(step);
        let size = config.batch_size;
        let order = self.order(round);
        let start = place * size;
        let mut chosen: Vec<(usize, String)> = Vec::with_capacity(size);
        for (item, &index) in order[start..start + size].iter().enumerate() {
            let mut captions: Vec<&String> = photos.captions(index).iter().collect();
            Rng::stream(config.seed, "clip caption", &[step, item as u64]).shuffle(&mut captions);
            let is_new = |text: &&&String| chosen.iter().all(|(_, other)| other != **text);
            let caption = captions.iter().find(is_new).unwrap_or(&captions[0]).to_string();
            chosen.push((index, caption));
        }
        chosen
    }

    /// The round of a step, and its place in there.
    fn round(&self, step: u64) -> (u64, usize) {
        let Inner { learned, config, .. } = &*self.0;
        let steps = learned.iter().map(|group| config.group_steps(group.len())).sum::<usize>() as u64;
        let steps = steps + self.mixed_steps() as u64;
        (step / steps, (step % steps) as usize)
    }

    /// Steps of a round whose photos are of all groups.
    fn mixed_steps(&self) -> usize {
        let Inner { learned, config, .. } = &*self.0;
        let photos: usize = learned.iter().map(Vec::len).sum();
        if config.group_share > 0.0 {
            ((1.0 - config.group_share) * photos as f32) as usize / config.batch_size
        } else {
            photos / config.batch_size
        }
    }

    /// Photos of a round, in the order in which steps take them.
    fn order(&self, round: u64) -> Vec<usize> {
        let Inner { learned, config, .. } = &*self.0;
        let mut rng = Rng::stream(config.seed, "clip round", &[round]);
        let (mut batches, mut rest) = (Vec::new(), Vec::new());
        for group in learned {
            let mut group = group.clone();
            if config.group_share > 0.0 {
                rng.shuffle(&mut group);
            }
            let others = group.split_off(config.group_steps(group.len()) * config.batch_size);
            batches.extend(group.chunks_exact(config.batch_size).map(<[usize]>::to_vec));
            rest.extend(others);
        }
        rest.sort_unstable();
        rng.shuffle(&mut rest);
        batches.extend(rest.chunks_exact(config.batch_size).take(self.mixed_steps()).map(<[usize]>::to_vec));
        if config.group_share > 0.0 {
            rng.shuffle(&mut batches);
        }
        batches.concat()
    }
}

/// Photos by the first of `words` that one of their captions holds; the rest comes last.
fn groups(photos: &Photos, indices: Vec<usize>, words: &[String]) -> Vec<Vec<usize>> {
    let words: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
    let mut groups = vec![Vec::new(); words.len() + 1];
    for index in indices {
        let captions = photos.captions(index).join("\n").to_lowercase();
        // "rain" is not in "train".
        let begins = |word: &String| captions.match_indices(word).any(|(at, _)| !captions[..at].ends_with(char::is_alphanumeric));
        let group = words.iter().position(begins).unwrap_or(words.len());
        groups[group].push(index);
    }
    groups
}

impl Inner {
    fn tensor(&self, image: &RgbImage) -> Result<Tensor> {
        Ok(self.normalize.apply(image, (image.height, image.width), &Device::Cpu)?)
    }
}

/// `count` of `total` numbers, evenly taken.
pub(in crate::systems::clouds) fn evenly(total: usize, count: usize) -> Vec<usize> {
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
