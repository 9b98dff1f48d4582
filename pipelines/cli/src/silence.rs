//! What drivers write to standard error while they are looked for and opened: heard only if that panics.

#[cfg(unix)]
use std::{
    fs::File,
    io::{Read, Seek, Write, stderr},
    os::fd::{AsFd, OwnedFd},
};

/// Takes what is written to standard error until it is dropped.
#[cfg(unix)]
pub(crate) struct Silence(Option<Taken>);

#[cfg(unix)]
struct Taken {
    stderr: OwnedFd,
    file: File,
}

#[cfg(unix)]
impl Silence {
    /// Takes everything if `wanted`, unless the process has no room for it.
    pub(crate) fn start(wanted: bool) -> Self {
        let taken = || -> std::io::Result<Taken> {
            let stderr = stderr().as_fd().try_clone_to_owned()?;
            let file = tempfile::tempfile()?;
            rustix::stdio::dup2_stderr(&file)?;
            Ok(Taken { stderr, file })
        };
        Self(wanted.then(|| taken().ok()).flatten())
    }

    /// Does what is to be heard.
    pub(crate) fn around(&self, work: impl FnOnce()) {
        let Some(Taken { stderr, file }) = &self.0 else { return work() };
        let _ = rustix::stdio::dup2_stderr(stderr);
        work();
        let _ = rustix::stdio::dup2_stderr(file);
    }
}

#[cfg(unix)]
impl Drop for Silence {
    fn drop(&mut self) {
        let Some(Taken { stderr: heard, file }) = &mut self.0 else { return };
        let _ = rustix::stdio::dup2_stderr(heard);
        let mut text = Vec::new();
        if std::thread::panicking() && file.rewind().is_ok() && file.read_to_end(&mut text).is_ok()
        {
            let _ = stderr().write_all(&text);
        }
    }
}

/// Drivers of other systems are quiet.
#[cfg(not(unix))]
pub(crate) struct Silence;

#[cfg(not(unix))]
impl Silence {
    pub(crate) fn start(_wanted: bool) -> Self {
        Self
    }

    pub(crate) fn around(&self, work: impl FnOnce()) {
        work();
    }
}
