//! What every segmenter owes: sizes and counts, strict files, batches, gradients everywhere, errors that help.

#[path = "support/fill.rs"]
mod fill;

use candle_core::Tensor;
use datum::base::{Result, Rng};
use datum::io::weights::mmseg::{Network, network};
use datum::io::weights::{SafetensorsFile, save};
use datum::models::segmenter::{EncoderDecoder, Level, Segmenter, SegmenterConfig};
use datum::nn::{self, Builder, ParamStore, Pass};
use std::collections::BTreeMap;

fn config(encoder: &str, decoder: &str) -> SegmenterConfig {
    let decoder_channels = Some(16);
    SegmenterConfig { encoder: encoder.into(), decoder: decoder.into(), decoder_channels, ..Default::default() }
}

fn build(config: &SegmenterConfig) -> (EncoderDecoder, ParamStore) {
    let builder = Builder::random(0);
    let model = EncoderDecoder::new(config, &builder).unwrap();
    (model, builder.finish().unwrap())
}

fn small_models() -> [SegmenterConfig; 3] {
    [config("mit-b0", "daformer"), config("mit-b0", "segformer"), config("efficientnet-lite0", "daformer")]
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn mit_sizes_have_the_published_numbers_of_parameters() {
    let sizes = [
        ("mit-b0", 3_319_392, 176),
        ("mit-b1", 13_151_424, 176),
        ("mit-b2", 24_196_288, 332),
        ("mit-b3", 44_072_128, 572),
        ("mit-b4", 60_842_688, 832),
    ];
    for (name, parameters, tensors) in sizes {
        let encoder = build(&config(name, "daformer")).1.select(|name| name.starts_with("backbone."));
        assert_eq!((encoder.parameter_count(), encoder.len()), (parameters, tensors), "{name}");
    }
}

#[test]
fn daformer_has_the_published_numbers_of_parameters() {
    let (_, store) = build(&SegmenterConfig::default());
    let part = |prefix: &'static str| store.select(|name| name.starts_with(prefix));
    assert_eq!((part("backbone.").parameter_count(), part("backbone.").len()), (81_443_008, 1052));
    assert_eq!(part("decode_head.").parameter_count(), 3_712_275);
    assert_eq!(store.parameter_count(), 85_155_283);
    // Published files also count the batches of each of the 8 batch norms.
    assert_eq!(store.len() + 8, 1110);
}

#[test]
fn levels_are_what_features_give_at_any_size() {
    for config in small_models() {
        let (model, _) = build(&config);
        for (height, width) in [(32, 32), (33, 47), (64, 70), (75, 101)] {
            let images = fill::image("input", &[1, 3, height, width]);
            let features = model.features(&images, &Pass::eval()).unwrap();
            for (map, Level { channels, stride }) in features.iter().zip(model.levels()) {
                assert_eq!(map.dims(), [1, channels, height.div_ceil(stride), width.div_ceil(stride)], "{config:?}");
            }
            let logits = model.head(&features, &Pass::eval()).unwrap();
            assert_eq!(logits.dims(), [1, 19, height.div_ceil(4), width.div_ceil(4)]);
        }
        let error = model.forward(&fill::image("input", &[1, 3, 64, 31]), &Pass::eval()).unwrap_err();
        assert!(error.to_string().contains("at least 32×32 pixels, found 64×31"), "{error}");
    }
}

#[test]
fn a_batch_gives_what_its_images_give() {
    for config in small_models() {
        let (model, store) = build(&config);
        fill::fill_store(&store, "");
        let images = fill::image("input", &[3, 3, 40, 56]);
        let together = model.forward(&images, &Pass::eval()).unwrap();
        for i in 0..3 {
            let alone = model.forward(&images.narrow(0, i, 1).unwrap(), &Pass::eval()).unwrap();
            assert!(largest_difference(&alone, &together.narrow(0, i, 1).unwrap()) < 1e-5, "{config:?}");
        }
    }
}

#[test]
fn a_saved_model_gives_the_same_output() {
    let folder = tempfile::tempdir().unwrap();
    let images = fill::image("input", &[1, 3, 40, 56]);
    for config in small_models() {
        let (model, store) = build(&config);
        let path = folder.path().join("model.safetensors");
        save(&path, &store.tensors(), &BTreeMap::new()).unwrap();
        let builder = Builder::from_source(SafetensorsFile::open(&path).unwrap(), 1);
        let loaded = EncoderDecoder::new(&config, &builder).unwrap();
        builder.finish().unwrap();
        let output = |model: &EncoderDecoder| values(&model.forward(&images, &Pass::eval()).unwrap());
        assert_eq!(output(&model), output(&loaded));
    }
}

#[test]
fn the_gradient_reaches_every_weight() {
    for config in small_models() {
        let (model, store) = build(&config);
        fill::fill_store(&store, "");
        let logits = nn::recording(|| model.forward(&fill::image("input", &[2, 3, 64, 64]), &Pass::eval())).unwrap();
        let gradients = nn::backward(&logits.sqr().unwrap().mean_all().unwrap()).unwrap();
        for (name, weight) in store.weights() {
            let unused = config.decoder == "segformer" && name.starts_with("decode_head.conv_seg.");
            let largest = gradients.get(weight).map(|g| values(g).into_iter().fold(0f32, |most, x| most.max(x.abs())));
            match largest {
                None => assert!(unused, "no gradient for {name}"),
                Some(size) => assert!(size.is_finite() && size > 0.0, "gradient {size} for {name}"),
            }
        }
    }
}

#[test]
fn random_layers_follow_the_pass() {
    let images = fill::image("input", &[2, 3, 64, 64]);
    for config in small_models() {
        let (model, store) = build(&config);
        fill::fill_store(&store, "");
        let draw = |seed| values(&model.forward(&images, &Pass::train(Rng::stream(seed, "test", &[]))).unwrap());
        assert_eq!(draw(1), draw(1), "{config:?}");
        assert_ne!(draw(1), draw(2), "{config:?}");
        let calm = SegmenterConfig { drop_path: 0.0, dropout: 0.0, ..config };
        let model = EncoderDecoder::new(&calm, &Builder::from_store(&store)).unwrap();
        let train = model.forward(&images, &Pass::train(Rng::stream(1, "test", &[]))).unwrap();
        assert_eq!(values(&train), values(&model.forward(&images, &Pass::statistics_only()).unwrap()));
    }
}

/// The tensors of a self-training checkpoint: three networks, each with its own values, and batch counters.
fn self_training_checkpoint(config: &SegmenterConfig) -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    for prefix in ["model.", "ema_model.", "imnet_model."] {
        let (_, store) = build(config);
        fill::fill_store(&store, prefix);
        for (name, tensor) in store.tensors() {
            if let Some(norm) = name.strip_suffix("running_mean") {
                let counter = Tensor::new(7i64, &candle_core::Device::Cpu).unwrap();
                tensors.insert(format!("module.{prefix}{norm}num_batches_tracked"), counter);
            }
            tensors.insert(format!("module.{prefix}{name}"), tensor);
        }
    }
    tensors
}

fn load(config: &SegmenterConfig, tensors: BTreeMap<String, Tensor>, which: Network) -> Result<ParamStore> {
    let builder = Builder::from_source(network(Box::new(tensors), which)?, 0);
    EncoderDecoder::new(config, &builder)?;
    builder.finish()
}

#[test]
fn the_student_of_a_self_training_checkpoint_is_read() {
    let config = config("mit-b0", "daformer");
    let file = self_training_checkpoint(&config);
    for (which, prefix) in [(Network::Student, "model."), (Network::Teacher, "ema_model."), (Network::ImageNet, "imnet_model.")] {
        let store = load(&config, file.clone(), which).unwrap();
        let name = "backbone.block1.0.attn.q.weight";
        assert_eq!(values(store.get(name).unwrap()), values(&fill::fill(&format!("{prefix}{name}"), &[32, 32])));
    }
    let (_, store) = build(&config);
    assert_eq!(load(&config, store.tensors(), Network::Student).unwrap().len(), store.len());
    let error = load(&config, store.tensors(), Network::Teacher).unwrap_err().to_string();
    assert!(error.contains("names such as `ema_model.backbone.…`"), "{error}");
}

#[test]
fn weights_of_another_model_are_refused() {
    let mut file = self_training_checkpoint(&config("mit-b0", "daformer"));
    file.insert("module.model.decode_head.extra".into(), fill::fill("extra", &[1]));
    let error = load(&config("mit-b0", "daformer"), file, Network::Student).unwrap_err().to_string();
    assert!(error.contains("unexpected: decode_head.extra"), "{error}");
    let (_, store) = build(&config("mit-b0", "segformer"));
    for encoder in ["mit-b0", "efficientnet-lite0"] {
        let foreign = EncoderDecoder::pretrained(&config(encoder, "daformer"), Box::new(store.tensors()), 0);
        let error = foreign.err().unwrap().to_string();
        assert!(error.contains("tensors such as `backbone.block1.0.attn.kv.bias`"), "{error}");
    }
}

#[test]
fn a_plain_mit_file_is_read_without_its_classifier() {
    let config = config("mit-b0", "daformer");
    let (_, store) = build(&config);
    let plain = |name: &str| name.strip_prefix("backbone.").map(String::from);
    let mut file: BTreeMap<String, Tensor> =
        store.tensors().into_iter().filter_map(|(name, tensor)| Some((plain(&name)?, tensor))).collect();
    file.insert("head.weight".into(), fill::fill("head.weight", &[1000, 256]));
    EncoderDecoder::pretrained(&config, Box::new(file.clone()), 0).unwrap();
    file.remove("block4.1.mlp.fc2.bias");
    let error = EncoderDecoder::pretrained(&config, Box::new(file), 0).err().unwrap().to_string();
    assert!(error.contains("1 missing: backbone.block4.1.mlp.fc2.bias"), "{error}");
}

#[test]
fn wrong_configurations_are_explained() {
    let message = |config: SegmenterConfig| config.validate().unwrap_err().to_string();
    let base = SegmenterConfig::default;
    assert!(message(SegmenterConfig { encoder: "mit_b5".into(), ..base() }).contains("did you mean `mit-b5`?"));
    assert!(message(SegmenterConfig { encoder: "efficientnet".into(), ..base() }).contains("`efficientnet-lite0`?"));
    assert!(message(SegmenterConfig { decoder: "dafomer".into(), ..base() }).contains("did you mean `daformer`?"));
    assert!(message(SegmenterConfig { num_classes: 0, ..base() }).contains("`num_classes` must be in 1…255, found 0"));
    assert!(message(SegmenterConfig { decoder_channels: Some(0), ..base() }).contains("`decoder_channels`"));
    assert!(message(SegmenterConfig { drop_path: 1.0, ..base() }).contains("`drop_path` must be"));
    assert!(message(SegmenterConfig { dropout: f32::NAN, ..base() }).contains("`dropout` must be"));
    assert!(serde_json::from_str::<SegmenterConfig>(r#"{"encodr": "mit-b0"}"#).is_err());
    let parsed: SegmenterConfig = serde_json::from_str(r#"{"encoder": "mit-b0", "num_classes": 11}"#).unwrap();
    assert_eq!(parsed, SegmenterConfig { encoder: "mit-b0".into(), num_classes: 11, ..base() });
}
