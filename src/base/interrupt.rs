//! Ctrl-C: the first press asks loops to save and stop, the second ends the process at once.

use std::sync::atomic::{AtomicUsize, Ordering};

static PRESSES: AtomicUsize = AtomicUsize::new(0);

/// Installs the handler. Call once, from a program's `main`.
pub fn install() {
    // A second installation fails, which is harmless: the first one stays.
    let _ = ctrlc::set_handler(|| {
        if PRESSES.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(130);
        }
    });
}

/// True after Ctrl-C (or SIGTERM, SIGHUP) was received.
pub fn requested() -> bool {
    PRESSES.load(Ordering::SeqCst) > 0
}
