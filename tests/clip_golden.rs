//! CLIP's towers against open_clip: maps, text vectors, the gradient of every parameter, names of published sizes.
//! Values come from tests/golden/clip.safetensors and clip_names.json, made by tests/golden/clip.py.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/summary.rs"]
mod summary;

use candle_core::{Device, Tensor};
use datum::io::weights::{SafetensorsFile, TensorSource, clip};
use datum::models::clip::{
    CLIP_NAMES, ClipConfig, ConvNextConfig, ImageHead, ImageHeadConfig, LOGIT_SCALE, ModifiedResNetConfig, STREET_CLASSES,
    TextTower, TextTowerConfig, VisualConfig, class_prompts, class_vectors,
};
use datum::models::segmenter::Encoder;
use datum::models::stable_diffusion::config::TextActivation;
use datum::nn::{self, Builder, Init, ParamStore, Pass};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Relative tolerance of outputs: f32 through a whole network.
const OUTPUT: f64 = 1e-5;
/// Relative tolerance of a parameter's gradient.
const GRADIENT: f64 = 1e-4;
/// Below this share of the whole gradient's norm a parameter's own gradient is rounding noise.
const NOISE: f64 = 1e-5;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

struct Small {
    visual: Box<dyn Encoder>,
    text: TextTower,
    store: ParamStore,
}

fn text_config(activation: TextActivation) -> TextTowerConfig {
    TextTowerConfig { vocabulary: 50, context: 12, width: 32, heads: 4, layers: 2, embedding: 24, activation }
}

fn small(visual: VisualConfig, activation: TextActivation) -> Small {
    let builder = Builder::random(0);
    let visual = visual.build(&builder.pp("visual")).unwrap();
    let text = TextTower::new(&text_config(activation), &builder).unwrap();
    let store = builder.finish().unwrap();
    fill::fill_store(&store, "");
    for (name, param) in store.iter() {
        if name.starts_with("visual.") && ["bn1.bias", "bn2.bias", "bn3.bias"].iter().any(|end| name.ends_with(end)) {
            param.var.set(&(param.var.as_detached_tensor() + 3.0).unwrap()).unwrap();
        }
    }
    Small { visual, text, store }
}

fn convnext() -> Small {
    let config = ConvNextConfig { depths: [1, 1, 2, 1], widths: [8, 16, 24, 32], drop_path: 0.1 };
    small(VisualConfig::ConvNext(config), TextActivation::Gelu)
}

fn resnet() -> Small {
    small(VisualConfig::ResNet(ModifiedResNetConfig { depths: [1, 2, 1, 1], width: 8 }), TextActivation::QuickGelu)
}

fn check(case: &str, model: &Small) {
    let file = SafetensorsFile::open(&golden("clip.safetensors")).unwrap();
    let expected = |name: &str| file.load(&format!("{case}/{name}"), &Device::Cpu).unwrap();
    let maps = nn::recording(|| model.visual.features(&fill::image("input", &[2, 3, 64, 96]), &Pass::eval())).unwrap();
    let ids = [[47u32, 3, 9, 48, 0, 0, 0, 0, 0, 0, 0, 0], [47, 5, 5, 5, 30, 22, 1, 12, 13, 14, 15, 48]];
    let vectors = nn::recording(|| model.text.forward(&Tensor::new(&ids, &Device::Cpu).unwrap())).unwrap();
    let difference = (&vectors - expected("text")).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference < 1e-5, "{case}: text vectors differ by {difference}");
    let mut total = (&vectors * fill::image("up.text", vectors.dims())).unwrap().sum_all().unwrap();
    for (i, map) in maps.iter().enumerate() {
        let level = format!("level{i}");
        let error = summary::error(&summary::summary(&level, map), &expected(&level).to_vec1().unwrap(), 0.0);
        assert!(error < OUTPUT, "{case}: {level} has a relative error of {error:.1e}");
        let product = (map * fill::image(&format!("up.{i}"), map.dims())).unwrap().mean_all().unwrap();
        total = (total + product).unwrap();
    }
    let gradients = nn::backward(&total).unwrap();
    let prefix = format!("{case}/grad/");
    let names: Vec<String> = file.shapes().into_keys().filter_map(|n| n.strip_prefix(&prefix).map(String::from)).collect();
    assert_eq!(names.len(), model.store.weights().count(), "{case}: every weight has a gradient");
    let expected = |name: &str| expected(&format!("grad/{name}")).to_vec1::<f32>().unwrap();
    let whole = names.iter().map(|name| f64::from(expected(name)[0]).powi(2)).sum::<f64>().sqrt();
    let mut worst = 0f64;
    for name in &names {
        let gradient = gradients.get(model.store.get(name).unwrap()).unwrap_or_else(|| panic!("no gradient for {name}"));
        let error = summary::error(&summary::summary(name, gradient), &expected(name), NOISE * whole);
        assert!(error < GRADIENT, "{case}: the gradient of {name} has a relative error of {error:.1e}");
        worst = worst.max(error);
    }
    println!("{case}: {} gradients, largest relative error {worst:.1e}", names.len());
}

#[test]
fn convnext_and_gelu_text_are_those_of_open_clip() {
    check("convnext", &convnext());
}

#[test]
fn resnet_and_quick_gelu_text_are_those_of_open_clip() {
    check("resnet", &resnet());
}

#[test]
fn a_frozen_tower_records_no_graph() {
    for config in ["convnext-nano", "rn50"] {
        let ClipConfig { visual, .. } = ClipConfig::named(config).unwrap();
        let visual = match visual {
            VisualConfig::ConvNext(c) => VisualConfig::ConvNext(ConvNextConfig { widths: [8, 8, 8, 8], depths: [1; 4], ..c }),
            VisualConfig::ResNet(c) => VisualConfig::ResNet(ModifiedResNetConfig { depths: [1; 4], width: 8.min(c.width) }),
        };
        let tower = visual.build(&Builder::random(0).frozen()).unwrap();
        let maps = tower.features(&fill::image("input", &[1, 3, 64, 32]), &Pass::eval()).unwrap();
        assert!(maps.iter().all(|map| !map.track_op()), "{config}");
        for (map, level) in maps.iter().zip(tower.levels()) {
            assert_eq!(map.dims(), [1, level.channels, 64 / level.stride, 32 / level.stride]);
        }
    }
}

/// A source with the names and shapes of a published file, values all zero.
fn published(model: &str) -> BTreeMap<String, Vec<usize>> {
    let text = std::fs::read_to_string(golden("clip_names.json")).unwrap();
    serde_json::from_str::<BTreeMap<String, BTreeMap<String, Vec<usize>>>>(&text).unwrap().remove(model).unwrap()
}

/// Reads names only: what is asked for arrives as zeros, so that large models cost nothing but their size.
struct Zeros(BTreeMap<String, Vec<usize>>);

impl TensorSource for Zeros {
    fn origin(&self) -> String {
        "published names".into()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.0.clone()
    }

    fn load(&self, name: &str, device: &Device) -> datum::base::Result<Tensor> {
        Ok(Tensor::zeros(self.0[name].as_slice(), candle_core::DType::F32, device)?)
    }
}

#[test]
fn published_names_and_shapes_are_read_without_rest() {
    for model in ["rn50", "convnext-base"] {
        let config = ClipConfig::named(model).unwrap();
        for prefix in ["", "backbone.clip_model."] {
            let names = || Zeros(published(model).into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect());
            let builder = Builder::from_source(clip::visual(Box::new(names())).unwrap(), 0);
            config.visual.build(&builder.pp("backbone.clip_model.visual").frozen()).unwrap();
            builder.finish().unwrap();
            let with_head = clip::visual_with_head(Box::new(names())).unwrap();
            let head = ImageHeadConfig::of(&clip::head_shapes(&with_head)).unwrap();
            let builder = Builder::from_source(with_head, 0);
            let place = builder.pp("backbone.clip_model").frozen();
            config.visual.build(&place.pp("visual")).unwrap();
            ImageHead::new(head, &config.visual, config.text.embedding, &place.pp("visual")).unwrap();
            place.get(&[], LOGIT_SCALE, Init::Zeros).unwrap();
            builder.finish().unwrap();
            let builder = Builder::from_source(clip::text(Box::new(names())).unwrap(), 0);
            TextTower::new(&config.text, &builder).unwrap();
            builder.finish().unwrap();
        }
    }
}

/// The other sizes without their memory: names from narrow towers of the same depths, shapes from the width alone.
#[test]
fn large_sizes_have_the_published_names() {
    for model in ["convnext-large-d-320", "rn101"] {
        let config = ClipConfig::named(model).unwrap();
        let narrow = match &config.visual {
            VisualConfig::ConvNext(c) => VisualConfig::ConvNext(ConvNextConfig { widths: [8, 16, 32, 64], ..*c }),
            VisualConfig::ResNet(c) => VisualConfig::ResNet(ModifiedResNetConfig { width: 8, ..*c }),
        };
        let builder = Builder::random(0);
        narrow.build(&builder.pp("backbone.clip_model.visual")).unwrap();
        let ours: Vec<String> = builder.finish().unwrap().iter().map(|(name, _)| name.to_string()).collect();
        let source = clip::visual(Box::new(Zeros(published(model)))).unwrap();
        assert_eq!(ours, source.shapes().into_keys().collect::<Vec<_>>(), "{model}");
        let widths = match &config.visual {
            VisualConfig::ConvNext(c) => c.widths.map(|width| ("trunk.stages", width)),
            VisualConfig::ResNet(c) => [1, 2, 4, 8].map(|factor| ("layer", 4 * factor * c.width)),
        };
        for (stage, (place, width)) in widths.into_iter().enumerate() {
            let name = match place {
                "layer" => format!("layer{}.0.bn3.weight", stage + 1),
                _ => format!("{place}.{stage}.blocks.0.gamma"),
            };
            assert_eq!(source.shapes()[&format!("backbone.clip_model.visual.{name}")], [width], "{model}");
        }
    }
}

#[test]
fn pointwise_convolutions_of_small_timm_files_are_linear_layers() {
    let config = ConvNextConfig { depths: [1, 1, 1, 1], widths: [8, 8, 8, 8], drop_path: 0.0 };
    let build = |builder: &Builder| VisualConfig::ConvNext(config).build(&builder.pp("backbone.clip_model.visual")).unwrap();
    let builder = Builder::random(3);
    build(&builder);
    let store = builder.finish().unwrap();
    let mut file = BTreeMap::new();
    for (name, tensor) in store.tensors() {
        let name = name.strip_prefix("backbone.clip_model.visual.trunk.").unwrap().to_string();
        let is_point = name.contains(".mlp.") && name.ends_with("weight");
        file.insert(name, if is_point { tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap() } else { tensor });
    }
    file.insert("head.fc.weight".into(), Tensor::zeros((10, 8), candle_core::DType::F32, &Device::Cpu).unwrap());
    let builder = Builder::from_source(clip::visual(Box::new(file)).unwrap(), 0);
    build(&builder);
    let loaded = builder.finish().unwrap();
    for (name, var) in store.weights() {
        assert_eq!(values(var), values(loaded.get(name).unwrap()), "{name}");
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn class_names_become_unit_vectors_that_do_not_depend_on_the_batch() {
    let prompts = class_prompts(STREET_CLASSES.concat());
    assert_eq!(prompts.len(), 840);
    assert_eq!(prompts[14 * 4], "a photo of a building.");
    assert_eq!(prompts[839], "There is a large bikes in the scene.");
    let Small { text, .. } = convnext();
    let ids = |prompt: &str| {
        let mut ids: Vec<u32> = prompt.bytes().rev().take(10).map(|byte| u32::from(byte) % 47).collect();
        ids.extend([49; 2]);
        Ok(ids)
    };
    let vectors = class_vectors(&text, &prompts, ids).unwrap();
    assert_eq!(vectors.dims(), [60, 24]);
    let lengths = values(&vectors.sqr().unwrap().sum(1).unwrap());
    assert!(lengths.iter().all(|length| (length - 1.0).abs() < 1e-5), "{lengths:?}");
    let alone = class_vectors(&text, &prompts[14 * 59..], ids).unwrap();
    assert_eq!(values(&alone), values(&vectors.narrow(0, 59, 1).unwrap()));
    assert!(class_vectors(&text, &prompts[..13], ids).is_err());
}

#[test]
fn wrong_files_and_names_are_explained() {
    let foreign = || -> Box<dyn TensorSource> { Box::new(Zeros(BTreeMap::from([("backbone.x".into(), vec![1])]))) };
    let message = |error: datum::base::Error| error.to_string();
    assert!(message(clip::visual(foreign()).err().unwrap()).contains("a CLIP image tower"));
    assert!(message(clip::text(foreign()).err().unwrap()).contains("a CLIP text tower"));
    assert!(message(ClipConfig::named("convnext-larg").unwrap_err()).contains("choose one of convnext-nano"));
    assert!(CLIP_NAMES.iter().all(|name| ClipConfig::named(name).is_ok()));
}
