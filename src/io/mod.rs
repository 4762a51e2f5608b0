//! The only folder that opens files (and, in `hub`, sockets).

pub mod atomic;
<<<<<<< HEAD
pub mod images;
=======
pub mod tokenizer;
>>>>>>> h/sd
pub mod weights;
