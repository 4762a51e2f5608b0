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

/// Signals end this process at once again, for one that only waits to be ended.
pub fn uninstall() {
    #[cfg(unix)]
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        #[allow(unsafe_code)]
        // SAFETY: puts the default handler back and touches no memory of ours.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Asks another process to save and stop, as Ctrl-C does. Best effort: it may have ended.
pub fn pass_on(process: u32) {
    #[cfg(unix)]
    if let Ok(process) = libc::pid_t::try_from(process) {
        #[allow(unsafe_code)]
        // SAFETY: sends a signal and touches no memory.
        unsafe {
            libc::kill(process, libc::SIGINT);
        }
    }
    #[cfg(not(unix))]
    let _ = process;
}

/// True after Ctrl-C (or SIGTERM, SIGHUP) was received.
pub fn requested() -> bool {
    PRESSES.load(Ordering::SeqCst) > 0
}
