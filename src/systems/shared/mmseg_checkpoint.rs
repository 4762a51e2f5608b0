//! Checkpoints of DAFormer's code and those built on it (DATUM) as segmenters: what their tensors say about the network.

use super::segmenter_file::{Header, Model};
use super::size::Size;
use crate::base::{Error, Result};
use crate::data::classes_of;
use crate::io::weights::TensorSource;
use crate::io::weights::mmseg::{self, Network};
use crate::models::mit::MitSize;
use crate::models::segmenter::{ENCODERS, SegmenterConfig};
use std::collections::BTreeMap;

/// The classes of all published checkpoints.
const CLASSES: &str = "cityscapes";
/// Size of photos in the published evaluation on Cityscapes.
const TEST_SIZE: Size = Size { height: 512, width: 1024 };
/// Every head of mmseg has it.
const CLASSIFIER: &str = "decode_head.conv_seg.weight";

/// True for files with a head of mmseg.
pub fn is_one(source: &dyn TensorSource) -> bool {
    source.shapes().keys().any(|name| name.ends_with(CLASSIFIER))
}

/// Header and weights of the student in a checkpoint.
///
/// # Errors
/// Networks that are not here, other numbers of classes than 19.
pub fn open(source: Box<dyn TensorSource>) -> Result<(Header, Box<dyn TensorSource>)> {
    let (origin, classes) = (source.origin(), classes_of(CLASSES)?);
    let network = mmseg::network(source, Network::Student)?;
    let shapes = network.shapes();
    let config = config(&shapes).filter(|config| config.num_classes == classes.len());
    let Some(config) = config else {
        let expected =
            format!("a MiT encoder with a head of DAFormer's code (daformer, segformer) for {} classes", classes.len());
        let next = "give a checkpoint of DAFormer or DATUM; HRDA, MIC and ResNets are not here yet";
        return Err(Error::data(origin, expected, found(&shapes), next));
    };
    let header = Header { test_size: TEST_SIZE, ..Header::new(Model::EncoderDecoder(config), &classes) };
    Ok((header, Box::new(network)))
}

/// The network that has these tensors.
fn config(shapes: &BTreeMap<String, Vec<usize>>) -> Option<SegmenterConfig> {
    let rows = |name: &str| shapes.get(name).and_then(|shape| shape.first().copied());
    let stage = |stage: usize| {
        let start = format!("backbone.block{stage}.");
        let depth = (0..).take_while(|block| shapes.contains_key(&format!("{start}{block}.norm1.weight"))).count();
        rows(&format!("backbone.patch_embed{stage}.proj.weight")).map(|width| (width, depth))
    };
    let stages = [stage(1)?, stage(2)?, stage(3)?, stage(4)?];
    let size = MitSize { widths: stages.map(|stage| stage.0), depths: stages.map(|stage| stage.1) };
    let encoder = ENCODERS.iter().find(|name| MitSize::named(name).as_ref() == Some(&size))?;
    let daformer = rows("decode_head.fuse_layer.bottleneck.conv.weight").map(|width| ("daformer", width));
    // SegFormer's own code has other names, and stacks levels the other way round.
    let segformer = rows("decode_head.linear_c.0.proj.weight").map(|width| ("segformer", width));
    let (decoder, width) = daformer.or(segformer)?;
    Some(SegmenterConfig {
        encoder: encoder.to_string(),
        decoder: decoder.into(),
        num_classes: rows(CLASSIFIER)?,
        decoder_channels: Some(width),
        ..SegmenterConfig::default()
    })
}

/// What a file that is not for us seems to be.
fn found(shapes: &BTreeMap<String, Vec<usize>>) -> String {
    let has = |start: &str| shapes.keys().any(|name| name.starts_with(start));
    let classes = shapes.get(CLASSIFIER).and_then(|shape| shape.first()).copied().unwrap_or_default();
    match () {
        () if has("decode_head.scale_attention") || has("decode_head.head.") => "a head of HRDA".into(),
        () if has("backbone.layer1.") => "a ResNet".into(),
        () => format!("{classes} classes, and {}", crate::io::weights::sample(shapes.keys())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::segmenter::EncoderDecoder;
    use crate::nn::Builder;
    use candle_core::Tensor;

    /// A checkpoint of the self-training codes with random weights.
    fn checkpoint(config: &SegmenterConfig) -> BTreeMap<String, Tensor> {
        let builder = Builder::random(3);
        EncoderDecoder::new(config, &builder).unwrap();
        let tensors = builder.finish().unwrap().tensors();
        let nets = ["module.model.", "module.ema_model.", "module.imnet_model."];
        let named = |(name, tensor): (&String, &Tensor)| nets.map(|net| (format!("{net}{name}"), tensor.clone()));
        tensors.iter().flat_map(named).collect()
    }

    #[test]
    fn networks_are_read_from_shapes() {
        for (encoder, decoder, channels) in [("mit-b0", "daformer", 24), ("mit-b1", "segformer", 32), ("mit-b3", "daformer", 16)]
        {
            let wanted = SegmenterConfig {
                encoder: encoder.into(),
                decoder: decoder.into(),
                decoder_channels: Some(channels),
                ..SegmenterConfig::default()
            };
            let checkpoint = checkpoint(&wanted);
            assert!(is_one(&checkpoint));
            let (header, weights) = open(Box::new(checkpoint)).unwrap();
            assert_eq!((header.model, header.classes[13].as_str()), (Model::EncoderDecoder(wanted.clone()), "car"));
            let builder = Builder::from_source(weights, 0);
            EncoderDecoder::new(&wanted, &builder).unwrap();
            builder.finish().unwrap();
        }
    }

    #[test]
    fn what_is_not_here_is_said() {
        let zero = Tensor::zeros((19, 4, 1, 1), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let file = |names: &[&str]| -> BTreeMap<String, Tensor> {
            names.iter().chain(&["model.decode_head.conv_seg.weight"]).map(|name| (name.to_string(), zero.clone())).collect()
        };
        for (names, said) in [
            (&["model.backbone.patch_embed1.proj.weight", "model.decode_head.head.conv_seg.weight"], "a head of HRDA"),
            (&["model.backbone.layer1.0.conv1.weight", "model.backbone.stem.0.weight"], "a ResNet"),
        ] {
            let error = open(Box::new(file(names))).err().unwrap().to_string();
            assert!(error.contains(said) && error.contains("not here yet"), "{error}");
        }
        let config = SegmenterConfig { encoder: "mit-b0".into(), num_classes: 7, ..SegmenterConfig::default() };
        let error = open(Box::new(checkpoint(&config))).err().unwrap().to_string();
        assert!(error.contains("7 classes"), "{error}");
    }
}
