//! Adapter files against diffusers and peft (tests/golden/lora.py).

use candle_core::{DType, Device, Tensor};
use datum::diffusion::lora::{Component, Lora};
use datum::io::weights::{SafetensorsFile, TensorSource, read_metadata, save};
use datum::nn::{AdapterPlan, Builder, Linear};
use std::collections::BTreeMap;
use std::path::Path;

const FILE: &str = "tests/golden/lora.safetensors";
const BOTH: [Component; 2] = [Component::Unet, Component::TextEncoder];

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn raw(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafetensorsFile::open(path).unwrap();
    let read = |name: String| {
        let tensor = file.load(&name, &Device::Cpu).unwrap();
        (name, (tensor.dims().to_vec(), values(&tensor)))
    };
    file.shapes().into_keys().map(read).collect()
}

#[test]
fn merged_weights_are_those_of_peft() {
    let lora = Lora::read(Path::new(FILE)).unwrap();
    let golden = SafetensorsFile::open(Path::new("tests/golden/lora-merged.safetensors")).unwrap();
    let mut checked = 0;
    for component in BOTH {
        let part = |kind: &str| -> BTreeMap<String, Tensor> {
            let prefix = format!("{kind}/{}.", component.name());
            let named = golden.shapes().into_keys().filter_map(|n| n.strip_prefix(&prefix).map(str::to_string));
            named.map(|n| (format!("{n}.weight"), golden.load(&format!("{prefix}{n}"), &Device::Cpu).unwrap())).collect()
        };
        let mut weights = part("base");
        lora.merge(component, &mut weights, 1.0).unwrap();
        for (name, expected) in part("merged") {
            for (found, expected) in values(&weights[&name]).iter().zip(values(&expected)) {
                assert!((found - expected).abs() < 1e-6, "{name}: {found} instead of {expected}");
            }
            checked += 1;
        }
        lora.merge(component, &mut weights, -1.0).unwrap();
        for (name, expected) in part("base") {
            for (found, expected) in values(&weights[&name]).iter().zip(values(&expected)) {
                assert!((found - expected).abs() < 1e-6, "{name} after taking the adapter out");
            }
        }
    }
    assert_eq!(checked, lora.pairs.len());
}

#[test]
fn a_written_file_is_bit_identical_and_keeps_alpha() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_lora_weights.safetensors");
    let lora = Lora::read(Path::new(FILE)).unwrap();
    lora.write(&path).unwrap();
    // Only the name that recent transformers drop comes back.
    let restored = |key: String| key.replace("text_encoder.encoder.", "text_encoder.text_model.encoder.");
    let expected: BTreeMap<_, _> = raw(Path::new(FILE)).into_iter().map(|(key, value)| (restored(key), value)).collect();
    assert_eq!(raw(&path), expected);
    let again = Lora::read(dir.path()).unwrap();
    for (key, pair) in &lora.pairs {
        assert_eq!((again.pairs[key].alpha, again.pairs[key].rank()), (pair.alpha, pair.rank()));
    }
    assert_eq!(lora.pairs.values().filter(|pair| pair.rank() == 3 && pair.alpha == 6.0).count(), 1);
    assert_eq!(read_metadata(&path).unwrap()["format"], "pt");
}

#[test]
fn a_store_round_trip_and_the_merged_layer_computes_the_same() {
    let plan = AdapterPlan { rank: 4, alpha: 8.0, targets: vec!["to_q".into()] };
    let build = |seed| {
        let builder = Builder::random(seed).with_adapters(plan.clone());
        let layer = Linear::new(6, 5, &builder.pp("attn1").pp("to_q")).unwrap();
        (layer, builder.finish().unwrap())
    };
    let (trained, store) = build(1);
    let up = store.get("attn1.to_q.lora.up.weight").unwrap();
    up.set(&datum::base::Rng::stream(3, "up", &[]).normal_tensor(&[5, 4], &Device::Cpu).unwrap()).unwrap();
    let mut lora = Lora::default();
    lora.metadata.insert("instance_prompt".into(), "a photo of a sks urban scene".into());
    lora.add_store(Component::Unet, &store, 8.0).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.safetensors");
    lora.write(&path).unwrap();
    let lora = Lora::read(&path).unwrap();
    assert_eq!(lora.metadata["instance_prompt"], "a photo of a sks urban scene");

    let (_, other) = build(2);
    lora.load_into(Component::Unet, &other, 2.0).unwrap();
    for half in ["down", "up"] {
        let name = format!("attn1.to_q.lora.{half}.weight");
        assert_eq!(values(store.get(&name).unwrap()), values(other.get(&name).unwrap()));
    }
    lora.load_into(Component::Unet, &other, 1.0).unwrap();
    let folded = values(other.get("attn1.to_q.lora.up.weight").unwrap());
    assert_eq!(folded, values(up).iter().map(|x| x * 2.0).collect::<Vec<_>>());
    assert!(lora.load_into(Component::TextEncoder, &other, 2.0).is_err());

    let xs = datum::base::Rng::stream(4, "xs", &[]).normal_tensor(&[3, 6], &Device::Cpu).unwrap();
    let mut base = store.select(|name| !name.contains(".lora.")).tensors();
    lora.merge(Component::Unet, &mut base, 1.0).unwrap();
    let ys = xs.matmul(&base["attn1.to_q.weight"].t().unwrap()).unwrap();
    let ys = ys.broadcast_add(&base["attn1.to_q.bias"]).unwrap();
    for (found, expected) in values(&ys).iter().zip(values(&trained.forward(&xs).unwrap())) {
        assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
    }
}

#[test]
fn a_1x1_convolution_is_a_matrix() {
    let t = |shape: &[usize]| datum::base::Rng::stream(1, "conv", &[]).normal_tensor(shape, &Device::Cpu).unwrap();
    let pair = datum::diffusion::LoraPair { down: t(&[2, 3, 1, 1]), up: t(&[4, 2, 1, 1]), alpha: 2.0 };
    let merged = pair.merged(&t(&[4, 3, 1, 1]), 0.5).unwrap();
    assert_eq!(merged.dims(), [4, 3, 1, 1]);
    let flat = |t: Tensor| t.flatten_from(1).unwrap();
    let update = flat(pair.up.clone()).matmul(&flat(pair.down.clone())).unwrap();
    let expected = (flat(t(&[4, 3, 1, 1])) + (update * 0.5).unwrap()).unwrap();
    assert_eq!(values(&merged), values(&expected));
}

#[test]
fn everything_wrong_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([
        ("unet.a.lora.down.weight".to_string(), ones(&[2, 3])),
        ("unet.b.lora.down.weight".to_string(), ones(&[2, 3])),
        ("unet.b.lora.up.weight".to_string(), ones(&[4, 5])),
        ("unet.b.dora_scale".to_string(), ones(&[2])),
    ]);
    save(&path, &tensors, &BTreeMap::new()).unwrap();
    let message = Lora::read(&path).unwrap_err().to_string();
    for part in
        ["3 problems", "unet.b.dora_scale: DoRA is not supported", "half a pair for unet.a", "unet.b: shapes [2, 3] and [4, 5]"]
    {
        assert!(message.contains(part), "{message}");
    }
    let good = BTreeMap::from([
        ("unet.b.lora.down.weight".to_string(), ones(&[2, 3])),
        ("unet.b.lora.up.weight".to_string(), ones(&[4, 2])),
    ]);
    save(&path, &good, &BTreeMap::new()).unwrap();
    let lora = Lora::read(&path).unwrap();
    for base in [BTreeMap::new(), BTreeMap::from([("b.weight".to_string(), ones(&[4, 4]))])] {
        let message = lora.merge(Component::Unet, &mut base.clone(), 1.0).unwrap_err().to_string();
        assert!(message.contains("no layer b") || message.contains("b.weight of shape [4, 4]"), "{message}");
    }
    for key in ["use_dora", "use_rslora"] {
        let settings = BTreeMap::from([("lora_adapter_metadata".to_string(), format!("{{\"unet.{key}\": true}}"))]);
        save(&path, &good, &settings).unwrap();
        assert!(Lora::read(&path).unwrap_err().to_string().contains(key));
    }
}
