//! `pyrograph generate`: nothing is ignored, nothing fails late, nothing that was made is lost.

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;

use crate::command::TestCommand;
use crate::util::{case_file, cases, files, text};

fn names(folder: &Path) -> Vec<String> {
    let name = |path: PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = files(folder).filter_map(name).collect();
    names.sort();
    names
}

fn generate<'a>(folder: &'a Path, options: &'a [&'a str]) -> TestCommand {
    TestCommand::new(folder, ["generate", "class", "--steps", "2"]).args(options)
}

/// Noise of the shipped model for some images, each of a value of its own.
fn write_noise(path: &Path, images: &[f32]) {
    let values: Vec<f32> = images
        .iter()
        .flat_map(|&spoilt| (0..3 * 64 * 64).map(move |i| spoilt + (i as f32 * 0.7).sin()))
        .collect();
    let data = TensorData::new(values, [images.len(), 3, 64, 64]);
    let tensors = [("noise".to_owned(), data)];
    pyrograph_weights::write_safetensors(path, &tensors, &Default::default()).expect("written");
}

/// Numbers that cannot be, and what is said of them.
const NUMBERS: &[(&[&str], &str)] = &[
    (&["--batch-size", "0"], "--batch-size"),
    (&["--vae-tile", "0"], "--vae-tile"),
    (&["--vae-tile", "32"], "no autoencoder"),
    (&["--preview", "p.png", "--preview-interval", "0"], "--preview-interval"),
    (&["--preview-interval", "2"], "--preview"),
    (&["--steps", "-5"], "expected 1 to"),
    (&["--steps", "20000"], "20000 steps, expected 1 to 10000"),
    (&["--steps", "2000000"], "expected 1 to 10000, or to the number of timesteps"),
    (&["--steps", "0"], "expected 1 to"),
    (&["-n", "-1"], "expected 1 to"),
    (&["-n", "0"], "expected 1 to"),
    (&["-n", "99999999999"], "expected 1 to 1000000"),
    (&["-n", "18446744073709551615"], "expected 1 to 1000000"),
];

/// All that depends on the options alone is refused by name, before the first step.
#[test]
fn mistakes_are_refused_before_the_first_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    std::fs::create_dir(path.join("taken.png")).expect("made");
    std::fs::copy(case_file("start.png"), path.join("start.png")).expect("copied");
    write_noise(&path.join("noise.safetensors"), &[0.0, 0.0, 0.0]);
    let before = names(path);
    let golden = cases("dit-pipeline").remove(0);
    let empty = case_file("noise-0x3x8x8.safetensors");
    let without = case_file("png-classes-empty.png");
    let long = format!("{}.png", "a".repeat(260));
    let list: &[(&[&str], &str)] = &[
        (&["-W", "0"], "expected 1 or more"),
        (&["-W", "16384", "-H", "16392"], "up to 16384"),
        (&["-n", "300", "--grid", "1", "-o", "a.webp"], "up to 16383"),
        (&["-c", "1,2,3", "--grid", "0"], "--grid"),
        (&["--cfg-channels", "9"], "guided channels 9, expected 1 to 3"),
        (&["--cfg-scale", "nan"], "cfg scale NaN"),
        (&["--cfg-rescale", "1.5"], "cfg rescale 1.5"),
        (&["--cfg-scale", "1", "--cfg-rescale", "0.5"], "--cfg-rescale has no effect"),
        (&["--cfg-scale", "1", "--cfg-interval", "1,2"], "--cfg-interval has no effect"),
        (&["--guide-model", "emoji-4step"], "few-step student"),
        (&["--weak-patch", "16"], "--weak-patch"),
        (&["--strength", "0.5"], "--init-image"),
        (&["--mask", "start.png"], "a mask of what to keep"),
        (&["-i", "start.png", "--strength", "2"], "strength is 2"),
        (&["-i", "none.png"], "none.png"),
        (&["-c", "1,2,3", "-n", "2"], "3 classes for 2 images"),
        (&["--noise", "noise.safetensors", "-n", "2"], "2 images asked for"),
        (&["--noise", text(&empty)], "[0, 3, 8, 8]"),
        (&["-m", text(&golden), "-c", "1", "--noise", "noise.safetensors"], "noise has shape"),
        (&["-o", "%d/x.png"], "no such folder"),
        (&["-o", "taken.png", "--grid"], "taken.png"),
        (&["-c", "1", "-o", "taken.png"], "taken.png"),
        (&["-o", &long], "264 bytes"),
        (&["-o", "a.png", "--preview", "./a.png"], "--preview"),
        (&["-c", "1,2", "-o", "%d.png", "--save-latents", "1.png"], "--save-latents"),
        (&["-i", "start.png", "-o", "start.png"], "--init-image"),
        (
            &["--noise", "noise.safetensors", "-o", "noise.png", "--save-latents", "no/l.st"],
            "no such",
        ),
        (&["--save-latents", "no/such/latents.safetensors"], "no/such"),
        (&["--from-metadata", text(&without)], "`classes` is []"),
        (&["--fast", "--scheduler", "karras"], "placement of the steps is karras"),
        (&["--fast", "--eta", "0.5"], "eta of ddim is 0.5, the student has 0"),
        (&["--fast", "--sampler", "euler"], "sampler is euler, the student has ddim"),
        (&["--sigmas", "0"], "falling, found [0.0]"),
        (&["--sigmas", "2,0,0"], "falling, found [0.0]"),
        (&["-m", text(&golden), "-c", "1", "--sigmas", "1e-9"], "at noise level 1.000e-9"),
        (&["--show", "--json"], "--json"),
        (&["--lora", "none.safetensors"], "none.safetensors"),
    ];
    for (options, part) in NUMBERS.iter().chain(list) {
        let ended = TestCommand::new(path, ["generate", "class"]).args(*options).ended();
        assert!(matches!(ended.code, Some(1 | 2)), "{options:?}: {:?}", ended.code);
        assert!(ended.error.contains(part), "{options:?}: {}", ended.error);
        assert!(!ended.error.contains(" steps of "), "{options:?}: {}", ended.error);
        assert_eq!(names(path), before, "{options:?}");
    }
}

/// A name that nobody asked for.
#[cfg(target_os = "linux")]
#[test]
fn temporary_names_are_not_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = generate(folder.path(), &["-c", "1", "-o", "/proc/x.png"]).failed();
    assert!(said.contains("/proc") && !said.contains(".writing"), "{said}");
}

/// The memory that a request takes is known before it is taken.
#[cfg(target_os = "linux")]
#[test]
fn what_is_too_large_for_the_memory_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let limited = |options: &str| {
        let program = env!("CARGO_BIN_EXE_pyrograph");
        let line = format!("ulimit -v 6000000; exec {program} {options} --device cpu");
        let ended = std::process::Command::new("sh")
            .args(["-c", &line])
            .current_dir(&folder)
            .output()
            .expect("a shell");
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    for (name, count) in [("few", 14), ("many", 100)] {
        std::fs::create_dir(folder.path().join(name)).expect("made");
        for i in 0..count {
            let path = folder.path().join(name).join(format!("{i}.png"));
            image::RgbImage::new(8, 8).save(path).expect("written");
        }
    }
    for options in [
        "generate class -c 1 -W 8192 -H 8192",
        "generate class -n 1000000 --grid",
        "generate class -n 400000 --save-latents a.st -o %d.png",
        "bench forward --batch 65536",
        "bench train --batch 65536",
        "bench generate --batch 65536",
        "eval --reference many --images many --size 4096",
        "eval --reference few --images few --size 4096",
        "train class -d many -o run --batch 1 --set micro_batches=1 --set model.size=[4096,4096] \
         --set model.patch=256",
    ] {
        let (code, error) = limited(options);
        assert_eq!(code, Some(1), "{options}: {error}");
        assert!(
            error.contains(" GB of memory, the limit of this process has "),
            "{options}: {error}"
        );
    }
    assert_eq!(limited("generate class --steps 1 -c 1").0, Some(0));
}

/// A broken image is named; the others are there.
#[test]
fn one_bad_image_loses_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    write_noise(&path.join("nan.safetensors"), &[0.0, f32::NAN, 0.1]);
    let noise = ["-c", "1", "--noise", "nan.safetensors"];
    let ended = generate(path, &noise).args(["-o", "k%d.png", "--json"]).ended();
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.error.contains("1 of 3 images are missing: image 1 is not finite"),
        "{}",
        ended.error
    );
    assert_eq!(names(path), ["k0.png", "k2.png", "nan.safetensors"]);
    let lines: Vec<serde_json::Value> =
        ended.output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1]["error"].is_string() && lines[1].get("file").is_none());
    for i in [0usize, 2] {
        assert_eq!(lines[i]["file"], format!("k{i}.png"));
        assert_eq!((&lines[i]["index"], &lines[i]["steps"]), (&i.into(), &2.into()));
        assert_eq!(lines[i]["classes"], serde_json::json!([1]));
    }
    let seed = |i: usize| lines[i]["seed"].as_u64().expect("a seed");
    assert_eq!(seed(2), seed(0) + 2);
    let error = generate(path, &noise).args(["-o", "sheet.png", "--grid"]).failed();
    assert!(error.contains("image 1 is not finite"), "{error}");
    let sheet = image::open(path.join("sheet.png")).expect("a picture").into_rgb8();
    let white = |x: u32| sheet.get_pixel(x, 20).0 == [255; 3];
    assert!(white(80) && !white(20), "the second of three is blank");
}

/// Folders are literal, and names of any bytes work.
#[cfg(unix)]
#[test]
fn files_are_called_what_was_asked_for() {
    use std::os::unix::ffi::OsStrExt;
    let name = |bytes: &'static [u8]| std::ffi::OsStr::from_bytes(bytes);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    std::fs::create_dir(path.join("100%done")).expect("made");
    generate(path, &["-c", "1,2", "-o", "100%done/{class}-%02d.png"]).succeeded();
    assert_eq!(names(&path.join("100%done")).len(), 2);
    std::fs::copy(case_file("start.png"), path.join(name(b"r\xffed.png"))).expect("copied");
    TestCommand::new(path, [name(b"generate"), name(b"class"), name(b"-c"), name(b"1")])
        .args([name(b"--steps"), name(b"2"), name(b"-i"), name(b"r\xffed.png")])
        .args([name(b"-o"), name(b"out\xff.png"), name(b"--json")])
        .succeeded();
    assert!(path.join(name(b"out\xff.png")).is_file());
}

/// What files say about themselves moves no cursor and sets no title.
#[test]
fn texts_of_files_are_escaped() {
    let folder = tempfile::tempdir().expect("a folder");
    let esc = case_file("esc.png");
    let shown = TestCommand::new(&folder, ["metadata", text(&esc)]).succeeded();
    let obeyed = |text: &str| text.chars().any(|c| c.is_control() && c != '\n');
    assert!(!obeyed(&shown) && shown.contains(r"\u001b[2J"), "{shown}");
    let json = TestCommand::new(&folder, ["metadata", "--json", text(&esc)]).succeeded();
    let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(read.to_string().contains(r"\u001b"), "the text itself is kept");
    let hostile = "a\u{1b}[31mRED\u{1b}[0m\u{7}\nforged";
    let tensors = [(hostile.to_owned(), TensorData::new(vec![0f32], [1]))];
    let path = folder.path().join("esc.safetensors");
    pyrograph_weights::write_safetensors(&path, &tensors, &Default::default()).expect("written");
    let ended = TestCommand::new(&folder, ["inspect", "--tensors", "esc.safetensors"]).ended();
    assert!(!obeyed(&ended.output) && !obeyed(&ended.error), "{}{}", ended.output, ended.error);
    assert!(!ended.output.lines().any(|line| line.starts_with("forged")), "{}", ended.output);
    let lora = generate(folder.path(), &["--lora", "esc.safetensors"]).failed();
    assert!(!obeyed(&lora), "{lora}");
}

/// A full disk behind standard output is an error, and no panic.
#[cfg(target_os = "linux")]
#[test]
fn lost_output_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("a device");
    for args in [&["devices"][..], &["--help"], &["generate", "class", "-c", "1", "--steps", "2"]] {
        let ended = std::process::Command::new(env!("CARGO_BIN_EXE_pyrograph"))
            .args(args)
            .current_dir(&folder)
            .stdout(full())
            .output()
            .expect("the program starts");
        let error = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{args:?}: {error}");
    }
    // What was made is there all the same.
    assert!(folder.path().join("output.png").is_file());
}
