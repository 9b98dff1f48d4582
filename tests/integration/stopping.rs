//! Signals in the middle of long work, and output that cannot be written.

#![cfg(unix)]

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::TestCommand;
use crate::trajectories::teacher;
use crate::util::write_pictures;

/// Longest wait for the end of a program after a signal. It takes two seconds, on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(8);

const TINY: [&str; 5] =
    ["model.size=[8,8]", "model.patch=4", "model.hidden=16", "model.depth=2", "model.heads=2"];

fn pictures(folder: &Path) {
    write_pictures(folder, &["a", "b", "c"], |class, i, [x, y]| {
        let at = |x: u32, y: u32| (x * 31 + y * 17 + i * 40) as u8;
        [at(x, y), at(y, x), 60 * class as u8, 255]
    });
}

fn train(folder: &Path, args: &[&str], settings: &[&str]) -> TestCommand {
    TestCommand::new(folder, ["train", "class", "-d", "data", "--json", "--verbose"])
        .args(args)
        .settings(settings)
        .on_cpu()
}

#[test]
fn a_training_ends_in_the_middle_of_a_step_or_of_a_sample_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    pictures(&folder.join("data"));
    // A step of many seconds.
    let large =
        ["model.hidden=128", "model.depth=4", "model.patch=4", "batch=1024", "micro_batches=64"];
    // A sample of as many.
    let slow = ["sample_every=2", "defaults.steps=10000", "log_every=1", "batch=4"];
    let tiny: Vec<&str> = TINY.into_iter().chain(slow).collect();
    for (number, signal) in [(2, "INT"), (15, "TERM"), (1, "HUP")] {
        for (name, settings, line) in
            [("step", large.as_slice(), "parameters"), ("sample", tiny.as_slice(), r#""step":2"#)]
        {
            let run = format!("{name} {signal}");
            let mut running = train(folder, &["-o", &run], settings).spawn();
            running.wait_for_lines(1, line);
            std::thread::sleep(Duration::from_millis(700));
            let started = Instant::now();
            let status = running.signalled(signal);
            let took = started.elapsed();
            assert_eq!(status.code(), Some(128 + number), "{run}");
            assert!(took < PATIENCE, "{run}: {took:?}");
            println!("{run}: {:.1} s", took.as_secs_f64());
            // What was trained can be used, and goes on.
            TestCommand::new(folder, ["inspect", &run]).succeeded();
            if name == "sample" {
                let more = ["--resume", &run, "--set", "sample_every=0", "--steps", "4"];
                let said = TestCommand::new(folder, ["train", "class"]).args(more).on_cpu();
                assert!(said.reported().contains("resumed at step 2"));
            }
        }
    }
}

#[test]
fn reading_and_recording_end_at_a_signal() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    teacher(&folder.join("teacher"), 1, true);
    std::fs::create_dir_all(folder.join("data/a")).expect("created");
    let picture = image::RgbImage::from_fn(1500, 1500, |x, y| {
        image::Rgb([(x * y) as u8, (x + y) as u8, (x ^ y) as u8])
    });
    picture.save(folder.join("data/a/0.png")).expect("written");
    for i in 1..400 {
        let path = folder.join(format!("data/a/{i}.png"));
        std::fs::hard_link(folder.join("data/a/0.png"), path).expect("linked");
    }
    let reading = train(folder, &["-o", "run"], &TINY);
    let recording = TestCommand::new(folder, ["distill", "record", "-m", "teacher", "-o", "set"])
        .args(["-n", "1000000", "--shard", "100000", "--batch-size", "1000"])
        .on_cpu();
    for command in [reading, recording] {
        let running = command.spawn();
        std::thread::sleep(Duration::from_millis(1000));
        let started = Instant::now();
        assert_eq!(running.signalled("TERM").code(), Some(143));
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    }
    assert!(!folder.join("run").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_the_output_is_an_error_at_the_end_of_a_training() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    pictures(&folder.join("data"));
    let full = || {
        let file = OpenOptions::new().write(true).open("/dev/full");
        Stdio::from(file.expect("a full disk"))
    };
    let train = |args: &[&str]| {
        let settings = TINY.iter().flat_map(|&setting| ["--set", setting]);
        let mut command = Command::new(env!("CARGO_BIN_EXE_pyrograph"));
        command.current_dir(folder).args(["train", "class", "-d", "data", "-o", "run", "--json"]);
        command.args(settings).args(["--set", "log_every=1", "--set", "sample_every=0"]);
        command.args(["--device", "cpu"]).args(args).stdout(full());
        command
    };
    let ended = train(&["--steps", "3"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && !said.contains("panicked"), "{said}");
    assert!(folder.join("run/checkpoints/0000003.safetensors").exists());
    // Where errors cannot be told either, there is only the code.
    let ended = train(&["--resume", "--steps", "5"]).stderr(full()).status();
    assert_eq!(ended.expect("it runs").code(), Some(1));
    assert!(folder.join("run/checkpoints/0000005.safetensors").exists());
}
