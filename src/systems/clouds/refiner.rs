//! Which proposer of masks refines pseudo-labels: regions, the small Segment Anything inside the program, or published weights.

use super::nano;
use super::refine::MaskProposer;
use super::regions::Regions;
use super::sam_masks::SamMasks;
use crate::base::{Error, Result, suggest};
use crate::io::weights::{self, TensorSource};
use crate::models::sam::{self, Sam, SamConfig};
use crate::nn::Builder;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Refines nothing.
pub const NONE: &str = "none";
/// [`Regions`], which needs no weights.
pub const REGIONS: &str = "regions";

/// A proposer and how it works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefinerConfig {
    /// `none`, `regions`, `nano` (the small SAM inside the program), or a file with weights of SAM or MobileSAM.
    pub refiner: String,
    /// MobileSAM's batch norms use the statistics of the picture, as CLOUDS' published code does, not the stored ones.
    pub batch_statistics: bool,
    /// How `regions` are found.
    pub regions: Regions,
}

impl Default for RefinerConfig {
    fn default() -> Self {
        Self { refiner: REGIONS.into(), batch_statistics: false, regions: Regions::default() }
    }
}

/// The proposer that `choice` names, with default settings: `none`, `regions`, `nano`, or a file with weights of SAM or MobileSAM.
///
/// # Errors
/// As [`RefinerConfig::open`].
pub fn open(choice: &str) -> Result<Option<Box<dyn MaskProposer>>> {
    RefinerConfig { refiner: choice.into(), ..RefinerConfig::default() }.open()
}

impl RefinerConfig {
    /// The proposer, on the device in use. Which SAM a file holds is told by the names and shapes of its tensors.
    ///
    /// # Errors
    /// Settings that nothing can be done with; a missing file, or one that holds no SAM, or not all of it.
    pub fn open(&self) -> Result<Option<Box<dyn MaskProposer>>> {
        match self.refiner.as_str() {
            NONE => Ok(None),
            REGIONS => {
                self.regions.validate()?;
                Ok(Some(Box::new(self.regions)))
            }
            nano::NAME => Ok(Some(Box::new(self.sam(Path::new(nano::NAME), Box::new(nano::sam()?))?))),
            file => Ok(Some(Box::new(self.sam(Path::new(file), self.opened(Path::new(file))?)?))),
        }
    }

    fn opened(&self, path: &Path) -> Result<Box<dyn TensorSource>> {
        if !path.exists() {
            let hint = suggest::hint(&self.refiner, &[NONE, REGIONS, nano::NAME]);
            let next = format!("check the path; without weights: {REGIONS}, {} ({hint})", nano::NAME);
            return Err(Error::data(
                path,
                "none, regions, nano, or a file with weights of SAM or MobileSAM",
                "no such file",
                next,
            ));
        }
        weights::open(path)
    }

    fn sam(&self, path: &Path, source: Box<dyn TensorSource>) -> Result<SamMasks> {
        let shapes = source.shapes();
        let Some(config) = SamConfig::of_shapes(&shapes) else {
            return Err(Error::data(
                path,
                "weights of Segment Anything or MobileSAM (`image_encoder.…`, `prompt_encoder.…`, `mask_decoder.…`)",
                weights::sample(shapes.keys()),
                "give a published file such as sam_vit_b_01ec64.pth or mobile_sam.pt, or `regions`, which needs no weights",
            ));
        };
        let builder = Builder::from_source(source, 0).frozen();
        let sam = Sam::new(&config, &builder)?;
        builder.finish_partial(&[], &sam::UNUSED)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(SamMasks { sam, name: format!("{} ({file})", config.name()), batch_statistics: self.batch_statistics })
    }
}
