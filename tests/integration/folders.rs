//! Folders of pictures as people have them.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use image::{RgbImage, Rgba, RgbaImage};
use pyrograph::Error;
use pyrograph::data::{Background, Dataset, Notice, Reading, Skip, first_size};
use pyrograph_weights::Checkpoint;

use crate::command::TestCommand;
use crate::util::{assets, copy_folder, root, write_pictures};

/// Writes a picture of one colour, and the folders that it is in.
fn picture(path: &Path, red: u8) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("created");
    let picture = RgbImage::from_pixel(8, 8, image::Rgb([red, 0, 0]));
    // The name need not say the format.
    picture.save_with_format(path, image::ImageFormat::Png).expect("written");
}

fn open(folder: &Path) -> Result<Dataset, Error> {
    Dataset::open(folder, [8, 8], Background::default())
}

fn refused(folder: &Path) -> String {
    open(folder).expect_err("a folder that cannot be used").to_string()
}

/// How many things of a kind were not read.
fn skipped(data: &Dataset, kind: Skip) -> usize {
    let of_kind = data.notices().iter().map(|notice| match notice {
        Notice::Skipped { why, what } if *why == kind => what.len(),
        _ => 0,
    });
    of_kind.sum()
}

/// Names of the classes, each as often as it has pictures.
fn labels(data: &Dataset) -> Vec<&str> {
    (0..data.len()).map(|index| data.classes()[data.label(index)].as_str()).collect()
}

#[test]
fn pictures_of_every_kind_have_the_pixels_that_other_programs_see() {
    let fixtures = root().join("tests/fixtures/pictures");
    let expected = Checkpoint::open(fixtures.join("expected.safetensors")).expect("pixels");
    assert!(expected.tensors().len() > 10);
    for name in expected.tensors().keys() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("class")).expect("created");
        fs::copy(fixtures.join(name), folder.path().join("class").join(name)).expect("copied");
        let (pixels, shape) = expected.read_f32(name).expect(name);
        let size = [shape[0], shape[1]];
        assert_eq!(first_size(folder.path()).expect("a picture"), size, "{name}");
        // Transparent pixels show the background, here black.
        let data = Dataset::open(folder.path(), size, Background(vec![[0; 3]])).expect(name);
        let found = data.pixels(&[0], &[false], &[0], &Device::flex());
        let found: Vec<f32> = found.into_data().try_to_vec().expect("floats");
        let plane = size[0] * size[1];
        let worst = (0..plane).flat_map(|at| (0..3).map(move |channel| (at, channel)));
        let worst = worst.map(|(at, channel)| {
            let of = |channel: usize| pixels[at * 4 + channel];
            let found = (found[channel * plane + at] + 1.0) * 127.5;
            (found - of(channel) * of(3) / 255.0).abs()
        });
        let worst = worst.fold(0.0, f32::max);
        // Decoders of JPEG differ by rounding, those of CMYK by a formula.
        let allowed = if name.ends_with("jpg") { 6.0 } else { 1.0 };
        assert!(worst <= allowed, "{name} differs by {worst}");
    }
}

#[test]
fn clutter_is_skipped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    picture(&at("cat/1.png"), 1);
    picture(&at("cat/deep/er/2.PNG"), 2);
    picture(&at("dog/3.Jpeg"), 3);
    picture(&at("dog/4.webp"), 4);
    picture(&at("loose.png"), 5);
    for name in ["cat/._1.png", ".DS_Store", "cat/Thumbs.db", "dog/desktop.ini"] {
        fs::write(at(name), b"clutter").expect("written");
    }
    picture(&at("__MACOSX/cat/1.png"), 6);
    picture(&at(".ipynb_checkpoints/1.png"), 7);
    for name in ["README.md", "cat/notes.txt", "dog/3.json"] {
        fs::write(at(name), b"text").expect("written");
    }
    fs::write(at("dog/moving.gif"), b"GIF89a").expect("written");
    fs::create_dir(at("empty")).expect("created");
    let data = open(folder.path()).expect("four pictures");
    assert_eq!(labels(&data), ["cat", "cat", "dog", "dog"]);
    let count = |kind| skipped(&data, kind);
    assert_eq!(count(Skip::Clutter), 6);
    assert_eq!(count(Skip::Other), 3);
    assert_eq!([Skip::Format, Skip::Loose, Skip::Empty].map(count), [1; 3]);
    let said: Vec<String> = data.notices().iter().map(ToString::to_string).collect();
    let files = "skipped 3 files that are no pictures: README.md, cat/notes.txt, dog/3.json";
    assert!(said.iter().any(|line| line == files), "{said:?}");
    let reported = TestCommand::new(&folder, ["train", "class", "-d", ".", "--steps", "1"])
        .settings(&["model.size=[8,8]", "model.patch=8", "model.hidden=8", "model.depth=1"])
        .settings(&["model.heads=1", "sample_every=0", "batch=4"])
        .on_cpu()
        .reported();
    assert!(reported.contains(files), "{reported}");
}

#[test]
fn numbered_classes_have_the_ids_that_they_are_called_by() {
    let folder = tempfile::tempdir().expect("a folder");
    let names: Vec<String> = (0..12).map(|i| i.to_string()).collect();
    for name in &names {
        picture(&folder.path().join("data").join(name).join("1.png"), 9);
    }
    picture(&folder.path().join("data/apple/1.png"), 9);
    let data = open(&folder.path().join("data")).expect("thirteen pictures");
    assert_eq!(data.classes()[..12], names[..]);
    assert_eq!(data.classes()[12], "apple");
    let train = ["train", "class", "-d", "data", "-o", "run", "--steps", "1", "--batch", "2"];
    TestCommand::new(&folder, train)
        .settings(&["model.size=[8,8]", "model.patch=8", "model.hidden=8", "model.depth=1"])
        .settings(&["model.heads=1", "sample_every=0"])
        .on_cpu()
        .succeeded();
    for (class, name) in [("2", "2"), ("10", "10"), ("id:12", "apple")] {
        let ask = ["generate", "class", "-m", "run/model", "--steps", "1", "--class", class];
        TestCommand::new(&folder, ask).args(["-o", "{class}.png"]).on_cpu().ended();
        let made = ["generate", "class", "-m", "run/model", "--steps", "2", "--class", class];
        TestCommand::new(&folder, made).args(["-o", "c-{class}.png"]).on_cpu().succeeded();
        assert!(folder.path().join(format!("c-{name}.png")).is_file(), "{class}");
    }
}

#[test]
fn lists_name_pictures_in_many_ways() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    picture(&at("a/1.png"), 1);
    picture(&at("a/b c/2.png"), 2);
    picture(&at("3"), 3);
    picture(&at("unlisted.png"), 4);
    let same: [(&str, &[u8], &[&str]); 6] = [
        (
            "metadata.jsonl",
            b"\xEF\xBB\xBF{\"file_name\": \"./a/1.png\", \"label\": 10}\n\n{\"file_name\": \"a\\\\b c\\\\2.png\", \"label\": 9}\r\n{\"file_name\": \"3\", \"label\": 9}",
            &["9", "10", "9"],
        ),
        (
            "metadata.jsonl",
            br#"{"file": "a/1.png", "class": "x", "text": "a caption"}
{"file": "a/b c/2.png", "class": " y "}
{"file": "3", "class": "x"}"#,
            &["x", "x", "y"],
        ),
        (
            "metadata.csv",
            b"\xEF\xBB\xBFfile_name,text,label\r\na/1.png,\"one, two\",x\r\n./a/b c/2.png,,y\r\n3,,x\r\n",
            &["x", "x", "y"],
        ),
        ("metadata.csv", b"label;file_name\n1;a\\1.png\n0;a\\b c\\2.png\n0;3\n", &["0", "1", "0"]),
        (
            "dataset.json",
            br#"{"labels": [["a/1.png", 2], ["a\\b c\\2.png", 11], ["3", 2]]}"#,
            &["2", "2", "11"],
        ),
        ("dataset.json", br#"{"labels": [["a/1.png", "x"], ["a/b c/2.png", "y"], ["3", "x"]]}"#, &["x", "x", "y"]),
    ];
    for (name, text, expected) in same {
        fs::write(at(name), text).expect("written");
        let data = open(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(labels(&data), expected, "{name}");
        assert_eq!(skipped(&data, Skip::Unlisted), 1, "{name}");
        fs::remove_file(at(name)).expect("removed");
    }
    // UTF-16, as some editors write it.
    let text = r#"{"file_name": "3", "label": "é"}"#;
    let wide = text.encode_utf16().flat_map(u16::to_le_bytes);
    fs::write(at("metadata.jsonl"), [0xFF, 0xFE].into_iter().chain(wide).collect::<Vec<_>>())
        .expect("written");
    assert_eq!(labels(&open(folder.path()).expect("one picture")), ["é"]);
    fs::write(at("metadata.csv"), "file_name,label\n3,x\n").expect("written");
    assert!(refused(folder.path()).contains("two lists"));
}

#[test]
fn mistakes_in_lists_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    picture(&folder.path().join("1.png"), 1);
    let mistakes = [
        ("metadata.jsonl", r#"{"file_name": "1.png", "text": "a cat"}"#, "Captions"),
        ("metadata.jsonl", r#"{"file_name": "1.png", "label": null}"#, "the label is null"),
        ("metadata.jsonl", r#"{"file_name": "1.png", "label": [1]}"#, "[1]"),
        ("metadata.jsonl", r#"{"file_name": "1.png", "label": " "}"#, "empty"),
        ("metadata.jsonl", r#"{"label": "x"}"#, "file_name"),
        ("metadata.jsonl", r#"{"file_name": "../1.png", "label": "x"}"#, "leaves"),
        ("metadata.jsonl", r#"{"file_name": "..\\1.png", "label": "x"}"#, "leaves"),
        ("metadata.jsonl", r#"{"file_name": "/1.png", "label": "x"}"#, "leaves"),
        ("metadata.jsonl", r#"{"file_name": ".", "label": "x"}"#, "leaves"),
        ("metadata.jsonl", r#"{"file_name": "2.png", "label": "x"}"#, "2.png"),
        ("metadata.jsonl", "not json", "line 1"),
        (
            "metadata.jsonl",
            "{\"file_name\": \"1.png\", \"label\": 1}\n{\"file_name\": \"./1.png\", \"label\": 1}",
            "line 2: `./1.png` is listed twice",
        ),
        ("metadata.csv", "file_name,text\n1.png,a cat\n", "Captions"),
        ("metadata.csv", "picture,label\n1.png,x\n", "file_name"),
        ("metadata.csv", "file_name,label\n1.png\n", "line 2: 1 columns, expected 2"),
        ("dataset.json", r#"{"labels": null}"#, "no classes"),
        ("dataset.json", r#"{"labels": [["1.png"]]}"#, "dataset.json"),
    ];
    for (name, text, part) in mistakes {
        let list = folder.path().join(name);
        fs::write(&list, text).expect("written");
        let said = refused(folder.path());
        assert!(said.contains(part), "{name}, {text}: {said}");
        fs::remove_file(list).expect("removed");
    }
}

#[test]
fn damaged_pictures_are_listed_at_once_or_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    for i in 0..14 {
        picture(&folder.path().join(format!("data/a/{i:02}.png")), i);
        picture(&folder.path().join(format!("data/gone/{i:02}.png")), i);
    }
    let data = folder.path().join("data");
    let whole = fs::read(data.join("a/00.png")).expect("a picture");
    for i in 0..13 {
        fs::write(data.join(format!("a/{i:02}.png")), &whole[..whole.len() - 20]).expect("written");
    }
    for i in 0..14 {
        fs::write(data.join(format!("gone/{i:02}.png")), b"").expect("written");
    }
    let said = refused(&data);
    assert!(said.contains("27 pictures cannot be read") && said.contains("and 17 more"), "{said}");
    assert!(said.contains("a/00.png") && said.lines().count() == 12, "{said}");
    let reading = |folder: &Path| {
        let skip = Reading { size: [8, 8], skip_damaged: true, ..Reading::default() };
        Dataset::read(folder, skip)
    };
    let kept = reading(&data).expect("one picture");
    assert_eq!(labels(&kept), ["a"]);
    assert_eq!(kept.classes(), ["a"]);
    assert_eq!(skipped(&kept, Skip::Damaged), 27);
    let colour: f32 = kept
        .pixels(&[0], &[false], &[0], &Device::flex())
        .slice([0..1, 0..1, 0..1, 0..1])
        .into_scalar();
    assert!((colour - (13.0 / 127.5 - 1.0)).abs() < 1e-6, "{colour}");
    assert!(reading(&data.join("gone")).is_err(), "nothing is left");

    let train = ["train", "class", "-d", "data", "--steps", "1", "--batch", "2"];
    let command = || {
        TestCommand::new(&folder, train)
            .settings(&["model.size=[8,8]", "model.patch=8", "model.hidden=8", "model.depth=1"])
            .settings(&["model.heads=1", "sample_every=0"])
            .on_cpu()
    };
    assert!(command().failed().contains("--skip-damaged"));
    let said = command().args(["--skip-damaged"]).reported();
    assert!(said.contains("27 damaged pictures") && said.contains("1 image in 1 class"), "{said}");
    // Where all are damaged, leaving them out is no way.
    let gone = ["train", "class", "-d", "data/gone", "-o", "other", "--skip-damaged"];
    let said = TestCommand::new(&folder, gone).on_cpu().failed();
    assert!(said.contains("14 pictures cannot") && !said.contains("--skip-damaged"), "{said}");
    let judged = ["eval", "--reference", "data/gone", "--images", "data/gone"];
    let said = TestCommand::new(&folder, judged).on_cpu().failed();
    assert!(said.contains("14 pictures cannot") && said.contains("00.png"), "{said}");
}

#[test]
fn names_that_are_one_or_look_like_one_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    picture(&folder.path().join("case/Cat/1.png"), 1);
    picture(&folder.path().join("case/cat/1.png"), 2);
    let data = open(&folder.path().join("case")).expect("two classes");
    assert_eq!(data.classes(), ["Cat", "cat"]);
    assert!(data.notices().iter().any(|notice| matches!(notice, Notice::Alike { .. })));

    picture(&folder.path().join("blank/a/1.png"), 1);
    picture(&folder.path().join("blank/ a/1.png"), 2);
    assert_eq!(open(&folder.path().join("blank")).expect("two classes").classes(), [" a", "a"]);

    picture(&folder.path().join("form/caf\u{e9}/1.png"), 1);
    picture(&folder.path().join("form/cafe\u{301}/1.png"), 2);
    assert!(refused(&folder.path().join("form")).contains("two ways"));

    picture(&folder.path().join("parts/train/cat/1.png"), 1);
    picture(&folder.path().join("parts/Test/cat/1.png"), 1);
    assert!(refused(&folder.path().join("parts")).contains("parts of a data set"));
    // A class may well be called so.
    picture(&folder.path().join("parts/car/1.png"), 1);
    assert_eq!(open(&folder.path().join("parts")).expect("three classes").classes().len(), 3);

    let single = folder.path().join("parts/car");
    assert_eq!(open(&single).expect("one class").classes(), ["car"]);
    assert!(refused(&folder.path().join("nowhere")).contains("nowhere"));
    fs::create_dir(folder.path().join("nothing")).expect("created");
    assert!(refused(&folder.path().join("nothing")).contains("no images"));
}

#[cfg(unix)]
#[test]
fn links_are_followed_once_and_names_may_be_any_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    picture(&at("elsewhere/1.png"), 1);
    picture(&at("data/cat/2.png"), 2);
    picture(&at("data/cat").join(OsStr::from_bytes(b"caf\xe9.png")), 3);
    symlink(at("elsewhere"), at("data/dog")).expect("linked");
    symlink("../cat", at("data/cat/again")).expect("linked");
    symlink("..", at("data/cat/up")).expect("linked");
    symlink("nothing", at("data/cat/broken.png")).expect("linked");
    let pipe = std::process::Command::new("mkfifo").arg(at("data/cat/pipe.png")).status();
    assert!(pipe.expect("mkfifo runs").success());
    let data = open(&at("data")).expect("three pictures");
    assert_eq!(labels(&data), ["cat", "cat", "dog"]);
    assert_eq!((skipped(&data, Skip::Again), skipped(&data, Skip::Special)), (2, 2));

    picture(&at("data").join(OsStr::from_bytes(b"b\xe4r")).join("1.png"), 4);
    assert!(refused(&at("data")).contains("UTF-8"));
    let skip = Reading { size: [8, 8], skip_damaged: true, ..Reading::default() };
    let data = Dataset::read(&at("data"), skip).expect("the others");
    assert_eq!((labels(&data).len(), skipped(&data, Skip::Unnamed)), (3, 1));
}

/// What Git LFS has not fetched, wherever it is read.
#[test]
fn pointers_of_git_lfs_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("a")).expect("created");
    fs::write(data.join("a/1.png"), pointer).expect("written");
    assert!(refused(&data).contains("git lfs pull"));
    fs::write(data.join("metadata.jsonl"), pointer).expect("written");
    assert!(refused(&data).contains("git lfs pull"));
    let model = folder.path().join("model");
    for file in ["model.json", "dit.safetensors"] {
        let _ = fs::remove_dir_all(&model);
        copy_folder(&assets().join("models/emoji-class"), &model);
        fs::write(model.join(file), pointer).expect("written");
        let error = pyrograph::model::recognise(&model).map(drop).expect_err(file).to_string();
        assert!(error.contains("git lfs pull") && error.contains(file), "{error}");
    }
}

/// A profile of colours that is a thousand times as large as its file is not read.
#[cfg(target_os = "linux")]
#[test]
fn what_stands_beside_the_pixels_of_a_png_is_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut info = png::Info::with_size(4, 4);
    (info.color_type, info.icc_profile) = (png::ColorType::Rgb, Some(vec![0; 256 << 20].into()));
    let file = fs::File::create(folder.path().join("a.png")).expect("created");
    let encoder = png::Encoder::with_info(file, info).expect("a picture");
    let mut writer = encoder.write_header().expect("written");
    writer.write_image_data(&[9; 48]).expect("written");
    writer.finish().expect("written");
    // 62 MB without a start picture.
    let limited =
        "ulimit -d 200000; exec \"$0\" generate class --device cpu -t 1 -c cat --steps 2 -i a.png";
    let program = env!("CARGO_BIN_EXE_pyrograph");
    let ended = std::process::Command::new("sh")
        .args(["-c", limited, program])
        .current_dir(&folder)
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
}

#[test]
fn a_start_picture_is_turned_upright() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = root().join("tests/fixtures/pictures/turned.png");
    let start = ["generate", "class", "--class", "cat", "--seed", "1", "--strength", "0.05"];
    TestCommand::new(&folder, start).args(["-o", "out.png", "-i"]).args([&file]).succeeded();
    let made = image::open(folder.path().join("out.png")).expect("a picture").into_rgb8();
    let stored = image::open(&file).expect("a picture").into_rgb8();
    let upright = image::imageops::rotate90(&stored);
    // The picture is cut to a square, so that its quarters can be compared.
    let quarter = |picture: &RgbImage, right: bool, below: bool| -> f64 {
        let side = picture.width().min(picture.height());
        let left = (picture.width() - side) / 2 + if right { side / 2 } else { 0 };
        let top = (picture.height() - side) / 2 + if below { side / 2 } else { 0 };
        let part = image::imageops::crop_imm(picture, left, top, side / 2, side / 2).to_image();
        part.pixels().map(|pixel| f64::from(pixel.0[0])).sum::<f64>() / f64::from(side * side / 4)
    };
    let apart = |other: &RgbImage| -> f64 {
        let quarters = [(false, false), (true, false), (false, true), (true, true)];
        let far =
            |(right, below)| (quarter(&made, right, below) - quarter(other, right, below)).abs();
        quarters.into_iter().map(far).sum()
    };
    assert!(apart(&upright) < 0.25 * apart(&stored), "{} {}", apart(&upright), apart(&stored));
}

#[test]
fn sizes_that_take_too_much_are_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    write_pictures(folder.path(), &["a", "b"], |_, _, _| [1, 2, 3, 255]);
    let refused = |size| Dataset::open(folder.path(), size, Background::default()).map(drop);
    for size in [[0, 8], [8, 0], [16_385, 8], [usize::MAX, usize::MAX]] {
        assert!(matches!(refused(size), Err(Error::Size { .. })), "{size:?}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    RgbaImage::from_pixel(4, 4, Rgba([1, 2, 3, 4]))
        .save(folder.path().join("1.png"))
        .expect("written");
    let data = open(folder.path()).expect("one picture");
    assert_eq!(data.len(), 1);
}
