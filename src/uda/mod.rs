//! The self-training engine: one training step made of named parts that DATUM's strategies, CISS and CSI share.
//!
//! Read [`step`] first; it is the list of what happens in one iteration. The parts are [`teacher`] (moving average and
//! pseudo-labels), [`class_mix`], [`strong_augment`] and the losses ([`terms`], [`feature_distance`]). A strategy
//! changes values, never the list: another [`Supervision`] (HRDA), another [`LossTerm`] (feature distance, masked
//! consistency, style invariance), another [`TargetRelabeler`] (CSI). Not here: optimisers, schedules, files, loops.
//!
//! Letters: `B` images, `K` classes, `H W` pixels, `C h w` features.

pub mod class_mix;
pub mod feature_distance;
pub mod step;
pub mod strong_augment;
pub mod teacher;
pub mod terms;

pub use class_mix::Mixed;
pub use feature_distance::{FeatureDistance, FeatureDistanceConfig};
pub use step::{Config, SelfTraining, StepBatch, StepOutput};
pub use strong_augment::{Augmentation, ColorJitter, StrongAugment, Switches};
pub use teacher::{Margins, PseudoLabels, Teacher, TeacherState};
pub use terms::{Context, Labelled, LossTerm, Losses, Metrics, Scored, Stage, Supervision, TargetRelabeler, WholeImage};
