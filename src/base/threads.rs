//! Threads of tensor programs.

use super::{Error, Result, group};
use rayon::{ThreadPool, ThreadPoolBuilder};

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

/// Threads for a part of a computation that runs beside others. Their stacks are large: candle's backward pass recurses as deep as the
/// graph.
///
/// # Errors
/// Threads that cannot be started.
pub fn pool(threads: usize) -> Result<ThreadPool> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).stack_size(64 << 20).build();
    pool.map_err(|e| Error::environment(format!("cannot start threads: {e}"), "give a smaller `--threads`"))
}

/// Threads for this process when a launcher started several on its machine: what the launcher gives it, else the processors it is
/// bound to, at most its share of all. None for a process alone, or when the user set rayon's variable.
pub fn share_of_machine() -> Option<usize> {
    let launched = group::launched().filter(|launched| launched.size > 1)?;
    if std::env::var_os("RAYON_NUM_THREADS").is_some() {
        return None;
    }
    let bound = std::thread::available_parallelism().map_or(1, usize::from);
    let share = (online().unwrap_or(bound) / launched.local_size.max(1)).max(1);
    Some(launched.processors.unwrap_or(share).clamp(1, bound))
}

/// Processors of the machine, whether this process may use them or not.
#[allow(unsafe_code)]
fn online() -> Option<usize> {
    #[cfg(unix)]
    // SAFETY: asks for a number and touches no memory.
    return usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).ok().filter(|&count| count > 0);
    #[cfg(not(unix))]
    None
}
