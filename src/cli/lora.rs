//! `datum lora`

use super::common::DisplayArgs;
use super::settings;
use crate::base::{Error, Result};
use crate::diffusion::lora::Effect;
use crate::diffusion::{Component, Lora};
use crate::report::terminal::{facts, percent, table};
use crate::systems::datum::base;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Longest value of a file's metadata that is shown, in characters.
const SHOWN: usize = 100;

/// Look at low-rank adapters, convert them for other tools, merge them into a model
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "Adapters of diffusers, peft and kohya's scripts (A1111) for Stable Diffusion 1 and 2 are read.\n\n\
                        Examples:\n  datum lora inspect style.safetensors\n  \
                        datum lora convert runs/dusk --to kohya --output dusk.safetensors\n  \
                        datum lora merge style.safetensors:0.8 --model nano --output styled")]
pub(super) struct LoraArgs {
    #[command(subcommand)]
    verb: LoraVerb,
}

#[derive(Debug, Subcommand)]
enum LoraVerb {
    Inspect(InspectArgs),
    Convert(ConvertArgs),
    Merge(MergeArgs),
}

/// Show what an adapter holds, and how much it changes each layer
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum lora inspect style.safetensors\n  \
                        datum lora inspect runs/dusk --model CompVis/stable-diffusion-v1-4 --layers 20")]
struct InspectArgs {
    /// Adapter: a file, a folder of peft, a run of `personalize --method lora`
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,
    /// Model it was made for: says whether every layer is there, and sizes changes by the layers' own weights
    #[arg(long, value_name = "FOLDER|ID|nano")]
    model: Option<String>,
    /// Layers to show, the most changed ones first; `--json` has all
    #[arg(long, value_name = "N", default_value_t = 8)]
    layers: usize,
    #[command(flatten)]
    display: DisplayArgs,
}

/// Write an adapter for another tool; values stay bit for bit what they are
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum lora convert dusk.safetensors --to kohya --output for-comfyui.safetensors\n  \
                        datum lora convert from-civitai.safetensors --to peft --output adapter")]
struct ConvertArgs {
    /// Adapter: a file, a folder of peft, a run of `personalize --method lora`
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,
    /// diffusers, kohya (also A1111, ComfyUI): a file; peft: a folder
    #[arg(long, value_name = "DIALECT")]
    to: Written,
    /// File or folder to write
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    #[command(flatten)]
    display: DisplayArgs,
}

/// Merge adapters into a model's weights and write it as a diffusers folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum lora merge runs/dusk --model nano --output dusk-model\n  \
                        datum lora merge a.safetensors:0.7 b.safetensors:0.3 --model stable-diffusion --output both")]
struct MergeArgs {
    /// Adapters, each with its scale
    #[arg(value_name = "ADAPTER[:SCALE]", required = true)]
    adapters: Vec<String>,
    /// Model to change: a diffusers folder, a run, a hub id, nano
    #[arg(long, value_name = "FOLDER|ID|nano")]
    model: String,
    /// Folder to write, new or empty
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    #[command(flatten)]
    display: DisplayArgs,
}

/// A dialect that is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Written {
    /// `pytorch_lora_weights.safetensors`
    Diffusers,
    /// `adapter_model.safetensors` and `adapter_config.json` for each network
    Peft,
    /// One file with alphas, for A1111 and ComfyUI too
    Kohya,
}

/// Runs the verb.
pub(super) fn run(args: LoraArgs) -> Result<()> {
    match args.verb {
        LoraVerb::Inspect(args) => inspect(&args),
        LoraVerb::Convert(args) => convert(&args),
        LoraVerb::Merge(args) => merge(&args),
    }
}

fn inspect(args: &InspectArgs) -> Result<()> {
    let lora = Lora::read(&args.adapter)?;
    let progress = args.display.progress();
    let folder = args.model.as_ref().map(|model| base::pipeline(model, &settings::places().hub, &progress)).transpose()?;
    let effects = lora.effects(|component| {
        let part = |folder: &crate::diffusion::folder::PipelineFolder| match component {
            Component::Unet => folder.unet(),
            Component::TextEncoder => folder.text(),
        };
        folder.as_ref().map(part).transpose()
    })?;
    let result = json!({
        "adapter": lora.origin.display().to_string(),
        "dialect": lora.dialect.to_string(),
        "type": lora.number_type.0.as_str(),
        "parameters": parameters(&lora),
        "metadata": lora.metadata,
        "layers": effects.iter().map(layer).collect::<Vec<_>>(),
    });
    args.display.result(&result, || text(&lora, effects, args.layers))
}

fn parameters(lora: &Lora) -> usize {
    lora.pairs.values().map(|pair| pair.down.elem_count() + pair.up.elem_count()).sum()
}

fn layer(effect: &Effect) -> Value {
    let Effect { component, module, rank, alpha, norm, share } = effect;
    json!({ "network": component.name(), "layer": module, "rank": rank, "alpha": alpha, "norm": norm, "share": share })
}

/// Different values in their order, `4` or `4, 8`.
fn kinds(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    values.dedup();
    values.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")
}

fn text(lora: &Lora, mut effects: Vec<Effect>, shown: usize) -> String {
    let count = |component: Component| lora.of(component).count().to_string();
    let mut lines = vec![
        ("adapter", lora.origin.display().to_string()),
        ("dialect", lora.dialect.to_string()),
        ("U-Net", format!("{} layers", count(Component::Unet))),
        ("text encoder", format!("{} layers", count(Component::TextEncoder))),
        ("rank", kinds(effects.iter().map(|effect| effect.rank as f64).collect())),
        ("alpha", kinds(effects.iter().map(|effect| effect.alpha).collect())),
        ("parameters", format!("{} ({})", parameters(lora), lora.number_type.0.as_str())),
    ];
    let shortened = |value: &String| {
        let start: String = value.chars().take(SHOWN).collect();
        if start.len() < value.len() { format!("{start}…") } else { start }
    };
    lines.extend(lora.metadata.iter().map(|(key, value)| (key.as_str(), shortened(value))));
    effects.sort_by(|a, b| b.share.unwrap_or(b.norm).total_cmp(&a.share.unwrap_or(a.norm)));
    let row = |effect: &Effect| {
        let name = format!("{}.{}", effect.component.name(), effect.module);
        vec![name, effect.rank.to_string(), format!("{:.4}", effect.norm), percent(effect.share)]
    };
    let rows: Vec<Vec<String>> = effects.iter().take(shown).map(row).collect();
    let header = ["most changed layers", "rank", "norm of the change", "% of the weight's"];
    if rows.is_empty() { facts(&lines) } else { format!("{}\n\n{}", facts(&lines), table(&header, &rows)) }
}

fn convert(args: &ConvertArgs) -> Result<()> {
    let lora = Lora::read(&args.adapter)?;
    refuse_other(&args.output, matches!(args.to, Written::Peft))?;
    match args.to {
        Written::Diffusers => lora.write(&args.output)?,
        Written::Kohya => lora.write_kohya(&args.output)?,
        Written::Peft => lora.write_peft(&args.output)?,
    }
    let result =
        json!({ "output": args.output.display().to_string(), "layers": lora.pairs.len(), "from": lora.dialect.to_string() });
    args.display.result(&result, || format!("{}", args.output.display()))
}

/// A file where a folder is to be written, or the other way round.
fn refuse_other(output: &Path, folder: bool) -> Result<()> {
    match (folder, output.is_dir(), output.is_file()) {
        (false, true, _) => Err(Error::data(output, "a file to write", "a folder", "name the file: `--output NAME.safetensors`")),
        (true, _, true) => Err(Error::data(output, "a folder to write", "a file", "name a folder")),
        _ => Ok(()),
    }
}

fn merge(args: &MergeArgs) -> Result<()> {
    let occupied = args.output.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if occupied || args.output.is_file() {
        return Err(Error::data(&args.output, "a new or empty folder", "something that is there", "name another folder"));
    }
    let progress = args.display.progress();
    let model = base::open(&args.model, &args.adapters, &settings::places(), &progress)?;
    model.save(&args.output)?;
    let result = json!({ "model": args.output.display().to_string(), "adapters": args.adapters });
    args.display.result(&result, || format!("{}", args.output.display()))
}
