//! CLIP's towers in files of open_clip, in checkpoints built on it (FC-CLIP, CLOUDS), and plain ConvNeXt files of timm.

use super::{Renamed, TensorSource};
use crate::base::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Where checkpoints of segmenters keep their CLIP.
pub(super) const PREFIX: &str = "backbone.clip_model.";
/// The scale of products of vectors.
pub(super) const LOGIT_SCALE: &str = "logit_scale";
/// The parts of the text tower.
const TEXT: [&str; 5] = ["token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection"];

/// The image tower under the names `backbone.clip_model.visual.…`, from any of the layouts. What makes vectors of its map, and
/// counters of batch norms, are left out.
///
/// # Errors
/// A file that holds no image tower.
pub fn visual(source: Box<dyn TensorSource>) -> Result<Points<Renamed<Box<dyn TensorSource>>>> {
    tower(source, false)
}

/// [`visual`] with what makes vectors of its map, and with the scale of their products, `backbone.clip_model.logit_scale`.
///
/// # Errors
/// As [`visual`].
pub fn visual_with_head(source: Box<dyn TensorSource>) -> Result<Points<Renamed<Box<dyn TensorSource>>>> {
    tower(source, true)
}

/// The shapes of what makes vectors of the map, by names below `visual.`, in a source with the names of [`visual_with_head`].
pub fn head_shapes(source: &dyn TensorSource) -> BTreeMap<String, Vec<usize>> {
    let below = |(name, shape): (String, Vec<usize>)| {
        let name = name.strip_prefix(PREFIX)?.strip_prefix("visual.")?;
        is_head(name).then(|| (name.to_string(), shape))
    };
    source.shapes().into_iter().filter_map(below).collect()
}

fn tower(source: Box<dyn TensorSource>, with_head: bool) -> Result<Points<Renamed<Box<dyn TensorSource>>>> {
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
        if with_head && bare(name) == LOGIT_SCALE {
            return Some(format!("{PREFIX}{LOGIT_SCALE}"));
        }
        let place = format!("{ours}{}", name.strip_prefix(theirs)?);
        (!is_unused_visual(&place, with_head)).then(|| format!("{PREFIX}visual.{place}"))
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
pub(super) fn is_unused_visual(name: &str, with_head: bool) -> bool {
    (is_head(name) && !with_head) || name.starts_with("trunk.norm.") || name.ends_with("num_batches_tracked")
}

/// What makes vectors of the map, below `visual.`.
fn is_head(name: &str) -> bool {
    ["head.", "trunk.head.", "attnpool."].iter().any(|part| name.starts_with(part))
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
