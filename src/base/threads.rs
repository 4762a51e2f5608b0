//! Threads of tensor programs.

/// Candle's variable for the threads of its element-wise operations.
const ELEMENTWISE: &str = "CANDLE_NUM_THREADS";

/// Keeps candle's threads for element-wise operations from taking the processors from everything else.
///
/// They are a pool beside rayon's whose threads wait by spinning, also for a while after an operation: on two processors a
/// training step of a small U-Net takes a third longer with them. Memory bounds these operations, so they get a quarter of the
/// processors. Call once at the start of `main`; a value that the user set stays.
#[allow(unsafe_code)]
pub fn share_processors() {
    if std::env::var_os(ELEMENTWISE).is_some() {
        return;
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // SAFETY: called before other threads exist.
    unsafe {
        std::env::set_var(ELEMENTWISE, (processors / 4).max(1).to_string());
    }
}
