//! Laws of pictures, folders and the metric.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use image::RgbImage;
use pyrograph_heads::{
    HEAD, Head, Identity, Light, MOST_PEOPLE, Pair, Pairing, Protocol, Random, View, evaluated,
    face_mask, render,
};

fn head() -> Head {
    Head::open(HEAD).unwrap()
}

fn brightness(picture: &RgbImage, columns: std::ops::Range<u32>) -> f64 {
    let own = picture.enumerate_pixels().filter(|(x, ..)| columns.contains(x));
    own.map(|(_, _, pixel)| pixel.0.iter().map(|value| f64::from(*value)).sum::<f64>()).sum()
}

#[test]
fn a_face_unit_of_weight_0_changes_nothing() {
    let (head, view) = (head(), View::default());
    let person = Identity::numbered(&head, 0, 1);
    let mut same = view.clone();
    same.units.insert("jawOpen".into(), 0.0);
    same.units.insert("no such unit".into(), 1.0);
    let mut open = view.clone();
    open.units.insert("jawOpen".into(), 0.7);
    let [view, same, open] = [view, same, open].map(|view| render(&head, &person, &view, 32));
    assert!(view.rgb == same.rgb && view.samples == same.samples);
    assert!(view.rgb != open.rgb);
}

#[test]
fn the_mean_person_is_the_same_on_both_sides() {
    let head = head();
    let picture = render(&head, &Identity::mean(&head), &View::default(), 64).rgb;
    let apart = picture.enumerate_pixels().flat_map(|(x, y, pixel)| {
        let other = picture.get_pixel(63 - x, y);
        (0..3).map(move |channel| pixel.0[channel].abs_diff(other.0[channel]))
    });
    let apart: Vec<f64> = apart.map(f64::from).collect();
    let mean = apart.iter().sum::<f64>() / apart.len() as f64;
    assert!(mean < 1.0, "{mean}");
}

#[test]
fn the_side_of_the_light_is_brighter() {
    let head = head();
    let person = Identity::numbered(&head, 0, 2);
    let seen = |x: f32| {
        let light = Light { direction: [x, 0.0, 0.6], strength: 1.0, ambient: 0.2, tint: [1.0; 3] };
        render(&head, &person, &View { light, ..View::default() }, 64).rgb
    };
    let (left, right) = (seen(-0.8), seen(0.8));
    assert!(brightness(&left, 0..32) > 1.1 * brightness(&left, 32..64));
    assert!(brightness(&right, 32..64) > 1.1 * brightness(&right, 0..32));
}

#[test]
fn a_head_turned_to_the_right_has_its_nose_there() {
    let head = head();
    let nearest = |yaw: f32| {
        let picture = render(&head, &Identity::mean(&head), &View { yaw, ..View::default() }, 64);
        let samples = picture.samples.iter().enumerate().take(64 * 44);
        let depth = |at: usize| picture.samples[at].map_or(f32::INFINITY, |sample| sample.depth);
        samples.map(|(at, _)| at).min_by(|a, b| depth(*a).total_cmp(&depth(*b))).unwrap() % 64
    };
    assert!(nearest(40.0) > nearest(0.0) + 5 && nearest(-40.0) + 5 < nearest(0.0));
}

#[test]
fn what_is_known_of_pixels_fits_together() {
    let head = head();
    for number in 0..4 {
        let (view, _) = View::random(&mut Random::new(&[number]));
        let picture = render(&head, &Identity::numbered(&head, 5, number), &view, 48);
        for sample in picture.samples.iter().flatten() {
            let length: f32 = sample.normal.iter().map(|part| part * part).sum();
            assert!((length - 1.0).abs() < 1e-3 && sample.depth > 8.0 && sample.depth < 18.0);
            assert!((sample.weights.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            assert!(sample.albedo.iter().all(|value| (0.0..1.6).contains(value)), "{sample:?}");
        }
        // The corners are background.
        assert_eq!(picture.rgb.get_pixel(0, 0).0, view.background);
    }
}

/// The same on every machine.
#[test]
fn a_seed_gives_the_same_bytes() {
    let head = head();
    let drawn = || {
        let (view, _) = View::random(&mut Random::new(&[9]));
        render(&head, &Identity::numbered(&head, 7, 3), &view, 64).rgb.into_raw()
    };
    let (once, again) = (drawn(), drawn());
    assert_eq!(once, again);
    let sum =
        once.iter().fold(0u32, |sum, value| sum.wrapping_mul(31).wrapping_add(u32::from(*value)));
    assert_eq!(sum, 3_936_866_607, "the bytes are others than when this was written");
}

#[test]
fn a_damaged_head_is_refused_or_drawn() {
    let place = tempfile::tempdir().unwrap();
    let (file, good) = (place.path().join("head"), fs::read(HEAD).unwrap());
    let (view, _) = View::random(&mut Random::new(&[1]));
    let mut random = Random::new(&[2]);
    let mut drawn = 0;
    for number in 0..12 {
        let mut bad = good.clone();
        for _ in 0..10 {
            let at = random.uniform(0.0, bad.len() as f32) as usize;
            bad[at] = random.uniform(0.0, 256.0) as u8;
        }
        fs::write(&file, bad).unwrap();
        if let Ok(head) = Head::open(&file) {
            render(&head, &Identity::numbered(&head, 0, number), &view, 16);
            drawn += 1;
        }
    }
    assert!(drawn > 0);
}

#[test]
fn a_view_survives_its_list() {
    let (view, _) = View::random(&mut Random::new(&[4]));
    let text = serde_json::to_string(&view).unwrap();
    assert_eq!(serde_json::from_str::<View>(&text).unwrap(), view);
}

#[test]
fn the_metric_tells_people_apart() {
    let report = evaluated(&head(), &Protocol::default()).unwrap();
    println!("{report}");
    assert!(
        report.same > 0.7
            && report.different.abs() < 0.1
            && report.auc > 0.97
            && report.rank_1 > 0.9
    );
    let of = |what: &str| report.changed.iter().find(|(name, _)| *name == what).unwrap().1;
    for small in
        ["hard light from the side", "to 32 pixels and back", "blurred by 1 pixel", "noise of 0.05"]
    {
        assert!(of(small) > 0.8, "{small}");
    }
    assert!(of("to 32 pixels and back") > of("to 24 pixels and back"));
    assert!(of("to 24 pixels and back") > of("to 16 pixels and back"));
    assert!(of("blurred by 1 pixel") > of("blurred by 2 pixels"));
    for half in ["half another person", "half another person, to the other"] {
        assert!((0.4..0.9).contains(&of(half)) && of(half) > of("another person") + 0.2);
    }
    assert!(of("gray").abs() < 0.25 && of("another person") < 0.4);
    assert!(report.light < 15.0);
}

#[test]
fn too_few_people_are_no_report() {
    let few = Protocol { learned: 1, unseen: 1, views: 1, ..Protocol::default() };
    assert!(evaluated(&head(), &few).is_none());
}

/// Neither can be asked for as many as would reach the numbers of pairs, and those of captions have streams of another kind.
#[test]
fn people_of_pairs_are_in_no_other_folder() {
    let more = (MOST_PEOPLE + 1).to_string();
    for folder in ["captions", "views"] {
        assert!(refusal(&[folder, "/tmp/x", "--identities", &more]).contains(&more));
    }
    let drawn = |key: &[u64]| {
        let mut random = Random::new(key);
        [(); 4].map(|()| random.uniform(0.0, 1.0).to_bits())
    };
    let asked = Pairing { people: 12, references: 2, seed: 3, ..Pairing::default() };
    let pairs = asked.pairs();
    let captioned = |part: u64| (0..2000).map(move |number| drawn(&[3, part, number]));
    let captioned: BTreeSet<_> = (0..2).flat_map(captioned).collect();
    for number in pairs.iter().flat_map(|pair| [pair.identity, pair.reference_identity]) {
        assert!((MOST_PEOPLE..2 * MOST_PEOPLE).contains(&number));
        assert!(!captioned.contains(&drawn(&[3, number])));
    }
}

fn heads(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_heads")).args(arguments).output().unwrap()
}

fn refusal(arguments: &[&str]) -> String {
    let output = heads(arguments);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
    };
    let mut files: Vec<_> = entries.map(read).collect();
    files.sort();
    files
}

#[test]
fn a_folder_of_views_can_be_drawn_again() {
    let place = tempfile::tempdir().unwrap();
    let folders = ["a", "b"].map(|name| place.path().join(name));
    for folder in &folders {
        let folder = folder.to_str().unwrap();
        assert!(
            heads(&[
                "views",
                folder,
                "--identities",
                "3",
                "--views",
                "2",
                "--size",
                "32",
                "--seed",
                "5"
            ])
            .status
            .success()
        );
    }
    let [a, b] = folders.each_ref().map(|folder| files(folder));
    assert!(a == b && a.len() == 7);
    let head = head();
    for line in fs::read_to_string(folders[0].join("metadata.jsonl")).unwrap().lines() {
        let told: serde_json::Value = serde_json::from_str(line).unwrap();
        let view: View = serde_json::from_str(line).unwrap();
        let person = Identity::numbered(&head, 5, told["identity"].as_u64().unwrap());
        let stored = image::open(folders[0].join(told["file_name"].as_str().unwrap())).unwrap();
        assert!(stored.into_rgb8() == render(&head, &person, &view, 32).rgb);
    }
}

#[test]
fn a_folder_of_captions_has_its_two_parts() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("made");
    assert!(
        heads(&["captions", folder.to_str().unwrap(), "--identities", "2", "--views", "1"])
            .status
            .success()
    );
    assert_eq!(files(&folder.join("train")).len(), 3);
    assert_eq!(files(&folder.join("held_out")).len(), 401);
    let list = fs::read_to_string(folder.join("train/metadata.jsonl")).unwrap();
    let told: serde_json::Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    assert_eq!(told["text"].as_array().unwrap().len(), 4);
    assert!(told["prompt"].as_str().unwrap().starts_with("portrait of "));
}

/// Makes a few small pairs.
fn make_pairs(folder: &Path, more: &[&str]) {
    let folder = folder.to_str().unwrap();
    let few = ["pairs", folder, "--people", "3", "--size", "32"];
    assert!(heads(&[&few, more].concat()).status.success());
}

/// The pairs of a list.
fn listed(folder: &Path) -> Vec<Pair> {
    let list = fs::read_to_string(folder.join("pairs.jsonl")).unwrap();
    list.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_folder_of_pairs_can_be_drawn_again() {
    let place = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| place.path().join(name));
    for (folder, seed) in [(&a, "5"), (&b, "5"), (&c, "6")] {
        make_pairs(folder, &["--references", "2", "--seed", seed]);
    }
    let list = |folder: &Path| fs::read_to_string(folder.join("pairs.jsonl")).unwrap();
    assert!(list(&a) == list(&b) && list(&a) != list(&c));
    assert_eq!(fs::read_dir(&a).unwrap().count(), 7);
    let head = head();
    for (number, pair) in listed(&a).iter().enumerate() {
        let below = format!("{number:03}");
        let made = files(&a.join(&below));
        assert!(
            made.len() == 4 && made == files(&b.join(&below)) && made != files(&c.join(&below))
        );
        assert_eq!(pair.output, format!("{below}/portrait.png"));
        let stored = |file: &str| image::open(a.join(file)).unwrap();
        let drawn = pair.pictures(&head);
        for (file, drawn) in [&pair.profile, &pair.reference, &pair.truth].iter().zip(&drawn) {
            assert!(stored(file).into_rgb8() == drawn.rgb, "{file}");
        }
        assert!(stored(&pair.face).into_luma8() == face_mask(&head, &drawn[1]));
    }
}

/// More of one kind is no other of any.
#[test]
fn photos_and_rivals_change_no_other_file() {
    let place = tempfile::tempdir().unwrap();
    let [plain, few, many] = ["plain", "few", "many"].map(|name| place.path().join(name));
    make_pairs(&plain, &["--references", "1"]);
    make_pairs(&few, &["--references", "1", "--photos", "2", "--pasted"]);
    make_pairs(&many, &["--references", "2", "--photos", "3"]);
    for (number, pair) in listed(&few).iter().enumerate() {
        let with = files(&few.join(format!("{number:03}")));
        let without = files(&plain.join(format!("{number:03}")));
        let more = files(&many.join(format!("{:03}", 2 * number)));
        let rivals = with.iter().filter(|file| !without.contains(file)).map(|(name, _)| name);
        assert_eq!(rivals.collect::<Vec<_>>(), ["light.png", "naive.png", "tone.png"]);
        assert!(more == without && more.iter().all(|file| with.contains(file)));
        let folder = format!("photos/{number:03}");
        assert_eq!(pair.photos.as_deref(), Some(folder.as_str()));
        let [few, many] = [&few, &many].map(|place| files(&place.join(&folder)));
        assert!(few.len() == 2 && many.len() == 3 && many[..2] == few);
        assert!(many[0].0 == "0.png" && many[0].1 != many[1].1 && many[1].1 != many[2].1);
    }
    let photos = |folder: &Path| folder.join("photos").exists();
    assert!(!photos(&plain) && listed(&plain).iter().all(|pair| pair.photos.is_none()));
    assert_eq!(listed(&many)[0].photos, listed(&many)[1].photos);
}

/// The pictures are small enough for the limit, the list is not.
#[cfg(unix)]
#[test]
fn pairs_that_cannot_be_written_leave_nothing() {
    let place = tempfile::tempdir().unwrap();
    let limited = r#"trap "" XFSZ; ulimit -f 8; exec "$0" pairs "$1" --people 4 --references 8 --photos 2 --size 8 --pasted"#;
    let mut shell = Command::new("sh");
    let output =
        shell.args(["-c", limited, env!("CARGO_BIN_EXE_heads")]).arg(place.path()).output();
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("pairs.jsonl"), "{said}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

fn told(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn portraits_are_scored_without_those_that_are_missing() {
    let place = tempfile::tempdir().unwrap();
    make_pairs(place.path(), &["--references", "2", "--seed", "7"]);
    let folder = place.path().to_str().unwrap();
    let against_itself =
        ["score", folder, "--output", "truth.png", "--against", "truth.png", "--json"];
    let output = heads(&against_itself);
    assert!(output.status.success());
    let whole = told(&output);
    assert!(whole["pictures"] == 6 && whole["people"] == 3 && whole["luminance"]["mean"] == 0.0);
    assert_eq!(whole["by_yaw_gap"].as_array().unwrap().len(), 3);
    let zero = serde_json::json!({ "mean": 0.0, "low": 0.0, "high": 0.0 });
    let against = whole["against"].as_object().unwrap();
    for measure in ["sim_a", "sim_b", "rank_1", "luminance", "lit_side", "light_direction"] {
        assert_eq!(against[measure], zero, "{measure}");
    }
    for measure in ["chroma", "seam", "background"] {
        assert_eq!(against[measure], zero, "{measure}");
    }

    for at in [0, 1, 2, 3, 5] {
        let at = place.path().join(format!("{at:03}"));
        fs::copy(at.join("truth.png"), at.join("portrait.png")).unwrap();
    }
    RgbImage::new(48, 32).save(place.path().join("003/portrait.png")).unwrap();
    let output = heads(&["score", folder, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.contains("2 of 6") && said.contains("004/portrait.png"), "{said}");
    assert!(said.contains("003/portrait.png: is of 48x32 pixels, expected 32x32"), "{said}");
    let some = told(&output);
    assert!(some["pictures"] == 4 && some["against"].is_null());
    assert_eq!(some["left_out"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_wrong_is_named() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "text").unwrap();
    let (full, file) = (place.path().to_str().unwrap(), file.to_str().unwrap());
    let said = refusal(&["captions", full]);
    assert!(said.contains(full) && said.contains("empty"), "{said}");
    let said = refusal(&["views", file]);
    assert!(said.contains(file), "{said}");
    let said = refusal(&["views", &format!("{file}/below")]);
    assert!(said.contains(file), "{said}");
    let said = refusal(&["pairs", full]);
    assert!(said.contains(full) && said.contains("empty"), "{said}");
    assert!(refusal(&["score", full]).contains("pairs.jsonl"));
    for (text, reason) in [("", "no pairs"), ("{}\n", "line 1")] {
        fs::write(place.path().join("pairs.jsonl"), text).unwrap();
        let said = refusal(&["score", full]);
        assert!(said.contains("pairs.jsonl") && said.contains(reason), "{said}");
    }
    for head in [file, "/no/such/head"] {
        let said = refusal(&["--head", head, "metric"]);
        assert!(said.contains(head), "{said}");
    }
    assert!(refusal(&["views", "/tmp/x", "--size", "100000"]).contains("100000"));
    let said = refusal(&["pairs", "/tmp/x", "--photos", "1001"]);
    assert!(said.contains("--photos") && said.contains("1001") && said.contains("1000"), "{said}");
    for yaw in ["61", "NaN", "wide"] {
        let said = refusal(&["pairs", "/tmp/x", "--yaw", yaw]);
        assert!(said.contains("--yaw") && said.contains(yaw) && said.contains("60"), "{said}");
    }
}
