//! Class names as CLIP reads them: synonyms put into sentences, sentences averaged to one vector per synonym.

use super::{TextTower, unit};
use crate::base::{Error, Result, device};
use candle_core::Tensor;

/// Sentences around a class name, `{}`.
///
/// # Source
/// FC-CLIP's templates, as CLOUDS uses them.
pub const TEMPLATES: [&str; 14] = [
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
];

/// Synonyms of the 19 classes of Cityscapes, in the order of train ids.
///
/// # Source
/// CLOUDS' class list.
pub const STREET_CLASSES: [&[&str]; 19] = [
    &["road", "railroad"],
    &["sidewalk", "pavement"],
    &["building", "buildings", "edifice", "edifices", "house", "ceiling"],
    &["wall", "walls", "brick wall", "stone wall", "tile wall", "wood wall"],
    &["fence", "fences"],
    &["pole", "poles"],
    &["traffic light", "traffic lights"],
    &["traffic sign", "stop sign"],
    &["vegetation", "tree", "trees", "palm tree", "bushes"],
    &["terrain", "river", "sand", "sea", "snow", "water", "mountain", "grass", "dirt", "rock"],
    &["sky", "clouds"],
    &["person"],
    &["rider"],
    &["car", "cars"],
    &["truck", "trucks"],
    &["bus", "buses"],
    &["train", "trains", "locomotive", "locomotives", "freight train"],
    &["motorcycle", "motorcycles"],
    &["bicycle", "bicycles", "bike", "bikes"],
];

/// Prompts encoded at once.
const BATCH: usize = 128;

/// All templates of the first synonym, then of the second, and so on: S synonyms → 14·S prompts.
pub fn class_prompts(synonyms: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    let sentences = |name: &str| TEMPLATES.map(|template| template.replacen("{}", name, 1));
    synonyms.into_iter().flat_map(|name| sentences(name.as_ref())).collect()
}

/// The vector of each synonym: the mean of its templates' vectors, each of length 1, again brought to length 1.
///
/// `ids` turns a prompt into its token ids, all of one length.
///
/// # Shapes
/// `prompts` 14·S (see [`class_prompts`]) → (S, D), without gradient
///
/// # Errors
/// Prompts that are not whole sets of templates, and those of `ids`.
pub fn class_vectors(tower: &TextTower, prompts: &[String], ids: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Tensor> {
    if prompts.is_empty() || !prompts.len().is_multiple_of(TEMPLATES.len()) {
        return Err(Error::Usage(format!("{} prompts are not whole sets of {} templates", prompts.len(), TEMPLATES.len())));
    }
    let mut vectors = Vec::with_capacity(prompts.len().div_ceil(BATCH));
    for prompts in prompts.chunks(BATCH) {
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| ids(prompt)).collect::<Result<_>>()?;
        let ids = Tensor::new(ids, &device::current())?;
        vectors.push(unit(&tower.forward(&ids)?.detach())?);
    }
    let vectors = Tensor::cat(&vectors, 0)?;
    let per_name = vectors.reshape((prompts.len() / TEMPLATES.len(), TEMPLATES.len(), vectors.dim(1)?))?;
    Ok(unit(&per_name.mean(1)?)?)
}
