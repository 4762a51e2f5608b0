//! The only folder that opens files (and, in `hub`, sockets).

pub mod atomic;
pub mod tokenizer;
pub mod weights;
