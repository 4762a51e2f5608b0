//! What a head that compares with class names compares with: the names of a data set's classes, as the text tower of its CLIP
//! reads them.

use super::clip_file::{ClipFile, token_ids};
use super::nano;
use crate::base::{Error, Result};
use crate::io::weights::{self, TensorSource, clip};
use crate::labels::Classes;
use crate::models::clip::{ImageHeadConfig, STREET_CLASSES, TextTowerConfig, VisualConfig, class_prompts, class_vectors};
use crate::models::mask2former::TextHead;
use crate::systems::shared::published::name_vectors;
use candle_core::Tensor;
use std::path::Path;

/// The names of a class: those of the published list that has it, or it alone.
fn synonyms(class: &str) -> Vec<String> {
    let name = class.to_lowercase().replace(['_', '-'], " ");
    let list = STREET_CLASSES.into_iter().find(|names| names.contains(&name.as_str()));
    list.map_or_else(|| vec![name], |names| names.iter().map(ToString::to_string).collect())
}

/// The names of the classes of a data set.
pub struct ClassNames {
    /// How many, and how wide their vectors are.
    pub names: TextHead,
    /// How the CLIP makes vectors of images, where they are compared with these.
    pub image_head: Option<ImageHeadConfig>,
    /// The vectors (S, D); `None` where the segmenter that a training starts from has them.
    pub vectors: Option<Tensor>,
}

/// The names of `classes` by the text tower of the CLIP `file`, the one inside the program or a file, whose image tower is `visual`;
/// with `image_head` what that CLIP makes vectors of images with.
///
/// # Errors
/// A file without a text tower, or without an image head where one is wanted; one of the usual vocabulary and a class with a word that
/// no published class name has: the vocabulary itself is not in such files.
pub fn of(file: &str, visual: &VisualConfig, classes: &Classes, image_head: bool) -> Result<ClassNames> {
    let (names, vectors) = vectors(file, visual, classes)?;
    let image_head = if image_head { Some(head_of(file)?) } else { None };
    Ok(ClassNames { names, image_head, vectors: Some(vectors) })
}

fn head_of(file: &str) -> Result<ImageHeadConfig> {
    let source = if file == nano::NAME { Box::new(nano::open()?.tensors) } else { weights::open(Path::new(file))? };
    ImageHeadConfig::of(&clip::head_shapes(&clip::visual_with_head(source)?)).ok_or_else(|| {
        let expected = "what makes vectors of images (`visual.head.…` or `visual.attnpool.…`), which `model.ensemble` asks";
        Error::data(file, expected, "an image tower without", "give the whole file of open_clip, or set model.ensemble to false")
    })
}

fn vectors(file: &str, visual: &VisualConfig, classes: &Classes) -> Result<(TextHead, Tensor)> {
    let names: Vec<Vec<String>> = classes.names.iter().map(|class| synonyms(class)).collect();
    let counts = names.iter().map(Vec::len).collect();
    let all: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
    let vectors = if file == nano::NAME { of_small(&nano::open()?, &all)? } else { of_file(Path::new(file), visual, &all)? };
    Ok((TextHead { width: vectors.dim(1)?, synonyms: counts }, vectors))
}

fn of_file(path: &Path, visual: &VisualConfig, names: &[&str]) -> Result<Tensor> {
    let tower = clip::text(weights::open(path)?)?;
    let vocabulary = tower.shapes().get("token_embedding.weight").and_then(|shape| shape.first().copied());
    if vocabulary != Some(TextTowerConfig::default().vocabulary) {
        // A CLIP of `clouds pretrain`: packed, or in a folder with its tokenizer.
        let folder = path.parent().filter(|folder| folder.join("tokenizer.json").is_file());
        return of_small(&ClipFile::open(folder.unwrap_or(path))?, names);
    }
    let vectors = name_vectors(tower, visual, names).map_err(|error| match error {
        Error::Usage(what) => Error::Usage(format!(
            "{what}\n  next: name the classes as Cityscapes does, or leave model.class_head at linear and model.ensemble at false, which \
             need no names"
        )),
        other => other,
    })?;
    vectors.ok_or_else(|| {
        let next = "give the whole file of open_clip, e.g. open_clip_pytorch_model.bin";
        Error::data(path, "a text tower beside the image tower", "one without some of its parts", next)
    })
}

fn of_small(clip: &ClipFile, names: &[&str]) -> Result<Tensor> {
    let network = clip.clip()?;
    let ids = |prompt: &str| {
        let mut ids: Vec<u32> = token_ids(&clip.tokenizer, &[prompt])?.flatten_all()?.to_vec1()?;
        ids.resize(clip.config.text.context, 0);
        Ok(ids)
    };
    class_vectors(network.text_tower(), &class_prompts(names), ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::clip::ConvNextConfig;

    #[test]
    fn classes_have_the_published_names_or_their_own() {
        assert_eq!(synonyms("bicycle"), ["bicycle", "bicycles", "bike", "bikes"]);
        assert_eq!(synonyms("Traffic_Light"), ["traffic light", "traffic lights"]);
        assert_eq!(synonyms("Pavement"), ["sidewalk", "pavement"]);
        assert_eq!(synonyms("Lane-Marking"), ["lane marking"]);
    }

    #[test]
    fn the_small_clip_names_any_class() {
        let visual = VisualConfig::ConvNext(ConvNextConfig { depths: [1; 4], widths: [8; 4], drop_path: 0.0 });
        let classes = Classes::new(["car", "zebra crossing"].map(String::from).to_vec());
        let (head, vectors) = super::vectors("nano", &visual, &classes).unwrap();
        assert_eq!((head.synonyms, vectors.dims()), (vec![2, 1], &[3, head.width][..]));
        let rows = vectors.to_vec2::<f32>().unwrap();
        let product = |a: usize, b: usize| rows[a].iter().zip(&rows[b]).map(|(a, b)| a * b).sum::<f32>();
        assert!((product(0, 0) - 1.0).abs() < 1e-5 && product(0, 1) > product(0, 2), "{} {}", product(0, 1), product(0, 2));
    }
}
