//! Signals that end the program: Ctrl-C, a request to terminate, a terminal that is closed.
//!
//! The first one lets the work stop where it can, and be kept; what does not stop within [`GRACE`] is ended. A second one
//! ends the program at once. Its exit code is then 128 and the number of the signal, as shells expect.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

#[cfg(unix)]
use signal_hook::consts::SIGHUP;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Signals that end the program.
const SIGNALS: &[i32] = &[
    SIGINT,
    SIGTERM,
    #[cfg(unix)]
    SIGHUP,
];

/// How long the work may go on after the first signal.
const GRACE: Duration = Duration::from_millis(1000);
/// How often it is seen whether there was one.
const GLANCE: Duration = Duration::from_millis(50);

/// Number of the last signal, 0 before the first.
static RECEIVED: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// Pieces of work that the program waits for, however long they take.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Lets the first signal stop the work, and a second one end the program at once.
pub(crate) fn catch() {
    if let Err(error) = listen() {
        eprintln!("warning: Ctrl-C will end at once: {error}");
    }
}

fn listen() -> std::io::Result<()> {
    let again = Arc::new(AtomicBool::new(false));
    let ignored = ignored();
    for &signal in SIGNALS.iter().filter(|&&signal| ignored >> (signal - 1) & 1 == 0) {
        // In this order, or the first signal would be taken for the second.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
        flag::register(signal, Arc::clone(&again))?;
        flag::register_usize(signal, Arc::clone(&RECEIVED), signal as usize)?;
    }
    std::thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(())
}

/// Ends the program when the work does not.
fn watch() {
    while code().is_none() {
        std::thread::sleep(GLANCE);
    }
    std::thread::sleep(GRACE);
    while HELD.load(Ordering::Acquire) > 0 {
        std::thread::sleep(GLANCE);
    }
    eprintln!("error: interrupted");
    // Without the handlers of the system's libraries, which crash under a GPU at work.
    low_level::exit(code().map_or(1, i32::from));
}

/// The exit code after a signal.
pub(crate) fn code() -> Option<u8> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

/// Stop as soon as possible, or go on.
pub(crate) fn interrupted() -> ControlFlow<()> {
    match code() {
        Some(_) => ControlFlow::Break(()),
        None => ControlFlow::Continue(()),
    }
}

/// Until it is dropped, the first signal does not end the program, however long that takes: for what is being saved.
pub(crate) struct Hold(());

/// See [`Hold`].
pub(crate) fn hold() -> Hold {
    HELD.fetch_add(1, Ordering::AcqRel);
    Hold(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Signals that the program was started to ignore, as `nohup` does, a bit for each from number 1 on; none where the
/// system does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
