//! The only folder that opens files (and, in `hub`, sockets).

pub mod atomic;
pub mod hash;
pub mod weights;
