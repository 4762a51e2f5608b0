//! What systems share: the file of a trained segmenter, photos with captions, scores during training.

pub mod mmseg_checkpoint;
pub mod photos;
pub mod published;
pub mod segmenter_file;
pub mod size;
pub mod validation;

pub use size::Size;
