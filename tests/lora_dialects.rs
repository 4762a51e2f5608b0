//! One adapter in the files of four tools (tests/golden/lora_dialects.py): all give the weights that diffusers and peft give, and
//! what is written comes back bit for bit.

use candle_core::{DType, Device, Tensor};
use datum::diffusion::lora::{Component, Dialect, Lora, LoraPair};
use datum::io::weights::{SafetensorsFile, TensorSource, read_metadata, save};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const BOTH: [Component; 2] = [Component::Unet, Component::TextEncoder];

fn golden(name: &str) -> PathBuf {
    Path::new("tests/golden/lora-dialects").join(name)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Shapes and values of the adapter of a layer.
#[derive(Debug, PartialEq)]
struct Content {
    down: (Vec<usize>, Vec<f32>),
    up: (Vec<usize>, Vec<f32>),
    alpha: f64,
}

/// All layers by name.
fn content(lora: &Lora) -> BTreeMap<(Component, String), Content> {
    let of = |tensor: &Tensor| (tensor.dims().to_vec(), values(tensor));
    let layer = |pair: &LoraPair| Content { down: of(&pair.down), up: of(&pair.up), alpha: pair.alpha };
    lora.pairs.iter().map(|(key, pair)| (key.clone(), layer(pair))).collect()
}

/// `base/…` or `merged/…` of the golden file for the layers of one network, under our names.
fn weights(kind: &str, component: Component) -> BTreeMap<String, Tensor> {
    let file = SafetensorsFile::open(&golden("merged.safetensors")).unwrap();
    let prefix = format!("{kind}/{}.", component.name());
    let names = file.shapes().into_keys().filter_map(|name| name.strip_prefix(&prefix).map(str::to_string));
    names.map(|name| (format!("{name}.weight"), file.load(&format!("{prefix}{name}"), &Device::Cpu).unwrap())).collect()
}

#[test]
fn adapters_of_all_tools_give_the_same_weights() {
    for (name, dialect, layers) in
        [("kohya.safetensors", Dialect::Kohya, 52), ("peft", Dialect::Peft, 52), ("old.safetensors", Dialect::DiffusersOld, 32)]
    {
        let lora = Lora::read(&golden(name)).unwrap();
        assert_eq!((lora.dialect, lora.pairs.len()), (dialect, layers), "{name}");
        let mut checked = 0;
        for component in BOTH {
            let (mut found, merged) = (weights("base", component), weights("merged", component));
            lora.merge(component, &mut found, 1.0).unwrap();
            for ((_, module), _) in lora.of(component) {
                let weight = format!("{module}.weight");
                assert_eq!(found[&weight].dims(), merged[&weight].dims());
                for (found, expected) in values(&found[&weight]).iter().zip(values(&merged[&weight])) {
                    assert!((found - expected).abs() < 1e-6, "{name} {weight}: {found} instead of {expected}");
                }
                checked += 1;
            }
        }
        assert_eq!(checked, layers);
    }
    let merged = weights("merged", Component::Unet);
    assert!(merged.values().any(|weight| weight.dims().ends_with(&[3, 3])), "a 3x3 convolution is among them");
}

#[test]
fn what_is_written_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["kohya.safetensors", "peft", "old.safetensors", "../lora.safetensors"] {
        let lora = Lora::read(&golden(name)).unwrap();
        lora.write(&path("pytorch_lora_weights.safetensors")).unwrap();
        lora.write_kohya(&path("kohya.safetensors")).unwrap();
        lora.write_peft(&path("peft")).unwrap();
        for written in ["pytorch_lora_weights.safetensors", "kohya.safetensors", "peft"] {
            let again = Lora::read(&path(written)).unwrap();
            assert_eq!(content(&again), content(&lora), "{name} as {written}");
            // And from there back to diffusers.
            let back = path("back.safetensors");
            again.write(&back).unwrap();
            assert_eq!(content(&Lora::read(&back).unwrap()), content(&lora), "{name} as {written} and back");
        }
        std::fs::remove_dir_all(path("peft")).unwrap();
    }
    let facts = read_metadata(&golden("kohya.safetensors")).unwrap();
    assert_eq!(facts["ss_network_alpha"], "1");
}

/// Keys and metadata that A1111, ComfyUI and kohya's scripts look for.
#[test]
fn kohyas_file_has_the_names_of_kohya() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.safetensors");
    let mut lora = Lora::read(&golden("peft")).unwrap();
    lora.metadata.insert("modelspec.trigger_phrase".into(), "a photo of a sks urban scene".into());
    lora.write_kohya(&path).unwrap();
    let keys = |path: &Path| -> Vec<String> {
        // diffusers' writer says `lora_te1_`, as kohya's scripts do for SDXL; both read either.
        SafetensorsFile::open(path).unwrap().shapes().into_keys().map(|key| key.replace("lora_te1_", "lora_te_")).collect()
    };
    assert_eq!(keys(&path), keys(&golden("kohya.safetensors")));
    let facts = read_metadata(&path).unwrap();
    for (key, value) in [
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "2"),
        ("ss_network_alpha", "1"),
        ("modelspec.trigger_phrase", "a photo of a sks urban scene"),
    ] {
        assert_eq!(facts[key], value, "{key}");
    }
}

#[test]
fn half_precision_stays_half_precision() {
    let folder = tempfile::tempdir().unwrap();
    let (half, back) = (folder.path().join("half.safetensors"), folder.path().join("back.safetensors"));
    let mut lora = Lora::read(&golden("kohya.safetensors")).unwrap();
    lora.number_type.0 = DType::F16;
    lora.write_kohya(&half).unwrap();
    let lora = Lora::read(&half).unwrap();
    assert_eq!(lora.number_type.0, DType::F16);
    lora.write_kohya(&back).unwrap();
    assert!(std::fs::read(&half).unwrap() == std::fs::read(&back).unwrap());
}

#[test]
fn effects_are_norms_of_what_is_added() {
    let lora = Lora::read(&golden("kohya.safetensors")).unwrap();
    let base = |component| Ok(Some(Box::new(weights("base", component)) as Box<dyn TensorSource>));
    let effects = lora.effects(base).unwrap();
    assert_eq!(effects.len(), 52);
    let norm = |xs: &[f32]| xs.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    for effect in &effects {
        let weight = |kind: &str| values(&weights(kind, effect.component)[&format!("{}.weight", effect.module)]);
        let (base, merged) = (weight("base"), weight("merged"));
        let change: Vec<f32> = merged.iter().zip(&base).map(|(merged, base)| merged - base).collect();
        assert!((effect.norm - norm(&change)).abs() < 1e-5, "{effect:?}");
        assert!((effect.share.unwrap() - norm(&change) / norm(&base)).abs() < 1e-5, "{effect:?}");
    }
    assert!(lora.effects(|_| Ok(None)).unwrap().iter().all(|effect| effect.share.is_none()));
    let other = lora.effects(|_| Ok(Some(Box::new(BTreeMap::new()) as Box<dyn TensorSource>))).unwrap_err().to_string();
    assert!(other.contains("52 problems: no layer unet."), "{other}");
}

#[test]
fn what_cannot_be_read_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path, parts: &[&str]| {
        let message = Lora::read(path).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in {message}"));
    };
    refused(folder.path(), &["pytorch_lora_weights.safetensors, ", "none of them"]);
    let weights = folder.path().join("adapter_model.safetensors");
    std::fs::copy(golden("peft/unet/adapter_model.safetensors"), &weights).unwrap();
    refused(folder.path(), &["adapter_config.json", "no file", "copy the whole folder"]);
    let config = folder.path().join("adapter_config.json");
    for (text, part) in [("{", "EOF"), ("{\"peft_type\": \"LOHA\"}", "LOHA"), ("{\"use_rslora\": true}", "use_rslora")] {
        std::fs::write(&config, text).unwrap();
        refused(folder.path(), &["adapter_config.json", part]);
    }
    let odd = folder.path().join("odd.safetensors");
    let one = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([
        ("lora_unet_input_blocks_1_1_proj_in.lora_down.weight".to_string(), one(&[1, 2])),
        ("lora_unet_conv_in.lora_down.weight".to_string(), one(&[1, 2, 3, 3])),
        ("lora_unet_conv_in.lora_up.weight".to_string(), one(&[4, 1, 1, 1])),
        ("lora_unet_conv_in.lora_mid.weight".to_string(), one(&[1, 1, 3, 3])),
        ("lora_unet_conv_out.alpha".to_string(), one(&[2])),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a".to_string(), one(&[2])),
    ]);
    save(&odd, &tensors, &BTreeMap::new()).unwrap();
    refused(&odd, &["input_blocks", "LoCon in three parts is not supported", "alpha is not one number", "LoHa is not supported"]);
}
