//! Published checkpoints of CLOUDS as segmenters: what their tensors say about the network.

use super::segmenter_file::{Header, Model};
use crate::base::{Error, Result};
use crate::data::classes_of;
use crate::io::weights::clouds::{self, Classifier};
use crate::io::weights::{TensorSource, clip};
use crate::models::clip::{
    ConvNextConfig, ImageHeadConfig, ModifiedResNetConfig, STREET_CLASSES, TextTower, TextTowerConfig, VisualConfig,
    class_prompts, class_token_ids, class_vectors,
};
use crate::models::mask2former::{CLASS_VECTORS, EnsembleConfig, HeadConfig, Mask2FormerConfig, TextHead};
use crate::models::stable_diffusion::config::TextActivation;
use crate::nn::Builder;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

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

/// Header and weights of a checkpoint; with an `ensemble`, CLIP itself has that share in the class of a mask.
///
/// # Errors
/// Other widths, other numbers of classes than 19, files that lack parts.
pub fn open(source: Box<dyn TensorSource>, ensemble: Option<f64>) -> Result<(Header, Box<dyn TensorSource>)> {
    let (origin, classes) = (source.origin(), classes_of(CLASSES)?);
    let wrong = |found: String| {
        let expected = format!("a checkpoint of CLOUDS with a head for {} classes", classes.len());
        Error::data(&origin, expected, found, "give a checkpoint of the released configurations, or a run of `clouds train`")
    };
    let text_width = match clouds::classifier(&*source)? {
        Classifier::Linear(found) if found == classes.len() => None,
        Classifier::Linear(found) => return Err(wrong(format!("{found} classes"))),
        Classifier::Text(width) => Some(width),
    };
    let source: Arc<dyn TensorSource> = source.into();
    let names = text_width.is_some() || ensemble.is_some();
    let tower = names.then(|| clip::text(Box::new(source.clone()))).transpose()?;
    let network = clouds::network(Box::new(source), ensemble.is_some())?;
    let Some(mut config) = config(&network.shapes(), classes.len()) else {
        return Err(wrong("a file without some of its parts".into()));
    };
    // The number of heads leaves no trace in shapes: only that of the published width is known.
    let HeadConfig { width, points, .. } = HeadConfig::default();
    if (config.head.width, config.head.points) != (width, points) {
        return Err(wrong(format!("one of width {}, whose number of heads its tensors do not tell", config.head.width)));
    }
    let vectors = tower.map(|tower| name_vectors(tower, &config.backbone, &STREET_CLASSES.concat())).transpose()?;
    let source: Box<dyn TensorSource> = match vectors {
        None => Box::new(network),
        Some(Some(vectors)) if text_width.is_none_or(|width| vectors.dim(1).ok() == Some(width)) => {
            let synonyms = STREET_CLASSES.map(|names| names.len()).to_vec();
            let names = TextHead { width: vectors.dim(1)?, synonyms };
            if let Some(alpha) = ensemble {
                let Some(image_head) = ImageHeadConfig::of(&clip::head_shapes(&network)) else {
                    return Err(wrong("one without what makes CLIP's vectors of images".into()));
                };
                config.ensemble = Some(ensemble_of(alpha, image_head, &config.backbone, names.clone()));
            }
            config.head.text = text_width.map(|_| names);
            Box::new(WithVectors { network, vectors })
        }
        Some(_) => return Err(wrong("a text tower that does not fit its head".into())),
    };
    let header = Header { short_side: SHORT_SIDE, ..Header::new(Model::Mask2Former { mask2former: Box::new(config) }, &classes) };
    Ok((header, source))
}

/// As the published configurations have it: masks without a pixel are left to the head where the tower is a ResNet.
fn ensemble_of(alpha: f64, image_head: ImageHeadConfig, tower: &VisualConfig, names: TextHead) -> EnsembleConfig {
    EnsembleConfig { alpha, valid_mask_only: matches!(tower, VisualConfig::ResNet(_)), image_head, names }
}

/// The vectors of class names by the text tower that belongs to an image tower; `None` for sizes that nothing can be made of.
///
/// # Shapes
/// S `names` → (S, D)
///
/// # Errors
/// Words that none of the names of [`STREET_CLASSES`] has.
pub fn name_vectors(tower: impl TensorSource + 'static, image_tower: &VisualConfig, names: &[&str]) -> Result<Option<Tensor>> {
    let shapes = tower.shapes();
    let side = |name: &str, axis: usize| shapes.get(name).and_then(|shape| shape.get(axis).copied());
    let layers = (0..).take_while(|i| shapes.contains_key(&format!("transformer.resblocks.{i}.ln_1.weight"))).count();
    let sizes = (
        side("token_embedding.weight", 0),
        side("token_embedding.weight", 1),
        side("positional_embedding", 0),
        side("text_projection", 1),
    );
    let (Some(vocabulary), Some(width), Some(context), Some(embedding)) = sizes else { return Ok(None) };
    // The original CLIP, of which there are ResNets only, has another activation than OpenCLIP.
    let activation = match image_tower {
        VisualConfig::ResNet(_) => TextActivation::QuickGelu,
        VisualConfig::ConvNext(_) => TextActivation::Gelu,
    };
    // Heads of 64 channels in all of them.
    let config = TextTowerConfig { vocabulary, context, width, heads: (width / 64).max(1), layers, embedding, activation };
    if vocabulary != TextTowerConfig::default().vocabulary {
        return Ok(None);
    }
    let builder = Builder::from_source(tower, 0).frozen();
    let tower = TextTower::new(&config, &builder)?;
    builder.finish()?;
    class_vectors(&tower, &class_prompts(names), |prompt| class_token_ids(prompt, context)).map(Some)
}

/// Weights with the vectors of class names beside them.
pub struct WithVectors<S> {
    /// The weights.
    pub network: S,
    /// (S, D)
    pub vectors: Tensor,
}

impl<S: TensorSource> TensorSource for WithVectors<S> {
    fn origin(&self) -> String {
        self.network.origin()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let mut shapes = self.network.shapes();
        shapes.insert(CLASS_VECTORS.into(), self.vectors.dims().to_vec());
        shapes
    }

    fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        match name {
            CLASS_VECTORS => Ok(self.vectors.to_device(device)?),
            name => self.network.load(name, device),
        }
    }
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
        text: None,
    };
    Some(Mask2FormerConfig { backbone, freeze_backbone: true, head, ensemble: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::clip::{ClipConfig, ImageHead, LOGIT_SCALE};
    use crate::models::mask2former::{Mask2Former, TextClasses, VOID};
    use crate::nn::{Init, Pass};
    use crate::systems::shared::segmenter_file::Segmenter;

    #[test]
    fn sizes_are_read_from_shapes() {
        for (name, queries) in [("convnext-nano", 100), ("rn50", 7)] {
            let head = HeadConfig { queries, decoder_layers: 2, encoder_layers: 1, ..HeadConfig::default() };
            let backbone = ClipConfig::named(name).unwrap().visual;
            let wanted = Mask2FormerConfig { backbone, freeze_backbone: false, head, ensemble: None };
            let builder = Builder::random(0);
            Mask2Former::new(&wanted, &builder).unwrap();
            let tensors = builder.finish().unwrap().tensors();
            assert!(is_published(&tensors));
            let (header, _) = open(Box::new(tensors), None).unwrap();
            assert_eq!(header.model, Model::Mask2Former { mask2former: Box::new(as_file(&wanted)) });
            assert_eq!((header.classes[13].as_str(), header.short_side), ("car", 1024));
        }
    }

    /// A checkpoint with its text tower, written and opened as a user's: the same scores as from its parts, also where CLIP is asked.
    #[test]
    fn a_head_that_compares_with_class_names_finds_them_in_the_checkpoint() {
        let (width, embedding) = (64, 24);
        let head = HeadConfig {
            queries: 5,
            decoder_layers: 1,
            encoder_layers: 1,
            encoder_hidden: 32,
            decoder_hidden: 32,
            text: Some(TextHead { width: embedding, synonyms: STREET_CLASSES.map(|names| names.len()).to_vec() }),
            ..HeadConfig::default()
        };
        let convnext = ConvNextConfig { depths: [1, 1, 1, 1], widths: [8, 16, 24, 32], drop_path: 0.0 };
        let config =
            Mask2FormerConfig { backbone: VisualConfig::ConvNext(convnext), freeze_backbone: true, head, ensemble: None };
        let builder = Builder::random(3);
        let network = Mask2Former::new(&config, &builder).unwrap();
        let text = TextTowerConfig { width, heads: 1, layers: 2, embedding, ..TextTowerConfig::default() };
        let clip = builder.pp("backbone").pp("clip_model");
        let tower = TextTower::new(&text, &clip).unwrap();
        let image_head = ImageHeadConfig::Mean { hidden: Some(48) };
        ImageHead::new(image_head, &config.backbone, embedding, &clip.pp("visual")).unwrap();
        clip.get(&[], LOGIT_SCALE, Init::Constant { value: 2.0 }).unwrap();
        let void = builder.pp(VOID).get(&[1, embedding], "weight", Init::Normal { std: 1.0 }).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model_final.safetensors");
        let tensors = builder.finish().unwrap().tensors();
        crate::io::weights::save(&file, &tensors, &BTreeMap::new()).unwrap();

        let images = crate::base::Rng::stream(1, "images", &[]).normal_tensor(&[1, 3, 32, 64], &Device::Cpu).unwrap();
        let prompts = class_prompts(STREET_CLASSES.concat());
        let vectors = class_vectors(&tower, &prompts, |prompt| class_token_ids(prompt, 77)).unwrap();
        let classes = TextClasses::new(vectors.clone(), STREET_CLASSES.map(|names| names.len()).to_vec(), void);
        let wanted = network.head(&network.features(&images, &Pass::eval()).unwrap(), Some(&classes)).unwrap();
        assert_eq!(wanted.last().unwrap().logits.dims(), [1, 5, 20]);
        let wanted = network.scores(&images, Some(&classes)).unwrap();
        let found = Segmenter::open(&file).unwrap().scores(&images).unwrap();
        let values = |xs: &Tensor| xs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((found.dims(), values(&found)), (wanted.dims(), values(&wanted)));

        let names = config.head.text.clone().unwrap();
        let ensemble = EnsembleConfig { alpha: 0.7, valid_mask_only: false, image_head, names };
        let asking = Mask2FormerConfig { ensemble: Some(ensemble), ..config };
        let mut parts = tensors.clone();
        parts.insert(CLASS_VECTORS.into(), vectors);
        let wanted = Mask2Former::new(&asking, &Builder::from_source(parts, 0)).unwrap().scores(&images, Some(&classes)).unwrap();
        let asked = Segmenter::open_with(&file, Some(0.7)).unwrap().scores(&images).unwrap();
        assert!(values(&asked) == values(&wanted) && values(&asked) != values(&found));

        let save = |part: &str| {
            let without = tensors.clone().into_iter().filter(|(name, _)| !name.contains(part)).collect();
            crate::io::weights::save(&file, &without, &BTreeMap::new()).unwrap();
        };
        save("token_embedding");
        let error = Segmenter::open(&file).err().unwrap();
        assert!(error.exit_code() == 3 && error.to_string().contains("text tower"), "{error}");
        save("visual.head.");
        assert!(Segmenter::open(&file).is_ok());
        let error = Segmenter::open_with(&file, Some(0.4)).err().unwrap();
        assert!(error.exit_code() == 3 && error.to_string().contains("CLIP's vectors of images"), "{error}");
    }
}
