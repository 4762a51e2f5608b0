//! One step: both towers on a batch of pairs, the contrastive loss, AdamW.

use super::config::ClipPretrainConfig;
use super::pairs::{PairBatch, Pairs};
use super::retrieval::{CANDIDATES, Retrieval};
use crate::base::metrics::Metrics;
use crate::base::{Result, Rng};
use crate::data::Loader;
use crate::models::clip::{Clip, ClipConfig, LOGIT_SCALE, MAX_LOGIT_SCALE, VisualConfig, contrastive_loss};
use crate::nn::{Builder, ParamStore, Pass};
use crate::systems::clouds::clip_file::{ClipFile, token_ids};
use crate::train::MicroBatches;
use crate::train::checkpoint::Checkpoint;
use crate::train::driver::{Snapshot, Training};
use crate::train::guard::Guard;
use crate::train::optim::{AdamW, AdamWConfig, Group};
use crate::train::schedule::Schedule;
use crate::train::stage::Resumable;
use candle_core::Tensor;
use std::ops::Range;

/// Decay of the second moment, shorter than usual, as in CLIP.
const BETA2: f64 = 0.98;

/// Most pixels of a micro-batch on the CPU.
const MICRO_BATCH_PIXELS: usize = 8 * 128 * 256;

/// A CLIP in training.
pub struct ClipTraining {
    clip: Clip,
    /// Sizes of both towers.
    pub network: ClipConfig,
    /// All weights under open_clip's names.
    pub parameters: ParamStore,
    optimizer: AdamW,
    guard: Guard<'static>,
    schedule: Schedule,
    config: ClipPretrainConfig,
    pairs: Pairs,
    loader: Option<Loader<PairBatch>>,
    micro_batches: MicroBatches,
}

impl ClipTraining {
    /// The weights of `base`, or new ones from the seed.
    ///
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn new(config: &ClipPretrainConfig, pairs: Pairs, base: Option<ClipFile>) -> Result<Self> {
        let (network, clip, parameters) = match base {
            Some(base) => continued(config, base)?,
            None => new_weights(config, pairs.tokenizer().vocab_size())?,
        };
        let micro_batch = (MICRO_BATCH_PIXELS / (config.size.height * config.size.width)).max(1);
        let max_gradient_norm = (config.clip_norm > 0.0).then_some(config.clip_norm);
        let settings = AdamWConfig { beta2: BETA2, max_gradient_norm, ..AdamWConfig::default() };
        Ok(Self {
            clip,
            // As in open_clip.
            optimizer: AdamW::new(Group::decaying_matrices(&parameters, config.weight_decay), settings)?,
            guard: Guard::new(parameters.weights(), |_| false)?,
            schedule: config.schedule(),
            config: config.clone(),
            network,
            micro_batches: MicroBatches::new(config.batch_size, micro_batch, parameters.weights())?,
            parameters,
            pairs,
            loader: None,
        })
    }

    fn batch(&mut self, step: u64) -> Result<PairBatch> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => self.loader.insert(self.pairs.loader(step)?),
        };
        loader.next().unwrap_or_else(|| self.pairs.make(step))
    }

    /// How well the held-out images and captions find each other now, in groups of [`CANDIDATES`]; pairs that do not fill a group
    /// are left out, unless there is no whole group.
    pub fn retrieval(&self) -> Result<Retrieval> {
        let clip = Clip::new(&self.network, &Builder::from_store(&self.parameters).frozen())?;
        let total = self.pairs.held_out_count();
        let end = if total < CANDIDATES { total } else { total / CANDIDATES * CANDIDATES };
        let mut found = Retrieval::default();
        for start in (0..end).step_by(CANDIDATES) {
            let (images, captions) = self.pairs.held_out(start, CANDIDATES)?;
            let texts = clip.text_vectors(&token_ids(self.pairs.tokenizer(), &captions)?)?;
            found.add(&clip.image_vectors(&images, &Pass::eval())?, &texts, &captions)?;
        }
        Ok(found)
    }

    /// Keeps the logit scale at 100 or below.
    fn limit_scale(&self) -> Result<f64> {
        let Some(var) = self.parameters.get(LOGIT_SCALE) else { return Ok(f64::NAN) };
        let value = var.to_scalar::<f32>()?.min(MAX_LOGIT_SCALE);
        var.set(&Tensor::full(value, (), var.device())?)?;
        Ok(f64::from(value).exp())
    }
}

/// A CLIP with new weights.
fn new_weights(config: &ClipPretrainConfig, vocabulary: usize) -> Result<(ClipConfig, Clip, ParamStore)> {
    let network = config.network(vocabulary);
    let builder = Builder::random(config.seed);
    let clip = Clip::new(&network, &builder)?;
    let parameters = builder.finish()?;
    for (_, gamma) in parameters.weights().filter(|(name, _)| name.ends_with(".gamma")) {
        gamma.set(&Tensor::full(config.model.layer_scale, gamma.dims(), gamma.device())?)?;
    }
    Ok((network, clip, parameters))
}

/// `base` in training, with the stochastic depth of `config`.
fn continued(config: &ClipPretrainConfig, base: ClipFile) -> Result<(ClipConfig, Clip, ParamStore)> {
    let mut network = base.config;
    if let VisualConfig::ConvNext(convnext) = &mut network.visual {
        convnext.drop_path = config.model.drop_path;
    }
    let builder = Builder::from_source(base.tensors, config.seed);
    let clip = Clip::new(&network, &builder)?;
    Ok((network, clip, builder.finish()?))
}

impl Training for ClipTraining {
    /// # Randomness
    /// The pairs, and stochastic depth, each from streams of the step.
    fn step(&mut self, step: u64) -> Result<Metrics> {
        let batch = self.batch(step)?;
        let (clip, seed) = (&self.clip, self.config.seed);
        let vectors = |range: Range<usize>| {
            let part = |all: &Tensor| all.narrow(0, range.start, range.len());
            let pass = Pass::train(Rng::stream(seed, "clip depth", &[step, range.start as u64]));
            Ok(vec![clip.image_vectors(&part(&batch.images)?, &pass)?, clip.text_vectors(&part(&batch.ids)?)?])
        };
        let loss = |vectors: &[Tensor]| {
            let loss = contrastive_loss(&vectors[0], &vectors[1], clip.logit_scale())?;
            Ok((loss.clone(), vec![("loss".into(), loss)]))
        };
        let (gradients, mut metrics) =
            self.micro_batches.joined(batch.ids.dim(0)?, self.optimizer.parameters(), vectors, loss)?;
        let rate = self.schedule.learning_rate(self.config.learning_rate, step);
        let norm = self.optimizer.step(&gradients, rate)?;
        self.guard.after_step(&gradients, rate, self.optimizer.parameters())?;
        metrics.extend([
            ("logit_scale".into(), self.limit_scale()?),
            ("gradient_norm".into(), norm),
            ("learning_rate".into(), rate),
        ]);
        Ok(metrics)
    }

    /// Shares of held-out pairs that are found, when scores are due.
    fn after(&mut self, done: u64) -> Result<Metrics> {
        let due = done.is_multiple_of(self.config.validation_steps) || done == self.config.steps;
        if !due || self.pairs.held_out_count() == 0 {
            return Ok(Metrics::new());
        }
        let found = self.retrieval()?;
        Ok(Metrics::from([
            ("validation.image_to_text".into(), found.share(found.image_to_text as f64)),
            ("validation.text_to_image".into(), found.share(found.text_to_image as f64)),
        ]))
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let parts = vec![("weights", self.parameters.tensors()), ("optimizer", self.optimizer.state()?)];
        Ok(Snapshot { parts, ..Snapshot::default() })
    }
}

impl Resumable for ClipTraining {
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.parameters.load(&checkpoint.part("weights")?)?;
        self.optimizer.load_state(&checkpoint.part("optimizer")?)
    }
}
