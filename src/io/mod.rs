//! The only folder that opens files (and, in `hub`, sockets).

pub mod atomic;
pub mod images;
pub mod tokenizer;
pub mod hub;
pub mod manifest;
pub mod png_text;
pub mod text;
pub mod hash;
pub mod weights;
