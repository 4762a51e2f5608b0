//! Checkpoints of CLOUDS and FC-CLIP: detectron2 files with a CLIP backbone and Mask2Former's head.

use super::clip::{self, PREFIX, Points};
use super::{Renamed, TensorSource};
use crate::base::{Error, Result};

/// How a checkpoint's head names the class of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classifier {
    /// A linear layer for that many classes, without "no object".
    Linear(usize),
    /// Comparison with text vectors of that width.
    Text(usize),
}

/// The classifier that the names in a checkpoint show; its configuration does not matter.
///
/// # Errors
/// A file without such a head.
pub fn classifier(source: &dyn TensorSource) -> Result<Classifier> {
    let shapes = source.shapes();
    let place = "sem_seg_head.predictor.";
    let rows = |name: &str| shapes.get(&format!("{place}{name}")).and_then(|shape| shape.first().copied());
    match (rows("class_embed.weight"), rows("class_embed.layers.2.weight"), rows("_mask_pooling_proj.1.weight")) {
        (Some(outputs @ 1..), None, None) => Ok(Classifier::Linear(outputs - 1)),
        (None, Some(width), Some(_)) => Ok(Classifier::Text(width)),
        _ => Err(Error::data(
            source.origin(),
            "a head with `sem_seg_head.predictor.class_embed.weight` alone (linear) or with `class_embed.layers.2.weight` and \
             `_mask_pooling_proj.1.weight` (text)",
            super::sample(shapes.keys().filter(|name| name.starts_with(place))),
            "give a checkpoint of CLOUDS or FC-CLIP",
        )),
    }
}

/// The network of a checkpoint under the names of `models::mask2former`. Left out, as the network does not have them: the text
/// tower, CLIP's pooling layers and scale (but `with_image_head`), the teacher, SAM, weights of the losses, and the vector of
/// "no object" of a head that does not use it. All else stays visible to the strict check.
///
/// # Errors
/// See [`classifier`].
pub fn network(source: Box<dyn TensorSource>, with_image_head: bool) -> Result<Points<Renamed<Box<dyn TensorSource>>>> {
    let with_void = matches!(classifier(&*source)?, Classifier::Text(_));
    Ok(Points(Renamed::new(source, move |name| {
        (!is_unused(name, with_void, with_image_head)).then(|| name.replace(".static_query.", ".query_feat."))
    })))
}

fn is_unused(name: &str, with_void: bool, with_image_head: bool) -> bool {
    if let Some(name) = name.strip_prefix(PREFIX) {
        let visual = name.strip_prefix("visual.");
        return clip::is_text(name)
            || name == "attn_mask"
            || (name == clip::LOGIT_SCALE && !with_image_head)
            || visual.is_some_and(|name| clip::is_unused_visual(name, with_image_head));
    }
    let others = ["sem_seg_head_ema.", "sam.", "criterion.", "pixel_mean", "pixel_std"];
    others.iter().any(|part| name.starts_with(part)) || (!with_void && name == "void_embedding.weight")
}
