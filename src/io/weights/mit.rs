//! Published MiT weights: `mit_b*.pth` of SegFormer and `nvidia/mit-b*` of Hugging Face.

use super::TensorSource;
use crate::base::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Their names (below a block) → our names, and which part of our tensor theirs is.
const BLOCK: [(&str, &str, usize); 11] = [
    ("layer_norm_1", "norm1", 0),
    ("layer_norm_2", "norm2", 0),
    ("attention.self.query", "attn.q", 0),
    ("attention.self.key", "attn.kv", 0),
    ("attention.self.value", "attn.kv", 1),
    ("attention.self.sr", "attn.sr", 0),
    ("attention.self.layer_norm", "attn.norm", 0),
    ("attention.output.dense", "attn.proj", 0),
    ("mlp.dense1", "mlp.fc1", 0),
    ("mlp.dwconv.dwconv", "mlp.dwconv.dwconv", 0),
    ("mlp.dense2", "mlp.fc2", 0),
];

/// An encoder's weights under the names `backbone.…` of a segmenter. Keys and values are joined where they are apart.
pub struct MitWeights {
    source: Box<dyn TensorSource>,
    /// our name → their names, to be joined along dimension 0 in the order of the number
    names: BTreeMap<String, BTreeMap<usize, String>>,
}

/// Reads both layouts; classifiers (`head`, `classifier`) and decoders are left out.
///
/// # Errors
/// A file that holds no MiT encoder.
pub fn backbone(source: Box<dyn TensorSource>) -> Result<MitWeights> {
    let mut names: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    for theirs in source.shapes().into_keys() {
        if let Some((ours, part)) = rename(&theirs) {
            names.entry(format!("backbone.{ours}")).or_default().insert(part, theirs);
        }
    }
    if !names.contains_key("backbone.patch_embed1.proj.weight") {
        return Err(Error::data(
            source.origin(),
            "MiT encoder weights (`patch_embed1.proj.weight` or `segformer.encoder.patch_embeddings.0.proj.weight`)",
            super::sample(source.shapes().keys()),
            "give a `mit_b*.pth` file or the `model.safetensors` of `nvidia/mit-b*`",
        ));
    }
    Ok(MitWeights { source, names })
}

/// Our name and the part of it, `None` for what an encoder does not have.
fn rename(theirs: &str) -> Option<(String, usize)> {
    let name = ["state_dict.", "model.", "segformer."].iter().fold(theirs, |name, p| name.strip_prefix(p).unwrap_or(name));
    if ["head.", "classifier.", "decode_head."].iter().any(|dropped| name.starts_with(dropped)) {
        return None;
    }
    // Names of neither layout stay as they are, so that the strict check can report them.
    Some(name.strip_prefix("encoder.").and_then(hugging_face).unwrap_or_else(|| (name.into(), 0)))
}

fn hugging_face(name: &str) -> Option<(String, usize)> {
    let (kind, rest) = name.split_once('.')?;
    let (stage, rest) = rest.split_once('.')?;
    let stage = stage.parse::<usize>().ok()? + 1;
    match kind {
        "patch_embeddings" => Some((format!("patch_embed{stage}.{}", rest.replace("layer_norm", "norm")), 0)),
        "layer_norm" => Some((format!("norm{stage}.{rest}"), 0)),
        "block" => {
            let (index, rest) = rest.split_once('.')?;
            let (layer, parameter) = rest.rsplit_once('.')?;
            let (_, ours, part) = BLOCK.iter().find(|(theirs, _, _)| *theirs == layer)?;
            Some((format!("block{stage}.{index}.{ours}.{parameter}"), *part))
        }
        _ => None,
    }
}

impl TensorSource for MitWeights {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let theirs = self.source.shapes();
        let joined = |parts: &BTreeMap<usize, String>| {
            let mut shapes = parts.values().filter_map(|name| theirs.get(name));
            let mut shape = shapes.next().cloned().unwrap_or_default();
            for other in shapes {
                if let (Some(rows), Some(more)) = (shape.first_mut(), other.first()) {
                    *rows += more;
                }
            }
            shape
        };
        self.names.iter().map(|(ours, parts)| (ours.clone(), joined(parts))).collect()
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let parts = self.names.get(name).ok_or_else(|| Error::Usage(format!("no tensor named `{name}`")))?;
        let parts: Vec<Tensor> = parts.values().map(|theirs| self.source.load(theirs, device)).collect::<Result<_>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}
