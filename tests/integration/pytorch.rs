//! PyTorch files of every form, and hostile ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pyrograph_weights::{Checkpoint, Error};

use crate::util::{fixtures, is_same};

/// Values and shapes of tensors by name.
type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

fn tensors(path: &Path) -> Result<Tensors, Error> {
    let file = Checkpoint::open(path)?;
    file.tensors().keys().map(|name| Ok((name.clone(), file.read_f32(name)?))).collect()
}

#[test]
fn every_form_is_read() {
    let folder = fixtures().join("cases/pytorch");
    let mut expected: BTreeMap<String, BTreeMap<String, _>> = BTreeMap::new();
    for (name, values) in tensors(&folder.join("expected.safetensors")).expect("the reference") {
        let (file, tensor) = name.split_once('/').expect("FILE/TENSOR");
        expected.entry(file.to_owned()).or_default().insert(tensor.to_owned(), values);
    }
    assert_eq!(expected.len(), 12);
    for (file, expected) in expected {
        let found = tensors(&folder.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(found.keys().eq(expected.keys()), "{file}: {:?}", found.keys());
        for (name, (values, shape)) in expected {
            let (found, found_shape) = &found[&name];
            assert_eq!(found_shape, &shape, "{file} {name}");
            assert!(is_same(found, &values), "{file} {name}: {found:?}, expected {values:?}");
        }
    }
    let training = Checkpoint::open(folder.join("training.pt")).expect("read");
    assert_eq!(training.metadata()["args.model"], "DiT-S/2");
}

/// A zip archive as PyTorch writes it: with the records of the 64-bit form before the last one, whatever its size.
fn archive(stem: &str, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let [u16, u32, u64] =
        [2, 4, 8].map(|size| move |value: u64| value.to_le_bytes()[..size].to_vec());
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let name = format!("{stem}/{name}");
        let start = bytes.len() as u64;
        let length = content.len() as u64;
        // Version, flags, method, time, date; checksum (0: none), sizes, length of the name and of what follows it.
        let common = [
            [u16(0), u16(0), u16(0), u16(0), u16(0)].concat(),
            [u32(0), u32(length), u32(length), u16(name.len() as u64), u16(0)].concat(),
        ]
        .concat();
        bytes.extend([b"PK\x03\x04", &*common, name.as_bytes(), content].concat());
        let place = [u16(0), u16(0), u16(0), u32(0), u32(start)].concat();
        directory.extend([b"PK\x01\x02\0\0", &*common, &place, name.as_bytes()].concat());
    }
    let (start, length) = (bytes.len() as u64, directory.len() as u64);
    let count = entries.len() as u64;
    bytes.extend(directory);
    let end = bytes.len() as u64;
    let record = [u64(44), u16(0), u16(0), u32(0), u32(0)].concat();
    let totals = [u64(count), u64(count), u64(length), u64(start)].concat();
    bytes.extend([b"PK\x06\x06", &*record, &totals].concat());
    bytes.extend([b"PK\x06\x07", &*u32(0), &u64(end), &u32(1)].concat());
    let totals = [u16(0), u16(0), u16(count), u16(count), u32(length), u32(start), u16(0)].concat();
    bytes.extend([b"PK\x05\x06", &*totals].concat());
    bytes
}

/// The pickle of tensors of f32, each with a shape and strides in a storage of `elements`.
fn pickle(tensors: &[(&str, &[i32], &[i32])], elements: i32) -> Vec<u8> {
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let number = |number: &i32| [b"J", &number.to_le_bytes()[..]].concat();
    let tuple = |numbers: &[i32]| {
        [b"(".to_vec(), numbers.iter().flat_map(number).collect(), b"t".to_vec()].concat()
    };
    let mut bytes = b"\x80\x02}".to_vec();
    for (name, shape, strides) in tensors {
        bytes.extend(text(name));
        bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        bytes.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0")].concat());
        bytes.extend([text("cpu"), number(&elements), b"tQ".to_vec(), number(&0)].concat());
        bytes.extend([tuple(shape), tuple(strides)].concat());
        bytes.extend(b"\x89ccollections\nOrderedDict\n)RtRs");
    }
    bytes.push(b'.');
    bytes
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

/// PyTorch names the folder in an archive after the file, and a search for the directory can go wrong at some lengths.
#[test]
fn names_of_any_length_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let pickle = pickle(&[("x", &[1], &[1])], 1);
    let values = 1.5f32.to_le_bytes();
    for entries in [
        &[("data.pkl", &*pickle), ("data/0", &values)][..],
        &[
            ("data.pkl", &*pickle),
            ("byteorder", b"little"),
            ("data/0", &values),
            ("version", b"3\n"),
        ],
    ] {
        for length in 1..=64 {
            let stem = "s".repeat(length);
            let path = write(folder.path(), &format!("{stem}.pt"), &archive(&stem, entries));
            let found = tensors(&path).unwrap_or_else(|error| panic!("{length}: {error}"));
            assert_eq!(found, BTreeMap::from([("x".into(), (vec![1.5], vec![1]))]));
        }
    }
    let case = fixtures().join("cases/pt-stem-21/checkpoint_step_50000.pt");
    assert_eq!(tensors(&case).expect("read"), BTreeMap::from([("x".into(), (vec![0.0], vec![1]))]));
}

#[test]
fn damaged_values_are_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bytes = std::fs::read(fixtures().join("cases/pytorch/protocol_4.pt")).expect("there");
    let one = 1f32.to_le_bytes();
    let at = bytes.windows(8).position(|window| window[..4] == [0; 4] && window[4..] == one);
    bytes[at.expect("the values 0 and 1") + 6] ^= 1;
    let path = write(folder.path(), "a.pt", &bytes);
    assert!(matches!(tensors(&path), Err(Error::Values { .. })));
}

#[test]
fn other_archives_are_refused_by_what_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let pickle = pickle(&[("x", &[1], &[1])], 1);
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, word) in [
        (archive("a", &[("data.pkl", &pickle), ("byteorder", b"big")]), "big-endian"),
        (archive("a", &[("data.pkl", &pickle)]), "data/0"),
        (archive("a", &[("other.pkl", &pickle)]), "data.pkl"),
        (tar, "tar archive"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n".to_vec(),
            "git lfs pull",
        ),
    ] {
        let path = write(folder.path(), "a.pt", &bytes);
        let error = tensors(&path).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// What a few bytes say to be many.
#[test]
fn pickles_of_more_than_their_file_are_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let with = |pickle: &[u8]| archive("a", &[("data.pkl", pickle), ("data/0", &[0; 4])]);
    let of = |shape: &[i32], strides: &[i32], elements| pickle(&[("x", shape, strides)], elements);
    let many =
        |byte: u8, times: usize, rest: &[u8]| [b"\x80\x02", &*vec![byte; times], rest].concat();
    // Lists of the list before, twice.
    let doubled = |times| {
        [b"\x80\x02}K\x01]K\x01a".to_vec(), b"2\x86".repeat(times), b"s.".to_vec()].concat()
    };
    for (name, bytes) in [
        ("2 GB of one number", with(&of(&[536870912], &[0], 1))),
        ("a row of a large storage", with(&of(&[2], &[1 << 30], i32::MAX))),
        ("a shape that overflows", with(&of(&[i32::MAX; 8], &[0; 8], 1))),
        ("lengths below zero", with(&of(&[-1], &[1], 1))),
        ("many values", with(&many(b'N', 3 << 20, b"."))),
        ("many lists", with(&many(b']', 1 << 20, b"."))),
        ("many marks", with(&many(b'(', 3 << 20, b"."))),
        ("lists in lists", with(&doubled(60))),
        ("a text that is not there", with(b"\x80\x02X\xff\xff\xff\xff")),
    ] {
        let path = write(folder.path(), "a.pt", &bytes);
        let started = Instant::now();
        assert!(matches!(tensors(&path), Err(Error::Pytorch { .. })), "{name}");
        // A second, on a machine that does other things besides.
        assert!(started.elapsed() < Duration::from_secs(4), "{name}: {:?}", started.elapsed());
    }
}

/// Weights in 8 bits with a factor for each, as safetensors files have them.
#[test]
fn scales_of_eight_bits_are_applied_or_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |scale: &str| {
        let header = format!(
            r#"{{"a.weight":{{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}},
            "a.bias":{{"dtype":"F8_E5M2","shape":[2],"data_offsets":[2,4]}},
            "a.scale_weight":{{"dtype":"F32","shape":{scale},"data_offsets":[4,12]}},
            "a.scale_input":{{"dtype":"F8_E5M2","shape":[],"data_offsets":[12,13]}},
            "scaled_fp8":{{"dtype":"F8_E4M3","shape":[0],"data_offsets":[13,13]}}}}"#
        );
        let header = if scale == "[2]" {
            header
        } else {
            header
                .replace("[4,12]", "[4,8]")
                .replace("[12,13]", "[8,9]")
                .replace("[13,13]", "[9,9]")
        };
        let values = [[0x38, 0x40, 0x3c, 0xc0], 0.5f32.to_le_bytes()].concat();
        let rest: &[u8] = if scale == "[2]" { &[0; 5] } else { &[0] };
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &values, rest].concat()
    };
    for scale in ["[]", "[1]", "[1,1]"] {
        let found = tensors(&write(folder.path(), "a.safetensors", &file(scale))).expect("read");
        assert_eq!(found.len(), 2);
        assert_eq!(found["a.weight"].0, [0.5, 1.0]);
        assert_eq!(found["a.bias"].0, [1.0, -2.0]);
    }
    let error =
        tensors(&write(folder.path(), "a.safetensors", &file("[2]"))).expect_err("two scales");
    assert!(error.to_string().contains("a.scale_weight"), "{error}");
}
