//! Signals end the program in time, with their own code, and lose nothing that was made.
#![cfg(unix)]

use std::time::{Duration, Instant};

use crate::command::TestCommand;
use crate::util::files;

/// Longest time from a signal to the end, on a machine that does other work, too.
const LIMIT: Duration = Duration::from_secs(5);

const SIGNALS: [(&str, i32); 3] = [("INT", 130), ("TERM", 143), ("HUP", 129)];

#[test]
fn what_was_made_is_kept() {
    for (signal, code) in SIGNALS {
        let folder = tempfile::tempdir().expect("a folder");
        let options =
            ["generate", "class", "-c", "1", "-n", "4000", "--batch-size", "2", "--steps", "2"];
        let mut running = TestCommand::new(&folder, options)
            .args(["-s", "7", "--save-latents", "l.safetensors", "-o", "%04d.png"])
            .on_cpu()
            .spawn();
        let third = folder.path().join("0002.png");
        running.wait_until("third picture", || third.exists());
        let sent = Instant::now();
        assert_eq!(running.signalled(signal).code(), Some(code));
        assert!(sent.elapsed() < LIMIT, "{signal}: {:?}", sent.elapsed());
        let pictures =
            files(folder.path()).filter(|path| path.extension().is_some_and(|e| e == "png"));
        let pictures: Vec<_> = pictures.collect();
        assert!((3..4000).contains(&pictures.len()));
        for picture in &pictures {
            image::open(picture).expect("a whole picture");
        }
        let latents = folder.path().join("l.safetensors");
        let latents = pyrograph_weights::Checkpoint::open(latents).expect("latents");
        assert_eq!(latents.tensors()["latents"].shape[0], pictures.len());
        assert_eq!(latents.tensors()["trajectory"].shape[..2], [2, pictures.len()]);
    }
}

#[test]
fn a_grid_that_was_stopped_shows_what_there_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let options =
        ["generate", "class", "-c", "1", "-n", "4000", "--batch-size", "1", "--steps", "2"];
    let mut running = TestCommand::new(&folder, options)
        .args(["--grid", "4", "-o", "grid.png", "--preview", "p.png"])
        .on_cpu()
        .spawn();
    let (grid, preview) = (folder.path().join("grid.png"), folder.path().join("p.png"));
    running.wait_until("preview", || preview.exists());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(running.signalled("INT").code(), Some(130));
    let sheet = image::open(grid).expect("a picture").into_rgb8();
    assert!(sheet.pixels().any(|pixel| pixel.0 != [255; 3]));
}

/// A step of a large picture takes far longer than a signal may.
#[test]
fn the_end_does_not_wait_for_a_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = TestCommand::new(&folder, ["generate", "class", "-c", "1", "--steps", "2", "-v"])
        .args(["-W", "1536", "-H", "1536"])
        .on_cpu()
        .spawn();
    let mut running = running;
    running.wait_for_lines(1, "opened");
    std::thread::sleep(Duration::from_millis(300));
    let sent = Instant::now();
    assert_eq!(running.signalled("TERM").code(), Some(143));
    assert!(sent.elapsed() < LIMIT, "{:?}", sent.elapsed());
    assert_eq!(files(folder.path()).count(), 0);
}

/// As under `nohup`.
#[cfg(target_os = "linux")]
#[test]
fn signals_that_are_ignored_stay_ignored() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = env!("CARGO_BIN_EXE_pyrograph");
    let line = format!(
        "trap '' HUP; {program} generate class --device cpu -c 1 --steps 40 & sleep 0.3; kill -HUP $!; wait $!"
    );
    let ended = std::process::Command::new("sh").args(["-c", &line]).current_dir(&folder).output();
    assert_eq!(ended.expect("a shell").status.code(), Some(0));
    assert!(folder.path().join("output.png").is_file());
}
