//! Texts and records in pictures of all kinds.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::OnceLock;

use proptest::prelude::*;
use pyrograph_engine::diffusion::{Churn, GuidedChannels, Sampler, Spacing};

use super::*;
use crate::image::write_image;
use crate::patches::PatchPlan;
use crate::request::Guidance;
use crate::task::ClassTask;
use crate::{ClassPipeline, DeviceChoice, OpenOptions};

#[test]
fn texts_survive_a_round_trip() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.png");
    let picture = image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([x as u8, y as u8, 0]));
    let texts: Vec<(String, String)> = [
        ("parameters", "cat\nSteps: 20".to_owned()),
        ("latin", "naïve \"quotes\"\nand lines".to_owned()),
        ("wide", "🦊, “curly” and\nlines".to_owned()),
    ]
    .map(|(key, text)| (key.to_owned(), text))
    .into();
    write_image(&path, &picture, &texts).expect("written");
    let found = read(&path).expect("read");
    for (key, text) in texts {
        assert_eq!(found.get(&key), Some(&text));
    }
    assert_eq!(image::open(&path).expect("a picture").to_rgb8(), picture);
}

/// As pictures were written before a request had masks.
#[test]
fn records_stay_readable() {
    let text = r#"{"version":"0.0.0","model":"m","weights":"ab","classes":[5,6],"device":"CPU","dtype":"f16",
        "vae":"/models/vae","picture":{"file":"a.png","strength":null},
        "settings":{"seed":3,"steps":2,"sampler":{"ddim":{"eta":0.0}},"spacing":{"leading":{"offset":1}},
        "guidance":{"scale":3.0,"channels":"all","interval":null,"rescale":0.0},"size":null,"batch":8,
        "vae_tile":64}}"#;
    let record: Record = serde_json::from_str(text).expect("a record");
    let request = record.request::<ClassTask>(Path::new("a")).expect("classes");
    assert_eq!((request.prompts.as_slice(), request.seed), (&[5, 6][..], 3));
    let picture = record.picture.as_ref().expect("a picture");
    assert_eq!((picture.picture.file.as_deref(), picture.strength), (Some("a.png"), None));
    assert_eq!(record.vae.as_ref().and_then(|vae| vae.file.as_deref()), Some("/models/vae"));
    let own = record.image(1);
    assert_eq!((own.asked(), own.settings.seed), (Asked::Classes(vec![6]), 4));
    let again: serde_json::Value =
        serde_json::from_str(&own.texts(&Labels::default(), [8, 8]).expect("texts")[1].1)
            .expect("JSON");
    let before: serde_json::Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(again["picture"], before["picture"]);
    assert_eq!(again["settings"]["guidance"], before["settings"]["guidance"]);
}

/// In each part of a record.
#[test]
fn keys_that_are_not_known_are_refused_by_name() {
    let part = |key: &str, other: &str| {
        format!(
            r#"{{"version":"0.0.0","model":"m","weights":"ab","device":"CPU","dtype":"f16",
            "{key}":{{"file":"a","fingerprint":"b"{other}}},
            "settings":{{"seed":3,"steps":2,"sampler":"euler","spacing":{{"leading":{{"offset":1}}}},
            "guidance":{{"scale":3.0,"channels":"all","interval":null,"rescale":0.0}},"size":null,"batch":8,
            "vae_tile":64}}}}"#
        )
    };
    for key in ["picture", "mask", "noise", "vae", "guide", "text_encoder"] {
        let read = |other| serde_json::from_str::<Record>(&part(key, other));
        read("").unwrap_or_else(|error| panic!("{key}: {error}"));
        let error = read(r#","blur":2"#).expect_err(key).to_string();
        assert!(error.contains("`blur`"), "{key}: {error}");
    }
}

#[test]
fn broken_files_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.png");
    for bytes in [&b""[..], b"\x89PNG\r\n\x1a\n", b"not a png at all"] {
        std::fs::write(&path, bytes).expect("written");
        assert!(read(&path).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives_a_round_trip(texts in prop::collection::vec(any::<String>(), 1..4)) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.png");
        let keyed = texts.into_iter().enumerate();
        let texts: Vec<_> = keyed.map(|(i, text)| (format!("key {i}"), text)).collect();
        write_image(&path, &image::RgbImage::new(2, 2), &texts).expect("written");
        prop_assert_eq!(read(&path).expect("read"), BTreeMap::from_iter(texts));
    }

    /// Bytes as they come, and a good file with some replaced.
    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        text in ".{0,40}",
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.png");
        std::fs::write(&path, [&b"\x89PNG\r\n\x1a\n"[..], &bytes].concat()).expect("written");
        prop_assert!(read(&path).is_err());
        let picture = image::RgbImage::new(2, 2);
        write_image(&path, &picture, &[("key".into(), text)]).expect("written");
        let mut good = std::fs::read(&path).expect("a file");
        for (at, byte) in changes {
            let at = at.index(good.len());
            good[at] = byte;
        }
        std::fs::write(&path, good).expect("written");
        let _ = read(&path);
    }

    /// Whatever a request says, its pictures of every format say the same.
    #[test]
    fn any_request_comes_back(request in request()) {
        let Ok(settings) = pipeline().resolve(&request) else { return Ok(()) };
        let record = Record::of(pipeline(), &request).expect("a record");
        let texts = record.texts(pipeline().labels(), [64, 64]).expect("texts");
        let folder = tempfile::tempdir().expect("a folder");
        for kind in ["png", "jpg", "webp"] {
            let path = folder.path().join("a").with_extension(kind);
            write_image(&path, &image::RgbImage::new(2, 2), &texts).expect("written");
            let found = Record::read(&path).expect("a record");
            let found = found.request::<ClassTask>(&path).expect("classes");
            prop_assert_eq!(&found.prompts, &request.prompts);
            prop_assert_eq!(&found.negative, &request.negative);
            prop_assert_eq!(pipeline().resolve(&found).expect("possible"), settings.clone());
        }
    }
}

fn pipeline() -> &'static ClassPipeline {
    static PIPELINE: OnceLock<ClassPipeline> = OnceLock::new();
    PIPELINE.get_or_init(|| {
        let options = OpenOptions { device: DeviceChoice::Cpu, ..OpenOptions::default() };
        ClassPipeline::open("emoji-class", &options).expect("the shipped model")
    })
}

/// Numbers as people type them: of the longest ones JSON loses the last bit.
fn typed(low: i32, high: i32) -> impl Strategy<Value = f64> {
    (100 * low..100 * high).prop_map(|number| f64::from(number) / 100.0)
}

fn sampler() -> impl Strategy<Value = (Sampler, Option<Spacing>)> {
    let churn = |amount| Some(Churn { amount, ..Churn::default() });
    let sampler = prop_oneof![
        typed(0, 1).prop_map(|eta| Sampler::Ddim { eta }),
        typed(0, 9).prop_map(move |amount| Sampler::Heun { churn: churn(amount) }),
        Just(Sampler::DpmPp2m),
    ];
    let spacing = prop_oneof![
        Just(None),
        Just(Some(Spacing::Trailing)),
        typed(1, 9).prop_map(|rho| Some(Spacing::Karras { rho })),
    ];
    (sampler, spacing)
}

/// Half of them are `None`.
fn perhaps<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<T>> {
    prop::option::of(value)
}

prop_compose! {
    fn guidance()(
        scale in perhaps(typed(-2, 20)),
        rescale in perhaps(typed(0, 1)),
        interval in perhaps([typed(0, 3), typed(3, 9)]),
        channels in perhaps(1usize..=3),
        normalized in perhaps(any::<bool>()),
    ) -> Guidance {
        let channels = channels.map(GuidedChannels::First);
        Guidance { scale, light: None, rescale, interval, channels, normalized }
    }
}

prop_compose! {
    fn request()(
        prompts in prop::collection::vec(0usize..16, 1..5),
        negative in perhaps(0usize..16),
        exact_size in any::<bool>(),
        seed in any::<u64>(),
        size in perhaps([1usize..9, 1usize..9]),
        steps in perhaps(2usize..40),
        sampler in perhaps(sampler()),
        guidance in guidance(),
        weak in perhaps(0usize..40),
        batch in perhaps(1usize..9),
    ) -> Request<usize> {
        let plan = |(weak, steps): (usize, usize)| PatchPlan::weak_first([8, 16], weak, weak, steps);
        let (sampler, spacing) = sampler.unzip();
        Request {
            negative,
            exact_size,
            seed,
            size: size.map(|size| size.map(|side| 16 * side)),
            steps,
            sampler,
            spacing: spacing.flatten(),
            guidance,
            patches: weak.zip(steps).map(plan),
            batch,
            ..Request::new(prompts)
        }
    }
}

/// A PNG with these chunks after its header.
fn png(chunks: &[(&[u8; 4], Vec<u8>)]) -> (tempfile::TempDir, PathBuf) {
    let header = [&[0, 0, 0, 1, 0, 0, 0, 1][..], &[8, 2, 0, 0, 0]].concat();
    let end = [(b"IEND", Vec::new())];
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header)].iter().chain(chunks).chain(&end) {
        let mut hash = crc32fast::Hasher::new();
        hash.update(*kind);
        hash.update(data);
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend([&kind[..], data, &hash.finalize().to_be_bytes()].concat());
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.png");
    std::fs::write(&path, bytes).expect("written");
    (folder, path)
}

/// The limit holds for what texts become, alone and together.
#[test]
fn texts_beyond_the_limit_are_refused() {
    let packed = |mebibytes: usize| fdeflate::compress_to_vec(&vec![0; mebibytes << 20]);
    let latin = |key: &str, mebibytes| [key.as_bytes(), b"\0\0", &packed(mebibytes)].concat();
    let utf8 =
        |key: &str, mebibytes| [key.as_bytes(), b"\0\x01\0\0\0", &packed(mebibytes)].concat();
    let plain = |mebibytes: usize| [b"k\0".to_vec(), vec![b'a'; mebibytes << 20]].concat();
    let refused: [&[(&[u8; 4], Vec<u8>)]; 6] = [
        &[(b"zTXt", latin("k", 64))],
        &[(b"iTXt", utf8("k", 64))],
        &[(b"tEXt", plain(9))],
        &[(b"zTXt", latin("a", 5)), (b"zTXt", latin("b", 5))],
        &[(b"zTXt", latin("a", 5)), (b"iTXt", utf8("b", 5))],
        &vec![(b"tEXt", b"k\0".to_vec()); 2000],
    ];
    for chunks in refused {
        let (_folder, path) = png(chunks);
        assert!(matches!(read(&path), Err(Error::Metadata { .. })));
        assert!(matches!(Record::read(&path), Err(Error::Metadata { .. })));
    }
    let (_folder, path) = png(&[(b"zTXt", latin("a", 1)), (b"iTXt", utf8("b", 1))]);
    assert_eq!(
        read(&path).expect("small enough").values().map(String::len).sum::<usize>(),
        2 << 20
    );
}

/// As A1111 and its relatives write them, whatever their order of bytes.
#[test]
fn comments_of_others_are_read() {
    let field = |tag: u16, kind: u16, count: u32, at: u32| {
        let mut bytes = [tag.to_le_bytes(), kind.to_le_bytes()].concat();
        bytes.extend([count.to_le_bytes(), at.to_le_bytes()].concat());
        bytes
    };
    let big: Vec<u8> = "Füchse".encode_utf16().flat_map(u16::to_be_bytes).collect();
    let little: Vec<u8> = "Füchse".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (code, text) in
        [(b"UNICODE\0", &big), (b"UNICODE\0", &little), (b"ASCII\0\0\0", &"Füchse".into())]
    {
        let comment = [&code[..], text].concat();
        // The first directory points to that of Exif, which holds the comment.
        let exif = [
            b"II*\0\x08\0\0\0\x01\0".to_vec(),
            field(0x8769, 4, 1, 26),
            vec![0; 4],
            vec![1, 0],
            field(0x9286, 7, comment.len() as u32, 44),
            vec![0; 4],
            comment,
        ];
        assert_eq!(super::exif::texts(exif.concat())["parameters"], "Füchse");
    }
}

#[test]
fn hostile_sizes_in_jpeg_and_webp_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a");
    let write = |bytes: &[&[u8]]| std::fs::write(&path, bytes.concat()).expect("written");
    write(&[b"RIFF\xff\xff\xff\xffWEBPEXIF\xff\xff\xff\x7f"]);
    assert!(matches!(read(&path), Err(Error::Metadata { .. })));
    for start in [&b"\xff\xd8\xff\xe1\xff\xffExif\0\0"[..], b"\xff\xd8\xff\xe1\0\0", b"\xff\xd8"] {
        write(&[start]);
        assert!(read(&path).expect("none").is_empty());
    }
    let counts: RangeInclusive<u8> = 0..=255;
    for count in counts {
        // Directories of many fields, at places that are not there.
        write(&[b"RIFF....WEBPEXIF\x10\0\0\0II*\0\x08\0\0\0", &[count; 8]]);
        let _ = read(&path);
    }
}
