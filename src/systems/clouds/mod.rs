//! CLOUDS: street scenes nobody photographed, from a language model and a diffusion model, against the unknown.
//!
//! [`prompts`] writes the prompt list; the images come from the generator that `datum` uses too; [`refine`] cleans what a teacher
//! sees on them; [`train`] trains the segmenter on both, on the image tower of a CLIP, of which [`pretrain`] makes a small one.

pub mod answers;
pub mod clip_file;
pub mod collection;
pub mod config;
pub mod pretrain;
pub mod prompts;
pub mod published;
pub mod refine;
pub mod sam_masks;
pub mod train;
