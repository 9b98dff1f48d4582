//! The built program, started as a user starts it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::util::device_name;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(300);

/// One run of `pyrograph` in a folder, on the device under test.
pub struct TestCommand {
    command: Command,
    device: String,
}

impl TestCommand {
    pub fn new<A: AsRef<OsStr>>(
        folder: impl AsRef<Path>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pyrograph"));
        command.current_dir(folder).args(args);
        Self { command, device: device_name() }
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Each as a `--set` of its own.
    pub fn settings(self, settings: &[&str]) -> Self {
        self.args(settings.iter().flat_map(|&setting| ["--set", setting]))
    }

    /// The most that operations on the CPU may use.
    pub fn kernels(mut self, name: &str) -> Self {
        self.command.env("PYROGRAPH_KERNELS", name);
        self
    }

    /// On the CPU, whatever the device under test.
    pub fn on_cpu(mut self) -> Self {
        self.device = "cpu".to_owned();
        self
    }

    fn complete(mut self) -> Command {
        self.command.args(["--device", &self.device]);
        self.command
    }

    /// Runs to its end, whatever that is, but for a panic.
    pub fn ended(self) -> Ended {
        let output = self.complete().output().expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let ended = Ended {
            code: output.status.code(),
            output: text(output.stdout),
            error: text(output.stderr),
        };
        assert!(!ended.error.contains("panicked"), "{}", ended.error);
        ended
    }

    fn ended_with(self, code: i32) -> Ended {
        let ended = self.ended();
        assert_eq!(ended.code, Some(code), "{}", ended.error);
        ended
    }

    /// What a run that succeeds writes to its output.
    pub fn succeeded(self) -> String {
        self.ended_with(0).output
    }

    /// What a run that succeeds tells on its error stream.
    pub fn reported(self) -> String {
        self.ended_with(0).error
    }

    /// The error of a request that cannot be met.
    pub fn failed(self) -> String {
        self.ended_with(1).error
    }

    /// The error of options that are wrong.
    pub fn misused(self) -> String {
        self.ended_with(2).error
    }

    /// Starts a run that is waited for, interrupted or killed.
    pub fn spawn(self) -> Running {
        let mut command = self.complete();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let (sender, lines) = channel();
        forward(child.stdout.take().expect("a pipe"), sender.clone());
        forward(child.stderr.take().expect("a pipe"), sender);
        Running { child, lines, said: String::new() }
    }
}

/// How a run ended, and what it wrote to its two streams.
pub struct Ended {
    pub code: Option<i32>,
    pub output: String,
    pub error: String,
}

/// Sends on every line as it comes.
fn forward(stream: impl Read + Send + 'static, lines: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // A test that has ended listens no more.
            let _ = lines.send(line);
        }
    });
}

/// A program at work; killed where a test ends before it.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Running {
    /// Waits for so many lines of output or errors that contain `part`.
    pub fn wait_for_lines(&mut self, count: usize, part: &str) {
        let end = Instant::now() + LIMIT;
        let mut found = 0;
        while found < count {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    found += usize::from(line.contains(part));
                    self.said.extend([&line, "\n"]);
                }
                Err(RecvTimeoutError::Timeout) => panic!("no `{part}` in {LIMIT:?}: {}", self.said),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended before {count} of `{part}`: {}", self.said);
                }
            }
        }
    }

    /// Waits until `reached`, while the program goes on.
    pub fn wait_until(&mut self, what: &str, mut reached: impl FnMut() -> bool) {
        let end = Instant::now() + LIMIT;
        while !reached() {
            self.assert_alive();
            assert!(Instant::now() < end, "no {what} in {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child") {
            self.said.extend(self.lines.iter().map(|line| line + "\n"));
            panic!("it ended by itself, {status}: {}", self.said);
        }
    }

    /// Ctrl-C; returns how the program ended.
    #[cfg(unix)]
    pub fn interrupted(self) -> ExitStatus {
        self.signalled("INT")
    }

    /// Sends a signal by its name; returns how the program ended.
    #[cfg(unix)]
    pub fn signalled(mut self, signal: &str) -> ExitStatus {
        self.assert_alive();
        let signal = format!("-{signal}");
        let sent = Command::new("kill").args([&signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
        let end = Instant::now() + LIMIT;
        loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => return status,
                // What ignores a signal lets its children ignore it, too.
                None if Instant::now() > end => panic!("still there {LIMIT:?} after {signal}"),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Kills a program that still runs.
    pub fn killed(mut self) {
        self.assert_alive();
        self.child.kill().expect("killed");
        self.child.wait().expect("a child");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Of a program that has ended there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
