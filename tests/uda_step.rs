//! The training step on a toy network: gradients, moving average, streams of random numbers, resuming.

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use datum::base::group::Shares;
use datum::base::{Result, Rng};
use datum::models::mit;
use datum::models::segmenter::Segmenter;
use datum::nn::{BatchNorm2d, Builder, Conv2d, ConvSpec, Pass};
use datum::uda::{
    Config, Context, FeatureDistance, FeatureDistanceConfig, LossTerm, Losses, Margins, Metrics, SelfTraining, Stage, StepBatch,
    StrongAugment, TargetRelabeler, Teacher,
};
use std::collections::BTreeMap;

const CLASSES: usize = 3;

/// Two levels (strides 4 and 8) with batch norm, drop-path and a smooth activation, so that finite differences work.
struct Toy {
    first: Conv2d,
    norm: BatchNorm2d,
    second: Conv2d,
    head: Conv2d,
}

fn toy(builder: &Builder) -> Result<Toy> {
    let stride = |stride| ConvSpec { stride, ..ConvSpec::default() };
    Ok(Toy {
        first: Conv2d::new(3, 6, 4, stride(4), &builder.pp("first"))?,
        norm: BatchNorm2d::new(6, &builder.pp("norm"))?,
        second: Conv2d::new(6, 5, 2, stride(2), &builder.pp("second"))?,
        head: Conv2d::new(6, CLASSES, 1, stride(1), &builder.pp("head"))?,
    })
}

impl Segmenter for Toy {
    fn features(&self, images: &Tensor, pass: &Pass) -> TensorResult<Vec<Tensor>> {
        let first = pass.drop_path(&self.norm.forward(&self.first.forward(images)?, pass)?.tanh()?, 0.2)?;
        let second = self.second.forward(&first)?;
        Ok(vec![first, second])
    }

    fn head(&self, features: &[Tensor], _: &Pass) -> TensorResult<Tensor> {
        self.head.forward(&features[0])
    }
}

/// A term with a forward pass of its own: mean square of the logits on the mixed images.
struct SmallLogits;

impl LossTerm<Toy> for SmallLogits {
    fn name(&self) -> &str {
        "small"
    }
    fn weight(&self) -> f64 {
        0.1
    }
    fn stage(&self) -> Stage {
        Stage::Separate
    }
    fn compute(&self, context: &Context<'_, Toy>) -> Result<Losses> {
        let mut losses = Losses::default();
        let Some(mixed) = context.mixed else { return Ok(losses) };
        let pass = Pass::train(context.rng("small logits")).of(context.share);
        let logits = context.student.forward(&mixed.images, &pass)?;
        losses.add("loss", logits.sqr()?.mean_all()?);
        Ok(losses)
    }
}

fn engine(config: Config) -> SelfTraining<Toy> {
    let builder = Builder::random(1);
    let student = toy(&builder).unwrap();
    let parameters = builder.finish().unwrap();
    let things = FeatureDistanceConfig { weight: 0.5, thing_classes: vec![1, 2], min_ratio: 0.2 };
    SelfTraining {
        teacher: Some(Teacher::new(&parameters, 0.9, toy).unwrap()),
        losses: vec![Box::new(FeatureDistance::new(toy(&Builder::random(2).frozen()).unwrap(), things)), Box::new(SmallLogits)],
        ..SelfTraining::new(student, parameters, mit::NORMALIZATION, config)
    }
}

fn config() -> Config {
    let augment = StrongAugment { jitter_probability: 1.0, blur_probability: 1.0, ..Default::default() };
    Config { confidence_threshold: 0.4, margins: Margins { top: 1, bottom: 3 }, strong_augment: Some(augment) }
}

fn batch(seed: u64) -> StepBatch {
    let mut rng = Rng::stream(seed, "toy batch", &[]);
    let mut image = || rng.normal_tensor(&[2, 3, 24, 32], &Device::Cpu).unwrap();
    let (images, target) = (image(), Some(image()));
    let labels = (0..2 * 24 * 32).map(|_| [0u32, 1, 2, 255][rng.below(4)]);
    let labels = Tensor::from_iter(labels, &Device::Cpu).unwrap().reshape((2, 24, 32)).unwrap();
    StepBatch { images, labels, target }
}

fn descend(engine: &SelfTraining<Toy>, gradients: &candle_core::backprop::GradStore) {
    for (_, weight) in engine.parameters.weights() {
        let Some(gradient) = gradients.get(weight) else { continue };
        weight.set(&(weight.as_detached_tensor() - (gradient * 0.1).unwrap()).unwrap()).unwrap();
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Two steps with a small descent after each: metrics and the final weights.
fn two_steps(engine: &mut SelfTraining<Toy>, from: u64) -> (Vec<Metrics>, BTreeMap<String, Vec<f32>>) {
    let run = |iteration: u64| {
        let output = engine.step(iteration, &batch(iteration), 77).unwrap();
        descend(engine, &output.gradients);
        output.metrics
    };
    let metrics = [from, from + 1].map(run).to_vec();
    (metrics, engine.parameters.iter().map(|(name, p)| (name.into(), values(&p.var))).collect())
}

#[test]
fn the_gradient_is_that_of_all_losses_together() {
    // A teacher that has followed for ever hardly moves, so the objective is smooth in the student.
    let objective = |engine: &mut SelfTraining<Toy>| {
        let tensors = Teacher::new(&engine.parameters, 1.0, toy).unwrap().state().tensors;
        let fixed: BTreeMap<String, Tensor> = tensors.into_iter().map(|(n, t)| (n, (t * 0.0).unwrap())).collect();
        let mut teacher = Teacher::new(&engine.parameters, 1.0, toy).unwrap();
        teacher.load_state(&fixed, u64::MAX / 2).unwrap();
        engine.teacher = Some(teacher);
        let output = engine.step(3, &batch(3), 5).unwrap();
        let losses = ["decode.loss_seg", "src.loss_imnet_feat_dist", "mix.decode.loss_seg", "small.loss"];
        (losses.iter().map(|key| f64::from(output.metrics[*key])).sum::<f64>(), output)
    };
    let mut engine = engine(Config { confidence_threshold: 0.0, ..config() });
    let (_, output) = objective(&mut engine);
    let mut predicted = 0.0;
    let mut moves = Vec::new();
    for (name, weight) in engine.parameters.weights() {
        let gradient = output.gradients.get(weight).unwrap_or_else(|| panic!("no gradient for {name}"));
        assert!(values(gradient).iter().any(|g| *g != 0.0) || name == "first.bias", "{name} has gradient zero");
        let direction = Rng::stream(0, name, &[]).normal_tensor(weight.dims(), &Device::Cpu).unwrap();
        predicted += f64::from((gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        moves.push((weight.clone(), weight.copy().unwrap().detach(), direction));
    }
    let mut at = |step: f64| {
        for (weight, start, direction) in &moves {
            weight.set(&(start + (direction * step).unwrap()).unwrap()).unwrap();
        }
        objective(&mut engine).0
    };
    let step = 1e-3;
    let measured = (at(step) - at(-step)) / (2.0 * step);
    assert!((measured / predicted - 1.0).abs() < 2e-3, "finite difference {measured}, gradients {predicted}");
}

#[test]
fn the_teacher_follows_weights_only_and_gets_no_gradient() {
    let mut engine = engine(config());
    let start: BTreeMap<String, Vec<f32>> = engine.parameters.iter().map(|(n, p)| (n.into(), values(&p.var))).collect();
    let first = engine.step(0, &batch(0), 1).unwrap();
    descend(&engine, &first.gradients);
    let after: BTreeMap<String, Vec<f32>> = engine.parameters.iter().map(|(n, p)| (n.into(), values(&p.var))).collect();
    let second = engine.step(1, &batch(1), 1).unwrap();
    let teacher = engine.teacher.as_ref().unwrap().parameters();
    for (name, weight) in teacher.weights() {
        assert!(second.gradients.get(weight).is_none(), "{name}");
        for ((found, start), after) in values(weight).iter().zip(&start[name]).zip(&after[name]) {
            assert!((found - 0.5 * (start + after)).abs() < 1e-6, "{name}: {found}");
        }
    }
    for name in ["norm.running_mean", "norm.running_var"] {
        let own = values(teacher.get(name).unwrap());
        assert_ne!(own, start[name], "{name} records the teacher's batches");
        assert_ne!(own, values(engine.parameters.get(name).unwrap()), "{name} is the teacher's own");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| two_steps(&mut engine(config()), 0))
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_resumed_run_repeats_the_uninterrupted_one() {
    let mut whole = engine(config());
    two_steps(&mut whole, 0);
    let copy = |tensors: BTreeMap<String, Tensor>| -> BTreeMap<String, Tensor> {
        tensors.into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect()
    };
    let state = whole.teacher.as_ref().unwrap().state();
    let (student, teacher) = (copy(whole.parameters.tensors()), copy(state.tensors));
    let expected = two_steps(&mut whole, 2);

    let mut resumed = engine(config());
    resumed.parameters.load(&student).unwrap();
    resumed.teacher.as_mut().unwrap().load_state(&teacher, state.updates).unwrap();
    assert_eq!(state.updates, 2);
    assert_eq!(two_steps(&mut resumed, 2), expected);
}

#[test]
fn without_a_teacher_only_the_source_is_used() {
    let mut engine = SelfTraining { teacher: None, losses: Vec::new(), ..engine(config()) };
    let output = engine.step(0, &StepBatch { target: None, ..batch(0) }, 0).unwrap();
    assert_eq!(output.metrics.keys().collect::<Vec<_>>(), ["decode.acc_seg", "decode.loss_seg"]);
    assert!(output.gradients.get(engine.parameters.get("head.weight").unwrap()).is_some());
}

#[test]
fn all_ignored_source_labels_give_no_nan() {
    let mut engine = engine(config());
    let labels = Tensor::full(255u32, (2, 24, 32), &Device::Cpu).unwrap();
    let output = engine.step(0, &StepBatch { labels, ..batch(0) }, 0).unwrap();
    assert_eq!(output.metrics["decode.loss_seg"], 0.0);
    assert!(!output.metrics.contains_key("src.loss_imnet_feat_dist"));
    assert!(output.metrics.values().all(|value| value.is_finite()), "{:?}", output.metrics);
    for (name, weight) in engine.parameters.weights() {
        let finite = output.gradients.get(weight).is_none_or(|g| values(g).iter().all(|g| g.is_finite()));
        assert!(finite, "{name}");
    }
}

/// Says that nothing in the target is known.
struct Forget;

impl TargetRelabeler for Forget {
    fn relabel(&mut self, _: u64, images: &Tensor, labels: &Tensor) -> Result<Tensor> {
        assert_eq!(images.dims()[2..], labels.dims()[1..]);
        Ok(Tensor::full(255u32, labels.shape(), labels.device())?)
    }
}

/// Checks that what was not pasted is unknown.
struct OnlySourceIsKnown;

impl LossTerm<Toy> for OnlySourceIsKnown {
    fn name(&self) -> &str {
        "check"
    }
    fn weight(&self) -> f64 {
        1.0
    }
    fn stage(&self) -> Stage {
        Stage::Mixed
    }
    fn compute(&self, context: &Context<'_, Toy>) -> Result<Losses> {
        let mixed = context.mixed.unwrap();
        assert_eq!(context.features[0].dims(), [2, 6, 6, 8]);
        let (labels, mask) = (mixed.labels.flatten_all()?.to_vec1::<u32>()?, mixed.mask.flatten_all()?.to_vec1::<u8>()?);
        assert!(labels.iter().zip(&mask).all(|(label, pasted)| *pasted == 1 || *label == 255));
        let mut losses = Losses::default();
        losses.note("target_pixels", mask.iter().filter(|pasted| **pasted == 0).count() as f32);
        Ok(losses)
    }
}

#[test]
fn changed_pseudo_labels_are_what_is_mixed() {
    let mut engine =
        SelfTraining { relabelers: vec![Box::new(Forget)], losses: vec![Box::new(OnlySourceIsKnown)], ..engine(config()) };
    assert!(engine.step(0, &batch(0), 0).unwrap().metrics["check.target_pixels"] > 0.0);
}

#[test]
fn images_that_do_not_fit_are_refused() {
    let mut engine = engine(config());
    assert!(engine.step(0, &StepBatch { target: None, ..batch(0) }, 0).is_err());
    let target = Some(Tensor::zeros((2, 3, 24, 24), DType::F32, &Device::Cpu).unwrap());
    let message = engine.step(0, &StepBatch { target, ..batch(0) }, 0).unwrap_err().to_string();
    assert!(message.contains("[2, 3, 24, 32]") && message.contains("[2, 3, 24, 24]"), "{message}");
}

/// Two steps on four images, divided in two shares as with so many threads, or not at all.
fn steps_of_four(threads: Option<usize>) -> (Vec<Metrics>, BTreeMap<String, Vec<f32>>) {
    let of_four = |seed: u64| {
        let (a, b) = (batch(seed), batch(seed + 100));
        let cat = |a: &Tensor, b: &Tensor| Tensor::cat(&[a, b], 0).unwrap();
        let target = cat(a.target.as_ref().unwrap(), b.target.as_ref().unwrap());
        StepBatch { images: cat(&a.images, &b.images), labels: cat(&a.labels, &b.labels), target: Some(target) }
    };
    let mut engine = engine(config());
    if let Some(threads) = threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        engine.shares = pool.install(|| Shares::of(4)).unwrap();
        assert_eq!(engine.shares.count(), 2);
    }
    let run = |iteration: u64| {
        let output = engine.step(iteration, &of_four(iteration), 77).unwrap();
        descend(&engine, &output.gradients);
        output.metrics
    };
    let metrics = [0, 1].map(run).to_vec();
    let teacher = engine.teacher.as_ref().unwrap().parameters();
    let student = engine.parameters.iter().map(|(name, p)| (name.to_string(), values(&p.var)));
    (metrics, student.chain(teacher.iter().map(|(name, p)| (format!("teacher.{name}"), values(&p.var)))).collect())
}

#[test]
fn shares_side_by_side_make_the_step_of_the_whole_batch() {
    let (whole, whole_tensors) = steps_of_four(None);
    let (metrics, tensors) = steps_of_four(Some(1));
    for (a, b) in whole.iter().zip(&metrics) {
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (key, value) in a {
            assert!((value - b[key]).abs() <= 1e-5 * value.abs().max(1.0), "{key}: {value}, in shares {}", b[key]);
        }
    }
    // Running statistics of student and teacher among them.
    for (name, values) in &whole_tensors {
        for (value, share) in values.iter().zip(&tensors[name]) {
            assert!((value - share).abs() <= 1e-5 * value.abs().max(1.0), "{name}: {value}, in shares {share}");
        }
    }
    for threads in [2, 3] {
        assert_eq!(steps_of_four(Some(threads)), (metrics.clone(), tensors.clone()), "{threads} threads");
    }
}
