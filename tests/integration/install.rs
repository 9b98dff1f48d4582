//! The program as it is after `cargo install`: alone, with nothing of the checkout within reach.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::command::TestCommand;
use crate::util::files;

/// A copy of the program in a folder of its own, an empty home, and another folder to work in.
struct Installed(tempfile::TempDir);

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["bin", "home", "work", "tmp"] {
            std::fs::create_dir(folder.path().join(name)).expect("created");
        }
        let program = folder.path().join("bin/pyrograph");
        std::fs::copy(env!("CARGO_BIN_EXE_pyrograph"), program).expect("copied");
        Self(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str], variables: &[(&str, &Path)]) -> Output {
        let mut command = Command::new(self.at("bin/pyrograph"));
        command.current_dir(self.at("work")).env_clear();
        command.env("HOME", self.at("home")).env("TMPDIR", self.at("tmp"));
        command.envs(variables.iter().copied()).args(args).args(["--device", "cpu"]);
        command.output().expect("it starts")
    }

    /// What it writes to its output, and what it tells.
    fn succeeds(&self, args: &[&str], variables: &[(&str, &Path)]) -> [String; 2] {
        let Output { status, stdout, stderr } = self.run(args, variables);
        assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
        [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

const PICTURE: [&str; 9] =
    ["generate", "class", "-c", "cat", "--seed", "7", "--steps", "2", "--no-metadata"];

#[test]
#[cfg(unix)]
fn the_shipped_models_are_in_the_program() {
    let installed = Installed::new();
    let picture = |name: &str, more: &[&str], variables: &[(&str, &Path)]| -> Vec<u8> {
        let [_, told] =
            installed.succeeds(&[&PICTURE[..], &["-o", name], more].concat(), variables);
        let is_lost = variables.iter().any(|(name, _)| *name == "XDG_CACHE_HOME");
        assert_eq!(told.contains("among the temporary files"), is_lost, "{told}");
        std::fs::read(installed.at("work").join(name)).expect(name)
    };
    let first = picture("first.png", &[], &[]);
    let cache = installed.at("home/.cache/pyrograph/models");
    assert_eq!(files(&cache.join("emoji-class")).count(), 2);

    // What is damaged there is put right.
    std::fs::write(cache.join("emoji-class/dit.safetensors"), "broken").expect("written");
    assert_eq!(picture("second.png", &[], &[]), first);

    // Where nothing can be kept, the folder of temporary files serves; pictures are the checkout's, too.
    let file = installed.at("work/first.png");
    assert_eq!(picture("third.png", &[], &[("XDG_CACHE_HOME", &file)]), first);
    assert!(installed.at("tmp/pyrograph/models/emoji-class/model.json").is_file());
    let own = tempfile::tempdir().expect("a folder");
    TestCommand::new(&own, PICTURE)
        .args(["-m", "emoji-class", "-o", "own.png"])
        .on_cpu()
        .succeeded();
    assert_eq!(std::fs::read(own.path().join("own.png")).expect("a picture"), first);

    // The student, and the network that judges.
    let fast = ["generate", "class", "--fast", "-n", "2", "-o", "%d.png"];
    installed.succeeds(&fast, &[]);
    let judge = ["eval", "--reference", ".", "-m", "emoji-4step", "-n", "2", "--resamples", "0"];
    assert!(installed.succeeds(&judge, &[])[0].contains("fd_efflite0"));
}

#[test]
#[cfg(unix)]
fn a_model_that_is_nowhere_is_told_with_the_places_searched() {
    let installed = Installed::new();
    let output = installed.run(&["inspect", "no-such-model"], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let beside = installed.at("bin/assets/models");
    for part in ["`no-such-model`", "assets/models", &beside.display().to_string(), "emoji-4step"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(files(&installed.at("home")).count(), 0);
}

#[test]
fn it_tells_of_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |args: &[&str]| TestCommand::new(&folder, args).succeeded();
    let version = run(&["--version"]);
    assert!(version.starts_with(concat!("pyrograph ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert_eq!(version.contains("gpu"), cfg!(feature = "gpu"), "{version}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell]).contains("guide-model"), "{shell}");
    }
    run(&["man", "pages"]);
    assert!(folder.path().join("pages/pyrograph-generate-class.1").is_file());
    let help = run(&["generate", "class", "--help"]);
    for part in ["Guidance:", "Patch sizes:", "Every command:", "Examples:\n  pyrograph generate"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn threads_are_no_more_than_cores() {
    let folder = tempfile::tempdir().expect("a folder");
    let inspect =
        |threads: &str| TestCommand::new(&folder, ["inspect", "emoji-class", "--threads", threads]);
    for threads in ["0", "-1", "1e3", "99999999999999999999"] {
        inspect(threads).misused();
    }
    let said = inspect("100000").reported();
    assert!(said.contains("100000 threads asked for"), "{said}");
    assert_eq!(inspect("1").reported(), "");
}

/// Drivers complain of what is no fault here.
#[test]
fn drivers_are_quiet() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(TestCommand::new(&folder, ["devices"]).reported(), "");
}
