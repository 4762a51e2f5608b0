//! The small Stable Diffusion inside the program: street scenes drawn by this project's renderer, for trying things out and for
//! tests. How it was trained: `nano/README.md`.

use super::folder::PipelineFolder;
use super::packed;
use crate::base::Result;

/// What `--base` and `--model` call it.
pub const NAME: &str = "nano";

const BYTES: &[u8] = include_bytes!("../../nano/stable-diffusion.safetensors");

/// The model.
///
/// # Errors
/// None in a whole build.
pub fn open() -> Result<PipelineFolder> {
    packed::unpack(BYTES, NAME)
}
