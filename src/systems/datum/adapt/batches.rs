//! What one adaptation step sees: source images with labels, target images without, prepared on threads.

use crate::base::progress::Progress;
use crate::base::{Error, Result, Rng, device, group, interrupt};
use crate::data::fourier::FourierTransfer;
use crate::data::rare_class::{ClassStatistics, FileStatistics, MinPixels, RareClassConfig, RareClassSampling, count_pixels};
use crate::data::resize::antialiased;
use crate::data::transforms::{Example, Item, keep_ratio_size};
use crate::data::{Batch, Dataset, Loader, Normalize, Pipeline, Sample};
use crate::io::images;
use crate::systems::datum::config::AdaptConfig;
use crate::systems::shared::photos::listed;
use crate::systems::shared::segmenter_file::{Header, normalize};
use crate::systems::shared::size::frame;
use crate::uda::StepBatch;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// Decoded, resized pictures are kept in memory up to this many bytes a data set.
const CACHE_BYTES: usize = 2 << 30;
/// Label maps between two looks at Ctrl-C.
const COUNTED_AT_ONCE: usize = 64;

/// Makes the batch of each step; cheap to clone for threads.
#[derive(Clone)]
pub struct Batches(Arc<Inner>);

struct Inner {
    source: Pictures,
    target: Option<Pictures>,
    rare: Option<RareClassSampling>,
    fourier: f64,
    seed: u64,
    batch_size: u64,
}

/// The pictures of one data set, resized, and what happens to them.
struct Pictures {
    dataset: Dataset,
    samples: Vec<Sample>,
    pipeline: Pipeline,
    resize: Option<(usize, usize)>,
    labelled: bool,
    cache: Option<Vec<OnceLock<Example>>>,
}

impl Pictures {
    fn new(dataset: &Dataset, samples: Vec<Sample>, resize: Option<(usize, usize)>, pipeline: Pipeline, labelled: bool) -> Self {
        let cache = (Batches::cached_bytes(&samples, resize) > 0).then(|| samples.iter().map(|_| OnceLock::new()).collect());
        Self { dataset: dataset.clone(), samples, pipeline, resize, labelled, cache }
    }

    fn example(&self, index: usize) -> Result<Example> {
        let load = || {
            let sample = &self.samples[index];
            let example = if self.labelled { self.dataset.load(sample)? } else { self.dataset.load_image(sample)? };
            Ok(match self.resize {
                Some(frame) => example.resize(keep_ratio_size(example.size(), frame)),
                None => example,
            })
        };
        let Some(slot) = self.cache.as_ref().map(|cache| &cache[index]) else { return load() };
        match slot.get() {
            Some(example) => Ok(example.clone()),
            None => Ok(slot
                .get_or_init({
                    let example = load()?;
                    || example
                })
                .clone()),
        }
    }
}

impl Batches {
    /// Memory for decoded pictures, resized to fit `size` if there is one; none if they are too many to keep.
    pub fn cached_bytes(samples: &[Sample], size: Option<(usize, usize)>) -> usize {
        let area = |sample: &Sample| {
            // A file that is no picture is named where it is used.
            let (height, width) = size.or_else(|| images::inspect(&sample.image).ok()).unwrap_or_default();
            height * width
        };
        let bytes = 4 * samples.iter().map(area).sum::<usize>();
        if bytes <= CACHE_BYTES { bytes } else { 0 }
    }

    /// # Errors
    /// Data sets without readable images; labels that do not fit (all are read for rare class sampling).
    pub fn new(
        config: &AdaptConfig,
        header: &Header,
        source: &Dataset,
        target: Option<&Dataset>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let normalize = normalize(header.model.normalization());
        let crop = Some((config.crop.height, config.crop.width));
        let labelled = Pipeline {
            resize: None,
            crop,
            cat_max_ratio: Some(0.75),
            flip: true,
            photometric: config.photometric_distortion,
            normalize: normalize.clone(),
        };
        let unlabelled = Pipeline { cat_max_ratio: None, photometric: false, ..labelled.clone() };
        let split = |name: &str, dataset: &Dataset, preferred: &[&'static str]| match name {
            "" => dataset.first_split(preferred).map(str::to_string),
            name => Some(name.to_string()),
        };
        let source_split = split(&config.source_split, source, &["train"]);
        let samples = source.labelled_samples(source_split.as_deref(), progress)?;
        progress.say(&format!("source: {} images of {}", samples.len(), source.name));
        let source = Pictures::new(source, samples, frame(config.source_size), labelled, true);
        let target = match target {
            None => None,
            Some(dataset) => {
                let split = split(&config.target_split, dataset, &[]);
                let samples = dataset.readable_samples(split.as_deref(), progress)?;
                progress.say(&format!("target: {} images of {}", samples.len(), dataset.name));
                Some(Pictures::new(dataset, samples, frame(config.target_size), unlabelled, false))
            }
        };
        let rare = rare_classes(config, &source, progress)?;
        let (fourier, seed, batch_size) = (config.fourier, config.seed, config.batch_size as u64);
        Ok(Self(Arc::new(Inner { source, target, rare, fourier, seed, batch_size })))
    }

    /// Which pictures there are, for the identity of checkpoints.
    pub fn pictures(&self) -> serde_json::Value {
        let listed = |pictures: &Pictures| listed(pictures.samples.iter().map(|sample| &sample.image));
        serde_json::json!({ "source": listed(&self.0.source), "target": self.0.target.as_ref().map(listed) })
    }

    /// Batches of the steps from `first` on, prepared ahead.
    pub fn loader(&self, first: u64, last: u64, workers: usize) -> Result<Loader<StepBatch>> {
        let batches = self.clone();
        Loader::new(first..last, workers, 2 * workers, move |step| batches.0.make(step))
    }
}

/// Class statistics of the source and the sampling they lead to; `None` samples uniformly.
fn rare_classes(config: &AdaptConfig, source: &Pictures, progress: &dyn Progress) -> Result<Option<RareClassSampling>> {
    if config.rare_class_temperature <= 0.0 {
        return Ok(None);
    }
    progress.stage("class statistics", source.samples.len() as u64, 0);
    let mut files = Vec::with_capacity(source.samples.len());
    let count = |sample: &Sample| {
        let ids = source.dataset.load_label(sample)?.ids;
        Ok(FileStatistics { file: sample.stem.clone(), pixels: count_pixels(&ids) })
    };
    for samples in source.samples.chunks(COUNTED_AT_ONCE) {
        if interrupt::requested() {
            return Err(Error::Interrupted { resume: "run the same command again".into() });
        }
        files.extend(samples.par_iter().map(count).collect::<Result<Vec<_>>>()?);
        progress.step(files.len() as u64, "");
    }
    progress.end();
    let settings = RareClassConfig {
        temperature: config.rare_class_temperature,
        min_pixels: MinPixels::Count(config.rare_class_min_pixels),
        ..RareClassConfig::default()
    };
    let sampling = RareClassSampling::new(&ClassStatistics { files }, settings)?;
    let scarce: Vec<&str> =
        sampling.scarce().filter_map(|id| source.dataset.classes.names.get(usize::from(id))).map(|name| name.as_str()).collect();
    if !scarce.is_empty() {
        progress.say(&format!(
            "no label map shows more than rare_class_min_pixels ({}) pixels of {}: those that show most are drawn for it",
            config.rare_class_min_pixels,
            scarce.join(", ")
        ));
    }
    Ok(Some(sampling))
}

impl Inner {
    fn make(&self, step: u64) -> Result<StepBatch> {
        let (mut source, mut target) = (Vec::new(), Vec::new());
        for item in group::current().items(self.batch_size) {
            let mut rng = Rng::stream(self.seed, "adapt item", &[step, item]);
            let styled = self.target(&mut rng)?;
            source.push(self.source(&mut rng, styled.as_ref())?);
            target.extend(styled.map(|example| self.finish_target(&example)).transpose()?);
        }
        let source = Batch::stack(&source)?;
        let labels = source.labels.ok_or_else(|| candle_core::Error::Msg("a source item has no label".into()))?;
        let target = if target.is_empty() { None } else { Some(Batch::stack(&target)?.images) };
        let device = device::current();
        let target = target.map(|images| images.to_device(&device)).transpose()?;
        Ok(StepBatch { images: source.images.to_device(&device)?, labels: labels.to_device(&device)?, target })
    }

    /// # Randomness
    /// Target index, crop, flip.
    fn target(&self, rng: &mut Rng) -> Result<Option<Example>> {
        let Some(target) = &self.target else { return Ok(None) };
        let example = target.example(rng.below(target.samples.len()))?;
        Ok(Some(target.pipeline.augment(&example, rng)))
    }

    fn finish_target(&self, example: &Example) -> Result<Item> {
        let pipeline = self.target.as_ref().map_or(&self.source.pipeline, |target| &target.pipeline);
        Ok(pipeline.finish(example, &Device::Cpu)?)
    }

    /// # Randomness
    /// Class and file (or file alone), then crops.
    fn source(&self, rng: &mut Rng, style: Option<&Example>) -> Result<Item> {
        let pictures = &self.source;
        let example = match &self.rare {
            None => pictures.pipeline.augment(&pictures.example(rng.below(pictures.samples.len()))?, rng),
            Some(rare) => {
                let draw = rare.draw(rng);
                let whole = pictures.example(draw.file)?;
                let crop = |_| Ok(pictures.pipeline.augment(&whole, rng));
                rare.crop(draw.class, crop, |example: &Example| example.label.as_ref().map_or(&[], |label| &label.ids))?
            }
        };
        let mut item = pictures.pipeline.finish(&example, &Device::Cpu)?;
        if let (true, Some(style)) = (self.fourier > 0.0, style) {
            let (_, height, width) = item.image.dims3()?;
            item.image = self.stylise(&example, style, (height, width))?;
        }
        Ok(item)
    }

    /// The source crop with the low amplitudes of a target crop, normalised, not clipped, and padded with 0.
    fn stylise(&self, example: &Example, style: &Example, padded: (usize, usize)) -> Result<Tensor> {
        let (height, width) = example.size();
        // Amplitudes grow with the number of pixels, so both crops must have one size.
        let resized = (style.size() != (height, width)).then(|| antialiased(&style.image, (height, width)));
        let style = resized.as_ref().unwrap_or(&style.image);
        let transfer = FourierTransfer::new(style.floats(), (height, width), self.fourier)?;
        let pixels = transfer.apply(&example.image.floats(), (height, width))?;
        let Normalize { mean, std } = &self.source.pipeline.normalize;
        let mut planes = vec![0f32; 3 * padded.0 * padded.1];
        for (c, plane) in planes.chunks_exact_mut(padded.0 * padded.1).enumerate() {
            for (target, source) in plane.chunks_exact_mut(padded.1).zip(pixels.chunks_exact(3 * width)) {
                for (value, pixel) in target.iter_mut().zip(source.chunks_exact(3)) {
                    *value = ((f64::from(pixel[c]) - mean[c]) / std[c]) as f32;
                }
            }
        }
        Ok(Tensor::from_vec(planes, (3, padded.0, padded.1), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::progress::Silent;
    use crate::data::{Search, StreetSet};
    use crate::labels::IGNORE;
    use crate::systems::shared::size::Size;

    /// A source smaller than the crop, and a target of another size than the source: labels stay with their pixels, and light is that
    /// of the target, not a multiple of it.
    #[test]
    fn light_of_the_target_keeps_labels_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let set = |name: &str, side: usize, look: &str| {
            let set = StreetSet { count: 2, width: side, height: side, look: vec![look.into()], ..StreetSet::default() };
            set.write(&dir.path().join(name), &Silent).unwrap();
            let spec = format!("street={}", dir.path().join(name).display());
            Dataset::open(&spec, &Search { folders: Vec::new() }).unwrap()
        };
        let (source, target) = (set("day", 48, "day"), set("dusk", 32, "dusk"));
        // Of so few pixels only the mean is exchanged.
        let config = AdaptConfig {
            crop: Size { height: 48, width: 64 },
            source_size: Size { height: 0, width: 0 },
            fourier: 0.01,
            batch_size: 2,
            ..AdaptConfig::default()
        };
        let header = super::super::header(&config, &source);
        let batch = Batches::new(&config, &header, &source, Some(&target), &Silent).unwrap().0.make(3).unwrap();
        assert_eq!((batch.images.dims(), batch.labels.dims()), (&[2, 3, 48, 64][..], &[2, 48, 64][..]));
        let mean = |xs: &Tensor, (height, width): (usize, usize)| {
            let inside = xs.narrow(2, 0, height).unwrap().narrow(3, 0, width).unwrap();
            inside.mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let beside = batch.images.narrow(3, 48, 16).unwrap().abs().unwrap();
        assert_eq!(mean(&beside, (48, 16)), 0.0);
        let labels = batch.labels.narrow(2, 48, 16).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        assert!(labels.iter().all(|id| *id == u32::from(IGNORE)));
        let (light, wanted) = (mean(&batch.images, (48, 48)), mean(&batch.target.unwrap(), (32, 32)));
        assert!((light - wanted).abs() < 0.02, "{light}, that of the target {wanted}");
    }
}
