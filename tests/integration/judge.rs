//! `pyrograph eval`: its numbers on sets that are hard, and what it refuses before any work.

use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::command::TestCommand;
use crate::util::assets;

/// Pictures, each several times, in one folder.
fn write(folder: &Path, pictures: &[(&RgbImage, usize)]) {
    std::fs::create_dir_all(folder).expect("created");
    for (i, (picture, times)) in pictures.iter().enumerate() {
        for copy in 0..*times {
            picture.save(folder.join(format!("{i}-{copy}.png"))).expect("written");
        }
    }
}

fn eval(folder: &Path, [reference, images]: [&str; 2], more: &[&str]) -> Value {
    let args = ["eval", "--reference", reference, "--images", images];
    let line = TestCommand::new(folder, args).args(more).succeeded();
    assert!(!line.contains("null"), "{line}");
    serde_json::from_str(&line).expect("one JSON line")
}

fn number(line: &Value, path: &str) -> f64 {
    line.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {line}"))
}

#[test]
fn sets_with_many_duplicates_have_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let flat = |level: u8| RgbImage::from_pixel(8, 8, Rgb([level; 3]));
    let (black, white, grey) = (flat(0), flat(255), flat(100));
    write(&folder.path().join("two"), &[(&black, 50), (&white, 50)]);
    write(&folder.path().join("few"), &[(&black, 2), (&white, 2)]);
    write(&folder.path().join("grey"), &[(&grey, 2)]);

    let same = eval(folder.path(), ["two", "two"], &["--resamples", "0"]);
    let scale = number(&eval(folder.path(), ["two", "grey"], &[]), "/fd_efflite0/value");
    assert!(scale > 1.0, "{scale}");
    assert!(number(&same, "/fd_efflite0/value") < 1e-6 * scale, "{same}");
    assert_eq!(number(&same, "/copies"), 1.0);
    assert_eq!(number(&same, "/duplicated"), 200.0);
    assert!(same["fd_efflite0"].get("margin").is_none(), "{same}");

    // On a line the deviations are √(n / (n - 1)) halves of the distance.
    let few = eval(folder.path(), ["two", "few"], &["--resamples", "4"]);
    let apart = number(&eval(folder.path(), ["few", "two"], &[]), "/fd_efflite0/value");
    let found = number(&few, "/fd_efflite0/value");
    assert!((found - apart).abs() < 1e-6 * scale && found > 0.0, "{found} {apart}");
    assert!(number(&few, "/fd_efflite0/margin") > 0.0);
    assert_eq!(number(&few, "/copies"), 1.0);
}

#[test]
fn what_cannot_be_is_refused_before_any_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let emoji = assets().join("data/emoji").display().to_string();
    let eval = |args: &[&str]| {
        let all = [&["eval", "--reference", &emoji][..], args].concat();
        TestCommand::new(&folder, all).ended()
    };
    let made = ["-m", "emoji-class"];
    let given = ["--images", &emoji];
    for (whose, args) in [
        (made, &["--size", "0"][..]),
        (made, &["--size", "1000000"]),
        (made, &["--size", "1e6"]),
        (made, &["-n", "0"]),
        (made, &["-n", "1"]),
        (made, &["-n", "99999999999"]),
        (made, &["--batch-size", "0"]),
        (made, &["--steps", "0"]),
        (made, &["--resamples", "1"]),
        (made, &["--resamples", "1000000000000"]),
        (made, &["--images", "other"]),
        (given, &["-n", "10"]),
        (given, &["--steps", "4"]),
        (given, &["--seed", "1"]),
        (given, &["--dtype", "bf16"]),
        (given, &["--batch-size", "4"]),
        (given, &["--compute", "60%"]),
    ] {
        let ended = eval(&[&whose[..], args].concat());
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.error);
        assert!(ended.output.is_empty());
    }
    for args in [
        &["--images", "no-such-folder"][..],
        &["-m", "emoji-class", "--pairs", "pairs.gif"],
        &["-m", "emoji-class", "--pairs", "no-such-folder/pairs.png"],
        &["-m", "emoji-class", "--cfg-scale", "nan"],
        &["-m", "emoji-class", "--cache", "/proc/no-such-folder"],
    ] {
        let ended = eval(args);
        assert_eq!(ended.code, Some(1), "{args:?}: {}", ended.error);
        assert!(!ended.error.contains("reference images"), "{}", ended.error);
    }
}
