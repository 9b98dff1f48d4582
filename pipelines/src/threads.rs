//! The pool of CPU threads.
//!
//! Work on the CPU is split over the threads of one pool of the process. A call from any other thread would have to
//! wake one of them for every short loop, and wait: short calls take up to half as long again. [`run`] moves a
//! whole piece of work to the pool instead; pipelines do so by themselves.

use std::sync::Once;

use crate::error::{Error, Result};

/// Most threads that are started.
const MOST: usize = 1024;
/// Bytes of the stack of each thread, as many as the first one of a process has.
const STACK: usize = 8 << 20;

/// Starts the pool with `count` threads; without a count, with one per core.
///
/// Nothing else needs to call this: the pool starts by itself when it is first used, with a thread per core.
///
/// # Errors
/// [`Error::ThreadCount`] for none or more than 1,024, [`Error::Threads`] if the pool runs already, with another number
/// of threads.
pub fn start(count: Option<usize>) -> Result<()> {
    if let Some(asked) = count
        && !(1..=MOST).contains(&asked)
    {
        return Err(Error::ThreadCount { asked, most: MOST });
    }
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count.unwrap_or(0));
        // Fails where the application has started rayon's pool itself: then that one is used.
        let _ = pool.stack_size(STACK).build_global();
    });
    let running = rayon::current_num_threads();
    match count {
        Some(asked) if asked != running => Err(Error::Threads { asked, running }),
        _ => Ok(()),
    }
}

/// Does `work` on a thread of the pool while the caller waits; in place where the caller is one.
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    // Without a count there is nothing to disagree with.
    let _ = start(None);
    rayon::scope(|_| work())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_on_the_pool() {
        assert_eq!(rayon::current_thread_index(), None);
        let nested = run(|| {
            let outer = rayon::current_thread_index();
            (outer, run(rayon::current_thread_index))
        });
        assert!(nested.0.is_some() && nested.0 == nested.1, "{nested:?}");
        let running = rayon::current_num_threads();
        assert!(start(Some(running)).is_ok());
        assert!(matches!(start(Some(running + 1)), Err(Error::Threads { .. })));
        for asked in [0, MOST + 1, usize::MAX] {
            assert!(matches!(start(Some(asked)), Err(Error::ThreadCount { .. })), "{asked}");
        }
    }
}
