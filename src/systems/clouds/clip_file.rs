//! A whole CLIP with its tokenizer, as a folder or as one file in 16 bit.
//!
//! ```text
//! FOLDER/
//!   open_clip_model.safetensors   weights under open_clip's names, also for `clouds train --backbone-weights`
//!   config.json                   sizes of both towers
//!   tokenizer.json, …             the tokenizer, as Python's libraries read it
//! ```
//!
//! In a packed file the weights keep their names; the JSON files are metadata under theirs.

use crate::base::{Error, Result, device};
use crate::io::atomic;
use crate::io::tokenizer::Tokenizer;
use crate::io::weights::{self, TensorSource};
use crate::models::clip::{Clip, ClipConfig};
use crate::nn::Builder;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The weights in a folder.
pub const WEIGHTS: &str = "open_clip_model.safetensors";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_SETTINGS: &str = "tokenizer_config.json";

/// A trained CLIP.
#[derive(Debug, Clone)]
pub struct ClipFile {
    /// Sizes of both towers.
    pub config: ClipConfig,
    /// Text → token ids.
    pub tokenizer: Tokenizer,
    /// Weights in f32 under open_clip's names.
    pub tensors: BTreeMap<String, Tensor>,
}

impl ClipFile {
    /// Opens a folder or a packed file.
    ///
    /// # Errors
    /// Anything else.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
            return Self::unpack(&bytes, &path.display().to_string());
        }
        let file = path.join(CONFIG);
        let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
        let source = weights::open(&path.join(WEIGHTS))?;
        let load = |name: String| Ok((name.clone(), source.load(&name, &Device::Cpu)?));
        let tensors = source.shapes().into_keys().map(load).collect::<Result<_>>()?;
        Ok(Self { config: parse(&file, &text)?, tokenizer: Tokenizer::open(path)?, tensors })
    }

    /// The packed CLIP in `bytes`, called `name` in messages.
    ///
    /// # Errors
    /// Anything else.
    pub fn unpack(bytes: &[u8], name: &str) -> Result<Self> {
        let (tensors, metadata) = weights::from_bytes(bytes, name)?;
        let text = |key: &str| {
            metadata.get(key).map(String::as_str).ok_or_else(|| {
                let next = "give a folder of `clouds pretrain`, or a file packed from one";
                Error::data(name, format!("a packed CLIP with {key}"), "none of that name", next)
            })
        };
        let tokenizer = Tokenizer::from_json(text(TOKENIZER)?, text(TOKENIZER_SETTINGS)?, Path::new(name))?;
        Ok(Self { config: parse(Path::new(name), text(CONFIG)?)?, tokenizer, tensors })
    }

    /// Writes a folder; each file is whole or not there, the weights last.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.tokenizer.save(folder)?;
        atomic::write(&folder.join(CONFIG), self.config_text()?.as_bytes())?;
        weights::save(&folder.join(WEIGHTS), &self.tensors, &BTreeMap::from([("format".into(), "pt".into())]))
    }

    /// Writes one file with weights in 16 bit.
    ///
    /// # Errors
    /// Values beyond the range of 16 bit.
    pub fn pack(&self, path: &Path) -> Result<()> {
        let (tokenizer, settings) = self.tokenizer.to_json();
        let texts = [(CONFIG, self.config_text()?), (TOKENIZER, tokenizer), (TOKENIZER_SETTINGS, settings)];
        weights::save(path, &weights::halved(&self.tensors, path)?, &texts.map(|(key, text)| (key.to_string(), text)).into())
    }

    /// The network with these weights, which records no graph.
    ///
    /// # Errors
    /// Tensors that are not those of the sizes.
    pub fn clip(&self) -> Result<Clip> {
        let builder = Builder::from_source(self.tensors.clone(), 0).frozen();
        let clip = Clip::new(&self.config, &builder)?;
        builder.finish()?;
        Ok(clip)
    }

    fn config_text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(&self.config);
        text.map(|text| text + "\n").map_err(|e| Error::environment(format!("a configuration: {e}"), "report this as a defect"))
    }
}

fn parse(path: &Path, text: &str) -> Result<ClipConfig> {
    let next = "give a folder of `clouds pretrain`, or a file packed from one";
    serde_json::from_str(text).map_err(|e| Error::data(path, "the sizes of a CLIP", e.to_string(), next))
}

/// Token ids as the text tower reads them, as long as the longest text; 0 behind the end token, as in open_clip.
///
/// # Shapes
/// B texts → (B, T) u32, T at most the tokenizer's length
///
/// # Errors
/// Those of [`Tokenizer::encode`].
pub fn token_ids<S: AsRef<str>>(tokenizer: &Tokenizer, texts: &[S]) -> Result<Tensor> {
    let (_, end, _) = tokenizer.special_ids();
    let encode = |text: &S| -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode(text.as_ref())?;
        let length = ids.iter().position(|id| *id == end).map_or(ids.len(), |last| last + 1);
        ids.truncate(length);
        Ok(ids)
    };
    let mut rows = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let length = rows.iter().map(Vec::len).max().unwrap_or(0);
    rows.iter_mut().for_each(|row| row.resize(length, 0));
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), length), &device::current())?)
}
