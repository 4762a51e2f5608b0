//! DATUM: personalise a diffusion model on one target photo, generate a pseudo-target set, adapt a segmenter to it.
//!
//! The stages in the order they run: [`pretrain`] (where no published model is at hand) → [`personalize`] →
//! [`generate`] → [`adapt`] → [`evaluate`].

pub mod adapt;
pub mod base;
pub mod config;
pub mod evaluate;
pub mod forecast;
pub mod generate;
pub mod personalize;
pub mod pretrain;
pub mod report;
mod start;
