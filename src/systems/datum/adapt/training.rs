//! The adaptation as a training: the self-training step under AdamW.

use super::batches::Batches;
use crate::base::group::Shares;
use crate::base::metrics::Metrics;
use crate::base::{Error, Result};
use crate::data::{Dataset, Loader};
use crate::io::weights;
use crate::models::segmenter::{EncoderDecoder, SegmenterConfig};
use crate::nn::{Builder, ParamStore};
use crate::systems::datum::config::{AdaptConfig, Strategy};
use crate::systems::shared::segmenter_file::{self, Model};
use crate::systems::shared::validation::Validation;
use crate::train::Gradients;
use crate::train::checkpoint::Checkpoint;
use crate::train::driver::{Snapshot, Training};
use crate::train::guard::Guard;
use crate::train::optim::{AdamW, AdamWConfig, GroupRule, parameter_groups};
use crate::train::schedule::{Schedule, Shape};
use crate::train::stage::Resumable;
use crate::uda::{Config, FeatureDistance, FeatureDistanceConfig, Margins, SelfTraining, StepBatch, StrongAugment, Teacher};
use serde_json::json;
use std::path::Path;

/// A segmenter in adaptation.
pub struct Adaptation {
    engine: SelfTraining<EncoderDecoder>,
    optimizer: AdamW,
    guard: Guard<'static>,
    schedule: Schedule,
    config: AdaptConfig,
    batches: Batches,
    loader: Option<Loader<StepBatch>>,
    /// Scores on the way.
    pub validation: Option<Validation>,
}

impl Adaptation {
    /// Student, teacher and losses as the strategy says.
    ///
    /// # Errors
    /// Weights that do not belong to the encoder, a segmenter to start from that is another network.
    pub fn new(config: &AdaptConfig, source: &Dataset, batches: Batches) -> Result<Self> {
        let model = super::network(config, source);
        let (student, parameters) = student(config, &model)?;
        let rules = [
            GroupRule { key: "head".into(), learning_rate_scale: config.head_multiplier, weight_decay_scale: 1.0 },
            GroupRule { key: "norm".into(), learning_rate_scale: 1.0, weight_decay_scale: 0.0 },
        ];
        let optimizer = AdamW::new(parameter_groups(&parameters, config.weight_decay, &rules), AdamWConfig::default())?;
        let (steps, warmup_steps) = (config.iterations, config.warmup);
        // The SegFormer head carries an unused classifier, as its published files do.
        let segformer = config.decoder == "segformer";
        let trained = |name: &str| !(segformer && name.starts_with("decode_head.conv_seg"));
        Ok(Self {
            guard: Guard::new(parameters.weights().filter(|(name, _)| trained(name)), |_| false)?,
            engine: engine(config, &model, source, student, parameters)?,
            optimizer,
            schedule: Schedule { shape: Shape::Poly, steps, warmup_steps, ..Schedule::default() },
            config: config.clone(),
            batches,
            loader: None,
            validation: None,
        })
    }

    /// The student's tensors.
    pub fn parameters(&self) -> &ParamStore {
        &self.engine.parameters
    }

    fn batch(&mut self, step: u64) -> Result<StepBatch> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => self.loader.insert(self.batches.loader(step, self.config.iterations, self.config.workers)?),
        };
        loader.next().unwrap_or_else(|| Err(Error::Usage(format!("step {step} is past the last one"))))
    }
}

fn student(config: &AdaptConfig, model: &SegmenterConfig) -> Result<(EncoderDecoder, ParamStore)> {
    if !config.encoder_weights.is_empty() {
        return EncoderDecoder::pretrained(model, weights::open(Path::new(&config.encoder_weights))?, config.seed);
    }
    let builder = Builder::random(config.seed);
    let student = EncoderDecoder::new(model, &builder)?;
    Ok((student, builder.finish()?))
}

/// The self-training engine with the parts of the strategy.
fn engine(
    config: &AdaptConfig,
    model: &SegmenterConfig,
    source: &Dataset,
    student: EncoderDecoder,
    parameters: ParamStore,
) -> Result<SelfTraining<EncoderDecoder>> {
    let settings = &config.self_training;
    let augment =
        StrongAugment { jitter_probability: settings.color_jitter, blur_probability: settings.blur, ..StrongAugment::default() };
    let step = Config {
        confidence_threshold: settings.confidence_threshold,
        margins: Margins { top: settings.margin_top, bottom: settings.margin_bottom },
        strong_augment: Some(augment),
    };
    let mut engine = SelfTraining::new(student, parameters, model.normalization(), step);
    engine.shares = Shares::of(config.batch_size)?;
    let adapts = config.strategy != Strategy::SourceOnly;
    if adapts && settings.feature_distance > 0.0 && !config.encoder_weights.is_empty() {
        let imagenet = Builder::from_source(engine.parameters.copied()?.tensors(), 0).frozen();
        let imagenet = EncoderDecoder::new(model, &imagenet)?;
        let thing_classes = source.classes.thing_ids().into_iter().map(|id| id as u32).collect();
        let distance =
            FeatureDistanceConfig { weight: settings.feature_distance, thing_classes, ..FeatureDistanceConfig::default() };
        engine.losses.push(Box::new(FeatureDistance::new(imagenet, distance)));
    }
    if !config.init.is_empty() {
        start_from(Path::new(&config.init), model, &engine.parameters)?;
    }
    if adapts {
        let network = |builder: &Builder| EncoderDecoder::new(model, builder);
        engine.teacher = Some(Teacher::new(&engine.parameters, settings.ema_decay, network)?);
    }
    Ok(engine)
}

/// Gives the student the weights of a trained segmenter of the same network and number of classes.
fn start_from(path: &Path, model: &SegmenterConfig, parameters: &ParamStore) -> Result<()> {
    let (found, weights) = segmenter_file::read(path)?;
    let model = Model::EncoderDecoder(model.clone());
    if found.model != model {
        let show = |model: &Model| serde_json::to_string(model).unwrap_or_default();
        let next = "start from a segmenter of this network, or set encoder, decoder and decoder_channels to its values";
        return Err(Error::data(path, format!("a segmenter {}", show(&model)), show(&found.model), next));
    }
    parameters.load(&*weights)
}

impl Training for Adaptation {
    fn step(&mut self, step: u64) -> Result<Metrics> {
        let batch = self.batch(step)?;
        let output = self.engine.step(step, &batch, self.config.seed)?;
        let gradients = Gradients::from_store(output.gradients, self.optimizer.parameters());
        let rate = self.schedule.learning_rate(self.config.learning_rate, step);
        let norm = self.optimizer.step(&gradients, rate)?;
        self.guard.after_step(&gradients, rate, self.optimizer.parameters())?;
        let mut metrics: Metrics = output.metrics.into_iter().map(|(name, value)| (name, f64::from(value))).collect();
        let loss: f64 = metrics.iter().filter(|(name, _)| name.contains("loss")).map(|(_, value)| value).sum();
        metrics.insert("loss".into(), loss);
        metrics.insert("gradient_norm".into(), norm);
        metrics.insert("learning_rate".into(), rate);
        Ok(metrics)
    }

    fn after(&mut self, done: u64) -> Result<Metrics> {
        let parameters = &self.engine.parameters;
        self.validation.as_ref().map_or_else(|| Ok(Metrics::new()), |validation| validation.after(done, parameters))
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let mut parts = vec![("weights", self.engine.parameters.tensors()), ("optimizer", self.optimizer.state()?)];
        let mut updates = 0;
        if let Some(teacher) = &self.engine.teacher {
            let state = teacher.state();
            updates = state.updates;
            parts.push(("teacher", state.tensors));
        }
        Ok(Snapshot { parts, state: json!({ "teacher_updates": updates }) })
    }
}

impl Resumable for Adaptation {
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.engine.parameters.load(&checkpoint.part("weights")?)?;
        self.optimizer.load_state(&checkpoint.part("optimizer")?)?;
        if let Some(teacher) = &mut self.engine.teacher {
            let state: serde_json::Value = checkpoint.state()?;
            teacher.load_state(&checkpoint.part("teacher")?, state["teacher_updates"].as_u64().unwrap_or(0))?;
        }
        Ok(())
    }
}
