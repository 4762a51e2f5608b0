//! The file of a trained segmenter: its weights, and in the metadata all that is needed to use it.

use super::config::{AdaptConfig, Size};
use crate::base::{Error, Result, device};
use crate::data::Dataset;
use crate::eval::{Evaluator, Inference};
use crate::io::weights::{self, TensorSource};
use crate::models::segmenter::{EncoderDecoder, SegmenterConfig};
use crate::nn::{Builder, ParamStore};
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
    pub model: SegmenterConfig,
    /// Class names in train-id order.
    pub classes: Vec<String>,
    /// Colours of the classes.
    pub palette: Vec<[u8; 3]>,
    /// Size of photos in evaluation; 0×0: as they are.
    pub test_size: Size,
}

/// The header of the segmenter that `config` trains on `source`.
pub fn header(config: &AdaptConfig, source: &Dataset) -> Header {
    Header {
        format_version: 1,
        model: SegmenterConfig {
            encoder: config.encoder.clone(),
            decoder: config.decoder.clone(),
            num_classes: source.classes.len(),
            decoder_channels: Some(config.decoder_channels),
            ..SegmenterConfig::default()
        },
        classes: source.classes.names.clone(),
        palette: source.classes.palette.clone(),
        test_size: config.test_size,
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

/// Header and weights of a segmenter file, or of the one in a run folder.
///
/// # Errors
/// Files of other kinds or versions.
pub fn read(path: &Path) -> Result<(Header, weights::SafetensorsFile)> {
    let file = locate(path);
    if path.is_dir() && !file.is_file() {
        let next = "finish the run with `datum adapt … --resume latest`, or name another checkpoint";
        return Err(Error::data(path, format!("a finished run with {FILE}"), "no such file", next));
    }
    let source = weights::SafetensorsFile::open(&file)?;
    let text = source.metadata().remove(KEY).ok_or_else(|| {
        Error::data(&file, "a segmenter written by `datum adapt`", "weights of another kind", "name a run folder of `adapt`")
    })?;
    let header: Header = serde_json::from_str(&text)
        .map_err(|e| Error::data(&file, "a readable segmenter header", e.to_string(), "train or download the file again"))?;
    if header.format_version != 1 {
        let found = format!("version {}", header.format_version);
        return Err(Error::data(&file, "a segmenter file of version 1", found, "use the program version that wrote it"));
    }
    Ok((header, source))
}

/// How photos are presented to the segmenter that `header` describes.
pub fn evaluator(header: &Header, inference: Inference) -> Evaluator {
    Evaluator {
        resize: super::adapt::frame(header.test_size),
        inference,
        normalize: super::adapt::normalize(header.model.normalization()),
        device: device::current(),
    }
}

/// A segmenter ready to predict.
pub struct Segmenter {
    /// What it is.
    pub header: Header,
    /// The network, without gradients.
    pub network: EncoderDecoder,
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
        let (header, source) = read(path)?;
        let builder = Builder::from_source(Box::new(source) as Box<dyn TensorSource>, 0).frozen();
        let network = EncoderDecoder::new(&header.model, &builder)?;
        builder.finish()?;
        Ok(Self { header, network })
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
