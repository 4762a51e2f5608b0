//! One iteration of self-training.

use super::class_mix::class_mix;
use super::terms::{Context, Labelled, LossTerm, Losses, Metrics, Scored, Stage, Supervision, TargetRelabeler, WholeImage};
use super::{Augmentation, Margins, Mixed, PseudoLabels, StrongAugment, Switches, Teacher};
use crate::base::{Error, Result, Rng, group};
use crate::models::segmenter::{Normalization, Segmenter};
use crate::nn::ParamStore;
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use serde::{Deserialize, Serialize};

/// Settings of the step. The defaults are DAFormer's, without margins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A pixel counts as confident from this softmax probability on, 0…1.
    pub confidence_threshold: f32,
    /// Border rows without weight; [`Margins::DAFORMER`] for parity with DAFormer and DATUM.
    pub margins: Margins,
    /// Jitter and blur of mixed images; `None` switches both off.
    pub strong_augment: Option<StrongAugment>,
}

impl Default for Config {
    fn default() -> Self {
        Self { confidence_threshold: 0.968, margins: Margins::default(), strong_augment: Some(StrongAugment::default()) }
    }
}

/// The images of one step.
#[derive(Debug, Clone)]
pub struct StepBatch {
    /// Source images (B, 3, H, W), normalised.
    pub images: Tensor,
    /// Source labels (B, H, W) u32; values ≥ K are ignored.
    pub labels: Tensor,
    /// Target images (B, 3, H, W), normalised; needed when there is a teacher.
    pub target: Option<Tensor>,
}

/// What one step hands to the optimiser and the log.
#[derive(Debug)]
pub struct StepOutput {
    /// Gradients of the student's weights, summed over all losses. Weights no loss depends on have none.
    pub gradients: GradStore,
    /// Losses (weighted) and other numbers by log key, as `mix.decode.loss_seg`.
    pub metrics: Metrics,
}

/// A student in training and everything that teaches it. Strategies differ in these values only.
pub struct SelfTraining<S> {
    /// The network in training.
    pub student: S,
    /// The student's parameters.
    pub parameters: ParamStore,
    /// How the images were normalised.
    pub normalization: Normalization,
    /// Labels the target. Without a teacher only the source is used: supervised training.
    pub teacher: Option<Teacher<S>>,
    /// How labelled views are scored.
    pub supervision: Box<dyn Supervision<S>>,
    /// Losses besides the supervised ones.
    pub losses: Vec<Box<dyn LossTerm<S>>>,
    /// Change the pseudo-labels, in this order.
    pub relabelers: Vec<Box<dyn TargetRelabeler>>,
    /// Settings.
    pub config: Config,
}

impl<S: Segmenter> SelfTraining<S> {
    /// Supervised training on the source. Set the public fields to adapt.
    pub fn new(student: S, parameters: ParamStore, normalization: Normalization, config: Config) -> Self {
        Self {
            student,
            parameters,
            normalization,
            teacher: None,
            supervision: Box::new(WholeImage),
            losses: Vec::new(),
            relabelers: Vec::new(),
            config,
        }
    }

    /// One iteration, without the optimiser's step: the teacher follows the student, the source is scored, target images
    /// are labelled, mixed with source pixels, augmented and scored.
    ///
    /// Losses on the same images share one backward pass; its graph is dropped before the next forward pass.
    ///
    /// # Source
    /// DAFormer, section 3.4 and its published code: the teacher follows before the step, ignored pixels count in means.
    ///
    /// # Randomness
    /// Streams of `seed` and `iteration` only, so a resumed run repeats what an uninterrupted one would do.
    ///
    /// # Errors
    /// Batch and strategy that do not fit, see [`StepBatch`].
    pub fn step(&mut self, iteration: u64, batch: &StepBatch, seed: u64) -> Result<StepOutput> {
        self.check(batch)?;
        let stream = |purpose| Rng::stream(seed, purpose, &[iteration]);
        let mut output = StepOutput { gradients: GradStore::default(), metrics: Metrics::new() };
        if let Some(teacher) = &mut self.teacher {
            teacher.follow(&self.parameters)?;
        }
        let source = Labelled { images: &batch.images, labels: &batch.labels, weights: None };
        let scored = self.supervision.score(&self.student, source, stream("student source"))?;
        self.finish_stage(Stage::Source, scored, &self.context(batch, iteration, seed), &mut output)?;

        let (Some(teacher), Some(target)) = (&self.teacher, &batch.target) else { return Ok(output) };
        let mut pseudo = teacher.predict(target, self.config.confidence_threshold, self.config.margins)?;
        for relabeler in &mut self.relabelers {
            pseudo.labels = relabeler.relabel(iteration, target, &pseudo.labels)?;
        }
        output.metrics.insert("pseudo_label.confident_share".into(), pseudo.confident_share);
        let (mixed, switches) = self.mix(batch, target, &pseudo, iteration, seed)?;
        let view = Labelled { images: &mixed.images, labels: &mixed.labels, weights: Some(&mixed.weights) };
        let scored = self.supervision.score(&self.student, view, stream("student mixed"))?;
        let context = Context { pseudo: Some(&pseudo), mixed: Some(&mixed), switches, ..self.context(batch, iteration, seed) };
        self.finish_stage(Stage::Mixed, scored, &context, &mut output)?;
        self.finish_stage(Stage::Separate, Scored::default(), &context, &mut output)?;
        Ok(output)
    }

    fn check(&self, batch: &StepBatch) -> Result<()> {
        let target = batch.target.as_ref().map(Tensor::dims);
        if self.teacher.is_none() || target == Some(batch.images.dims()) {
            return Ok(());
        }
        let expected = batch.images.dims();
        Err(Error::Usage(format!(
            "source and target are mixed image by image: expected target images {expected:?}, found {target:?}"
        )))
    }

    /// Adds the stage's extra losses, runs the backward pass and drops the graph.
    fn finish_stage(&self, stage: Stage, scored: Scored, context: &Context<'_, S>, output: &mut StepOutput) -> Result<()> {
        let mut losses = Losses::default();
        losses.absorb(if stage == Stage::Mixed { "mix" } else { "" }, 1.0, scored.losses)?;
        let context = Context { features: &scored.features, ..*context };
        for term in self.losses.iter().filter(|term| term.stage() == stage) {
            losses.absorb(term.name(), term.weight(), term.compute(&context)?)?;
        }
        let (total, metrics) = losses.finish()?;
        output.metrics.extend(metrics);
        match total {
            Some(total) => output.add_gradients(total.backward()?, &self.parameters),
            None => Ok(()),
        }
    }

    /// # Randomness
    /// Streams `class mix` and `augment switches` per iteration, `augment` per iteration and image.
    fn mix(
        &self,
        batch: &StepBatch,
        target: &Tensor,
        pseudo: &PseudoLabels,
        iteration: u64,
        seed: u64,
    ) -> Result<(Mixed, Option<Switches>)> {
        let mut classes = Rng::stream(seed, "class mix", &[iteration]);
        let mut mixed = class_mix(&batch.images, &batch.labels, target, pseudo, &mut classes)?;
        let Some(augment) = self.config.strong_augment else { return Ok((mixed, None)) };
        let switches = augment.switches(&mut Rng::stream(seed, "augment switches", &[iteration]));
        let draw = |image| augment.draw(switches, &mut Rng::stream(seed, "augment", &[iteration, image]));
        let draws: Vec<_> = group::current().items(mixed.images.dim(0)? as u64).map(draw).collect();
        mixed.images = Augmentation::apply(&draws, &mixed.images, &self.normalization)?;
        Ok((mixed, Some(switches)))
    }

    fn context<'a>(&'a self, batch: &'a StepBatch, iteration: u64, seed: u64) -> Context<'a, S> {
        Context {
            student: &self.student,
            supervision: &*self.supervision,
            batch,
            features: &[],
            pseudo: None,
            mixed: None,
            switches: None,
            iteration,
            seed,
        }
    }
}

impl StepOutput {
    /// Takes the gradients of `parameters` over; what candle keeps for constants is dropped.
    fn add_gradients(&mut self, mut gradients: GradStore, parameters: &ParamStore) -> Result<()> {
        for (_, weight) in parameters.weights() {
            let Some(gradient) = gradients.remove(weight) else { continue };
            let sum = match self.gradients.remove(weight) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            self.gradients.insert(weight, sum);
        }
        Ok(())
    }
}
