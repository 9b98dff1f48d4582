//! Work during which somebody is asked whether it should go on.

use std::ops::ControlFlow;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::{Event, Observe};

/// Steps that take longer are watched.
pub(super) const SLOW: Duration = Duration::from_millis(200);
/// How often it is asked.
const GLANCE: Duration = Duration::from_millis(50);

/// How work ended.
pub(super) enum Watched<T, S> {
    /// By itself.
    Done(T),
    /// Its result is given up, for what stopping gave.
    Stopped(S),
}

/// Works, and asks `observe` meanwhile; where that breaks, `stop` is called at once, beside the work.
pub(super) fn watched<T, S: Send>(
    work: impl FnOnce() -> T,
    observe: &mut Observe<'_>,
    stop: impl FnOnce(&mut Observe<'_>) -> S + Send,
) -> Watched<T, S> {
    std::thread::scope(|scope| {
        let (end, ended) = channel::<()>();
        let watcher = scope.spawn(move || {
            while ended.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {
                if let ControlFlow::Break(()) = observe(Event::Working) {
                    return Some(stop(observe));
                }
            }
            None
        });
        let done = work();
        drop(end);
        match watcher.join() {
            Ok(None) => Watched::Done(done),
            Ok(Some(stopped)) => Watched::Stopped(stopped),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_is_stopped_in_the_middle_and_short_work_is_not() {
        let mut stop_at_once = |_: Event<'_>| ControlFlow::Break(());
        let short = watched(|| 1, &mut stop_at_once, |_| ());
        assert!(matches!(short, Watched::Done(1)));
        let (tell, told) = channel();
        let long = watched(
            || told.recv().expect("it is told"),
            &mut stop_at_once,
            |_| {
                tell.send(()).expect("somebody waits");
                "stopped"
            },
        );
        assert!(matches!(long, Watched::Stopped("stopped")));
        let mut go_on = |_: Event<'_>| ControlFlow::Continue(());
        let long = watched(|| std::thread::sleep(3 * GLANCE), &mut go_on, |_| ());
        assert!(matches!(long, Watched::Done(())));
    }
}
