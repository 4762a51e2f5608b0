//! Networks only.

pub mod segmenter;

pub use segmenter::Segmenter;
