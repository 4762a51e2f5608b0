//! The small CLIP and the small Segment Anything inside the program: they know streets that this project's renderer drew, for trying
//! things out and for tests. How they were trained: `nano/README.md`.

use super::clip_file::ClipFile;
use crate::base::Result;
use crate::io::weights;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// What `--backbone-weights` and `--refiner` call them.
pub const NAME: &str = "nano";

const BYTES: &[u8] = include_bytes!("../../../nano/clip.safetensors");
const SAM: &[u8] = include_bytes!("../../../nano/sam.safetensors");

/// The CLIP.
///
/// # Errors
/// None in a whole build.
pub fn open() -> Result<ClipFile> {
    ClipFile::unpack(BYTES, NAME)
}

/// The weights of the Segment Anything.
///
/// # Errors
/// None in a whole build.
pub fn sam() -> Result<BTreeMap<String, Tensor>> {
    Ok(weights::from_bytes(SAM, NAME)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::weights::TensorSource;
    use crate::models::clip::unit;
    use crate::models::sam::SamConfig;
    use crate::nn::linear;
    use crate::systems::clouds::clip_file::token_ids;
    use crate::systems::clouds::pretrain::config::{ClipModelConfig, ClipPretrainConfig};
    use crate::systems::clouds::pretrain_sam::config::{SamModelConfig, SamPretrainConfig};

    #[test]
    fn it_is_small_and_has_the_sizes_of_its_recipe() {
        assert!(BYTES.len() <= 6_000_000, "{}", BYTES.len());
        let file = open().unwrap();
        let recipe: toml::Table = include_str!("../../../recipes/clouds-nano-clip.toml").parse().unwrap();
        let model: ClipModelConfig = recipe["pretrain-clip"]["model"].clone().try_into().unwrap();
        let config = ClipPretrainConfig { model, ..ClipPretrainConfig::default() };
        assert_eq!(file.config, config.network(file.tokenizer.vocab_size()));
    }

    #[test]
    fn the_sam_is_small_and_has_the_sizes_of_its_recipe() {
        assert!(SAM.len() <= 2_700_000, "{}", SAM.len());
        let recipe: toml::Table = include_str!("../../../recipes/clouds-nano-sam.toml").parse().unwrap();
        let model: SamModelConfig = recipe["pretrain-sam"]["model"].clone().try_into().unwrap();
        let config = SamPretrainConfig { model, ..SamPretrainConfig::default() };
        assert_eq!(SamConfig::of_shapes(&sam().unwrap().shapes()), Some(config.network()));
    }

    #[test]
    fn texts_that_mean_the_same_are_nearer() {
        let file = open().unwrap();
        let texts = ["a photo of a street at night", "a view of a city street in the dark", "a photo of a street in snow"];
        let vectors = file.clip().unwrap().text_vectors(&token_ids(&file.tokenizer, &texts).unwrap()).unwrap();
        let vectors = unit(&vectors).unwrap();
        let products = linear(&vectors, &vectors, None).unwrap().to_vec2::<f32>().unwrap();
        assert!(products[0][1] > products[0][2], "{products:?}");
    }
}
