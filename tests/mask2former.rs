//! Deformable attention, both decoders, matching and losses against the published code; names of published checkpoints.
//! Values come from tests/golden/mask2former.safetensors and mask2former_names.json, made by tests/golden/mask2former.py.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/summary.rs"]
mod summary;

use candle_core::{Device, Tensor, Var};
use datum::base::Rng;
use datum::io::weights::{self, SafetensorsFile, TensorSource, clip, clouds};
use datum::labels::LabelMap;
use datum::models::clip::{ConvNextConfig, ImageHeadConfig, ModifiedResNetConfig, TextTower, TextTowerConfig, VisualConfig};
use datum::models::mask2former::{
    CLASS_VECTORS, Criterion, CriterionConfig, Ensemble, EnsembleConfig, HeadConfig, Mask2Former, Mask2FormerConfig,
    Mask2FormerHead, Prediction, Target, TextClasses, TextHead, VOID, assign, is_decayed, semantic_scores,
};
use datum::nn::{self, Builder, Init, ParamStore, Pass, deformable_attention, sample_masks, sample_points};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Relative tolerance of outputs: f32 through a whole network.
const OUTPUT: f64 = 1e-5;
/// Relative tolerance of a parameter's gradient.
const GRADIENT: f64 = 1e-4;
/// Below this share of the whole gradient's norm a parameter's own gradient is rounding noise.
const NOISE: f64 = 1e-5;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden() -> SafetensorsFile {
    SafetensorsFile::open(&path("mask2former.safetensors")).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn get(file: &SafetensorsFile, name: &str) -> Tensor {
    file.load(name, &Device::Cpu).unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
    let worst = found.iter().zip(&expected).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= tolerance * scale, "{what}: largest difference {worst:.1e} at a scale of {scale:.1e}");
}

const LEVELS: [(usize, usize); 3] = [(3, 5), (6, 10), (12, 20)];

/// Values, offsets, weights and reference points of the golden case.
fn deformable_arguments() -> (Vec<Tensor>, Vec<f32>) {
    let offsets = (fill::image("offsets", &[2, 7, 2, 3, 3, 2]) * 3.0).unwrap();
    let references = (0..14).map(|i| fill::uniform("references", i) as f32).collect();
    (vec![fill::image("value", &[2, 315, 2, 4]), offsets, fill::image("weights", &[2, 7, 2, 3, 3])], references)
}

fn deformable_gradients() -> Vec<(&'static str, Tensor)> {
    let (arguments, references) = deformable_arguments();
    let vars: Vec<Var> = arguments.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let out = nn::recording(|| deformable_attention(&vars[0], &vars[1], &vars[2], &LEVELS, &references)).unwrap();
    let gradients = nn::backward(&(&out * fill::image("up", out.dims())).unwrap().sum_all().unwrap()).unwrap();
    let of = |i: usize| gradients.get(&vars[i]).unwrap().clone();
    vec![("out", out.detach()), ("value", of(0)), ("offsets", of(1)), ("weights", of(2))]
}

#[test]
fn deformable_attention_is_the_published_one() {
    let file = golden();
    for (name, found) in deformable_gradients() {
        assert_close(name, &found, &get(&file, &format!("deformable/{name}")), 1e-5);
    }
}

#[test]
fn deformable_attention_has_true_gradients() {
    // Away from whole pixel positions, where the slope along an offset jumps, a small step stays on one side.
    let (arguments, references) = deformable_arguments();
    let loss = |arguments: &[Tensor]| {
        let out = deformable_attention(&arguments[0], &arguments[1], &arguments[2], &LEVELS, &references).unwrap();
        let products = (&out * fill::image("up", out.dims())).unwrap();
        values(&products).into_iter().map(f64::from).sum::<f64>()
    };
    let step = 1e-3;
    for (index, (name, gradient)) in deformable_gradients().into_iter().skip(1).enumerate() {
        let direction = Rng::stream(3, name, &[]).normal_tensor(arguments[index].dims(), &Device::Cpu).unwrap();
        let moved = |sign: f64| {
            let mut moved = arguments.clone();
            moved[index] = (&moved[index] + (&direction * (sign * step)).unwrap()).unwrap();
            loss(&moved)
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        let along = values(&(&gradient * &direction).unwrap()).into_iter().map(f64::from).sum::<f64>();
        let tolerance = if name == "offsets" { 2e-2 } else { 1e-3 };
        assert!((slope - along).abs() <= tolerance * along.abs().max(1.0), "{name}: finite difference {slope}, gradient {along}");
    }
}

#[test]
fn deformable_attention_has_the_same_bits_for_any_number_of_threads() {
    let in_pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(deformable_gradients);
    for ((name, one), (_, many)) in in_pool(1).iter().zip(in_pool(5)) {
        assert_eq!(values(one), values(&many), "{name}");
    }
}

#[test]
fn deformable_attention_refuses_arguments_that_do_not_fit() {
    let (a, references) = deformable_arguments();
    assert!(deformable_attention(&a[0], &a[1], &a[2], &LEVELS[..2], &references).is_err());
    assert!(deformable_attention(&a[0], &a[1], &a[2], &LEVELS, &references[..2]).is_err());
}

#[test]
fn sampled_points_have_true_gradients_and_share_points() {
    let maps = Var::from_tensor(&fill::image("maps", &[3, 5, 7])).unwrap();
    let shared: Vec<f32> = (0..40).map(|i| 1.2 * fill::uniform("points", i) as f32 - 0.1).collect();
    let together = nn::recording(|| sample_points(&maps, shared.clone(), 20)).unwrap();
    let apart = sample_points(&maps, shared.repeat(3), 20).unwrap();
    assert_eq!(values(&together), values(&apart));
    let up = fill::image("up", &[3, 20]);
    let gradients = nn::backward(&(&together * &up).unwrap().sum_all().unwrap()).unwrap();
    // A linear map: its gradient times any direction is its value in that direction.
    let direction = fill::image("direction", &[3, 5, 7]);
    let along: f32 = values(&(gradients.get(&maps).unwrap() * &direction).unwrap()).iter().sum();
    let value: f32 = values(&(sample_points(&direction, shared.clone(), 20).unwrap() * up).unwrap()).iter().sum();
    assert!((along - value).abs() < 1e-4 * value.abs().max(1.0), "{along} {value}");
    let mask: Vec<u8> = (0..35).map(|i| (i % 3 == 0) as u8).collect();
    let as_map = Tensor::from_vec(mask.iter().map(|m| f32::from(*m)).collect::<Vec<_>>(), (1, 5, 7), &Device::Cpu).unwrap();
    let sampled = sample_masks(&[&mask], (5, 7), &shared, 20).unwrap();
    assert_eq!(sampled, values(&sample_points(&as_map, shared.clone(), 20).unwrap()));
    assert!(sample_masks(&[&mask], (5, 6), &shared, 20).is_err());
}

fn head_config(text: bool) -> HeadConfig {
    HeadConfig {
        width: 64,
        queries: 10,
        heads: 4,
        encoder_layers: 2,
        encoder_hidden: 96,
        decoder_layers: 4,
        decoder_hidden: 80,
        num_classes: if text { 3 } else { 19 },
        text: text.then(|| TextHead { width: 24, synonyms: vec![2, 1, 2] }),
        ..Default::default()
    }
}

/// With "no object" under the text classifier's classes.
fn small_head(text: bool) -> (Mask2FormerHead, ParamStore, Option<TextClasses>) {
    let builder = Builder::random(0);
    let head = Mask2FormerHead::new(&head_config(text), [12, 16, 24, 32], &builder).unwrap();
    let classes = text.then(|| {
        let void = builder.pp(VOID).get(&[1, 24], "weight", Init::Normal { std: 1.0 }).unwrap();
        let vectors = fill::image("text", &[5, 24]);
        let lengths = vectors.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
        TextClasses::new(vectors.broadcast_div(&lengths).unwrap(), vec![2, 1, 2], void)
    });
    let store = builder.finish().unwrap();
    fill::fill_store(&store, "");
    (head, store, classes)
}

fn small_features(batch: usize) -> Vec<Tensor> {
    let level = |(name, channels, stride): (&str, usize, usize)| fill::image(name, &[batch, channels, 64 / stride, 96 / stride]);
    [("res2", 12, 4), ("res3", 16, 8), ("res4", 24, 16), ("res5", 32, 32)].map(level).to_vec()
}

fn check_head(text: bool) {
    let (file, case) = (golden(), if text { "text" } else { "linear" });
    let (head, store, classes) = small_head(text);
    let predictions = nn::recording(|| head.forward(&small_features(2), classes.as_ref())).unwrap();
    assert_eq!(predictions.len(), 5);
    let expected = |name: &str| -> Vec<f32> { get(&file, &format!("{case}/{name}")).to_vec1().unwrap() };
    let mut total = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut worst = 0f64;
    for (i, Prediction { logits, masks }) in predictions.iter().enumerate() {
        for (name, tensor) in [(format!("pred_logits{i}"), logits), (format!("pred_masks{i}"), masks)] {
            let error = summary::error(&summary::summary(&name, tensor), &expected(&name), 0.0);
            assert!(error < OUTPUT, "{case}: {name} has a relative error of {error:.1e}");
            worst = worst.max(error);
            let product = (tensor * fill::image(&format!("up.{name}"), tensor.dims())).unwrap().mean_all().unwrap();
            total = (total + product).unwrap();
        }
    }
    let gradients = nn::backward(&total).unwrap();
    let names: Vec<String> = store.weights().map(|(name, _)| name.to_string()).collect();
    let whole = names.iter().map(|name| f64::from(expected(&format!("grad/{name}"))[0]).powi(2)).sum::<f64>().sqrt();
    let mut worst_gradient = 0f64;
    for name in &names {
        let gradient = gradients.get(store.get(name).unwrap()).unwrap_or_else(|| panic!("no gradient for {name}"));
        let error = summary::error(&summary::summary(name, gradient), &expected(&format!("grad/{name}")), NOISE * whole);
        assert!(error < GRADIENT, "{case}: the gradient of {name} has a relative error of {error:.1e}");
        worst_gradient = worst_gradient.max(error);
    }
    println!("{case}: outputs {worst:.1e}, {} gradients {worst_gradient:.1e}", names.len());
}

#[test]
fn the_head_with_a_linear_classifier_is_the_published_one() {
    check_head(false);
}

#[test]
fn the_head_with_a_text_classifier_is_the_published_one() {
    check_head(true);
    let (head, ..) = small_head(true);
    let error = head.forward(&small_features(1), None).unwrap_err().to_string();
    assert!(error.contains("vectors of class names"), "{error}");
}

#[test]
fn a_batch_gives_what_its_images_give() {
    let (head, ..) = small_head(false);
    let features = small_features(2);
    let together = head.forward(&features, None).unwrap().pop().unwrap();
    for i in 0..2 {
        let own: Vec<Tensor> = features.iter().map(|map| map.narrow(0, i, 1).unwrap()).collect();
        let alone = head.forward(&own, None).unwrap().pop().unwrap();
        assert_close("masks", &alone.masks, &together.masks.narrow(0, i, 1).unwrap(), 1e-5);
        assert_close("logits", &alone.logits, &together.logits.narrow(0, i, 1).unwrap(), 1e-5);
    }
}

#[test]
fn losses_and_their_gradients_are_the_published_ones() {
    let file = golden();
    let config = CriterionConfig { points: 64, ..Default::default() };
    let labels: [Vec<u32>; 3] = [vec![0, 2, 8, 13, 18], vec![], (0..12).collect()];
    let targets: Vec<Target> = labels
        .into_iter()
        .enumerate()
        .map(|(b, labels)| {
            let masks = (0..labels.len() * 960).map(|i| (fill::uniform(&format!("target{b}"), i) < 0.3) as u8).collect();
            Target { size: (24, 40), labels, masks }
        })
        .collect();
    let variable =
        |name: String, shape: &[usize], scale: f64| Var::from_tensor(&(fill::image(&name, shape) * scale).unwrap()).unwrap();
    let leaves: Vec<(Var, Var)> = (0..10)
        .map(|i| (variable(format!("logits{i}"), &[3, 15, 20], 1.0), variable(format!("masks{i}"), &[3, 15, 10, 14], 3.0)))
        .collect();
    let predictions: Vec<Prediction> =
        leaves.iter().map(|(l, m)| Prediction { logits: l.as_tensor().clone(), masks: m.as_tensor().clone() }).collect();
    let mut calls = 0;
    let mut draw = |count: usize| {
        let name = format!("rand{calls}");
        calls += 1;
        (0..count).map(|i| fill::uniform(&name, i) as f32).collect()
    };
    let losses = nn::recording(|| Criterion::new(config).unwrap().losses(&predictions, &targets, &mut draw)).unwrap();
    assert_eq!(calls, 50);
    let expected = |name: &str| -> Vec<f32> { get(&file, &format!("criterion/{name}")).to_vec1().unwrap() };
    let named = losses.named();
    assert_eq!(named.len(), 30);
    let mut worst = 0f32;
    for (name, found) in named {
        let found = found.to_scalar::<f32>().unwrap();
        let expected = expected(&name)[0];
        worst = worst.max(((found - expected) / expected).abs());
        assert!((found - expected).abs() <= 1e-5 * expected, "{name}: {found} instead of {expected}");
    }
    let total = losses.total().unwrap();
    assert!((total.to_scalar::<f32>().unwrap() / expected("total")[0] - 1.0).abs() < 1e-5);
    let gradients = nn::backward(&total).unwrap();
    let mut worst_gradient = 0f64;
    for (i, (logits, masks)) in leaves.iter().enumerate() {
        for (name, var) in [(format!("pred_logits{i}"), logits), (format!("pred_masks{i}"), masks)] {
            let found = summary::summary(&name, gradients.get(var).unwrap());
            let error = summary::error(&found, &expected(&format!("grad/{name}")), 0.0);
            assert!(error < GRADIENT, "the gradient of {name} has a relative error of {error:.1e}");
            worst_gradient = worst_gradient.max(error);
        }
    }
    println!("30 losses: {worst:.1e}, gradients {worst_gradient:.1e}");
}

#[test]
fn images_without_any_target_only_teach_no_object() {
    let criterion = Criterion::new(CriterionConfig { points: 8, ..Default::default() }).unwrap();
    let map = LabelMap::filled(8, 8, 255);
    let target = Target::from_label_map(&map, 19);
    assert!(target.labels.is_empty());
    let (logits, masks) = (fill::image("logits", &[1, 4, 20]), fill::image("masks", &[1, 4, 2, 2]));
    let mut rng = Rng::stream(0, "points", &[]);
    let mut draw = |count: usize| (0..count).map(|_| rng.uniform()).collect();
    let losses = criterion.losses(&[Prediction { logits, masks }], &[target], &mut draw).unwrap();
    let named: Vec<f32> = losses.named().iter().map(|(_, loss)| loss.to_scalar().unwrap()).collect();
    assert!(named[0] > 0.0 && named[1] == 0.0 && named[2] == 0.0, "{named:?}");
    assert!(losses.total().unwrap().to_scalar::<f32>().unwrap().is_finite());
}

#[test]
fn targets_are_the_classes_of_a_label_map() {
    let map = LabelMap { height: 2, width: 3, ids: vec![7, 255, 2, 2, 7, 30] };
    let target = Target::from_label_map(&map, 19);
    assert_eq!(target, Target { size: (2, 3), labels: vec![2, 7], masks: vec![0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0] });
    let criterion = Criterion::new(CriterionConfig::default()).unwrap();
    let prediction = Prediction { logits: fill::image("logits", &[1, 4, 20]), masks: fill::image("masks", &[1, 4, 2, 2]) };
    let wrong = Target { labels: vec![2, 19], ..target };
    let error = criterion.losses(&[prediction], &[wrong], &mut |count| vec![0.5; count]).unwrap_err().to_string();
    assert!(error.contains("train ids below 19"), "{error}");
}

#[test]
fn assignments_are_those_of_scipy() {
    let file = golden();
    let cases = [
        ("wide", 19, 100, 0.0),
        ("tall", 100, 19, 0.0),
        ("square", 12, 12, 0.0),
        ("ties", 9, 14, 3.0),
        ("tall_ties", 14, 9, 3.0),
    ];
    for (name, rows, columns, steps) in cases.into_iter().chain([("one", 1, 1, 0.0)]) {
        let cost = |i| fill::uniform(&format!("cost.{name}"), i);
        let cost = |i| if steps > 0.0 { f64::floor(cost(i) * steps) } else { cost(i) };
        let costs: Vec<f64> = (0..rows * columns).map(cost).collect();
        let expected = get(&file, &format!("assign/{name}")).to_vec2::<i64>().unwrap();
        let expected: Vec<(usize, usize)> = expected.iter().map(|pair| (pair[0] as usize, pair[1] as usize)).collect();
        assert_eq!(assign(&costs, rows, columns).unwrap(), expected, "{name}");
    }
    assert!(assign(&[], 5, 0).unwrap().is_empty());
    let error = assign(&[1.0, f64::NAN], 1, 2).unwrap_err().to_string();
    assert!(error.contains("diverged"), "{error}");
}

#[test]
fn semantic_scores_are_those_of_masks_at_full_size() {
    let prediction =
        Prediction { logits: fill::image("logits", &[2, 10, 20]), masks: (fill::image("masks", &[2, 10, 7, 9]) * 2.0).unwrap() };
    let scores = semantic_scores(&prediction, (150, 37)).unwrap();
    assert_eq!(scores.dims(), [2, 19, 150, 37]);
    let expected: Vec<f32> = get(&golden(), "semantic").to_vec1().unwrap();
    let error = summary::error(&summary::summary("semantic", &scores), &expected, 0.0);
    assert!(error < 1e-5, "{error:.1e}");
}

type Names = BTreeMap<String, Vec<usize>>;

/// Arrives as zeros: only names and shapes count.
struct Zeros(Names);

impl TensorSource for Zeros {
    fn origin(&self) -> String {
        "published names".into()
    }

    fn shapes(&self) -> Names {
        self.0.clone()
    }

    fn load(&self, name: &str, device: &Device) -> datum::base::Result<Tensor> {
        Ok(Tensor::zeros(self.0[name].as_slice(), candle_core::DType::F32, device)?)
    }
}

fn names(file: &str, key: &str) -> Names {
    let text = std::fs::read_to_string(path(file)).unwrap();
    serde_json::from_str::<BTreeMap<String, Names>>(&text).unwrap().remove(key).unwrap()
}

/// All tensors of a published checkpoint but the blocks' widths: with the real CLIP only where `clip` names it.
fn published(clip: Option<&str>, head: &str) -> Names {
    let mut all = names("mask2former_names.json", head);
    if let Some(clip) = clip {
        all.extend(
            names("clip_names.json", clip).into_iter().map(|(name, shape)| (format!("backbone.clip_model.{name}"), shape)),
        );
    }
    all
}

#[test]
fn published_heads_are_read_without_rest() {
    for (head, text_width) in [("linear", None), ("text", Some(768))] {
        let source = || Box::new(Zeros(published(None, head)));
        let expected = text_width.map_or(clouds::Classifier::Linear(19), clouds::Classifier::Text);
        assert_eq!(clouds::classifier(&*source()).unwrap(), expected);
        let builder = Builder::from_source(clouds::network(source(), false).unwrap(), 0);
        let text = text_width.map(|width| TextHead { width, synonyms: vec![1; 19] });
        let config = HeadConfig { text, ..Default::default() };
        Mask2FormerHead::new(&config, [192, 384, 768, 1536], &builder).unwrap();
        if text_width.is_some() {
            builder.pp(VOID).get(&[1, 768], "weight", Init::Normal { std: 1.0 }).unwrap();
        }
        builder.finish().unwrap();
    }
}

/// A whole checkpoint as CLOUDS writes it, text tower and all, loads with nothing missing and nothing left over; so does
/// one without the text tower and with the old name of the queries.
#[test]
fn a_whole_checkpoint_is_read_without_rest() {
    let config = datum::models::clip::ClipConfig::named("rn50").unwrap();
    let mut file = published(Some("rn50"), "linear");
    // The golden head is that of the large ConvNeXt.
    for (i, channels) in [2048, 1024, 512].into_iter().enumerate() {
        file.insert(format!("sem_seg_head.pixel_decoder.input_proj.{i}.0.weight"), vec![256, channels, 1, 1]);
    }
    file.insert("sem_seg_head.pixel_decoder.adapter_1.weight".into(), vec![256, 256, 1, 1]);
    let load = |file: Names| {
        let builder = Builder::from_source(clouds::network(Box::new(Zeros(file)), false)?, 0);
        let config = Mask2FormerConfig {
            backbone: config.visual.clone(),
            freeze_backbone: true,
            head: HeadConfig::default(),
            ensemble: None,
        };
        Mask2Former::new(&config, &builder)?;
        builder.finish()
    };
    load(file.clone()).unwrap();
    let mut old = file.clone();
    old.retain(|name, _| !name.contains("transformer.resblocks") && !name.contains("clip_model.token_embedding"));
    let queries = old.remove("sem_seg_head.predictor.query_feat.weight").unwrap();
    old.insert("sem_seg_head.predictor.static_query.weight".into(), queries);
    load(old).unwrap();
    file.insert("sem_seg_head.extra".into(), vec![1]);
    file.remove("sem_seg_head.predictor.decoder_norm.bias");
    let error = load(file).unwrap_err().to_string();
    assert!(error.contains("1 missing: sem_seg_head.predictor.decoder_norm.bias"), "{error}");
    assert!(error.contains("1 unexpected: sem_seg_head.extra"), "{error}");
}

#[test]
fn a_training_checkpoint_of_detectron2_gives_its_predictions() {
    let open = || weights::open(&path("clouds.pth")).unwrap();
    assert_eq!(clouds::classifier(&*open()).unwrap(), clouds::Classifier::Linear(19));
    let backbone = ConvNextConfig { depths: [1, 1, 2, 1], widths: [8, 16, 24, 32], drop_path: 0.1 };
    let head = HeadConfig {
        width: 32,
        queries: 4,
        heads: 4,
        encoder_layers: 1,
        encoder_hidden: 32,
        decoder_layers: 3,
        decoder_hidden: 32,
        ..Default::default()
    };
    let config = Mask2FormerConfig { backbone: VisualConfig::ConvNext(backbone), freeze_backbone: true, head, ensemble: None };
    let builder = Builder::from_source(clouds::network(open(), false).unwrap(), 0);
    let model = Mask2Former::new(&config, &builder).unwrap();
    builder.finish().unwrap();
    let features = model.features(&fill::image("input", &[1, 3, 64, 96]), &Pass::eval()).unwrap();
    let answer = model.head(&features, None).unwrap().pop().unwrap();
    for (name, tensor) in [("pred_logits", answer.logits), ("pred_masks", answer.masks)] {
        let expected: Vec<f32> = get(&golden(), &format!("checkpoint/{name}")).to_vec1().unwrap();
        let error = summary::error(&summary::summary(name, &tensor), &expected, 0.0);
        assert!(error < OUTPUT, "{name} has a relative error of {error:.1e}");
    }
    let builder = Builder::from_source(clip::text(open()).unwrap(), 0);
    let text =
        TextTowerConfig { vocabulary: 50, context: 12, width: 16, heads: 4, layers: 2, embedding: 24, ..Default::default() };
    TextTower::new(&text, &builder).unwrap();
    builder.finish().unwrap();
}

/// Maps of a tower and CLIP's opinion of two images' masks, one of which has no pixel.
fn mixed(visual: VisualConfig, image_head: ImageHeadConfig, valid_mask_only: bool) -> Tensor {
    let names = TextHead { width: 24, synonyms: vec![2, 1, 2] };
    let config = EnsembleConfig { alpha: 0.4, valid_mask_only, image_head, names };
    let builder = Builder::random(0);
    let tower = visual.build(&builder.pp("backbone").pp("clip_model").pp("visual")).unwrap();
    let ensemble = Ensemble::build(&config, &visual, &builder).unwrap();
    let store = builder.finish().unwrap();
    fill::fill_store(&store, "");
    let vectors = datum::models::clip::unit(&fill::image("text", &[5, 24])).unwrap();
    store.get(CLASS_VECTORS).unwrap().set(&vectors).unwrap();
    let masks = fill::image("masks", &[2, 10, 16, 24]);
    let none = (masks.narrow(1, 3, 1).unwrap().abs().unwrap() + 0.1).unwrap().neg().unwrap();
    let masks = Tensor::cat(&[&masks.narrow(1, 0, 3).unwrap(), &none, &masks.narrow(1, 4, 6).unwrap()], 1).unwrap();
    let answer = Prediction { logits: fill::image("logits", &[2, 10, 4]), masks };
    let maps = tower.features(&fill::image("input", &[2, 3, 64, 96]), &Pass::eval()).unwrap();
    ensemble.mix(&answer, &maps[3]).unwrap().logits
}

/// Values come from tests/golden/ensemble.safetensors, made by tests/golden/ensemble.py.
#[test]
fn clip_has_a_say_in_the_class_of_a_mask_as_published() {
    let file = SafetensorsFile::open(&path("ensemble.safetensors")).unwrap();
    let convnext = VisualConfig::ConvNext(ConvNextConfig { depths: [1, 1, 2, 1], widths: [8, 16, 24, 32], drop_path: 0.0 });
    let resnet = VisualConfig::ResNet(ModifiedResNetConfig { depths: [1, 2, 1, 1], width: 8 });
    let (mean, attention) = (ImageHeadConfig::Mean { hidden: Some(48) }, ImageHeadConfig::Attention { side: 2 });
    for (name, visual, head, valid) in [
        ("convnext/alpha", &convnext, mean, false),
        ("convnext/valid", &convnext, mean, true),
        ("resnet/valid", &resnet, attention, true),
    ] {
        assert_close(name, &mixed(visual.clone(), head, valid), &get(&file, name), 1e-5);
    }
    // Without `valid_mask_only` a mask without a pixel has no number in the published code; here it has, and all others are the same.
    let (found, expected) = (mixed(resnet, attention, false), get(&file, "resnet/valid"));
    assert!(values(&found).iter().all(|value| value.is_finite()));
    let rows = |logits: &Tensor| logits.reshape((20, 4)).unwrap().to_vec2::<f32>().unwrap();
    let differs = |(a, b): &(Vec<f32>, Vec<f32>)| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-4);
    assert_eq!(rows(&found).into_iter().zip(rows(&expected)).filter(differs).count(), 3);
}

#[test]
fn heads_of_towers_are_read_from_shapes() {
    let shapes = |names: &[(&str, &[usize])]| names.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
    let of = |names| ImageHeadConfig::of(&shapes(names));
    assert_eq!(of(&[("attnpool.positional_embedding", &[50, 2048])]), Some(ImageHeadConfig::Attention { side: 7 }));
    assert_eq!(of(&[("head.mlp.fc1.weight", &[1536, 768])]), Some(ImageHeadConfig::Mean { hidden: Some(1536) }));
    assert_eq!(of(&[("head.proj.weight", &[512, 1024])]), Some(ImageHeadConfig::Mean { hidden: None }));
    assert_eq!(of(&[("trunk.stem.0.weight", &[8, 3, 4, 4])]), None);
}

fn tiny(freeze_backbone: bool) -> (Mask2Former, ParamStore) {
    let backbone = ConvNextConfig { depths: [1, 1, 1, 1], widths: [12, 16, 24, 32], drop_path: 0.1 };
    let config = Mask2FormerConfig {
        backbone: VisualConfig::ConvNext(backbone),
        freeze_backbone,
        head: head_config(false),
        ensemble: None,
    };
    let builder = Builder::random(7);
    let model = Mask2Former::new(&config, &builder).unwrap();
    (model, builder.finish().unwrap())
}

/// One training step of a whole small network: every trainable weight gets a gradient, a frozen backbone none.
#[test]
fn the_gradient_reaches_every_weight_that_is_trained() {
    let images = fill::image("input", &[2, 3, 64, 96]);
    let ids = (0..64 * 96).map(|i| if i % 11 == 0 { 255 } else { (i / 900) as u8 }).collect();
    let target = Target::from_label_map(&LabelMap { height: 64, width: 96, ids }, 19);
    let criterion = Criterion::new(CriterionConfig { points: 200, ..Default::default() }).unwrap();
    for frozen in [true, false] {
        let (model, store) = tiny(frozen);
        // Initial weights that are zero on purpose would hide the path behind them.
        fill::fill_store(&store, "");
        let features = nn::recording(|| model.features(&images, &Pass::eval())).unwrap();
        assert_eq!(features.iter().any(Tensor::track_op), !frozen);
        let predictions = nn::recording(|| model.head(&features, None)).unwrap();
        let mut rng = Rng::stream(1, "points", &[]);
        let mut draw = |count: usize| (0..count).map(|_| rng.uniform()).collect();
        let losses = nn::recording(|| criterion.losses(&predictions, &[target.clone(), target.clone()], &mut draw)).unwrap();
        let gradients = nn::backward(&losses.total().unwrap()).unwrap();
        for (name, weight) in store.weights() {
            let size = gradients.get(weight).map(|g| values(g).into_iter().fold(0f32, |most, x| most.max(x.abs())));
            match size {
                None => assert!(frozen && name.starts_with("backbone."), "no gradient for {name}"),
                Some(size) => {
                    assert!(size.is_finite() && size > 0.0 && !(frozen && name.starts_with("backbone.")), "{name}: {size}")
                }
            }
        }
    }
}

#[test]
fn new_weights_start_as_published() {
    let (_, store) = tiny(true);
    let place = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.";
    let offsets = values(store.get(&format!("{place}sampling_offsets.bias")).unwrap());
    assert_eq!(offsets.len(), 4 * 3 * 4 * 2);
    // Head 1 of 4 looks down, its points 1 to 4 pixels away, on every level.
    let down: Vec<f32> = offsets[24..48].iter().map(|x| x.round()).collect();
    assert_eq!(down, [0., 1., 0., 2., 0., 3., 0., 4.].repeat(3));
    assert!(values(store.get(&format!("{place}attention_weights.weight")).unwrap()).iter().all(|x| *x == 0.0));
    let value = values(store.get(&format!("{place}value_proj.weight")).unwrap());
    let bound = (6f32 / 128.0).sqrt();
    assert!(value.iter().all(|x| x.abs() <= bound) && value.iter().any(|x| x.abs() > 0.95 * bound));
}

#[test]
fn norms_and_embeddings_do_not_decay() {
    let (_, store) = tiny(false);
    let place = |name: &str| {
        if name.starts_with("trunk") { format!("backbone.clip_model.visual.{name}") } else { format!("sem_seg_head.{name}") }
    };
    for (name, expected) in [
        ("pixel_decoder.input_proj.0.0.bias", true),
        ("pixel_decoder.input_proj.0.1.weight", false),
        ("pixel_decoder.input_proj.0.1.bias", false),
        ("pixel_decoder.transformer.level_embed", true),
        ("pixel_decoder.layer_1.weight", true),
        ("pixel_decoder.layer_1.norm.bias", false),
        ("predictor.level_embed.weight", false),
        ("predictor.query_feat.weight", false),
        ("predictor.decoder_norm.bias", false),
        ("predictor.class_embed.bias", true),
        ("predictor.transformer_ffn_layers.0.norm.weight", false),
        ("predictor.transformer_self_attention_layers.0.self_attn.in_proj_bias", true),
        ("trunk.stem.0.bias", true),
        ("trunk.stem.1.bias", false),
        ("trunk.stages.1.blocks.0.gamma", true),
    ] {
        assert!(store.get(&place(name)).is_some(), "{name}");
        assert_eq!(is_decayed(&place(name), &store), expected, "{name}");
    }
}
