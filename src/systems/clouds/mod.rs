//! CLOUDS: street scenes nobody photographed, from a language model and a diffusion model, against the unknown.
//!
//! [`prompts`] writes the prompt list; the images come from the generator that `datum` uses too; [`refine`] cleans what a teacher
//! sees on them; [`train`] trains the segmenter on both, on the image tower of a CLIP, of which [`pretrain`] makes a small one.

pub mod answers;
pub mod automatic_masks;
pub mod class_names;
pub mod clip_file;
pub mod collection;
pub mod config;
pub mod everything;
pub mod nano;
pub mod pretrain;
pub mod pretrain_sam;
pub mod prompts;
pub mod refine;
pub mod refine_folder;
pub mod refiner;
pub mod regions;
pub mod run_lengths;
pub mod sam_masks;
pub mod segments;
pub mod train;
