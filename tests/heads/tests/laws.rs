//! Laws of pictures, folders and the metric.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use image::RgbImage;
use pyrograph_heads::{
    HEAD, Head, Identity, Judge, Light, MOST_PEOPLE, Measure, Pair, Pairing, Protocol, Random,
    Scores, View, evaluated, render,
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

/// Pairs, and who judges portraits of them.
struct Portraits {
    head: &'static Head,
    pairs: Vec<Pair>,
    judge: Judge<'static>,
}

impl Portraits {
    fn get() -> &'static Self {
        static PORTRAITS: OnceLock<Portraits> = OnceLock::new();
        PORTRAITS.get_or_init(|| {
            let head: &Head = Box::leak(Box::new(head()));
            let (tilted, expressions) = (false, false);
            let asked =
                Pairing { people: 12, references: 2, size: 64, tilted, expressions, seed: 3 };
            let pairs = asked.pairs();
            let judge = Judge::new(head, &pairs).unwrap();
            Self { head, pairs, judge }
        })
    }

    /// The means of one picture of each pair.
    fn scored(&self, made: impl Fn(&Pair) -> RgbImage) -> impl Fn(Measure) -> f64 {
        let measured: Vec<_> =
            self.pairs.iter().map(|pair| Some(self.judge.measured(pair, &made(pair)))).collect();
        let means = Scores::new(&self.pairs, &measured, None, 10).all.means;
        move |measure| means[&measure].mean
    }

    fn drawn(&self, which: usize) -> impl Fn(Measure) -> f64 {
        self.scored(move |pair| pair.pictures(self.head)[which].rgb.clone())
    }
}

#[test]
fn the_truth_is_the_best_portrait() {
    let truth = Portraits::get().drawn(2);
    assert!(truth(Measure::SimA) > 0.75 && truth(Measure::Rank1) > 0.85);
    assert!(truth(Measure::SimB).abs() < 0.2 && truth(Measure::LitSide) == 1.0);
    for measure in [Measure::Luminance, Measure::LightDirection, Measure::Chroma] {
        assert_eq!(truth(measure), 0.0, "{measure}");
    }
}

#[test]
fn a_reference_is_another_person_in_the_right_light() {
    let reference = Portraits::get().drawn(1);
    assert!(reference(Measure::SimA) < 0.25 && reference(Measure::Rank1) == 0.0);
    assert!(reference(Measure::SimB) > 0.999 && reference(Measure::LitSide) > 0.9);
    assert!(reference(Measure::Luminance) > 0.03 && reference(Measure::Chroma) > 0.005);
}

#[test]
fn a_profile_is_in_the_wrong_light() {
    let profile = Portraits::get().drawn(0);
    assert!(profile(Measure::Luminance) > 0.05 && profile(Measure::LightDirection) > 30.0);
    assert!((0.2..0.8).contains(&profile(Measure::LitSide)));
}

#[test]
fn a_profile_is_liker_the_nearer_the_pose() {
    let portraits = Portraits::get();
    let turned = |by: f32| {
        let likeness = portraits.pairs.iter().step_by(2).map(|pair| {
            let mut asked = pair.clone();
            let front = &pair.profile_view;
            asked.reference_view = View { yaw: front.yaw + by, ..front.clone() };
            let [profile, ..] = asked.pictures(portraits.head);
            portraits.judge.measured(&asked, &profile.rgb)[&Measure::SimA]
        });
        likeness.sum::<f64>() / 12.0
    };
    let [same, near, far] = [0.0, 8.0, 30.0].map(turned);
    println!("{same} {near} {far}");
    assert!(same > 0.85 && same > near + 0.1 && near > far + 0.1);
}

#[test]
fn another_person_in_the_truth_is_less_alike() {
    let portraits = Portraits::get();
    let truth = portraits.drawn(2);
    let swapped = portraits.scored(|pair| {
        let other = MOST_PEOPLE + (pair.identity - MOST_PEOPLE + 1) % 12;
        let other = Identity::numbered(portraits.head, pair.seed, other);
        render(portraits.head, &other, &pair.reference_view, 64).rgb
    });
    assert!(swapped(Measure::SimA) < truth(Measure::SimA) - 0.5);
    // So is light, as skins differ, but not where it comes from.
    assert!(swapped(Measure::Luminance) > 0.03 && swapped(Measure::LitSide) > 0.9);
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
    let pairs = &Portraits::get().pairs;
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
fn make_pairs(folder: &Path, seed: &str) {
    let folder = folder.to_str().unwrap();
    let few = ["--people", "3", "--references", "2", "--size", "32", "--seed", seed];
    assert!(heads(&[&["pairs", folder][..], &few].concat()).status.success());
}

#[test]
fn a_folder_of_pairs_can_be_drawn_again() {
    let place = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| place.path().join(name));
    make_pairs(&a, "5");
    make_pairs(&b, "5");
    make_pairs(&c, "6");
    let list = |folder: &Path| fs::read_to_string(folder.join("pairs.jsonl")).unwrap();
    assert!(list(&a) == list(&b) && list(&a) != list(&c));
    assert_eq!(fs::read_dir(&a).unwrap().count(), 7);
    let head = head();
    for (number, line) in list(&a).lines().enumerate() {
        let below = format!("{number:03}");
        let made = files(&a.join(&below));
        assert!(
            made.len() == 3 && made == files(&b.join(&below)) && made != files(&c.join(&below))
        );
        let pair: Pair = serde_json::from_str(line).unwrap();
        assert_eq!(pair.output, format!("{below}/portrait.png"));
        let drawn = pair.pictures(&head);
        for (file, drawn) in [&pair.profile, &pair.reference, &pair.truth].iter().zip(drawn) {
            assert!(image::open(a.join(file)).unwrap().into_rgb8() == drawn.rgb, "{file}");
        }
    }
}

/// The pictures are small enough for the limit, the list is not.
#[cfg(unix)]
#[test]
fn pairs_that_cannot_be_written_leave_nothing() {
    let place = tempfile::tempdir().unwrap();
    let limited =
        r#"trap "" XFSZ; ulimit -f 8; exec "$0" pairs "$1" --people 4 --references 8 --size 8"#;
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
    make_pairs(place.path(), "7");
    let folder = place.path().to_str().unwrap();
    let against_itself =
        ["score", folder, "--output", "truth.png", "--against", "truth.png", "--json"];
    let output = heads(&against_itself);
    assert!(output.status.success());
    let whole = told(&output);
    assert!(whole["pictures"] == 6 && whole["people"] == 3 && whole["luminance"]["mean"] == 0.0);
    assert_eq!(whole["by_yaw_gap"].as_array().unwrap().len(), 3);
    let zero = serde_json::json!({ "mean": 0.0, "low": 0.0, "high": 0.0 });
    for measure in
        ["sim_a", "sim_b", "rank_1", "luminance", "lit_side", "light_direction", "chroma"]
    {
        assert_eq!(whole["against"][measure], zero, "{measure}");
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
}
