//! Pipeline folders written by Python, of the present and of the first layout (tests/golden/sd_folder, made by
//! tests/golden/sd_folder.py), and folders of our own.

#[path = "support/fill.rs"]
mod fill;
#[path = "support/summary.rs"]
mod summary;

use candle_core::{Device, Tensor};
use datum::base::Result;
use datum::diffusion::PredictionType;
use datum::diffusion::folder::{PipelineFolder, PipelineWeights, noise_config, save_pipeline};
use datum::io::weights::{SafetensorsFile, TensorSource, read_metadata};
use datum::models::stable_diffusion::{TextEncoder, UNet, Vae};
use datum::nn::{Builder, ParamStore};
use fill::image;
use std::path::{Path, PathBuf};

/// f32 through a whole network.
const TOLERANCE: f64 = 1e-4;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sd_folder")
}

fn expected(name: &str) -> Tensor {
    SafetensorsFile::open(&golden().join("expected.safetensors")).unwrap().load(name, &Device::Cpu).unwrap()
}

struct Networks {
    unet: (UNet, ParamStore),
    vae: (Vae, ParamStore),
    text: (TextEncoder, ParamStore),
}

fn load<M>(source: Box<dyn TensorSource>, build: impl FnOnce(&Builder) -> Result<M>) -> (M, ParamStore) {
    let builder = Builder::from_source(source, 0);
    let model = build(&builder).unwrap();
    (model, builder.finish().unwrap())
}

fn networks(folder: &PipelineFolder) -> Networks {
    Networks {
        unet: load(folder.unet().unwrap(), |b| UNet::new(&folder.unet_config, b)),
        vae: load(folder.vae().unwrap(), |b| Vae::new(&folder.vae_config, b)),
        text: load(folder.text().unwrap(), |b| TextEncoder::new(&folder.text_config, b)),
    }
}

fn prompt_ids(folder: &PipelineFolder) -> Vec<Vec<u32>> {
    let text = std::fs::read_to_string(golden().join("prompts.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_str(&text).unwrap();
    prompts.iter().map(|prompt| folder.tokenizer.encode(prompt).unwrap()).collect()
}

#[test]
fn folders_of_both_layouts_compute_what_python_computes() {
    for case in ["now", "old"] {
        let folder = PipelineFolder::open(&golden().join(case)).unwrap();
        assert!(folder.warnings.is_empty(), "{:?}", folder.warnings);
        let ids = prompt_ids(&folder);
        let python: Vec<Vec<i32>> =
            expected(&format!("{case}/ids")).to_dtype(candle_core::DType::I32).unwrap().to_vec2().unwrap();
        for (found, python) in ids.iter().zip(&python) {
            assert_eq!(found.iter().map(|id| *id as i32).collect::<Vec<_>>(), *python);
        }
        let networks = networks(&folder);
        let prompts = Tensor::new(ids[1..3].to_vec(), &Device::Cpu).unwrap();
        let context = networks.text.0.forward(&prompts).unwrap();
        let steps = Tensor::new(&[981f32, 1.0], &Device::Cpu).unwrap();
        let noise = networks.unet.0.forward(&image("lat", &[2, 4, 8, 8]), &steps, &context).unwrap();
        let mean = networks.vae.0.encode(&(image("img", &[1, 3, 16, 16]) * 0.5).unwrap()).unwrap().mean;
        let decoded = networks.vae.0.decode(&mean).unwrap();
        for (name, found) in [("context", &context), ("noise", &noise), ("mean", &mean), ("decoded", &decoded)] {
            let expected: Vec<f32> = expected(&format!("{case}/{name}")).to_vec1().unwrap();
            let error = summary::error(&summary::summary(name, found), &expected, 1e-12);
            assert!(error < TOLERANCE, "{case}/{name}: {error:e}");
        }
    }
}

fn bits(store: &ParamStore) -> Vec<(String, Vec<u32>)> {
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect();
    store.iter().map(|(name, param)| (name.to_string(), values(param.var.as_tensor()))).collect()
}

#[test]
fn a_written_folder_reads_back_bit_for_bit_in_one_layout() {
    for case in ["now", "old"] {
        let folder = PipelineFolder::open(&golden().join(case)).unwrap();
        let before = networks(&folder);
        let dir = tempfile::tempdir().unwrap();
        let (unet, vae, text) = (before.unet.1.tensors(), before.vae.1.tensors(), before.text.1.tensors());
        save_pipeline(dir.path(), folder.settings(), PipelineWeights { unet: &unet, vae: &vae, text: &text }).unwrap();

        let again = PipelineFolder::open(dir.path()).unwrap();
        assert_eq!(again.unet_config.cross_attention_dim, folder.unet_config.cross_attention_dim);
        assert_eq!(again.unet_config.other.get("downsample_padding"), Some(&1.into()), "unused keys are kept");
        assert_eq!(noise_config(&again.scheduler_config).unwrap(), noise_config(&folder.scheduler_config).unwrap());
        assert_eq!(prompt_ids(&again), prompt_ids(&folder));
        let after = networks(&again);
        for (before, after) in [(&before.unet.1, &after.unet.1), (&before.vae.1, &after.vae.1), (&before.text.1, &after.text.1)] {
            assert!(bits(before) == bits(after));
        }
        for name in ["vocab.json", "merges.txt", "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"] {
            assert!(dir.path().join("tokenizer").join(name).is_file(), "{name}");
        }
        let text = dir.path().join("text_encoder/model.safetensors");
        assert_eq!(read_metadata(&text).unwrap()["format"], "pt");
        assert!(SafetensorsFile::open(&text).unwrap().shapes().keys().all(|name| name.starts_with("text_model.")));
        let vae = SafetensorsFile::open(&dir.path().join("vae/diffusion_pytorch_model.safetensors")).unwrap().shapes();
        assert!(vae.contains_key("decoder.mid_block.attentions.0.proj_attn.weight"), "releases before 0.17 need this name");
        let mut index: serde_json::Value = parse(&dir.path().join("model_index.json"));
        assert_eq!(index["text_encoder"].take(), serde_json::json!(["transformers", "CLIPTextModel"]));
    }
}

fn parse(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A copy of the `now` folder without weights, with one value of one file changed.
fn opened_with(file: &str, key: &str, value: serde_json::Value) -> Result<PipelineFolder> {
    let dir = tempfile::tempdir().unwrap();
    let names = ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"];
    for name in names.into_iter().chain(["model_index.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]) {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut content = parse(&golden().join("now").join(name));
        if name == file {
            content[key] = value.clone();
        }
        std::fs::write(path, content.to_string()).unwrap();
    }
    PipelineFolder::open(dir.path())
}

#[test]
fn settings_that_would_change_the_numbers_are_refused() {
    let refused = |file, key, value, part: &str| {
        let message = opened_with(file, key, value).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused("unet/config.json", "class_embed_type", "timestep".into(), "`class_embed_type` = \"timestep\"");
    refused("unet/config.json", "mid_block_type", serde_json::Value::Null, "`mid_block_type` = null");
    refused("unet/config.json", "block_out_channels", "wide".into(), "block_out_channels: invalid type");
    refused("unet/config.json", "norm_num_groups", 3.into(), "norm_num_groups 3 does not divide the 4 channels");
    refused("vae/config.json", "latent_channels", 16.into(), "in_channels 4, latent_channels 16");
    refused("text_encoder/config.json", "vocab_size", 100.into(), "vocab_size 100");
    refused("tokenizer/tokenizer_config.json", "model_max_length", 77.into(), "model_max_length 77");
    refused("scheduler/scheduler_config.json", "beta_end", 2.0.into(), "every beta must lie in (0, 1)");
}

#[test]
fn unknown_settings_give_a_warning_and_known_ones_arrive() {
    let folder = opened_with("unet/config.json", "new_toy", 1.into()).unwrap();
    assert_eq!(folder.warnings.len(), 1);
    assert!(folder.warnings[0].ends_with("unet/config.json: `new_toy` is ignored"), "{:?}", folder.warnings);
    let folder = opened_with("scheduler/scheduler_config.json", "prediction_type", "v_prediction".into()).unwrap();
    assert_eq!(noise_config(&folder.scheduler_config).unwrap().prediction_type, PredictionType::VPrediction);
}

#[test]
fn a_folder_that_is_no_pipeline_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = PipelineFolder::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("no model_index.json"), "{message}");
}
