//! One iteration of self-training.

use super::class_mix::class_mix;
use super::terms::{Context, Labelled, LossTerm, Losses, Metrics, Scored, Stage, Supervision, TargetRelabeler, WholeImage};
use super::{Augmentation, Margins, Mixed, PseudoLabels, StrongAugment, Switches, Teacher};
use crate::base::group::{self, Share, Shares, united};
use crate::base::{Error, Result, Rng};
use crate::models::segmenter::{Normalization, Segmenter};
use crate::nn::{ParamStore, backward, recording};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use serde::{Deserialize, Serialize};

static WHOLE: Share = Share::whole();

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

impl StepBatch {
    /// The rows of a share.
    fn rows(&self, share: &Share) -> Result<Self> {
        let target = self.target.as_ref().map(|target| share.rows(target)).transpose()?;
        Ok(Self { images: share.rows(&self.images)?, labels: share.rows(&self.labels)?, target })
    }
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
    /// How the batch is divided among threads; as the constructor leaves it, not at all.
    pub shares: Shares,
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
            shares: Shares::whole(),
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
        let mut output = StepOutput { gradients: GradStore::default(), metrics: Metrics::new() };
        if let Some(teacher) = &mut self.teacher {
            teacher.follow(&self.parameters)?;
        }
        let context = self.context(batch, iteration, seed);
        self.stage(Stage::Source, &context, &mut output)?;

        let (Some(teacher), Some(target)) = (&self.teacher, &batch.target) else { return Ok(output) };
        let logits = self.shares.each(|share| teacher.predict(&share.rows(target)?, share))?;
        let mut pseudo = PseudoLabels::from_logits(&united(&logits)?, self.config.confidence_threshold, self.config.margins)?;
        drop(logits);
        for relabeler in &mut self.relabelers {
            pseudo.labels = relabeler.relabel(iteration, target, &pseudo.labels)?;
        }
        output.metrics.insert("pseudo_label.confident_share".into(), pseudo.confident_share);
        let (mixed, switches) = self.mix(batch, target, &pseudo, iteration, seed)?;
        let context = Context { pseudo: Some(&pseudo), mixed: Some(&mixed), switches, ..self.context(batch, iteration, seed) };
        self.stage(Stage::Mixed, &context, &mut output)?;
        self.stage(Stage::Separate, &context, &mut output)?;
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

    /// Scores the stage's view and adds the stage's extra losses and their gradients, shares of the batch side by side.
    fn stage(&self, stage: Stage, context: &Context<'_, S>, output: &mut StepOutput) -> Result<()> {
        let shares = self.shares.each(|share| {
            let batch = context.batch.rows(share)?;
            let pseudo = context.pseudo.map(|pseudo| pseudo.rows(share)).transpose()?;
            let mixed = context.mixed.map(|mixed| mixed.rows(share)).transpose()?;
            let own = Context { share, batch: &batch, pseudo: pseudo.as_ref(), mixed: mixed.as_ref(), ..*context };
            recording(|| self.share_of_stage(stage, &own))
        })?;
        for (gradients, metrics) in shares {
            let share = 1.0 / self.shares.count() as f32;
            for (key, value) in metrics {
                *output.metrics.entry(key).or_default() += value * share;
            }
            output.add_gradients(gradients, &self.parameters)?;
        }
        Ok(())
    }

    /// The gradients of one share, as its part in the mean over all, and its metrics. The graph ends here.
    fn share_of_stage(&self, stage: Stage, context: &Context<'_, S>) -> Result<(GradStore, Metrics)> {
        let scored = self.score(stage, context)?;
        let mut losses = Losses::default();
        losses.absorb(if stage == Stage::Mixed { "mix" } else { "" }, 1.0, scored.losses)?;
        let context = Context { features: &scored.features, ..*context };
        for term in self.losses.iter().filter(|term| term.stage() == stage) {
            losses.absorb(term.name(), term.weight(), term.compute(&context)?)?;
        }
        let (total, metrics) = losses.finish()?;
        let Some(total) = total else { return Ok((GradStore::default(), metrics)) };
        let count = self.shares.count();
        let total = if count > 1 { (total / count as f64)? } else { total };
        Ok((backward(&total)?, metrics))
    }

    /// The student on the images of a stage that has some.
    fn score(&self, stage: Stage, context: &Context<'_, S>) -> Result<Scored> {
        let (view, rng) = match (stage, context.mixed) {
            (Stage::Source, _) => {
                let batch = context.batch;
                (Labelled { images: &batch.images, labels: &batch.labels, weights: None }, context.rng("student source"))
            }
            (Stage::Mixed, Some(mixed)) => (
                Labelled { images: &mixed.images, labels: &mixed.labels, weights: Some(&mixed.weights) },
                context.rng("student mixed"),
            ),
            _ => return Ok(Scored::default()),
        };
        self.supervision.score(&self.student, view, rng, context.share)
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
            share: &WHOLE,
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
