//! What one step sees: source images with labels and generated images without, prepared on threads.

use super::config::{Part, TrainConfig};
use super::generated::{Generated, generated};
use super::sampler::{Pick, Sampler};
use super::samples::{GeneratedViews, SourceTransform, generated_views};
use crate::base::progress::Progress;
use crate::base::{Result, Rng, device};
use crate::data::{Dataset, Loader, Normalize, Sample, resize};
use crate::io::images::{self, RgbImage};
use crate::labels::LabelMap;
use crate::models::clip;
use crate::systems::shared::photos::listed;
use crate::systems::shared::segmenter_file::normalize;
use candle_core::{Device, Tensor};
use std::path::PathBuf;
use std::sync::Arc;

/// The images of a step.
#[derive(Debug)]
pub struct TrainBatch {
    /// (B, 3, H, W) f32, normalised: what the student sees, source images first.
    pub images: Tensor,
    /// Labels of the source images.
    pub labels: Vec<LabelMap>,
    /// (G, 3, H, W) f32, normalised: the generated images as the teacher sees them, or the photos they were painted from.
    pub clean: Option<Tensor>,
    /// The same as pictures, for the refinement.
    pub pictures: Vec<RgbImage>,
}

/// Makes the batch of each step; cheap to clone for threads.
#[derive(Clone)]
pub struct Batches(Arc<Inner>);

struct Inner {
    source: Dataset,
    samples: Vec<Sample>,
    generated: Vec<Generated>,
    sampler: Sampler,
    transform: SourceTransform,
    normalize: Normalize,
    seed: u64,
    batch_size: u64,
}

impl Batches {
    /// # Errors
    /// No readable source images; generated images that are missing or have another size than the crop.
    pub fn new(config: &TrainConfig, source: &Dataset, progress: &dyn Progress) -> Result<Self> {
        let split = match config.source_split.as_str() {
            "" => source.first_split(&["train"]),
            split => Some(split),
        };
        let samples = source.labelled_samples(split, progress)?;
        progress.say(&format!("source: {} images of {}", samples.len(), source.name));
        let transform = SourceTransform::new(config);
        let generated = match config.stage {
            Part::Warmup => Vec::new(),
            Part::Joint => generated(config, transform.crop, progress)?,
        };
        let (first, second) = (config.data.source_factor, config.data.generated_factor);
        let sampler = Sampler::new((samples.len(), first), (generated.len(), second), config.seed);
        let normalize = normalize(clip::NORMALIZATION);
        let (seed, batch_size) = (config.seed, config.batch_size as u64);
        Ok(Self(Arc::new(Inner { source: source.clone(), samples, generated, sampler, transform, normalize, seed, batch_size })))
    }

    /// Files of some generated images, evenly taken.
    pub fn some_generated(&self, count: usize) -> Vec<PathBuf> {
        let all = &self.0.generated;
        let count = count.min(all.len());
        (0..count).map(|i| all[(2 * i + 1) * all.len() / (2 * count)].picture.clone()).collect()
    }

    /// Which pictures there are, for the identity of checkpoints.
    pub fn pictures(&self) -> serde_json::Value {
        let source = listed(self.0.samples.iter().map(|sample| &sample.image));
        serde_json::json!({ "source": source, "generated": listed(self.0.generated.iter().map(|generated| &generated.picture)) })
    }

    /// Batches of the steps from `first` on, prepared ahead.
    pub fn loader(&self, first: u64, last: u64, workers: usize) -> Result<Loader<TrainBatch>> {
        let batches = self.clone();
        Loader::new(first..last, workers, 2 * workers, move |step| batches.0.make(step))
    }
}

impl Inner {
    /// # Randomness
    /// One stream for each image of the step.
    fn make(&self, step: u64) -> Result<TrainBatch> {
        let (mut sources, mut labels, mut views) = (Vec::new(), Vec::new(), Vec::new());
        for item in 0..self.batch_size {
            let mut rng = Rng::stream(self.seed, "clouds item", &[step, item]);
            match self.sampler.at(step * self.batch_size + item) {
                Pick::Source(image) => {
                    let example = self.transform.apply(&self.source.load(&self.samples[image])?, &mut rng);
                    sources.push(self.tensor(&example.image)?);
                    labels.extend(example.label);
                }
                Pick::Generated(image) => views.push(self.views(image, &mut rng)?),
            }
        }
        let device = device::current();
        let of = |image: fn(&GeneratedViews) -> &RgbImage| {
            views.iter().map(|view| self.tensor(image(view))).collect::<Result<Vec<_>>>()
        };
        sources.extend(of(|view| &view.augmented)?);
        let images = Tensor::stack(&sources, 0)?.to_device(&device)?;
        let clean = of(|view| &view.clean)?;
        let clean = if clean.is_empty() { None } else { Some(Tensor::stack(&clean, 0)?.to_device(&device)?) };
        Ok(TrainBatch { images, labels, clean, pictures: views.into_iter().map(|view| view.clean).collect() })
    }

    fn views(&self, image: usize, rng: &mut Rng) -> Result<GeneratedViews> {
        let Generated { picture, photo } = &self.generated[image];
        let photo = photo.as_ref().map(|path| images::read_rgb(path)).transpose()?;
        let photo = photo.map(|photo| resize::antialiased(&photo, self.transform.crop));
        Ok(generated_views(images::read_rgb(picture)?, photo, self.transform.flip, self.transform.color_jitter, rng))
    }

    fn tensor(&self, image: &RgbImage) -> Result<Tensor> {
        Ok(self.normalize.apply(image, (image.height, image.width), &Device::Cpu)?)
    }
}
