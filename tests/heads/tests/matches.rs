//! Laws of `heads matches`.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn heads(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_heads")).args(arguments).output().unwrap()
}

/// Six pairs, with matches of the same cells and of the first one.
fn make(folder: &Path) {
    let asked = ["--people", "3", "--references", "2", "--size", "32", "--yaw", "50"];
    let made = heads(&[&["pairs", folder.to_str().unwrap()], &asked[..]].concat());
    assert!(made.status.success());
    (0..6).for_each(|number| write(folder, number, &right()));
}

fn right() -> Value {
    json!({ "grid": [8, 8], "levels": [(0..64).collect::<Vec<_>>(), vec![0; 64]] })
}

fn write(folder: &Path, number: usize, held: &Value) {
    let path = folder.join(format!("{number:03}/matches.json"));
    fs::write(path, held.to_string()).unwrap();
}

/// What is said of the file of the third pair, which alone is wrong.
fn said_of(held: &Value) -> String {
    let place = tempfile::tempdir().unwrap();
    make(place.path());
    write(place.path(), 2, held);
    let output = heads(&["matches", place.path().to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let reasons = told["left_out"].as_array().unwrap();
    assert!(told["pictures"] == 5 && told["people"] == 3 && reasons.len() == 1, "{told}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("1 of 6") && said.contains(reasons[0].as_str().unwrap()), "{said}");
    let (_, reason) = said.split_once("002/matches.json: ").unwrap();
    // A backtrace may follow.
    reason.lines().next().unwrap().into()
}

#[test]
fn matches_are_judged() {
    let place = tempfile::tempdir().unwrap();
    make(place.path());
    let folder = place.path().to_str().unwrap();
    let output = heads(&["matches", folder, "--json"]);
    assert!(output.status.success());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told["pictures"] == 6 && told["level_0"] == told["same_place"], "{told}");
    assert!(told["level_1"]["mean"] == 0.0 && told["lead"]["level"] == "level_0", "{told}");
    assert!(told["patches"]["mean"].as_f64().unwrap() > 0.05, "{told}");
    assert!(told["by_yaw_gap"].as_array().unwrap().len() == 3);
    let collapse = &told["collapse"];
    assert!(collapse["level_1"]["mean"] == 1.0, "{told}");
    assert!(collapse["level_0"]["mean"].as_f64().unwrap() < 0.1, "{told}");
    assert!(told["left_out"].as_array().unwrap().is_empty());

    for number in 0..6 {
        let below = place.path().join(format!("{number:03}"));
        fs::rename(below.join("matches.json"), below.join("other.json")).unwrap();
    }
    let table = heads(&["matches", folder, "--output", "other.json"]);
    assert!(table.status.success());
    let table = String::from_utf8(table.stdout).unwrap();
    let found = ["6 pairs of 3 people", "level 1 ", "same place ", "level 0 minus ", "yaw gap 30"];
    assert!(found.iter().all(|words| table.contains(words)), "{table}");
}

#[test]
fn matches_that_are_wrong_are_named_and_left_out() {
    let with = |key: &str, value: Value| {
        let mut held = right();
        held[key] = value;
        said_of(&held)
    };
    let same: Vec<usize> = (0..64).collect();
    let said = with("grid", json!([5, 8]));
    assert_eq!(said, "a grid of 5x8, expected one that divides 32x32");
    let said = with("levels", json!([same, vec![0; 63]]));
    assert_eq!(said, "level 1: 63 cells, expected 64 of 8x8");
    let said = with("levels", json!([vec![64; 64], same]));
    assert_eq!(said, "level 0: cell 64 for cell 0, expected less than 64");
    let said = with("levels", json!([]));
    assert_eq!(said, "0 levels, expected 1 at least");
    let said = with("levels", json!([same]));
    assert!(said.starts_with("1 levels, expected 2 as in ") && said.ends_with("000/matches.json"));
    let said = said_of(&json!({ "grid": [4, 4], "levels": [vec![0; 16], vec![0; 16]] }));
    assert!(said.starts_with("a grid of 4x4, expected 8x8 as in "), "{said}");
    assert!(with("more", json!(1)).contains("`more`"));
    assert!(with("levels", json!([vec![-1; 64]])).contains("`-1`"));
    assert!(said_of(&json!("text")).contains("text"));
}

#[test]
fn missing_and_huge_files_are_named() {
    let place = tempfile::tempdir().unwrap();
    make(place.path());
    fs::remove_file(place.path().join("000/matches.json")).unwrap();
    fs::write(place.path().join("005/matches.json"), vec![b' '; (16 << 20) + 1]).unwrap();
    let output = heads(&["matches", place.path().to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("2 of 6") && said.contains("000/matches.json: No such file"), "{said}");
    assert!(said.contains("005/matches.json: 16777217 bytes, expected 16777216 at most"), "{said}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("4 pairs of 3 people"));
}
