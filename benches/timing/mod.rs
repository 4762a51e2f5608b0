//! How long a call takes.

use std::time::{Duration, Instant};

/// Minimum and median in ms, after one warm-up call; calls repeat for `limit`, at least `least` and at most 30 times.
pub fn time<E>(limit: Duration, least: usize, mut call: impl FnMut() -> Result<(), E>) -> Result<(f64, f64), E> {
    call()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < least || (start.elapsed() < limit && times.len() < 30) {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[0], times[times.len() / 2]))
}
