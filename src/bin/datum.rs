//! datum
fn main() {}
