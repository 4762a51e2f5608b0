//! Runs the three networks of a pipeline folder once on given inputs: the Rust half of `scripts/parity_sd15.py`.
//!
//! ```text
//! cargo run --example stable_diffusion_forward -- FOLDER INPUTS.safetensors OUTPUTS.safetensors [COPY]
//! ```
//! INPUTS holds `latents` (B, 4, h, w), `timesteps` (B) and `images` (B, 3, H, W), and as metadata `prompts` a JSON list of
//! B prompts or more, of which the first B are encoded. With COPY, the folder is written again under that name.

use candle_core::{Device, Tensor};
use datum::base::{Error, Result};
use datum::diffusion::folder::{PipelineFolder, PipelineWeights, save_pipeline};
use datum::io::weights::{self, SafetensorsFile, TensorSource};
use datum::models::stable_diffusion::{TextEncoder, UNet, Vae};
use datum::nn::{Builder, ParamStore};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (paths, copy) = match &arguments[..] {
        [folder, inputs, outputs] => ([folder, inputs, outputs].map(Path::new), None),
        [folder, inputs, outputs, copy] => ([folder, inputs, outputs].map(Path::new), Some(Path::new(copy))),
        _ => return Err(Error::Usage("expected FOLDER INPUTS OUTPUTS [COPY]".into())),
    };
    run(paths, copy)
}

fn run([folder, inputs, outputs]: [&Path; 3], copy: Option<&Path>) -> Result<()> {
    let folder = PipelineFolder::open(folder)?;
    for warning in &folder.warnings {
        println!("warning: {warning}");
    }
    let inputs = SafetensorsFile::open(inputs)?;
    let input = |name: &str| inputs.load(name, &Device::Cpu);
    let (unet, unet_store) = load("unet", folder.unet()?, |b| UNet::new(&folder.unet_config, b))?;
    let (vae, vae_store) = load("vae", folder.vae()?, |b| Vae::new(&folder.vae_config, b))?;
    let (text, text_store) = load("text_encoder", folder.text()?, |b| TextEncoder::new(&folder.text_config, b))?;

    let latents = input("latents")?;
    let ids = prompt_ids(&folder, &inputs)?;
    let context = timed("text_encoder", || Ok(text.forward(&ids.narrow(0, 0, latents.dim(0)?)?)?))?;
    let noise = timed("unet", || Ok(unet.forward(&latents, &input("timesteps")?, &context)?))?;
    let moments = timed("vae encoder", || Ok(vae.encode(&input("images")?)?))?;
    let decoded = timed("vae decoder", || Ok(vae.decode(&latents)?))?;
    let results = [
        ("ids", ids),
        ("context", context),
        ("noise", noise),
        ("mean", moments.mean),
        ("logvar", moments.logvar),
        ("decoded", decoded),
    ];
    let results: BTreeMap<String, Tensor> = results.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    weights::save(outputs, &results, &BTreeMap::new())?;
    if let Some(copy) = copy {
        let (unet, vae, text) = (unet_store.tensors(), vae_store.tensors(), text_store.tensors());
        save_pipeline(copy, folder.settings(), PipelineWeights { unet: &unet, vae: &vae, text: &text })?;
    }
    Ok(())
}

/// A network for inference from `source`, strictly.
fn load<M>(part: &str, source: Box<dyn TensorSource>, build: impl FnOnce(&Builder) -> Result<M>) -> Result<(M, ParamStore)> {
    let builder = Builder::from_source(source, 0);
    let model = build(&builder.frozen())?;
    let store = builder.finish()?;
    println!("{part}: {} tensors, {} parameters", store.len(), store.parameter_count());
    Ok((model, store))
}

fn prompt_ids(folder: &PipelineFolder, inputs: &SafetensorsFile) -> Result<Tensor> {
    let metadata = inputs.metadata();
    let prompts: Vec<String> = serde_json::from_str(metadata.get("prompts").map_or("[]", String::as_str))
        .map_err(|e| Error::Usage(format!("the metadata `prompts` must be a JSON list of texts: {e}")))?;
    let ids = prompts.iter().map(|prompt| folder.tokenizer.encode(prompt)).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::new(ids, &Device::Cpu)?)
}

fn timed<T>(what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = run()?;
    println!("{what}: {:.2} s", start.elapsed().as_secs_f64());
    Ok(result)
}
