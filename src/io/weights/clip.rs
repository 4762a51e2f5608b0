//! CLIP's towers in files of open_clip, in checkpoints built on it (FC-CLIP, CLOUDS), and plain ConvNeXt files of timm.

use super::{Renamed, TensorSource};
use crate::base::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Where checkpoints of segmenters keep their CLIP.
pub(super) const PREFIX: &str = "backbone.clip_model.";
/// The parts of the text tower.
const TEXT: [&str; 5] = ["token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection"];

/// The image tower under the names `backbone.clip_model.visual.…`, from any of the layouts. What makes one vector of an
/// image, and counters of batch norms, are left out.
///
/// # Errors
/// A file that holds no image tower.
pub fn visual(source: Box<dyn TensorSource>) -> Result<Points<Renamed<Box<dyn TensorSource>>>> {
    let names: Vec<String> = source.shapes().into_keys().collect();
    let starts = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    let (theirs, ours) = match (starts("backbone.clip_model.visual."), starts("visual."), starts("stages.")) {
        (true, _, _) => ("backbone.clip_model.visual.", ""),
        (_, true, _) => ("visual.", ""),
        (_, _, true) => ("", "trunk."),
        _ => {
            return Err(Error::data(
                source.origin(),
                "a CLIP image tower (`visual.…`, `backbone.clip_model.visual.…`), or a ConvNeXt of timm (`stages.…`)",
                super::sample(&names),
                "give a file of open_clip, or a checkpoint of a segmenter built on it",
            ));
        }
    };
    let rename = move |name: &str| {
        let place = format!("{ours}{}", name.strip_prefix(theirs)?);
        (!is_unused_visual(&place)).then(|| format!("{PREFIX}visual.{place}"))
    };
    Ok(Points(Renamed::new(source, rename)))
}

/// The text tower under open_clip's names, from its own files or from checkpoints that hold the whole CLIP.
///
/// # Errors
/// A file that holds no text tower; published checkpoints of segmenters often lack it.
pub fn text(source: Box<dyn TensorSource>) -> Result<Renamed<Box<dyn TensorSource>>> {
    let names: Vec<String> = source.shapes().into_keys().collect();
    let ours = |name: &str| is_text(bare(name)).then(|| bare(name).to_string());
    if !names.iter().any(|name| bare(name) == "token_embedding.weight") {
        return Err(Error::data(
            source.origin(),
            "a CLIP text tower (`token_embedding.weight`, also below `backbone.clip_model.`)",
            super::sample(&names),
            "give the file of open_clip that the image tower comes from",
        ));
    }
    Ok(Renamed::new(source, ours))
}

fn bare(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// `name` without any prefix.
pub(super) fn is_text(name: &str) -> bool {
    TEXT.iter().any(|part| name.starts_with(part))
}

/// What segmentation does not need of an image tower, below `visual.`.
pub(super) fn is_unused_visual(name: &str) -> bool {
    ["head.", "trunk.head.", "trunk.norm.", "attnpool."].iter().any(|part| name.starts_with(part))
        || name.ends_with("num_batches_tracked")
}

/// A source whose 1×1 convolutions in ConvNeXt blocks are seen as linear layers: timm writes its small sizes that way.
pub struct Points<S>(pub(super) S);

fn squeezed(name: &str, shape: &[usize]) -> Vec<usize> {
    match *shape {
        [outputs, inputs, 1, 1] if name.contains(".mlp.fc") => vec![outputs, inputs],
        _ => shape.to_vec(),
    }
}

impl<S: TensorSource> TensorSource for Points<S> {
    fn origin(&self) -> String {
        self.0.origin()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let ours = |(name, shape): (String, Vec<usize>)| {
            let shape = squeezed(&name, &shape);
            (name, shape)
        };
        self.0.shapes().into_iter().map(ours).collect()
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let tensor = self.0.load(name, device)?;
        let shape = squeezed(name, tensor.dims());
        Ok(tensor.reshape(shape)?)
    }
}
