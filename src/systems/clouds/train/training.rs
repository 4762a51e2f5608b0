//! One step of CLOUDS: student, teacher, refinement, losses, AdamW.

use super::batches::{Batches, TrainBatch};
use super::config::{ClassHead, Part, TrainConfig};
use super::teacher::Teacher;
use crate::base::metrics::Metrics;
use crate::base::{Error, Result, Rng};
use crate::data::Loader;
use crate::io::images::RgbImage;
use crate::io::weights;
use crate::labels::{Classes, LabelMap};
use crate::models::clip::VisualConfig;
use crate::models::mask2former::{Criterion, Mask2Former, Mask2FormerConfig, Prediction, Target, TextClasses, VOID, is_decayed};
use crate::nn::{Builder, ParamStore, Pass};
use crate::systems::clouds::class_names::{self, ClassNames};
use crate::systems::clouds::nano;
use crate::systems::clouds::refine::{ClassMasks, MaskProposer, RefineConfig, refine};
use crate::systems::shared::published::{self, WithVectors};
use crate::systems::shared::segmenter_file::{self, Model};
use crate::systems::shared::validation::Validation;
use crate::train::checkpoint::Checkpoint;
use crate::train::driver::{Snapshot, Training};
use crate::train::guard::Guard;
use crate::train::optim::{AdamW, AdamWConfig, Group};
use crate::train::schedule::Schedule;
use crate::train::stage::Resumable;
use crate::train::{Gradients, MicroBatches};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

const BACKBONE: &str = "backbone.";
/// Part of the queries of deformable attention, which starts without using them: offsets and weights begin as constants.
const LEVEL_EMBED: &str = "sem_seg_head.pixel_decoder.transformer.level_embed";

/// Seconds that a training took, also before it was resumed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// All steps.
    pub steps: f64,
    /// The teacher's part.
    pub teacher: f64,
    /// The refinement's part.
    pub refinement: f64,
}

/// A segmenter in training.
pub struct CloudsTraining {
    student: Mask2Former,
    classes: Option<TextClasses>,
    /// The student's tensors.
    pub parameters: ParamStore,
    /// Where the time went.
    pub cost: Cost,
    /// Scores on the way.
    pub validation: Option<Validation>,
    teacher: Option<Teacher>,
    refiner: Option<Box<dyn MaskProposer>>,
    refinement: RefineConfig,
    criterion: Criterion,
    optimizer: AdamW,
    guard: Guard<'static>,
    schedule: Schedule,
    config: TrainConfig,
    num_classes: usize,
    batches: Batches,
    loader: Option<Loader<TrainBatch>>,
    micro_batches: MicroBatches,
}

impl CloudsTraining {
    /// Student, teacher and losses as the settings say.
    ///
    /// # Errors
    /// Weights of another network.
    pub fn new(
        config: &TrainConfig,
        network: &Mask2FormerConfig,
        names: Option<ClassNames>,
        batches: Batches,
        refiner: Option<Box<dyn MaskProposer>>,
    ) -> Result<Self> {
        let (student, classes, parameters) = student(config, network, names.and_then(|names| names.vectors))?;
        let teacher = match config.stage {
            Part::Warmup => None,
            Part::Joint => Some(Teacher::new(network, &parameters, config.teacher.clone())?),
        };
        let clip = (config.clip_norm > 0.0).then_some(config.clip_norm);
        let optimizer =
            AdamW::new(groups(config, &parameters), AdamWConfig { max_gradient_norm: clip, ..AdamWConfig::default() })?;
        let num_classes = network.head.num_classes;
        // Stochastic depth and layer scales near 0 leave some of the backbone next to nothing to learn from in the first steps.
        let skips = config.model.drop_path > 0.0;
        let may_be_zero = move |name: &str| (skips && name.starts_with(BACKBONE)) || name == LEVEL_EMBED;
        Ok(Self {
            student,
            classes,
            cost: Cost::default(),
            validation: None,
            teacher,
            refiner,
            refinement: config.refinement(),
            criterion: Criterion::new(config.criterion(num_classes))?,
            guard: Guard::new(optimizer.parameters(), may_be_zero)?,
            micro_batches: MicroBatches::new(config.batch_size, micro_batch(network), optimizer.parameters())?,
            optimizer,
            schedule: config.schedule(),
            config: config.clone(),
            num_classes,
            parameters,
            batches,
            loader: None,
        })
    }

    fn batch(&mut self, step: u64) -> Result<TrainBatch> {
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => self.loader.insert(self.batches.loader(step, self.config.steps(), self.config.workers)?),
        };
        loader.next().unwrap_or_else(|| Err(Error::Usage(format!("step {step} is past the last one"))))
    }

    /// What the teacher sees on the generated images of a batch, refined; and the seconds of both.
    ///
    /// # Randomness
    /// One stream for each generated image of the step.
    fn pseudo_targets(&self, step: u64, batch: &TrainBatch) -> Result<(Vec<Target>, Cost)> {
        let (Some(teacher), Some(clean)) = (&self.teacher, &batch.clean) else { return Ok((Vec::new(), Cost::default())) };
        let start = Instant::now();
        let labels = teacher.label(clean)?;
        let labelled = start.elapsed().as_secs_f64();
        let target = |(item, (label, picture)): (usize, (&LabelMap, &RgbImage))| {
            let Some(refiner) = &self.refiner else { return Ok(Target::from_label_map(label, self.num_classes)) };
            let mut rng = Rng::stream(self.config.seed, "clouds refine", &[step, item as u64]);
            let masks = refine(refiner.as_ref(), picture, label, &self.refinement, &mut rng)?;
            Ok(target((label.height, label.width), masks, self.config.sam.drop_empty))
        };
        let targets = labels.iter().zip(&batch.pictures).enumerate().map(target).collect::<Result<Vec<_>>>()?;
        let refined = start.elapsed().as_secs_f64() - labelled;
        let refinement = if self.refiner.is_some() { refined } else { 0.0 };
        Ok((targets, Cost { steps: 0.0, teacher: labelled, refinement }))
    }

    /// The student's gradients, and the losses of its last layer.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), a target each
    fn gradients(&self, step: u64, images: &Tensor, targets: &[Target]) -> Result<(Gradients, Metrics)> {
        let (student, classes, seed) = (&self.student, self.classes.as_ref(), self.config.seed);
        let predict = |range: Range<usize>| {
            let pass = Pass::train(Rng::stream(seed, "clouds depth", &[step, range.start as u64]));
            let images = images.narrow(0, range.start, range.len())?;
            let predictions = student.head(&student.features(&images, &pass)?, classes)?;
            Ok(predictions.into_iter().flat_map(|Prediction { logits, masks }| [logits, masks]).collect())
        };
        let mut rng = Rng::stream(seed, "clouds points", &[step]);
        let losses = |outputs: &[Tensor]| {
            let prediction = |pair: &[Tensor]| Prediction { logits: pair[0].clone(), masks: pair[1].clone() };
            let predictions: Vec<_> = outputs.chunks_exact(2).map(prediction).collect();
            let losses = self.criterion.losses(&predictions, targets, &mut |n| (0..n).map(|_| rng.uniform()).collect())?;
            let total = losses.total()?;
            let last = losses.named().into_iter().rev().take(3);
            Ok((total.clone(), last.chain([("loss".to_string(), total)]).collect()))
        };
        self.micro_batches.joined(images.dim(0)?, self.optimizer.parameters(), predict, losses)
    }
}

/// Images of a micro-batch: one, or all where batch norm learns.
fn micro_batch(network: &Mask2FormerConfig) -> usize {
    if network.freeze_backbone || matches!(network.backbone, VisualConfig::ConvNext(_)) { 1 } else { usize::MAX }
}

/// Refined masks as a target. Pixels of no mask are negatives of all.
fn target(size: (usize, usize), masks: ClassMasks, drop_empty: bool) -> Target {
    let mut target = Target { size, labels: Vec::new(), masks: Vec::new() };
    for (class, mask) in masks {
        if drop_empty && !mask.contains(&true) {
            continue;
        }
        target.labels.push(u32::from(class));
        target.masks.extend(mask.into_iter().map(u8::from));
    }
    target
}

/// The names that the settings compare with; `None` where they do not.
///
/// # Errors
/// A start without what the settings want; a CLIP without a text tower, or without what makes vectors of images.
pub fn class_names(config: &TrainConfig, classes: &Classes) -> Result<Option<ClassNames>> {
    if !config.compares_names() {
        return Ok(None);
    }
    let wants_clip = config.model.ensemble;
    if config.init.is_empty() {
        let names = class_names::of(&config.backbone_weights, &config.backbone()?, classes, wants_clip)?;
        return Ok(Some(names));
    }
    let path = Path::new(&config.init);
    let (text, ensemble) = match segmenter_file::read(path)?.0.model {
        Model::Mask2Former { mask2former } => (mask2former.head.text, mask2former.ensemble),
        Model::EncoderDecoder(_) => (None, None),
    };
    let differs = |option: &str| {
        let expected = format!("a segmenter that was trained with {option}, as the settings say");
        Err(Error::data(path, expected, "one without", "start from a warm-up with the same value"))
    };
    match (text, ensemble) {
        (None, _) if config.model.class_head == ClassHead::Text => differs("model.class_head = \"text\""),
        (_, None) if wants_clip => differs("model.ensemble = true"),
        (text, ensemble) => {
            let image_head = ensemble.as_ref().filter(|_| wants_clip).map(|ensemble| ensemble.image_head);
            let names = text.or(ensemble.map(|ensemble| ensemble.names));
            Ok(names.map(|names| ClassNames { names, image_head, vectors: None }))
        }
    }
}

/// The student: from a segmenter, from weights of its backbone and `vectors` of class names, or all drawn.
fn student(
    config: &TrainConfig,
    network: &Mask2FormerConfig,
    vectors: Option<Tensor>,
) -> Result<(Mask2Former, Option<TextClasses>, ParamStore)> {
    let drawn: &[&str] = if config.init.is_empty() { &["sem_seg_head.", VOID] } else { &[] };
    let builder = match (config.init.as_str(), config.backbone_weights.as_str()) {
        ("", "") => Builder::random(config.seed),
        ("", name) => {
            let weights = match network.ensemble {
                Some(_) => weights::clip::visual_with_head(backbone(name, network)?)?,
                None => weights::clip::visual(backbone(name, network)?)?,
            };
            match vectors {
                Some(vectors) => Builder::from_source(WithVectors { network: weights, vectors }, config.seed),
                None => Builder::from_source(weights, config.seed),
            }
        }
        (init, _) => Builder::from_source(initial(Path::new(init), network)?, config.seed),
    };
    let student = Mask2Former::new(network, &builder)?;
    let classes = network.head.text.as_ref().map(|text| TextClasses::build(text, &builder)).transpose()?;
    Ok((student, classes, builder.finish_partial(drawn, &[])?))
}

/// The CLIP of that name: the one inside the program, or a file.
fn backbone(name: &str, network: &Mask2FormerConfig) -> Result<Box<dyn weights::TensorSource>> {
    if name != nano::NAME {
        return weights::open(Path::new(name));
    }
    let clip = nano::open()?;
    let wanted = published::as_file(network).backbone;
    if clip.config.visual == wanted {
        return Ok(Box::new(clip.tensors));
    }
    let next = "add `--recipe clouds-nano`, or set model.backbone, model.depths and model.widths to its sizes";
    Err(Error::data(name, format!("the backbone of the settings, {wanted:?}"), format!("{:?}", clip.config.visual), next))
}

/// The weights of a trained segmenter of that network.
fn initial(path: &Path, network: &Mask2FormerConfig) -> Result<Box<dyn weights::TensorSource>> {
    let (found, source) = segmenter_file::read(path)?;
    let wanted = Model::Mask2Former { mask2former: Box::new(published::as_file(network)) };
    if found.model == wanted {
        return Ok(source);
    }
    let show = |model: &Model| serde_json::to_string(model).unwrap_or_default();
    let next = "start from a segmenter of this network, or set `model` and the source to its values";
    Err(Error::data(path, format!("a segmenter {}", show(&wanted)), show(&found.model), next))
}

/// Head and, where it is trained, backbone; each with and without weight decay.
pub fn groups(config: &TrainConfig, parameters: &ParamStore) -> Vec<Group> {
    let group = |name: &str, in_backbone: bool, decays: bool| Group {
        name: name.into(),
        parameters: parameters
            .weights()
            .filter(|(name, _)| name.starts_with(BACKBONE) == in_backbone && is_decayed(name, parameters) == decays)
            .map(|(name, var)| (name.to_string(), var.clone()))
            .collect(),
        learning_rate_scale: if in_backbone { config.backbone_multiplier } else { 1.0 },
        weight_decay: if decays { config.weight_decay } else { 0.0 },
    };
    let mut groups = vec![group("head", false, true), group("head, no decay", false, false)];
    if !config.model.freeze_backbone {
        groups.extend([group("backbone", true, true), group("backbone, no decay", true, false)]);
    }
    groups
}

impl Training for CloudsTraining {
    /// # Randomness
    /// Stochastic depth, the points of the losses, and the refinement, each from streams of the step.
    fn step(&mut self, step: u64) -> Result<Metrics> {
        let start = Instant::now();
        let batch = self.batch(step)?;
        if let Some(teacher) = &self.teacher {
            teacher.follow(step, &self.parameters)?;
        }
        let mut targets: Vec<Target> = batch.labels.iter().map(|label| Target::from_label_map(label, self.num_classes)).collect();
        let (pseudo, cost) = self.pseudo_targets(step, &batch)?;
        targets.extend(pseudo);
        let (gradients, mut metrics) = self.gradients(step, &batch.images, &targets)?;
        let rate = self.schedule.learning_rate(self.config.learning_rate, step);
        let norm = self.optimizer.step(&gradients, rate)?;
        let masks: usize = targets.iter().map(|target| target.labels.len()).sum();
        // Without any mask the decoders of masks rightly have no gradient.
        if masks > 0 {
            self.guard.after_step(&gradients, rate, self.optimizer.parameters())?;
        }
        let numbers = [("gradient_norm", norm), ("learning_rate", rate), ("masks", masks as f64)];
        metrics.extend(numbers.map(|(name, value)| (name.to_string(), value)));
        if self.teacher.is_some() {
            metrics.insert("generated_images".into(), batch.pictures.len() as f64);
            metrics.insert("seconds.teacher".into(), cost.teacher);
            metrics.insert("seconds.refinement".into(), cost.refinement);
        }
        self.cost.teacher += cost.teacher;
        self.cost.refinement += cost.refinement;
        self.cost.steps += start.elapsed().as_secs_f64();
        Ok(metrics)
    }

    fn after(&mut self, done: u64) -> Result<Metrics> {
        self.validation.as_ref().map_or_else(|| Ok(Metrics::new()), |validation| validation.after(done, &self.parameters))
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let mut parts = vec![("weights", self.parameters.tensors()), ("optimizer", self.optimizer.state()?)];
        parts.extend(self.teacher.as_ref().map(|teacher| ("teacher", teacher.tensors())));
        let state = serde_json::to_value(self.cost).map_err(|e| Error::Usage(e.to_string()))?;
        Ok(Snapshot { parts, state })
    }
}

impl Resumable for CloudsTraining {
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.parameters.load(&checkpoint.part("weights")?)?;
        self.optimizer.load_state(&checkpoint.part("optimizer")?)?;
        if let Some(teacher) = &self.teacher {
            teacher.load(&checkpoint.part("teacher")?)?;
        }
        self.cost = checkpoint.state()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_masks_claim_a_query_unless_they_are_dropped() {
        let masks = || ClassMasks::from([(2, vec![false; 4]), (5, vec![true, false, false, true])]);
        let kept = target((2, 2), masks(), false);
        assert_eq!((kept.labels, kept.masks), (vec![2, 5], vec![0, 0, 0, 0, 1, 0, 0, 1]));
        let dropped = target((2, 2), masks(), true);
        assert_eq!((dropped.labels, dropped.masks), (vec![5], vec![1, 0, 0, 1]));
    }
}
