//! Published checkpoints of CLOUDS as segmenters: what their tensors say about the network.

use super::segmenter_file::{Header, Model};
use crate::base::{Error, Result};
use crate::data::classes_of;
use crate::io::weights::TensorSource;
use crate::io::weights::clouds::{self, Classifier};
use crate::models::clip::{ConvNextConfig, ModifiedResNetConfig, VisualConfig};
use crate::models::mask2former::{HeadConfig, Mask2FormerConfig};
use std::collections::BTreeMap;

/// Short side of photos in the published evaluation.
pub const SHORT_SIDE: usize = 1024;
/// The classes of all published checkpoints.
const CLASSES: &str = "cityscapes";
const VISUAL: &str = "backbone.clip_model.visual.";
const PIXEL_DECODER: &str = "sem_seg_head.pixel_decoder.transformer.encoder.layers.";
const PREDICTOR: &str = "sem_seg_head.predictor.";
/// Levels of feature maps that the pixel decoder looks at.
const LEVELS: usize = 3;

/// True for files with the head of such a checkpoint.
pub fn is_published(source: &dyn TensorSource) -> bool {
    source.shapes().keys().any(|name| name.starts_with(PREDICTOR))
}

/// The network as files describe it: what matters in training alone is set to one value.
pub fn as_file(network: &Mask2FormerConfig) -> Mask2FormerConfig {
    let mut network = Mask2FormerConfig { freeze_backbone: true, ..network.clone() };
    if let VisualConfig::ConvNext(convnext) = &mut network.backbone {
        convnext.drop_path = 0.0;
    }
    network
}

/// Header and weights of a checkpoint.
///
/// # Errors
/// Heads that compare with text vectors, other widths, other numbers of classes than 19, files that lack parts.
pub fn open(source: Box<dyn TensorSource>) -> Result<(Header, Box<dyn TensorSource>)> {
    let (origin, classes) = (source.origin(), classes_of(CLASSES)?);
    let wrong = |found: String| {
        let expected = format!("a checkpoint of CLOUDS with a linear head for {} classes", classes.len());
        Error::data(&origin, expected, found, "give a checkpoint of the released configurations, or a run of `clouds train`")
    };
    match clouds::classifier(&*source)? {
        Classifier::Linear(found) if found == classes.len() => {}
        Classifier::Linear(found) => return Err(wrong(format!("{found} classes"))),
        Classifier::Text(_) => return Err(wrong("a head that compares with text vectors".into())),
    }
    let network = clouds::network(source)?;
    let Some(config) = config(&network.shapes(), classes.len()) else {
        return Err(wrong("a file without some of its parts".into()));
    };
    // The number of heads leaves no trace in shapes: only that of the published width is known.
    let HeadConfig { width, points, .. } = HeadConfig::default();
    if (config.head.width, config.head.points) != (width, points) {
        return Err(wrong(format!("one of width {}, whose number of heads its tensors do not tell", config.head.width)));
    }
    let header = Header { short_side: SHORT_SIDE, ..Header::new(Model::Mask2Former { mask2former: Box::new(config) }, &classes) };
    Ok((header, Box::new(network)))
}

/// The sizes of a network with the published number of heads.
fn config(shapes: &BTreeMap<String, Vec<usize>>, num_classes: usize) -> Option<Mask2FormerConfig> {
    let rows = |name: String| shapes.get(&name).and_then(|shape| shape.first().copied());
    let count = |start: &str, end: &str| (0..).take_while(|i| shapes.contains_key(&format!("{start}{i}{end}"))).count();
    let convnext = |stage: usize| count(&format!("{VISUAL}trunk.stages.{stage}.blocks."), ".gamma");
    let resnet = |stage: usize| count(&format!("{VISUAL}layer{}.", stage + 1), ".conv1.weight");
    let backbone = match rows(format!("{VISUAL}trunk.stem.0.weight")) {
        Some(_) => {
            let width = |stage: usize| rows(format!("{VISUAL}trunk.stages.{stage}.blocks.0.gamma"));
            let widths = [width(0)?, width(1)?, width(2)?, width(3)?];
            VisualConfig::ConvNext(ConvNextConfig { depths: [0, 1, 2, 3].map(convnext), widths, drop_path: 0.0 })
        }
        None => {
            let width = rows(format!("{VISUAL}conv3.weight"))?;
            VisualConfig::ResNet(ModifiedResNetConfig { depths: [0, 1, 2, 3].map(resnet), width })
        }
    };
    let heads = HeadConfig::default().heads;
    let head = HeadConfig {
        num_classes,
        width: rows(format!("{PREDICTOR}decoder_norm.weight"))?,
        queries: rows(format!("{PREDICTOR}query_feat.weight"))?,
        heads,
        points: rows(format!("{PIXEL_DECODER}0.self_attn.sampling_offsets.weight"))? / (2 * LEVELS * heads),
        encoder_layers: count(PIXEL_DECODER, ".norm1.weight"),
        encoder_hidden: rows(format!("{PIXEL_DECODER}0.linear1.weight"))?,
        decoder_layers: count(&format!("{PREDICTOR}transformer_ffn_layers."), ".norm.weight"),
        decoder_hidden: rows(format!("{PREDICTOR}transformer_ffn_layers.0.linear1.weight"))?,
        text_width: None,
    };
    Some(Mask2FormerConfig { backbone, freeze_backbone: true, head })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::clip::ClipConfig;
    use crate::models::mask2former::Mask2Former;
    use crate::nn::Builder;

    #[test]
    fn sizes_are_read_from_shapes() {
        for (name, queries) in [("convnext-nano", 100), ("rn50", 7)] {
            let head = HeadConfig { queries, decoder_layers: 2, encoder_layers: 1, ..HeadConfig::default() };
            let backbone = ClipConfig::named(name).unwrap().visual;
            let wanted = Mask2FormerConfig { backbone, freeze_backbone: false, head };
            let builder = Builder::random(0);
            Mask2Former::new(&wanted, &builder).unwrap();
            let tensors = builder.finish().unwrap().tensors();
            assert!(is_published(&tensors));
            let (header, _) = open(Box::new(tensors)).unwrap();
            assert_eq!(header.model, Model::Mask2Former { mask2former: Box::new(as_file(&wanted)) });
            assert_eq!((header.classes[13].as_str(), header.short_side), ("car", 1024));
        }
    }
}
