//! The file of a trained segmenter: its weights, and in the metadata all that is needed to use it.

use super::size::{Size, frame};
use super::{mmseg_checkpoint, published};
use crate::base::{Error, Result, device};
use crate::data::Dataset;
use crate::data::transforms::Normalize;
use crate::eval::{Evaluator, Inference, Resize};
use crate::io::weights::{self, TensorSource};
use crate::labels::Classes;
use crate::models::clip;
use crate::models::mask2former::{Mask2Former, Mask2FormerConfig, TextClasses};
use crate::models::segmenter::{EncoderDecoder, Normalization, Segmenter as _, SegmenterConfig};
use crate::nn::{Builder, ParamStore, Pass};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the file in run folders.
pub const FILE: &str = "segmenter.safetensors";
const KEY: &str = "datum.segmenter";

/// What the metadata says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of this layout.
    pub format_version: u32,
    /// The network.
    pub model: Model,
    /// Class names in train-id order.
    pub classes: Vec<String>,
    /// Colours of the classes.
    pub palette: Vec<[u8; 3]>,
    /// Photos fit this size in evaluation; 0×0: as they are.
    pub test_size: Size,
    /// The short side of photos in evaluation; 0: `test_size` says.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub short_side: usize,
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// The kinds of networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Model {
    /// Of `clouds train`.
    Mask2Former {
        /// Its sizes.
        mask2former: Box<Mask2FormerConfig>,
    },
    /// Of `datum adapt`.
    EncoderDecoder(SegmenterConfig),
}

impl Model {
    /// How the network wants its input.
    pub fn normalization(&self) -> Normalization {
        match self {
            Self::Mask2Former { .. } => clip::NORMALIZATION,
            Self::EncoderDecoder(config) => config.normalization(),
        }
    }

    /// Gives CLIP that share in the class of a mask; `None` where there is none to ask.
    fn ask_clip(&mut self, alpha: f64) -> Option<()> {
        let Self::Mask2Former { mask2former } = self else { return None };
        mask2former.ensemble.as_mut()?.alpha = alpha;
        Some(())
    }

    fn build(&self, builder: &Builder) -> Result<Network> {
        Ok(match self {
            Self::Mask2Former { mask2former } => {
                let classes = mask2former.head.text.as_ref().map(|text| TextClasses::build(text, builder)).transpose()?;
                Network::Mask2Former(Box::new(Mask2Former::new(mask2former, builder)?), classes)
            }
            Self::EncoderDecoder(config) => Network::EncoderDecoder(EncoderDecoder::new(config, builder)?),
        })
    }
}

enum Network {
    /// With the vectors of class names that its head compares with, if it does.
    Mask2Former(Box<Mask2Former>, Option<TextClasses>),
    EncoderDecoder(EncoderDecoder),
}

/// The normalisation of an encoder for the image pipeline.
pub fn normalize(normalization: Normalization) -> Normalize {
    Normalize { mean: normalization.mean.map(f64::from), std: normalization.std.map(f64::from) }
}

impl Header {
    /// Of a segmenter that sees photos as they are.
    pub fn new(model: Model, classes: &Classes) -> Self {
        let (classes, palette) = (classes.names.clone(), classes.palette.clone());
        Self { format_version: 1, model, classes, palette, test_size: Size { height: 0, width: 0 }, short_side: 0 }
    }
}

/// The segmenter file that `path` names: itself, or the one in a run folder.
pub fn locate(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(FILE) } else { path.into() }
}

/// The folders of a run with several seeds, `seed-N`, by seed; none for other runs and files.
pub fn seeds(run: &Path) -> Vec<(u64, PathBuf)> {
    let folder = |entry: std::fs::DirEntry| {
        let seed = entry.file_name().to_str()?.strip_prefix("seed-")?.parse().ok()?;
        entry.path().join("recipe.toml").is_file().then(|| (seed, entry.path()))
    };
    let mut seeds: Vec<_> = std::fs::read_dir(run).into_iter().flatten().flatten().filter_map(folder).collect();
    seeds.sort();
    seeds
}

/// Header and weights of a segmenter file, of the one in a run folder, or of a published checkpoint of DAFormer, DATUM or CLOUDS.
///
/// # Errors
/// Files of other kinds or versions.
pub fn read(path: &Path) -> Result<(Header, Box<dyn TensorSource>)> {
    read_with(path, None)
}

/// [`read`], for a segmenter in which CLIP itself has the share `ensemble` in the class of a mask; `None`: as the file says.
fn read_with(path: &Path, ensemble: Option<f64>) -> Result<(Header, Box<dyn TensorSource>)> {
    let file = locate(path);
    if path.is_dir() && !file.is_file() {
        let next = "finish the run: the same command with `--resume latest`; or name another checkpoint";
        return Err(Error::data(path, format!("a finished run with {FILE}"), "no such file", next));
    }
    let without_clip = || {
        let expected = "a segmenter with the CLIP that `--ensemble` asks";
        let next = "train it with `clouds train --set model.ensemble=true`, or leave `--ensemble` out";
        Error::data(&file, expected, "one without", next)
    };
    let source = weights::open(&file)?;
    let Some(text) = metadata(&file).remove(KEY) else {
        if published::is_published(&*source) {
            return published::open(source, ensemble);
        }
        if mmseg_checkpoint::is_one(&*source) {
            return if ensemble.is_none() { mmseg_checkpoint::open(source) } else { Err(without_clip()) };
        }
        let expected =
            "a segmenter written by `datum adapt` or `clouds train`, or a published checkpoint of DAFormer, DATUM or CLOUDS";
        return Err(Error::data(&file, expected, "weights of another kind", "name a run folder of `adapt` or `train`"));
    };
    let mut header: Header = serde_json::from_str(&text)
        .map_err(|e| Error::data(&file, "a readable segmenter header", e.to_string(), "train or download the file again"))?;
    if header.format_version != 1 {
        let found = format!("version {}", header.format_version);
        return Err(Error::data(&file, "a segmenter file of version 1", found, "use the program version that wrote it"));
    }
    if let Some(alpha) = ensemble {
        header.model.ask_clip(alpha).ok_or_else(without_clip)?;
    }
    Ok((header, source))
}

/// Texts in the head of a safetensors file; other files have none.
fn metadata(file: &Path) -> BTreeMap<String, String> {
    weights::SafetensorsFile::open(file).map(|file| file.metadata()).unwrap_or_default()
}

/// How photos are presented to the segmenter that `header` describes.
pub fn evaluator(header: &Header, inference: Inference) -> Evaluator {
    let resize = match header.short_side {
        0 => frame(header.test_size).map(Resize::Frame),
        side => Some(Resize::ShortSide(side)),
    };
    Evaluator { resize, inference, normalize: normalize(header.model.normalization()), device: device::current() }
}

/// A segmenter ready to predict.
pub struct Segmenter {
    /// What it is.
    pub header: Header,
    /// Without gradients.
    network: Network,
}

impl Segmenter {
    /// Writes the file.
    pub fn save(path: &Path, header: &Header, parameters: &ParamStore) -> Result<()> {
        let text = serde_json::to_string(header).map_err(|e| Error::Usage(e.to_string()))?;
        let metadata = BTreeMap::from([(KEY.to_string(), text), ("format".to_string(), "pt".to_string())]);
        weights::save(path, &parameters.tensors(), &metadata)
    }

    /// Opens a segmenter file, or the one in a run folder.
    ///
    /// # Errors
    /// Files of other kinds or versions, weights that do not fit the header.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, None)
    }

    /// [`Self::open`]; CLIP itself has the share `ensemble` in the class of a mask ([`Ensemble`](crate::models::mask2former::Ensemble)),
    /// with `None` that which the file says.
    ///
    /// # Errors
    /// As [`Self::open`]; with a share, files without what CLIP needs to be asked.
    pub fn open_with(path: &Path, ensemble: Option<f64>) -> Result<Self> {
        let (header, source) = read_with(path, ensemble)?;
        let builder = Builder::from_source(source, 0).frozen();
        let network = header.model.build(&builder)?;
        builder.finish()?;
        Ok(Self { header, network })
    }

    /// The segmenter whose tensors are `parameters`; it sees the current values.
    ///
    /// # Errors
    /// Tensors that do not fit the header.
    pub fn view(header: &Header, parameters: &ParamStore) -> Result<Self> {
        let builder = Builder::from_store(parameters).frozen();
        Ok(Self { header: header.clone(), network: header.model.build(&builder)? })
    }

    /// Scores of the classes; the largest names a pixel's class.
    ///
    /// # Shapes
    /// `images` (B, 3, H, W), normalised → (B, K, h, w), to be resized to (H, W)
    pub fn scores(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        match &self.network {
            Network::Mask2Former(network, classes) => network.scores(images, classes.as_ref()),
            Network::EncoderDecoder(network) => network.forward(images, &Pass::eval()),
        }
    }

    /// How photos are presented to it.
    pub fn evaluator(&self, inference: Inference) -> Evaluator {
        evaluator(&self.header, inference)
    }

    /// Checks that a data set has the classes this segmenter predicts.
    pub fn fits(&self, dataset: &Dataset, path: &Path) -> Result<()> {
        if dataset.classes.len() == self.header.classes.len() {
            return Ok(());
        }
        Err(Error::data(
            path,
            format!("a segmenter of the {} classes of `{}`", dataset.classes.len(), dataset.name),
            format!("one of {} classes ({})", self.header.classes.len(), self.header.classes.join(", ")),
            "evaluate on a data set with the classes it was trained on",
        ))
    }
}
