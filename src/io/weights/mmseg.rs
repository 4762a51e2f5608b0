//! Checkpoints of mmseg and of the self-training codes built on it (DAFormer, HRDA, MIC, DATUM).

use super::{Renamed, TensorSource};
use crate::base::{Error, Result};

/// Which of a self-training checkpoint's networks to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The trained network: the one that is evaluated.
    Student,
    /// Its exponential moving average.
    Teacher,
    /// The frozen ImageNet network of the feature distance.
    ImageNet,
}

impl Network {
    fn prefix(self) -> &'static str {
        match self {
            Self::Student => "model.",
            Self::Teacher => "ema_model.",
            Self::ImageNet => "imnet_model.",
        }
    }
}

/// One network of a checkpoint under the names `backbone.…` and `decode_head.…`.
///
/// A leading `state_dict.` or `module.` is cut off; plain supervised files (no `model.`) hold only a student. Counters
/// `num_batches_tracked` are dropped, all else that is not expected stays visible to the strict check.
///
/// # Errors
/// A file without that network.
pub fn network(source: Box<dyn TensorSource>, network: Network) -> Result<Renamed<Box<dyn TensorSource>>> {
    let names: Vec<String> = source.shapes().into_keys().collect();
    let self_training = names.iter().any(|name| bare(name).starts_with("model."));
    let prefix = if self_training || network != Network::Student { network.prefix() } else { "" };
    let rename = move |name: &str| {
        let ours = bare(name).strip_prefix(prefix)?;
        (!ours.ends_with("num_batches_tracked")).then(|| ours.to_string())
    };
    let ours: Vec<String> = names.iter().filter_map(|name| rename(name)).collect();
    if !ours.iter().any(|name| name.starts_with("backbone.")) {
        return Err(Error::data(
            source.origin(),
            format!("a segmenter checkpoint with names such as `{prefix}backbone.…`"),
            super::sample(&names),
            "check that the file is a segmentation checkpoint; encoder-only files are given as the encoder's weights",
        ));
    }
    Ok(Renamed::new(source, rename))
}

fn bare(name: &str) -> &str {
    let name = name.strip_prefix("state_dict.").unwrap_or(name);
    name.strip_prefix("module.").unwrap_or(name)
}
