//! Adapts semantic segmenters to places nobody labelled.
//!
//! | paper | what it gives | module | command |
//! |---|---|---|---|
//! | DATUM (CVPR-W 2023) | one photo → personalised diffusion → pseudo-target set | [`systems::datum`] | `datum personalize`, `generate`, `adapt` |
//! | DreamBooth (CVPR 2023) | the personalisation | [`diffusion`] | `datum personalize` |
//! | DAFormer (CVPR 2022) | self-training on the pseudo-target set | [`uda`] | `datum adapt --strategy daformer` |
//! | CLOUDS (CVPR 2024) | prompts and images of unseen places; pseudo-labels refined with Segment Anything | [`systems::clouds`] | `clouds prompts`, `clouds generate`, `clouds train` |
//! | FDA (CVPR 2020) | the cheapest competitor: amplitude swap | [`data::fourier`] | `datum adapt --set fourier=0.01` |
//!
//! Folders depend on each other in one direction only:
//! `cli → systems → {diffusion prompting uda} → {train eval report} → {models data} → labels → nn → io → base`.

pub mod base;
pub mod cli;
pub mod data;
pub mod diffusion;
pub mod eval;
pub mod io;
pub mod labels;
pub mod models;
pub mod nn;
pub mod prompting;
pub mod report;
pub mod systems;
pub mod train;
pub mod uda;
