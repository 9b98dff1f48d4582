//! Files of other writers, and files that break the rules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::{Gguf, Kind, Names, read};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/goldens").join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).expect("a fixture")
}

fn parse(bytes: &[u8]) -> Result<Gguf, String> {
    read(bytes, bytes.len() as u64)
}

/// All tensors as f32.
fn values(bytes: &[u8]) -> BTreeMap<String, Vec<f32>> {
    let file = parse(bytes).expect("a header");
    let of = |range: &std::ops::Range<u64>| &bytes[range.start as usize..range.end as usize];
    let tensors = file.tensors.into_iter();
    tensors.map(|(name, info)| (name, info.kind.to_f32(of(&info.range)))).collect()
}

/// All tensors of a safetensors file as f32.
fn expected(bytes: &[u8]) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let kind = match view.dtype() {
            safetensors::Dtype::F16 => Kind::F16,
            safetensors::Dtype::F32 => Kind::F32,
            _ => Kind::I64,
        };
        (name, (view.shape().to_vec(), kind.to_f32(view.data())))
    });
    tensors.collect()
}

/// The largest difference, against the largest number.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    let different = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    different.fold(0f32, |most, value| if value <= most { most } else { value }) / largest
}

#[test]
fn blocks_of_every_type_have_the_values_of_the_reference() {
    let bytes = bytes_of("gguf-blocks/blocks.gguf");
    let (file, found) = (parse(&bytes).unwrap(), values(&bytes));
    let expected = expected(&bytes_of("gguf-blocks/case.safetensors"));
    assert_eq!((file.tensors.len(), expected.len()), (15, 15));
    assert_eq!(file.metadata["general.architecture"], "flux");
    for (kind, (shape, expected)) in &expected {
        let name = format!("w.{kind}");
        let info = &file.tensors[&name];
        assert_eq!((&info.kind.to_string(), &info.shape), (kind, shape));
        let error = error(&found[&name], expected);
        assert!(error < 1e-6, "{kind}: {error}");
    }
}

/// Each tensor is near that which its name says, and far from the others of its shape: so it is measured which of the
/// two layers before the gate is which. The smallest tensors are not quantised, so that `F16` differs by one rounding.
#[test]
fn t5_encoders_have_the_tensors_that_their_names_say() {
    let all = expected(&bytes_of("t5-files/t5xxl_fp16.safetensors"));
    for (kind, most) in [("F16", 5e-4), ("Q8_0", 5e-3), ("Q5_1", 0.03), ("Q4_0", 0.13)] {
        let bytes = bytes_of(&format!("t5-files/t5-encoder-{kind}.gguf"));
        let (file, values) = (parse(&bytes).unwrap(), values(&bytes));
        assert_eq!(values.len(), all.len());
        let names = Names::of(file.tensors.keys()).unwrap();
        for (name, info) in &file.tensors {
            let renamed = names.name(name).unwrap();
            let (shape, expected) = &all[&renamed];
            let own = error(&values[name], expected);
            assert!(info.shape == *shape && own < most, "{kind} {name}: {own}");
            for (other, (_, expected)) in all.iter().filter(|(_, (other, _))| other == shape) {
                let error = error(&values[name], expected);
                assert!(*other == renamed || error > 5.0 * own, "{kind} {name} {other}: {error}");
            }
        }
    }
}

#[test]
fn plain_types_are_read() {
    assert_eq!(Kind::I8.to_f32(&[0xff, 3]), [-1.0, 3.0]);
    assert_eq!(Kind::I16.to_f32(&(-300i16).to_le_bytes()), [-300.0]);
    assert_eq!(Kind::I32.to_f32(&70_000i32.to_le_bytes()), [70_000.0]);
    assert_eq!(Kind::I64.to_f32(&(-7i64).to_le_bytes()), [-7.0]);
    assert_eq!(Kind::F64.to_f32(&0.5f64.to_le_bytes()), [0.5]);
    assert_eq!(Kind::Q8_0.to_f32(&[0; 35]), [0.0; 32]);
}

/// A file in the making.
#[derive(Clone)]
struct Made {
    start: Vec<u8>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    values: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// An entry of the metadata, of type `kind`.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key), &kind.to_le_bytes()[..], value].concat()
}

fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), values].concat()
}

fn tensor(name: &str, lengths: &[u64], kind: u32, place: u64) -> Vec<u8> {
    let lengths: Vec<u8> = lengths.iter().flat_map(|length| length.to_le_bytes()).collect();
    let count = (lengths.len() as u32 / 8).to_le_bytes();
    [&text(name)[..], &count, &lengths, &kind.to_le_bytes(), &place.to_le_bytes()].concat()
}

impl Made {
    /// A file of two tensors: `a` of 3 x 8 numbers of 32 bits, and after its 96 bytes `b` of a block of `Q8_0`.
    fn new() -> Self {
        let start = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
        let tensors = vec![tensor("a", &[8, 3], 0, 0), tensor("b", &[32], 8, 96)];
        Self { start, entries: Vec::new(), tensors, values: 130 }
    }

    fn with(entry: Vec<u8>) -> Self {
        Self { entries: vec![entry], ..Self::new() }
    }

    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.entries.len() as u64];
        let counts = counts.map(u64::to_le_bytes).concat();
        let parts = [self.entries.concat(), self.tensors.concat()].concat();
        let mut bytes = [&self.start[..], &counts, &parts].concat();
        bytes.resize(bytes.len().next_multiple_of(32) + self.values, 0);
        bytes
    }

    fn refused(&self, reason: &str) {
        let found = parse(&self.bytes()).map(|_| ());
        assert!(found.as_ref().is_err_and(|found| found.contains(reason)), "{reason}: {found:?}");
    }

    /// Refuses the second tensor.
    fn refuses(tensor: Vec<u8>, reason: &str) {
        let mut file = Self::new();
        file.tensors[1] = tensor;
        file.refused(reason);
    }
}

#[test]
fn headers_are_read() {
    for version in [2u32, 3] {
        let mut file = Made::new();
        file.start[4..].copy_from_slice(&version.to_le_bytes());
        let file = parse(&file.bytes()).unwrap();
        let (a, b) = (&file.tensors["a"], &file.tensors["b"]);
        assert_eq!(
            (a.kind, &a.shape[..], a.range.end - a.range.start),
            (Kind::F32, &[3, 8][..], 96)
        );
        assert_eq!((b.kind, &b.shape[..]), (Kind::Q8_0, &[32][..]));
        assert_eq!(b.range, a.range.start + 96..a.range.start + 130);
    }
}

#[test]
fn metadata_is_read_as_texts_and_arrays_are_passed_over() {
    let mut file = Made::new();
    let texts = [text("x"), text(""), text("yz")].concat();
    let nested = [array(2, 1, &[1, 2]), array(8, 3, &texts)].concat();
    file.entries = vec![
        entry("u8", 0, &[200]),
        entry("i8", 1, &[0xff]),
        entry("u16", 2, &[0, 1]),
        entry("i16", 3, &[0xfe, 0xff]),
        entry("u32", 4, &[0xff; 4]),
        entry("numbers", 9, &array(6, 2, &[0; 8])),
        entry("texts", 9, &array(8, 3, &texts)),
        entry("nested", 9, &array(9, 2, &nested)),
        entry("i32", 5, &[0xff; 4]),
        entry("f32", 6, &1.5f32.to_le_bytes()),
        entry("bool", 7, &[1]),
        entry("text", 8, &text("größer")),
        entry("u64", 10, &[0xff; 8]),
        entry("i64", 11, &[0xff; 8]),
        entry("f64", 12, &1e-6f64.to_le_bytes()),
        entry("general.alignment", 4, &16u32.to_le_bytes()),
    ];
    file.tensors[1] = tensor("b", &[32], 8, 96 + 16);
    file.values += 16;
    let file = parse(&file.bytes()).unwrap();
    let found: Vec<_> = file.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected = [
        ("bool", "true"),
        ("f32", "1.5"),
        ("f64", "0.000001"),
        ("general.alignment", "16"),
        ("i16", "-2"),
        ("i32", "-1"),
        ("i64", "-1"),
        ("i8", "-1"),
        ("text", "größer"),
        ("u16", "256"),
        ("u32", "4294967295"),
        ("u64", "18446744073709551615"),
        ("u8", "200"),
    ];
    assert_eq!(found, expected);
    assert_eq!(file.tensors["a"].range.start % 16, 0);
}

#[test]
fn original_shapes_are_restored() {
    let key = "comfy.gguf.orig_shape.a";
    let shape = |kind, lengths: &[i32]| {
        let bytes = lengths.iter().flat_map(|length| length.to_le_bytes()).collect::<Vec<_>>();
        Made::with(entry(key, 9, &array(kind, lengths.len() as u64, &bytes)))
    };
    let file = parse(&shape(5, &[2, 3, 1, 1, 4]).bytes()).unwrap();
    assert_eq!(file.tensors["a"].shape, [2, 3, 1, 1, 4]);
    assert!(file.metadata.is_empty());
    shape(5, &[2, 3, 5]).refused("`a`: stored with shape [3, 8], which cannot be [2, 3, 5]");
    shape(5, &[0, 3]).refused("`a`: shape [0, 3], without elements");
    shape(5, &[i32::MAX; 5]).refused("more elements than can be counted");
    shape(5, &[-24]).refused("a length of -24");
    shape(5, &[1; 9]).refused("9 dimensions, more than 8");
    shape(4, &[24]).refused("not an array of 32-bit integers");
    Made::with(entry(key, 5, &[24, 0, 0, 0])).refused("not an array of 32-bit integers");
}

#[test]
fn files_of_other_formats_and_versions_are_refused() {
    let mut file = Made::new();
    file.start[4..].copy_from_slice(&[0, 0, 0, 3]);
    file.refused("big-endian, only little-endian files are read");
    for version in [0u32, 1, 4] {
        file.start[4..].copy_from_slice(&version.to_le_bytes());
        file.refused(&format!("version {version}, only 2 and 3 are read"));
    }
    file.start[0] = b'g';
    file.refused("not a GGUF file");
    assert!(parse(b"").unwrap_err().contains("the start takes 4 bytes at byte 0, 0 of 0 are left"));
}

#[test]
fn broken_metadata_is_refused() {
    Made::with(entry("x", 13, &[])).refused("`x`: type 13, which is not known");
    Made::with(entry("x", 9, &array(13, 0, &[]))).refused("an array of type 13");
    Made::with(entry("x", 9, &array(10, 1 << 61, &[]))).refused("an array takes 184467440737");
    Made::with(entry("x", 9, &array(8, u64::MAX, &[]))).refused("are left");
    Made::with(entry("x", 8, &u64::MAX.to_le_bytes())).refused("a text takes 184467440737");
    Made::with(entry("x", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])).refused("not UTF-8");
    Made::with(entry(&"x".repeat(1025), 0, &[0])).refused("1025 bytes, more than 1024");
    let nested = array(9, 1, &[]).repeat(9);
    Made::with(entry("x", 9, &nested)).refused("more than 8 arrays in each other");
    for alignment in [0u32, 24] {
        let file = Made::with(entry("general.alignment", 4, &alignment.to_le_bytes()));
        file.refused(&format!("is {alignment}, expected a power of two"));
    }
    let mut twice = Made::new();
    twice.entries = vec![entry("x", 0, &[1]), entry("x", 0, &[1])];
    twice.refused("`x` is given twice");
    let counts = [&b"GGUF\x03\0\0\0"[..], &[0xff; 16]].concat();
    assert!(parse(&counts).unwrap_err().contains("more than 16384"));
}

#[test]
fn broken_tensors_are_refused() {
    Made::refuses(tensor("a", &[32], 8, 96), "`a` is given twice");
    Made::refuses(tensor("b", &[32], 8, 64), "`a` and `b` share bytes");
    Made::refuses(tensor("b", &[32], 8, 97), "`b`: place 97, expected a multiple of 32");
    Made::refuses(tensor("b", &[31], 8, 96), "`b`: rows of 31, in blocks of 32 for type Q8_0");
    Made::refuses(tensor("b", &[], 8, 96), "`b`: rows of 1, in blocks of 32 for type Q8_0");
    Made::refuses(tensor("b", &[1; 5], 0, 96), "`b`: 5 dimensions, more than 4");
    Made::refuses(tensor("b", &[32], 16, 96), "`b`: type IQ2_XXS, which is not read");
    Made::refuses(tensor("b", &[32], 99, 96), "`b`: type 99, which is not known");
    Made::refuses(tensor("b", &[1 << 63, 4], 0, 96), "more elements than can be counted");
    Made::refuses(tensor("b", &[1 << 62], 0, 96), "more bytes than can be counted");
    Made::refuses(tensor("b", &[8], 0, u64::MAX - 31), "`b`: shape [8], more bytes than can");
    Made::refuses(tensor("b", &[0, u64::MAX], 0, 96), "without elements");
    let mut file = Made::new();
    let length = file.bytes().len();
    file.values -= 1;
    let reason = format!("ends at byte {length}, but the file has only {}", length - 1);
    file.refused(&reason);
}

/// Numbers from a seed (Marsaglia 2003).
fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 16) as usize
}

/// Whatever is read lies in the file, and is not more than that.
#[test]
fn changed_files_are_read_or_refused() {
    const INTERESTING: [u8; 8] = [0, 1, 2, 9, 0x20, 0x7f, 0x80, 0xff];
    let (original, mut state, mut read) = (bytes_of("gguf-blocks/blocks.gguf"), 1u64, 0);
    let header = 0x2e8;
    for _ in 0..10_000 {
        let mut bytes = original.clone();
        for _ in 0..1 + random(&mut state) % 4 {
            let byte = match random(&mut state) % 2 {
                0 => INTERESTING[random(&mut state) % INTERESTING.len()],
                _ => random(&mut state) as u8,
            };
            bytes[random(&mut state) % header] = byte;
        }
        if random(&mut state).is_multiple_of(8) {
            bytes.truncate(random(&mut state) % bytes.len());
        }
        let Ok(file) = parse(&bytes) else { continue };
        read += 1;
        let mut total = 0;
        for info in file.tensors.values() {
            let part = &bytes[info.range.start as usize..info.range.end as usize];
            total += part.len();
            let elements: usize = info.shape.iter().product();
            assert_eq!(info.kind.to_f32(part).len(), elements);
        }
        assert!(total < bytes.len());
    }
    assert!(read > 100, "only {read} of the changed files were read");
}
