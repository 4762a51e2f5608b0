//! One step: photos are encoded, pieces of them asked for by points, then again by what was answered, AdamW.

use super::config::{SCRATCH, SamPretrainConfig};
use super::examples::{Asked, Examples};
use crate::base::metrics::Metrics;
use crate::base::{Error, Result, Rng, device};
use crate::io::weights;
use crate::models::sam::{MASK_THRESHOLD, Prompts, Sam, SamConfig};
use crate::nn::{Builder, Linear, ParamStore, Pass, cross_entropy, mask_losses, mse};
use crate::train::checkpoint::Checkpoint;
use crate::train::driver::{Snapshot, Training};
use crate::train::guard::Guard;
use crate::train::optim::{AdamW, AdamWConfig, Group};
use crate::train::schedule::Schedule;
use crate::train::stage::Resumable;
use crate::train::{MicroBatches, Numbers};
use candle_core::{D, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Answers to a prompt: one, and three for ambiguous prompts.
const ANSWERS: usize = 4;
/// Weight of the Dice loss beside the cross-entropy, and of the error of expected IoUs.
const DICE: f64 = 1.0;
const QUALITY: f64 = 1.0;

/// Prefix of the layer that only training has.
const CLASSES: &str = "classes";
/// Cells of a mask along a side of a token.
const CELLS: usize = 4;

/// The network in training.
pub struct Network {
    sam: Sam,
    /// Tells the classes of the cells of each token, if it is to.
    classes: Option<Linear>,
}

impl Network {
    /// Side of the encoder's image in pixels.
    pub fn image_size(&self) -> usize {
        self.sam.image_size()
    }
}

/// A Segment Anything in training.
pub struct SamTraining {
    network: Network,
    /// All that is trained, and the frequencies of positions.
    pub parameters: ParamStore,
    examples: Examples,
    optimizer: AdamW,
    guard: Guard<'static>,
    schedule: Schedule,
    config: SamPretrainConfig,
    micro_batches: MicroBatches,
}

/// The network that training begins with.
///
/// # Errors
/// A base that is no Segment Anything.
pub fn start(config: &SamPretrainConfig) -> Result<(Network, ParamStore)> {
    let (network, builder) = if config.base == SCRATCH {
        (config.network(), Builder::random(config.seed))
    } else {
        let source = weights::open(Path::new(&config.base))?;
        let network = SamConfig::of_shapes(&source.shapes()).ok_or_else(|| {
            Error::data(&config.base, "weights of Segment Anything", "others", "give a file of `clouds pretrain-sam`")
        })?;
        (network, Builder::from_source(source, config.seed))
    };
    let sam = Sam::new(&network, &builder)?;
    let outputs = CELLS * CELLS * config.label_classes;
    let classes = (config.class_loss > 0.0).then(|| Linear::new(network.dim, outputs, &builder.pp(CLASSES))).transpose()?;
    Ok((Network { sam, classes }, builder.finish_partial(&[CLASSES], &[CLASSES])?))
}

impl SamTraining {
    /// # Errors
    /// Sizes that do not fit each other.
    pub fn new(config: &SamPretrainConfig, (network, parameters): (Network, ParamStore), examples: Examples) -> Result<Self> {
        let settings = AdamWConfig { max_gradient_norm: Some(1.0), ..AdamWConfig::default() };
        // Points outside are never asked with; relative positions and masks as prompts start with next to no effect.
        let may_be_zero = |name: &str| name.contains("point_embeddings") || name.contains("rel_pos");
        Ok(Self {
            optimizer: AdamW::new(Group::decaying_matrices(&parameters, config.weight_decay), settings)?,
            guard: Guard::new(parameters.weights(), may_be_zero)?,
            schedule: config.schedule(),
            micro_batches: MicroBatches::new(config.batch_size, 1, parameters.weights())?,
            config: config.clone(),
            network,
            parameters,
            examples,
        })
    }

    /// All weights under the published names, with the frequencies of positions.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        self.parameters.select(|name| !name.starts_with(CLASSES)).tensors()
    }

    /// Mean IoU of the masks that are expected to be best, over all prompts on the photos held out; none without any.
    pub fn held_out_iou(&self) -> Result<Option<f64>> {
        let sam = &self.network.sam;
        let of_photo = |index: usize| -> Result<Vec<f64>> {
            let Some(asked) = self.examples.held_out(index)? else { return Ok(Vec::new()) };
            let embedding = sam.encode(&images(&[&asked], sam.image_size())?, &Pass::eval())?.detach();
            let prompts = asked.points.placed(asked.size, asked.seen)?;
            let (logits, quality) = sam.answers(&embedding, &prompts)?;
            let ious = overlaps(&logits, &asked.targets)?;
            let quality: Vec<Vec<f32>> = quality.to_vec2()?;
            let best = |row: &[f32]| (1..ANSWERS).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap_or(0);
            Ok(quality.iter().zip(&ious).map(|(row, ious)| f64::from(ious[best(row)])).collect())
        };
        let found: Vec<f64> = (0..self.examples.held_out_count()).map(of_photo).collect::<Result<Vec<_>>>()?.concat();
        Ok((!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64))
    }
}

/// The encoder's images, (B, 3, S, S).
fn images(asked: &[&Asked], side: usize) -> Result<Tensor> {
    let planes: Vec<f32> = asked.iter().flat_map(|asked| asked.planes.iter().copied()).collect();
    Ok(Tensor::from_vec(planes, (asked.len(), 3, side, side), &device::current())?)
}

/// IoU of each answer (B, 4, h, w) and its target.
fn overlaps(logits: &Tensor, targets: &[Vec<f32>]) -> Result<Vec<[f32; ANSWERS]>> {
    let rows: Vec<Vec<f32>> = logits.detach().flatten_from(2)?.flatten(0, 1)?.to_vec2()?;
    let iou = |logits: &[f32], target: &[f32]| {
        let (mut both, mut any) = (0u32, 0u32);
        for (logit, target) in logits.iter().zip(target) {
            let (found, wanted) = (*logit > MASK_THRESHOLD, *target > 0.5);
            both += u32::from(found && wanted);
            any += u32::from(found || wanted);
        }
        both as f32 / any.max(1) as f32
    };
    let of_prompt = |(answers, target): (&[Vec<f32>], &Vec<f32>)| std::array::from_fn(|i| iou(&answers[i], target));
    Ok(rows.chunks_exact(ANSWERS).zip(targets).map(of_prompt).collect())
}

/// The loss of answers, their IoUs, and for each prompt the number of the one with the smallest loss of the last three.
///
/// # Source
/// Segment Anything, sections 3 and A: of the three answers only the best is learned from. Instead of focal and Dice loss 20 : 1,
/// cross-entropy and Dice loss, as Mask2Former's.
fn loss(logits: &Tensor, quality: &Tensor, targets: &[Vec<f32>]) -> Result<(Tensor, Vec<[f32; ANSWERS]>, Vec<usize>)> {
    let (prompts, _, height, width) = logits.dims4()?;
    let repeated: Vec<f32> = targets.iter().flat_map(|target| (0..ANSWERS).flat_map(|_| target.iter().copied())).collect();
    let losses = mask_losses(&logits.reshape((prompts * ANSWERS, height * width))?, repeated)?;
    let losses = (losses.narrow(1, 0, 1)? + (losses.narrow(1, 1, 1)? * DICE)?)?.reshape((prompts, ANSWERS))?;
    let values: Vec<Vec<f32>> = losses.detach().to_vec2()?;
    let best = |row: &Vec<f32>| (1..ANSWERS).reduce(|a, b| if row[b] < row[a] { b } else { a }).unwrap_or(1);
    let best: Vec<usize> = values.iter().map(best).collect();
    let counted: Vec<f32> =
        best.iter().flat_map(|best| (0..ANSWERS).map(move |i| f32::from(u8::from(i == 0 || i == *best)))).collect();
    let counted = Tensor::from_vec(counted, (prompts, ANSWERS), losses.device())?;
    let ious = overlaps(logits, targets)?;
    let truth = Tensor::from_vec(ious.concat(), (prompts, ANSWERS), losses.device())?;
    let masks = ((losses * counted)?.sum_all()? / prompts as f64)?;
    Ok(((masks + (mse(quality, &truth)? * QUALITY)?)?, ious, best))
}

/// Loss and mean IoU of the best answers of one photo: by points, then by the box around the piece (every other photo: by the
/// points again) and the best answer as a mask.
fn photo(sam: &Sam, embedding: &Tensor, asked: &Asked, with_box: bool) -> Result<(Tensor, f64)> {
    let mut prompts = asked.points.placed(asked.size, asked.seen)?;
    let (logits, quality) = sam.answers(embedding, &prompts)?;
    let (first, ious, best) = loss(&logits, &quality, &asked.targets)?;
    let answers = logits.detach();
    let one = |(i, best): (usize, &usize)| answers.narrow(0, i, 1)?.narrow(1, *best, 1);
    let masks = best.iter().enumerate().map(one).collect::<candle_core::Result<Vec<_>>>()?;
    if with_box {
        prompts = asked.boxes.placed(asked.size, asked.seen)?;
    }
    let again = Prompts { masks: Some(Tensor::cat(&masks, 0)?), ..prompts };
    let (logits, quality) = sam.answers(embedding, &again)?;
    let (second, ..) = loss(&logits, &quality, &asked.targets)?;
    let iou = ious.iter().zip(&best).map(|(ious, best)| f64::from(ious[*best])).sum::<f64>() / best.len() as f64;
    Ok((((first + second)? / 2.0)?, iou))
}

/// Cross-entropy of the classes of all cells, those beyond the photo counted as 0.
///
/// # Shapes
/// `embeddings` (B, C, g, g)
fn class_loss(head: &Linear, embeddings: &Tensor, asked: &[Asked]) -> Result<Tensor> {
    let (batch, _, side, _) = embeddings.dims4()?;
    let logits = head.forward(&embeddings.permute((0, 2, 3, 1))?.contiguous()?)?;
    let classes = logits.dim(3)? / (CELLS * CELLS);
    let logits = logits.reshape(vec![batch, side, side, CELLS, CELLS, classes])?.permute(vec![0, 5, 1, 3, 2, 4])?;
    let logits = logits.contiguous()?.reshape((batch, classes, side * CELLS, side * CELLS))?;
    let ids: Vec<u32> = asked.iter().flat_map(|asked| asked.classes.iter().map(|id| u32::from(*id))).collect();
    let ids = Tensor::from_vec(ids, (batch, side * CELLS, side * CELLS), logits.device())?;
    Ok(cross_entropy(&logits, &ids, None)?)
}

/// Mean loss of some photos of a step, the first of them number `first`, and its numbers.
fn losses(network: &Network, asked: &[Asked], first: usize, class_weight: f64) -> Result<(Tensor, Numbers)> {
    let sam = &network.sam;
    let embeddings = sam.encode(&images(&asked.iter().collect::<Vec<_>>(), sam.image_size())?, &Pass::eval())?;
    let (mut losses, mut iou) = (Vec::new(), 0.0);
    for (i, asked) in asked.iter().enumerate() {
        let (loss, found) = photo(sam, &embeddings.narrow(0, i, 1)?, asked, (first + i).is_multiple_of(2))?;
        losses.push(loss);
        iou += found;
    }
    let mut loss = Tensor::stack(&losses, 0)?.mean(D::Minus1)?;
    let iou = Tensor::new((iou / asked.len() as f64) as f32, loss.device())?;
    let mut numbers: Numbers = vec![("outlines".into(), loss.clone()), ("iou".into(), iou)];
    if let Some(head) = &network.classes {
        let classes = class_loss(head, &embeddings, asked)?;
        numbers.push(("classes".into(), classes.clone()));
        loss = (loss + (classes * class_weight)?)?;
    }
    numbers.push(("loss".into(), loss.clone()));
    Ok((loss, numbers))
}

impl Training for SamTraining {
    /// # Randomness
    /// Each photo of the step from a stream of its own.
    fn step(&mut self, step: u64) -> Result<Metrics> {
        let random = |item: u64| self.examples.random(Rng::stream(self.config.seed, "sam item", &[step, item]));
        let asked: Vec<Asked> = (0..self.config.batch_size as u64).into_par_iter().map(random).collect::<Result<_>>()?;
        let (network, class_weight) = (&self.network, self.config.class_loss);
        let losses = |range: Range<usize>| losses(network, &asked[range.clone()], range.start, class_weight);
        let (gradients, mut metrics) = self.micro_batches.gradients(asked.len(), self.optimizer.parameters(), losses)?;
        let rate = self.schedule.learning_rate(self.config.learning_rate, step);
        let norm = self.optimizer.step(&gradients, rate)?;
        self.guard.after_step(&gradients, rate, self.optimizer.parameters())?;
        metrics.extend([("gradient_norm".into(), norm), ("learning_rate".into(), rate)]);
        Ok(metrics)
    }

    /// The IoU of photos held out, when scores are due.
    fn after(&mut self, done: u64) -> Result<Metrics> {
        let due = done.is_multiple_of(self.config.validation_steps) || done == self.config.steps;
        let found = if due { self.held_out_iou()? } else { None };
        Ok(found.map(|iou| ("validation.iou".to_string(), iou)).into_iter().collect())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let parts = vec![("weights", self.parameters.tensors()), ("optimizer", self.optimizer.state()?)];
        Ok(Snapshot { parts, ..Snapshot::default() })
    }
}

impl Resumable for SamTraining {
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.parameters.load(&checkpoint.part("weights")?)?;
        self.optimizer.load_state(&checkpoint.part("optimizer")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systems::clouds::sam_masks::PicturePrompts;
    use candle_core::{DType, Device};

    /// A layer that says of the cell in row r and column c of every token: class 2 r + c.
    #[test]
    fn classes_are_asked_for_in_the_place_of_their_cell() {
        let classes = 2 * CELLS + CELLS;
        let of_cell = |row: usize, column: usize| 2 * row + column;
        let said = |output: usize| {
            let (cell, class) = (output / classes, output % classes);
            if of_cell(cell / CELLS, cell % CELLS) == class { 50f32 } else { 0.0 }
        };
        let outputs = CELLS * CELLS * classes;
        let source = BTreeMap::from([
            ("weight".to_string(), Tensor::zeros((outputs, 3), DType::F32, &Device::Cpu).unwrap()),
            ("bias".to_string(), Tensor::from_iter((0..outputs).map(said), &Device::Cpu).unwrap()),
        ]);
        let head = Linear::new(3, outputs, &Builder::from_source(source, 0)).unwrap();
        let (side, embeddings) = (2, Tensor::zeros((1, 3, 2, 2), DType::F32, &Device::Cpu).unwrap());
        let asked = |id: &dyn Fn(usize, usize) -> usize| {
            let width = side * CELLS;
            let ids = (0..width * width).map(|at| id(at / width % CELLS, at % width % CELLS) as u8).collect();
            let (points, boxes) = (PicturePrompts::default(), PicturePrompts::default());
            Asked { planes: Vec::new(), size: (8, 8), seen: (8, 8), points, boxes, targets: Vec::new(), classes: ids }
        };
        let loss = |asked: Asked| class_loss(&head, &embeddings, &[asked]).unwrap().to_scalar::<f32>().unwrap();
        assert!(loss(asked(&of_cell)) < 1e-5);
        assert!(loss(asked(&|row, column| of_cell(column, row))) > 10.0);
        let mut half = asked(&of_cell);
        half.classes.iter_mut().step_by(2).for_each(|id| *id = 255);
        assert!(loss(half) < 1e-5, "cells without a class are not asked for");
    }
}
